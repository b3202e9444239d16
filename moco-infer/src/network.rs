//! A fine-tuned model, or any ONNX file of ours, run as it is: prepared values in, named tensors out.

use std::path::Path;
use std::sync::Arc;

use moco_models::onnx::{ExternalModel, INPUT, ModelExport, answering_model};
use moco_models::weights::ModelFile;
use ort::session::Session;
use ort::value::{DynValue, TensorRef};

use crate::{Error, Result, runtime};

/// A network in ONNX Runtime: one image batch in, named tensors out. Its session belongs to one thread at a time.
#[derive(Debug)]
pub struct Network {
    session: Session,
}

/// One result of a [`Network`].
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkOutput {
    /// Name of the output.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Values,
}

/// Values of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Scores, probabilities, boxes.
    F32(Vec<f32>),
    /// Classes of pixels.
    U8(Vec<u8>),
    /// Labels and places.
    I64(Vec<i64>),
}

impl Values {
    /// The values, if they are f32.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match self {
            Values::F32(values) => Some(values),
            _ => None,
        }
    }
}

/// How a [`Network`] runs.
#[derive(Clone, Debug, Default)]
pub struct NetworkOptions {
    /// Threads of the session; 0 takes one a core.
    pub threads: usize,
    /// ONNX Runtime's library, where it is not found by itself.
    pub library: Option<std::path::PathBuf>,
}

impl Network {
    /// Opens an ONNX file.
    ///
    /// # Errors
    /// [`Error::Runtime`] if there is no ONNX Runtime, [`Error::Io`] or [`Error::Session`] naming what is wrong with the file.
    pub fn open(path: &Path, options: &NetworkOptions) -> Result<Network> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let mut builder = builder(options)?;
        let session = builder
            .commit_from_memory(&bytes)
            .map_err(|e| Error::Session(format!("{} is no model it can run: {e}", path.display())))?;
        Network::checked(session)
    }

    /// A fine-tuned model, its ONNX graph built in memory over the weights of the file.
    ///
    /// # Errors
    /// As [`answering_model`]; [`Error::Runtime`], [`Error::Session`].
    pub fn of_model(file: &ModelFile, export: &ModelExport, options: &NetworkOptions) -> Result<Network> {
        let ExternalModel { model, location } = answering_model(file, export)?;
        let weights: Arc<[u8]> = Arc::from(file.bytes());
        let session = builder(options)?
            .with_external_initializer_file_in_memory(&location, weights)?
            .commit_from_memory(&model)?;
        Network::checked(session)
    }

    fn checked(session: Session) -> Result<Network> {
        let names: Vec<&str> = session.inputs().iter().map(|i| i.name()).collect();
        if names != [INPUT] {
            return Err(Error::Session(format!("the model reads {names:?}, expected one input `{INPUT}`")));
        }
        Ok(Network { session })
    }

    /// Runs a batch.
    /// - `images` [n, channels, height, width], prepared as the model's card says.
    ///
    /// # Errors
    /// [`Error::Input`] if the number of values is another, [`Error::Session`] if the model refuses the shape.
    pub fn run(&mut self, images: &[f32], shape: [usize; 4]) -> Result<Vec<NetworkOutput>> {
        if shape.iter().product::<usize>() != images.len() {
            return Err(Error::Input(format!("{} values were given for images of shape {shape:?}", images.len())));
        }
        let input = TensorRef::from_array_view((shape, images))?;
        let results = self.session.run(ort::inputs![INPUT => input])?;
        results.iter().map(|(name, value)| extract(name, &value)).collect()
    }

    /// A text of the model's metadata, e.g. `moco.head`.
    ///
    /// # Errors
    /// [`Error::Session`] if the metadata cannot be read.
    pub fn metadata(&self, key: &str) -> Result<Option<String>> {
        Ok(self.session.metadata()?.custom(key))
    }

    /// Names of the outputs, in their order.
    pub fn outputs(&self) -> Vec<String> {
        self.session.outputs().iter().map(|o| o.name().to_owned()).collect()
    }
}

fn builder(options: &NetworkOptions) -> Result<ort::session::builder::SessionBuilder> {
    let environment = runtime::environment(options.library.as_deref())?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    Ok(Session::builder(&environment)?.with_intra_threads(threads)?.with_intra_op_spinning(false)?)
}

fn extract(name: &str, value: &DynValue) -> Result<NetworkOutput> {
    let described = |shape: &[i64], values: Values| NetworkOutput {
        name: name.to_owned(),
        shape: shape.iter().map(|d| usize::try_from(*d).unwrap_or(0)).collect(),
        values,
    };
    if let Ok((shape, values)) = value.try_extract_tensor::<f32>() {
        return Ok(described(shape, Values::F32(values.to_vec())));
    }
    if let Ok((shape, values)) = value.try_extract_tensor::<u8>() {
        return Ok(described(shape, Values::U8(values.to_vec())));
    }
    let (shape, values) = value.try_extract_tensor::<i64>()?;
    Ok(described(shape, Values::I64(values.to_vec())))
}
