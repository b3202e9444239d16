//! The Hub: our client against a stand-in, and Python's client against the same stand-in and the same cache.

mod download;
mod programs;
mod python;
mod upload;

use std::path::Path;

use moco_hub::{Hub, Reference, Settings};
use moco_models::arch::ArchSpec;
use moco_models::card::Card;
use moco_models::init::initialise;
use moco_models::weights::save_backbone;
use moco_tests::hub::HubServer;

/// A small backbone file.
fn backbone(seed: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backbone.safetensors");
    let spec = ArchSpec { width: 0.0625, ..ArchSpec::new("resnet18") };
    let graph = spec.build().unwrap();
    let mut card = Card::new(spec, "untrained").unwrap();
    card.licence = Some("CC0-1.0".into());
    save_backbone(&path, &graph, &initialise(&graph, seed), &card).unwrap();
    std::fs::read(&path).unwrap()
}

fn settings(server: &HubServer, cache: &Path) -> Settings {
    Settings { endpoint: server.endpoint(), cache: cache.to_owned(), token: None, offline: false }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn fetch(settings: &Settings, text: &str) -> moco_hub::Result<std::path::PathBuf> {
    Hub::new(settings.clone()).fetch(&reference(text), &mut |_| ())
}

fn refusal(settings: &Settings, text: &str) -> String {
    fetch(settings, text).expect_err(text).to_string()
}
