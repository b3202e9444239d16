//! The loop: batches in, steps, records and checkpoints out. Everything random is a function of the seed and the place
//! in the run, so that a resumed run cannot be told from one that was never stopped.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use moco_image::Rng;
use moco_models::Graph;
use moco_models::init::initialise;

use super::feed::{Feed, input};
use super::monitor::Monitor;
use super::{
    Checkpoints, EvalRecord, EventWriter, MetricsWriter, Progress, Record, RunConfig, RunFolder, StepRecord, result,
};
use crate::compute::Compute;
use crate::data::{Batch, Dataset, LoaderOptions};
use crate::health::{Context, HealthReport, HealthTracker, SUSPICIOUS_ACCURACY};
use crate::objective::{
    Learner, MocoConfig, MocoState, Sgd, Shuffle, StepReport, Views, open_learner, same_image_share,
};
use crate::recipe::Recipe;
use crate::{Error, Result};

/// Who watches a run.
pub trait Observer {
    /// Before the first step.
    fn started(&mut self, plan: &RunPlan, step: u64);
    /// After a step.
    fn step(&mut self, record: &StepRecord);
    /// After a report on the features.
    fn health(&mut self, report: &HealthReport);
    /// After an evaluation.
    fn eval(&mut self, record: &EvalRecord);
    /// Something to know.
    fn note(&mut self, text: &str);
}

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunPlan {
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Epochs.
    pub epochs: u64,
    /// Images of a full batch.
    pub batch: usize,
}

impl RunPlan {
    /// For a data set of `images`.
    ///
    /// # Errors
    /// [`Error::Run`] if not even one batch fits.
    pub fn new(config: &RunConfig, images: usize) -> Result<RunPlan> {
        let optim = &config.recipe.optim;
        let least = MocoConfig::new(&config.recipe).least_batch();
        // A last batch with fewer than two images a group has no batch statistics and is left out.
        let partial = !optim.drop_last && images % optim.batch >= least;
        let steps_per_epoch = (images / optim.batch) as u64 + u64::from(partial);
        if steps_per_epoch == 0 {
            return Err(Error::Run(format!(
                "{images} images do not make a batch of {}; use `--batch {}` or less (and with it a lower `--lr`)",
                optim.batch,
                images.max(1)
            )));
        }
        Ok(RunPlan { steps_per_epoch, epochs: optim.epochs, batch: optim.batch })
    }

    /// Steps of the whole run.
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch * self.epochs
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done and the backbone is written.
    Finished,
    /// It was asked to stop, and saved.
    Stopped {
        /// Steps done.
        step: u64,
    },
}

/// A run, ready for its next step.
pub struct Trainer {
    folder: RunFolder,
    config: RunConfig,
    plan: RunPlan,
    graph: Graph,
    dataset: Arc<Dataset>,
    moco: Box<dyn Learner>,
    health: HealthTracker,
    step: u64,
    monitor: Option<Monitor>,
    notes: Vec<String>,
    compute: Compute,
}

impl Trainer {
    /// Starts a run in a new folder; nothing is written if anything does not fit.
    ///
    /// # Errors
    /// [`Error::Run`] if the folder exists, others for data, recipe and memory.
    pub fn create(path: &Path, mut config: RunConfig, dataset: Arc<Dataset>) -> Result<Trainer> {
        RunFolder::check_free(path)?;
        let (compute, note) = config.recipe.compute.choose()?;
        config.recipe.compute = config.recipe.compute.on(&compute);
        let plan = RunPlan::new(&config, dataset.len())?;
        let graph = config.recipe.arch(config.source.channels).build()?;
        let recipe = &config.recipe;
        let state = first_state(&graph, recipe);
        let moco = open_learner(&compute, &graph, MocoConfig::new(recipe), state)?;
        let monitor = Monitor::new(&config, &dataset, compute)?;
        let folder = RunFolder::create(path, &config)?;
        let health = HealthTracker::new(recipe.model.dim);
        let notes = note.into_iter().collect();
        let trainer = Trainer { folder, plan, graph, dataset, moco, health, step: 0, monitor, notes, config, compute };
        trainer.save()?;
        Ok(trainer)
    }

