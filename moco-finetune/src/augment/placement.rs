//! Where an image lies in a network's input: the one description by which pixels, masks and boxes are moved.

use moco_image::Rng;
use moco_models::heads::Fit;

use super::AugmentOptions;
use crate::task::{BBox, IGNORED, LabelledBox, Mask, Target};
use crate::{Error, Result};

/// An image brought to a size, a window of that, and the window turned and mirrored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// Height and width of the image.
    pub(super) image: [usize; 2],
    /// Height and width of the input.
    pub(super) input: [usize; 2],
    /// Height and width that the whole image is resized to.
    pub(super) full: [usize; 2],
    /// First row and column of the window in the resized image; what lies outside the image is filled.
    pub(super) corner: [isize; 2],
    /// Quarter turns of the window, clockwise.
    pub(super) turns: u8,
    /// Mirrored left to right after the turns.
    pub(super) mirrored: bool,
}

/// Rows, columns of the window that show the image: first and one past the last of each.
pub(super) struct Visible {
    pub rows: [usize; 2],
    pub columns: [usize; 2],
}

/// Larger images are not made of smaller ones.
const MAX_SIDE: f64 = 32768.0;

impl Placement {
    /// Where an image of `image` [height, width] lies when nothing is drawn: stretched; resized to fit, in the upper left
    /// corner; its centre cut out; or, where images are not resized, its centre at its own size.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes of 0.
    pub(super) fn plain(image: [usize; 2], input: [usize; 2], fit: Fit) -> Result<Self> {
        let full = resized(image, input, fit)?;
        let corner = match fit {
            Fit::Stretch | Fit::Letterbox => [0, 0],
            Fit::Cover { .. } | Fit::Tiles { .. } | Fit::Native => [0, 1].map(|i| centre(full[i], input[i])),
        };
        Ok(Self { image, input, full, corner, turns: 0, mirrored: false })
    }

    /// As [`Placement::plain`], varied by what `options` draw.
    pub(super) fn drawn(
        image: [usize; 2],
        input: [usize; 2],
        fit: Fit,
        options: &AugmentOptions,
        rng: &mut Rng,
    ) -> Result<Self> {
        let log_range = |[low, high]: [f64; 2], rng: &mut Rng| rng.range(low.ln(), high.ln()).exp();
        let (zoom, aspect) = (log_range(options.zoom, rng), log_range(options.aspect, rng));
        let (turn, mirror, flip) = (rng.chance(options.rotate90), rng.chance(options.hflip), rng.chance(options.vflip));
        let turns = match (turn, input[0] == input[1]) {
            (false, _) => 0,
            (true, true) => 1 + rng.below(3) as u8,
            (true, false) => 2,
        };
        let places = [rng.unit(), rng.unit()];
        let plain = Self::plain(image, input, fit)?;
        let ratio = [zoom / aspect.sqrt(), zoom * aspect.sqrt()];
        let mut full = [0, 1].map(|i| plain.full[i] as f64 * ratio[i]);
        if let Fit::Cover { .. } = fit {
            // An image that covers its input goes on covering it.
            let short = [0, 1].map(|i| input[i] as f64 / full[i]).into_iter().fold(1.0, f64::max);
            full = full.map(|side| side * short);
        }
        let full = full.map(|side| side.round().clamp(1.0, MAX_SIDE) as usize);
        let full = match fit {
            Fit::Cover { .. } => [0, 1].map(|i| full[i].max(input[i])),
            _ => full,
        };
        let windows = matches!(fit, Fit::Tiles { .. } | Fit::Native);
        let corner = [0, 1].map(|i| {
            let room = full[i] as isize - input[i] as isize;
            let free = options.shift || (windows && room > 0);
            match (free, full == plain.full) {
                (true, _) if room >= 0 => (places[i] * (room + 1) as f64) as isize,
                (true, _) => -((places[i] * (1 - room) as f64) as isize),
                (false, true) => plain.corner[i],
                (false, false) => centre(full[i], input[i]),
            }
        });
        // Upside down is a half turn and a mirror.
        let turns = (turns + if flip { 2 } else { 0 }) % 4;
        Ok(Self { full, corner, turns, mirrored: mirror != flip, ..plain })
    }

