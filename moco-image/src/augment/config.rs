//! What is drawn at random for a view, with which odds and in which order; the reference recipes as presets.

use serde::{Deserialize, Serialize};

use crate::preprocess::check_mean_std;
use crate::{Error, Filter, Result, Rng};

/// A distribution of views: a random resized crop, then the [`Step`]s of `order`, then normalisation.
///
/// Colour operations leave images that are not RGB as they are, except brightness, contrast and solarisation, which
/// mean the same for any channel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Size of a view, `[height, width]`.
    pub size: [usize; 2],
    /// Range of the crop's share of the image's area.
    pub scale: [f64; 2],
    /// Range of the crop's width / height, drawn uniformly in its logarithm.
    pub ratio: [f64; 2],
    /// Interpolation of the crop's resize.
    pub filter: Filter,
    /// Steps after the crop, in this order. A step that is absent does not happen.
    pub order: Vec<Step>,
    /// Probability of the colour jitter as a whole.
    pub jitter_p: f64,
    /// Brightness factor is uniform in [max(0, 1 − b), 1 + b].
    pub brightness: f64,
    /// Contrast factor, as brightness.
    pub contrast: f64,
    /// Saturation factor, as brightness.
    pub saturation: f64,
    /// Hue shift is uniform in [−h, h] turns, h ≤ 0.5.
    pub hue: f64,
    /// Probability of grey.
    pub grayscale_p: f64,
    /// Probability of the blur.
    pub blur_p: f64,
    /// Range of the blur's radius, in pixels (the sigma that PIL's GaussianBlur takes).
    pub blur_sigma: [f64; 2],
    /// Probability of solarisation.
    pub solarize_p: f64,
    /// Values at or above it are inverted.
    pub solarize_threshold: u8,
    /// Probability of a horizontal flip.
    pub flip_p: f64,
    /// Mean of each channel, in [0, 1] units.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, in [0, 1] units.
    pub std: Vec<f32>,
}

/// One step after the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Brightness, contrast, saturation and hue, their order drawn each time.
    ColorJitter,
    /// Grey, still three channels.
    Grayscale,
    /// PIL's GaussianBlur.
    Blur,
    /// Inversion of bright values.
    Solarize,
    /// Mirroring left to right.
    Flip,
}

/// A crop in pixels of the source image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

/// One operation with its parameter fixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PixelOp {
    /// PIL's `ImageEnhance.Brightness` with this factor.
    Brightness(f64),
    /// PIL's `ImageEnhance.Contrast` with this factor.
    Contrast(f64),
    /// PIL's `ImageEnhance.Color` with this factor; nothing on images that are not RGB.
    Saturation(f64),
    /// torchvision's `adjust_hue` by this many turns, −0.5 to 0.5; nothing on images that are not RGB.
    Hue(f64),
    /// PIL's luma in all three channels; nothing on images that are not RGB.
    Grayscale,
    /// PIL's `ImageFilter.GaussianBlur` with this radius.
    Blur(f64),
    /// PIL's `ImageOps.solarize` with this threshold.
    Solarize(u8),
    /// Mirroring left to right.
    Flip,
}

/// All that was drawn for one view: enough to make it again.
#[derive(Debug, Clone, PartialEq)]
pub struct AugmentParams {
    /// The crop.
    pub crop: CropBox,
    /// The operations after it, in order.
    pub ops: Vec<PixelOp>,
}

impl PixelOp {
    pub(crate) fn validate(&self) -> Result<()> {
        let (name, value, range) = match *self {
            PixelOp::Brightness(factor) => ("brightness factor", factor, 0.0..=f64::MAX),
            PixelOp::Contrast(factor) => ("contrast factor", factor, 0.0..=f64::MAX),
            PixelOp::Saturation(factor) => ("saturation factor", factor, 0.0..=f64::MAX),
            PixelOp::Hue(turns) => ("hue shift", turns, -0.5..=0.5),
            PixelOp::Blur(radius) => ("blur radius", radius, 0.0..=1000.0),
            PixelOp::Grayscale | PixelOp::Solarize(_) | PixelOp::Flip => return Ok(()),
        };
        if range.contains(&value) {
            return Ok(());
        }
        Err(Error::parameter(name, format!("{value} is outside {} to {}", range.start(), range.end())))
    }
}

