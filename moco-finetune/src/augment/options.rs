//! What is varied, how strongly, and how often; presets.

use moco_image::{Error as ImageError, Rng};
use serde::{Deserialize, Serialize};

use super::pixels::PixelChange;
use crate::{Error, Result};

/// How training images are varied, boxes and masks with them. Each number has a drawn value within the range it spans.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentOptions {
    /// Probability of mirroring left to right.
    pub hflip: f64,
    /// Probability of mirroring top to bottom.
    pub vflip: f64,
    /// Probability of a turn by 90, 180 or 270 degrees, each as often; a size that is not square takes turns of 180 only.
    pub rotate90: f64,
    /// Range of the size relative to the one that an image has when nothing is varied, drawn uniformly in its logarithm.
    pub zoom: [f64; 2],
    /// Range of width / height relative to the image's, drawn uniformly in its logarithm.
    pub aspect: [f64; 2],
    /// Whether the part that is cut out, or the place of a smaller image in the frame, is drawn. Images that are read in
    /// windows are always cut at a drawn place.
    pub shift: bool,
    /// Probability of changing brightness, contrast, saturation, hue and gamma.
    pub jitter_p: f64,
    /// Brightness factor is uniform in [max(0, 1 − b), 1 + b].
    pub brightness: f64,
    /// Contrast factor, as brightness: the distance from the image's mean.
    pub contrast: f64,
    /// Saturation factor, as brightness: the distance from grey. Colour images only.
    pub saturation: f64,
    /// Hue shift is uniform in [−h, h] turns, h ≤ 0.5. Colour images only.
    pub hue: f64,
    /// Values become `v^g`; the logarithm of g is uniform in [−gamma, gamma].
    pub gamma: f64,
    /// Probability of a Gaussian blur.
    pub blur_p: f64,
    /// Range of the blur's standard deviation in pixels of the input.
    pub blur_sigma: [f64; 2],
    /// A box of which less than this share of its area is left after a cut is ignored: finding it is neither right nor
    /// wrong.
    pub min_visible: f64,
    /// A box that becomes narrower or lower than this many pixels of the input is ignored.
    pub min_side: f64,
}

/// Names of the presets.
const PRESETS: [&str; 4] = ["none", "light", "default", "microscopy"];

impl Default for AugmentOptions {
    /// Natural images: mirrored left to right, zoomed and cut, light and colour varied.
    fn default() -> Self {
        Self {
            hflip: 0.5,
            zoom: [0.75, 1.5],
            aspect: [0.85, 1.18],
            shift: true,
            jitter_p: 0.8,
            brightness: 0.3,
            contrast: 0.3,
            saturation: 0.3,
            hue: 0.05,
            blur_p: 0.1,
            ..Self::none()
        }
    }
}

impl AugmentOptions {
    /// Nothing is varied.
    pub fn none() -> Self {
        Self {
            hflip: 0.0,
            vflip: 0.0,
            rotate90: 0.0,
            zoom: [1.0, 1.0],
            aspect: [1.0, 1.0],
            shift: false,
            jitter_p: 0.0,
            brightness: 0.0,
            contrast: 0.0,
            saturation: 0.0,
            hue: 0.0,
            gamma: 0.0,
            blur_p: 0.0,
            blur_sigma: [0.1, 1.5],
            min_visible: 0.3,
            min_side: 2.0,
        }
    }

    /// Mirrored left to right, a little zoom and light.
    pub fn light() -> Self {
        Self {
            hflip: 0.5,
            zoom: [0.9, 1.15],
            shift: true,
            jitter_p: 0.8,
            brightness: 0.1,
            contrast: 0.1,
            ..Self::none()
        }
    }

    /// Images without an up and a left: all eight turns and mirrors, stain and exposure varied, focus by a blur.
    pub fn microscopy() -> Self {
        Self {
            hflip: 0.5,
            vflip: 0.5,
            rotate90: 0.75,
            zoom: [0.8, 1.25],
            aspect: [0.9, 1.11],
            shift: true,
            jitter_p: 0.8,
            brightness: 0.2,
            contrast: 0.2,
            saturation: 0.2,
            hue: 0.03,
            gamma: 0.2,
            blur_p: 0.2,
            blur_sigma: [0.1, 1.0],
            ..Self::none()
        }
    }

    /// A preset by its name: `none`, `light`, `default`, `microscopy`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the names there are.
    pub fn preset(name: &str) -> Result<Self> {
        Ok(match name {
            "none" => Self::none(),
            "light" => Self::light(),
            "default" => Self::default(),
            "microscopy" => Self::microscopy(),
            _ => return Err(Error::Invalid(format!("augment = `{name}`: expected {}", PRESETS.join(", ")))),
        })
    }

    /// Whether nothing is varied.
    pub fn is_none(&self) -> bool {
        let Self { min_visible, min_side, blur_sigma, .. } = *self;
        *self == Self { min_visible, min_side, blur_sigma, ..Self::none() }
    }

