//! The loop: batches in, steps, records and checkpoints out. Everything random is a function of the seed and the place
//! in the run, so that a resumed run cannot be told from one that was never stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use moco_engine::group::Group;
use moco_image::Rng;
use moco_models::Graph;
use moco_models::init::initialise;

use super::feed::{Feed, input};
use super::log::Log;
use super::monitor::Monitor;
use super::processes::{Note, Processes};
use super::{Checkpoints, EvalRecord, Progress, RunConfig, RunFolder, StepRecord, result};
use crate::compute::Compute;
use crate::data::{Batch, Dataset, LoaderOptions, Share};
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

/// A run, ready for its next step; or the part of one of several processes in it, of which the first writes.
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
    processes: Processes,
}

impl Trainer {
    /// Starts a run in a new folder; nothing is written if anything does not fit. With a group, every process of it does.
    ///
    /// # Errors
    /// [`Error::Run`] if the folder exists, others for data, recipe and memory.
    pub fn create(
        path: &Path,
        mut config: RunConfig,
        dataset: Arc<Dataset>,
        group: Option<Arc<Group>>,
    ) -> Result<Trainer> {
        let processes = Processes::new(group);
        if processes.is_first() {
            RunFolder::check_free(path)?;
        }
        let mut notes: Vec<String> = processes.spread(&mut config.recipe)?.into_iter().collect();
        processes.check_same(&config)?;
        let (compute, note) = config.recipe.compute.choose_for(processes.local_rank())?;
        notes.extend(note);
        config.recipe.compute = config.recipe.compute.on(&compute);
        let plan = RunPlan::new(&config, dataset.len())?;
        let graph = config.recipe.arch(config.source.channels).build()?;
        let recipe = &config.recipe;
        let state = first_state(&graph, recipe);
        let moco = open_learner(&compute, &graph, &MocoConfig::new(recipe), state, processes.group())?;
        let monitor = monitor(&processes, &config, &dataset, compute)?;
        let folder = match processes.is_first() {
            true => RunFolder::create(path, &config)?,
            false => RunFolder::look(path),
        };
        let health = HealthTracker::new(recipe.model.dim);
        let trainer =
            Trainer { folder, plan, graph, dataset, moco, health, step: 0, monitor, notes, config, compute, processes };
        trainer.save()?;
        Ok(trainer)
    }

    /// Goes on with a run from its newest good checkpoint, or from the start if it was killed before the first. With a group,
    /// every process of it does, all with the same folder; all but the first only [look](RunFolder::look) at it.
    ///
    /// # Errors
    /// [`Error::Run`] if the data set has changed or every checkpoint is damaged.
    pub fn resume(
        folder: RunFolder,
        mut config: RunConfig,
        dataset: Arc<Dataset>,
        group: Option<Arc<Group>>,
    ) -> Result<Trainer> {
        let processes = Processes::new(group);
        if dataset.len() != config.source.images {
            return Err(Error::Run(format!(
                "{} had {} images when the run was started and has {} now: the run cannot go on as it would have; \
                 restore the data or start a new run",
                config.source.data.display(),
                config.source.images,
                dataset.len()
            )));
        }
        let spread = processes.spread(&mut config.recipe)?;
        processes.check_same(&config)?;
        let plan = RunPlan::new(&config, dataset.len())?;
        let graph = config.recipe.arch(config.source.channels).build()?;
        let (compute, note) = config.recipe.compute.choose_for(processes.local_rank())?;
        let Newest { step, state, health, mut notes } = newest(&folder, &graph, &config.recipe, &processes)?;
        notes.extend(spread.into_iter().chain(note));
        let moco = open_learner(&compute, &graph, &MocoConfig::new(&config.recipe), state, processes.group())?;
        let monitor = monitor(&processes, &config, &dataset, compute)?;
        Ok(Trainer { folder, plan, graph, dataset, moco, health, step, monitor, notes, config, compute, processes })
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

    /// Runs until the end, or until `stop` becomes true in any of its processes. Only the first process tells its observer more
    /// than nothing.
    ///
    /// # Errors
    /// [`Error::Run`] when the loss is not a number any more; the last checkpoint stays. Others for data and disk, and
    /// [`Error::Engine`] if a process is lost.
    pub fn run(&mut self, threads: usize, observer: &mut dyn Observer, stop: &AtomicBool) -> Result<Outcome> {
        let first = self.processes.is_first();
        let mut log = if first { Some(Log::open(&self.folder, self.step)?) } else { None };
        let notes = self.processes.agree(Note { said: std::mem::take(&mut self.notes), ..Note::default() })?.said;
        if first {
            notes.iter().collect::<BTreeSet<_>>().into_iter().for_each(|note| observer.note(note));
            observer.started(&self.plan, self.step);
        }
        if self.step < self.plan.steps()
            && let Some(stopped) = self.steps(threads, log.as_mut(), observer, stop)?
        {
            return Ok(stopped);
        }
        if let Some(log) = &mut log {
            log.sync()?;
            let query = self.moco.state()?.query.into_owned();
            result::write(&self.folder, &self.config, &self.graph, &query)?;
        }
        Ok(Outcome::Finished)
    }

    fn steps(
        &mut self,
        threads: usize,
        mut log: Option<&mut Log>,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
    ) -> Result<Option<Outcome>> {
        let recipe = self.config.recipe.clone();
        let RunPlan { steps_per_epoch, epochs, .. } = self.plan;
        let options = LoaderOptions { share: self.processes.share(), ..loader_options(&self.config, threads) };
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
            let n = batch.n * self.processes.world();
            if let Some(log) = &mut log {
                let record = StepRecord {
                    step: self.step,
                    epoch: batch.epoch,
                    loss: report.loss,
                    acc1: report.accuracy,
                    lr,
                    images: n,
                    images_per_s: n as f64 / elapsed,
                    data_wait: (waited.as_secs_f64() / elapsed).min(1.0),
                    pos_sim: report.positive_similarity,
                    neg_sim: report.negative_similarity,
                };
                log.step(&record)?;
                observer.step(&record);
            }
            let is_last = self.step == self.plan.steps();
            let corrupt = feed.corrupt();
            let said = corrupt
                .iter()
                .skip(known_corrupt)
                .map(|c| format!("skipped an image that cannot be read: {}: {}", c.name, c.reason));
            let due = self.step.is_multiple_of(recipe.run.checkpoint_every_steps)
                || saved_at.elapsed().as_secs() >= recipe.run.checkpoint_every_secs
                || self.is_kept_for_good(self.step);
            let note = Note { stop: stop.load(Ordering::Relaxed), save: due || is_last, said: said.collect() };
            known_corrupt = known_corrupt.max(corrupt.len());
            let note = self.processes.agree(note)?;

            if let Some(log) = &mut log {
                note.said.iter().for_each(|text| observer.note(text));
                if self.step.is_multiple_of(recipe.run.health_every_steps) || is_last {
                    self.report_health(&batch, &images, log, observer)?;
                }
            }
            drop(batch);
            let every = recipe.run.monitor_every_epochs;
            let monitored = every > 0 && self.step.is_multiple_of(steps_per_epoch * every);
            if let Some(monitor) = &self.monitor
                && let Some(log) = &mut log
                && (monitored || is_last)
            {
                let epochs_done = self.step / steps_per_epoch;
                let query = self.moco.state()?.query.into_owned();
                let record = monitor.evaluate(&self.graph, &query, self.step, epochs_done)?;
                log.eval(&record)?;
                observer.eval(&record);
            }
            if note.save || note.stop {
                if let Some(log) = &mut log {
                    log.sync()?;
                }
                self.save()?;
                saved_at = Instant::now();
            }
            if note.stop && !is_last {
                return Ok(Some(Outcome::Stopped { step: self.step }));
            }
        }
        Ok(None)
    }