    /// A window of an image that is not resized.
    pub(super) fn window(image: [usize; 2], input: [usize; 2], corner: [usize; 2]) -> Self {
        let corner = corner.map(|side| side as isize);
        Self { image, input, full: image, corner, turns: 0, mirrored: false }
    }

    /// Height and width of the image.
    pub fn image_size(&self) -> [usize; 2] {
        self.image
    }

    /// Height and width of the input.
    pub fn input_size(&self) -> [usize; 2] {
        self.input
    }

    /// A box of the image in pixels of the input; it may reach outside.
    pub fn to_input(&self, b: BBox) -> BBox {
        let [height, width] = self.before_turns().map(|side| side as f32);
        let x = |x: f32| x * self.scale(1) - self.corner[1] as f32;
        let y = |y: f32| y * self.scale(0) - self.corner[0] as f32;
        let (x0, y0, x1, y1) = (x(b.x0), y(b.y0), x(b.x1), y(b.y1));
        let turned = match self.turns {
            0 => BBox { x0, y0, x1, y1 },
            1 => BBox { x0: height - y1, y0: x0, x1: height - y0, y1: x1 },
            2 => BBox { x0: width - x1, y0: height - y1, x1: width - x0, y1: height - y0 },
            _ => BBox { x0: y0, y0: width - x1, x1: y1, y1: width - x0 },
        };
        match self.mirrored {
            false => turned,
            true => BBox { x0: self.input[1] as f32 - turned.x1, x1: self.input[1] as f32 - turned.x0, ..turned },
        }
    }

    /// A box of the input in pixels of the image, cut off at its border; empty for what lies outside.
    pub fn to_image(&self, b: BBox) -> BBox {
        let b = match self.mirrored {
            false => b,
            true => BBox { x0: self.input[1] as f32 - b.x1, x1: self.input[1] as f32 - b.x0, ..b },
        };
        let [height, width] = self.before_turns().map(|side| side as f32);
        let b = match self.turns {
            0 => b,
            1 => BBox { x0: b.y0, y0: height - b.x1, x1: b.y1, y1: height - b.x0 },
            2 => BBox { x0: width - b.x1, y0: height - b.y1, x1: width - b.x0, y1: height - b.y0 },
            _ => BBox { x0: width - b.y1, y0: b.x0, x1: width - b.y0, y1: b.x1 },
        };
        let x = |x: f32| (x + self.corner[1] as f32) / self.scale(1);
        let y = |y: f32| (y + self.corner[0] as f32) / self.scale(0);
        let b = BBox { x0: x(b.x0), y0: y(b.y0), x1: x(b.x1), y1: y(b.y1) };
        b.clipped(self.image[1], self.image[0])
    }

    /// The target in pixels of the input.
    ///
    /// Masks take the nearest pixel and are [`IGNORED`] where the input is filled. Boxes are cut off at the border of the
    /// input; of what `options` call too little the box is ignored, what is not in the input at all is dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a mask of another size than the image.
    pub(super) fn target(&self, target: &Target, options: &AugmentOptions) -> Result<Target> {
        Ok(match target {
            Target::Class(class) => Target::Class(*class),
            Target::Classes(classes) => Target::Classes(classes.clone()),
            Target::Mask(mask) => Target::Mask(self.mask(mask)?),
            Target::Boxes(boxes) => {
                Target::Boxes(boxes.iter().filter_map(|labelled| self.labelled(labelled, options)).collect())
            }
        })
    }

    fn labelled(&self, labelled: &LabelledBox, options: &AugmentOptions) -> Option<LabelledBox> {
        let whole = self.to_input(labelled.bbox);
        let bbox = whole.clipped(self.input[1], self.input[0]);
        if bbox.area() <= 0.0 {
            return None;
        }
        // A box that is whole stays what it is, however the area rounds.
        let cut = bbox != whole && f64::from(bbox.area()) < options.min_visible * f64::from(whole.area());
        let small = f64::from(bbox.width().min(bbox.height())) < options.min_side;
        Some(LabelledBox { bbox, label: labelled.label, ignore: labelled.ignore || cut || small })
    }

