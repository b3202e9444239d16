//! Files into a repository: one commit, large files through large-file storage first.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;
use ureq::http::Method;

use crate::fetch::escaped;
use crate::http::{Call, Client, Outgoing, header};
use crate::{Error, Hub, Progress, Reference, Result};

/// Attempts at sending a file, or a part of one.
const ATTEMPTS: u32 = 3;

/// The slowest upload that is waited for, in bytes a second.
const SLOWEST: u64 = 20_000;

/// Bytes of a file by which the Hub judges how to keep it.
const SAMPLE: usize = 512;

/// Media type of git's large-file storage.
const LFS: &str = "application/vnd.git-lfs+json";

/// A file to upload.
#[derive(Clone, Copy, Debug)]
pub struct Upload<'a> {
    /// Name in the repository.
    pub name: &'a str,
    /// Content.
    pub bytes: &'a [u8],
}

/// How files are pushed.
#[derive(Clone, Debug, Default)]
pub struct PushOptions {
    /// Make the repository if it is not there; `Some(true)` makes it private.
    pub create: Option<bool>,
    /// First line of the commit's message.
    pub message: String,
}

/// What a push made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Hash of the commit.
    pub commit: String,
    /// Its page.
    pub url: String,
}

impl Hub {
    /// Writes files to a repository in one commit: all of them, or none.
    ///
    /// # Errors
    /// [`Error::Denied`] without a token that may write, [`Error::NotFound`] if there is no such repository and none was
    /// to be made, [`Error::Network`], [`Error::Answer`]; [`Error::Reference`] if `target` names a file.
    pub fn push(
        &self,
        target: &Reference,
        files: &[Upload<'_>],
        options: &PushOptions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Pushed> {
        let what = target.to_string();
        if let Some(file) = &target.file {
            let reason = format!("names the file `{file}`; files are pushed to a repository");
            return Err(Error::Reference { text: what, reason });
        }
        if self.settings.offline {
            let reason = "offline mode (HF_HUB_OFFLINE) is on, so nothing can be pushed".into();
            return Err(Error::Network { what, reason });
        }
        if self.settings.token.is_none() {
            let reason = "pushing needs a token that may write: set HF_TOKEN".into();
            return Err(Error::Denied { what, reason });
        }
        let push = Push { client: Client::new(&self.settings), target, what };
        if let Some(private) = options.create {
            push.create(private)?;
        }
        let large = push.large(files)?;
        let hashes: Vec<Option<String>> =
            files.iter().zip(&large).map(|(file, large)| large.then(|| sha256(file.bytes))).collect();
        push.store(files, &hashes, progress)?;
        push.commit(files, &hashes, options)
    }
}

struct Push<'a> {
    client: Client,
    target: &'a Reference,
    what: String,
}

impl Push<'_> {
    fn post<T: serde::de::DeserializeOwned>(&self, path: &str, media: &str, body: &[u8]) -> Result<T> {
        let url = self.client.url(path);
        let headers = [("Content-Type", media), ("Accept", media)];
        let plain = [("Content-Type", media)];
        let headers: &[_] = if media == LFS { &headers } else { &plain };
        self.client.json(&Call { headers, ..Call::new(Method::POST, &url, &self.what) }, Some(body))
    }

    fn unexpected(&self, reason: impl Into<String>) -> Error {
        Error::Answer { what: self.what.clone(), reason: reason.into() }
    }

    /// Makes the repository unless it is there.
    fn create(&self, private: bool) -> Result<()> {
        let (owner, name) = self.target.repository.split_once('/').expect("a repository is owner/name");
        let body = json!({ "name": name, "organization": owner, "private": private, "type": "model" }).to_string();
        let url = self.client.url("api/repos/create");
        let headers = [("Content-Type", "application/json")];
        let call = Call { headers: &headers, ..Call::new(Method::POST, &url, &self.what) };
        let answer = self.client.send(&call, &mut Outgoing::Bytes { bytes: body.as_bytes(), sent: &mut |_| () })?;
        // 409: it is there already.
        if answer.status().as_u16() == 409 {
            return Ok(());
        }
        self.client.check(answer, &self.what).map(drop)
    }

