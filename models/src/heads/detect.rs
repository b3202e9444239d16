//! Boxes: a feature pyramid (arXiv:1612.03144) and the one-stage, anchor-free head of FCOS (arXiv:1904.01355) on every
//! level, its layers shared by all levels.

use serde::{Deserialize, Serialize};

use super::build::{Builder, Value};
use super::segment::pyramid;
use super::{Part, within};
use crate::Result;
use crate::init::Draw;

/// Probability of an object that a new head answers everywhere, so that the loss does not start with the background of
/// all places (arXiv:1708.02002).
const PRIOR: f64 = 0.01;

/// Coarsest level that a backbone has; coarser ones are made by convolutions of stride 2.
const LAST_OF_BACKBONE: usize = 5;

/// An FCOS detector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detect {
    /// Number of classes; the background is none.
    pub classes: usize,
    /// Channels of pyramid and towers.
    #[serde(default = "usual_width")]
    pub width: usize,
    /// Convolutions of each of the two towers.
    #[serde(default = "usual_convs")]
    pub convs: usize,
    /// First and last level on which boxes are looked for; level k is as fine as the backbone's `c{k}`, and levels 6 and 7
    /// halve the size once and twice more. Small objects need a small first level.
    #[serde(default = "usual_levels")]
    pub levels: [usize; 2],
}

fn usual_width() -> usize {
    128
}

fn usual_convs() -> usize {
    2
}

fn usual_levels() -> [usize; 2] {
    [3, 7]
}

impl Detect {
    /// 128 channels, towers of two convolutions, levels 3 to 7.
    pub fn new(classes: usize) -> Detect {
        Detect { classes, width: usual_width(), convs: usual_convs(), levels: usual_levels() }
    }

    pub(super) fn validate(&self) -> Result<()> {
        within("classes", self.classes, 1..=65536)?;
        within("width", self.width, 1..=4096)?;
        within("convs", self.convs, 0..=16)?;
        within("the first level", self.levels[0], 2..=LAST_OF_BACKBONE)?;
        within("the last level", self.levels[1], self.levels[0]..=7)
    }

    /// Taps in the order of the levels: name, meaning, channels.
    pub(super) fn taps(&self) -> Vec<(String, Part, usize)> {
        let parts = [("cls", Part::Class, self.classes), ("box", Part::Box, 4), ("centre", Part::Centre, 1)];
        let of = |level: usize| parts.map(|(name, part, channels)| (format!("{name}_p{level}"), part, channels));
        (self.levels[0]..=self.levels[1]).flat_map(of).collect()
    }

    pub(super) fn append(&self, b: &mut Builder) -> Result<()> {
        let mut owners: Option<Head> = None;
        for (level, map) in self.levels(b)? {
            let head = match &owners {
                None => self.head(b, map),
                Some(owners) => owners.again(b, map, level),
            };
            for (part, value) in [("cls", head.class), ("box", head.distances), ("centre", head.centre)] {
                b.name_tap(&format!("{part}_p{level}"), value);
            }
            owners.get_or_insert(head);
        }
        Ok(())
    }

    /// The maps P{first}…P{last}, finest first.
    fn levels(&self, b: &mut Builder) -> Result<Vec<(usize, Value)>> {
        let [first, last] = self.levels;
        let mut levels = Vec::new();
        for (level, value) in pyramid(b, first, self.width)?.into_iter().rev().filter(|(level, _)| *level <= last) {
            levels.push((level, b.conv(&format!("head.fpn{level}"), value, self.width, 3, true)));
        }
        for level in LAST_OF_BACKBONE + 1..=last {
            let (_, mut finer) = *levels.last().expect("the backbone's last level is there");
            if level > LAST_OF_BACKBONE + 1 {
                finer = b.relu(&format!("head.fpn{}.relu", level - 1), finer);
            }
            levels.push((level, b.strided(&format!("head.fpn{level}"), finer, self.width, 3, 2, true)));
        }
        Ok(levels)
    }

    /// The head on its first level, which owns the parameters.
    fn head(&self, b: &mut Builder, map: Value) -> Head {
        let tower = |b: &mut Builder, branch: &str| -> (Vec<Layer>, Value) {
            let (mut layers, mut x) = (Vec::new(), map);
            for i in 0..self.convs {
                let prefix = format!("head.{branch}.{i}");
                let conv = b.conv(&format!("{prefix}.conv"), x, self.width, 3, true);
                let norm = b.group_norm(&format!("{prefix}.norm"), conv);
                x = b.relu(&format!("{prefix}.relu"), norm);
                layers.push(Layer { prefix, conv, norm });
            }
            (layers, x)
        };
        let (class_tower, x) = tower(b, "cls");
        let class = b.conv("head.cls.logits", x, self.classes, 3, true);
        let (box_tower, x) = tower(b, "box");
        let distances = b.conv("head.box.distances", x, 4, 3, true);
        let centre = b.conv("head.box.centre", x, 1, 3, true);
        Head { class_tower, class, box_tower, distances, centre }
    }
}

/// A convolution and its normalisation, both with parameters.
struct Layer {
    prefix: String,
    conv: Value,
    norm: Value,
}

/// The two towers and their results on one level.
struct Head {
    class_tower: Vec<Layer>,
    class: Value,
    box_tower: Vec<Layer>,
    distances: Value,
    centre: Value,
}

impl Head {
    /// The same layers on another level; the lists of layers stay with their owner.
    fn again(&self, b: &mut Builder, map: Value, level: usize) -> Head {
        let tower = |b: &mut Builder, layers: &[Layer]| {
            layers.iter().fold(map, |x, Layer { prefix, conv, norm }| {
                let x = b.tied(&format!("{prefix}.conv.p{level}"), *conv, x);
                let x = b.tied(&format!("{prefix}.norm.p{level}"), *norm, x);
                b.relu(&format!("{prefix}.relu.p{level}"), x)
            })
        };
        let x = tower(b, &self.class_tower);
        let class = b.tied(&format!("head.cls.logits.p{level}"), self.class, x);
        let x = tower(b, &self.box_tower);
        let distances = b.tied(&format!("head.box.distances.p{level}"), self.distances, x);
        let centre = b.tied(&format!("head.box.centre.p{level}"), self.centre, x);
        Head { class_tower: Vec::new(), class, box_tower: Vec::new(), distances, centre }
    }
}

/// The pyramid as its authors start it, towers and results from N(0, 0.01²) as FCOS does, biases 0, and the classes'
/// such that each answers [`PRIOR`].
pub(super) fn rule(name: &str) -> Option<Draw> {
    match name {
        "head.cls.logits.bias" => Some(Draw::Constant(-((1.0 - PRIOR) / PRIOR).ln() as f32)),
        _ if name.contains(".norm.") => None,
        _ if name.ends_with(".bias") => Some(Draw::Constant(0.0)),
        _ if name.starts_with("head.lateral") || name.starts_with("head.fpn") => Some(Draw::Xavier),
        _ => Some(Draw::Normal { std: 0.01 }),
    }
}