    /// Goes on with a run from its newest good checkpoint, or from the start if it was killed before the first.
    ///
    /// # Errors
    /// [`Error::Run`] if the data set has changed or every checkpoint is damaged.
    pub fn resume(folder: RunFolder, config: RunConfig, dataset: Arc<Dataset>) -> Result<Trainer> {
        if dataset.len() != config.source.images {
            return Err(Error::Run(format!(
                "{} had {} images when the run was started and has {} now: the run cannot go on as it would have; \
                 restore the data or start a new run",
                config.source.data.display(),
                config.source.images,
                dataset.len()
            )));
        }
        let plan = RunPlan::new(&config, dataset.len())?;
        let graph = config.recipe.arch(config.source.channels).build()?;
        let (compute, note) = config.recipe.compute.choose()?;
        let Newest { step, state, health, mut notes } = newest(&folder, &graph, &config.recipe)?;
        notes.extend(note);
        let moco = open_learner(&compute, &graph, MocoConfig::new(&config.recipe), state)?;
        let monitor = Monitor::new(&config, &dataset, compute)?;
        Ok(Trainer { folder, plan, graph, dataset, moco, health, step, monitor, notes, config, compute })
    }

    /// How long the run is.
    pub fn plan(&self) -> RunPlan {
        self.plan
    }

    /// Where it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Runs until the end, or until `stop` becomes true.
    ///
    /// # Errors
    /// [`Error::Run`] when the loss is not a number any more; the last checkpoint stays. Others for data and disk.
    pub fn run(&mut self, threads: usize, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let mut log = Log::open(&self.folder, self.step)?;
        self.notes.drain(..).for_each(|note| observer.note(&note));
        observer.started(&self.plan, self.step);
        if self.step < self.plan.steps()
            && let Some(stopped) = self.steps(threads, &mut log, observer, stop)?
        {
            return Ok(stopped);
        }
        log.sync()?;
        let query = self.moco.state()?.query.into_owned();
        result::write(&self.folder, &self.config, &self.graph, &query)?;
        Ok(Outcome::Finished)
    }

