//! From a reference to a file in the cache, over the network.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use moco_models::weights::choose_weights;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::Method;

use crate::http::{Call, Client, header};
use crate::reference::{is_commit, is_path};
use crate::{Error, Hub, Progress, Reference, Result};

/// Times that a transfer which broke off is taken up again.
const RESUMPTIONS: u32 = 4;

/// The slowest transfer that is waited for, in bytes a second.
const SLOWEST: u64 = 20_000;

/// What the Hub says of a file before it is transferred.
struct Announced {
    commit: String,
    etag: String,
    size: Option<u64>,
}

impl Announced {
    /// SHA-256 of the content: the etag of a file in large-file storage; that of other files is a hash of git's.
    fn sha256(&self) -> Option<&str> {
        (self.etag.len() == 64).then_some(&self.etag)
    }
}

pub(crate) fn fetch(hub: &Hub, reference: &Reference, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    // A commit never changes: what the cache has of it needs no question.
    if reference.is_commit()
        && let Some(file) = &reference.file
        && let path = hub.store.snapshot(reference, &reference.revision).join(file)
        && path.is_file()
    {
        return Ok(path);
    }
    let client = Client::new(&hub.settings);
    match fetch_online(hub, &client, reference, progress) {
        Err(Error::Network { what, reason }) => match hub.cached(reference, &reason) {
            Ok(path) => {
                log::warn!("{what}: {reason}. The file in the cache is used: {}", path.display());
                Ok(path)
            }
            Err(_) => Err(Error::Network { what, reason }),
        },
        result => result,
    }
}

