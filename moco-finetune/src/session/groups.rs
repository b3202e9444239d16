//! Which parameters learn, how fast, and with how much decay.

use std::fmt;
use std::str::FromStr;

use moco_engine::ops::ParamGroup;
use moco_models::heads::PREFIX;
use moco_models::{Graph, Op};
use serde::{Deserialize, Serialize};

use super::options::{BatchNorm, Options};

/// What does not learn. As text: `nothing`, `stages:2`, `backbone`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Freeze {
    /// Everything learns.
    #[default]
    Nothing,
    /// The first of: stem, `layer1`, `layer2`, `layer3`, `layer4` (Detectron2's `FREEZE_AT`); 1 to 4.
    Stages(usize),
    /// Only the head learns.
    Backbone,
}

/// Stages of a ResNet in front of the head, from the image on.
const STAGES: usize = 5;

impl Freeze {
    /// Frozen stages, of [`STAGES`].
    fn stages(self) -> usize {
        match self {
            Freeze::Nothing => 0,
            Freeze::Stages(n) => n,
            Freeze::Backbone => STAGES,
        }
    }
}

/// Names of the nodes that do not learn.
pub(super) fn frozen(graph: &Graph, options: &Options) -> Vec<String> {
    let norms = options.batch_norm == BatchNorm::Frozen;
    let is_frozen = |name: &str, op: &Op| match stage(name) {
        Some(stage) => stage < options.freeze.stages() || (norms && matches!(op, Op::BatchNorm { .. })),
        None => false,
    };
    select(graph, is_frozen)
}

/// Names of the normalisations that keep their running statistics: frozen ones, for batch statistics of a part that does
/// not learn would still change what it computes.
pub(super) fn running_norms(graph: &Graph, options: &Options) -> Vec<String> {
    let frozen = frozen(graph, options);
    select(graph, |name, op| matches!(op, Op::BatchNorm { .. }) && frozen.iter().any(|f| f == name))
}

fn select(graph: &Graph, wanted: impl Fn(&str, &Op) -> bool) -> Vec<String> {
    graph.nodes().iter().skip(1).filter(|n| wanted(&n.name, &n.op)).map(|n| n.name.clone()).collect()
}

/// Groups of parameters that share a learning rate and a decay, in the order of the graph's layout, for a learning rate
/// of `lr`: the head's. `layer4` has [`backbone_rate`](super::Optimiser::backbone_rate) of it, each stage below
/// [`layer_decay`](super::Optimiser::layer_decay) of the one above (arXiv:1801.06146). Normalisations and biases are not decayed.
pub(super) fn groups(graph: &Graph, options: &Options, lr: f64) -> Vec<ParamGroup> {
    let (optimiser, frozen) = (&options.optimiser, frozen(graph, options));
    let mut groups: Vec<ParamGroup> = vec![];
    for (spec, range) in graph.parameter_layout().iter() {
        let node = spec.name.rsplit_once('.').map_or(spec.name.as_str(), |(node, _)| node);
        if frozen.iter().any(|f| f == node) {
            continue;
        }
        let factor = stage(node)
            .map_or(1.0, |stage| optimiser.backbone_rate * optimiser.layer_decay.powi((STAGES - 1 - stage) as i32));
        let weight_decay = if spec.shape.len() > 1 { optimiser.weight_decay as f32 } else { 0.0 };
        let lr = (lr * factor) as f32;
        match groups.last_mut() {
            Some(last) if last.range.end == range.start && last.lr == lr && last.weight_decay == weight_decay => {
                last.range.end = range.end;
            }
            _ => groups.push(ParamGroup { range, lr, weight_decay }),
        }
    }
    groups
}

/// Stage of a node of the backbone, `None` for one of the head.
fn stage(node: &str) -> Option<usize> {
    if node.starts_with(PREFIX) {
        return None;
    }
    let layer = node.strip_prefix("layer").and_then(|rest| rest.chars().next()?.to_digit(10));
    Some(layer.map_or(0, |n| (n as usize).min(STAGES - 1)))
}

impl FromStr for Freeze {
    type Err = String;

    fn from_str(text: &str) -> Result<Freeze, String> {
        match text {
            "nothing" => Ok(Freeze::Nothing),
            "backbone" => Ok(Freeze::Backbone),
            _ => text
                .strip_prefix("stages:")
                .and_then(|n| n.parse().ok())
                .filter(|n| (1..STAGES).contains(n))
                .map(Freeze::Stages)
                .ok_or_else(|| {
                    format!("`{text}`: expected `nothing`, `backbone`, or `stages:1` (the stem) to `stages:4` (up to layer3)")
                }),
        }
    }
}

impl fmt::Display for Freeze {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Freeze::Nothing => f.write_str("nothing"),
            Freeze::Stages(n) => write!(f, "stages:{n}"),
            Freeze::Backbone => f.write_str("backbone"),
        }
    }
}

impl From<Freeze> for String {
    fn from(freeze: Freeze) -> String {
        freeze.to_string()
    }
}

impl TryFrom<String> for Freeze {
    type Error = String;

    fn try_from(text: String) -> Result<Freeze, String> {
        text.parse()
    }
}
