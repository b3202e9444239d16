//! The recipes that come with the program.

use std::path::Path;

use super::Recipe;
use crate::{Error, Result};

/// A recipe that comes with the program.
#[derive(Clone, Copy, Debug)]
pub struct BuiltIn {
    /// Its name for `--recipe`.
    pub name: &'static str,
    /// Its commented TOML.
    pub toml: &'static str,
}

const BUILT_IN: [BuiltIn; 3] = [
    BuiltIn { name: "moco-v1", toml: include_str!("../../recipes/moco-v1.toml") },
    BuiltIn { name: "moco-v2", toml: include_str!("../../recipes/moco-v2.toml") },
    BuiltIn { name: "cifar-demo", toml: include_str!("../../recipes/cifar-demo.toml") },
];

/// All recipes that come with the program.
pub fn builtins() -> &'static [BuiltIn] {
    &BUILT_IN
}

/// One of them by name.
///
/// # Errors
/// [`Error::Invalid`] with the names there are.
pub fn builtin(name: &str) -> Result<&'static BuiltIn> {
    BUILT_IN.iter().find(|b| b.name == name).ok_or_else(|| {
        let names: Vec<_> = BUILT_IN.iter().map(|b| b.name).collect();
        Error::Invalid(format!(
            "there is no recipe `{name}`: give one of {} or the path of a TOML file (`moco-train recipes moco-v2` \
             prints one to start from)",
            names.join(", ")
        ))
    })
}

impl BuiltIn {
    /// Parses it.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn recipe(&self) -> Result<Recipe> {
        Recipe::parse(self.toml, Path::new(self.name))
    }
}