    fn mask(&self, mask: &Mask) -> Result<Mask> {
        if [mask.height(), mask.width()] != self.image {
            return Err(Error::Invalid(format!(
                "a mask of {}×{} (height × width) for an image of {}×{}",
                mask.height(),
                mask.width(),
                self.image[0],
                self.image[1]
            )));
        }
        let nearest = |i: usize| {
            let (from, to) = (self.image[i] as u64, self.full[i] as u64);
            // The pixel under the centre of each of the resized image's.
            move |at: usize| ((2 * at as u64 + 1) * from / (2 * to)) as usize
        };
        let [row, column] = [nearest(0), nearest(1)];
        let mut data = vec![IGNORED; self.input[0] * self.input[1]];
        self.each_visible(|out, [y, x]| {
            let (y, x) = (row(y), column(x));
            data[out] = mask.data()[y * mask.width() + x];
        });
        Mask::new(self.input[1], self.input[0], data)
    }

    /// Calls `put` with each pixel of the input that shows the image: its index, and row and column in the resized image.
    pub(super) fn each_visible(&self, mut put: impl FnMut(usize, [usize; 2])) {
        let Visible { rows, columns } = self.visible();
        for y in rows[0]..rows[1] {
            for x in columns[0]..columns[1] {
                let at = [(y as isize + self.corner[0]) as usize, (x as isize + self.corner[1]) as usize];
                put(self.index(y, x), at);
            }
        }
    }

    /// Index in the input of a pixel of the window.
    pub(super) fn index(&self, y: usize, x: usize) -> usize {
        let [height, width] = self.before_turns();
        let (y, x) = match self.turns {
            0 => (y, x),
            1 => (x, height - 1 - y),
            2 => (height - 1 - y, width - 1 - x),
            _ => (width - 1 - x, y),
        };
        let x = if self.mirrored { self.input[1] - 1 - x } else { x };
        y * self.input[1] + x
    }

    /// The part of the window that shows the image.
    pub(super) fn visible(&self) -> Visible {
        let window = self.before_turns();
        let [rows, columns] = [0, 1].map(|i| {
            let inside = |at: isize| at.clamp(0, window[i] as isize) as usize;
            [inside(-self.corner[i]), inside(self.full[i] as isize - self.corner[i])]
        });
        Visible { rows, columns }
    }

    fn before_turns(&self) -> [usize; 2] {
        if self.turns % 2 == 1 { [self.input[1], self.input[0]] } else { self.input }
    }

    fn scale(&self, i: usize) -> f32 {
        self.full[i] as f32 / self.image[i] as f32
    }
}

/// Height and width that an image is resized to when nothing is drawn.
fn resized(image: [usize; 2], input: [usize; 2], fit: Fit) -> Result<[usize; 2]> {
    if image.contains(&0) || input.contains(&0) {
        return Err(Error::Invalid(format!(
            "an image of {image:?} for an input of {input:?} (height, width): no pixels"
        )));
    }
    let [height, width] = image;
    Ok(match fit {
        Fit::Stretch => input,
        Fit::Letterbox => {
            let scale = (input[0] as f64 / height as f64).min(input[1] as f64 / width as f64);
            [0, 1].map(|i| ((image[i] as f64 * scale).round() as usize).clamp(1, input[i]))
        }
        Fit::Cover { shorter } => {
            // torchvision's Resize: the longer side is truncated.
            let (short, long) = (height.min(width) as u64, height.max(width) as u64);
            let long = (shorter as u64 * long / short) as usize;
            if shorter == 0 || long as f64 > MAX_SIDE {
                return Err(Error::Invalid(format!(
                    "an image of {height}×{width} (height × width) cannot be brought to a shorter side of {shorter}"
                )));
            }
            if width <= height { [long, shorter] } else { [shorter, long] }
        }
        Fit::Tiles { .. } | Fit::Native => image,
    })
}

/// torchvision's `CenterCrop`: offsets round half to even, what is too small is centred.
fn centre(full: usize, input: usize) -> isize {
    if input > full {
        -(((input - full) / 2) as isize)
    } else {
        ((full - input) as f64 / 2.0).round_ties_even() as isize
    }
}
