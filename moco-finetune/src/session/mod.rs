//! A training of a head, with as much of the backbone below it as is wished.
//!
//! A [`Session`] is made from a [`Start`], a head and [`Options`]. [`Session::fit`] runs it over a data set;
//! [`Session::step`] takes single batches from a caller who has a loop of their own. [`Session::checkpoint`] writes all of
//! it; what [`Session::resume`] makes of that goes on as if nothing had happened, to the bit, because random numbers are
//! functions of the seed and the place in the training.

mod checkpoint;
pub(crate) mod criterion;
#[cfg(test)]
mod dense_tests;
pub(crate) mod features;
pub(crate) mod feed;
mod fit;
mod groups;
pub(crate) mod network;
mod options;
mod report;
mod schedule;
pub(crate) mod stack;
mod start;
#[cfg(test)]
mod tests;
mod words;

use std::time::Instant;

use moco_engine::compute::Compute;
use moco_engine::ops::{AdamWStep, SgdStep};
use moco_engine::{BnGroups, Mode, PlanConfig, Recompute};
use moco_image::{PreprocessRule, Raster};
use moco_models::card::Card;
use moco_models::heads::{HeadCard, HeadSpec, InputRule, Task};
use moco_models::{Graph, Weights};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::augment::Framing;
use crate::data::LabelledData;
use crate::model::ask::Asking;
use crate::model::{Evaluation, Model, PredictOptions, Prediction};
use crate::task::Sample;
use crate::{Error, Result};
use criterion::Criterion;
use feed::{Batch, Recipe};
use network::{NetworkConfig, Rule, Update, Which};
use stack::Stack;

pub use fit::{FitData, Progress};
pub use groups::Freeze;
pub use options::{BatchNorm, ClassWeights, LossOptions, Optimiser, OptimiserKind, Options};
pub use report::{EpochReport, Event, FitReport, Outcome, StepReport};
pub use schedule::{Decay, Schedule};
pub use start::Start;

/// A training in progress. It can be moved between threads, and belongs to one at a time.
pub struct Session {
    head: HeadSpec,
    class_names: Vec<String>,
    options: Options,
    card: Card,
    backbone_sha256: Option<String>,
    /// Backbone and head.
    model_graph: Graph,
    /// What learns of it: all, or the head on features.
    net_graph: Graph,
    /// Weights of `model_graph` as they were at the start; what is frozen as a whole is taken from here.
    start: Weights,
    stack: Stack,
    criterion: Criterion,
    asking: Asking,
    state: State,
    notes: Vec<String>,
}

/// Where a training stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    /// Steps done.
    step: u64,
    /// Epochs done.
    epochs: Vec<EpochReport>,
    /// The best of them.
    best: Option<Best>,
    /// Validations since.
    since_best: u64,
    /// Whether patience has run out.
    stopped_early: bool,
    /// Losses since the last epoch ended.
    loss_sum: f64,
    /// What it learns from.
    data: Option<DataMark>,
}

/// The best weights so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Best {
    epoch: u64,
    value: f64,
    evaluation: Evaluation,
}

/// By what training data are recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataMark {
    images: usize,
    /// SHA-256 over their names in order.
    names: String,
}

impl DataMark {
    fn of(data: &dyn LabelledData) -> DataMark {
        let mut hash = Sha256::new();
        for i in 0..data.len() {
            hash.update(data.name(i).as_bytes());
            hash.update([0]);
        }
        DataMark { images: data.len(), names: hex(hash) }
    }
}

impl Session {
    /// A training that has not begun. The head's first weights are drawn from the seed.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Model`] naming the option, the head's field or the class name that does not fit;
    /// [`Error::Engine`] if the network, the batch or the image size do not fit each other or the device.
    pub fn new(start: Start, head: HeadSpec, class_names: Vec<String>, mut options: Options) -> Result<Session> {
        options.validate(&head)?;
        let (augment, notes) = options.augment.for_channels(start.card.preprocess.channels);
        options.augment = augment;
        let model_graph = head.attach(&start.graph)?;
        let mut weights = head.initialise(&model_graph, &start.graph, &start.weights, options.seed)?;
        if let Some(model) = start.model.filter(|m| m.head_card().head == head && m.class_names() == class_names) {
            weights = model.weights().clone();
        }
        let mut session = Session::open(start.card, start.sha256, head, class_names, options, weights)?;
        if session.options.average > 0.0 {
            session.stack.net.keep(Which::Current, Which::Average)?;
        }
        session.notes = notes;
        Ok(session)
    }

