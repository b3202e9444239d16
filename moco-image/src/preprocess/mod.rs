//! The one preprocessing function: from decoded pixels to what a network reads, driven by the rule in its card.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::resize::{resize_geometry, resized_region, resized_region_f32, shorter_side_size};
use crate::{DepthRule, Error, Filter, Image, Pixels, Raster, Result, Scratch, ValueRange, augment::write_normalised};

/// How an image becomes a network's input: range of values, resize, centre crop, channels, `(value − mean) / std` where
/// black is 0 and white 1.
/// Geometry is torchvision's on PIL images: antialiased, `Resize` truncates the longer side, `CenterCrop` rounds half
/// to even.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessRule {
    /// Channels the network reads.
    pub channels: usize,
    /// Bits a value of the images that the network was trained on: 8, up to 16, or 32 for floats.
    pub bit_depth: u8,
    /// Which of their values become black and white.
    #[serde(default, skip_serializing_if = "ValueRange::is_full")]
    pub values: ValueRange,
    /// Which values become black and white in an image of another depth; without it such images are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_depths: Option<ValueRange>,
    /// Order of the channels.
    pub channel_order: ChannelOrder,
    /// What to do with an image of another number of channels.
    #[serde(default)]
    pub on_mismatch: ChannelMismatch,
    /// Resize before the crop.
    pub resize: ResizeRule,
    /// Centre crop `[height, width]` after the resize; smaller images are padded with 0 as torchvision does.
    pub crop: Option<[usize; 2]>,
    /// Interpolation of the resize.
    pub filter: Filter,
    /// Mean of each channel, in [0, 1] units.
    pub mean: Vec<f32>,
    /// Standard deviation of each channel, in [0, 1] units.
    pub std: Vec<f32>,
}

/// Order of an image's channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelOrder {
    /// Red, green, blue.
    Rgb,
    /// One channel.
    Grey,
    /// Any number of channels, in the order of the file or buffer.
    Any,
}

/// What to do with an image whose number of channels is not the rule's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChannelMismatch {
    /// Refuse it, saying how to convert.
    #[default]
    Error,
    /// Repeat a grey image three times for a network that reads RGB.
    ReplicateGrey,
    /// Turn an RGB image into grey (PIL's luma) for a network that reads one channel.
    ToGrey,
}

/// Resize before the crop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeRule {
    /// Keep the size.
    None,
    /// The shorter side becomes this long, the longer keeps the ratio (truncated to an integer).
    ShorterSide(usize),
    /// Exactly this size, the ratio is not kept.
    Exact {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
}

/// Order of the values of an output buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Height, width, channels: what the training engine reads.
    Nhwc,
    /// Channels, height, width: what ONNX models read.
    Nchw,
}

impl PreprocessRule {
    /// The evaluation transform of ImageNet models: shorter side `resize`, centre crop `crop`, bilinear, RGB.
    pub fn imagenet(resize: usize, crop: usize) -> Self {
        Self {
            channels: 3,
            bit_depth: 8,
            values: ValueRange::Full,
            other_depths: None,
            channel_order: ChannelOrder::Rgb,
            on_mismatch: ChannelMismatch::ReplicateGrey,
            resize: ResizeRule::ShorterSide(resize),
            crop: Some([crop, crop]),
            filter: Filter::Bilinear,
            mean: vec![0.485, 0.456, 0.406],
            std: vec![0.229, 0.224, 0.225],
        }
    }