    /// Which files go to large-file storage: the Hub decides.
    fn large(&self, files: &[Upload<'_>]) -> Result<Vec<bool>> {
        #[derive(Deserialize)]
        struct Answer {
            files: Vec<Mode>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Mode {
            path: String,
            upload_mode: String,
        }
        let described = files.iter().map(|file| {
            let sample = STANDARD.encode(&file.bytes[..file.bytes.len().min(SAMPLE)]);
            json!({ "path": file.name, "sample": sample, "size": file.bytes.len() })
        });
        let body = json!({ "files": described.collect::<Vec<_>>() }).to_string();
        let path = format!("api/models/{}/preupload/{}", self.target.repository, escaped(&self.target.revision));
        let answer: Answer = self.post(&path, "application/json", body.as_bytes())?;
        let mode = |file: &Upload<'_>| {
            let mode = answer.files.iter().find(|mode| mode.path == file.name);
            match mode.map(|mode| &*mode.upload_mode) {
                // An empty file has nothing to store.
                Some("lfs") => Ok(!file.bytes.is_empty()),
                Some("regular") => Ok(false),
                _ => Err(self.unexpected(format!("the Hub does not say how to upload `{}`", file.name))),
            }
        };
        files.iter().map(mode).collect()
    }

    /// Sends what large-file storage lacks.
    fn store(
        &self,
        files: &[Upload<'_>],
        hashes: &[Option<String>],
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let large: Vec<(&Upload<'_>, &String)> =
            files.iter().zip(hashes).filter_map(|(file, hash)| Some((file, hash.as_ref()?))).collect();
        if large.is_empty() {
            return Ok(());
        }
        let objects = large.iter().map(|(file, hash)| json!({ "oid": hash, "size": file.bytes.len() }));
        let body = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "ref": { "name": self.target.revision },
            "objects": objects.collect::<Vec<_>>(),
        })
        .to_string();
        let path = format!("{}.git/info/lfs/objects/batch", self.target.repository);
        let answer: Batch = self.post(&path, LFS, body.as_bytes())?;
        for (file, hash) in large {
            let object = answer.objects.iter().find(|object| object.oid == **hash);
            let object = object.ok_or_else(|| self.unexpected(format!("the storage forgets `{}`", file.name)))?;
            if let Some(error) = &object.error {
                return Err(self.unexpected(format!("the storage refuses `{}`: {}", file.name, error.message)));
            }
            if let Some(actions) = &object.actions {
                self.send(file, hash, actions, progress)?;
            }
        }
        Ok(())
    }

    fn send(
        &self,
        file: &Upload<'_>,
        hash: &str,
        actions: &Actions,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<()> {
        let total = file.bytes.len() as u64;
        let upload = &actions.upload;
        match upload
            .header
            .get("chunk_size")
            .map(|size| size.as_str().and_then(|s| s.parse::<usize>().ok()).or(size.as_u64().map(|s| s as usize)))
        {
            None => {
                self.put(&upload.href, file, file.bytes, &mut |sent| {
                    progress(Progress { file: file.name, done: sent, total });
                })?;
            }
            Some(size) => {
                let size =
                    size.filter(|size| *size > 0).ok_or_else(|| self.unexpected("the size of a part is no number"))?;
                let parts: Vec<&[u8]> = file.bytes.chunks(size).collect();
                let urls = self.urls_of_parts(&upload.header, parts.len())?;
                let mut etags = Vec::new();
                for (number, (part, url)) in parts.iter().zip(&urls).enumerate() {
                    let before = (number * size) as u64;
                    let etag = self.put(url, file, part, &mut |sent| {
                        progress(Progress { file: file.name, done: before + sent, total });
                    })?;
                    let etag = etag.ok_or_else(|| self.unexpected("the storage gives no ETag for a part"))?;
                    etags.push(json!({ "partNumber": number + 1, "etag": etag }));
                }
                self.tell(&upload.href, &json!({ "oid": hash, "parts": etags }))?;
            }
        }
        match &actions.verify {
            Some(verify) => self.tell(&verify.href, &json!({ "oid": hash, "size": file.bytes.len() })),
            None => Ok(()),
        }
    }

    /// Addresses of the parts, which stand among the headers under their numbers.
    fn urls_of_parts<'a>(&self, header: &'a Map<String, Value>, parts: usize) -> Result<Vec<&'a str>> {
        let mut numbered: Vec<(u64, &str)> =
            header.iter().filter_map(|(name, url)| Some((name.parse().ok()?, url.as_str()?))).collect();
        numbered.sort_unstable();
        if numbered.len() != parts {
            return Err(self.unexpected(format!("the storage wants {} parts, there are {parts}", numbered.len())));
        }
        Ok(numbered.into_iter().map(|(_, url)| url).collect())
    }

