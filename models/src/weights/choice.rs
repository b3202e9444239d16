//! Which file of a folder holds the backbone, where none is named.

use super::BACKBONE_FILE;

/// Names that settle it, best first: ours, then the one that libraries of models publish under.
const USUAL: [&str; 2] = [BACKBONE_FILE, "model.safetensors"];

/// Endings of files of weights; those of a later group count only where there is none of an earlier.
const ENDINGS: [&[&str]; 2] = [&[".safetensors"], &[".pth", ".pth.tar", ".pt", ".pkl", "pytorch_model.bin"]];

/// Chooses the file of weights among the names in a folder or a repository: `backbone.safetensors`, else
/// `model.safetensors`, else the only safetensors file, else the only PyTorch or Detectron2 file. Names with a `/` are
/// in folders below and do not count.
///
/// # Errors
/// What there is, and that one has to be named, if that does not settle it.
pub fn choose_weights<S: AsRef<str>>(names: &[S]) -> Result<&str, String> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).filter(|name| !name.contains('/')).collect();
    if let Some(usual) = USUAL.iter().find_map(|usual| names.iter().find(|name| *name == usual)) {
        return Ok(usual);
    }
    for group in ENDINGS {
        let mut found: Vec<&str> =
            names.iter().copied().filter(|n| group.iter().any(|end| n.to_lowercase().ends_with(end))).collect();
        found.sort_unstable();
        match found[..] {
            [] => {}
            [only] => return Ok(only),
            _ => return Err(format!("holds several files of weights, name one of them: {}", found.join(", "))),
        }
    }
    let mut names = names;
    names.sort_unstable();
    let shown = names[..names.len().min(12)].join(", ");
    let more = if names.len() > 12 { format!(" and {} more", names.len() - 12) } else { String::new() };
    let there = if names.is_empty() { "is empty".to_owned() } else { format!("holds {shown}{more}") };
    Err(format!("has no file of weights ({BACKBONE_FILE}, or one that ends in .safetensors, .pth or .pkl): it {there}"))
}

#[cfg(test)]
mod tests {
    use super::choose_weights;

    #[test]
    fn the_usual_names_come_first_and_a_single_file_needs_no_name() {
        for (names, chosen) in [
            (&["README.md", "model.safetensors", "backbone.safetensors"][..], "backbone.safetensors"),
            (&["pytorch_model.bin", "model.safetensors", "other.safetensors"], "model.safetensors"),
            (&["config.json", "r50.safetensors", "r50.pth"], "r50.safetensors"),
            (
                &["README.md", "moco_v2_800ep_pretrain.pth.tar", "sub/model.safetensors"],
                "moco_v2_800ep_pretrain.pth.tar",
            ),
            (&["R-50.pkl", "R-50.yaml"], "R-50.pkl"),
        ] {
            assert_eq!(choose_weights(names), Ok(chosen));
        }
    }

    #[test]
    fn doubt_lists_what_there_is() {
        let several = choose_weights(&["b.safetensors", "a.safetensors", "c.pth"]).unwrap_err();
        assert!(several.contains("a.safetensors, b.safetensors") && !several.contains("c.pth"), "{several}");
        let none = choose_weights(&["README.md", "deep/model.safetensors"]).unwrap_err();
        assert!(none.contains("it holds README.md") && !none.contains("deep"), "{none}");
        assert!(choose_weights::<&str>(&[]).unwrap_err().contains("is empty"));
    }
}
