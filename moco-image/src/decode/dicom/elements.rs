//! DICOM's data elements, read in place: nothing is copied and no length is believed before the bytes are there.
//! PS3.5 chapter 7.

use std::ops::Range;

use crate::{Error, Result};

/// How elements are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Encoding {
    /// Whether each element names its type (VR).
    pub explicit: bool,
    pub big_endian: bool,
}

impl Encoding {
    pub const EXPLICIT: Encoding = Encoding { explicit: true, big_endian: false };
    pub const IMPLICIT: Encoding = Encoding { explicit: false, big_endian: false };

    pub fn u16(self, bytes: [u8; 2]) -> u16 {
        if self.big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
    }

    pub fn u32(self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }
}

/// Group and element number: (0028,0010) is `0x0028_0010`.
pub(super) type Tag = u32;

pub(super) const ITEM: Tag = 0xFFFE_E000;
pub(super) const ITEM_END: Tag = 0xFFFE_E00D;
pub(super) const SEQUENCE_END: Tag = 0xFFFE_E0DD;

/// One element, without its value.
#[derive(Debug, Clone)]
pub(super) struct Element {
    pub tag: Tag,
    /// Where its value lies; for an undefined length up to, without, its delimiter.
    pub value: Range<usize>,
    /// Whether the value ends with a delimiter and not after a stated number of bytes.
    pub undefined: bool,
    /// Whether the value is made of 16-bit words (OW), whose bytes change places in big-endian files.
    pub words: bool,
    /// How a sequence inside it is encoded.
    pub inside: Encoding,
}

/// The elements of a range of bytes, one after the other.
pub(super) struct Elements<'a> {
    bytes: &'a [u8],
    at: usize,
    end: usize,
    encoding: Encoding,
}

impl<'a> Elements<'a> {
    pub fn new(bytes: &'a [u8], range: Range<usize>, encoding: Encoding) -> Self {
        Self { bytes, at: range.start, end: range.end.min(bytes.len()), encoding }
    }

    /// Where the next element begins.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Group of the next element.
    pub fn next_group(&self) -> Option<u16> {
        Some(self.encoding.u16(*self.bytes.get(self.at..self.end)?.first_chunk()?))
    }

    /// The next element, past its value; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Element>> {
        if self.end - self.at.min(self.end) < 8 {
            // Files are padded now and then.
            return Ok(None);
        }
        let (tag, length, inside, words) = self.header()?;
        let start = self.at;
        let Some(length) = length else {
            let end = self.skip_undefined(tag, inside)?;
            return Ok(Some(Element { tag, value: start..end, undefined: true, words, inside }));
        };
        let end = start.checked_add(length).filter(|&end| end <= self.end).ok_or_else(|| {
            corrupt(format!(
                "element {} claims {length} bytes at {start}, {} are left: the file is truncated or damaged",
                name(tag),
                self.end - start
            ))
        })?;
        self.at = end;
        Ok(Some(Element { tag, value: start..end, undefined: false, words, inside }))
    }

    /// Tag, length (`None` = undefined), the encoding of what is inside and whether it is words.
    fn header(&mut self) -> Result<(Tag, Option<usize>, Encoding, bool)> {
        let encoding = self.encoding;
        let group = encoding.u16(self.take()?);
        let tag = u32::from(group) << 16 | u32::from(encoding.u16(self.take()?));
        let (mut inside, mut words) = (encoding, false);
        let length = if group == 0xFFFE || !encoding.explicit {
            encoding.u32(self.take()?)
        } else {
            let vr: [u8; 2] = self.take()?;
            match &vr {
                b"UN" | b"OB" | b"OD" | b"OF" | b"OL" | b"OV" | b"OW" | b"SQ" | b"SV" | b"UC" | b"UR" | b"UT"
                | b"UV" => {
                    self.take::<2>()?;
                    words = &vr == b"OW";
                    if &vr == b"UN" {
                        // A sequence of unknown type is always implicit (PS3.5 6.2.2 note 2).
                        inside = Encoding::IMPLICIT;
                    }
                    encoding.u32(self.take()?)
                }
                _ if vr.iter().all(u8::is_ascii_uppercase) => u32::from(encoding.u16(self.take()?)),
                _ => return Err(corrupt(format!("element {} has the type {vr:?}, which is none", name(tag)))),
            }
        };
        Ok((tag, (length != u32::MAX).then_some(length as usize), inside, words))
    }

    /// Goes past a value of undefined length and gives the place where it ends. Levels are counted and not recursed
    /// into: a file can nest as deeply as it likes.
    fn skip_undefined(&mut self, tag: Tag, inside: Encoding) -> Result<usize> {
        let outer = self.encoding;
        let mut levels = vec![(tag, inside)];
        while let Some(&(_, encoding)) = levels.last() {
            self.encoding = encoding;
            let before = self.at;
            let (tag, length, inside, _) = self.header().map_err(|_| {
                corrupt(format!("the sequence {} does not end: the file is truncated", name(levels[0].0)))
            })?;
            match (tag, length) {
                (ITEM_END | SEQUENCE_END, _) => {
                    levels.pop();
                    if levels.is_empty() {
                        self.encoding = outer;
                        return Ok(before);
                    }
                }
                (_, None) => levels.push((tag, inside)),
                (_, Some(length)) => {
                    self.at = self.at.checked_add(length).filter(|&at| at <= self.end).ok_or_else(|| {
                        corrupt(format!("element {} is longer than the file: it is truncated or damaged", name(tag)))
                    })?;
                }
            }
        }
        unreachable!("the loop returns when the last level closes")
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.bytes.get(self.at..self.end).and_then(|rest| rest.first_chunk());
        self.at += N;
        bytes.copied().ok_or_else(|| corrupt("it ends inside an element: the file is truncated".into()))
    }
}

/// The first element of that tag in a range.
pub(super) fn find(bytes: &[u8], range: Range<usize>, encoding: Encoding, tag: Tag) -> Result<Option<Element>> {
    let mut elements = Elements::new(bytes, range, encoding);
    while let Some(element) = elements.next()? {
        if element.tag == tag {
            return Ok(Some(element));
        }
    }
    Ok(None)
}

/// Contents of the items of a sequence.
pub(super) fn items(bytes: &[u8], sequence: &Element) -> Result<Vec<Range<usize>>> {
    let mut items = Vec::new();
    let mut elements = Elements::new(bytes, sequence.value.clone(), sequence.inside);
    while let Some(item) = elements.next()? {
        match item.tag {
            ITEM => items.push(item.value),
            SEQUENCE_END => break,
            other => return Err(corrupt(format!("{} where an item of a sequence was expected", name(other)))),
        }
    }
    Ok(items)
}

pub(super) fn name(tag: Tag) -> String {
    format!("({:04X},{:04X})", tag >> 16, tag & 0xFFFF)
}

pub(super) fn corrupt(reason: String) -> Error {
    Error::Corrupt { format: "DICOM", reason }
}
