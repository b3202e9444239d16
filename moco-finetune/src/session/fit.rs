//! The training loop.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use super::criterion::Criterion;
use super::features::Features;
use super::feed::{Batch, Feed, Recipe, batches, order, part};
use super::network::Which;
use super::options::ClassWeights;
use super::report::{EpochReport, Event, FitReport, Outcome};
use super::{Best, DataMark, Session};
use crate::data::LabelledData;
use crate::model::Evaluation;
use crate::task::Task;
use crate::{Error, Result};

/// What a training learns from.
#[derive(Clone, Copy)]
pub struct FitData<'a> {
    /// Images with truths.
    pub train: &'a dyn LabelledData,
    /// Images with truths that are not learnt from: they choose the best weights and end the training early.
    pub validation: Option<&'a dyn LabelledData>,
    /// Where the state is written: every half minute, when the training is cancelled, and at its end.
    pub checkpoint: Option<&'a Path>,
    /// Threads that load images; 0 = one a core. Does not change the result.
    pub threads: usize,
}

/// Time between two checkpoints.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(30);

/// Told of what happens; ends the training where it breaks.
pub type Progress<'a> = dyn FnMut(&Event<'_>) -> ControlFlow<()> + 'a;

impl Session {
    /// Trains to the end that the options set, or goes on with it.
    ///
    /// After an epoch the weights (their moving average, if there is one) are validated; the best are kept and are what
    /// [`Session::model`] gives. Without validation these are the last.
    ///
    /// # Errors
    /// [`Error::Invalid`] for data that do not fit the head, or that are not those of the checkpoint;
    /// [`Error::Diverged`] for a loss that is not finite; those of an image that cannot be read, of the engine, and of
    /// the checkpoint's file. The session stands where the last whole step left it.
    pub fn fit(&mut self, data: &FitData<'_>, progress: &mut Progress<'_>) -> Result<FitReport> {
        self.check_data(data.train, "the training data")?;
        if let Some(validation) = data.validation {
            self.check_data(validation, "the validation data")?;
        }
        self.mark(data.train)?;
        if self.options.class_weights == ClassWeights::Balanced {
            let mut criterion = Criterion::new(&self.head, &self.model_graph, &self.options)?;
            criterion.balance(data.train)?;
            self.criterion = criterion;
        }
        let plan = Plan::new(self, data.train.len());
        let (begin, first, frozen) = (Instant::now(), self.state.step, self.frozen_sha256()?);
        let outcome = self.run(data, &plan, progress);
        let outcome = match outcome {
            Err(Error::Cancelled) => Outcome::Cancelled,
            outcome => outcome?,
        };
        if let Some(path) = data.checkpoint {
            self.checkpoint(path)?;
        }
        let after = self.frozen_sha256()?;
        if frozen != after {
            return Err(Error::Invalid("what is frozen has changed during the training: this is a bug".into()));
        }
        let images = (self.state.step - first) as f64 * data.train.len() as f64 / plan.per_epoch as f64;
        Ok(FitReport {
            outcome,
            step: self.state.step,
            epochs: self.state.epochs.clone(),
            best_epoch: self.state.best.as_ref().map(|b| b.epoch),
            images_per_second: images / begin.elapsed().as_secs_f64().max(1e-9),
            frozen_sha256: after,
        })
    }

    fn run(&mut self, data: &FitData<'_>, plan: &Plan, progress: &mut Progress<'_>) -> Result<Outcome> {
        let started = Event::Started { step: self.state.step, steps: plan.steps, steps_per_epoch: plan.per_epoch };
        go_on(progress(&started))?;
        if self.state.stopped_early {
            return Ok(Outcome::StoppedEarly);
        }
        let mut source = Source { feed: None, train: None, validation: None };
        if self.caches(data) {
            source.train = Some(self.features_of(data.train, progress)?);
            if let Some(validation) = data.validation {
                source.validation = Some(self.features_of(validation, progress)?);
            }
        }
        std::thread::scope(|scope| {
            if source.train.is_none() && self.state.step < plan.steps {
                let threads = if data.threads == 0 { rayon::current_num_threads() } else { data.threads };
                let recipe = Recipe::new(&self.asking.framing, &self.options);
                let steps = self.state.step..plan.steps;
                source.feed = Some(Feed::start(scope, data.train, &recipe, steps, threads)?);
            }
            let outcome = self.steps(data, plan, &mut source, progress);
            // The scope waits for the threads, and they for somebody who takes their batches.
            source.feed = None;
            outcome
        })
    }

