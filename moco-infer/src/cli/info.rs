//! `moco-infer info`: what a backbone file is.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use moco_hub::open_on_terminal;
use moco_infer::Backbone;
use moco_models::weights::{ModelFile, is_model};
use serde_json::json;

/// Prints network, taps with their sizes, preprocessing, training and hash of a backbone file, and the head of a fine-tuned model.
#[derive(Args)]
pub struct Info {
    /// The backbone or model: a file, a folder that holds one, or hf://owner/name[@revision][/file].
    #[arg(value_name = "PLACE")]
    backbone: PathBuf,
    /// Print one JSON object with the whole card instead.
    #[arg(long)]
    json: bool,
}

impl Info {
    pub fn run(&self) -> Result<()> {
        let backbone = Backbone::from(open_on_terminal(&self.backbone, None)?);
        let head = match is_model(backbone.file().path())? {
            true => Some(ModelFile::open(backbone.file().path())?.head().clone()),
            false => None,
        };
        let (card, graph, file) = (backbone.card(), backbone.graph(), backbone.file());
        let size = backbone.fixed_input_size();
        let [height, width] = size.unwrap_or([224, 224]);
        let macs = graph.macs(height, width)?;
        let parameters = graph.parameter_layout().len();
        let mut taps = Vec::new();
        for tap in backbone.taps() {
            taps.push((tap, backbone.feature_shape(tap, [height, width])?));
        }
        if self.json {
            let taps: serde_json::Map<_, _> = taps.into_iter().map(|(t, shape)| (t.clone(), json!(shape))).collect();
            let info = json!({
                "file": file.path(), "bytes": file.bytes().len(), "sha256": file.sha256(), "parameters": parameters,
                "input": [card.arch.in_channels, height, width], "input_is_fixed": size.is_some(), "macs": macs,
                "taps": taps, "card": card, "head": head,
            });
            println!("{info}");
            return Ok(());
        }
        let line = |name: &str, value: String| println!("{name:<14}{value}");
        line("file", format!("{} ({:.1} MB)", file.path().display(), file.bytes().len() as f64 / 1e6));
        line("sha256", file.sha256());
        line("network", format!("{}, width {}, {:?} stem", card.arch.name, card.arch.width, card.arch.stem));
        line("parameters", format!("{:.2} M", parameters as f64 / 1e6));
        let any = if size.is_some() { "" } else { " (any size; figures for this one)" };
        line("input", format!("{} channels, {height} × {width} pixels{any}", card.arch.in_channels));
        line("cost", format!("{:.2} G multiply-accumulates an image", macs as f64 / 1e9));
        for (i, (tap, shape)) in taps.iter().enumerate() {
            line(if i == 0 { "taps" } else { "" }, format!("{tap:<12}{shape:?}"));
        }
        if let Some(head) = &head {
            let [height, width] = head.input.size;
            line("head", format!("{} ({}), trained at {height} × {width} pixels", head.head, head.task()));
            line("classes", head.class_names.join(", "));
            head.metrics.iter().for_each(|(name, value)| line("of the model", format!("{name} = {value:.4}")));
        }
        line("preprocess", serde_json::to_string(&card.preprocess)?);
        line("method", card.method.clone());
        for (name, value) in [("data", &card.data), ("licence", &card.licence), ("source", &card.source)] {
            if let Some(value) = value {
                line(name, value.clone());
            }
        }
        for (name, value) in &card.metrics {
            line("metric", format!("{name} = {value:.4}"));
        }
        for note in &card.notes {
            line("note", note.clone());
        }
        line("written by", card.tool_version.clone());
        Ok(())
    }
}