    /// Checks every number.
    ///
    /// # Errors
    /// [`Error::Image`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let bad = |name, reason| Err(Error::Image(ImageError::Parameter { name, reason }));
        let shares = [
            ("augment.hflip", self.hflip),
            ("augment.vflip", self.vflip),
            ("augment.rotate90", self.rotate90),
            ("augment.jitter_p", self.jitter_p),
            ("augment.blur_p", self.blur_p),
            ("augment.min_visible", self.min_visible),
        ];
        for (name, p) in shares {
            if !(0.0..=1.0).contains(&p) {
                return bad(name, format!("{p}: expected 0 to 1"));
            }
        }
        let strengths = [
            ("augment.brightness", self.brightness, 10.0),
            ("augment.contrast", self.contrast, 10.0),
            ("augment.saturation", self.saturation, 10.0),
            ("augment.hue", self.hue, 0.5),
            ("augment.gamma", self.gamma, 3.0),
            ("augment.min_side", self.min_side, 1e4),
        ];
        for (name, strength, most) in strengths {
            if !(0.0..=most).contains(&strength) {
                return bad(name, format!("{strength}: expected 0 to {most}"));
            }
        }
        let ranges = [
            ("augment.zoom", self.zoom, [0.05, 20.0]),
            ("augment.aspect", self.aspect, [0.1, 10.0]),
            ("augment.blur_sigma", self.blur_sigma, [0.0, 50.0]),
        ];
        for (name, [low, high], [least, most]) in ranges {
            if !(least <= low && low <= high && high <= most) {
                return bad(name, format!("[{low}, {high}]: expected {least} ≤ low ≤ high ≤ {most}"));
            }
        }
        Ok(())
    }

    /// The options as they act on images of `channels` channels, and what was switched off, in words.
    pub fn for_channels(&self, channels: usize) -> (Self, Vec<String>) {
        if channels == 3 {
            return (self.clone(), Vec::new());
        }
        let mut off = Vec::new();
        let mut options = self.clone();
        for (name, strength) in [("saturation", &mut options.saturation), ("hue", &mut options.hue)] {
            if *strength > 0.0 {
                off.push(format!("{name} is off: images of {channels} channel(s) have no colours"));
                *strength = 0.0;
            }
        }
        (options, off)
    }

    /// Draws what happens to the values of an image.
    pub(super) fn draw_pixels(&self, rng: &mut Rng) -> Vec<PixelChange> {
        let mut changes = Vec::new();
        let mut factor = |strength: f64| rng.range((1.0 - strength).max(0.0), 1.0 + strength) as f32;
        let (brightness, contrast, saturation) =
            (factor(self.brightness), factor(self.contrast), factor(self.saturation));
        let hue = rng.range(-self.hue, self.hue) as f32;
        let gamma = rng.range(-self.gamma, self.gamma).exp() as f32;
        if rng.chance(self.jitter_p) {
            let all = [
                (self.brightness, PixelChange::Brightness(brightness)),
                (self.contrast, PixelChange::Contrast(contrast)),
                (self.saturation, PixelChange::Saturation(saturation)),
                (self.hue, PixelChange::Hue(hue)),
                (self.gamma, PixelChange::Gamma(gamma)),
            ];
            changes.extend(all.into_iter().filter(|(strength, _)| *strength > 0.0).map(|(_, change)| change));
        }
        let sigma = rng.range(self.blur_sigma[0], self.blur_sigma[1]) as f32;
        if rng.chance(self.blur_p) {
            changes.push(PixelChange::Blur(sigma));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound_and_numbers_out_of_range_are_named() {
        for name in PRESETS {
            let options = AugmentOptions::preset(name).unwrap();
            options.validate().unwrap();
            assert_eq!(options.is_none(), name == "none");
            let text = serde_json::to_string(&options).unwrap();
            assert_eq!(serde_json::from_str::<AugmentOptions>(&text).unwrap(), options);
        }
        assert!(AugmentOptions::preset("strong").unwrap_err().to_string().contains("microscopy"));
        for (bad, name) in [
            (AugmentOptions { hue: 0.7, ..Default::default() }, "augment.hue"),
            (AugmentOptions { zoom: [2.0, 1.0], ..Default::default() }, "augment.zoom"),
            (AugmentOptions { hflip: f64::NAN, ..Default::default() }, "augment.hflip"),
        ] {
            assert!(bad.validate().unwrap_err().to_string().contains(name));
        }
        assert!(serde_json::from_str::<AugmentOptions>(r#"{"flip": 1}"#).is_err());
    }

    #[test]
    fn colour_is_switched_off_for_one_channel_and_said_so() {
        let (options, off) = AugmentOptions::default().for_channels(1);
        assert_eq!((options.saturation, options.hue, off.len()), (0.0, 0.0, 2));
        assert!(AugmentOptions::default().for_channels(3).1.is_empty());
        assert!(AugmentOptions::light().for_channels(1).1.is_empty());
    }
}
