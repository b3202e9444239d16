//! What kind of recording a file is, told by its content and, for checkpoints, by its name.

use std::path::Path;

use moco_tests::reference::Reference;

/// Kinds of files a folder of references may hold.
#[derive(Debug, PartialEq)]
pub enum Kind {
    /// Results of image operations.
    Augment,
    /// Features and gradients of a backbone.
    Backbone,
    /// A file `torch.save` wrote, or one that only looks like it.
    Checkpoint,
    /// The tensors of a checkpoint, to compare with.
    Expected,
    /// JSON: names of one format to names of another.
    KeyMap,
    /// JSON: values of the generator.
    Generator,
    /// Losses and their gradients.
    Losses,
    /// Training steps.
    Trace,
    /// A README.
    Text,
    /// Known, and not reproduced by this version; with what it is.
    NotYet(String),
}

/// Families of backbones that this version does not build.
const BACKBONES_NOT_YET: [&str; 2] = ["convnext", "vit"];

/// Kinds of traces that this version does not train.
const TRACES_NOT_YET: [&str; 1] = ["v3"];

/// Tells the kind of a file.
///
/// # Errors
/// If it is of none that is known, or cannot be read.
pub fn of(path: &Path) -> Result<Kind, String> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name == "README.md" {
        Ok(Kind::Text)
    } else if name.ends_with(".expected.safetensors") {
        Ok(Kind::Expected)
    } else if name.ends_with(".safetensors") {
        of_reference(&Reference::open(path)?)
    } else if name.ends_with(".pth") || name.ends_with(".pth.tar") || name.ends_with(".pt") {
        Ok(Kind::Checkpoint)
    } else if name.ends_with(".json") {
        of_json(path)
    } else {
        Err(format!("a file of unknown kind: nothing here checks `{name}`"))
    }
}

fn of_reference(file: &Reference) -> Result<Kind, String> {
    let (kind, arch) = (file.text("kind"), file.text("arch"));
    match (kind.as_deref(), arch.as_deref()) {
        (Some("moco_v1v2" | "moco_cifar_demo"), _) => Ok(Kind::Trace),
        (Some("losses"), _) => Ok(Kind::Losses),
        (Some(kind), arch) if TRACES_NOT_YET.contains(&kind) => {
            Ok(Kind::NotYet(format!("trace of kind {kind} ({})", arch.unwrap_or("no arch"))))
        }
        (Some(kind), _) => Err(format!("a file of unknown kind `{kind}`")),
        (None, Some(arch)) if BACKBONES_NOT_YET.iter().any(|family| arch.starts_with(family)) => {
            Ok(Kind::NotYet(format!("backbone {arch}")))
        }
        (None, Some(_)) if file.text("reference").is_some() => Ok(Kind::Backbone),
        (None, None) if file.has("source") && file.text("reference").is_some() => Ok(Kind::Augment),
        _ => Err(
            "a file of unknown kind: its metadata has no `kind`, and it is neither a backbone (`arch`, `reference`) \
                  nor a set of image operations (`reference`, tensor `source`)"
                .into(),
        ),
    }
}

fn of_json(path: &Path) -> Result<Kind, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("not JSON: {e}"))?;
    let object = value.as_object().filter(|o| !o.is_empty()).ok_or("a JSON file of unknown kind: not an object")?;
    if object.keys().all(|k| k.starts_with("fnv1a(") || k.starts_with("uniform(")) {
        Ok(Kind::Generator)
    } else if object.values().all(serde_json::Value::is_string) {
        Ok(Kind::KeyMap)
    } else {
        Err("a JSON file of unknown kind: neither values of the generator nor a map of names".into())
    }
}
