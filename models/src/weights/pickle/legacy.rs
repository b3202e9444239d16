//! The legacy (non-zip) stream of `torch.save`, PyTorch 0.1.10 to 1.5 and later on request: pickles of a magic number,
//! a protocol version, a description of the machine, the object and the storage keys; then the storages, each as its
//! length and its bytes.

use std::ops::Range;

use super::heap::{Heap, Id, Node};
use super::machine;

/// 0x1950a86a20f9469cfc6c, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

const PROTOCOL: i64 = 1001;

/// Whether a pickle begins as such a stream does: with the magic number, behind a header that depends on the protocol.
pub(super) fn is(bytes: &[u8]) -> bool {
    bytes[..bytes.len().min(32)].windows(MAGIC.len()).any(|window| window == MAGIC)
}

/// The object and the place of each storage of the heap in the file.
pub(super) fn read(bytes: &[u8], heap: &mut Heap) -> Result<(Id, Vec<Range<usize>>), String> {
    let (magic, at) = machine::run(bytes, 0, heap)?;
    if !matches!(heap.get(magic), Node::Big(digits) if **digits == MAGIC) {
        return Err("a pickle, but not one of torch.save (its magic number is missing)".into());
    }
    let (version, at) = machine::run(bytes, at, heap)?;
    if !matches!(heap.get(version), Node::Int(PROTOCOL)) {
        return Err(format!("a torch.save stream of another version than {PROTOCOL}"));
    }
    let (machine_info, at) = machine::run(bytes, at, heap)?;
    if heap.entry(machine_info, "little_endian").is_some_and(|id| matches!(heap.get(id), Node::Bool(false))) {
        return Err("written on a big-endian machine; save it again on a little-endian one".into());
    }
    let (root, at) = machine::run(bytes, at, heap)?;
    let (keys, mut at) = machine::run(bytes, at, heap)?;
    let Node::List(keys) = heap.get(keys) else {
        return Err(format!("the storage keys are {}, expected a list", heap.get(keys).kind()));
    };

    let mut spans = vec![None; heap.storages.len()];
    for &key in keys {
        let key = match heap.get(key) {
            Node::Text(text) => text.clone(),
            Node::Int(number) => number.to_string().into(),
            other => return Err(format!("a storage is called by {}, expected a text", other.kind())),
        };
        let index = heap
            .storage_index(&key)
            .ok_or_else(|| format!("storage `{key}` is listed, but no tensor uses it; the file is damaged"))?;
        let storage = &heap.storages[index];
        let ends_early = || format!("the file ends before storage `{key}` does; it is truncated");
        let length = bytes.get(at..at.saturating_add(8)).ok_or_else(ends_early)?;
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes were taken"));
        if length != storage.numel as u64 {
            return Err(format!("storage `{key}` has {length} values, its tensors expect {}", storage.numel));
        }
        let start = at + 8;
        let end = start.checked_add(storage.numel * storage.dtype.size()).filter(|end| *end <= bytes.len());
        at = end.ok_or_else(ends_early)?;
        if spans[index].replace(start..at).is_some() {
            return Err(format!("storage `{key}` is listed twice; the file is damaged"));
        }
    }
    let spans = spans.into_iter().zip(&heap.storages).map(|(span, storage)| {
        span.ok_or_else(|| format!("storage `{}` is used, but not in the file; it is truncated", storage.key))
    });
    Ok((root, spans.collect::<Result<_, _>>()?))
}