    /// Sends bytes to where the storage wants them; gives the ETag of the answer.
    fn put(&self, url: &str, file: &Upload<'_>, bytes: &[u8], sent: &mut dyn FnMut(u64)) -> Result<Option<String>> {
        let what = format!("{} ({})", self.what, file.name);
        let patience = Duration::from_secs(60 + bytes.len() as u64 / SLOWEST);
        let call = Call { patience, ..Call::new(Method::PUT, url, &what) };
        let mut attempt = 1;
        loop {
            match self.client.send(&call, &mut Outgoing::Bytes { bytes, sent }) {
                Err(Error::Network { reason, .. }) if attempt < ATTEMPTS => {
                    log::info!("{what}: {reason}; attempt {attempt} of {ATTEMPTS}");
                    std::thread::sleep(Duration::from_millis(200) * 2u32.pow(attempt));
                    attempt += 1;
                }
                answer => {
                    let answer = self.client.check(answer?, &what)?;
                    return Ok(header(&answer, "ETag").map(str::to_owned));
                }
            }
        }
    }

    fn tell(&self, url: &str, body: &Value) -> Result<()> {
        let headers = [("Content-Type", LFS), ("Accept", LFS)];
        let call = Call { headers: &headers, ..Call::new(Method::POST, url, &self.what) };
        let body = body.to_string();
        let answer = self.client.send(&call, &mut Outgoing::Bytes { bytes: body.as_bytes(), sent: &mut |_| () })?;
        self.client.check(answer, &self.what).map(drop)
    }

    fn commit(&self, files: &[Upload<'_>], hashes: &[Option<String>], options: &PushOptions) -> Result<Pushed> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Answer {
            commit_oid: String,
            commit_url: String,
        }
        let header = json!({ "key": "header", "value": { "summary": options.message, "description": "" } });
        let lines = files.iter().zip(hashes).map(|(file, hash)| match hash {
            Some(hash) => {
                let value = json!({ "path": file.name, "algo": "sha256", "oid": hash, "size": file.bytes.len() });
                json!({ "key": "lfsFile", "value": value })
            }
            None => {
                let content = STANDARD.encode(file.bytes);
                json!({ "key": "file", "value": { "content": content, "path": file.name, "encoding": "base64" } })
            }
        });
        let body: String = std::iter::once(header).chain(lines).map(|line| format!("{line}\n")).collect();
        let path = format!("api/models/{}/commit/{}", self.target.repository, escaped(&self.target.revision));
        let answer: Answer = self.post(&path, "application/x-ndjson", body.as_bytes())?;
        Ok(Pushed { commit: answer.commit_oid, url: answer.commit_url })
    }
}

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    /// Absent for what the storage has already.
    actions: Option<Actions>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

#[derive(Deserialize)]
struct Actions {
    upload: Action,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Map<String, Value>,
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
