//! The directory of a zip archive (PKWARE's APPNOTE 6.3, with the 64-bit fields), read in place. Memory is spent on
//! what is there, never on what a field claims.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;

/// Length of the end record without its comment, and of the longest comment.
const END_LEN: usize = 22;
const MAX_COMMENT: usize = 0xffff;

const STORED: u16 = 0;
const DEFLATED: u16 = 8;

/// An archive in memory.
pub(super) struct Zip<'a> {
    bytes: &'a [u8],
    entries: HashMap<String, Entry>,
    /// Bytes in front of the archive, which its offsets do not count.
    shift: usize,
}

#[derive(Clone, Copy)]
struct Entry {
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    size: u64,
    header: u64,
}

impl<'a> Zip<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Zip<'a>, String> {
        let end = find_end(bytes).ok_or("a zip archive without its end; the file is truncated")?;
        let (directory_end, count, len, offset) = directory(bytes, end)?;
        let start = usize::try_from(len).ok().and_then(|len| directory_end.checked_sub(len));
        let start = start.ok_or("the zip directory is larger than the file; the file is truncated or damaged")?;
        let shift = usize::try_from(offset).ok().and_then(|offset| start.checked_sub(offset));
        let shift = shift.ok_or("the zip directory is not where it should be; the file is truncated or damaged")?;

        let mut reader = Fields { bytes: &bytes[start..directory_end] };
        let mut entries = HashMap::new();
        while !reader.bytes.is_empty() {
            let (name, entry) = reader.entry().ok_or("an entry of the zip directory is damaged")?;
            if entries.contains_key(&name) {
                return Err(format!("the zip archive has two entries `{name}`"));
            }
            entries.insert(name, entry);
        }
        if entries.len() as u64 != count {
            return Err(format!("the zip directory has {} entries and claims {count}; it is damaged", entries.len()));
        }
        Ok(Zip { bytes, entries, shift })
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Size of an entry's content as the directory tells it.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|entry| entry.size)
    }

    /// The content of an entry, with its checksum verified: in place where it is stored as it is, otherwise unpacked,
    /// up to `limit` bytes of memory.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Cow<'a, [u8]>, String> {
        let failed = |reason: &str| format!("zip entry `{name}`: {reason}");
        let entry = self.entries.get(name).ok_or_else(|| failed("is missing"))?;
        if entry.flags & 1 != 0 {
            return Err(failed("is encrypted"));
        }
        if entry.method != STORED && entry.size > limit {
            return Err(failed(&format!("unpacks to {} bytes, at most {limit} are allowed", entry.size)));
        }
        let packed = self.packed(entry).ok_or_else(|| failed("is not where it should be; the file is damaged"))?;
        let content = match entry.method {
            STORED => Cow::Borrowed(packed),
            DEFLATED => {
                // One byte more than there should be shows that there is more.
                let mut content = Vec::new();
                let mut decoder = flate2::bufread::DeflateDecoder::new(packed).take(entry.size + 1);
                decoder.read_to_end(&mut content).map_err(|e| failed(&format!("cannot be unpacked ({e})")))?;
                Cow::Owned(content)
            }
            other => return Err(failed(&format!("is packed by method {other}; only stored and deflated are read"))),
        };
        if content.len() as u64 != entry.size || crc32fast::hash(&content) != entry.crc {
            return Err(failed("has the wrong length or checksum; the file is damaged"));
        }
        Ok(content)
    }

    fn packed(&self, entry: &Entry) -> Option<&'a [u8]> {
        let header = usize::try_from(entry.header).ok()?.checked_add(self.shift)?;
        let mut local = Fields { bytes: self.bytes.get(header..)? };
        local.signature(b"PK\x03\x04")?;
        local.skip(22)?;
        let (name, extra) = (local.u16()?, local.u16()?);
        local.skip(usize::from(name) + usize::from(extra))?;
        local.bytes.get(..usize::try_from(entry.packed).ok()?)
    }
}

/// Place of the end record: the last one whose comment fits into the file.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(END_LEN)?;
    (last.saturating_sub(MAX_COMMENT)..=last).rev().find(|&at| {
        let comment = u16::from_le_bytes([bytes[at + 20], bytes[at + 21]]);
        bytes[at..].starts_with(b"PK\x05\x06") && at + END_LEN + usize::from(comment) == bytes.len()
    })
}

/// End of the directory, number of entries, length and offset of the directory.
fn directory(bytes: &[u8], end: usize) -> Result<(usize, u64, u64, u64), String> {
    let mut record = Fields { bytes: &bytes[end + 4..] };
    let mut classic = || {
        let (disk, start_disk, _) = (record.u16()?, record.u16()?, record.u16()?);
        let (count, len, offset) = (record.u16()?, record.u32()?, record.u32()?);
        Some((disk, start_disk, count, len, offset))
    };
    let (disk, start_disk, count, len, offset) = classic().ok_or("the end of the zip archive is damaged")?;
    let locator = end.checked_sub(20).filter(|at| bytes[*at..].starts_with(b"PK\x06\x07"));
    if let Some(locator) = locator {
        let wide = || {
            let at = usize::try_from(Fields { bytes: &bytes[locator + 8..] }.u64()?).ok()?;
            let mut record = Fields { bytes: bytes.get(at..locator)? };
            record.signature(b"PK\x06\x06")?;
            record.skip(28)?;
            Some((at, record.u64()?, record.u64()?, record.u64()?))
        };
        return wide().ok_or_else(|| "the 64-bit end of the zip archive is damaged".into());
    }
    if disk != 0 || start_disk != 0 {
        return Err("a zip archive of several parts".into());
    }
    Ok((end, count.into(), len.into(), offset.into()))
}

/// Little-endian fields, taken from the front.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(part)
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.take(len).map(drop)
    }

    fn signature(&mut self, expected: &[u8; 4]) -> Option<()> {
        (self.take(4)? == expected).then_some(())
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// An entry of the directory.
    fn entry(&mut self) -> Option<(String, Entry)> {
        self.signature(b"PK\x01\x02")?;
        self.skip(4)?;
        let (flags, method) = (self.u16()?, self.u16()?);
        self.skip(4)?;
        let (crc, packed, size) = (self.u32()?, self.u32()?, self.u32()?);
        let (name, extra, comment) = (self.u16()?, self.u16()?, self.u16()?);
        self.skip(8)?;
        let header = self.u32()?;
        let name = std::str::from_utf8(self.take(name.into())?).ok()?.to_owned();
        let mut extra = Fields { bytes: self.take(extra.into())? };
        self.skip(comment.into())?;

        let mut entry = Entry { flags, method, crc, packed: packed.into(), size: size.into(), header: header.into() };
        while let (Some(id), Some(len)) = (extra.u16(), extra.u16()) {
            let mut field = Fields { bytes: extra.take(len.into())? };
            if id == 1 {
                // The 64-bit field holds those values that do not fit above, in this order.
                for value in [&mut entry.size, &mut entry.packed, &mut entry.header] {
                    if *value == u64::from(u32::MAX) {
                        *value = field.u64()?;
                    }
                }
            }
        }
        Some((name, entry))
    }
}
