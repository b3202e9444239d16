//! The zip archive of `torch.save` since PyTorch 1.6: `<name>/data.pkl`, one entry `<name>/data/<key>` a storage,
//! `<name>/byteorder`. PyTorch stores entries as they are; compressed ones (an archive that was packed again) are read
//! as well.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::heap::{Heap, Id};
use super::machine;

/// Largest pickle; that of a ResNet-152 with its optimiser has 100 kB.
const MAX_PICKLE: u64 = 64 << 20;

/// Compressed storages may unpack to this many bytes in all.
const MAX_UNPACKED: u64 = 4 << 30;

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
    let mut zip = ZipArchive::new(Cursor::new(bytes)).map_err(|e| {
        format!("a zip archive without a readable directory ({e}); is the file truncated or the download incomplete?")
    })?;
    let pickles: Vec<String> =
        zip.file_names().filter(|n| *n == "data.pkl" || n.ends_with("/data.pkl")).map(str::to_owned).collect();
    let pickle = match &pickles[..] {
        [one] => one.clone(),
        [] => return Err("a zip archive, but not one of torch.save (it holds no data.pkl)".into()),
        many => return Err(format!("a zip archive of {} checkpoints ({}); unpack one", many.len(), many.join(", "))),
    };
    let root = pickle.strip_suffix("data.pkl").expect("it was found by this suffix").to_owned();
    if zip.index_for_name(&format!("{root}constants.pkl")).is_some() {
        return Err(
            "a TorchScript program; save its weights: torch.save(torch.jit.load(FILE).state_dict(), NEW)".into()
        );
    }
    if zip.index_for_name(&format!("{root}byteorder")).is_some() {
        let order = unpack(bytes, &mut zip, &format!("{root}byteorder"), 16)?;
        if *order != *b"little" {
            return Err("written on a big-endian machine; save it again on a little-endian one".into());
        }
    }
    let pickle = unpack(bytes, &mut zip, &pickle, MAX_PICKLE)?;
    let (object, _) = machine::run(&pickle, 0, heap)?;

    let mut budget = MAX_UNPACKED;
    let mut places = Vec::with_capacity(heap.storages.len());
    for storage in &heap.storages {
        let name = format!("{root}data/{}", storage.key);
        let expected = (storage.numel * storage.dtype.size()) as u64;
        let index = zip.index_for_name(&name).ok_or_else(|| format!("entry `{name}` is missing"))?;
        let size = zip.by_index_raw(index).map_err(|e| format!("entry `{name}`: {e}"))?.size();
        if size != expected {
            return Err(format!("entry `{name}` has {size} bytes, its tensors expect {expected}"));
        }
        places.push(match unpack(bytes, &mut zip, &name, expected.min(budget))? {
            Cow::Borrowed(part) => {
                let start = part.as_ptr() as usize - bytes.as_ptr() as usize;
                Place::File(start..start + part.len())
            }
            Cow::Owned(values) => {
                budget -= values.len() as u64;
                Place::Memory(values)
            }
        });
    }
    Ok((object, places))
}

/// The content of an entry, with its checksum verified: in place where it is stored as it is, otherwise unpacked, up
/// to `limit` bytes.
fn unpack<'a>(
    bytes: &'a [u8],
    zip: &mut ZipArchive<Cursor<&'a [u8]>>,
    name: &str,
    limit: u64,
) -> Result<Cow<'a, [u8]>, String> {
    let failed = |reason: String| format!("entry `{name}`: {reason}");
    let mut entry = zip.by_name(name).map_err(|e| failed(e.to_string()))?;
    if entry.compression() == CompressionMethod::Stored {
        let range = entry.data_start().and_then(|start| {
            let (start, len) = (usize::try_from(start).ok()?, usize::try_from(entry.size()).ok()?);
            Some(start..start.checked_add(len)?)
        });
        let part = range.and_then(|range| bytes.get(range)).ok_or_else(|| failed("reaches past the end".into()))?;
        if entry.compressed_size() != entry.size() || crc32fast::hash(part) != entry.crc32() {
            return Err(failed("its checksum is wrong; the file is damaged".into()));
        }
        return Ok(Cow::Borrowed(part));
    }
    // The size that the directory claims is not trusted with memory.
    let mut content = Vec::new();
    (&mut entry).take(limit.saturating_add(1)).read_to_end(&mut content).map_err(|e| failed(e.to_string()))?;
    if content.len() as u64 > limit {
        return Err(failed(format!("unpacks to more than the {limit} bytes that are allowed")));
    }
    Ok(Cow::Owned(content))
}