    fn steps(
        &mut self,
        data: &FitData<'_>,
        plan: &Plan,
        source: &mut Source,
        progress: &mut Progress<'_>,
    ) -> Result<Outcome> {
        let mut saved = Instant::now();
        loop {
            let step = self.state.step;
            if plan.ends_epoch(step) && self.state.epochs.last().is_none_or(|e| e.step < step) {
                let report = self.end_epoch(data, plan, source, progress)?;
                go_on(progress(&Event::Epoch(&report)))?;
                if self.state.stopped_early {
                    return Ok(Outcome::StoppedEarly);
                }
            }
            if step >= plan.steps {
                return Ok(Outcome::Finished);
            }
            let begin = Instant::now();
            let (batch, waited) = source.batch(self, plan, step)?;
            let mut report = self.learn(&batch, plan.steps, source.train.is_some())?;
            report.seconds = begin.elapsed().as_secs_f64();
            report.waited = waited.as_secs_f64();
            if let Some(path) = data.checkpoint
                && saved.elapsed() > CHECKPOINT_EVERY
            {
                self.checkpoint(path)?;
                saved = Instant::now();
            }
            go_on(progress(&Event::Step(&report)))?;
        }
    }

    /// Validates, judges and writes the epoch down.
    fn end_epoch(
        &mut self,
        data: &FitData<'_>,
        plan: &Plan,
        source: &Source,
        progress: &mut Progress<'_>,
    ) -> Result<EpochReport> {
        let step = self.state.step;
        let epoch = step.div_ceil(plan.per_epoch);
        let due = epoch.is_multiple_of(self.options.validate_every) || step >= plan.steps;
        let validation = match data.validation.filter(|_| due) {
            Some(validation) => Some(self.validate(validation, source.validation.as_ref(), progress)?),
            None => None,
        };
        let value = validation.as_ref().and_then(Evaluation::deciding).map(|(_, value)| value);
        let best = value.is_some_and(|value| self.state.best.as_ref().is_none_or(|best| value > best.value));
        if let (true, Some(value), Some(evaluation)) = (best, value, &validation) {
            self.stack.net.keep(self.learnt(), Which::Best)?;
            self.state.best = Some(Best { epoch, value, evaluation: evaluation.clone() });
            self.state.since_best = 0;
        } else if validation.is_some() {
            self.state.since_best += 1;
        }
        let patience = self.options.patience;
        self.state.stopped_early = patience > 0 && self.state.since_best >= patience && step < plan.steps;
        let steps = (step - self.state.epochs.last().map_or(0, |e| e.step)).max(1);
        let loss = std::mem::take(&mut self.state.loss_sum) / steps as f64;
        let lr = self.lr(step - 1, plan.steps);
        let report = EpochReport { epoch, step, loss, lr, validation, best };
        self.state.epochs.push(report.clone());
        Ok(report)
    }

    fn validate(
        &mut self,
        data: &dyn LabelledData,
        features: Option<&Features>,
        progress: &mut Progress<'_>,
    ) -> Result<Evaluation> {
        let total = data.len();
        let mut told = |done| progress(&Event::Evaluating { done, total });
        let which = self.learnt();
        match features {
            Some(features) => {
                self.asking.evaluate_features(&mut self.stack, which, features, &self.class_names, &mut told)
            }
            None => self.asking.evaluate(&mut self.stack, which, data, &self.class_names, &mut told),
        }
    }

