//! What a DICOM file says about its pixels.

use std::io::Read;
use std::ops::Range;

use super::elements::{Element, Elements, Encoding, Tag, corrupt, find, items, name};
use crate::{Error, Limits, Rescale, Result};

/// A file's bytes, inflated if they were deflated, and what an image needs of them.
pub(super) struct Header {
    pub transfer_syntax: String,
    pub encoding: Encoding,
    pub modality: Option<String>,
    pub photometric: String,
    pub samples: usize,
    /// Channel after channel instead of pixel after pixel.
    pub planar: bool,
    pub frames: usize,
    pub rows: usize,
    pub columns: usize,
    pub bits_allocated: usize,
    pub bits_stored: usize,
    pub high_bit: usize,
    pub signed: bool,
    pub rescale: Option<Rescale>,
    pub window: Option<[f32; 2]>,
    /// Each channel's number of entries, first index and table.
    pub palette: Option<[(usize, i32, Vec<u16>); 3]>,
    per_frame: Option<Element>,
    pub pixels: PixelData,
}

pub(super) enum PixelData {
    /// As they are; `words` as in [`Element`].
    Native { range: Range<usize>, words: bool },
    /// 32-bit or 64-bit floats.
    Floats { range: Range<usize>, double: bool },
    /// Compressed: the fragments, the first of which is the table of offsets.
    Encapsulated(Vec<Range<usize>>),
    /// Beyond the end of what was read.
    Absent,
}

pub(super) const DEFLATED: &str = "1.2.840.10008.1.2.1.99";

/// Whether it is DICOM without the mark at its start: by a first element as files have it.
pub(crate) fn is_dicom(bytes: &[u8]) -> bool {
    bare_encoding(bytes).is_some()
}

/// Encoding of a file without preamble, from its first element: group 2 or 8.
fn bare_encoding(bytes: &[u8]) -> Option<Encoding> {
    let start: &[u8; 8] = bytes.first_chunk()?;
    let (big_endian, group) = match [start[0], start[1]] {
        [2 | 8, 0] => (false, start[0]),
        [0, 8] => (true, 8),
        _ => return None,
    };
    let known = matches!((group, [start[2], start[3]]), (2, [0 | 1 | 2 | 16, 0]) | (8, [0 | 1 | 5 | 8 | 16 | 18, 0]))
        || matches!((big_endian, [start[2], start[3]]), (true, [0, 0 | 1 | 5 | 8 | 16 | 18]));
    let explicit = start[4..6].iter().all(u8::is_ascii_uppercase);
    let short = u32::from_le_bytes([start[4], start[5], start[6], start[7]]) < 256;
    (known && (explicit || short && !big_endian)).then_some(Encoding { explicit, big_endian })
}

impl Header {
    /// Reads everything up to the pixels. With `whole`, what is missing at the end is an error; a header alone may be
    /// cut anywhere in the pixel data.
    pub fn read(bytes: &mut Vec<u8>, limits: &Limits, whole: bool) -> Result<Self> {
        let mut meta = Elements::new(bytes, first_element(bytes)..bytes.len(), Encoding::EXPLICIT);
        let mut transfer_syntax = String::new();
        let bare = meta.at() == 0;
        let mut start = meta.at();
        while meta.next_group() == Some(2) {
            let Some(element) = meta.next()? else { break };
            if element.tag == 0x0002_0010 {
                transfer_syntax = text(&bytes[element.value.clone()]);
            }
            start = meta.at();
        }
        let encoding = match &*transfer_syntax {
            "1.2.840.10008.1.2" => Encoding::IMPLICIT,
            "1.2.840.10008.1.2.2" => Encoding { explicit: true, big_endian: true },
            // Without a stated syntax, as the first element looks.
            "" => bare_encoding(&bytes[start..]).unwrap_or(Encoding::IMPLICIT),
            // Some say explicit and mean implicit.
            _ if bytes[start..].get(4..6).is_some_and(|vr| !vr.iter().all(u8::is_ascii_uppercase)) => {
                if transfer_syntax == DEFLATED { Encoding::EXPLICIT } else { Encoding::IMPLICIT }
            }
            _ => Encoding::EXPLICIT,
        };
        if bare && transfer_syntax.is_empty() && bytes.len() - start < 8 {
            return Err(corrupt("it holds no data set".into()));
        }
        if transfer_syntax == DEFLATED {
            let mut inflated = Vec::new();
            // One byte more than the limit tells that there is more.
            let most = limits.max_bytes.min((bytes.len() as u64).saturating_mul(limits.max_ratio).max(64 << 20));
            flate2::read::DeflateDecoder::new(&bytes[start..])
                .take(most.saturating_add(1))
                .read_to_end(&mut inflated)
                .map_err(|e| corrupt(format!("its deflated data set is damaged: {e}")))?;
            limits.check_encoded(inflated.len() as u64)?;
            limits.check_unpacked(inflated.len() as u64, bytes.len())?;
            *bytes = inflated;
            start = 0;
        }
        Collected::read(bytes, start, encoding, whole)?.into_header(bytes, transfer_syntax)
    }

