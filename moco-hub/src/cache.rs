//! The cache on disk, in the layout of Python's `huggingface_hub`: blobs by hash, snapshots by commit that link to them,
//! and refs that say which commit a branch was at.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::Reference;
use crate::reference::is_commit;
use crate::{Error, Result};

#[derive(Debug)]
pub(crate) struct Store {
    cache: Cache,
}

impl Store {
    pub(crate) fn new(folder: &Path) -> Store {
        Store { cache: Cache::new(folder.to_owned()) }
    }

    /// The commit that a reference means, as far as the cache knows.
    pub(crate) fn commit(&self, reference: &Reference) -> Option<String> {
        if reference.is_commit() {
            return self.snapshot(reference, &reference.revision).is_dir().then(|| reference.revision.clone());
        }
        let commit = fs::read_to_string(self.folder(reference).join("refs").join(&reference.revision)).ok()?;
        let commit = commit.trim();
        is_commit(commit).then(|| commit.to_owned())
    }

    /// Branches and tags that the cache knows.
    pub(crate) fn revisions(&self, reference: &Reference) -> Vec<String> {
        names_below(&self.folder(reference).join("refs"))
    }

    /// Files that the cache has of a commit.
    pub(crate) fn files(&self, reference: &Reference, commit: &str) -> Vec<String> {
        let folder = self.snapshot(reference, commit);
        names_below(&folder).into_iter().filter(|name| folder.join(name).is_file()).collect()
    }

    /// Folder of a commit's files.
    pub(crate) fn snapshot(&self, reference: &Reference, commit: &str) -> PathBuf {
        self.repository(reference).pointer_path(commit)
    }

    /// Where a file with this hash lies.
    pub(crate) fn blob(&self, reference: &Reference, etag: &str) -> PathBuf {
        self.folder(reference).join("blobs").join(etag)
    }

    /// Held while a blob is written, by Python's client as well.
    pub(crate) fn lock(&self, reference: &Reference, etag: &str) -> Result<File> {
        let folder = self.cache.path().join(".locks").join(repository(reference).folder_name());
        fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
        let path = folder.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(Error::io(&path))?;
        file.lock().map_err(Error::io(&path))?;
        Ok(file)
    }

    /// Makes a blob appear as a file of a commit.
    pub(crate) fn link(&self, reference: &Reference, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(reference, commit).join(file);
        let folder = path.parent().expect("a file lies in its snapshot");
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        if path.is_file() {
            return Ok(path);
        }
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        // A link whose blob was removed is still in the way.
        let _ = fs::remove_file(&path);
        match symlink(&target, &path) {
            Ok(()) => {}
            // Another process made the same link meanwhile.
            Err(_) if path.is_file() => {}
            // Where links are not allowed, as often on Windows, Python's client moves the blob too.
            Err(_) => fs::rename(self.blob(reference, etag), &path).map_err(Error::io(&path))?,
        }
        Ok(path)
    }

    /// Notes which commit a branch or tag is at.
    pub(crate) fn remember(&self, reference: &Reference, commit: &str) -> Result<()> {
        if reference.revision == commit || self.commit(reference).as_deref() == Some(commit) {
            return Ok(());
        }
        self.repository(reference).create_ref(commit).map_err(Error::io(&self.folder(reference)))
    }

    fn repository(&self, reference: &Reference) -> CacheRepo {
        self.cache.repo(repository(reference))
    }

    fn folder(&self, reference: &Reference) -> PathBuf {
        self.cache.path().join(repository(reference).folder_name())
    }
}

fn repository(reference: &Reference) -> Repo {
    Repo::with_revision(reference.repository.clone(), RepoType::Model, reference.revision.clone())
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(windows)]
fn symlink(target: &Path, path: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, path)
}

/// Names of all files below a folder, with `/` between folders.
fn names_below(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut open = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = open.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push((entry.path(), format!("{name}/"))),
                _ => names.push(name),
            }
        }
    }
    names.sort_unstable();
    names
}
