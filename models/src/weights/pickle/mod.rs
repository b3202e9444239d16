//! PyTorch checkpoints (`.pth`, `.pth.tar`, `.pt`), legacy and zip, and pickles of numpy arrays (`.pkl`), read without
//! Python and without running anything they hold.

mod archive;
mod globals;
mod heap;
mod legacy;
mod machine;
mod plain;
mod zip;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use self::archive::Place;
use self::heap::{Heap, Id, Node, TensorView};
use super::safetensors::map_file;
use super::{Tensor, TensorInfo, TensorSource};
use crate::{Error, Result};

/// Keys under which training scripts keep the state dict, in the order they are looked for.
const STATE_DICT_KEYS: [&str; 4] = ["state_dict", "model", "model_state_dict", "network"];

/// Dicts in a state dict may nest this deep.
const MAX_DEPTH: usize = 8;

/// Entries of all dicts that are looked through.
const MAX_ENTRIES: usize = 200_000;

/// Longest name of a tensor.
const MAX_NAME: usize = 1024;

/// A tensor may repeat its values (strides of 0) up to this many bytes more than its storage holds.
const MAX_EXPANSION: usize = 1 << 20;

/// How a checkpoint is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// The stream of PyTorch before 1.6.
    Legacy,
    /// The zip archive of PyTorch 1.6 and later.
    Zip,
    /// A plain pickle of numpy arrays, as Detectron2 writes.
    Arrays,
}

/// The content of a file.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    #[cfg(test)]
    Memory(Vec<u8>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            #[cfg(test)]
            Bytes::Memory(bytes) => bytes,
        }
    }
}

/// A PyTorch checkpoint, mapped into memory. As a [`TensorSource`] it offers the tensors of its state dict.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    bytes: Bytes,
    packing: Packing,
    heap: Heap,
    root: Id,
    places: Vec<Place>,
    state_dict_key: Option<String>,
    tensors: Vec<(String, Id)>,
    by_name: HashMap<String, Id>,
}

impl Checkpoint {
    /// Opens a checkpoint and finds its state dict: the root if that holds tensors, otherwise the entry called
    /// `state_dict`, `model`, `model_state_dict` or `network`, otherwise the only entry that holds tensors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Format`] for anything but a complete checkpoint of tensors, including every file that
    /// names a class or function outside of the allow-list.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        Checkpoint::open_part(path, None)
    }

    /// As [`Checkpoint::open`], with the state dict under the given key of the root.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_part(path: &Path, state_dict_key: Option<&str>) -> Result<Checkpoint> {
        let bytes = Bytes::Mapped(map_file(path)?);
        read(path, bytes, state_dict_key).map_err(|reason| Error::Format { path: path.to_owned(), reason })
    }

    /// How it is packed.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    /// Key of the state dict in the root, if it is not the root itself.
    pub fn state_dict_key(&self) -> Option<&str> {
        self.state_dict_key.as_deref()
    }

    /// A text beside the state dict, e.g. `arch`.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.heap.text(self.heap.entry(self.root, key)?)
    }

    /// An integer beside the state dict, e.g. `epoch`.
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.heap.get(self.heap.entry(self.root, key)?) {
            Node::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// Whether the root has an entry of this name, e.g. `optimizer`.
    pub fn has(&self, key: &str) -> bool {
        self.heap.entry(self.root, key).is_some()
    }

    /// Number of parameters of the optimiser beside the state dict: how many tensors the training moved.
    pub fn optimised(&self) -> Option<usize> {
        let optimiser = self.heap.entry(self.root, "optimizer")?;
        let Node::List(groups) = self.heap.get(self.heap.entry(optimiser, "param_groups")?) else { return None };
        let len = |group: &Id| Some(self.heap.items(self.heap.entry(*group, "params")?).ok()?.len());
        groups.iter().map(len).sum()
    }

    /// Bytes of the file.
    pub(crate) fn file_len(&self) -> usize {
        self.bytes.len()
    }

    fn view(&self, name: &str) -> Option<&TensorView> {
        match self.heap.get(*self.by_name.get(name)?) {
            Node::Tensor(view) => Some(view),
            _ => None,
        }
    }
}

impl TensorSource for Checkpoint {
    fn names(&self) -> Vec<&str> {
        self.tensors.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.view(name).map(TensorView::info)
    }

    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let failed = |reason: String| Error::Format { path: self.path.clone(), reason };
        let view = self.view(name).ok_or_else(|| failed(format!("has no tensor `{name}`")))?;
        let storage: &[u8] = match &self.places[view.storage] {
            Place::File(range) => &self.bytes[range.clone()],
            Place::Memory(bytes) => bytes,
        };
        let size = view.dtype.size();
        if view.numel * size > storage.len().saturating_add(MAX_EXPANSION) {
            return Err(failed(format!(
                "tensor `{name}` {:?} repeats a storage of {} bytes until it is huge",
                view.shape,
                storage.len()
            )));
        }
        let data = if view.is_contiguous() {
            Cow::Borrowed(&storage[view.offset * size..(view.offset + view.numel) * size])
        } else {
            Cow::Owned(gather(storage, view))
        };
        Ok(Tensor { dtype: view.dtype, shape: view.shape.clone(), data })
    }
}

