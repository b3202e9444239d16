//! What was noticed while annotations were read: harmless things counted, problems listed.

use std::path::Path;

use crate::{Error, Result};

/// Things that were put right, each kind counted once with its first place.
#[derive(Debug, Default)]
pub(super) struct Notes {
    kinds: Vec<(&'static str, usize, String)>,
}

impl Notes {
    /// Counts one of `what`, seen at `place`.
    pub fn count(&mut self, what: &'static str, place: impl FnOnce() -> String) {
        match self.kinds.iter_mut().find(|(kind, ..)| *kind == what) {
            Some((_, count, _)) => *count += 1,
            None => self.kinds.push((what, 1, place())),
        }
    }

    /// One line a kind.
    pub fn into_lines(self) -> Vec<String> {
        self.kinds.into_iter().map(|(what, count, first)| format!("{count} × {what}; the first: {first}")).collect()
    }
}

/// Everything that is wrong with an annotation file or folder: the first few in full, the rest counted.
#[derive(Debug, Default)]
pub(super) struct Problems {
    shown: Vec<String>,
    count: usize,
}

/// Problems shown in full.
const SHOWN: usize = 8;

impl Problems {
    pub fn add(&mut self, problem: String) {
        self.count += 1;
        if self.shown.len() < SHOWN {
            self.shown.push(problem);
        }
    }

    /// An error about `path` if there was any problem.
    pub fn finish(self, path: &Path) -> Result<()> {
        let more = match self.count - self.shown.len() {
            0 => String::new(),
            more => format!("\n  and {more} more"),
        };
        match (self.count, self.shown.first()) {
            (0, _) | (_, None) => Ok(()),
            (1, Some(only)) => Err(Error::format(path, only.clone())),
            (count, _) => Err(Error::format(path, format!("{count} problems:\n  {}{more}", self.shown.join("\n  ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_and_problems_are_listed_up_to_a_few() {
        let mut notes = Notes::default();
        for i in 0..3 {
            notes.count("boxes clipped", || format!("line {i}"));
        }
        notes.count("boxes skipped", || "line 9".into());
        assert_eq!(
            notes.into_lines(),
            ["3 × boxes clipped; the first: line 0", "1 × boxes skipped; the first: line 9"]
        );
        assert!(Problems::default().finish(Path::new("a")).is_ok());
        let mut problems = Problems::default();
        (0..10).for_each(|i| problems.add(format!("line {i}: bad")));
        let error = problems.finish(Path::new("a.xml")).unwrap_err().to_string();
        assert!(error.starts_with("a.xml: 10 problems:\n  line 0: bad") && error.ends_with("and 2 more"), "{error}");
    }
}
