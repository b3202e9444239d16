//! JPEG-LS, lossless and near-lossless (ITU T.87): prediction from three neighbours, Golomb codes by context, runs.

use super::elements::corrupt;
use crate::{Error, Result};

/// Values of a frame, channels interleaved.
pub(super) fn decode(bytes: &[u8], (rows, columns): (usize, usize), samples: usize) -> Result<Vec<u32>> {
    let mut file = Markers { bytes, at: 0 };
    let (mut identifiers, mut precision) = (Vec::new(), 0);
    let mut preset = [0u16; 5];
    let mut values = vec![0u32; rows * columns * samples];
    let mut done = 0;
    while done < samples {
        match file.next()? {
            0xD8 => {}
            0xD9 => return Err(damaged("it ends before all its channels are there")),
            0xF7 => {
                let segment = file.segment()?;
                let &[bits, h1, h0, w1, w0, count, ..] = segment else { return Err(damaged("a short frame header")) };
                let size = (usize::from(u16::from_be_bytes([h1, h0])), usize::from(u16::from_be_bytes([w1, w0])));
                identifiers = segment[6..].chunks_exact(3).map(|component| component[0]).collect();
                if size != (rows, columns) || usize::from(count) != samples || identifiers.len() != samples {
                    return Err(damaged(&format!("{} × {} of {count} channel(s)", size.1, size.0)));
                }
                if !(2..=16).contains(&bits) || segment[6..].chunks_exact(3).any(|component| component[1] != 0x11) {
                    return Err(damaged("bits or a sampling that JPEG-LS does not have"));
                }
                precision = u32::from(bits);
            }
            0xF8 => {
                let segment = file.segment()?;
                if segment.first() != Some(&1) || segment.len() < 11 {
                    return Err(Error::Unsupported("a JPEG-LS frame with mapping tables".into()));
                }
                preset = std::array::from_fn(|i| u16::from_be_bytes([segment[1 + 2 * i], segment[2 + 2 * i]]));
            }
            0xDD => return Err(Error::Unsupported("a JPEG-LS frame with restart markers".into())),
            0xDA => {
                let segment = file.segment()?;
                let count = usize::from(*segment.first().unwrap_or(&0));
                let Some(&[near, interleave, shift]) = segment.get(1 + 2 * count..).and_then(|t| t.first_chunk())
                else {
                    return Err(damaged("a short scan header"));
                };
                let components = segment[1..1 + 2 * count].chunks_exact(2).map(|selector| {
                    let found = identifiers.iter().position(|id| *id == selector[0]);
                    found.ok_or_else(|| damaged("a scan of a channel that does not exist"))
                });
                let components = components.collect::<Result<Vec<_>>>()?;
                if components.is_empty() || interleave > 2 || (interleave == 0 && count != 1) || shift & 15 != 0 {
                    return Err(damaged("a scan header that makes no sense"));
                }
                let parameters = Parameters::new(precision, i32::from(near), preset)?;
                let mut scan = Scan::new(parameters, Bits::new(&bytes[file.at..]));
                scan.decode(&components, interleave == 2, columns, samples, &mut values)?;
                // The reader has taken the marker's FF for data.
                file.at += scan.bits.at.saturating_sub(1);
                done += components.len();
            }
            _ => drop(file.segment()?),
        }
    }
    Ok(values)
}

struct Markers<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Markers<'a> {
    fn next(&mut self) -> Result<u8> {
        // A marker's second byte is above 127; others are stuffed data.
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let found = rest.windows(2).position(|pair| pair[0] == 0xFF && (0x80..0xFF).contains(&pair[1]));
        let found = found.ok_or_else(|| damaged("it ends early"))?;
        self.at += found + 2;
        Ok(rest[found + 1])
    }

    fn segment(&mut self) -> Result<&'a [u8]> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.first_chunk().map(|l| usize::from(u16::from_be_bytes(*l)));
        let segment =
            length.and_then(|length| rest.get(2..length)).ok_or_else(|| damaged("it ends inside a segment"))?;
        self.at += segment.len() + 2;
        Ok(segment)
    }
}

