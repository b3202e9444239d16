//! The file behind an import, whatever its format.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::card::Card;
use crate::weights::{CARD_KEY, Checkpoint, HEAD_KEY, Packing, SafetensorsFile, TensorSource};
use crate::{Error, Result};

pub(super) enum Source {
    Safetensors { file: SafetensorsFile, card: Option<Box<Card>> },
    Torch(Checkpoint),
}

impl Source {
    pub(super) fn open(path: &Path, state_dict_key: Option<&str>) -> Result<Source> {
        let failed = |reason: &str| Error::Format { path: path.to_owned(), reason: reason.into() };
        let io = |cause| Error::Io { path: path.to_owned(), cause };
        let mut start = Vec::new();
        File::open(path).and_then(|f| f.take(64).read_to_end(&mut start)).map_err(io)?;
        if start.is_empty() {
            return Err(failed("is empty; is the download complete?"));
        }
        if start.starts_with(b"PK") || start[0] == 0x80 {
            let checkpoint = match state_dict_key {
                Some(key) => Checkpoint::open_part(path, Some(key))?,
                None => Checkpoint::open(path)?,
            };
            return Ok(Source::Torch(checkpoint));
        }
        if start.get(8) == Some(&b'{') {
            if state_dict_key.is_some() {
                return Err(failed("is a safetensors file; it has no entries to choose a state dict from"));
            }
            let file = SafetensorsFile::open(path)?;
            let card = file.metadata(CARD_KEY).map(Card::from_json).transpose().map_err(|e| failed(&e.to_string()))?;
            let card = card.map(Box::new);
            return Ok(Source::Safetensors { file, card });
        }
        Err(failed(match start.trim_ascii_start().first() {
            Some(b'<') => "is a web page, not weights; download the file itself",
            _ if start.starts_with(b"version https://git-lfs") => {
                "is a Git LFS pointer; fetch the file with `git lfs pull`"
            }
            _ if start.starts_with(b"\x1f\x8b") => "is compressed with gzip; unpack it first",
            _ => "is neither a PyTorch checkpoint, nor a Detectron2 pickle, nor a safetensors file",
        }))
    }

    pub(super) fn tensors(&self) -> &dyn TensorSource {
        match self {
            Source::Safetensors { file, .. } => file,
            Source::Torch(checkpoint) => checkpoint,
        }
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        match self {
            Source::Safetensors { file, .. } => file.bytes().len() as u64,
            Source::Torch(checkpoint) => checkpoint.file_len() as u64,
        }
    }

    pub(super) fn describe(&self) -> &'static str {
        match self {
            Source::Safetensors { .. } => "safetensors",
            Source::Torch(checkpoint) => match checkpoint.packing() {
                Packing::Legacy => "PyTorch checkpoint, legacy stream",
                Packing::Zip => "PyTorch checkpoint, zip",
                Packing::Arrays => "Detectron2 pickle",
            },
        }
    }

    pub(super) fn card(&self) -> Option<Card> {
        match self {
            Source::Safetensors { card, .. } => card.as_deref().cloned(),
            Source::Torch(_) => None,
        }
    }

    /// Whether it is a model of ours, with a head's tensors beside the backbone's.
    pub(super) fn has_head(&self) -> bool {
        match self {
            Source::Safetensors { file, card } => card.is_some() && file.metadata(HEAD_KEY).is_some(),
            Source::Torch(_) => false,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self {
            Source::Safetensors { file, .. } => file.metadata(key),
            Source::Torch(checkpoint) => checkpoint.text(key),
        }
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        match self {
            Source::Safetensors { .. } => None,
            Source::Torch(checkpoint) => checkpoint.integer(key),
        }
    }

    /// Number of tensors that the optimiser beside the weights moved.
    pub(super) fn optimised(&self) -> Option<usize> {
        match self {
            Source::Safetensors { .. } => None,
            Source::Torch(checkpoint) => checkpoint.optimised(),
        }
    }

    /// Whether a training script left its progress beside the weights.
    pub(super) fn is_training_checkpoint(&self) -> bool {
        match self {
            Source::Safetensors { .. } => false,
            Source::Torch(checkpoint) => ["epoch", "optimizer", "best_acc1"].iter().any(|key| checkpoint.has(key)),
        }
    }
}