    /// Slope and intercept, and window, of one frame.
    pub fn units(&self, bytes: &[u8], frame: usize) -> Result<(Option<Rescale>, Option<[f32; 2]>)> {
        let Some(groups) = &self.per_frame else { return Ok((self.rescale, self.window)) };
        let (rescale, window) = match items(bytes, groups)?.get(frame) {
            Some(item) => functional_group(bytes, item.clone(), groups.inside)?,
            None => (None, None),
        };
        Ok((rescale.or(self.rescale), window.or(self.window)))
    }
}

/// The first element: after the preamble and its mark, or at once.
fn first_element(bytes: &[u8]) -> usize {
    if bytes.get(128..132) == Some(b"DICM") { 132 } else { 0 }
}

/// The elements that an image needs.
struct Collected {
    encoding: Encoding,
    found: Vec<Element>,
    pixels: PixelData,
}

const WANTED: [Tag; 24] = [
    0x0008_0060,
    0x0028_0002,
    0x0028_0004,
    0x0028_0006,
    0x0028_0008,
    0x0028_0010,
    0x0028_0011,
    0x0028_0100,
    0x0028_0101,
    0x0028_0102,
    0x0028_0103,
    0x0028_1050,
    0x0028_1051,
    0x0028_1052,
    0x0028_1053,
    0x0028_1056,
    0x0028_1101,
    0x0028_1102,
    0x0028_1103,
    0x0028_1201,
    0x0028_1202,
    0x0028_1203,
    0x0028_3000,
    0x3004_000E,
];
const SHARED_GROUPS: Tag = 0x5200_9229;
const PER_FRAME_GROUPS: Tag = 0x5200_9230;
const FLOAT_PIXELS: Tag = 0x7FE0_0008;
const DOUBLE_PIXELS: Tag = 0x7FE0_0009;
const PIXELS: Tag = 0x7FE0_0010;

impl Collected {
    fn read(bytes: &[u8], start: usize, encoding: Encoding, whole: bool) -> Result<Self> {
        let mut elements = Elements::new(bytes, start..bytes.len(), encoding);
        let (mut found, mut pixels) = (Vec::new(), None);
        loop {
            let in_pixels = elements.next_group() == Some(0x7FE0);
            let element = match elements.next() {
                // All that a header is read for came before.
                Err(_) if in_pixels && !whole => {
                    pixels = Some(PixelData::Absent);
                    break;
                }
                other => other?,
            };
            let Some(element) = element else { break };
            match element.tag {
                PIXELS if element.undefined => {
                    pixels = Some(PixelData::Encapsulated(items(bytes, &element)?));
                    break;
                }
                PIXELS => {
                    pixels = Some(PixelData::Native { range: element.value, words: element.words });
                    break;
                }
                FLOAT_PIXELS | DOUBLE_PIXELS => {
                    let double = element.tag == DOUBLE_PIXELS;
                    pixels = Some(PixelData::Floats { range: element.value, double });
                    break;
                }
                SHARED_GROUPS | PER_FRAME_GROUPS => found.push(element),
                tag if WANTED.contains(&tag) => found.push(element),
                _ => {}
            }
        }
        let this = Self { encoding, found, pixels: PixelData::Absent };
        let Some(pixels) = pixels else {
            let kind = this.text(bytes, 0x0008_0060).map_or(String::new(), |m| format!(" of modality {m}"));
            return Err(Error::Unsupported(format!("a DICOM file{kind} without pixels")));
        };
        Ok(Self { pixels, ..this })
    }