    /// Opens the networks over weights of backbone and head.
    fn open(
        card: Card,
        backbone_sha256: Option<String>,
        head: HeadSpec,
        class_names: Vec<String>,
        options: Options,
        start: Weights,
    ) -> Result<Session> {
        options.validate(&head)?;
        let (compute, _) = Compute::choose(options.device, options.precision)?;
        let backbone = card.arch.build()?;
        let model_graph = head.attach(&backbone)?;
        start.check(&model_graph)?;
        // Also checks the names of the classes.
        let head_card = head_card(&head, &class_names, &card, &options)?;
        let cut = options.freeze == Freeze::Backbone && matches!(head.task(), Task::Classify | Task::MultiLabel);
        let net_graph = if cut { head.attach(&stack::features_graph(&model_graph)?)? } else { model_graph.clone() };
        let outputs = head.outputs(&model_graph)?;
        let taps: Vec<String> = outputs.iter().map(|o| o.tap.clone()).collect();
        let moments = match options.optimiser.kind {
            OptimiserKind::Sgd => 1,
            OptimiserKind::AdamW => 2,
        };
        let train = Some(plan_config(&net_graph, &options, cut));
        let config = NetworkConfig { train, taps, moments };
        let net = network::open(&compute, &net_graph, &config, start.restrict(&model_graph, &net_graph)?)?;
        let stack = match cut {
            false => Stack::whole(net),
            true => Stack::on_frozen(&compute, &model_graph, &start, net)?,
        };
        let criterion = Criterion::new(&head, &model_graph, &options)?;
        let framing = Framing { rule: head_card.preprocess.clone(), size: options.size, fit: options.fit };
        let asking = Asking {
            head: head.clone(),
            outputs,
            framing,
            fit: options.fit,
            options: PredictOptions { batch: options.batch, ..PredictOptions::default() },
        };
        Ok(Session {
            head,
            class_names,
            options,
            card,
            backbone_sha256,
            model_graph,
            net_graph,
            start,
            stack,
            criterion,
            asking,
            state: State::default(),
            notes: vec![],
        })
    }

