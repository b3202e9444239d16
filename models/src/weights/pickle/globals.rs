//! The allow-list: every class and function a checkpoint may name, and what calling it means here. Nothing is ever
//! imported or run; a name that is not listed ends the reading.

use super::heap::{Heap, Id, Node, StorageView, TensorView};
use super::plain;
use crate::weights::Dtype;

/// A class or function of the allow-list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`, `dict`, `defaultdict`.
    Dict,
    /// `torch._utils._rebuild_tensor_v2`: (storage, offset, size, stride, requires_grad, hooks, …).
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: (tensor, requires_grad, hooks).
    RebuildParameter,
    /// A storage class; it only tells the type of the values.
    Storage(Dtype),
    /// `torch.Size`, `tuple`, `list`: keeps its argument.
    Sequence,
    /// `numpy.core.multiarray._reconstruct`: an array that is filled later.
    Array,
    /// `numpy.core.numeric._frombuffer`: (bytes, dtype, shape, order).
    ArrayFromBuffer,
    /// `numpy.dtype`: (name, …).
    NumpyDtype,
    /// A harmless class or function whose results are not needed: `argparse.Namespace`, numpy scalars, devices, …
    Inert,
}

/// Finds a name in the allow-list.
pub(super) fn lookup(module: &str, name: &str) -> Result<Global, String> {
    let found = match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter") => Some(Global::Dict),
        ("builtins" | "__builtin__", "dict") => Some(Global::Dict),
        ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => Some(Global::RebuildTensor),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Some(Global::RebuildParameter),
        ("torch" | "torch.cuda", storage) if storage.ends_with("Storage") => {
            return storage_dtype(storage).map(Global::Storage).ok_or_else(|| {
                format!("values of `{module}.{storage}` are not supported; convert the tensors to float32 first")
            });
        }
        ("torch.storage", "UntypedStorage") => Some(Global::Storage(Dtype::U8)),
        ("torch", "Size") => Some(Global::Sequence),
        ("builtins" | "__builtin__", "tuple" | "list") => Some(Global::Sequence),
        ("numpy", "dtype") => Some(Global::NumpyDtype),
        ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => Some(Global::Array),
        ("numpy.core.numeric" | "numpy._core.numeric", "_frombuffer") => Some(Global::ArrayFromBuffer),
        _ if is_inert(module, name) => Some(Global::Inert),
        _ => None,
    };
    found.ok_or_else(|| {
        format!(
            "the pickle names `{module}.{name}`, which is not among the few classes and functions that a checkpoint \
             of weights needs. Opening such a file in Python could run code; it was not run here. If you trust \
             the file, save its state dict alone: torch.save(torch.load(FILE)['state_dict'], NEW_FILE)"
        )
    })
}

fn storage_dtype(name: &str) -> Option<Dtype> {
    Some(match name {
        "BoolStorage" => Dtype::Bool,
        "ByteStorage" | "UntypedStorage" => Dtype::U8,
        "CharStorage" => Dtype::I8,
        "ShortStorage" => Dtype::I16,
        "IntStorage" => Dtype::I32,
        "LongStorage" => Dtype::I64,
        "HalfStorage" => Dtype::F16,
        "BFloat16Storage" => Dtype::BF16,
        "FloatStorage" => Dtype::F32,
        "DoubleStorage" => Dtype::F64,
        _ => return None,
    })
}

/// What training scripts leave beside the weights; read past and forgotten.
fn is_inert(module: &str, name: &str) -> bool {
    match module {
        "argparse" => name == "Namespace",
        "types" => name == "SimpleNamespace",
        "collections" => name == "deque",
        "builtins" | "__builtin__" => matches!(
            name,
            "set"
                | "frozenset"
                | "bytearray"
                | "bytes"
                | "complex"
                | "slice"
                | "range"
                | "xrange"
                | "object"
                | "int"
                | "long"
                | "float"
                | "bool"
                | "str"
                | "unicode"
        ),
        "copyreg" | "copy_reg" => matches!(name, "_reconstructor" | "__newobj__"),
        "_codecs" => name == "encode",
        "numpy" => name == "ndarray",
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "scalar",
        "numpy.dtypes" => name.ends_with("DType"),
        "pathlib" | "pathlib._local" => {
            matches!(name, "Path" | "PosixPath" | "WindowsPath" | "PurePath" | "PurePosixPath" | "PureWindowsPath")
        }
        "datetime" => matches!(name, "datetime" | "date" | "time" | "timedelta" | "timezone"),
        "torch" => matches!(
            name,
            "device"
                | "float"
                | "float16"
                | "float32"
                | "float64"
                | "bfloat16"
                | "half"
                | "double"
                | "uint8"
                | "int8"
                | "int16"
                | "int32"
                | "int64"
                | "long"
                | "bool"
                | "strided"
                | "contiguous_format"
                | "channels_last"
        ),
        "torch.serialization" => name == "_get_layout",
        "yacs.config" => name == "CfgNode",
        "easydict" => name == "EasyDict",
        _ => false,
    }
}

