//! The two JPEG processes that decoders of pictures leave out and medical files have: lossless with prediction
//! (SOF3, ITU T.81 annex H), and sequential DCT of 12 bits (SOF1, F.2).

use super::elements::corrupt;
use crate::{Error, Result};

/// Values of a frame, channels interleaved.
pub(super) fn decode(bytes: &[u8], size: (usize, usize), samples: usize) -> Result<Vec<u32>> {
    Decoder { bytes, at: 0, frame: None, quantisation: [[0; 64]; 4], tables: Default::default(), restart: 0 }
        .decode(size, samples)
}

struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
    frame: Option<Frame>,
    quantisation: [[u16; 64]; 4],
    /// DC tables (which lossless data uses), then AC tables.
    tables: [[Option<Box<Huffman>>; 4]; 2],
    restart: usize,
}

struct Frame {
    lossless: bool,
    precision: u32,
    /// Identifier and quantisation table of each component.
    components: Vec<(u8, usize)>,
}

struct Scan {
    /// Index of each component, its DC and AC table.
    components: Vec<(usize, usize, usize)>,
    /// First of the spectral selection: the predictor of lossless data.
    predictor: u8,
    /// Low bits left out.
    shift: u32,
}

impl Decoder<'_> {
    fn decode(mut self, size: (usize, usize), samples: usize) -> Result<Vec<u32>> {
        let mut values = vec![0u32; size.0 * size.1 * samples];
        let mut done = vec![false; samples];
        while !done.iter().all(|d| *d) {
            let marker = self.next_marker()?;
            match marker {
                0xD8 | 0x01 | 0xD0..=0xD7 => {}
                0xD9 => return Err(damaged("it ends before all its channels are there")),
                0xC3 | 0xC1 => self.read_frame(marker == 0xC3, size, samples)?,
                0xC4 => self.read_tables()?,
                0xC0 | 0xC2 | 0xC5..=0xCF => {
                    return Err(Error::Unsupported(format!("a JPEG frame of process FF{marker:02X}")));
                }
                0xDB => self.read_quantisation()?,
                0xDD => {
                    let segment = self.segment()?;
                    let count = segment.first_chunk().ok_or_else(|| damaged("a restart interval that is too short"))?;
                    self.restart = usize::from(u16::from_be_bytes(*count));
                }
                0xDA => {
                    let scan = self.read_scan()?;
                    for (component, ..) in &scan.components {
                        done[*component] = true;
                    }
                    let lossless = self.frame.as_ref().is_some_and(|f| f.lossless);
                    if lossless {
                        self.lossless(&scan, size, &mut values)?
                    } else {
                        self.dct(&scan, size, &mut values)?
                    }
                }
                _ => drop(self.segment()?),
            }
        }
        Ok(values)
    }

    fn next_marker(&mut self) -> Result<u8> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let start = rest.iter().position(|&b| b == 0xFF).ok_or_else(|| damaged("it ends early"))?;
            let marker = *rest.get(start + 1).ok_or_else(|| damaged("it ends early"))?;
            // Fill bytes and stuffed zeros are no markers.
            self.at += start + if marker == 0xFF { 1 } else { 2 };
            if !matches!(marker, 0 | 0xFF) {
                return Ok(marker);
            }
        }
    }

    fn segment(&mut self) -> Result<&[u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.first_chunk().map(|l| usize::from(u16::from_be_bytes(*l)));
        match length.and_then(|length| rest.get(2..length)) {
            Some(segment) => {
                self.at += segment.len() + 2;
                Ok(segment)
            }
            None => Err(damaged("it ends inside a segment")),
        }
    }

    fn read_frame(&mut self, lossless: bool, (rows, columns): (usize, usize), samples: usize) -> Result<()> {
        let segment = self.segment()?;
        let &[precision, h1, h0, w1, w0, count, ..] = segment else { return Err(damaged("a short frame header")) };
        let size = (usize::from(u16::from_be_bytes([h1, h0])), usize::from(u16::from_be_bytes([w1, w0])));
        if size != (rows, columns) || usize::from(count) != samples {
            return Err(damaged(&format!(
                "{} × {} of {count} channel(s) where the file announces {columns} × {rows} of {samples}",
                size.1, size.0
            )));
        }
        let wanted = if lossless { 2..=16 } else { 8..=12 };
        if !wanted.contains(&precision) {
            return Err(damaged(&format!("{precision} bits a value")));
        }
        if !lossless && samples != 1 {
            return Err(Error::Unsupported("a colour JPEG of 12 bits".into()));
        }
        let mut components = Vec::new();
        for component in segment[6..].chunks_exact(3).take(samples) {
            if lossless && component[1] != 0x11 {
                return Err(Error::Unsupported("a lossless JPEG with subsampled channels".into()));
            }
            components.push((component[0], usize::from(component[2] & 3)));
        }
        if components.len() != samples {
            return Err(damaged("a short frame header"));
        }
        self.frame = Some(Frame { lossless, precision: u32::from(precision), components });
        Ok(())
    }

    fn read_tables(&mut self) -> Result<()> {
        let mut segment = self.segment()?.to_vec();
        while !segment.is_empty() {
            let header: &[u8; 17] = segment.first_chunk().ok_or_else(|| damaged("a short Huffman table"))?;
            let (class, index) = (usize::from(header[0] >> 4), usize::from(header[0] & 15));
            let count: usize = header[1..].iter().map(|&n| usize::from(n)).sum();
            let symbols = segment.get(17..17 + count).ok_or_else(|| damaged("a short Huffman table"))?;
            if class > 1 || index > 3 {
                return Err(damaged("a Huffman table of a number that does not exist"));
            }
            self.tables[class][index] = Some(Box::new(Huffman::new(&header[1..], symbols)?));
            segment.drain(..17 + count);
        }
        Ok(())
    }

    fn read_quantisation(&mut self) -> Result<()> {
        let mut segment = self.segment()?.to_vec();
        while let Some(&header) = segment.first() {
            let wide = header >> 4 != 0;
            let len = if wide { 128 } else { 64 };
            let values = segment.get(1..1 + len).ok_or_else(|| damaged("a short quantisation table"))?;
            let table: Vec<u16> = if wide {
                values.as_chunks().0.iter().map(|b| u16::from_be_bytes(*b)).collect()
            } else {
                values.iter().map(|&b| u16::from(b)).collect()
            };
            self.quantisation[usize::from(header & 3)].copy_from_slice(&table);
            segment.drain(..1 + len);
        }
        Ok(())
    }

    fn read_scan(&mut self) -> Result<Scan> {
        let segment = self.segment()?.to_vec();
        let frame = self.frame.as_ref().ok_or_else(|| damaged("no frame header before the data"))?;
        let count = usize::from(*segment.first().unwrap_or(&0));
        let short = || damaged("a short scan header");
        let [predictor, _, low] =
            *segment.get(1 + 2 * count..4 + 2 * count).and_then(|t| t.first_chunk()).ok_or_else(short)?;
        let mut components = Vec::new();
        for selector in segment[1..1 + 2 * count].chunks_exact(2) {
            let index = frame.components.iter().position(|(id, _)| *id == selector[0]);
            let index = index.ok_or_else(|| damaged("a scan of a channel that does not exist"))?;
            components.push((index, usize::from(selector[1] >> 4 & 3), usize::from(selector[1] & 3)));
        }
        let shift = u32::from(low & 15);
        if components.is_empty() || (frame.lossless && (!(1..=7).contains(&predictor) || shift >= frame.precision)) {
            return Err(damaged("a scan header that contradicts its frame"));
        }
        Ok(Scan { components, predictor, shift })
    }

    fn table(&self, class: usize, index: usize) -> Result<&Huffman> {
        self.tables[class][index].as_deref().ok_or_else(|| damaged("a Huffman table that is not there"))
    }

    fn lossless(&mut self, scan: &Scan, (rows, columns): (usize, usize), values: &mut [u32]) -> Result<()> {
        let frame = self.frame.as_ref().ok_or_else(|| damaged("no frame header before the data"))?;
        let samples = frame.components.len();
        let tables = scan.components.iter().map(|(_, dc, _)| self.table(0, *dc)).collect::<Result<Vec<_>>>()?;
        let start = 1i32 << (frame.precision - scan.shift - 1);
        let mut bits = Bits::new(self.bytes, self.at);
        let (mut left, mut first_row) = (self.restart, 0);
        for y in 0..rows {
            for x in 0..columns {
                if self.restart > 0 && left == 0 {
                    bits.restart()?;
                    (left, first_row) = (self.restart, y);
                }
                left = left.wrapping_sub(1);
                for ((component, ..), table) in scan.components.iter().zip(&tables) {
                    let at =
                        |y: usize, x: usize| (values[(y * columns + x) * samples + component] >> scan.shift) as i32;
                    let predicted = if y == first_row {
                        if x == 0 { start } else { at(y, x - 1) }
                    } else if x == 0 {
                        at(y - 1, 0)
                    } else {
                        let (a, b, c) = (at(y, x - 1), at(y - 1, x), at(y - 1, x - 1));
                        match scan.predictor {
                            1 => a,
                            2 => b,
                            3 => c,
                            4 => a + b - c,
                            5 => a + ((b - c) >> 1),
                            6 => b + ((a - c) >> 1),
                            _ => (a + b) / 2,
                        }
                    };
                    let difference = match bits.symbol(table)? {
                        16 => 32768,
                        size @ 0..16 => bits.signed(u32::from(size)),
                        _ => return Err(damaged("a difference of more than 16 bits")),
                    };
                    let value = (predicted + difference) as u32 & 0xFFFF;
                    values[(y * columns + x) * samples + component] = value << scan.shift & 0xFFFF;
                }
            }
        }
        self.at = bits.end()?;
        Ok(())
    }

    fn dct(&mut self, scan: &Scan, (rows, columns): (usize, usize), values: &mut [u32]) -> Result<()> {
        let frame = self.frame.as_ref().ok_or_else(|| damaged("no frame header before the data"))?;
        let [(_, dc, ac)] = scan.components[..] else { return Err(damaged("a scan of several channels")) };
        let (dc, ac) = (self.table(0, dc)?, self.table(1, ac)?);
        let quantisation = &self.quantisation[frame.components[0].1];
        let cosines = cosines();
        let (middle, most) = (f64::from(1u32 << (frame.precision - 1)), f64::from((1u32 << frame.precision) - 1));
        let mut bits = Bits::new(self.bytes, self.at);
        let (mut left, mut last) = (self.restart, 0i32);
        for top in (0..rows).step_by(8) {
            for first in (0..columns).step_by(8) {
                if self.restart > 0 && left == 0 {
                    bits.restart()?;
                    (left, last) = (self.restart, 0);
                }
                left = left.wrapping_sub(1);
                let mut block = [0f64; 64];
                let size = u32::from(bits.symbol(dc)?);
                if size > 15 {
                    return Err(damaged("a coefficient of more than 15 bits"));
                }
                last = last.wrapping_add(bits.signed(size));
                block[0] = f64::from(last) * f64::from(quantisation[0]);
                let mut k = 1;
                while k < 64 {
                    let symbol = bits.symbol(ac)?;
                    let (run, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
                    match (run, size) {
                        (15, 0) => k += 16,
                        (_, 0) => break,
                        _ => {
                            k += run;
                            let place =
                                *ZIGZAG.get(k).ok_or_else(|| damaged("a block of more than 64 coefficients"))?;
                            block[place] = f64::from(bits.signed(size)) * f64::from(quantisation[k]);
                            k += 1;
                        }
                    }
                }
                let block = inverse_dct(&block, &cosines);
                for y in top..(top + 8).min(rows) {
                    for x in first..(first + 8).min(columns) {
                        let value = block[(y - top) * 8 + x - first] + middle;
                        values[y * columns + x] = value.round().clamp(0.0, most) as u32;
                    }
                }
            }
        }
        self.at = bits.end()?;
        Ok(())
    }
}

