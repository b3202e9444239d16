//! Convolutions of many narrow groups, as in ResNeXt: a vector holds the channels of several groups, and each input
//! vector is multiplied once for each channel of a group, permuted so that every lane sees that channel of its own group.

use std::ops::Range;

use rayon::prelude::*;

use super::shape::ConvShape;
use crate::kernels::element::Element;
use crate::kernels::gemm::level::{Isa, Level};
use crate::kernels::gemm::panels::Panels;
use crate::kernels::gemm::product::{Finish, RowMap, block_rows};
use crate::kernels::gemm::tile::SharedOut;
use crate::kernels::gemm::windows::{Norm, Windows};
use crate::kernels::gemm::workspace::{with_shared, with_workspace};

/// A tap outside the image.
const OUTSIDE: usize = usize::MAX;

/// Splits of the sum over pixels in a weight gradient; the same on every machine.
const SPLITS: usize = 16;

/// Whether a layer is computed this way.
pub(super) fn applies(level: Level, s: &ConvShape) -> bool {
    let width = s.c_in / s.groups;
    level.isa() != Isa::Portable
        && s.groups > 1
        && s.c_in == s.c_out
        && level.lanes().is_multiple_of(width)
        && s.c_in.is_multiple_of(level.lanes())
}

/// Arguments of the micro-kernels, for `rows` output pixels and one vector of channels from `column`.
pub(super) struct Piece<'a, T> {
    /// Channels of a group.
    pub(super) width: usize,
    pub(super) taps: usize,
    pub(super) x: &'a [T],
    /// Offset in `x` of channel 0 of each row's taps, `[row, tap]`, or [`OUTSIDE`].
    pub(super) places: &'a [usize],
    pub(super) norm: Option<Norm<'a>>,
    /// Offset in the normalisation's scale and shift of each row's group.
    pub(super) groups: &'a [usize],
    /// First channel.
    pub(super) column: usize,
}

/// Places of the taps and groups of statistics of some rows of the im2col matrix.
fn find_places(w: &Windows, norm: Option<&Norm>, rows: Range<usize>, places: &mut Vec<usize>, groups: &mut Vec<usize>) {
    places.clear();
    groups.clear();
    let per_image = w.rows_per_image();
    for row in rows {
        let (image, pixel) = (row / per_image, row % per_image);
        let top = (pixel / w.out[1] * w.stride) as isize + w.origin[0];
        let left = (pixel % w.out[1] * w.stride) as isize + w.origin[1];
        for ky in 0..w.kernel[0] {
            for kx in 0..w.kernel[1] {
                let (y, x) = (top + ky as isize, left + kx as isize);
                let inside = y >= 0 && x >= 0 && y < w.size[0] as isize && x < w.size[1] as isize;
                let at = |y: usize, x: usize| ((image * w.size[0] + y) * w.size[1] + x) * w.pixel;
                places.push(if inside { at(y as usize, x as usize) } else { OUTSIDE });
            }
        }
        groups.push(norm.and_then(|n| n.group_of_image.get(image)).map_or(0, |&g| g as usize) * w.pixel);
    }
}

/// The passes whose result is an activation.
pub(super) struct GroupedProduct<'a, T> {
    pub(super) level: Level,
    /// Channels of a group.
    pub(super) width: usize,
    pub(super) rows: usize,
    pub(super) windows: Windows,
    pub(super) x: &'a [T],
    pub(super) norm: Option<Norm<'a>>,
    /// Rows `(tap, channel of the group)`, columns all channels.
    pub(super) panels: Panels,
    pub(super) weights: &'a [f32],
    pub(super) out: SharedOut<T>,
    pub(super) map: RowMap,
    pub(super) accumulate: bool,
    pub(super) finish: Option<&'a Finish<'a>>,
}