impl AugmentConfig {
    /// MoCo v1 (arXiv:1911.05722; facebookresearch/moco main_moco.py without `--aug-plus`): grey, then a strong jitter always.
    pub fn moco_v1() -> Self {
        Self {
            order: vec![Step::Grayscale, Step::ColorJitter, Step::Flip],
            jitter_p: 1.0,
            hue: 0.4,
            blur_p: 0.0,
            ..Self::moco_v2()
        }
    }

    /// MoCo v2 (arXiv:2003.04297; main_moco.py with `--aug-plus`): jitter 0.8, grey 0.2, blur 0.5, flip.
    pub fn moco_v2() -> Self {
        Self {
            size: [224, 224],
            scale: [0.2, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            filter: Filter::Bilinear,
            order: vec![Step::ColorJitter, Step::Grayscale, Step::Blur, Step::Flip],
            jitter_p: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            grayscale_p: 0.2,
            blur_p: 0.5,
            blur_sigma: [0.1, 2.0],
            solarize_p: 0.0,
            solarize_threshold: 128,
            flip_p: 0.5,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }

    /// The CIFAR-10 notebook of facebookresearch/moco: crop 32 from 8 % up, flip, jitter 0.8, grey 0.2, no blur.
    pub fn cifar_demo() -> Self {
        Self {
            size: [32, 32],
            scale: [0.08, 1.0],
            order: vec![Step::Flip, Step::ColorJitter, Step::Grayscale],
            blur_p: 0.0,
            mean: vec![0.4914, 0.4822, 0.4465],
            std: vec![0.2023, 0.1994, 0.2010],
            ..Self::moco_v2()
        }
    }

    /// Checks every range.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let probabilities = [
            ("augment.jitter_p", self.jitter_p),
            ("augment.grayscale_p", self.grayscale_p),
            ("augment.blur_p", self.blur_p),
            ("augment.solarize_p", self.solarize_p),
            ("augment.flip_p", self.flip_p),
        ];
        for (name, p) in probabilities {
            if !(0.0..=1.0).contains(&p) {
                return Err(Error::parameter(name, format!("{p} is not a probability (0–1)")));
            }
        }
        let strengths = [
            ("augment.brightness", self.brightness, f64::MAX),
            ("augment.contrast", self.contrast, f64::MAX),
            ("augment.saturation", self.saturation, f64::MAX),
            ("augment.hue", self.hue, 0.5),
        ];
        for (name, strength, most) in strengths {
            if !(0.0..=most).contains(&strength) {
                let most = if most == 0.5 { "0.5" } else { "any" };
                return Err(Error::parameter(name, format!("{strength} is outside 0 to {most}")));
            }
        }
        if self.size.iter().any(|&side| side == 0 || side > 1 << 16) {
            return Err(Error::parameter("augment.size", format!("{:?}: sides must be within 1–65536", self.size)));
        }
        let ranges = [
            ("augment.scale", self.scale, 1.0),
            ("augment.ratio", self.ratio, f64::MAX),
            ("augment.blur_sigma", self.blur_sigma, 1000.0),
        ];
        for (name, [low, high], most) in ranges {
            if !(low > 0.0 && low <= high && high <= most) {
                let reason = format!("[{low}, {high}] is not a range 0 < low ≤ high ≤ {most}");
                return Err(Error::parameter(name, reason));
            }
        }
        for (i, step) in self.order.iter().enumerate() {
            if self.order[..i].contains(step) {
                return Err(Error::parameter("augment.order", format!("{step:?} appears twice")));
            }
        }
        let absent = [
            (Step::ColorJitter, self.jitter_p, "jitter_p"),
            (Step::Grayscale, self.grayscale_p, "grayscale_p"),
            (Step::Blur, self.blur_p, "blur_p"),
            (Step::Solarize, self.solarize_p, "solarize_p"),
            (Step::Flip, self.flip_p, "flip_p"),
        ];
        for (step, p, name) in absent {
            // A probability without a place in the order would be an option silently ignored.
            if p > 0.0 && !self.order.contains(&step) {
                return Err(Error::parameter(
                    "augment.order",
                    format!("{name} is {p}, but {step:?} is not in the order: add it there or set {name} to 0"),
                ));
            }
        }
        check_mean_std(&self.mean, &self.std, self.mean.len(), "augment.mean/std")
    }