    fn learn(&mut self, feed: &mut Feed, batch: &Batch, lr: f64) -> Result<(StepReport, Vec<u64>)> {
        let recipe = &self.config.recipe;
        let images: Vec<u64> = batch.indices.iter().map(|&i| i as u64).collect();
        let (whole, n) = (MocoConfig::new(recipe), batch.n * self.processes.world());
        let shuffles = shuffles(&whole, recipe.batch_norm.shuffle, recipe.run.seed, self.step, n);
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
        if self.processes.is_first() {
            self.health.add(&report, &self.moco.embeddings()?);
        }
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
        self.moco.check_equal()?;
        if !self.processes.is_first() {
            return Ok(());
        }
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

/// As [`newest_here`] in the first process; in all others the same.
fn newest(folder: &RunFolder, graph: &Graph, recipe: &Recipe, processes: &Processes) -> Result<Newest> {
    let found = if processes.is_first() { Some(newest_here(folder, graph, recipe)?) } else { None };
    let step = processes.of_first(found.as_ref().map_or(0, |found| found.step))?;
    let health = HealthTracker::new(recipe.model.dim);
    match found {
        Some(found) => Ok(found),
        None if step == 0 => Ok(Newest { step, state: first_state(graph, recipe), health, notes: vec![] }),
        None => {
            let (state, _) = Checkpoints::new(&folder.checkpoints_path()).load(graph, step)?;
            Ok(Newest { step, state, health, notes: vec![] })
        }
    }
}

/// Only the first process evaluates.
fn monitor(
    processes: &Processes,
    config: &RunConfig,
    dataset: &Arc<Dataset>,
    compute: Compute,
) -> Result<Option<Monitor>> {
    if processes.is_first() { Monitor::new(config, dataset, compute) } else { Ok(None) }
}

/// The newest checkpoint that can be read; steps after it are done again, with the same result.
fn newest_here(folder: &RunFolder, graph: &Graph, recipe: &Recipe) -> Result<Newest> {
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
        share: Share::WHOLE,
        drop_last: recipe.optim.drop_last,
        seed: recipe.run.seed,
        views: [recipe.augment.clone(), recipe.augment.clone()],
        threads,
        prefetch: 2,
        cache_bytes: recipe.data.cache_mib << 20,
        max_corrupt: recipe.data.max_corrupt,
    }
}
