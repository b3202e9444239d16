//! Checkpoints: what `torch.save` wrote is read as PyTorch reads it; what is malicious or cut off is refused.

use std::path::{Path, PathBuf};

use moco_models::arch::{ArchSpec, Projector};
use moco_models::export::detectron2_name;
use moco_models::import::{ImportOptions, import};
use moco_models::weights::{Checkpoint, SafetensorsFile, TensorSource};

/// What the recorded malicious files would create if they were run.
const TRACE_OF_EXECUTION: &str = "moco-was-owned";

/// A checkpoint: `<stem>.expected.safetensors` or, for `<stem>_legacy` and `<stem>_zip`, that of the stem holds what
/// is in it; one whose name begins with `malicious` or `truncated` must be refused.
pub fn check(path: &Path) -> Result<String, String> {
    let name = file_name(path);
    if name.starts_with("malicious") || name.starts_with("truncated") {
        return check_refused(path);
    }
    let expected = expected_of(path).ok_or("a file of unknown kind: no .expected.safetensors says what is in it")?;
    let checkpoint = Checkpoint::open(path).map_err(|e| e.to_string())?;
    let expected = SafetensorsFile::open(&expected).map_err(|e| e.to_string())?;
    compare(&checkpoint, &expected)
}

/// Both must hold the same names, types, shapes and bits.
fn compare(got: &dyn TensorSource, expected: &dyn TensorSource) -> Result<String, String> {
    let mut wrong = Vec::new();
    let mut values = 0;
    for name in expected.names() {
        if got.info(name).is_none() {
            wrong.push(format!("`{name}` is missing"));
            continue;
        }
        let want = expected.tensor(name).map_err(|e| e.to_string())?;
        match got.tensor(name) {
            Err(e) => wrong.push(e.to_string()),
            Ok(tensor) if (tensor.dtype, &tensor.shape) != (want.dtype, &want.shape) => wrong.push(format!(
                "`{name}` is {} {:?}, expected {} {:?}",
                tensor.dtype, tensor.shape, want.dtype, want.shape
            )),
            Ok(tensor) if tensor.data != want.data => {
                let at = tensor.data.iter().zip(want.data.iter()).position(|(a, b)| a != b);
                wrong.push(format!("`{name}` differs from byte {at:?} on"));
            }
            Ok(tensor) => values += tensor.shape.iter().product::<usize>(),
        }
    }
    let unexpected = got.names().into_iter().filter(|name| expected.info(name).is_none());
    wrong.extend(unexpected.map(|name| format!("`{name}` is not expected")));
    if wrong.is_empty() {
        Ok(format!("{} tensors, {values} values, equal in every bit", expected.names().len()))
    } else {
        Err(wrong.join("\n"))
    }
}

fn check_refused(path: &Path) -> Result<String, String> {
    let reason = match (Checkpoint::open(path), import(path, &ImportOptions::default())) {
        (Err(reason), Err(_)) => reason.to_string(),
        _ => return Err("was read, but must be refused".into()),
    };
    if Path::new(TRACE_OF_EXECUTION).exists() {
        return Err(format!("was executed: `{TRACE_OF_EXECUTION}` exists"));
    }
    let truncated = file_name(path).starts_with("truncated");
    if truncated && !reason.contains("truncated") && !reason.contains("damaged") {
        return Err(format!("was refused for another reason than its name says: {reason}"));
    }
    let reason = reason.split_once(": ").map_or(reason.as_str(), |(_, text)| text);
    Ok(format!("refused: {}…", reason.chars().take(90).collect::<String>()))
}

/// An expectation: fails if no checkpoint beside it is compared with it.
pub fn check_expected_has_a_checkpoint(path: &Path) -> Result<String, String> {
    let folder = path.parent().ok_or("no folder")?;
    let used = std::fs::read_dir(folder)
        .map_err(|e| e.to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|p| file_name(p).contains(".pt") && expected_of(p).as_deref() == Some(path))
        .count();
    if used == 0 {
        Err("no checkpoint beside it is compared with it".into())
    } else {
        Ok(format!("compared with {used} checkpoints"))
    }
}

/// A JSON map from torchvision's names to Detectron2's: every name is mapped so, and, where the file is called
/// `detectron2_<arch>_keys.json`, the map holds exactly the tensors of that architecture.
pub fn check_key_map(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).map_err(|e| e.to_string())?;
    let mut wrong = Vec::new();
    for (name, expected) in &map {
        let got = detectron2_name(name);
        if expected != &got {
            wrong.push(format!("`{name}` becomes `{got}`, expected {expected}"));
        }
    }
    let file = file_name(path);
    let arch = file.strip_prefix("detectron2_").and_then(|rest| rest.strip_suffix("_keys.json"));
    let arch = arch.filter(|arch| moco_models::arch::names().any(|known| known == *arch));
    if let Some(arch) = arch {
        let projector = match (map.contains_key("fc.weight"), map.contains_key("fc.2.weight")) {
            (true, _) => Projector::Linear { dim: 1 },
            (_, true) => Projector::Mlp { dim: 1 },
            _ => Projector::None,
        };
        let graph = ArchSpec { projector, ..ArchSpec::new(arch) }.build().map_err(|e| e.to_string())?;
        let mut ours: Vec<String> = graph.parameters().into_iter().map(|p| p.name).collect();
        for buffer in graph.buffers() {
            ours.extend(buffer.name.strip_suffix("running_var").map(|norm| format!("{norm}num_batches_tracked")));
            ours.push(buffer.name);
        }
        wrong.extend(ours.iter().filter(|n| !map.contains_key(*n)).map(|n| format!("`{n}` is ours alone")));
        wrong.extend(map.keys().filter(|n| !ours.contains(n)).map(|n| format!("`{n}` is not in our {arch}")));
    }
    if wrong.is_empty() {
        let arch = arch.map_or_else(String::new, |arch| format!(", exactly those of {arch}"));
        Ok(format!("{} names{arch}", map.len()))
    } else {
        Err(wrong.join("\n"))
    }
}

fn expected_of(path: &Path) -> Option<PathBuf> {
    let name = file_name(path);
    let stem = name.split(".pt").next()?;
    let stems = [Some(stem), stem.strip_suffix("_legacy"), stem.strip_suffix("_zip")];
    let candidates = stems.into_iter().flatten().map(|s| path.with_file_name(format!("{s}.expected.safetensors")));
    candidates.into_iter().find(|p| p.is_file())
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}