fn read(path: &Path, bytes: Bytes, key: Option<&str>) -> std::result::Result<Checkpoint, String> {
    let mut heap = Heap::default();
    let (packing, root, places) = if bytes.starts_with(b"PK") {
        let (root, places) = archive::read(&bytes, &mut heap)?;
        (Packing::Zip, root, places)
    } else if bytes.first() == Some(&0x80) {
        let legacy = legacy::is(&bytes);
        let (root, spans) = if legacy { legacy::read(&bytes, &mut heap)? } else { plain::read(&bytes, &mut heap)? };
        let packing = if legacy { Packing::Legacy } else { Packing::Arrays };
        (packing, root, spans.into_iter().map(Place::File).collect())
    } else if bytes.get(257..262) == Some(b"ustar") {
        return Err("a tar archive: unpack it, or, if PyTorch before 0.1.10 wrote it, save it again".into());
    } else {
        return Err("not a PyTorch checkpoint: neither a zip archive nor a pickle".into());
    };
    let (state_dict_key, state_dict) = find_state_dict(&heap, root, key)?;
    let mut tensors = Vec::new();
    let mut entries = 0;
    flatten(&heap, state_dict, "", 0, &mut entries, &mut tensors)?;
    let mut by_name = HashMap::new();
    for (name, id) in &tensors {
        if by_name.insert(name.clone(), *id).is_some() {
            return Err(format!("two tensors are called `{name}`"));
        }
    }
    if tensors.is_empty() {
        return Err("holds no tensor".into());
    }
    Ok(Checkpoint { path: path.to_owned(), bytes, packing, heap, root, places, state_dict_key, tensors, by_name })
}

fn find_state_dict(heap: &Heap, root: Id, key: Option<&str>) -> std::result::Result<(Option<String>, Id), String> {
    let Node::Dict(entries) = heap.get(root) else {
        return Err(format!("holds {}, expected a dict of tensors (a state dict)", heap.get(root).kind()));
    };
    // Each dict is looked through once, however often the root mentions it.
    let known = RefCell::new(HashMap::new());
    let holds_tensors = |id: Id| {
        *known.borrow_mut().entry(id).or_insert_with(|| match heap.get(id) {
            Node::Dict(pairs) => pairs.iter().any(|(_, value)| matches!(heap.get(*value), Node::Tensor(_))),
            _ => false,
        })
    };
    if let Some(key) = key {
        let part = heap.entry(root, key).ok_or_else(|| format!("has no entry `{key}`"))?;
        return match heap.get(part) {
            Node::Dict(_) => Ok((Some(key.to_owned()), part)),
            other => Err(format!("`{key}` is {}, expected a dict of tensors", other.kind())),
        };
    }
    for key in STATE_DICT_KEYS {
        if let Some(part) = heap.entry(root, key).filter(|part| holds_tensors(*part)) {
            return Ok((Some(key.to_owned()), part));
        }
    }
    if holds_tensors(root) {
        return Ok((None, root));
    }
    let parts: Vec<(&str, Id)> =
        entries.iter().filter(|(_, v)| holds_tensors(*v)).filter_map(|(k, v)| Some((heap.text(*k)?, *v))).collect();
    match &parts[..] {
        [(key, part)] => Ok((Some((*key).to_owned()), *part)),
        [] => Ok((None, root)),
        many => {
            let keys: Vec<_> = many.iter().map(|(key, _)| format!("`{key}`")).collect();
            Err(format!("holds several state dicts ({}); say which one", keys.join(", ")))
        }
    }
}

/// Names the tensors of a dict, those of dicts inside as `outer.inner`. What is no tensor is passed over: counters,
/// settings, optimiser states.
fn flatten(
    heap: &Heap,
    dict: Id,
    prefix: &str,
    depth: usize,
    entries: &mut usize,
    out: &mut Vec<(String, Id)>,
) -> std::result::Result<(), String> {
    let Node::Dict(pairs) = heap.get(dict) else { return Ok(()) };
    if depth > MAX_DEPTH {
        return Err(format!("dicts nest more than {MAX_DEPTH} deep"));
    }
    *entries += pairs.len();
    if *entries > MAX_ENTRIES {
        return Err(format!("more than {MAX_ENTRIES} entries; this is no state dict"));
    }
    // A key that is set again keeps its place and takes the new value, as in Python.
    let last: HashMap<&str, Id> = pairs.iter().filter_map(|(k, v)| Some((heap.text(*k)?, *v))).collect();
    let mut seen = HashSet::new();
    for (key, _) in pairs {
        let Some(key) = heap.text(*key) else { continue };
        if !seen.insert(key) {
            continue;
        }
        let value = last[key];
        if prefix.len() + key.len() > MAX_NAME {
            return Err(format!("a name is longer than {MAX_NAME} bytes"));
        }
        let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
        match heap.get(value) {
            Node::Tensor(_) => out.push((name, value)),
            Node::Dict(_) => flatten(heap, value, &name, depth + 1, entries, out)?,
            _ => {}
        }
    }
    Ok(())
}

/// Copies a strided view into row-major order.
fn gather(storage: &[u8], view: &TensorView) -> Vec<u8> {
    let size = view.dtype.size();
    let mut data = Vec::with_capacity(view.numel * size);
    let mut index = vec![0usize; view.shape.len()];
    let mut at = view.offset;
    for _ in 0..view.numel {
        data.extend_from_slice(&storage[at * size..(at + 1) * size]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            at += view.strides[axis];
            if index[axis] < view.shape[axis] {
                break;
            }
            at -= index[axis] * view.strides[axis];
            index[axis] = 0;
        }
    }
    data
}

#[cfg(test)]
mod tests;