    fn into_header(self, bytes: &[u8], transfer_syntax: String) -> Result<Header> {
        let required = |tag: Tag, what: &str| {
            self.u16(bytes, tag)?.ok_or_else(|| corrupt(format!("{what} {} is missing", name(tag))))
        };
        let (rows, columns) = (required(0x0028_0010, "rows")?, required(0x0028_0011, "columns")?);
        let frames = match self.text(bytes, 0x0028_0008) {
            None => 1,
            Some(text) => text.parse::<usize>().ok().filter(|&n| n > 0).ok_or_else(|| {
                corrupt(format!("the number of frames (0028,0008) is `{text}`, which is no number above 0"))
            })?,
        };
        let floats = matches!(self.pixels, PixelData::Floats { .. });
        let bits_allocated = if floats { 32 } else { required(0x0028_0100, "bits allocated")? };
        let bits_stored = self.u16(bytes, 0x0028_0101)?.unwrap_or(bits_allocated);
        if rows == 0 || columns == 0 {
            return Err(corrupt(format!("a size of {columns} × {rows}")));
        }
        if bits_stored == 0 || bits_stored > bits_allocated {
            return Err(corrupt(format!("{bits_stored} bits stored in {bits_allocated}")));
        }
        let high_bit = self.u16(bytes, 0x0028_0102)?.unwrap_or(bits_stored - 1);
        if high_bit >= bits_allocated || high_bit + 1 < bits_stored {
            return Err(corrupt(format!("{bits_stored} bits stored below bit {high_bit} of {bits_allocated}")));
        }
        if self.find(0x0028_3000).is_some_and(|lut| !lut.value.is_empty()) {
            return Err(Error::Unsupported("a DICOM file whose units are a table (modality LUT sequence)".into()));
        }
        let mut rescale = self.rescale(bytes)?;
        if let (None, Some(scaling)) = (rescale, self.number(bytes, 0x3004_000E)?) {
            rescale = linear(scaling, 0.0)?;
        }
        let mut window = self.window(bytes)?;
        if let Some(shared) = self.find(SHARED_GROUPS)
            && let Some(item) = items(bytes, shared)?.first()
        {
            let (r, w) = functional_group(bytes, item.clone(), shared.inside)?;
            (rescale, window) = (rescale.or(r), window.or(w));
        }
        let photometric = self.text(bytes, 0x0028_0004).unwrap_or_else(|| "MONOCHROME2".into());
        let samples = self.u16(bytes, 0x0028_0002)?.unwrap_or(1);
        let palette = if photometric == "PALETTE COLOR" { Some(self.palette(bytes)?) } else { None };
        Ok(Header {
            transfer_syntax,
            encoding: self.encoding,
            modality: self.text(bytes, 0x0008_0060).filter(|m| !m.is_empty()),
            photometric,
            samples,
            planar: self.u16(bytes, 0x0028_0006)? == Some(1),
            frames,
            rows,
            columns,
            bits_allocated,
            bits_stored,
            high_bit,
            signed: self.u16(bytes, 0x0028_0103)? == Some(1),
            rescale,
            window,
            palette,
            per_frame: self.find(PER_FRAME_GROUPS).cloned(),
            pixels: self.pixels,
        })
    }

    fn find(&self, tag: Tag) -> Option<&Element> {
        self.found.iter().find(|element| element.tag == tag)
    }

    fn text(&self, bytes: &[u8], tag: Tag) -> Option<String> {
        self.find(tag).map(|e| text(&bytes[e.value.clone()])).filter(|t| !t.is_empty())
    }

    fn u16(&self, bytes: &[u8], tag: Tag) -> Result<Option<usize>> {
        let Some(element) = self.find(tag).filter(|e| !e.value.is_empty()) else { return Ok(None) };
        let value =
            bytes[element.value.clone()].first_chunk().ok_or_else(|| corrupt(format!("{} is too short", name(tag))))?;
        Ok(Some(usize::from(self.encoding.u16(*value))))
    }

    fn number(&self, bytes: &[u8], tag: Tag) -> Result<Option<f64>> {
        self.find(tag).map_or(Ok(None), |e| number(&bytes[e.value.clone()], tag))
    }

    fn rescale(&self, bytes: &[u8]) -> Result<Option<Rescale>> {
        match (self.number(bytes, 0x0028_1053)?, self.number(bytes, 0x0028_1052)?) {
            (None, None) => Ok(None),
            (slope, intercept) => linear(slope.unwrap_or(1.0), intercept.unwrap_or(0.0)),
        }
    }

    fn window(&self, bytes: &[u8]) -> Result<Option<[f32; 2]>> {
        let numbers = (self.number(bytes, 0x0028_1050)?, self.number(bytes, 0x0028_1051)?);
        Ok(window(numbers, self.text(bytes, 0x0028_1056).as_deref()))
    }

