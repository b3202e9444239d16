//! A plain pickle of numpy arrays, as Detectron2 keeps its weights: the arrays' bytes lie in the pickle itself.

use std::ops::Range;

use super::heap::{Heap, Id, Node, StorageView, TensorView};
use super::machine;
use crate::weights::Dtype;

/// The object and the place of each array's values in the file.
pub(super) fn read(bytes: &[u8], heap: &mut Heap) -> Result<(Id, Vec<Range<usize>>), String> {
    heap.keep_arrays = true;
    let (root, _) = machine::run(bytes, 0, heap)?;
    if heap.storages.is_empty() {
        return Err("a pickle, but not one of torch.save (its magic number is missing) and without numpy arrays".into());
    }
    let span = |storage: &super::heap::Storage| {
        let start: usize = storage.key.parse().expect("arrays are called by the place of their bytes");
        start..start + storage.numel * storage.dtype.size()
    };
    Ok((root, heap.storages.iter().map(span).collect()))
}

/// What `numpy.dtype('f4', …)` is; none for types that no tensor has.
pub(super) fn dtype(name: &str) -> Option<Dtype> {
    Some(match name.trim_start_matches(['<', '|', '=']) {
        "b1" => Dtype::Bool,
        "u1" => Dtype::U8,
        "i1" => Dtype::I8,
        "i2" => Dtype::I16,
        "i4" => Dtype::I32,
        "i8" => Dtype::I64,
        "f2" => Dtype::F16,
        "f4" => Dtype::F32,
        "f8" => Dtype::F64,
        _ => return None,
    })
}

/// The state that fills an array: `(version, shape, dtype, is_fortran, bytes)`. Arrays of objects become nothing.
pub(super) fn filled(heap: &mut Heap, state: Id) -> Result<Node, String> {
    match heap.items(state)? {
        &[_, shape, dtype, fortran, data] => {
            let fortran = matches!(heap.get(fortran), Node::Bool(true));
            array(heap, data, dtype, shape, fortran)
        }
        other => Err(format!("an array is filled from {} parts, expected 5", other.len())),
    }
}

/// `_frombuffer(bytes, dtype, shape, order)`, as pickles of protocol 5 have it.
pub(super) fn from_buffer(heap: &mut Heap, args: &[Id]) -> Result<Node, String> {
    match args {
        &[data, dtype, shape, order] => {
            let fortran = heap.text(order) == Some("F");
            array(heap, data, dtype, shape, fortran)
        }
        other => Err(format!("an array is made of {} parts, expected 4", other.len())),
    }
}

fn array(heap: &mut Heap, data: Id, dtype: Id, shape: Id, fortran: bool) -> Result<Node, String> {
    let Node::NumpyDtype(dtype) = *heap.get(dtype) else {
        return Err(format!("the type of an array is {}", heap.get(dtype).kind()));
    };
    let Some(dtype) = dtype else { return Ok(Node::Object) };
    let Node::Bytes { start, len } = *heap.get(data) else {
        return Err(format!(
            "the values of an array are {}; pickles of Python 2 and of protocol 2 are not supported, save it again with \
             Python 3",
            heap.get(data).kind()
        ));
    };
    let dimensions = heap.items(shape)?.len();
    heap.charge(2 * dimensions)?;
    let shape = heap.items(shape)?.iter().map(|item| heap.size(*item)).collect::<Result<Vec<_>, _>>()?;
    let bytes = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    if bytes != Some(len) {
        return Err(format!("an array {shape:?} of {dtype} has {len} bytes"));
    }
    let numel = len / dtype.size();
    let index = heap.storage(&start.to_string(), dtype, numel)?;
    let mut strides = vec![1; shape.len()];
    let mut step = 1;
    let mut set = |axis: usize| {
        strides[axis] = step;
        step *= shape[axis].max(1);
    };
    if fortran {
        (0..shape.len()).for_each(&mut set)
    } else {
        (0..shape.len()).rev().for_each(&mut set)
    }
    let view = StorageView { index, offset: 0, numel };
    TensorView::new(view, dtype, 0, shape, strides).map(|view| Node::Tensor(view.into()))
}
