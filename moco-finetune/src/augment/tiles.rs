//! Large images in windows: overlapping, their maps blended, their boxes merged.

use moco_image::Raster;

use super::Framing;
use super::framing::{Levels, size_of};
use super::placement::Placement;
use crate::Result;
use crate::task::{BBox, Detection};

/// A grid of windows over images of any size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tiling {
    /// Height and width of a window.
    pub tile: [usize; 2],
    /// Share of a window's side, below 1, that neighbours have in common at least.
    pub overlap: f64,
}

/// A window, by the pixel of the image in its upper left corner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row.
    pub top: usize,
    /// First column.
    pub left: usize,
}

impl Tiling {
    /// The windows over an image of (height, width), row by row: as few as cover it with the overlap asked for, evenly
    /// spread, the first and last flush with its borders. An image smaller than a window has one, which sticks out.
    pub fn tiles(&self, (height, width): (usize, usize)) -> Vec<Tile> {
        let (rows, columns) = (self.starts(0, height), self.starts(1, width));
        rows.iter().flat_map(|&top| columns.iter().map(move |&left| Tile { top, left })).collect()
    }

    /// Writes the input of one window, [height, width, channels] of the framing's rule; outside the image it is 0.
    ///
    /// # Errors
    /// As [`Framing::prepare_image`].
    pub fn prepare_tile(&self, framing: &Framing, image: &Raster, tile: Tile, out: &mut [f32]) -> Result<()> {
        self.reader(framing, image)?.prepare(tile, out)
    }

    /// A reader of all windows of one image, which brings the image to its range of values once.
    ///
    /// # Errors
    /// As [`Framing::prepare_image`].
    pub fn reader<'a>(&self, framing: &'a Framing, image: &'a Raster) -> Result<TileReader<'a>> {
        Ok(TileReader { tile: self.tile, size: size_of(image), levels: framing.levels(image)?, framing })
    }

    fn starts(&self, axis: usize, size: usize) -> Vec<usize> {
        let side = self.tile[axis].max(1);
        let Some(rest) = size.checked_sub(side).filter(|rest| *rest > 0) else { return vec![0] };
        let step = side as f64 * (1.0 - self.overlap.clamp(0.0, 0.95));
        let steps = (rest as f64 / step.max(1.0)).ceil() as usize;
        (0..=steps).map(|i| (i * rest + steps / 2) / steps).collect()
    }
}

/// Reads windows of one image; shared between threads.
#[derive(Debug)]
pub struct TileReader<'a> {
    tile: [usize; 2],
    size: [usize; 2],
    levels: Levels<'a>,
    framing: &'a Framing,
}

impl TileReader<'_> {
    /// As [`Tiling::prepare_tile`].
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for a buffer of another length.
    pub fn prepare(&self, tile: Tile, out: &mut [f32]) -> Result<()> {
        let placement = Placement::window(self.size, self.tile, [tile.top, tile.left]);
        self.framing.render(&self.levels, &placement, &[], out)
    }
}

/// A map over a whole image, [height, width, channels], put together from maps of windows: a mean, weighted by a window
/// that falls smoothly to its borders, where a network sees least. Where one window lies its values stay as they are.
#[derive(Clone, Debug)]
pub struct TileMap {
    size: [usize; 2],
    channels: usize,
    tile: [usize; 2],
    window: [Vec<f32>; 2],
    map: Vec<f32>,     // [height, width, channels]
    weights: Vec<f32>, // [height, width]
}

impl TileMap {
    /// An empty map over an image of (height, width).
    pub fn new((height, width): (usize, usize), channels: usize, tiling: &Tiling) -> Self {
        let window = |side: usize| -> Vec<f32> {
            let sine = |i: usize| (std::f64::consts::PI * (i as f64 + 0.5) / side as f64).sin();
            // Never 0: the outermost pixels of the image lie in one window only.
            (0..side).map(|i| (sine(i) * sine(i)).max(1e-3) as f32).collect()
        };
        Self {
            size: [height, width],
            channels,
            tile: tiling.tile,
            window: tiling.tile.map(window),
            map: vec![0.0; height * width * channels],
            weights: vec![0.0; height * width],
        }
    }

    /// Adds the map of a window, [height, width, channels] of the tiling. The result depends on the order of calls by
    /// rounding only.
    ///
    /// # Panics
    /// If `values` has another length.
    pub fn add(&mut self, tile: Tile, values: &[f32]) {
        let ([height, width], channels) = (self.tile, self.channels);
        assert_eq!(values.len(), height * width * channels, "the map of a window");
        let rows = height.min(self.size[0].saturating_sub(tile.top));
        let columns = width.min(self.size[1].saturating_sub(tile.left));
        for y in 0..rows {
            for x in 0..columns {
                let at = (tile.top + y) * self.size[1] + tile.left + x;
                let weight = self.window[0][y] * self.window[1][x];
                self.weights[at] += weight;
                // A running mean: of one window, or of equal values, it is exact.
                let share = weight / self.weights[at];
                let from = &values[(y * width + x) * channels..][..channels];
                let to = &mut self.map[at * channels..][..channels];
                to.iter_mut().zip(from).for_each(|(mean, v)| *mean += (v - *mean) * share);
            }
        }
    }

    /// The map; 0 where no window lay.
    pub fn finish(self) -> Vec<f32> {
        self.map
    }
}

/// Detections of windows, in pixels of their window, as those of the image of (height, width): shifted, cut off, and of
/// those that overlap by more than `iou` within a class only the surest kept. A detection that is cut off by an inner
/// border of its window gives way to one that covers most of it.
pub fn merge_detections(
    tiles: &[(Tile, Vec<Detection>)],
    tiling: &Tiling,
    (height, width): (usize, usize),
    iou: f32,
) -> Vec<Detection> {
    let (mut whole, mut cut) = (Vec::new(), Vec::new());
    for (tile, found) in tiles {
        let (x, y) = (tile.left as f32, tile.top as f32);
        for detection in found {
            let b = detection.bbox;
            let moved = BBox { x0: b.x0 + x, y0: b.y0 + y, x1: b.x1 + x, y1: b.y1 + y }.clipped(width, height);
            if moved.area() > 0.0 {
                let inner = touches_inner_border(&b, *tile, tiling, [height, width]);
                let list = if inner { &mut cut } else { &mut whole };
                list.push(Detection { bbox: moved, ..*detection });
            }
        }
    }
    let covers = |other: &Detection, part: &Detection| {
        other.label == part.label && other.bbox.intersection(&part.bbox).area() > COVERED * part.bbox.area()
    };
    // Parts of one object in several windows cover each other; the largest stays.
    cut.sort_by(|a, b| b.bbox.area().total_cmp(&a.bbox.area()));
    for part in cut {
        if !whole.iter().any(|other| covers(other, &part)) {
            whole.push(part);
        }
    }
    crate::detect::nms_by_class(&whole, iou, usize::MAX)
}

/// Share of a part's area from which another detection speaks for it.
const COVERED: f32 = 0.7;

fn touches_inner_border(b: &BBox, tile: Tile, tiling: &Tiling, size: [usize; 2]) -> bool {
    const NEAR: f32 = 2.0;
    let [height, width] = tiling.tile;
    (tile.left > 0 && b.x0 < NEAR)
        || (tile.top > 0 && b.y0 < NEAR)
        || (tile.left + width < size[1] && b.x1 > width as f32 - NEAR)
        || (tile.top + height < size[0] && b.y1 > height as f32 - NEAR)
}
