//! Which values of an image become black and white: what files of more than 8 bits need said.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Raster, Result};

/// Which values become black (0) and white (1); in between the scale is linear, outside it is clamped.
///
/// As text (options, recipes, cards): `full`, `file`, `min-max`, `window:-160,240`, `center:40,width:400`, `percentile:1,99`.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ValueRange {
    /// All that the significant bits can hold, e.g. 0 to 4095 for 12 bits; 8 bits stay as they are. Floats have no
    /// such range.
    #[default]
    Full,
    /// From black to white, in the file's units: after its rescale slope and intercept (Hounsfield units in CT).
    /// The first above the second inverts.
    Window([f32; 2]),
    /// The window that the file itself suggests; a file without one is an error.
    File,
    /// From the smallest to the largest value of each image.
    MinMax,
    /// From one percentile of each image's values to another, 0 to 100.
    Percentile([f32; 2]),
}

impl ValueRange {
    /// A window by its centre and width as DICOM defines them (PS3.3 C.11.2.1.2.1).
    pub fn centred(centre: f64, width: f64) -> Self {
        let half = (width - 1.0) / 2.0;
        Self::Window([(centre - 0.5 - half) as f32, (centre - 0.5 + half) as f32])
    }

    /// Whether it is [`ValueRange::Full`].
    pub fn is_full(&self) -> bool {
        *self == Self::Full
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a window or percentiles that are no range.
    pub fn validate(&self) -> Result<()> {
        match *self {
            Self::Window([black, white]) if !black.is_finite() || !white.is_finite() || black == white => {
                Err(Error::parameter("window", format!("{black} to {white} is not a range")))
            }
            Self::Percentile([low, high]) if !(0.0 <= low && low < high && high <= 100.0) => {
                Err(Error::parameter("percentile", format!("{low} to {high} is not a range within 0 to 100")))
            }
            _ => Ok(()),
        }
    }
}

/// Which depth is expected, and which values become black and white.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DepthRule {
    /// Bits a value: 8, up to 16, or 32 for floats.
    pub bit_depth: u8,
    /// The range of such images.
    pub values: ValueRange,
    /// The range of images of another depth; without it they are refused.
    pub other_depths: Option<ValueRange>,
}

impl DepthRule {
    /// Which values of an image become black and white.
    ///
    /// # Errors
    /// [`Error::Depth`] for an image of another depth, saying how to convert.
    pub fn range_of(&self, image: &Raster) -> Result<ValueRange> {
        let fits = match (self.bit_depth, self.values) {
            (8, _) => image.is_8_bit(),
            // A full range is a matter of bits; all other ranges are in the file's own units.
            (bits, ValueRange::Full) => image.bits == bits && !image.is_8_bit(),
            _ => !image.is_8_bit(),
        };
        if fits {
            return Ok(self.values);
        }
        self.other_depths.ok_or_else(|| {
            let wanted = match self.bit_depth {
                8 => "8 bits".to_owned(),
                32 => format!("floats, {}", self.values),
                bits => format!("{bits} bits, {}", self.values),
            };
            let remedy = if image.is_8_bit() {
                "give the original values instead of a picture of them, or say which values become black and white \
                 (`--values full`, other_depths in the rule)"
            } else {
                "say which values become black and white (`--values`, other_depths in the rule, or the window of pixels \
                 in memory): `window:-160,240` in the file's units, `file` for the window it suggests, or `full`"
            };
            Error::Depth(format!(
                "the image has {} a value, the network reads {wanted}: {remedy}",
                image.depth_in_words()
            ))
        })
    }
}

impl fmt::Display for ValueRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("full"),
            Self::File => f.write_str("file"),
            Self::MinMax => f.write_str("min-max"),
            Self::Window([black, white]) => write!(f, "window:{black},{white}"),
            Self::Percentile([low, high]) => write!(f, "percentile:{low},{high}"),
        }
    }
}

impl From<ValueRange> for String {
    fn from(range: ValueRange) -> String {
        range.to_string()
    }
}

impl TryFrom<String> for ValueRange {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl FromStr for ValueRange {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let unknown = || {
            Error::parameter(
                "value range",
                format!(
                    "`{text}`: expected full, file, min-max, window:BLACK,WHITE, center:C,width:W or percentile:LOW,HIGH"
                ),
            )
        };
        let pair = |numbers: &str| -> Option<[f32; 2]> {
            let (first, second) = numbers.split_once(',')?;
            Some([first.trim().parse().ok()?, second.trim().parse().ok()?])
        };
        let range = match text.split_once(':') {
            None => match text {
                "full" => Some(Self::Full),
                "file" => Some(Self::File),
                "min-max" | "min_max" => Some(Self::MinMax),
                _ => None,
            },
            Some(("window", numbers)) => pair(numbers).map(Self::Window),
            Some(("percentile", numbers)) => pair(numbers).map(Self::Percentile),
            Some(("center" | "centre", rest)) => rest.split_once(",width:").and_then(|(centre, width)| {
                let (centre, width): (f64, f64) = (centre.trim().parse().ok()?, width.trim().parse().ok()?);
                (width > 1.0).then(|| Self::centred(centre, width))
            }),
            Some(_) => None,
        };
        let range = range.ok_or_else(unknown)?;
        range.validate()?;
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_written() {
        let ranges = [
            ValueRange::Full,
            ValueRange::File,
            ValueRange::MinMax,
            ValueRange::Window([-160.0, 240.0]),
            ValueRange::Percentile([0.5, 99.5]),
        ];
        for range in ranges {
            assert_eq!(range.to_string().parse::<ValueRange>().unwrap(), range);
        }
        // PS3.3: values up to c − 0.5 − (w − 1)/2 are black, above c − 0.5 + (w − 1)/2 white.
        assert_eq!("center:40,width:400".parse::<ValueRange>().unwrap(), ValueRange::Window([-160.0, 239.0]));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in
            ["", "windows:1,2", "window:1", "window:3,3", "window:nan,1", "percentile:50,20", "percentile:0,101"]
        {
            assert!(text.parse::<ValueRange>().is_err(), "{text}");
        }
        let error = "8-bit".parse::<ValueRange>().unwrap_err().to_string();
        assert!(error.contains("8-bit") && error.contains("window:"), "{error}");
    }
}
