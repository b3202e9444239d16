//! Sessions of ONNX Runtime over one set of weights, lent to one thread at a time.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use moco_image::{Layout, PreprocessRule, Scratch};
use moco_models::onnx::{ExternalModel, INPUT, WeightBits};
use ort::session::Session;
use ort::session::builder::PrepackedWeights;
use ort::value::TensorRef;

use crate::clock::Clock;
use crate::{Backbone, Input, Result, runtime};

/// Features of one batch: for each tap, the values of its images one after the other.
pub(crate) type BatchFeatures = Vec<Vec<f32>>;

/// As many sessions as threads, each with one thread of its own: images are independent, so nothing is gained by
/// splitting one of them, and a session that never waits for a sibling has no reason to spin.
pub(crate) struct Pool {
    idle: Receiver<Worker>,
    give_back: Sender<Worker>,
    clock: Arc<Clock>,
}

/// A session with the buffers it needs.
pub(crate) struct Worker {
    session: Session,
    outputs: Vec<String>,
    rule: Arc<PreprocessRule>,
    input: Vec<f32>, // [n, channels, height, width]
    scratch: Scratch,
    clock: Arc<Clock>,
}

/// What the sessions run.
pub(crate) enum Model {
    /// Over the weights in the backbone file.
    External(ExternalModel),
    /// With its weights inside.
    SelfContained(Vec<u8>),
}

impl Pool {
    /// Sessions of a model of `backbone` whose results are `outputs`.
    pub(crate) fn new(
        backbone: &Backbone,
        model: Model,
        outputs: &[String],
        workers: usize,
        library: Option<&Path>,
    ) -> Result<Pool> {
        let environment = runtime::environment(library)?;
        // The runtime wants to own what it reads: one copy of the file, shared by all sessions.
        let bytes: Arc<[u8]> = match &model {
            Model::External(_) => Arc::from(backbone.file().bytes()),
            Model::SelfContained(_) => Arc::from([]),
        };
        let prepacked = PrepackedWeights::new();
        let rule = backbone.shared_rule();
        let clock = Arc::new(Clock::default());
        let (give_back, idle) = bounded(workers);
        for _ in 0..workers {
            let mut builder = Session::builder(&environment)?
                .with_intra_threads(1)?
                .with_intra_op_spinning(false)?
                .with_prepacked_weights(&prepacked)?;
            let session = match &model {
                Model::External(ExternalModel { model, location }) => builder
                    .with_external_initializer_file_in_memory(location, bytes.clone())?
                    .commit_from_memory(model)?,
                Model::SelfContained(model) => builder.commit_from_memory(model)?,
            };
            let worker = Worker {
                session,
                outputs: outputs.to_vec(),
                rule: rule.clone(),
                input: Vec::new(),
                scratch: Scratch::default(),
                clock: clock.clone(),
            };
            give_back.send(worker).expect("the channel has room for every worker and its receiver is held here");
        }
        Ok(Pool { idle, give_back, clock })
    }

    /// What the threads spent their time on.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Lends a worker for one call; waits while all are lent.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Worker) -> T) -> T {
        struct Lent<'a>(Option<Worker>, &'a Sender<Worker>);
        impl Drop for Lent<'_> {
            fn drop(&mut self) {
                // Also when `work` panics: a worker lost would block a later caller for ever.
                if let Some(worker) = self.0.take() {
                    let _ = self.1.try_send(worker);
                }
            }
        }
        let worker = self.idle.recv().expect("a sender lives in this pool");
        let mut lent = Lent(Some(worker), &self.give_back);
        work(lent.0.as_mut().expect("taken only when dropped"))
    }
}

impl Worker {
    /// Runs images that become inputs of one size, `(height, width)`.
    pub(crate) fn run<I: Input>(&mut self, images: &[&I], size: (usize, usize)) -> Result<BatchFeatures> {
        self.run_with(images, size, |_, outputs| outputs.iter().map(|values| values.to_vec()).collect())
    }

    /// As [`Worker::run`]; gives `take` the input and the results as they lie in the runtime.
    pub(crate) fn run_with<I: Input, T>(
        &mut self,
        images: &[&I],
        (height, width): (usize, usize),
        take: impl FnOnce(&[f32], &[&[f32]]) -> T,
    ) -> Result<T> {
        let channels = self.rule.channels;
        let len = channels * height * width;
        self.input.resize(images.len() * len, 0.0);
        self.clock.preprocess.measure(|| {
            let mut inputs = images.iter().zip(self.input.chunks_exact_mut(len));
            inputs.try_for_each(|(image, out)| image.prepare(&self.rule, Layout::Nchw, &mut self.scratch, out))
        })?;
        let shape = [images.len(), channels, height, width];
        let input = TensorRef::from_array_view((shape, &self.input[..]))?;
        let results = self.clock.inference.measure(|| self.session.run(ort::inputs![INPUT => input]))?;
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for output in &self.outputs {
            outputs.push(results[output.as_str()].try_extract_tensor::<f32>()?.1);
        }
        Ok(take(&self.input, &outputs))
    }
}

/// Bits that int8 weights may have here: x86 processors without VNNI add pairs of products of u8 and i8 in 16 bits,
/// which saturate with 8-bit weights.
pub(crate) fn weight_bits() -> WeightBits {
    #[cfg(target_arch = "x86_64")]
    if !is_x86_feature_detected!("avx512vnni") && !is_x86_feature_detected!("avxvnni") {
        return WeightBits::Seven;
    }
    WeightBits::Eight
}