impl<T: Element> GroupedProduct<'_, T> {
    /// Runs on rayon's current pool.
    ///
    /// # Safety
    /// The slice of `out` is still borrowed, its rows are disjoint, and nothing else touches them meanwhile.
    #[expect(unsafe_code, reason = "tasks share the output")]
    pub(super) unsafe fn run(&self) {
        let size = block_rows(self.level, self.rows, self.panels.words());
        (0..self.rows.div_ceil(size)).into_par_iter().with_max_len(1).for_each(|block| {
            let rows = block * size..self.rows.min((block + 1) * size);
            // SAFETY: tasks own disjoint blocks of rows; the rest is the caller's promise.
            unsafe { self.task(block, rows) }
        });
    }

    #[expect(unsafe_code, reason = "tasks share the output")]
    unsafe fn task(&self, block: usize, rows: Range<usize>) {
        with_workspace(|workspace| {
            let (places, groups) = (&mut workspace.inside, &mut workspace.product_rows);
            find_places(&self.windows, self.norm.as_ref(), rows.clone(), places, groups);
            self.map.offsets(rows.clone(), &mut workspace.rows);
            let lanes = self.level.lanes();
            for panel in 0..self.panels.count() {
                let (first, cols, width) =
                    (self.panels.column(panel), self.panels.cols(panel), self.panels.width(panel));
                for column in (first..first + cols).step_by(lanes) {
                    let weights = &self.weights[self.panels.offset(panel) + column - first..];
                    let piece = Piece {
                        width: self.width,
                        taps: self.windows.kernel[0] * self.windows.kernel[1],
                        x: self.x,
                        places,
                        norm: self.norm,
                        groups,
                        column,
                    };
                    // SAFETY: this task alone writes these rows.
                    unsafe {
                        super::grouped_simd::rows(
                            self.level,
                            &piece,
                            weights,
                            width,
                            self.out,
                            &workspace.rows,
                            self.accumulate,
                        );
                    }
                }
                if let Some(finish) = self.finish {
                    let per_image = self.windows.rows_per_image();
                    let mut from = rows.start;
                    while from < rows.end {
                        let image = from / per_image;
                        let to = rows.end.min((image + 1) * per_image);
                        let part = &workspace.rows[from - rows.start..to - rows.start];
                        finish(block + image, part, first..first + cols);
                        from = to;
                    }
                }
            }
        });
    }
}

pub(super) fn backward_weights<T: Element>(
    level: Level,
    s: &ConvShape,
    windows: &Windows,
    x: &[T],
    dy: &[T],
    dw: &mut [f32],
    norm: Option<Norm>,
) {
    let (width, area, channels) = (s.c_in / s.groups, s.kernel * s.kernel, s.c_out);
    let rows = s.n * windows.rows_per_image();
    let split = rows.div_ceil(SPLITS).max(256);
    let splits = rows.div_ceil(split);
    let one = area * width * channels;
    with_shared(splits * one, |sums: &mut [f32]| {
        sums.par_chunks_mut(one).enumerate().with_max_len(1).for_each(|(i, sums)| {
            sums.fill(0.0);
            let end = rows.min((i + 1) * split);
            with_workspace(|workspace| {
                let (places, groups) = (&mut workspace.inside, &mut workspace.product_rows);
                for from in (i * split..end).step_by(256) {
                    let rows = from..end.min(from + 256);
                    find_places(windows, norm.as_ref(), rows.clone(), places, groups);
                    for column in (0..channels).step_by(level.lanes()) {
                        let piece = Piece { width, taps: area, x, places, norm, groups, column };
                        let dy = &dy[rows.start * channels..rows.end * channels];
                        super::grouped_simd::sums(level, &piece, dy, channels, sums);
                    }
                }
            });
        });
        dw.par_chunks_mut(width * area).enumerate().with_min_len(16).for_each(|(o, dw)| {
            for (at, dw) in dw.iter_mut().enumerate() {
                let (c, tap) = (at / area, at % area);
                *dw = sums.chunks_exact(one).map(|sums| sums[(tap * width + c) * channels + o]).sum();
            }
        });
    });
}
