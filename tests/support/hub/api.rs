//! The Hub's JSON API: what a repository holds, and commits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::http::{Answer, Request, unescape};
use super::{Content, Repository, State, is_large};

impl State {
    pub(super) fn api(
        &mut self,
        request: &Request,
        parts: &[&str],
        authorised: bool,
        [endpoint, storage]: [&str; 2],
    ) -> Answer {
        let id = |owner: &str, name: &str| format!("{owner}/{name}");
        match (&*request.method, parts) {
            ("GET", ["api", "whoami-v2"]) if authorised => Answer::json(&json!({ "name": "someone", "type": "user" })),
            ("GET", ["api", "models", owner, name]) => self.info(&id(owner, name), "main", authorised),
            ("GET", ["api", "models", owner, name, "revision", revision]) => {
                self.info(&id(owner, name), &unescape(revision), authorised)
            }
            ("GET", ["api", "models", owner, name, "tree", revision]) => {
                self.tree(&id(owner, name), &unescape(revision), authorised)
            }
            ("POST", ["api", "validate-yaml"]) => Answer::json(&json!({ "errors": [], "warnings": [] })),
            ("POST", _) if !authorised => Answer::error(401, "", "Invalid username or password."),
            ("POST", ["api", "repos", "create"]) => self.create(&body(request), endpoint),
            ("POST", ["api", "models", owner, name, "preupload", _]) => {
                self.preupload(&id(owner, name), &body(request))
            }
            ("POST", [owner, name, "info", "lfs", "objects", "batch"]) => {
                self.batch(&id(owner, name.trim_end_matches(".git")), &body(request), storage)
            }
            ("POST", ["api", "models", owner, name, "commit", revision]) => {
                self.commit_lines(&id(owner, name), &unescape(revision), &request.body, endpoint)
            }
            _ => Answer::error(404, "", "the stand-in does not know this address"),
        }
    }

    fn info(&self, id: &str, revision: &str, authorised: bool) -> Answer {
        let repository = match self.repository(id, authorised) {
            Ok(repository) => repository,
            Err(answer) => return answer,
        };
        let Some((commit, files)) = repository.at(revision) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let siblings: Vec<Value> = files.keys().map(|name| json!({ "rfilename": name })).collect();
        Answer::json(&json!({
            "id": id, "modelId": id, "sha": commit, "private": repository.private, "gated": repository.gated,
            "disabled": false, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
        }))
    }

    fn tree(&self, id: &str, revision: &str, authorised: bool) -> Answer {
        let repository = match self.repository(id, authorised) {
            Ok(repository) => repository,
            Err(answer) => return answer,
        };
        let Some((_, files)) = repository.at(revision) else {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        };
        let entries = files.iter().map(|(path, file)| match &file.content {
            Content::Regular(bytes) => json!({ "type": "file", "path": path, "oid": file.etag, "size": bytes.len() }),
            Content::Lfs { oid, size } => json!({
                "type": "file", "path": path, "oid": oid[..40], "size": size,
                "lfs": { "oid": oid, "size": size, "pointerSize": 134 },
            }),
        });
        Answer::json(&json!(entries.collect::<Vec<_>>()))
    }

    fn create(&mut self, wanted: &Value, endpoint: &str) -> Answer {
        let name = wanted["name"].as_str().unwrap_or_default();
        let owner = wanted["organization"].as_str().unwrap_or("someone");
        let id = format!("{owner}/{name}");
        let url = json!({ "url": format!("{endpoint}/{id}"), "name": id, "id": id });
        if self.repositories.contains_key(&id) {
            let mut answer = Answer::json(&url);
            answer.status = 409;
            return answer;
        }
        let private = wanted["private"].as_bool().unwrap_or(false);
        let mut repository = Repository { private, ..Repository::default() };
        repository.commit("main", vec![(".gitattributes".into(), Content::Regular(b"*.onnx filter=lfs\n".to_vec()))]);
        self.repositories.insert(id, repository);
        Answer::json(&url)
    }

    fn preupload(&self, id: &str, wanted: &Value) -> Answer {
        if !self.repositories.contains_key(id) {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        }
        let files = wanted["files"].as_array().into_iter().flatten().map(|file| {
            let name = file["path"].as_str().unwrap_or_default();
            let mode = if is_large(name) { "lfs" } else { "regular" };
            json!({ "path": name, "uploadMode": mode, "shouldIgnore": false })
        });
        Answer::json(&json!({ "files": files.collect::<Vec<_>>() }))
    }

    fn batch(&self, id: &str, wanted: &Value, storage: &str) -> Answer {
        if !self.repositories.contains_key(id) {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        }
        let objects = wanted["objects"].as_array().into_iter().flatten().map(|object| {
            let (oid, size) = (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64().unwrap_or(0));
            if self.lfs.contains_key(oid) {
                return json!({ "oid": oid, "size": size });
            }
            let verify = json!({ "href": format!("{storage}/verify") });
            let upload = match self.part_size {
                Some(part) if size > part as u64 => {
                    let mut header = json!({ "chunk_size": part.to_string() });
                    for number in 1..=size.div_ceil(part as u64) {
                        header[format!("{number:05}")] = json!(format!("{storage}/upload/{oid}/{number}"));
                    }
                    json!({ "href": format!("{storage}/complete/{oid}"), "header": header })
                }
                _ => json!({ "href": format!("{storage}/upload/{oid}/0") }),
            };
            json!({ "oid": oid, "size": size, "authenticated": true, "actions": { "upload": upload, "verify": verify } })
        });
        Answer::json(&json!({ "transfer": "basic", "objects": objects.collect::<Vec<_>>() }))
    }

    /// A commit: one JSON object a line, header first.
    fn commit_lines(&mut self, id: &str, revision: &str, lines: &[u8], endpoint: &str) -> Answer {
        let mut contents = Vec::new();
        let mut summary = String::new();
        for line in String::from_utf8_lossy(lines).lines().filter(|line| !line.trim().is_empty()) {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                return Answer::error(400, "", "a line is not JSON");
            };
            let value = &line["value"];
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str() {
                Some("header") => summary = text("summary"),
                Some("file") => match STANDARD.decode(text("content")) {
                    Ok(bytes) => contents.push((text("path"), Content::Regular(bytes))),
                    Err(_) => return Answer::error(400, "", "the content is not base64"),
                },
                Some("lfsFile") if self.lfs.contains_key(&text("oid")) => {
                    let size = value["size"].as_u64().unwrap_or(0) as usize;
                    contents.push((text("path"), Content::Lfs { oid: text("oid"), size }));
                }
                Some("lfsFile") => return Answer::error(400, "", "the object was not uploaded"),
                _ => return Answer::error(400, "", "an operation the stand-in does not know"),
            }
        }
        let Some(repository) = self.repositories.get_mut(id) else {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        };
        if !repository.refs.contains_key(revision) {
            return Answer::error(404, "RevisionNotFound", "Invalid rev id");
        }
        if summary.is_empty() {
            return Answer::error(400, "", "a commit needs a summary");
        }
        let commit = repository.commit(revision, contents);
        Answer::json(&json!({
            "success": true, "commitOid": commit, "commitUrl": format!("{endpoint}/{id}/commit/{commit}"),
            "hookOutput": "",
        }))
    }
}

fn body(request: &Request) -> Value {
    serde_json::from_slice(&request.body).unwrap_or_default()
}