    /// Draws a view of an image of `height` × `width` pixels.
    pub fn sample(&self, height: usize, width: usize, rng: &mut Rng) -> AugmentParams {
        let mut params = AugmentParams { crop: CropBox { top: 0, left: 0, height, width }, ops: Vec::new() };
        self.sample_into(height, width, rng, &mut params);
        params
    }

    /// As [`AugmentConfig::sample`], into a value that is reused.
    pub fn sample_into(&self, height: usize, width: usize, rng: &mut Rng, params: &mut AugmentParams) {
        params.crop = random_resized_crop(height, width, self.scale, self.ratio, rng);
        params.ops.clear();
        for step in &self.order {
            match step {
                Step::ColorJitter => {
                    if rng.chance(self.jitter_p) {
                        self.sample_jitter(rng, &mut params.ops);
                    }
                }
                Step::Grayscale => {
                    if rng.chance(self.grayscale_p) {
                        params.ops.push(PixelOp::Grayscale);
                    }
                }
                Step::Blur => {
                    if rng.chance(self.blur_p) {
                        params.ops.push(PixelOp::Blur(rng.range(self.blur_sigma[0], self.blur_sigma[1])));
                    }
                }
                Step::Solarize => {
                    if rng.chance(self.solarize_p) {
                        params.ops.push(PixelOp::Solarize(self.solarize_threshold));
                    }
                }
                Step::Flip => {
                    if rng.chance(self.flip_p) {
                        params.ops.push(PixelOp::Flip);
                    }
                }
            }
        }
    }

    /// torchvision's ColorJitter: a random order of the four, a strength of 0 leaves its operation out.
    fn sample_jitter(&self, rng: &mut Rng, ops: &mut Vec<PixelOp>) {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let mut factor = |strength: f64| rng.range((1.0 - strength).max(0.0), 1.0 + strength);
        let brightness = factor(self.brightness);
        let contrast = factor(self.contrast);
        let saturation = factor(self.saturation);
        let hue = rng.range(-self.hue, self.hue);
        for which in order {
            match which {
                0 if self.brightness > 0.0 => ops.push(PixelOp::Brightness(brightness)),
                1 if self.contrast > 0.0 => ops.push(PixelOp::Contrast(contrast)),
                2 if self.saturation > 0.0 => ops.push(PixelOp::Saturation(saturation)),
                3 if self.hue > 0.0 => ops.push(PixelOp::Hue(hue)),
                _ => {}
            }
        }
    }
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries of area and log-ratio, then the largest central crop whose
/// ratio is allowed.
fn random_resized_crop(height: usize, width: usize, scale: [f64; 2], ratio: [f64; 2], rng: &mut Rng) -> CropBox {
    let area = (height * width) as f64;
    for _ in 0..10 {
        let target = area * rng.range(scale[0], scale[1]);
        let aspect = rng.range(ratio[0].ln(), ratio[1].ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even() as usize;
        let h = (target / aspect).sqrt().round_ties_even() as usize;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = rng.below(height - h + 1);
            let left = rng.below(width - w + 1);
            return CropBox { top, left, height: h, width: w };
        }
    }
    let in_ratio = width as f64 / height as f64;
    let (h, w) = if in_ratio < ratio[0] {
        ((width as f64 / ratio[0]).round_ties_even() as usize, width)
    } else if in_ratio > ratio[1] {
        (height, (height as f64 * ratio[1]).round_ties_even() as usize)
    } else {
        (height, width)
    };
    // Extreme ratios round to nothing or past the edge; torchvision would fail there.
    let (h, w) = (h.clamp(1, height), w.clamp(1, width));
    CropBox { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}
