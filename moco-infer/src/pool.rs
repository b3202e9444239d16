//! Sessions of ONNX Runtime over one set of weights, lent to one thread at a time.

use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};
use moco_image::{Image, Layout, PreprocessRule, Scratch, preprocess_with};
use moco_models::onnx::{INPUT, InputSize, model_with_external_data};
use ort::session::Session;
use ort::session::builder::PrepackedWeights;
use ort::value::TensorRef;

use crate::{Backbone, Result, runtime};

/// Features of one batch: for each tap, the values of its images one after the other.
pub(crate) type BatchFeatures = Vec<Vec<f32>>;

/// As many sessions as threads, each with one thread of its own: images are independent, so nothing is gained by
/// splitting one of them, and a session that never waits for a sibling has no reason to spin.
pub(crate) struct Pool {
    idle: Receiver<Worker>,
    give_back: Sender<Worker>,
}

/// A session with the buffers it needs.
pub(crate) struct Worker {
    session: Session,
    taps: Vec<String>,
    rule: Arc<PreprocessRule>,
    input: Vec<f32>, // [n, channels, height, width]
    scratch: Scratch,
}

impl Pool {
    pub(crate) fn new(backbone: &Backbone, taps: &[String], workers: usize, library: Option<&Path>) -> Result<Pool> {
        let environment = runtime::environment(library)?;
        let names: Vec<&str> = taps.iter().map(String::as_str).collect();
        let size = InputSize { batch: None, image: backbone.fixed_input_size() };
        let model = model_with_external_data(backbone.file(), &names, size)?;
        // The runtime wants to own what it reads: one copy of the file, shared by all sessions.
        let bytes: Arc<[u8]> = Arc::from(backbone.file().bytes());
        let prepacked = PrepackedWeights::new();
        let rule = Arc::new(backbone.card().preprocess.clone());
        let (give_back, idle) = bounded(workers);
        for _ in 0..workers {
            let session = Session::builder(&environment)?
                .with_intra_threads(1)?
                .with_intra_op_spinning(false)?
                .with_prepacked_weights(&prepacked)?
                .with_external_initializer_file_in_memory(&model.location, bytes.clone())?
                .commit_from_memory(&model.model)?;
            let worker = Worker {
                session,
                taps: taps.to_vec(),
                rule: rule.clone(),
                input: Vec::new(),
                scratch: Scratch::default(),
            };
            give_back.send(worker).expect("the channel has room for every worker and its receiver is held here");
        }
        Ok(Pool { idle, give_back })
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
    pub(crate) fn run(&mut self, images: &[&Image], (height, width): (usize, usize)) -> Result<BatchFeatures> {
        let channels = self.rule.channels;
        let len = channels * height * width;
        self.input.resize(images.len() * len, 0.0);
        for (image, out) in images.iter().zip(self.input.chunks_exact_mut(len)) {
            preprocess_with(image, &self.rule, Layout::Nchw, &mut self.scratch, out)?;
        }
        let shape = [images.len(), channels, height, width];
        let input = TensorRef::from_array_view((shape, &self.input[..]))?;
        let outputs = self.session.run(ort::inputs![INPUT => input])?;
        let mut features = Vec::with_capacity(self.taps.len());
        for tap in &self.taps {
            features.push(outputs[tap.as_str()].try_extract_tensor::<f32>()?.1.to_vec());
        }
        Ok(features)
    }
}