const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// `c(u) / 2 · cos((2x + 1) u π / 16)`, by x then u (A.3.3).
fn cosines() -> [[f64; 8]; 8] {
    std::array::from_fn(|x| {
        std::array::from_fn(|u| {
            let scale = if u == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
            scale / 2.0 * ((2 * x + 1) as f64 * u as f64 * std::f64::consts::PI / 16.0).cos()
        })
    })
}

fn inverse_dct(block: &[f64; 64], cosines: &[[f64; 8]; 8]) -> [f64; 64] {
    let (mut rows, mut out) = ([0f64; 64], [0f64; 64]);
    for v in 0..8 {
        for x in 0..8 {
            rows[v * 8 + x] = (0..8).map(|u| cosines[x][u] * block[v * 8 + u]).sum();
        }
    }
    for y in 0..8 {
        for x in 0..8 {
            out[y * 8 + x] = (0..8).map(|v| cosines[y][v] * rows[v * 8 + x]).sum();
        }
    }
    out
}

/// For the next 16 bits the symbol they begin with and its length (0: none).
struct Huffman {
    lookup: Vec<(u8, u8)>,
}

impl Huffman {
    fn new(counts: &[u8], symbols: &[u8]) -> Result<Self> {
        let mut lookup = vec![(0, 0); 1 << 16];
        let (mut code, mut symbols) = (0usize, symbols.iter());
        for (length, &count) in (1..=16).zip(counts) {
            for symbol in symbols.by_ref().take(usize::from(count)) {
                let span = 1 << (16 - length);
                let entries = lookup.get_mut(code << (16 - length)..(code << (16 - length)) + span);
                entries.ok_or_else(|| damaged("an impossible Huffman table"))?.fill((*symbol, length as u8));
                code += 1;
            }
            code <<= 1;
        }
        Ok(Self { lookup })
    }
}

