//! All that a training carries from step to step, in one safetensors file written whole or not at all.
//!
//! Random numbers are functions of the seed and the place in the training, so they need no state of their own.

use std::collections::BTreeMap;
use std::path::Path;

use moco_engine::compute::DeviceChoice;
use moco_models::card::Card;
use moco_models::heads::HeadSpec;
use moco_models::weights::{Dtype, SafetensorsFile, TensorOut, TensorSource, load_strict, save_safetensors};
use moco_models::{FlatLayout, Graph, Weights};
use serde::{Deserialize, Serialize};

use super::network::NetworkState;
use super::{Options, Session, State};
use crate::{Error, Result};

/// Metadata key under which a checkpoint holds its description as JSON.
const CHECKPOINT_KEY: &str = "moco.finetune";

const FORMAT_VERSION: u32 = 1;

/// Prefixes of the sets of weights, in their order.
const SETS: [&str; 3] = ["current", "average", "best"];

/// Prefix of the weights as they were at the start.
const START: &str = "start";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    format_version: u32,
    head: HeadSpec,
    class_names: Vec<String>,
    options: Options,
    card: Card,
    backbone_sha256: Option<String>,
    state: State,
    /// Sets of weights that are there.
    sets: Vec<String>,
    /// Buffers of the optimiser.
    moments: usize,
}

impl Session {
    /// Writes everything, whole or not at all.
    ///
    /// # Errors
    /// If the disk refuses; an older file of this name is untouched then.
    pub fn checkpoint(&self, path: &Path) -> Result<()> {
        let NetworkState { sets, moments } = self.stack.net.state()?;
        let names = SETS.iter().zip(&sets).filter(|(_, set)| set.is_some()).map(|(name, _)| (*name).to_string());
        let description = Description {
            format_version: FORMAT_VERSION,
            head: self.head.clone(),
            class_names: self.class_names.clone(),
            options: self.options.clone(),
            card: self.card.clone(),
            backbone_sha256: self.backbone_sha256.clone(),
            state: self.state.clone(),
            sets: names.collect(),
            moments: moments.len(),
        };
        let json = serde_json::to_string(&description).map_err(|e| Error::Invalid(e.to_string()))?;
        let (params, buffers) = (self.net_graph.parameter_layout(), self.net_graph.buffer_layout());
        let mut tensors = vec![];
        for (name, set) in SETS.iter().zip(&sets) {
            if let Some(set) = set {
                push(&mut tensors, name, &params, &set.params);
                push(&mut tensors, name, &buffers, &set.buffers);
            }
        }
        for (i, moment) in moments.iter().enumerate() {
            push(&mut tensors, &format!("moment{i}"), &params, moment);
        }
        if self.stack.is_cut() {
            // The frozen backbone, which the sets do not hold.
            push(&mut tensors, START, &self.model_graph.parameter_layout(), &self.start.params);
            push(&mut tensors, START, &self.model_graph.buffer_layout(), &self.start.buffers);
        }
        Ok(save_safetensors(path, &tensors, &BTreeMap::from([(CHECKPOINT_KEY.to_owned(), json)]))?)
    }

    /// Opens a checkpoint; the training goes on where it stood, to the bit on the same kind of device. `device` computes
    /// elsewhere than the options of the checkpoint say.
    ///
    /// # Errors
    /// [`Error::Format`] or [`Error::Model`] if the file is no checkpoint, or is damaged.
    pub fn resume(path: &Path, device: Option<DeviceChoice>) -> Result<Session> {
        let file = SafetensorsFile::open(path)?;
        let damaged = |reason: String| Error::format(path, reason);
        let json = file.metadata(CHECKPOINT_KEY).ok_or_else(|| {
            damaged(format!("is no checkpoint of a fine-tuning: it has no metadata `{CHECKPOINT_KEY}`"))
        })?;
        let mut d: Description = serde_json::from_str(json).map_err(|e| damaged(e.to_string()))?;
        if d.format_version != FORMAT_VERSION {
            let version = d.format_version;
            return Err(damaged(format!("has format version {version}; this program reads {FORMAT_VERSION}")));
        }
        if let Some(device) = device {
            d.options.device = device;
        }
        let model_graph = d.head.attach(&d.card.arch.build()?)?;
        let cut = file.names().iter().any(|name| name.starts_with("start."));
        // In one piece, the current weights are all there is.
        let start = read(&file, path, &model_graph, if cut { START } else { SETS[0] })?;
        let state = d.state;
        let mut session = Session::open(d.card, d.backbone_sha256, d.head, d.class_names, d.options, start)?;
        if session.stack.is_cut() != cut {
            return Err(damaged("tensors and options contradict each other about the frozen backbone".into()));
        }
        let set = |name: &&str| match d.sets.iter().any(|there| there == name) {
            true => read(&file, path, &session.net_graph, name).map(Some),
            false => Ok(None),
        };
        let [current, average, best] = [set(&SETS[0])?, set(&SETS[1])?, set(&SETS[2])?];
        let layout = session.net_graph.parameter_layout();
        let moment = |i| floats(&file, path, &format!("moment{i}"), &layout);
        let moments = (0..d.moments).map(moment).collect::<Result<_>>()?;
        session.stack.net.restore(NetworkState { sets: [current, average, best], moments })?;
        session.state = state;
        Ok(session)
    }
}

fn push<'a>(tensors: &mut Vec<TensorOut<'a>>, prefix: &str, layout: &FlatLayout, values: &'a [f32]) {
    for (spec, range) in layout.iter() {
        tensors.push(TensorOut::f32(format!("{prefix}.{}", spec.name), &spec.shape, &values[range]));
    }
}

fn read(file: &SafetensorsFile, path: &Path, graph: &Graph, prefix: &str) -> Result<Weights> {
    let begin = format!("{prefix}.");
    let name = |n: &str| format!("{begin}{n}");
    let what = path.display().to_string();
    Ok(load_strict(file, graph, &what, name, |n| n.starts_with(&begin))?)
}

fn floats(file: &SafetensorsFile, path: &Path, prefix: &str, layout: &FlatLayout) -> Result<Vec<f32>> {
    let mut values = vec![0.0; layout.len()];
    for (spec, range) in layout.iter() {
        let name = format!("{prefix}.{}", spec.name);
        let tensor = file.tensor(&name)?;
        if tensor.dtype != Dtype::F32 || tensor.shape != spec.shape {
            let reason = format!("`{name}` is {} {:?}; F32 {:?} expected", tensor.dtype, tensor.shape, spec.shape);
            return Err(Error::format(path, reason));
        }
        tensor.write_f32(&mut values[range]);
    }
    Ok(values)
}
