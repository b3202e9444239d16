//! What a training starts from.

use moco_image::{PreprocessRule, ValueRange};
use moco_models::arch::ArchSpec;
use moco_models::card::Card;
use moco_models::init::initialise;
use moco_models::weights::BackboneFile;
use moco_models::{Graph, Weights};

use crate::Result;
use crate::model::Model;

/// A backbone: learnt, random, or out of a model, whose head may be learnt on.
#[derive(Clone, Debug)]
pub struct Start {
    pub(super) card: Card,
    pub(super) graph: Graph,
    pub(super) weights: Weights,
    pub(super) sha256: Option<String>,
    pub(super) model: Option<Model>,
    pub(super) pretrained: bool,
}

impl Start {
    /// The weights of a backbone file.
    ///
    /// # Errors
    /// As [`BackboneFile::weights`].
    pub fn backbone(file: &BackboneFile) -> Result<Start> {
        Ok(Start {
            card: file.card().clone(),
            graph: file.graph().clone(),
            weights: file.weights()?,
            sha256: Some(file.sha256()),
            model: None,
            pretrained: true,
        })
    }

    /// Random weights of a network. `preprocess` says how values become its input; without it this is as usual for the
    /// network.
    ///
    /// # Errors
    /// For a network that does not exist, or a rule that does not fit it.
    pub fn random(arch: ArchSpec, preprocess: Option<PreprocessRule>, seed: u64) -> Result<Start> {
        let graph = arch.build()?;
        let weights = initialise(&graph, seed);
        let mut card = Card::new(arch, "random")?;
        if let Some(rule) = preprocess {
            card.preprocess = rule;
            card.validate()?;
        }
        Ok(Start { card, graph, weights, sha256: None, model: None, pretrained: false })
    }

    /// A model: its backbone and, under the same head for the same classes, its head.
    ///
    /// # Errors
    /// If the model is damaged.
    pub fn model(model: &Model) -> Result<Start> {
        let (graph, weights) = model.backbone()?;
        let sha256 = model.head_card().backbone_sha256.clone();
        let card = model.card().clone();
        Ok(Start { card, graph, weights, sha256, model: Some(model.clone()), pretrained: true })
    }

    /// The same for images of other depths than its own: which of their values become black and white. The model will
    /// remember it.
    pub fn with_other_depths(mut self, range: ValueRange) -> Start {
        self.card.preprocess.other_depths = Some(range);
        self
    }

    /// Whether its weights were learnt; decides [`Options::for_head`](super::Options::for_head).
    pub fn is_pretrained(&self) -> bool {
        self.pretrained
    }

    /// What it says about itself.
    pub fn card(&self) -> &Card {
        &self.card
    }
}
