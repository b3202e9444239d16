//! Names of classes beside the masks: `classes.txt` with a name a line, or `classes.csv` with a number and a name.

use std::path::Path;

use crate::{Error, Result};

/// Names from `classes.txt` or `classes.csv` in the data's folder, in the order of their numbers; empty without one.
pub(super) fn find(root: &Path) -> Result<Vec<String>> {
    for name in ["classes.txt", "classes.csv"] {
        let path = root.join(name);
        if path.is_file() {
            return read_class_names(&path);
        }
    }
    Ok(Vec::new())
}

/// Reads names of classes: one a line, or, in a `.csv`, lines of `number,name` below a header. Numbers that are left
/// out get the name `class N`.
///
/// # Errors
/// [`Error::Format`] with the line.
pub fn read_class_names(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let text = text.trim_start_matches('\u{feff}');
    let numbered = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let mut names: Vec<Option<String>> = Vec::new();
    for (i, line) in text.lines().enumerate().skip(usize::from(numbered)) {
        let bad = |reason: String| Error::format(path, format!("line {}: {reason}", i + 1));
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (number, name) = match (numbered, line.split_once(',')) {
            (false, _) => (names.len(), line),
            (true, Some((number, name))) => {
                let number = number.trim().trim_matches('"').parse();
                let number = number.map_err(|_| bad(format!("`{line}`: expected a number, a comma and a name")))?;
                (number, name.trim().trim_matches('"'))
            }
            (true, None) => return Err(bad(format!("`{line}`: expected a number, a comma and a name"))),
        };
        if number > 254 {
            return Err(bad(format!("class {number}: masks hold classes from 0 to 254, and 255 for ignored pixels")));
        }
        if names.iter().flatten().any(|known| known == name) {
            return Err(bad(format!("the name `{name}` is given twice")));
        }
        if names.len() <= number {
            names.resize(number + 1, None);
        }
        if names[number].replace(name.to_owned()).is_some() {
            return Err(bad(format!("the number {number} is given twice")));
        }
    }
    if names.is_empty() {
        return Err(Error::format(path, "names no class"));
    }
    let named = |(i, name): (usize, Option<String>)| name.unwrap_or_else(|| format!("class {i}"));
    Ok(names.into_iter().enumerate().map(named).collect())
}
