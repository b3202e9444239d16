//! PIL's GaussianBlur: three box blurs whose radius has a fractional part (Gwosdek et al., "Theoretical foundations of
//! Gaussian convolution by extended box filtering", 2011), in 8 bits after each, rows first, then columns.

use crate::Image;

/// Blurs with PIL's `radius` (a standard deviation in pixels).
pub(super) fn gaussian(image: &mut Image, radius: f64, buffer: &mut Vec<u8>) {
    let Some(weights) = BoxWeights::of_gaussian(radius) else { return };
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    for row in image.data_mut().chunks_exact_mut(width * channels) {
        blur_row(row, channels, &weights, buffer);
    }
    buffer.resize(image.data().len(), 0);
    for _ in 0..PASSES {
        let columns = BlurColumns { input: image.data(), height, stride: width * channels, weights: &weights };
        pulp::Arch::new().dispatch(AllColumns(columns, buffer));
        std::mem::swap(image.buffer_mut(), buffer);
    }
}

const PASSES: u32 = 3;

/// `bulk = inner · Σ(x−radius ..= x+radius) + outer · (x−radius−1 and x+radius+1)`, in 24-bit fixed point.
pub(super) struct BoxWeights {
    pub radius: usize,
    pub inner: u32,
    pub outer: u32,
}

impl BoxWeights {
    /// Of each of the three boxes that make a Gaussian of PIL's `radius`; None for a radius of 0.
    pub fn of_gaussian(radius: f64) -> Option<Self> {
        Self::of(box_radius(radius as f32))
    }

    /// None for a radius of 0, which changes nothing.
    fn of(radius: f32) -> Option<Self> {
        if radius == 0.0 {
            return None;
        }
        let whole = radius as usize;
        let inner = ((1u32 << 24) as f32 / (radius * 2.0 + 1.0)) as u32;
        let outer = ((1u32 << 24) - (whole as u32 * 2 + 1) * inner) / 2;
        Some(Self { radius: whole, inner, outer })
    }

    #[inline(always)]
    fn apply(&self, sum: u32, far: u32) -> u8 {
        ((sum * self.inner + far * self.outer + (1 << 23)) >> 24) as u8
    }
}

/// `_gaussian_blur_radius` of libImaging/BoxBlur.c, whose variables are single precision and whose constants are double.
fn box_radius(radius: f32) -> f32 {
    let variance = radius * radius / PASSES as f32;
    let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
    let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
    let mut fraction = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
    fraction /= 6.0 * (variance - (whole + 1.0) * (whole + 1.0));
    whole + fraction
}

/// The three passes over one row, between two copies of it that are padded with its first and last pixel.
fn blur_row(row: &mut [u8], channels: usize, weights: &BoxWeights, buffer: &mut Vec<u8>) {
    let pad = (weights.radius + 1) * channels;
    let padded = row.len() + 2 * pad;
    buffer.resize((2 * padded).max(buffer.len()), 0);
    let (mut from, rest) = buffer.split_at_mut(padded);
    let mut to = &mut rest[..padded];
    from[pad..pad + row.len()].copy_from_slice(row);
    for _ in 0..PASSES {
        let (head, tail) = from.split_at_mut(pad);
        let (body, tail) = tail.split_at_mut(row.len());
        head.chunks_exact_mut(channels).for_each(|p| p.copy_from_slice(&body[..channels]));
        tail.chunks_exact_mut(channels).for_each(|p| p.copy_from_slice(&body[body.len() - channels..]));
        let output = &mut to[pad..pad + row.len()];
        if weights.radius <= DIRECT_RADIUS {
            pulp::Arch::new().dispatch(BlurRow { input: from, output, channels, weights });
        } else {
            slide(from, output, channels, weights);
        }
        std::mem::swap(&mut from, &mut to);
    }
    row.copy_from_slice(&from[pad..pad + row.len()]);
}

/// Up to this radius the sums are formed afresh for each value, which vectorises; above it they slide.
const DIRECT_RADIUS: usize = 4;

struct BlurRow<'a> {
    input: &'a [u8], // padded by radius + 1 pixels on both sides
    output: &'a mut [u8],
    channels: usize,
    weights: &'a BoxWeights,
}

impl pulp::NullaryFnOnce for BlurRow<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { input, output, channels, weights } = self;
        let (len, taps) = (output.len(), 2 * weights.radius + 1);
        let shifted = |pixels: usize| &input[pixels * channels..][..len];
        let (left, right) = (shifted(0), shifted(taps + 1));
        match weights.radius {
            0 => {
                let middle = shifted(1);
                for i in 0..len {
                    output[i] = weights.apply(u32::from(middle[i]), u32::from(left[i]) + u32::from(right[i]));
                }
            }
            1 => {
                let (a, b, c) = (shifted(1), shifted(2), shifted(3));
                for i in 0..len {
                    let sum = u32::from(a[i]) + u32::from(b[i]) + u32::from(c[i]);
                    output[i] = weights.apply(sum, u32::from(left[i]) + u32::from(right[i]));
                }
            }
            _ => {
                for i in 0..len {
                    let sum = (1..=taps).map(|t| u32::from(input[t * channels + i])).sum();
                    output[i] = weights.apply(sum, u32::from(left[i]) + u32::from(right[i]));
                }
            }
        }
    }
}

fn slide(input: &[u8], output: &mut [u8], channels: usize, weights: &BoxWeights) {
    let taps = 2 * weights.radius + 1;
    for c in 0..channels {
        let at = |pixel: usize| u32::from(input[pixel * channels + c]);
        let mut sum: u32 = (0..taps).map(at).sum();
        for x in 0..output.len() / channels {
            sum = sum + at(x + taps) - at(x);
            output[x * channels + c] = weights.apply(sum, at(x) + at(x + taps + 1));
        }
    }
}

const CHUNK: usize = 32;

struct BlurColumns<'a> {
    input: &'a [u8],
    height: usize,
    stride: usize,
    weights: &'a BoxWeights,
}

/// The columns of an image and where the result goes.
struct AllColumns<'a>(BlurColumns<'a>, &'a mut [u8]);

impl pulp::NullaryFnOnce for AllColumns<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        // A strip of columns at a time: its sums slide down the image in registers.
        let Self(columns, output) = self;
        let mut x = 0;
        while x + CHUNK <= columns.stride {
            columns.strip::<CHUNK>(x, output);
            x += CHUNK;
        }
        while x < columns.stride {
            columns.strip::<1>(x, output);
            x += 1;
        }
    }
}

impl BlurColumns<'_> {
    #[inline(always)]
    fn strip<const N: usize>(&self, x: usize, output: &mut [u8]) {
        let radius = self.weights.radius as isize;
        let row = |y: isize| -> &[u8; N] {
            let start = y.clamp(0, self.height as isize - 1) as usize * self.stride + x;
            self.input[start..start + N].try_into().expect("slice of N values")
        };
        let mut sums = [0u32; N];
        for y in -radius - 1..radius {
            let values = row(y);
            for i in 0..N {
                sums[i] += u32::from(values[i]);
            }
        }
        for y in 0..self.height as isize {
            let (leaving, entering, beyond) = (row(y - radius - 1), row(y + radius), row(y + radius + 1));
            let start = y as usize * self.stride + x;
            let out: &mut [u8; N] = (&mut output[start..start + N]).try_into().expect("slice of N values");
            for i in 0..N {
                sums[i] = sums[i] + u32::from(entering[i]) - u32::from(leaving[i]);
                out[i] = self.weights.apply(sums[i], u32::from(leaving[i]) + u32::from(beyond[i]));
            }
        }
    }
}
