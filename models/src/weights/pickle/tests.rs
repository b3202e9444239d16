//! Checkpoints that PyTorch wrote, ones that lie, and ones that are damaged at every place.

use std::fs;

use super::*;
use crate::weights::SafetensorsFile;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/parity/checkpoints")
}

/// The recorded checkpoints: (file, what it must hold).
fn recorded() -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if let Some(stem) = name.strip_suffix(".expected.safetensors") {
            for end in ["_legacy.pth", "_legacy.pth.tar", "_zip.pth", "_zip.pth.tar"] {
                let checkpoint = fixtures().join(format!("{stem}{end}"));
                if checkpoint.exists() {
                    found.push((checkpoint, path.clone()));
                }
            }
        }
    }
    assert!(found.len() >= 4, "the recorded checkpoints are missing");
    found
}

#[test]
fn recorded_checkpoints_hold_exactly_the_expected_tensors() {
    for (path, expected) in recorded() {
        let checkpoint = Checkpoint::open(&path).unwrap();
        let expected = SafetensorsFile::open(&expected).unwrap();
        let (mut got, mut want) = (checkpoint.names(), expected.names());
        got.sort_unstable();
        want.sort_unstable();
        assert_eq!(got, want, "{}", path.display());
        for name in got {
            assert_eq!(checkpoint.tensor(name).unwrap(), expected.tensor(name).unwrap(), "{name}");
        }
    }
}
