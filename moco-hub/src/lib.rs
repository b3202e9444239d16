//! `moco-hub`: where backbones come from. A file, a folder, or `hf://owner/name[@revision][/file]` in a Hub of models.
//!
//! ```no_run
//! # fn main() -> moco_hub::Result<()> {
//! let opened = moco_hub::open_backbone("hf://somebody/moco-cells".as_ref(), None, &mut |_| ())?;
//! println!("{}", opened.file.card().method);
//! # Ok(())
//! # }
//! ```
//!
//! The cache is the one that Python's `huggingface_hub` keeps, in the same places and the same layout, so that a file
//! fetched by either is found by the other; names and folders in it come from the crate `hf-hub`. The transfer is our
//! own: `hf-hub` cannot be told to trust the system's certificates, does not check hashes and knows no offline mode.
//!
//! Feature `http` is the network; without it only what is in the cache is found. Feature `terminal` is for
//! programs: a progress bar, and warnings on the standard error.
#![deny(missing_docs)]

mod cache;
mod error;
#[cfg(feature = "http")]
mod fetch;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod push;
mod reference;
mod settings;
#[cfg(feature = "terminal")]
mod terminal;

use std::path::{Path, PathBuf};

use moco_models::import::{self, Opened};
use moco_models::weights::choose_weights;

use self::cache::Store;
pub use self::error::{Error, Result};
#[cfg(feature = "http")]
pub use self::push::{PushOptions, Pushed, Upload};
pub use self::reference::Reference;
pub use self::settings::Settings;
#[cfg(feature = "terminal")]
pub use self::terminal::{Bar, open_on_terminal};

/// How far a transfer is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file in the repository.
    pub file: &'a str,
    /// Bytes transferred so far.
    pub done: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// Opens a backbone, wherever it is and whatever its format: a file, a folder, or `hf://owner/name[@revision][/file]`.
/// Files of others are converted in memory and come with warnings on what was assumed. With `channels`, the backbone is
/// made to read images of that many channels.
///
/// # Errors
/// As [`locate`] and [`moco_models::import::open`].
pub fn open_backbone(place: &Path, channels: Option<usize>, progress: &mut dyn FnMut(Progress<'_>)) -> Result<Opened> {
    Ok(import::open(&locate(place, progress)?, channels)?)
}

/// The local path of a file: `place` itself, or the file in the cache behind a `hf://` reference, fetched if need be.
///
/// # Errors
/// As [`Hub::fetch`] for a reference; a local path is not looked at.
pub fn locate(place: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
    match place.to_str().filter(|text| Reference::is(text)) {
        Some(text) => Hub::new(Settings::from_env()?).fetch(&text.parse()?, progress),
        None => Ok(place.to_owned()),
    }
}

/// A Hub and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    settings: Settings,
    store: Store,
}

impl Hub {
    /// A Hub under the given settings; nothing is contacted yet.
    pub fn new(settings: Settings) -> Hub {
        Hub { store: Store::new(&settings.cache), settings }
    }

    /// The file behind a reference, in the cache. The Hub is asked whether the revision has moved, and the file is
    /// fetched only if the cache lacks it; if the Hub cannot be reached, what the cache has is taken, with a warning in
    /// the log. Files in large-file storage are checked against their SHA-256.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Denied`], [`Error::Network`], [`Error::Damaged`], [`Error::NotCached`],
    /// [`Error::Io`], each saying what to do.
    pub fn fetch(&self, reference: &Reference, progress: &mut dyn FnMut(Progress<'_>)) -> Result<PathBuf> {
        if self.settings.offline {
            return self.cached(reference, "offline mode (HF_HUB_OFFLINE) is on");
        }
        #[cfg(not(feature = "http"))]
        {
            let _ = progress;
            self.cached(reference, "this program is built without a network (feature `hub`)")
        }
        #[cfg(feature = "http")]
        fetch::fetch(self, reference, progress)
    }

    /// The file behind a reference if the cache has it.
    fn cached(&self, reference: &Reference, why: &str) -> Result<PathBuf> {
        let missing = |what: String| Error::NotCached {
            reference: reference.to_string(),
            reason: format!("{why}, and {what} ({})", self.settings.cache.display()),
        };
        let Some(commit) = self.store.commit(reference) else {
            return Err(missing(match self.store.revisions(reference) {
                known if known.is_empty() => "the cache has nothing of this repository".to_owned(),
                known => {
                    format!("the cache does not have revision `{}`, only {}", reference.revision, known.join(", "))
                }
            }));
        };
        let names = self.store.files(reference, &commit);
        let file = match &reference.file {
            Some(file) if names.contains(file) => file,
            Some(file) => return Err(missing(format!("the cache does not have the file `{file}`"))),
            None => choose_weights(&names).map_err(|reason| missing(format!("what the cache has of it {reason}")))?,
        };
        Ok(self.store.snapshot(reference, &commit).join(file))
    }
}
