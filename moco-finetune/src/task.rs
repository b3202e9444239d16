//! What is asked of an image and what is answered: the labels of classification, segmentation and detection.

use moco_image::Raster;
pub use moco_models::heads::Task;

use crate::{Error, Result};

/// Class of a pixel that says nothing: it makes no loss and counts in no metric.
pub const IGNORED: u8 = 255;

/// An image with what is known about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The image at the depth of its file.
    pub image: Raster,
    /// The truth.
    pub target: Target,
    /// Its name, for messages and reports.
    pub name: String,
}

/// The truth about an image.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// Its class.
    Class(usize),
    /// Its classes, each at most once, in any order; there may be none.
    Classes(Vec<usize>),
    /// The class of every pixel.
    Mask(Mask),
    /// All objects in it; there may be none.
    Boxes(Vec<LabelledBox>),
}

/// Classes of pixels, rows from top to bottom, of the size of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    width: usize,
    height: usize,
    data: Vec<u8>, // [height, width]
}

impl Mask {
    /// A mask over `data` [height, width]: classes from 0, or [`IGNORED`].
    ///
    /// # Errors
    /// [`Error::Invalid`] if a side is 0 or the number of values is another.
    pub fn new(width: usize, height: usize, data: Vec<u8>) -> Result<Mask> {
        if width == 0 || height == 0 || width.checked_mul(height) != Some(data.len()) {
            return Err(Error::Invalid(format!(
                "a mask of {height}×{width} (height × width) was given {} values",
                data.len()
            )));
        }
        Ok(Mask { width, height, data })
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Classes [height, width].
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// The buffer [height, width].
    pub fn into_data(self) -> Vec<u8> {
        self.data
    }
}

/// A rectangle in pixels of the caller's image. Coordinates are edges, not pixel indices: the whole image is
/// `0, 0, width, height`; COCO's `[x, y, w, h]` is `x, y, x + w, y + h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct BBox {
    /// Left edge.
    pub x0: f32,
    /// Upper edge.
    pub y0: f32,
    /// Right edge.
    pub x1: f32,
    /// Lower edge.
    pub y1: f32,
}

impl BBox {
    /// Width, 0 where the edges have changed places.
    pub fn width(&self) -> f32 {
        (self.x1 - self.x0).max(0.0)
    }

    /// Height, 0 where the edges have changed places.
    pub fn height(&self) -> f32 {
        (self.y1 - self.y0).max(0.0)
    }

    /// Area.
    pub fn area(&self) -> f32 {
        self.width() * self.height()
    }

    /// What both cover; empty (an area of 0) if they do not meet.
    pub fn intersection(&self, other: &BBox) -> BBox {
        BBox {
            x0: self.x0.max(other.x0),
            y0: self.y0.max(other.y0),
            x1: self.x1.min(other.x1),
            y1: self.y1.min(other.y1),
        }
    }

    /// Intersection over union, 0 to 1; 0 for two empty boxes.
    pub fn iou(&self, other: &BBox) -> f32 {
        let both = self.intersection(other).area();
        let all = self.area() + other.area() - both;
        if all > 0.0 { both / all } else { 0.0 }
    }

    /// The part of it within an image.
    pub fn clipped(&self, width: usize, height: usize) -> BBox {
        self.intersection(&BBox { x0: 0.0, y0: 0.0, x1: width as f32, y1: height as f32 })
    }
}

/// An object that is known to be there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelledBox {
    /// Where.
    pub bbox: BBox,
    /// Its class, from 0.
    pub label: usize,
    /// Neither finding nor missing it counts: a crowd, or an object marked as difficult.
    pub ignore: bool,
}

/// An object that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Where.
    pub bbox: BBox,
    /// Its class, from 0.
    pub label: usize,
    /// How sure, 0 to 1.
    pub score: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_that_of_the_areas() {
        let a = BBox { x0: 0.0, y0: 0.0, x1: 4.0, y1: 2.0 };
        let b = BBox { x0: 2.0, y0: 1.0, x1: 6.0, y1: 3.0 };
        assert_eq!(a.iou(&b), 2.0 / 14.0);
        assert_eq!(a.iou(&a), 1.0);
        let apart = BBox { x0: 5.0, y0: 5.0, x1: 6.0, y1: 6.0 };
        assert_eq!((a.intersection(&apart).area(), a.iou(&apart)), (0.0, 0.0));
        assert_eq!(BBox::default().iou(&BBox::default()), 0.0);
    }

    #[test]
    fn boxes_are_cut_at_the_border_and_masks_need_their_size() {
        let cut = BBox { x0: -3.0, y0: 1.0, x1: 9.0, y1: 99.0 }.clipped(8, 6);
        assert_eq!(cut, BBox { x0: 0.0, y0: 1.0, x1: 8.0, y1: 6.0 });
        assert!(Mask::new(2, 2, vec![0, 1, IGNORED, 0]).is_ok());
        assert!(Mask::new(2, 2, vec![0; 3]).unwrap_err().to_string().contains("2×2"));
        assert!(Mask::new(0, 2, vec![]).is_err());
    }
}