    /// Checks that the rule contradicts neither itself nor this version.
    ///
    /// # Errors
    /// [`Error::Parameter`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if !matches!(self.bit_depth, 8..=16 | 32) {
            return Err(Error::parameter(
                "preprocess.bit_depth",
                format!("{} bits: expected 8 to 16, or 32 for floats", self.bit_depth),
            ));
        }
        if self.bit_depth == 32 && self.values.is_full() {
            return Err(Error::parameter("preprocess.values", "floats have no full range: expected e.g. `window:0,1`"));
        }
        self.values.validate()?;
        self.other_depths.map_or(Ok(()), |range| range.validate())?;
        let wanted = match self.channel_order {
            ChannelOrder::Rgb => 3,
            ChannelOrder::Grey => 1,
            ChannelOrder::Any => self.channels.max(1),
        };
        if self.channels != wanted {
            return Err(Error::parameter(
                "preprocess.channels",
                format!("{} channels, but the order {:?} has {wanted}", self.channels, self.channel_order),
            ));
        }
        match (self.on_mismatch, self.channels) {
            (ChannelMismatch::Error, _) | (ChannelMismatch::ReplicateGrey, 3) | (ChannelMismatch::ToGrey, 1) => {}
            _ => {
                return Err(Error::parameter(
                    "preprocess.on_mismatch",
                    format!("{:?} cannot produce {} channels", self.on_mismatch, self.channels),
                ));
            }
        }
        let sizes: &[usize] = match &self.resize {
            ResizeRule::None => &[],
            ResizeRule::ShorterSide(side) => std::slice::from_ref(side),
            ResizeRule::Exact { height, width } => &[*height, *width],
        };
        if sizes.iter().chain(self.crop.iter().flatten()).any(|&s| s == 0 || s > MAX_SIDE) {
            return Err(Error::parameter("preprocess.resize/crop", format!("sizes must be within 1–{MAX_SIDE}")));
        }
        check_mean_std(&self.mean, &self.std, self.channels, "preprocess.mean/std")
    }

    /// Whether images of this many channels are accepted, as they are or converted by [`PreprocessRule::on_mismatch`].
    ///
    /// # Errors
    /// [`Error::Channels`] saying how to convert.
    pub fn accepts(&self, channels: usize) -> Result<()> {
        match (channels, self.channels, self.on_mismatch) {
            (a, b, _) if a == b => Ok(()),
            (1, 3, ChannelMismatch::ReplicateGrey) | (3, 1, ChannelMismatch::ToGrey) => Ok(()),
            (got, wanted, _) => Err(mismatch(got, wanted)),
        }
    }

    /// Which values of an image become black and white.
    ///
    /// # Errors
    /// [`Error::Depth`] for an image of a depth that the network does not read, saying how to convert.
    pub fn range_of(&self, image: &Raster) -> Result<ValueRange> {
        let Self { bit_depth, values, other_depths, .. } = *self;
        DepthRule { bit_depth, values, other_depths }.range_of(image)
    }

    /// Height and width of the network's input for an image of `(height, width)`.
    ///
    /// # Errors
    /// [`Error::Shape`] for an image without pixels or one whose longer side would become absurdly long.
    pub fn output_size(&self, (height, width): (usize, usize)) -> Result<(usize, usize)> {
        let (height, width) = self.resized(height, width)?;
        Ok(self.crop.map_or((height, width), |[h, w]| (h, w)))
    }

    fn resized(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        if height == 0 || width == 0 {
            return Err(Error::Shape(format!("an image of {height}×{width} (height × width) has no pixels")));
        }
        match self.resize {
            ResizeRule::None => Ok((height, width)),
            ResizeRule::ShorterSide(side) => shorter_side_size(height, width, side),
            ResizeRule::Exact { height, width } => Ok((height, width)),
        }
    }
}

/// Prepares one image: converts channels if the rule says so, resizes, crops, and writes
/// `(value / 255 − mean) / std` to `out`, which has `height × width × channels` values (see
/// [`PreprocessRule::output_size`]) in the given layout.
///
/// # Errors
/// [`Error::Channels`] for an image whose channels the rule does not accept, [`Error::OutputLength`] for a buffer of
/// another length, and what [`PreprocessRule::validate`] finds.
pub fn preprocess(image: &Image, rule: &PreprocessRule, layout: Layout, out: &mut [f32]) -> Result<()> {
    let mut scratch = Scratch::default();
    preprocess_with(image, rule, layout, &mut scratch, out)
}

/// As [`preprocess`], with buffers that are kept from image to image.
///
/// # Errors
/// As [`preprocess`].
pub fn preprocess_with(
    image: &Image,
    rule: &PreprocessRule,
    layout: Layout,
    scratch: &mut Scratch,
    out: &mut [f32],
) -> Result<()> {
    rule.validate()?;
    rule.accepts(image.channels())?;
    if rule.bit_depth != 8 || !rule.values.is_full() {
        // Another depth, or values of 8 bits that are stretched.
        return preprocess_raster(&Raster::from(image.clone()), rule, layout, scratch, out);
    }
    let converted;
    let image = if image.channels() == 3 && rule.channels == 1 {
        converted = image.to_grey()?;
        &converted
    } else {
        image
    };
    let (full_h, full_w) = rule.resized(image.height(), image.width())?;
    let [crop_h, crop_w] = rule.crop.unwrap_or([full_h, full_w]);
    check_length(out, crop_h, crop_w, rule.channels)?;
    let region = resize_geometry((full_h, full_w), (crop_h, crop_w));
    resized_region(image, (full_h, full_w), &region, rule.filter, scratch)?;
    write_normalised(scratch, &rule.mean, &rule.std, layout, false, out)
}