/// C.2.4.1.1 and A.2.1.
struct Parameters {
    most: i32,
    near: i32,
    thresholds: [i32; 3],
    reset: i32,
    range: i32,
    /// Bits of a value that no code of few ones announces.
    escape_bits: u32,
    limit: u32,
}

impl Parameters {
    fn new(precision: u32, near: i32, [most, t1, t2, t3, reset]: [u16; 5]) -> Result<Self> {
        if precision == 0 {
            return Err(damaged("no frame header before the data"));
        }
        let most = if most == 0 { (1 << precision) - 1 } else { i32::from(most) };
        if most >= 1 << precision
            || near > 255.min(most / 2)
            || (1..3).contains(&reset)
            || i32::from(reset) > most.max(255)
        {
            return Err(damaged("parameters outside their range"));
        }
        let within = |value: i32, least: i32| if value > most || value < least { least } else { value };
        let defaults = if most >= 128 {
            let factor = (most.min(4095) + 128) / 256;
            [factor + 2 + 3 * near, 4 * factor + 3 + 5 * near, 17 * factor + 4 + 7 * near]
        } else {
            let factor = 256 / (most + 1);
            [2.max(3 / factor + 3 * near), 3.max(7 / factor + 5 * near), 4.max(21 / factor + 7 * near)]
        };
        let mut thresholds = [0; 3];
        let mut least = near + 1;
        for ((threshold, given), default) in thresholds.iter_mut().zip([t1, t2, t3]).zip(defaults) {
            *threshold = if given == 0 { within(default, least) } else { i32::from(given) };
            least = *threshold;
        }
        let range = if near == 0 { most + 1 } else { (most + 2 * near) / (2 * near + 1) + 1 };
        let bits_of = |count: i32| 32 - (count - 1).leading_zeros();
        let bits = bits_of(most + 1).max(2);
        Ok(Self {
            most,
            near,
            thresholds,
            reset: if reset == 0 { 64 } else { i32::from(reset) },
            range,
            escape_bits: bits_of(range),
            limit: 2 * (bits + bits.max(8)),
        })
    }

    /// A.3.3.
    fn quantise(&self, difference: i32) -> i32 {
        let [t1, t2, t3] = self.thresholds;
        let size = match difference.abs() {
            d if d <= self.near => 0,
            d if d < t1 => 1,
            d if d < t2 => 2,
            d if d < t3 => 3,
            _ => 4,
        };
        if difference < 0 { -size } else { size }
    }

    /// Adds an error to a prediction, modulo the range (A.4.5, A.5).
    fn reconstruct(&self, predicted: i32, error: i32) -> i32 {
        let step = 2 * self.near + 1;
        let value = predicted + error * step;
        let value = match value {
            v if v < -self.near => v + self.range * step,
            v if v > self.most + self.near => v - self.range * step,
            v => v,
        };
        value.clamp(0, self.most)
    }
}

#[derive(Clone, Copy)]
struct Context {
    a: i32,
    b: i32,
    c: i32,
    n: i32,
}

/// Order of the run lengths (A.2.1).
const RUN_BITS: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];

struct Scan<'a> {
    p: Parameters,
    bits: Bits<'a>,
    /// 365 of gradients, then two for the ends of runs, whose `b` counts negative errors.
    contexts: Vec<Context>,
}

/// A line of one channel with a neighbour at each end, and the line above.
struct Lines {
    above: Vec<i32>,
    current: Vec<i32>,
    run: usize,
}

impl<'a> Scan<'a> {
    fn new(p: Parameters, bits: Bits<'a>) -> Self {
        let a = 2.max((p.range + 32) / 64);
        Self { contexts: vec![Context { a, b: 0, c: 0, n: 1 }; 367], p, bits }
    }