/// What calling `global` with the tuple `args` gives.
pub(super) fn call(heap: &mut Heap, global: Global, args: Id) -> Result<Node, String> {
    let args = copied_items(heap, args)?;
    match global {
        Global::Dict => dict(heap, &args),
        Global::RebuildTensor => tensor(heap, &args),
        Global::RebuildParameter => match args.first().map(|id| heap.get(*id)) {
            Some(Node::Tensor(view)) => {
                let view = view.clone();
                heap.charge(view.shape.len())?;
                Ok(Node::Tensor(view))
            }
            other => Err(format!("a parameter is made of {}, expected a tensor", other.map_or("nothing", Node::kind))),
        },
        Global::Sequence => match args.first() {
            Some(items) => Ok(Node::Tuple(copied_items(heap, *items)?.into())),
            None => Ok(Node::Tuple([].into())),
        },
        Global::Array | Global::ArrayFromBuffer | Global::NumpyDtype if !heap.keep_arrays => Ok(Node::Object),
        Global::Array => Ok(Node::Array),
        Global::ArrayFromBuffer => plain::from_buffer(heap, &args),
        Global::NumpyDtype => {
            let name = args.first().and_then(|name| heap.text(*name));
            Ok(Node::NumpyDtype(name.and_then(plain::dtype)))
        }
        Global::Inert => Ok(Node::Object),
        Global::Storage(_) => Err("a storage is built by a call; expected a reference to stored values".into()),
    }
}

fn copied_items(heap: &mut Heap, id: Id) -> Result<Vec<Id>, String> {
    let len = heap.items(id)?.len();
    heap.charge(len)?;
    Ok(heap.items(id)?.to_vec())
}

/// `OrderedDict()`, `OrderedDict([[key, value], …])` of Python 2, `defaultdict(factory)`.
fn dict(heap: &mut Heap, args: &[Id]) -> Result<Node, String> {
    let mut pairs = Vec::new();
    for &arg in args {
        if let Node::List(items) = heap.get(arg) {
            let len = items.len();
            heap.charge(len)?;
        } else if let Node::Dict(known) = heap.get(arg) {
            let len = known.len();
            heap.charge(len)?;
        }
        match heap.get(arg) {
            Node::List(items) => {
                for &item in items {
                    match heap.items(item)? {
                        &[key, value] => pairs.push((key, value)),
                        other => return Err(format!("a dict is built from items of {} parts", other.len())),
                    }
                }
            }
            Node::Dict(known) => pairs.extend(known),
            Node::Global(_) | Node::None => {}
            other => return Err(format!("a dict is built from {}", other.kind())),
        }
    }
    Ok(Node::Dict(pairs))
}

fn tensor(heap: &mut Heap, args: &[Id]) -> Result<Node, String> {
    let [storage, offset, size, stride, ..] = args else {
        return Err(format!("a tensor is built from {} parts, expected 4 or more", args.len()));
    };
    let Node::Storage(view) = *heap.get(*storage) else {
        return Err(format!("a tensor is built on {}, expected a storage", heap.get(*storage).kind()));
    };
    let dimensions = heap.items(*size)?.len() + heap.items(*stride)?.len();
    heap.charge(dimensions)?;
    let sizes = |id: Id| heap.items(id)?.iter().map(|item| heap.size(*item)).collect::<Result<Vec<_>, _>>();
    let dtype = heap.storages[view.index].dtype;
    TensorView::new(view, dtype, heap.size(*offset)?, sizes(*size)?, sizes(*stride)?).map(|t| Node::Tensor(t.into()))
}

/// What a persistent id stands for: `('storage', class, key, location, numel[, view])`. A view is
/// `(key, offset, numel)` into the storage, in files of PyTorch before 0.4.
pub(super) fn persistent(heap: &mut Heap, id: Id) -> Result<Node, String> {
    let parts = copied_items(heap, id)?;
    let [tag, class, key, _location, numel, rest @ ..] = &parts[..] else {
        return Err(format!("a persistent id has {} parts, expected 5 or 6", parts.len()));
    };
    if heap.text(*tag) != Some("storage") {
        let tag = heap.text(*tag).unwrap_or("?");
        return Err(format!("persistent ids of kind `{tag}` are not supported, only `storage`; save a state dict"));
    }
    let Node::Global(Global::Storage(dtype)) = *heap.get(*class) else {
        return Err(format!("a storage has {} as its class", heap.get(*class).kind()));
    };
    let key: Box<str> = match heap.get(*key) {
        Node::Text(text) => text.clone(),
        Node::Int(number) => number.to_string().into(),
        other => return Err(format!("a storage is called by {}, expected a text", other.kind())),
    };
    let numel = heap.size(*numel)?;
    let view = match rest.first().map(|id| (*id, heap.get(*id))) {
        None | Some((_, Node::None)) => (0, numel),
        Some((id, _)) => match *heap.items(id)? {
            [_, offset, length] => (heap.size(offset)?, heap.size(length)?),
            _ => return Err("the view of a storage has not 3 parts".into()),
        },
    };
    if view.0.checked_add(view.1).is_none_or(|end| end > numel) {
        return Err(format!("a view of storage `{key}` reaches outside of its {numel} values"));
    }
    let index = heap.storage(&key, dtype, numel)?;
    Ok(Node::Storage(StorageView { index, offset: view.0, numel: view.1 }))
}