    fn steps(
        &mut self,
        threads: usize,
        log: &mut Log,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Option<Outcome>> {
        let recipe = self.config.recipe.clone();
        let RunPlan { steps_per_epoch, epochs, .. } = self.plan;
        let options = loader_options(&self.config, threads);
        let (epoch, place) = (self.step / steps_per_epoch, (self.step % steps_per_epoch) as usize);
        let on_device = recipe.compute.augment_on_device;
        let mut feed = Feed::start(self.dataset.clone(), options, &*self.moco, on_device, (epoch, place))?;
        let (mut saved_at, mut known_corrupt) = (Instant::now(), 0);
        while self.step < self.plan.steps() {
            let begin = Instant::now();
            let (batch, waited) = feed.next(&mut *self.moco)?;
            let lr = recipe.schedule.lr(recipe.optim.lr, self.step, steps_per_epoch, epochs);
            let (report, images) = self.learn(&mut feed, &batch, lr)?;
            let elapsed = begin.elapsed().as_secs_f64().max(1e-9);
            let record = StepRecord {
                step: self.step,
                epoch: batch.epoch,
                loss: report.loss,
                acc1: report.accuracy,
                lr,
                images: batch.n,
                images_per_s: batch.n as f64 / elapsed,
                data_wait: (waited.as_secs_f64() / elapsed).min(1.0),
                pos_sim: report.positive_similarity,
                neg_sim: report.negative_similarity,
            };
            log.step(&record)?;
            observer.step(&record);
            let corrupt = feed.corrupt();
            for c in corrupt.iter().skip(known_corrupt) {
                observer.note(&format!("skipped an image that cannot be read: {}: {}", c.name, c.reason));
            }
            known_corrupt = known_corrupt.max(corrupt.len());

            let is_last = self.step == self.plan.steps();
            if self.step.is_multiple_of(recipe.run.health_every_steps) || is_last {
                self.report_health(&batch, &images, log, observer)?;
            }
            drop(batch);
            let every = recipe.run.monitor_every_epochs;
            let monitored = every > 0 && self.step.is_multiple_of(steps_per_epoch * every);
            if let Some(monitor) = &self.monitor
                && (monitored || is_last)
            {
                let epochs_done = self.step / steps_per_epoch;
                let query = self.moco.state()?.query.into_owned();
                let record = monitor.evaluate(&self.graph, &query, self.step, epochs_done)?;
                log.eval(&record)?;
                observer.eval(&record);
            }
            let stopping = stop.load(Ordering::Relaxed);
            let due = self.step.is_multiple_of(recipe.run.checkpoint_every_steps)
                || saved_at.elapsed().as_secs() >= recipe.run.checkpoint_every_secs
                || self.is_kept_for_good(self.step);
            if due || is_last || stopping {
                log.sync()?;
                self.save()?;
                saved_at = Instant::now();
            }
            if stopping && !is_last {
                return Ok(Some(Outcome::Stopped { step: self.step }));
            }
        }
        Ok(None)
    }

    fn learn(&mut self, feed: &mut Feed, batch: &Batch, lr: f64) -> Result<(StepReport, Vec<u64>)> {
        let recipe = &self.config.recipe;
        let images: Vec<u64> = batch.indices.iter().map(|&i| i as u64).collect();
        let shuffles = shuffles(self.moco.config(), recipe.batch_norm.shuffle, recipe.run.seed, self.step, batch.n);
        let sgd = Sgd { lr, momentum: recipe.optim.momentum, weight_decay: recipe.optim.weight_decay };
        let report = feed.step(batch, &images, &mut *self.moco, &shuffles, &sgd)?;
        self.step += 1;
        if !report.loss.is_finite() {
            let kept = Checkpoints::new(&self.folder.checkpoints_path()).steps()?.pop().unwrap_or(0);
            return Err(Error::Run(format!(
                "the loss is {} at step {}: the training has diverged. The checkpoint of step {kept} is kept and still \
                 good; start a new run with a lower --lr (a third of {} is a good try) or a higher --temperature",
                report.loss, self.step, recipe.optim.lr
            )));
        }
        self.health.add(&report, &self.moco.embeddings()?);
        Ok((report, images))
    }

    fn report_health(
        &mut self,
        batch: &Batch,
        images: &[u64],
        log: &mut Log,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let suspicious = self.health.accuracy() >= SUSPICIOUS_ACCURACY;
        let views = Views { views: [&batch.views[0], &batch.views[1]], images };
        let running =
            if suspicious { Some(self.moco.accuracy_with_running_stats(input(batch, &views))?) } else { None };
        let context = Context {
            step: self.step,
            steps_per_epoch: self.plan.steps_per_epoch,
            directions: self.moco.config().directions(),
            queue: self.moco.queue_images().len(),
            images: self.dataset.len(),
            same_image_share: same_image_share(images, self.moco.queue_images()),
            masked: self.moco.config().mask_same_image,
            acc1_running_stats: running,
        };
        if let Some(report) = self.health.report(&context) {
            log.health(&report)?;
            observer.health(&report);
        }
        Ok(())
    }

    fn save(&self) -> Result<()> {
        let state = self.moco.state()?;
        let seed = self.config.recipe.run.seed;
        let progress = Progress::new(self.step, seed, state.queue.pointer(), self.health.clone());
        let checkpoints = Checkpoints::new(&self.folder.checkpoints_path());
        checkpoints.save(&self.graph, &state, &progress)?;
        checkpoints.prune(self.config.recipe.run.keep_last, |step| self.is_kept_for_good(step))
    }

    fn is_kept_for_good(&self, step: u64) -> bool {
        let every = self.config.recipe.run.keep_every_epochs * self.plan.steps_per_epoch;
        step > 0 && every > 0 && step.is_multiple_of(every)
    }
}

fn first_state(graph: &Graph, recipe: &Recipe) -> MocoState {
    let seed = recipe.run.seed;
    MocoState::new(initialise(graph, seed), recipe.method.queue, recipe.model.dim, seed)
}

/// Where a run stands.
struct Newest {
    step: u64,
    state: MocoState,
    health: HealthTracker,
    notes: Vec<String>,
}

/// The newest checkpoint that can be read; steps after it are done again, with the same result.
fn newest(folder: &RunFolder, graph: &Graph, recipe: &Recipe) -> Result<Newest> {
    let checkpoints = Checkpoints::new(&folder.checkpoints_path());
    let steps = checkpoints.steps()?;
    let mut notes = vec![];
    for &step in steps.iter().rev() {
        match checkpoints.load(graph, step) {
            Ok((state, progress)) => return Ok(Newest { step, state, health: progress.health, notes }),
            Err(error) => notes.push(format!("a checkpoint cannot be read and is passed over: {error}")),
        }
    }
    if !steps.is_empty() {
        return Err(Error::Run(format!(
            "{} has no checkpoint that can be read: {}",
            folder.path().display(),
            notes.join("; ")
        )));
    }
    let health = HealthTracker::new(recipe.model.dim);
    Ok(Newest { step: 0, state: first_state(graph, recipe), health, notes })
}

/// The permutations of one step; none where the batch has only one group of statistics, which no order changes.
pub fn shuffles(config: &MocoConfig, shuffle: bool, seed: u64, step: u64, n: usize) -> Vec<Shuffle> {
    const SHUFFLE: u64 = 0x7368_7566_666c;
    if !shuffle || config.bn_groups == moco_engine::BnGroups::Whole {
        return vec![];
    }
    let draw = |direction| Shuffle::random(n, &mut Rng::for_sample(seed, SHUFFLE, step, direction));
    (0..config.directions() as u64).map(draw).collect()
}

/// How a run's batches are made.
pub fn loader_options(config: &RunConfig, threads: usize) -> LoaderOptions {
    let recipe = &config.recipe;
    LoaderOptions {
        batch: recipe.optim.batch,
        drop_last: recipe.optim.drop_last,
        seed: recipe.run.seed,
        views: [recipe.augment.clone(), recipe.augment.clone()],
        threads,
        prefetch: 2,
        cache_bytes: recipe.data.cache_mib << 20,
        max_corrupt: recipe.data.max_corrupt,
    }
}

/// `metrics.jsonl` and TensorBoard's file together.
struct Log {
    metrics: MetricsWriter,
    events: EventWriter,
    flushed: Instant,
}

impl Log {
    fn open(folder: &RunFolder, step: u64) -> Result<Log> {
        Ok(Log {
            metrics: MetricsWriter::open(&folder.metrics_path(), step)?,
            events: EventWriter::create(&folder.events_path(), step + 1)?,
            flushed: Instant::now(),
        })
    }