    fn decode(
        &mut self,
        components: &[usize],
        by_sample: bool,
        columns: usize,
        samples: usize,
        values: &mut [u32],
    ) -> Result<()> {
        let line = || Lines { above: vec![0; columns + 2], current: vec![0; columns + 2], run: 0 };
        let mut lines: Vec<Lines> = components.iter().map(|_| line()).collect();
        for row in values.chunks_exact_mut(columns * samples) {
            for line in &mut lines {
                std::mem::swap(&mut line.above, &mut line.current);
                line.above[columns + 1] = line.above[columns];
                line.current[0] = line.above[1];
            }
            if by_sample {
                self.line(&mut lines, columns)?;
            } else {
                for line in &mut lines {
                    self.line(std::slice::from_mut(line), columns)?;
                }
            }
            for (component, line) in components.iter().zip(&lines) {
                for (value, decoded) in row[*component..].iter_mut().step_by(samples).zip(&line.current[1..]) {
                    *value = *decoded as u32;
                }
            }
        }
        self.bits.check()
    }

    /// One line of the channels that share runs.
    fn line(&mut self, lines: &mut [Lines], columns: usize) -> Result<()> {
        let mut x = 1;
        while x <= columns {
            let flat = lines.iter().all(|line| self.gradients(line, x) == [0; 3]);
            if flat {
                x = self.run(lines, x, columns)?;
            } else {
                for line in lines.iter_mut() {
                    let gradients = self.gradients(line, x);
                    line.current[x] = self.regular(line, gradients, x)?;
                }
                x += 1;
            }
        }
        Ok(())
    }

    fn gradients(&self, line: &Lines, x: usize) -> [i32; 3] {
        let (a, b, c, d) = (line.current[x - 1], line.above[x], line.above[x - 1], line.above[x + 1]);
        [d - b, b - c, c - a].map(|difference| self.p.quantise(difference))
    }

    /// A.4 to A.6.
    fn regular(&mut self, line: &Lines, [g1, g2, g3]: [i32; 3], x: usize) -> Result<i32> {
        let index = 81 * g1 + 9 * g2 + g3;
        let sign = if index < 0 { -1 } else { 1 };
        let (a, b, c) = (line.current[x - 1], line.above[x], line.above[x - 1]);
        let predicted = match c {
            c if c >= a.max(b) => a.min(b),
            c if c <= a.min(b) => a.max(b),
            c => a + b - c,
        };
        let p = &self.p;
        let context = &mut self.contexts[index.unsigned_abs() as usize];
        let predicted = (predicted + sign * context.c).clamp(0, p.most);
        let k = golomb_order(context.n, context.a);
        let mapped = self.bits.golomb(k, p.limit, p)?;
        let halves = (mapped >> 1) as i32;
        let turned = p.near == 0 && k == 0 && 2 * context.b <= -context.n;
        let error = match (mapped & 1 == 1, turned) {
            (false, false) | (true, true) => halves,
            _ => -halves - 1,
        };
        context.b = context.b.saturating_add(error * (2 * p.near + 1));
        context.a = context.a.saturating_add(error.abs());
        if context.n == p.reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        if context.b <= -context.n {
            context.b = (context.b + context.n).max(1 - context.n);
            context.c = (context.c - 1).max(-128);
        } else if context.b > 0 {
            context.b = (context.b - context.n).min(0);
            context.c = (context.c + 1).min(127);
        }
        Ok(p.reconstruct(predicted, sign * error))
    }

