//! Colour operations of PIL's ImageEnhance and ImageOps, value for value.

use super::planes::{CHUNK, PlaneOp, Planes, for_planes, split_planes};
use crate::Image;

/// PIL's luma of an RGB pixel: ITU-R 601-2 in 16-bit fixed point.
#[inline(always)]
pub fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471 + 0x8000) >> 16) as u8
}

/// Blends with black.
pub(super) fn brightness(image: &mut Image, factor: f64) {
    blend_with(image, 0, factor);
}

/// Blends with the image's mean luma, rounded to an integer.
pub(super) fn contrast(image: &mut Image, factor: f64) {
    let sum = if image.channels() == 3 {
        pulp::Arch::new().dispatch(LumaSum(image.data()))
    } else {
        image.data().iter().map(|&v| u64::from(v)).sum()
    };
    let pixels = image.width() * image.height() * if image.channels() == 3 { 1 } else { image.channels() };
    let mean = (sum as f64 / pixels as f64 + 0.5) as u8;
    blend_with(image, mean, factor);
}

/// Blends each pixel with its luma; nothing on images that are not RGB.
pub(super) fn saturation(image: &mut Image, factor: f64) {
    if image.channels() == 3 && factor as f32 != 1.0 {
        pulp::Arch::new().dispatch(Saturation(image.data_mut(), factor as f32));
    }
}

/// Luma in all three channels; nothing on images that are not RGB.
pub(super) fn grayscale(image: &mut Image) {
    if image.channels() == 3 {
        pulp::Arch::new().dispatch(Grayscale(image.data_mut()));
    }
}

/// Inverts values at or above the threshold.
pub(super) fn solarize(image: &mut Image, threshold: u8) {
    for value in image.data_mut() {
        *value = if *value < threshold { *value } else { 255 - *value };
    }
}

/// `Image.blend(constant, image, factor)`.
fn blend_with(image: &mut Image, constant: u8, factor: f64) {
    let factor = factor as f32;
    let table: [u8; 256] = std::array::from_fn(|value| blend(constant, value as u8, factor));
    for value in image.data_mut() {
        *value = table[usize::from(*value)];
    }
}

/// libImaging/Blend.c: single precision, truncated, clipped when it extrapolates (inside 0–1 it cannot leave 0–255).
#[inline(always)]
fn blend(from: u8, to: u8, factor: f32) -> u8 {
    let from = from as f32;
    (from + factor * (to as f32 - from)) as u8
}

struct LumaSum<'a>(&'a [u8]);

impl pulp::NullaryFnOnce for LumaSum<'_> {
    type Output = u64;

    #[inline(always)]
    fn call(self) -> u64 {
        let (chunks, rest) = self.0.as_chunks::<{ 3 * CHUNK }>();
        let mut sum = 0;
        for chunk in chunks {
            let [red, green, blue] = split_planes(chunk);
            let mut sums = 0u32;
            for i in 0..CHUNK {
                sums += u32::from(luma(red[i], green[i], blue[i]));
            }
            sum += u64::from(sums);
        }
        sum + rest.chunks_exact(3).map(|p| u64::from(luma(p[0], p[1], p[2]))).sum::<u64>()
    }
}

struct Saturation<'a>(&'a mut [u8], f32);

impl pulp::NullaryFnOnce for Saturation<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for_planes(self.0, &BlendWithGrey(self.1));
    }
}

struct BlendWithGrey(f32);

impl PlaneOp for BlendWithGrey {
    #[inline(always)]
    fn change(&self, planes: &mut Planes) {
        let grey = grey(planes);
        for plane in planes {
            for i in 0..CHUNK {
                plane[i] = blend(grey[i], plane[i], self.0);
            }
        }
    }
}

struct Grayscale<'a>(&'a mut [u8]);

impl pulp::NullaryFnOnce for Grayscale<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for_planes(self.0, &RepeatGrey);
    }
}

struct RepeatGrey;

impl PlaneOp for RepeatGrey {
    #[inline(always)]
    fn change(&self, planes: &mut Planes) {
        *planes = [grey(planes); 3];
    }
}

#[inline(always)]
fn grey([red, green, blue]: &Planes) -> [u8; CHUNK] {
    let mut grey = [0; CHUNK];
    for i in 0..CHUNK {
        grey[i] = luma(red[i], green[i], blue[i]);
    }
    grey
}