/// Entropy-coded bits, most significant first; FF00 is FF, a marker ends them.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    /// Bits after the end that were made up so that the last symbol can be looked at.
    made_up: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, held: 0, count: 0, made_up: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let (byte, step) = match (self.bytes.get(self.at), self.bytes.get(self.at + 1)) {
                (Some(0xFF), Some(0)) => (0xFF, 2),
                (Some(0xFF), _) | (None, _) => {
                    self.made_up += 8;
                    (0, 0)
                }
                (Some(&byte), _) => (byte, 1),
            };
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
            self.at += step;
        }
    }

    fn symbol(&mut self, table: &Huffman) -> Result<u8> {
        self.fill();
        let next = (self.held >> (self.count - 16)) as u16;
        let (symbol, length) = table.lookup[usize::from(next)];
        if length == 0 {
            return Err(damaged("a code that is not in its table"));
        }
        self.count -= u32::from(length);
        self.check()?;
        Ok(symbol)
    }

    /// A number of that many bits, the upper half of which is positive (F.2.2.1).
    fn signed(&mut self, size: u32) -> i32 {
        if size == 0 {
            return 0;
        }
        self.fill();
        self.count -= size;
        let value = (self.held >> self.count) as i32 & ((1 << size) - 1);
        if value >> (size - 1) == 0 { value - (1 << size) + 1 } else { value }
    }

    fn check(&self) -> Result<()> {
        if self.count < self.made_up { Err(damaged("its data ends early")) } else { Ok(()) }
    }

    /// Goes past a restart marker.
    fn restart(&mut self) -> Result<()> {
        self.check()?;
        match self.bytes.get(self.at..self.at + 2) {
            Some([0xFF, 0xD0..=0xD7]) => {
                *self = Bits::new(self.bytes, self.at + 2);
                Ok(())
            }
            _ => Err(damaged("a restart marker is missing")),
        }
    }

    /// Where the data ended.
    fn end(&self) -> Result<usize> {
        self.check()?;
        Ok(self.at)
    }
}

fn damaged(what: &str) -> Error {
    corrupt(format!("a damaged JPEG frame: {what}"))
}
