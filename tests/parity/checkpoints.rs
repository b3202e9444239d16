//! Checkpoints: what `torch.save` wrote is read as PyTorch reads it; what is malicious or cut off is refused.

use std::path::{Path, PathBuf};

/// A checkpoint: `<stem>.expected.safetensors` or, for `<stem>_legacy` and `<stem>_zip`, that of the stem holds what
/// is in it; one whose name begins with `malicious` or `truncated` must be refused.
pub fn check(path: &Path) -> Result<String, String> {
    let name = file_name(path);
    if name.starts_with("malicious") || name.starts_with("truncated") {
        return Err("not checked yet".into());
    }
    let _expected = expected_of(path).ok_or("a file of unknown kind: no .expected.safetensors says what is in it")?;
    Err("not checked yet".into())
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

/// A JSON map from our (torchvision's) names to Detectron2's.
pub fn check_key_map(path: &Path) -> Result<String, String> {
    Err(format!("{}: not checked yet", path.display()))
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
