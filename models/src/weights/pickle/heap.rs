//! The values of a pickle, in one arena: references may form any graph, and dropping it never recurses.

use std::collections::HashMap;

use super::globals::Global;
use crate::weights::{Dtype, TensorInfo};

/// Values a pickle may make; a ResNet checkpoint with its optimiser needs some thousands.
const MAX_NODES: usize = 2_000_000;

/// Elements that calls may copy in all: a few opcodes that copy a long list again and again must not fill the memory.
const MAX_COPIES: usize = 16_000_000;

/// PyTorch allows 64 dimensions.
const MAX_DIMENSIONS: usize = 64;

/// Place of a value in the [`Heap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

#[derive(Clone, Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer outside of i64: little-endian two's complement.
    Big(Box<[u8]>),
    Float,
    Text(Box<str>),
    /// Bytes, by their place in the pickle.
    Bytes {
        start: usize,
        len: usize,
    },
    List(Vec<Id>),
    Tuple(Box<[Id]>),
    Dict(Vec<(Id, Id)>),
    Set,
    Global(Global),
    Storage(StorageView),
    Tensor(Box<TensorView>),
    /// A numpy array before its state is set.
    Array,
    /// A type of numpy; none if no tensor has it.
    NumpyDtype(Option<Dtype>),
    /// An object of a harmless class, of which nothing is needed.
    Object,
}

/// One block of values that a file holds and tensors look into.
#[derive(Clone, Debug)]
pub(super) struct Storage {
    pub key: Box<str>,
    pub dtype: Dtype,
    pub numel: usize,
}

/// A storage, or the part of one that a legacy file calls a storage of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct StorageView {
    pub index: usize,
    pub offset: usize,
    pub numel: usize,
}

/// A strided look into a storage, checked to stay inside it. Offset and strides count values.
#[derive(Clone, Debug)]
pub(super) struct TensorView {
    pub storage: usize,
    pub dtype: Dtype,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub numel: usize,
}

impl TensorView {
    pub(super) fn new(
        view: StorageView,
        dtype: Dtype,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<TensorView, String> {
        if shape.len() != strides.len() || shape.len() > MAX_DIMENSIONS {
            return Err(format!("a tensor has {} sizes and {} strides", shape.len(), strides.len()));
        }
        let overflow = || format!("a tensor of {shape:?} is larger than any memory");
        let numel = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
        numel.checked_mul(dtype.size()).filter(|n| *n <= isize::MAX as usize).ok_or_else(overflow)?;
        let mut last = Some(offset);
        for (size, stride) in shape.iter().zip(&strides) {
            let reach = size.saturating_sub(1).checked_mul(*stride);
            last = last.zip(reach).and_then(|(a, b)| a.checked_add(b));
        }
        if numel > 0 && last.is_none_or(|last| last >= view.numel) {
            return Err(format!(
                "a tensor of {shape:?} with strides {strides:?} at {offset} reaches outside of its storage of {} values",
                view.numel
            ));
        }
        // An empty tensor may point anywhere; it reads nothing.
        let offset = if numel > 0 { view.offset + offset } else { 0 };
        Ok(TensorView { storage: view.index, dtype, offset, shape, strides, numel })
    }

    pub(super) fn info(&self) -> TensorInfo {
        TensorInfo { dtype: self.dtype, shape: self.shape.clone() }
    }

    pub(super) fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.numel == 0
            || self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
                let fits = size == 1 || stride == expected;
                expected *= size;
                fits
            })
    }
}

/// All values of a file's pickles and the storages they name.
#[derive(Debug, Default)]
pub(super) struct Heap {
    nodes: Vec<Node>,
    pub storages: Vec<Storage>,
    /// Whether numpy arrays are wanted as tensors; beside the tensors of PyTorch they are not.
    pub keep_arrays: bool,
    by_key: HashMap<Box<str>, usize>,
    copied: usize,
}

impl Heap {
    pub(super) fn push(&mut self, node: Node) -> Result<Id, String> {
        if self.nodes.len() >= MAX_NODES {
            return Err(format!("more than {MAX_NODES} objects; this is no checkpoint of weights"));
        }
        self.nodes.push(node);
        Ok(Id(self.nodes.len() as u32 - 1))
    }

    /// Accounts for `elements` that are about to be copied.
    pub(super) fn charge(&mut self, elements: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(elements);
        if self.copied > MAX_COPIES {
            return Err(format!("calls copy more than {MAX_COPIES} elements; this is no checkpoint of weights"));
        }
        Ok(())
    }

    pub(super) fn get(&self, id: Id) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A non-negative integer.
    pub(super) fn size(&self, id: Id) -> Result<usize, String> {
        match self.get(id) {
            Node::Int(value) => {
                usize::try_from(*value).map_err(|_| format!("a size, stride or offset is {value}; expected 0 or more"))
            }
            other => Err(format!("expected an integer, got {}", other.kind())),
        }
    }

    /// Elements of a tuple or list.
    pub(super) fn items(&self, id: Id) -> Result<&[Id], String> {
        match self.get(id) {
            Node::Tuple(items) => Ok(items),
            Node::List(items) => Ok(items),
            other => Err(format!("expected a tuple, got {}", other.kind())),
        }
    }

    /// The last value of a dict under a text key, as Python's dict would hold it.
    pub(super) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Node::Dict(pairs) = self.get(dict) else { return None };
        pairs.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, v)| *v)
    }

    /// Makes a storage known; all mentions of one key must agree.
    pub(super) fn storage(&mut self, key: &str, dtype: Dtype, numel: usize) -> Result<usize, String> {
        numel.checked_mul(dtype.size()).ok_or_else(|| format!("storage `{key}` claims {numel} values"))?;
        if let Some(&index) = self.by_key.get(key) {
            let known = &self.storages[index];
            if known.dtype != dtype || known.numel != numel {
                return Err(format!(
                    "storage `{key}` is {} values of {} in one place and {numel} of {dtype} in another",
                    known.numel, known.dtype
                ));
            }
            return Ok(index);
        }
        self.storages.push(Storage { key: key.into(), dtype, numel });
        self.by_key.insert(key.into(), self.storages.len() - 1);
        Ok(self.storages.len() - 1)
    }

    pub(super) fn storage_index(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }
}

impl Node {
    /// What it is, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool(_) => "a bool",
            Node::Int(_) | Node::Big(_) => "an integer",
            Node::Float => "a float",
            Node::Text(_) => "a text",
            Node::Bytes { .. } => "bytes",
            Node::List(_) => "a list",
            Node::Tuple(_) => "a tuple",
            Node::Dict(_) => "a dict",
            Node::Set => "a set",
            Node::Global(_) => "a class or function",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
            Node::Array => "an array",
            Node::NumpyDtype(_) => "a type of numpy",
            Node::Object => "an object",
        }
    }
}
