//! The result of a run: the query encoder without its projector, with its card.

use moco_models::arch::Projector;
use moco_models::card::Card;
use moco_models::weights::save_backbone;
use moco_models::{Graph, Weights};

use super::{Record, RunConfig, RunFolder, read_metrics, tool_version};
use crate::{Error, Result};

/// Writes `backbone.safetensors` and the card as `README.md`; where the configuration wants
/// it also `backbone-with-projector.safetensors`, for those who go on with the contrast.
///
/// # Errors
/// [`Error::Model`] if the weights hold what is not a number, or the disk refuses.
pub fn write(folder: &RunFolder, config: &RunConfig, graph: &Graph, query: &Weights) -> Result<()> {
    let card = card(folder, config, false)?;
    save_backbone(&folder.backbone_path(), graph, query, &card)?;
    let readme = card.to_readme();
    moco_models::write_atomically(&folder.path().join("README.md"), |out| out.write_all(readme.as_bytes()))?;
    if config.keep_projector {
        let path = folder.path().join("backbone-with-projector.safetensors");
        save_backbone(&path, graph, query, &self::card(folder, config, true)?)?;
    }
    Ok(())
}

fn card(folder: &RunFolder, config: &RunConfig, with_projector: bool) -> Result<Card> {
    let mut arch = config.recipe.arch(config.source.channels);
    if !with_projector {
        arch.projector = Projector::None;
    }
    let mut card = Card::new(arch, config.recipe.name.clone())?;
    card.preprocess = config.preprocess();
    card.recipe = Some(serde_json::to_value(&config.recipe).map_err(|e| Error::Invalid(e.to_string()))?);
    let name = config.source.data.file_name().map(|n| n.to_string_lossy().into_owned());
    card.data = name.map(|n| format!("{} images of `{n}`", config.source.images));
    card.images = Some(config.source.images as u64);
    card.tool_version = tool_version();
    for record in read_metrics(&folder.metrics_path())? {
        match record {
            Record::Step(r) => {
                card.metrics.insert("last_loss_nats".into(), r.loss);
            }
            Record::Eval(r) => {
                card.metrics.insert(format!("{}_top1", r.metric), r.value);
            }
            Record::Health(r) => {
                card.metrics.insert("effective_rank".into(), r.effective_rank);
            }
        }
    }
    Ok(card)
}