    fn step(&mut self, r: &StepRecord) -> Result<()> {
        self.metrics.write(&Record::Step(r.clone()))?;
        let values = [
            ("train/loss", r.loss),
            ("train/acc1", r.acc1),
            ("train/lr", r.lr),
            ("train/images_per_s", r.images_per_s),
            ("train/data_wait", r.data_wait),
            ("train/positive_similarity", r.pos_sim),
            ("train/negative_similarity", r.neg_sim),
        ];
        self.events.scalars(r.step, &values)?;
        if self.flushed.elapsed().as_secs() >= 2 {
            self.events.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    fn eval(&mut self, r: &EvalRecord) -> Result<()> {
        self.metrics.write(&Record::Eval(r.clone()))?;
        self.events.scalars(r.step, &[(&format!("eval/{}", r.metric), r.value)])
    }

    fn health(&mut self, r: &HealthReport) -> Result<()> {
        self.metrics.write(&Record::Health(r.clone()))?;
        let values = [
            ("health/loss_of_chance", r.loss / r.chance),
            ("health/std_of_even_spread", r.feature_std / r.ideal_std),
            ("health/effective_rank", r.effective_rank),
            ("health/same_image_share", r.same_image_share),
        ];
        self.events.scalars(r.step, &values)
    }

    fn sync(&mut self) -> Result<()> {
        self.events.flush()?;
        self.metrics.sync()
    }
}