    /// One step on a batch of a caller's own, at most [`Options::batch`] images of any size. The images are varied as the
    /// options say, by random numbers of the seed, the step and their place in the batch.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch that is empty or too large, a truth that does not fit the head, options that need to
    /// see all data (`class_weights = "balanced"`) or the end of the training (`steps`); [`Error::Diverged`].
    pub fn step(&mut self, batch: Vec<Sample>) -> Result<StepReport> {
        let begin = Instant::now();
        if self.options.class_weights == ClassWeights::Balanced {
            return Err(Error::option("class_weights", "balanced: needs to see all data; give numbers, or use fit"));
        }
        if self.options.steps == 0 && self.options.schedule.needs_end() {
            return Err(Error::option(
                "steps",
                "0: a schedule has to know how many there will be; give steps, or schedule.warmup = 0 and \
                 schedule.decay = \"constant\"",
            ));
        }
        if batch.is_empty() || batch.len() > self.options.batch {
            return Err(Error::Invalid(format!(
                "a step takes 1 to {} images (option `batch`), got {}",
                self.options.batch,
                batch.len()
            )));
        }
        let recipe = Recipe::new(&self.asking.framing, &self.options);
        let step = self.state.step;
        let parts: Vec<Batch> = batch
            .into_par_iter()
            .enumerate()
            .map(|(i, sample)| recipe.prepare(&[(sample, [step, i as u64])]))
            .collect::<Result<_>>()?;
        let mut batch = Batch::default();
        for part in parts {
            batch.images.extend(part.images);
            batch.targets.extend(part.targets);
        }
        let mut report = self.learn(&batch, self.options.steps, false)?;
        report.seconds = begin.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Answers about images of any size, in their pixels, with the weights that [`Session::model`] would give.
    ///
    /// # Errors
    /// For an image whose channels or depth the network does not read.
    pub fn predict(&mut self, images: &[&Raster]) -> Result<Vec<Prediction>> {
        let which = self.result();
        self.asking.predict(&mut self.stack, which, images)
    }

    /// Asks about labelled images, with the weights that [`Session::model`] would give.
    ///
    /// # Errors
    /// For data of another task or other classes, images that cannot be read; [`Error::Cancelled`].
    pub fn evaluate(&mut self, data: &dyn LabelledData, progress: &mut Progress<'_>) -> Result<Evaluation> {
        self.check_data(data, "the data")?;
        let (which, total) = (self.result(), data.len());
        let mut told = |done| progress(&Event::Evaluating { done, total });
        self.asking.evaluate(&mut self.stack, which, data, &self.class_names, &mut told)
    }

    /// The model as it stands: the best weights that were validated, else their moving average, else the last.
    ///
    /// # Errors
    /// As [`Device::download`](moco_engine::Device::download).
    pub fn model(&self) -> Result<Model> {
        let weights = self.stack.net.weights(self.result())?.expect("the result is a set that is there");
        let mut all = self.start.clone();
        for (from, to, source, target) in [
            (self.net_graph.parameter_layout(), self.model_graph.parameter_layout(), &weights.params, &mut all.params),
            (self.net_graph.buffer_layout(), self.model_graph.buffer_layout(), &weights.buffers, &mut all.buffers),
        ] {
            for (spec, range) in from.iter() {
                let place = to.range(&spec.name).expect("what learns is a part of the model");
                target[place].copy_from_slice(&source[range]);
            }
        }
        let mut head = head_card(&self.head, &self.class_names, &self.card, &self.options)?;
        head.backbone_sha256.clone_from(&self.backbone_sha256);
        head.training = Some(serde_json::to_value(&self.options).map_err(|e| Error::Invalid(e.to_string()))?);
        head.images = self.state.data.as_ref().map(|data| data.images as u64);
        if let Some(best) = &self.state.best {
            head.metrics = best.evaluation.metrics.iter().cloned().collect();
        }
        Model::new(self.model_graph.clone(), all, self.card.clone(), head)
    }

    /// SHA-256 over the values of all that is frozen, as they lie on the device now; none if everything learns.
    ///
    /// # Errors
    /// As [`Device::download`](moco_engine::Device::download).
    pub fn frozen_sha256(&self) -> Result<Option<String>> {
        let frozen = groups::frozen(&self.model_graph, &self.options);
        if frozen.is_empty() {
            return Ok(None);
        }
        let (graph, weights) = match self.stack.trunk_weights()? {
            Some(weights) => (self.model_graph.keep_taps(&["pooled"])?, weights),
            None => {
                let weights = self.stack.net.weights(Which::Current)?.expect("the current weights are always there");
                (self.net_graph.clone(), weights)
            }
        };
        let mut hash = Sha256::new();
        for (layout, values) in [(graph.parameter_layout(), &weights.params), (graph.buffer_layout(), &weights.buffers)]
        {
            for (spec, range) in layout.iter() {
                let node = spec.name.rsplit_once('.').map_or(spec.name.as_str(), |(node, _)| node);
                if frozen.iter().any(|f| f == node) {
                    hash.update(spec.name.as_bytes());
                    values[range].iter().for_each(|v| hash.update(v.to_le_bytes()));
                }
            }
        }
        Ok(Some(hex(hash)))
    }

    /// The options it was made with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// How values of images become the network's input.
    pub fn rule(&self) -> &PreprocessRule {
        &self.asking.framing.rule
    }

    /// What was decided for the images' sake, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The head it trains.
    pub fn head(&self) -> &HeadSpec {
        &self.head
    }

    /// Names of the classes, in the order of the labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// Steps done.
    pub fn steps_done(&self) -> u64 {
        self.state.step
    }

    /// Every epoch so far.
    pub fn epochs(&self) -> &[EpochReport] {
        &self.state.epochs
    }

    /// Bytes of feature maps and scratch.
    pub fn memory_bytes(&self) -> usize {
        self.stack.net.memory_bytes()
    }

    /// How answers about detections are chosen from now on.
    pub fn set_predict_options(&mut self, options: PredictOptions) -> Result<()> {
        options.validate()?;
        self.asking.options = options;
        Ok(())
    }

    /// Forward, loss, backward, update.
    fn learn(&mut self, batch: &Batch, steps: u64, features: bool) -> Result<StepReport> {
        let (criterion, n) = (&self.criterion, batch.targets.len());
        let mut judge =
            |outputs: &[&[f32]], gradients: &mut [Vec<f32>]| criterion.judge(outputs, &batch.targets, gradients);
        let loss = match features {
            true => self.stack.net.learn(&batch.images, n, &mut judge)?,
            false => self.stack.learn(&batch.images, n, self.options.size, &mut judge)?,
        };
        let (step, optimiser) = (self.state.step, &self.options.optimiser);
        let lr = self.lr(step, steps);
        let rule = match optimiser.kind {
            OptimiserKind::Sgd => Rule::Sgd(SgdStep { momentum: optimiser.momentum as f32, nesterov: false }),
            OptimiserKind::AdamW => {
                let betas = [optimiser.momentum as f32, optimiser.beta2 as f32];
                Rule::AdamW(AdamWStep { step: step + 1, betas, eps: 1e-8 })
            }
        };
        let average =
            (self.options.average > 0.0).then(|| self.options.average.min((1 + step) as f64 / (10 + step) as f64));
        let groups = groups::groups(&self.net_graph, &self.options, lr);
        let gradient_norm = self.stack.net.update(&Update { rule, groups, clip: optimiser.clip, average })?;
        self.state.step += 1;
        self.state.loss_sum += loss.total;
        Ok(StepReport {
            step: self.state.step,
            steps,
            loss: loss.total,
            parts: loss.parts,
            lr,
            gradient_norm,
            images: n,
            seconds: 0.0,
            waited: 0.0,
        })
    }

    /// Learning rate of the head at a step.
    fn lr(&self, step: u64, steps: u64) -> f64 {
        self.options.optimiser.lr * self.options.schedule.factor(step, steps)
    }

    /// The weights that are learnt for: what is validated.
    fn learnt(&self) -> Which {
        if self.stack.net.has(Which::Average) { Which::Average } else { Which::Current }
    }

    /// The weights that are given away.
    fn result(&self) -> Which {
        if self.stack.net.has(Which::Best) { Which::Best } else { self.learnt() }
    }
}

fn head_card(head: &HeadSpec, class_names: &[String], card: &Card, options: &Options) -> Result<HeadCard> {
    let mut described = HeadCard::new(head.clone(), class_names.to_vec(), card, options.size)?;
    described.input = InputRule { size: options.size, fit: options.fit };
    described.validate()?;
    Ok(described)
}

/// What the part that learns is compiled for.
fn plan_config(graph: &Graph, options: &Options, cut: bool) -> PlanConfig {
    let [height, width] = if cut { [1, 1] } else { options.size };
    let groups = match options.virtual_ranks {
        1 => BnGroups::Whole,
        _ if options.sync_batch_norm => BnGroups::Whole,
        ranks => BnGroups::Ranks(ranks),
    };
    let recompute = if options.checkpoint_activations { Recompute::Blocks } else { Recompute::Nothing };
    PlanConfig::new(options.batch, height, width, Mode::Train)
        .with_bn_groups(groups)
        .with_recompute(recompute)
        .with_frozen(groups::frozen(graph, options))
        .with_running_norms(groups::running_norms(graph, options))
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