/// As [`preprocess_with`], for an image of any depth: what is not 8 bits is brought to [0, 1] by the rule's range and
/// stays in floats from there; 8 bits take the same way as ever.
///
/// # Errors
/// As [`preprocess`], and [`Error::Depth`] for a depth the rule does not accept.
pub fn preprocess_raster(
    image: &Raster,
    rule: &PreprocessRule,
    layout: Layout,
    scratch: &mut Scratch,
    out: &mut [f32],
) -> Result<()> {
    rule.validate()?;
    rule.accepts(image.channels())?;
    let range = rule.range_of(image)?;
    if let (Pixels::U8(pixels), ValueRange::Full, false, true) = (&image.pixels, range, image.inverted, image.bits == 8)
    {
        return preprocess_with(pixels, rule, layout, scratch, out);
    }
    let mut buffers = std::mem::take(&mut scratch.floats);
    let result = preprocess_floats(image, range, rule, layout, &mut buffers, out);
    scratch.floats = buffers;
    result
}

/// Buffers of the way through floats.
#[derive(Debug, Default)]
pub(crate) struct FloatBuffers {
    unit: Image<f32>,
    rows: Vec<f32>,
    resized: Image<f32>,
}

fn preprocess_floats(
    image: &Raster,
    range: ValueRange,
    rule: &PreprocessRule,
    layout: Layout,
    buffers: &mut FloatBuffers,
    out: &mut [f32],
) -> Result<()> {
    let FloatBuffers { unit, rows, resized } = buffers;
    image.to_unit(range, unit)?;
    if unit.channels() == 3 && rule.channels == 1 {
        // PIL's luma in single precision.
        let luma = |p: &[f32]| (p[0] * 19595.0 + p[1] * 38470.0 + p[2] * 7471.0) / 65536.0;
        let grey = unit.data().chunks_exact(3).map(luma).collect();
        *unit = Image::from_values(unit.width(), unit.height(), 1, grey)?;
    }
    let (full_h, full_w) = rule.resized(unit.height(), unit.width())?;
    let [crop_h, crop_w] = rule.crop.unwrap_or([full_h, full_w]);
    check_length(out, crop_h, crop_w, rule.channels)?;
    let region = resize_geometry((full_h, full_w), (crop_h, crop_w));
    resized_region_f32(unit, (full_h, full_w), &region, rule.filter, rows, resized)?;
    let (channels, pixels) = (resized.channels(), crop_h * crop_w);
    for (i, pixel) in resized.data().chunks_exact(channels).enumerate() {
        for (c, (mean, std)) in rule.mean.iter().zip(&rule.std).enumerate() {
            let at = match layout {
                Layout::Nhwc => i * rule.channels + c,
                Layout::Nchw => c * pixels + i,
            };
            // Grey fills all channels; a cubic overshoots, which 8 bits clip.
            out[at] = (pixel[c % channels].clamp(0.0, 1.0) - mean) / std;
        }
    }
    Ok(())
}

fn check_length(out: &[f32], height: usize, width: usize, channels: usize) -> Result<()> {
    let expected = height * width * channels;
    if out.len() == expected {
        return Ok(());
    }
    let what = format!("{height}×{width} (height × width), {channels} channels");
    Err(Error::OutputLength { got: out.len(), expected, what })
}

const MAX_SIDE: usize = 1 << 16;

pub(crate) fn check_mean_std(mean: &[f32], std: &[f32], channels: usize, name: &'static str) -> Result<()> {
    if mean.len() != channels || std.len() != channels {
        return Err(Error::parameter(
            name,
            format!("{} means and {} standard deviations for {channels} channels", mean.len(), std.len()),
        ));
    }
    if mean.iter().any(|m| !m.is_finite()) || std.iter().any(|s| !s.is_finite() || *s <= 0.0) {
        return Err(Error::parameter(name, "means must be finite and standard deviations above 0"));
    }
    Ok(())
}

fn mismatch(got: usize, wanted: usize) -> Error {
    let convert = match (got, wanted) {
        (1, 3) => {
            "set on_mismatch = \"replicate_grey\" in the rule, or convert with Image::to_rgb, to repeat grey; or "
        }
        (3, 1) => {
            "set on_mismatch = \"to_grey\" in the rule, or convert with Image::to_grey, if its colours don't matter; or "
        }
        _ => "",
    };
    Error::Channels(format!(
        "the image has {got} channel(s), the network reads {wanted}: {convert}open the backbone for such images \
         (`channels` = {got} in its options, `--channels {got}`), or make one by `moco-train import --channels {got}`"
    ))
}
