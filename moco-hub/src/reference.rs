//! `hf://owner/name[@revision][/file]`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

const SCHEME: &str = "hf://";

/// A repository in a Hub, or a file in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// `owner/name`.
    pub repository: String,
    /// Branch, tag or commit; `main` unless given.
    pub revision: String,
    /// File in the repository, with `/` between folders; none leaves the choice to what the repository holds.
    pub file: Option<String>,
}

impl Reference {
    /// Whether a text means a Hub and not a local path.
    pub fn is(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Whether the revision is a full commit hash, which never moves.
    pub(crate) fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// Whether a text is the hash of a commit: 40 hexadecimal digits.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let wrong = |reason: &str| Error::Reference { text: text.to_owned(), reason: reason.to_owned() };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("does not begin with hf://"))?;
        let (owner, rest) = rest.split_once('/').ok_or_else(|| wrong("names no repository"))?;
        let end = rest.find(['@', '/']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        for (part, what) in [(owner, "owner"), (name, "name")] {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
            if part.is_empty() || part.len() > 96 || !part.bytes().all(plain) || part.bytes().all(|b| b == b'.') {
                return Err(wrong(&format!("`{part}` cannot be the {what} of a repository")));
            }
            // Two dashes stand for the `/` in the names of the cache's folders.
            if part.contains("--") || part.contains("..") {
                return Err(wrong(&format!("`{part}`: the {what} of a repository has no `--` and no `..`")));
            }
        }
        let (revision, file) = match rest.strip_prefix('@') {
            None => ("main", rest),
            Some(rest) => {
                let end = end_of_revision(rest);
                rest.split_at(end)
            }
        };
        let revision = revision.replace("%2F", "/").replace("%2f", "/");
        if revision.is_empty() || !is_path(&revision) {
            return Err(wrong(&format!("`{revision}` cannot be a revision")));
        }
        let file = match file.strip_prefix('/') {
            None | Some("") => None,
            Some(file) if is_path(file) => Some(file.to_owned()),
            Some(file) => return Err(wrong(&format!("`{file}` cannot be a file of a repository"))),
        };
        Ok(Reference { repository: format!("{owner}/{name}"), revision, file })
    }
}

/// A revision ends at the next `/`, except those of pull requests and conversions, `refs/pr/1`.
fn end_of_revision(text: &str) -> usize {
    let special = ["refs/pr/", "refs/convert/"].into_iter().find(|start| text.starts_with(start)).map_or(0, str::len);
    text[special..].find('/').map_or(text.len(), |at| special + at)
}

/// Whether a text is a relative path that stays below where it starts.
pub(crate) fn is_path(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    text.split('/').all(part) && !text.contains(['\\', '\0', '?', '#', ':', '%']) && !text.chars().any(char::is_control)
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.repository)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        self.file.iter().try_for_each(|file| write!(f, "/{file}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_understood() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (text, repository, revision, file) in [
            ("hf://a/b", "a/b", "main", None),
            ("hf://a/b/", "a/b", "main", None),
            (
                "hf://timm/resnet50.a1_in1k/model.safetensors",
                "timm/resnet50.a1_in1k",
                "main",
                Some("model.safetensors"),
            ),
            ("hf://a/b@v1.0", "a/b", "v1.0", None),
            ("hf://a/b@v1/x/y.pth.tar", "a/b", "v1", Some("x/y.pth.tar")),
            ("hf://a/b@refs/pr/7/m.safetensors", "a/b", "refs/pr/7", Some("m.safetensors")),
            ("hf://a/b@feature%2Fx/m", "a/b", "feature/x", Some("m")),
            (&format!("hf://a/b@{commit}"), "a/b", commit, None),
            ("hf://a/b/x@y.pth", "a/b", "main", Some("x@y.pth")),
        ] {
            let reference: Reference = text.parse().unwrap();
            let got = (&*reference.repository, &*reference.revision, reference.file.as_deref());
            assert_eq!(got, (repository, revision, file), "{text}");
            assert_eq!(reference.is_commit(), revision == commit);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_form_that_is() {
        for text in [
            "hf://",
            "hf://a",
            "hf:///b",
            "hf://a/",
            "hf://a/../b",
            "hf://a/b@",
            "hf://a/b@/x",
            "hf://a/b/../../x",
            "hf://a/b//x",
            "hf://a/b@../x",
            "hf://a b/c",
            "hf://a/b--c",
            "hf://a/b/x?y",
            "a/b",
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("hf://owner/name[@revision][/file]"), "{text}: {error}");
        }
    }
}
