//! Content: what comes out of a repository, and what goes into large-file storage.

use serde_json::Value;

use super::http::{Answer, Request};
use super::{Content, Repository, State, sha256};

impl State {
    /// The repository, if the caller may see it.
    pub(super) fn repository(&self, id: &str, authorised: bool) -> Result<&Repository, Answer> {
        match self.repositories.get(id) {
            Some(repository) if !repository.private || authorised => Ok(repository),
            // A Hub does not tell strangers which of the two it is.
            _ if !authorised => Err(Answer::error(401, "RepoNotFound", "Invalid username or password.")),
            _ => Err(Answer::error(404, "RepoNotFound", "Repository not found")),
        }
    }

    /// A file of a repository: the bytes, or a redirect to where large files lie.
    pub(super) fn resolve(
        &mut self,
        request: &Request,
        (id, revision, name): &(String, String, String),
        authorised: bool,
        storage: &str,
    ) -> Answer {
        let repository = match self.repository(id, authorised) {
            Ok(repository) => repository,
            Err(answer) => return answer,
        };
        if repository.gated && !authorised {
            return Answer::error(401, "GatedRepo", "Access to this model is restricted.");
        }
        let Some((commit, files)) = repository.at(revision) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let commit = commit.to_owned();
        let Some(file) = files.get(name).cloned() else {
            return Answer::error(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit);
        };
        match file.content {
            Content::Regular(bytes) => {
                let etag = format!("\"{}\"", file.etag);
                self.content(request, bytes).with("X-Repo-Commit", commit).with("ETag", etag)
            }
            Content::Lfs { oid, size } => Answer::new(302, Vec::new())
                .with("X-Repo-Commit", commit)
                .with("X-Linked-Etag", format!("\"{oid}\""))
                .with("X-Linked-Size", size.to_string())
                .with("Location", format!("{storage}/storage/{oid}")),
        }
    }

    /// Content of large-file storage, wrong where the test wants it so.
    pub(super) fn stored(&mut self, request: &Request, oid: &str) -> Answer {
        let Some(mut bytes) = self.lfs.get(oid).cloned() else {
            return Answer::error(404, "", "no such object");
        };
        if self.corrupt.contains(oid) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        self.content(request, bytes).with("ETag", "\"of-the-storage\"")
    }

    fn content(&mut self, request: &Request, bytes: Vec<u8>) -> Answer {
        let total = bytes.len();
        let range = request.header("range").filter(|_| !self.no_ranges).and_then(|range| {
            let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
            Some((start.parse::<usize>().ok()?, end.parse::<usize>().map_or(total, |end| end + 1).min(total)))
        });
        let mut answer = match range {
            Some((start, end)) if start < end => Answer::new(206, bytes[start..end].to_vec())
                .with("Content-Range", format!("bytes {start}-{}/{total}", end - 1)),
            Some(_) => Answer::error(416, "", "Range Not Satisfiable"),
            None => Answer::new(200, bytes),
        };
        if request.method == "GET" && self.break_off > 0 && answer.body.len() > 1 {
            self.break_off -= 1;
            answer.break_after = Some(answer.body.len() / 2);
        }
        answer.with("Accept-Ranges", "bytes")
    }

    /// An upload, or a part of one.
    pub(super) fn receive(&mut self, oid: &str, part: usize, body: &[u8]) -> Answer {
        if part > 0 {
            self.parts.insert((oid.to_owned(), part), body.to_vec());
            return Answer::new(200, Vec::new()).with("ETag", format!("\"part-{part}\""));
        }
        if sha256(body) != oid {
            return Answer::error(400, "", "the content has another hash");
        }
        self.lfs.insert(oid.to_owned(), body.to_vec());
        Answer::new(200, Vec::new())
    }

    /// Puts the parts of an upload together.
    pub(super) fn complete(&mut self, oid: &str, body: &[u8]) -> Answer {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut whole = Vec::new();
        for part in request["parts"].as_array().into_iter().flatten() {
            let number = part["partNumber"].as_u64().unwrap_or(0) as usize;
            if part["etag"].as_str().map(|e| e.trim_matches('"')) != Some(&format!("part-{number}")) {
                return Answer::error(400, "", "a part has another etag");
            }
            whole.extend(self.parts.remove(&(oid.to_owned(), number)).unwrap_or_default());
        }
        self.receive(oid, 0, &whole)
    }

    /// Says whether an upload arrived.
    pub(super) fn verify(&self, body: &[u8]) -> Answer {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let stored = self.lfs.get(request["oid"].as_str().unwrap_or_default());
        match stored.filter(|bytes| request["size"].as_u64() == Some(bytes.len() as u64)) {
            Some(_) => Answer::new(200, Vec::new()),
            None => Answer::error(404, "", "the object did not arrive"),
        }
    }
}