    /// PS3.3 C.7.6.3.1.5 and .6.
    fn palette(&self, bytes: &[u8]) -> Result<[(usize, i32, Vec<u16>); 3]> {
        let table = |channel: u32| -> Result<(usize, i32, Vec<u16>)> {
            let descriptor = self.find(0x0028_1101 + channel).map(|e| &bytes[e.value.clone()]);
            let Some(&[a, b, c, d, e, f]) = descriptor.and_then(|d| d.first_chunk::<6>()) else {
                return Err(corrupt("a palette image without the palette's description".into()));
            };
            let entries = match self.encoding.u16([a, b]) {
                0 => 1 << 16,
                n => usize::from(n),
            };
            let first = i32::from(self.encoding.u16([c, d]) as i16);
            let bits = self.encoding.u16([e, f]);
            let data = self.find(0x0028_1201 + channel).map_or(&[][..], |e| &bytes[e.value.clone()]);
            // Tables of 8 bits come as bytes, or as words with a spare byte.
            let values: Vec<u16> = if data.len() >= 2 * entries {
                let words = data.as_chunks().0.iter().map(|w| self.encoding.u16(*w));
                words.map(|w| if bits == 8 { w & 0xFF } else { w >> 8 }).collect()
            } else {
                data.iter().map(|&b| u16::from(b)).collect()
            };
            if values.len() < entries {
                return Err(corrupt(format!("a palette of {} entries, {entries} are announced", values.len())));
            }
            Ok((entries, first, values))
        };
        Ok([table(0)?, table(1)?, table(2)?])
    }
}

/// Slope, intercept and window of a functional group (PS3.3 C.7.6.16.2.9, .10).
fn functional_group(
    bytes: &[u8],
    item: Range<usize>,
    encoding: Encoding,
) -> Result<(Option<Rescale>, Option<[f32; 2]>)> {
    let inner = |sequence: Tag| -> Result<Option<(Range<usize>, Encoding)>> {
        let Some(sequence) = find(bytes, item.clone(), encoding, sequence)? else { return Ok(None) };
        Ok(items(bytes, &sequence)?.first().map(|first| (first.clone(), sequence.inside)))
    };
    let value = |(range, encoding): &(Range<usize>, Encoding), tag: Tag| -> Result<Option<f64>> {
        find(bytes, range.clone(), *encoding, tag)?.map_or(Ok(None), |e| number(&bytes[e.value], tag))
    };
    let rescale = match inner(0x0028_9145)? {
        Some(group) => match (value(&group, 0x0028_1053)?, value(&group, 0x0028_1052)?) {
            (None, None) => None,
            (slope, intercept) => linear(slope.unwrap_or(1.0), intercept.unwrap_or(0.0))?,
        },
        None => None,
    };
    let window = match inner(0x0028_9132)? {
        Some(group) => {
            let function = find(bytes, group.0.clone(), group.1, 0x0028_1056)?.map(|e| text(&bytes[e.value]));
            window((value(&group, 0x0028_1050)?, value(&group, 0x0028_1051)?), function.as_deref())
        }
        None => None,
    };
    Ok((rescale, window))
}

fn linear(slope: f64, intercept: f64) -> Result<Option<Rescale>> {
    if slope == 0.0 || !slope.is_finite() || !intercept.is_finite() {
        return Err(corrupt(format!("rescale slope {slope} and intercept {intercept}")));
    }
    Ok((slope != 1.0 || intercept != 0.0).then_some(Rescale { slope, intercept }))
}

/// PS3.3 C.11.2.1.2 and .3; a sigmoid is no window.
fn window(centre_width: (Option<f64>, Option<f64>), function: Option<&str>) -> Option<[f32; 2]> {
    let (Some(centre), Some(width)) = centre_width else { return None };
    let [black, white] = match function {
        Some("SIGMOID") => return None,
        Some("LINEAR_EXACT") => [centre - width / 2.0, centre + width / 2.0],
        _ => [centre - 0.5 - (width - 1.0) / 2.0, centre - 0.5 + (width - 1.0) / 2.0],
    };
    (black < white).then_some([black as f32, white as f32])
}

/// The first of the values.
fn number(bytes: &[u8], tag: Tag) -> Result<Option<f64>> {
    let text = text(bytes);
    let first = text.split('\\').next().unwrap_or("").trim();
    if first.is_empty() {
        return Ok(None);
    }
    let number = first.parse::<f64>().ok().filter(|n| n.is_finite());
    number.map(Some).ok_or_else(|| corrupt(format!("{} is `{first}`, which is no number", name(tag))))
}

/// Text without padding, at most as long as any value read here.
fn text(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(1024)];
    String::from_utf8_lossy(bytes).trim_matches([' ', '\0']).to_owned()
}
