//! The folder of a run: names of its files, and who may write there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::RunConfig;
use crate::{Error, Result};

/// A run's folder, held by this process alone until dropped, unless it only looks.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    _lock: Option<File>,
}

impl RunFolder {
    /// Makes the folder with its `config.toml`.
    ///
    /// # Errors
    /// [`Error::Run`] if there is something at `path` already: a run is never overwritten.
    pub fn create(path: &Path, config: &RunConfig) -> Result<RunFolder> {
        RunFolder::check_free(path)?;
        std::fs::create_dir_all(path.join(CHECKPOINTS)).map_err(Error::io(path))?;
        let folder = RunFolder::lock(path)?;
        let text = config.to_toml()?;
        moco_models::write_atomically(&folder.config_path(), |out| out.write_all(text.as_bytes()))?;
        Ok(folder)
    }

    /// Whether a run could be made at `path`.
    ///
    /// # Errors
    /// [`Error::Run`] if there is something already.
    pub fn check_free(path: &Path) -> Result<()> {
        let is_empty_folder = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if !path.exists() || is_empty_folder {
            return Ok(());
        }
        let shown = path.display();
        Err(Error::Run(if path.join(CONFIG).exists() {
            format!("{shown} holds a run already: go on with `moco-train resume {shown}` or give another --out")
        } else {
            format!("{shown} exists already and is not overwritten: give another --out")
        }))
    }

    /// Opens the folder of a run that was started before.
    ///
    /// # Errors
    /// [`Error::Run`] if it is none, or another process is at work in it.
    pub fn open(path: &Path) -> Result<RunFolder> {
        if !path.join(CONFIG).exists() {
            return Err(Error::Run(format!("{} is not a run: it has no {CONFIG}", path.display())));
        }
        std::fs::create_dir_all(path.join(CHECKPOINTS)).map_err(Error::io(path))?;
        RunFolder::lock(path)
    }

    /// A folder in which another process of the same run is at work: to be read only.
    pub fn look(path: &Path) -> RunFolder {
        RunFolder { path: path.to_path_buf(), _lock: None }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config_path(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// One JSON object a line.
    pub fn metrics_path(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// TensorBoard's event files.
    pub fn events_path(&self) -> PathBuf {
        self.path.join("events")
    }

    /// The checkpoints.
    pub fn checkpoints_path(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The result.
    pub fn backbone_path(&self) -> PathBuf {
        self.path.join("backbone.safetensors")
    }

    fn lock(path: &Path) -> Result<RunFolder> {
        let lock_path = path.join(".lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(RunFolder { path: path.to_path_buf(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => {
                Err(Error::Run(format!("another process is at work in {}; wait for it or stop it", path.display())))
            }
            Err(TryLockError::Error(e)) => Err(Error::io(&lock_path)(e)),
        }
    }
}

const CONFIG: &str = "config.toml";
const CHECKPOINTS: &str = "checkpoints";