    /// Whether features are computed once: they are those of a frozen backbone, of images as they are, and fit.
    fn caches(&self, data: &FitData<'_>) -> bool {
        let images = data.train.len() + data.validation.map_or(0, LabelledData::len);
        let fits = |dim| Features::bytes(images, dim) <= self.options.cache_mib << 20;
        self.options.augment.is_none() && self.stack.feature_len().is_some_and(fits)
    }

    fn features_of(&mut self, data: &dyn LabelledData, progress: &mut Progress<'_>) -> Result<Features> {
        let total = data.len();
        let mut told = |done| progress(&Event::Features { done, total });
        Features::of(&mut self.stack, &self.asking.framing, data, self.options.batch.clamp(1, 64), &mut told)
    }

    /// Checks that a data set is of this task and these classes.
    pub(super) fn check_data(&self, data: &dyn LabelledData, what: &str) -> Result<()> {
        if data.is_empty() {
            return Err(Error::Invalid(format!("{what}: there is no image")));
        }
        if data.classes() != self.class_names {
            return Err(Error::Invalid(format!(
                "{what}: the classes are {:?}, the head was made for {:?}",
                data.classes(),
                self.class_names
            )));
        }
        let (task, wanted) = (data.task(), self.head.task());
        // An image of one class is an image of a set of one.
        let fits = match wanted {
            Task::Classify => task == Task::Classify && !data.multi_label(),
            Task::MultiLabel => matches!(task, Task::Classify | Task::MultiLabel),
            other => task == other,
        };
        if !fits {
            return Err(Error::Invalid(format!(
                "{what}: labelled for {task:?}{}, the head was made for {wanted:?}",
                if data.multi_label() { " with several classes an image" } else { "" }
            )));
        }
        let rule = &self.asking.framing.rule;
        rule.accepts(data.channels())?;
        Ok(())
    }

    /// Remembers the training data, or checks that they are the ones that are remembered.
    fn mark(&mut self, data: &dyn LabelledData) -> Result<()> {
        let mark = DataMark::of(data);
        match &self.state.data {
            Some(known) if *known != mark && self.state.step > 0 => Err(Error::Invalid(format!(
                "the training was begun with {} images, these are {}{}; it can only go on with the same",
                known.images,
                mark.images,
                if known.images == mark.images { " others" } else { "" }
            ))),
            _ => {
                self.state.data = Some(mark);
                Ok(())
            }
        }
    }
}

/// How long a training is.
pub(super) struct Plan {
    /// Steps of a pass over the data.
    per_epoch: u64,
    /// All steps.
    steps: u64,
}

impl Plan {
    fn new(session: &Session, images: usize) -> Plan {
        let per_epoch = batches(images, session.options.batch) as u64;
        let steps = if session.options.steps > 0 { session.options.steps } else { session.options.epochs * per_epoch };
        Plan { per_epoch, steps }
    }

    fn ends_epoch(&self, step: u64) -> bool {
        step > 0 && (step.is_multiple_of(self.per_epoch) || step == self.steps)
    }
}

/// Where batches come from.
struct Source {
    feed: Option<Feed>,
    train: Option<Features>,
    validation: Option<Features>,
}

impl Source {
    fn batch(&mut self, session: &Session, plan: &Plan, step: u64) -> Result<(Batch, Duration)> {
        match (&self.train, &mut self.feed) {
            (Some(features), _) => {
                let order = order(features.len(), session.options.seed, step / plan.per_epoch);
                let k = (step % plan.per_epoch) as usize;
                let indices = &order[part(features.len(), plan.per_epoch as usize, k)];
                Ok((features.batch(indices), Duration::ZERO))
            }
            (None, Some(feed)) => feed.batch(step),
            (None, None) => unreachable!("a training has features or a feed"),
        }
    }
}

fn go_on(answer: ControlFlow<()>) -> Result<()> {
    if answer.is_break() { Err(Error::Cancelled) } else { Ok(()) }
}
