//! Changing single values of a recipe before it is checked: `--lr 0.06`, `--set optim.lr=0.06`.

use std::path::Path;

use toml::{Table, Value};

use super::{Recipe, builtin};
use crate::{Error, Result};

/// Changes, applied in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    changes: Vec<(String, Value)>,
}

impl Overrides {
    /// Sets a dotted key.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.changes.push((key.to_string(), value.into()));
    }

    /// Sets from `key=value`, where the value is TOML and a word that is not TOML is a string.
    ///
    /// # Errors
    /// [`Error::Invalid`] without `=`.
    pub fn set_text(&mut self, assignment: &str) -> Result<()> {
        let (key, text) = assignment.split_once('=').ok_or_else(|| {
            Error::Invalid(format!("`--set {assignment}`: expected KEY=VALUE, for example `--set optim.lr=0.06`"))
        })?;
        let text = text.trim();
        let value = match toml::from_str::<Table>(&format!("value = {text}")) {
            Ok(mut table) if table.len() == 1 => table.remove("value").expect("the only key"),
            _ => Value::String(text.to_string()),
        };
        self.set(key.trim(), value);
        Ok(())
    }

    /// Opens a recipe (a built-in name, or the path of a TOML file), changes it and checks it.
    ///
    /// # Errors
    /// [`Error::Recipe`] naming the key that does not exist, has another type or makes no sense.
    pub fn apply(&self, name_or_path: &str) -> Result<Recipe> {
        let path = Path::new(name_or_path);
        let is_path = path.extension().is_some() || name_or_path.contains(std::path::MAIN_SEPARATOR);
        let text = if is_path {
            std::fs::read_to_string(path).map_err(Error::io(path))?
        } else {
            builtin(name_or_path)?.toml.to_string()
        };
        // The file as it is must be a recipe: its mistakes are reported with their lines.
        let mut recipe: Recipe = toml::from_str(&text).map_err(|e| Error::format(path, e.to_string()))?;
        // With what the file leaves to defaults, so that it can be changed too.
        let mut table = Table::try_from(&recipe).map_err(|e| Error::format(path, e.to_string()))?;
        for (key, value) in &self.changes {
            replace(&mut table, key, value)?;
            // One at a time, so that the change that is no value of its key is the one that is named.
            recipe = Value::Table(table.clone()).try_into().map_err(|e: toml::de::Error| Error::Recipe {
                key: key.clone(),
                reason: format!("`{value}`: {}", e.message()),
            })?;
        }
        recipe.validate()?;
        Ok(recipe)
    }
}

fn replace(table: &mut Table, key: &str, value: &Value) -> Result<()> {
    let wrong = |reason: String| Error::Recipe { key: key.to_string(), reason };
    let mut place = &mut *table;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let known = place.keys().cloned().collect::<Vec<_>>().join(", ");
        let slot = place.get_mut(part).ok_or_else(|| wrong(format!("there is no `{part}` here; there is {known}")))?;
        if parts.peek().is_some() {
            place = slot.as_table_mut().ok_or_else(|| wrong(format!("`{part}` is a value, not a section")))?;
            continue;
        }
        *slot = match (&*slot, value) {
            (Value::Table(_), _) => return Err(wrong("is a section; name one of its values".into())),
            (Value::Float(_), Value::Integer(i)) => Value::Float(*i as f64),
            (old, new) if old.same_type(new) => new.clone(),
            (old, new) => {
                return Err(wrong(format!("expected {}, got {} `{new}`", old.type_str(), new.type_str())));
            }
        };
        return Ok(());
    }
    Err(wrong("the key is empty".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(assignments: &[&str]) -> Result<Recipe> {
        let mut overrides = Overrides::default();
        for assignment in assignments {
            overrides.set_text(assignment)?;
        }
        overrides.apply("moco-v2")
    }

    #[test]
    fn values_of_every_type_can_be_replaced() {
        let r = apply(&[
            "optim.lr=1",
            "optim.batch=48",
            "model.arch=resnet18",
            "method.symmetric=true",
            "augment.size=[96, 64]",
            "schedule.kind=\"constant\"",
        ])
        .unwrap();
        assert_eq!((r.optim.lr, r.optim.batch, r.model.arch.as_str(), r.augment.size), (1.0, 48, "resnet18", [96, 64]));
        assert!(r.method.symmetric && r.schedule.kind == crate::schedule::Kind::Constant);
    }

    #[test]
    fn wrong_keys_types_and_values_are_named() {
        for (assignment, parts) in [
            ("optim.rate=0.1", vec!["optim.rate", "weight_decay"]),
            ("optim.lr=fast", vec!["optim.lr", "float", "fast"]),
            ("optim.batch=2.5", vec!["optim.batch", "integer"]),
            ("optim=3", vec!["optim", "section"]),
            ("schedule.kind=sine", vec!["schedule.kind", "cosine"]),
            ("optim.batch=-4", vec!["optim.batch"]),
            ("method.temperature=0", vec!["method.temperature"]),
            ("nothing", vec!["KEY=VALUE"]),
        ] {
            let message = apply(&[assignment]).unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "`{assignment}` gave `{message}`, which lacks `{part}`");
            }
        }
    }
}