    /// A.7: equal values up to the end of the line, or to one that differs; the place after them.
    fn run(&mut self, lines: &mut [Lines], start: usize, columns: usize) -> Result<usize> {
        let mut x = start;
        let mut index = lines[0].run;
        let fill = |lines: &mut [Lines], from: usize, to: usize| {
            for line in lines {
                let value = line.current[from - 1];
                line.current[from..to].fill(value);
            }
        };
        while self.bits.take(1)? == 1 {
            let most = 1 << RUN_BITS[index];
            let count = most.min(columns + 1 - x);
            fill(lines, x, x + count);
            x += count;
            if count == most {
                index = (index + 1).min(31);
            }
            if x > columns {
                lines[0].run = index;
                return Ok(x);
            }
        }
        let count = self.bits.take(RUN_BITS[index])? as usize;
        if count > columns - x {
            return Err(damaged("a run that leaves its line"));
        }
        fill(lines, x, x + count);
        x += count;
        let together = lines.len() > 1;
        for line in lines.iter_mut() {
            let (a, b) = (line.current[x - 1], line.above[x]);
            let alike = !together && (a - b).abs() <= self.p.near;
            let error = self.run_end(alike, RUN_BITS[index])?;
            let sign = if !alike && a > b { -1 } else { 1 };
            line.current[x] = self.p.reconstruct(if alike { a } else { b }, sign * error);
        }
        lines[0].run = index.saturating_sub(1);
        Ok(x + 1)
    }

    /// The error of the value that ends a run (A.7.2).
    fn run_end(&mut self, alike: bool, run_bits: u32) -> Result<i32> {
        let context = &mut self.contexts[365 + usize::from(alike)];
        let kind = i32::from(alike);
        let k = golomb_order(context.n, context.a + if alike { context.n >> 1 } else { 0 });
        let mapped = self.bits.golomb(k, self.p.limit - run_bits - 1, &self.p)? as i32;
        let sum = mapped + kind;
        let odd = sum & 1;
        let size = (sum + odd) / 2;
        let negative = (k != 0 || 2 * context.b >= context.n) == (odd == 1);
        let error = if negative { -size } else { size };
        if error < 0 {
            context.b += 1;
        }
        context.a = context.a.saturating_add((mapped + 1 - kind) >> 1);
        if context.n == self.p.reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        Ok(error)
    }
}

fn golomb_order(n: i32, a: i32) -> u32 {
    (0..24).find(|k| n << k >= a).unwrap_or(24)
}

/// Bits, most significant first; after FF a byte has seven.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    held: u64,
    count: u32,
    after_ff: bool,
    /// Bits after the end, which are zeros.
    made_up: u32,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, held: 0, count: 0, after_ff: false, made_up: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let next = self.bytes.get(self.at).copied();
            let marker = self.after_ff && next.is_none_or(|byte| byte >= 0x80);
            let (byte, bits) = match next {
                Some(byte) if !marker => {
                    self.at += 1;
                    let bits = if self.after_ff { 7 } else { 8 };
                    self.after_ff = byte == 0xFF;
                    (byte, bits)
                }
                _ => {
                    self.made_up += 8;
                    (0, 8)
                }
            };
            self.held = self.held << bits | u64::from(byte);
            self.count += bits;
        }
    }

    fn take(&mut self, bits: u32) -> Result<u32> {
        if bits == 0 {
            return Ok(0);
        }
        self.fill();
        self.count -= bits;
        self.check()?;
        Ok((self.held >> self.count) as u32 & ((1 << bits) - 1))
    }

    /// A.5.3: so many zeros, a one, and `k` bits; or the number itself after as many zeros as there may be.
    fn golomb(&mut self, k: u32, limit: u32, p: &Parameters) -> Result<u32> {
        let mut zeros = 0;
        while self.take(1)? == 0 {
            zeros += 1;
            if zeros > limit {
                return Err(damaged("a code that does not end"));
            }
        }
        let escaped = zeros >= limit - p.escape_bits - 1;
        let number = if escaped { self.take(p.escape_bits)? + 1 } else { zeros << k | self.take(k)? };
        // An error lies within the range, so its code does within twice that.
        if number > 2 * p.range as u32 { Err(damaged("an error outside the range of values")) } else { Ok(number) }
    }

    fn check(&self) -> Result<()> {
        if self.count < self.made_up { Err(damaged("its data ends early")) } else { Ok(()) }
    }
}

fn damaged(what: &str) -> Error {
    corrupt(format!("a damaged JPEG-LS frame: {what}"))
}
