//! The zip archive of `torch.save` since PyTorch 1.6: `<name>/data.pkl`, one entry `<name>/data/<key>` a storage,
//! `<name>/byteorder`. PyTorch stores entries as they are; compressed ones (an archive that was packed again) are read
//! as well.

use std::borrow::Cow;
use std::ops::Range;

use super::heap::{Heap, Id};
use super::machine;
use super::zip::Zip;

/// Largest pickle; that of a ResNet-152 with its optimiser has 100 kB.
const MAX_PICKLE: u64 = 64 << 20;

/// Compressed storages may unpack to this many bytes in all.
const MAX_UNPACKED: u64 = 2 << 30;

/// Where a storage lies.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the file.
    File(Range<usize>),
    /// Unpacked.
    Memory(Vec<u8>),
}

/// The object and the place of each storage of the heap.
pub(super) fn read(bytes: &[u8], heap: &mut Heap) -> Result<(Id, Vec<Place>), String> {
    let zip = Zip::open(bytes)?;
    let mut pickles: Vec<&str> = zip.names().filter(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).collect();
    pickles.sort_unstable();
    let pickle = match pickles[..] {
        [one] => one,
        [] => return Err("a zip archive, but not one of torch.save (it holds no data.pkl)".into()),
        _ => return Err(format!("a zip archive of several checkpoints ({}); unpack one", pickles.join(", "))),
    };
    let root = pickle.strip_suffix("data.pkl").expect("it was found by this suffix");
    if zip.size(&format!("{root}constants.pkl")).is_some() {
        return Err(
            "a TorchScript program; save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)".into()
        );
    }
    let order = format!("{root}byteorder");
    if zip.size(&order).is_some() && *zip.read(&order, 16)? != *b"little" {
        return Err("written on a big-endian machine; save it again on a little-endian one".into());
    }
    let (object, _) = machine::run(&zip.read(pickle, MAX_PICKLE)?, 0, heap)?;

    let mut budget = MAX_UNPACKED;
    let mut places = Vec::with_capacity(heap.storages.len());
    for storage in &heap.storages {
        let name = format!("{root}data/{}", storage.key);
        let expected = (storage.numel * storage.dtype.size()) as u64;
        match zip.size(&name) {
            Some(size) if size == expected => {}
            Some(size) => return Err(format!("entry `{name}` has {size} bytes, its tensors expect {expected}")),
            None => return Err(format!("entry `{name}` is missing")),
        }
        places.push(match zip.read(&name, budget)? {
            Cow::Borrowed(part) => {
                let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
                Place::File(start..start + part.len())
            }
            Cow::Owned(values) => {
                budget -= expected;
                Place::Memory(values)
            }
        });
    }
    Ok((object, places))
}