fn fetch_online(
    hub: &Hub,
    client: &Client,
    reference: &Reference,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<PathBuf> {
    let what = reference.to_string();
    let (file, revision) = match &reference.file {
        Some(file) => (file.clone(), reference.revision.clone()),
        None => {
            let listed = list(client, reference)?;
            let names: Vec<String> = listed.siblings.into_iter().map(|s| s.rfilename).collect();
            let missing = |reason| Error::NotFound { what: what.clone(), reason };
            (choose_weights(&names).map_err(missing)?.to_owned(), listed.sha)
        }
    };
    let url = client.url(&format!("{}/resolve/{}/{}", reference.repository, escaped(&revision), escaped_path(&file)));
    let announced = announced(client, &url, &what)?;
    let blob = hub.store.blob(reference, &announced.etag);
    let snapshot = hub.store.snapshot(reference, &announced.commit).join(&file);
    if !snapshot.is_file() {
        let lock = hub.store.lock(reference, &announced.etag)?;
        if !blob.is_file() {
            download(client, &url, &what, &file, &announced, &blob, progress)?;
        }
        hub.store.link(reference, &announced.commit, &file, &announced.etag)?;
        drop(lock);
    }
    hub.store.remember(reference, &announced.commit)?;
    Ok(snapshot)
}

#[derive(Deserialize)]
struct Listed {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The files of a revision, and its commit.
fn list(client: &Client, reference: &Reference) -> Result<Listed> {
    let what = reference.to_string();
    let url = client.url(&format!("api/models/{}/revision/{}", reference.repository, escaped(&reference.revision)));
    let listed: Listed = client.json(&Call::new(Method::GET, &url, &what), None)?;
    if !is_commit(&listed.sha) {
        return Err(Error::Answer { what, reason: format!("`{}` is not the hash of a commit", listed.sha) });
    }
    Ok(listed)
}

/// Asks for the headers of a file alone. The Hub itself answers the hash; redirects to where the bytes lie are not
/// followed, those within the Hub are.
fn announced(client: &Client, url: &str, what: &str) -> Result<Announced> {
    let headers = [("Accept-Encoding", "identity")];
    let call = Call { headers: &headers, ..Call::new(Method::HEAD, url, what) };
    let (mut commit, mut etag, mut size) = (None, None, None);
    let mut note = |answer: &ureq::http::Response<ureq::Body>| {
        let text = |name| header(answer, name).map(str::to_owned);
        commit = commit.take().or_else(|| text("X-Repo-Commit"));
        etag = etag.take().or_else(|| text("X-Linked-Etag"));
        size = size.take().or_else(|| text("X-Linked-Size"));
    };
    let answer = client.follow(&call, &mut |answer, target| {
        note(answer);
        !target.contains("://") || client.is_ours(target)
    })?;
    let answer = client.check(answer, what)?;
    note(&answer);
    if !answer.status().is_redirection() {
        etag = etag.or_else(|| header(&answer, "ETag").map(str::to_owned));
        size = size.or_else(|| header(&answer, "Content-Length").map(str::to_owned));
    }
    let unexpected = |reason: &str| Error::Answer {
        what: what.to_owned(),
        reason: format!("{url} does not answer as a Hub does: {reason}; is HF_ENDPOINT right?"),
    };
    let etag = etag.ok_or_else(|| unexpected("there is no ETag"))?;
    let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
    // The etag becomes the name of a file.
    if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(unexpected(&format!("`{etag}` is not the hash of a file")));
    }
    let commit = commit.ok_or_else(|| unexpected("there is no X-Repo-Commit"))?;
    if !is_commit(&commit) || !is_path(&commit) {
        return Err(unexpected(&format!("`{commit}` is not the hash of a commit")));
    }
    Ok(Announced { commit, etag, size: size.and_then(|size| size.parse().ok()) })
}

/// Transfers a file to `blob`. What is there of it after an interruption stays beside it and is taken up again.
fn download(
    client: &Client,
    url: &str,
    what: &str,
    file: &str,
    announced: &Announced,
    blob: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let folder = blob.parent().expect("a blob lies in its folder");
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let part = folder.join(format!("{}.moco.incomplete", announced.etag));
    let mut attempt = 0;
    let (hash, len) = loop {
        match append(client, url, what, file, announced, &part, progress) {
            Err(Error::Network { what, reason }) if attempt < RESUMPTIONS => {
                attempt += 1;
                log::info!("{what}: {reason}; going on where it broke off, attempt {attempt} of {RESUMPTIONS}");
                std::thread::sleep(Duration::from_millis(150) * 2u32.pow(attempt));
            }
            result => break result?,
        }
    };
    let damaged = if announced.size.is_some_and(|size| size != len) {
        Some(format!("the Hub announced {} bytes, {len} arrived", announced.size.unwrap_or_default()))
    } else {
        let wrong = announced.sha256().filter(|expected| *expected != hash);
        wrong.map(|expected| format!("SHA-256 is {hash}, the Hub announced {expected}"))
    };
    if let Some(reason) = damaged {
        let _ = fs::remove_file(&part);
        let reason = format!("the file `{file}` that arrived is not the one of the Hub and was thrown away: {reason}");
        return Err(Error::Damaged { what: what.to_owned(), reason });
    }
    fs::rename(&part, blob).map_err(Error::io(blob))
}

/// Transfers what is missing of a file; returns SHA-256 and length of all that is there then.
fn append(
    client: &Client,
    url: &str,
    what: &str,
    file: &str,
    announced: &Announced,
    part: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut done = hash_existing(part, &mut hasher)?;
    let total = announced.size.unwrap_or(0);
    if done == 0 || announced.size != Some(done) {
        let range = format!("bytes={done}-");
        let resumed = [("Accept-Encoding", "identity"), ("Range", range.as_str())];
        let headers = &resumed[..if done > 0 { 2 } else { 1 }];
        let patience = Duration::from_secs(60 + total.saturating_sub(done) / SLOWEST);
        let call = Call { headers, patience, ..Call::new(Method::GET, url, what) };
        let answer = client.check(client.follow(&call, &mut |_, _| true)?, what)?;
        if done > 0 && answer.status().as_u16() != 206 {
            // The server sends all of it again.
            (hasher, done) = (Sha256::new(), 0);
        }
        let io = |cause| Error::Io { path: part.to_owned(), cause };
        let mut out = OpenOptions::new().create(true).write(true).truncate(done == 0).open(part).map_err(io)?;
        std::io::Seek::seek(&mut out, std::io::SeekFrom::Start(done)).map_err(io)?;
        let mut reader = answer.into_body().into_reader();
        let mut block = vec![0; 1 << 16];
        loop {
            let n = reader.read(&mut block).map_err(|e| Error::Network {
                what: what.to_owned(),
                reason: format!("the transfer of `{file}` broke off after {done} bytes: {e}"),
            })?;
            if n == 0 {
                break;
            }
            out.write_all(&block[..n]).map_err(io)?;
            hasher.update(&block[..n]);
            done += n as u64;
            if announced.size.is_some_and(|size| done > size) {
                break;
            }
            progress(Progress { file, done, total });
        }
        out.sync_all().map_err(io)?;
    }
    let hash = hasher.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok((hash, done))
}

fn hash_existing(part: &Path, hasher: &mut Sha256) -> Result<u64> {
    match File::open(part) {
        Ok(mut file) => std::io::copy(&mut file, hasher).map_err(Error::io(part)),
        Err(_) => Ok(0),
    }
}

/// A revision as one segment of an address.
pub(crate) fn escaped(text: &str) -> String {
    escape(text, b"._-~")
}

pub(crate) fn escaped_path(text: &str) -> String {
    escape(text, b"._-~/")
}

fn escape(text: &str, plain: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_escaped() {
        assert_eq!(escaped("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(escaped_path("a b/é.pth"), "a%20b/%C3%A9.pth");
    }
}
