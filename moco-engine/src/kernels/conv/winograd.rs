//! 3×3 convolutions of stride 1 by Winograd's F(2×2, 3×3) and F(4×4, 3×3) (arXiv:1509.09308): 16 multiplications for 4
//! outputs, or 36 for 16, where the definition has 36 or 144. With the smaller tiles results stay as exact as those of the
//! direct sum to about one bit, with the larger ones to about two and a half.
//!
//! For a tile of outputs under a patch `d` of inputs, `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`; summed over channels, the
//! elementwise product becomes matrix products, one for each position ξ of the patch.

use std::ops::Range;

use rayon::prelude::*;

use super::shape::ConvShape;
use super::winograd_transforms::{transform_input, transform_output};
use crate::kernels::element::Element;
#[cfg(target_arch = "x86_64")]
use crate::kernels::gemm::level::Isa;
use crate::kernels::gemm::level::Level;
use crate::kernels::gemm::panels::Panels;
use crate::kernels::gemm::product::{Finish, RowMap};
use crate::kernels::gemm::tile::{BLOCK, Lhs, PITCH, SharedOut, panel_product};
use crate::kernels::gemm::windows::{Norm, Windows};
use crate::kernels::gemm::workspace::with_workspace;

/// Distance between the matrices of two positions of `rows` rows each, in words: an odd number of cache lines, so that
/// the 16 values that a transform reads or writes together lie in different sets of the cache.
pub(super) fn position_step(rows: usize) -> usize {
    (rows | 1) * PITCH
}

/// An output pixel that lies outside the image.
pub(super) const OUTSIDE: usize = usize::MAX;

/// Whether a layer is computed this way: narrow layers would spend their time in the transforms.
pub(super) fn applies(s: &ConvShape) -> bool {
    s.kernel == 3 && s.stride == 1 && s.groups == 1 && s.c_in >= 32 && s.c_out >= 32
}

/// Side of the tiles in pixels. The larger ones have more weights to pack and to read for each tile, which pays on the
/// large maps of narrow layers; and their transformed values are no longer of one size, which takes f32.
pub(super) fn side<T: Element>(s: &ConvShape) -> usize {
    if T::PER_WORD == 1 && s.c_in.max(s.c_out) <= 128 { 4 } else { 2 }
}

/// Positions of a patch under a tile of this side.
pub(super) fn positions(side: usize) -> usize {
    (side + 2) * (side + 2)
}

/// The tiles that cover an output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Height and width of a tile in pixels.
    pub(super) side: usize,
    /// Height and width of the output in tiles.
    size: [usize; 2],
    /// All tiles of all images.
    count: usize,
    /// Tiles of a task. A function of the sizes alone.
    pub(super) block: usize,
}

impl Tiles {
    pub(super) fn new<T: Element>(level: Level, windows: &Windows, n: usize, side: usize) -> Tiles {
        let size = windows.out.map(|pixels| pixels.div_ceil(side));
        let count = n * size[0] * size[1];
        // Patches of a block, all channels: at most about half of a second-level cache of 1 MiB.
        let most = (512 * 1024 / (size_of::<T>() * positions(side) * windows.channels)).clamp(28, 56);
        let block = count.div_ceil(16).clamp(14, most).next_multiple_of(level.tile_rows());
        Tiles { side, size, count, block }
    }

    /// All tiles of all images.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Tiles of one image.
    pub(super) fn per_image(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// Image, and row and column of the tile's first output pixel.
    #[inline(always)]
    pub(super) fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (image, tile) = (tile / self.per_image(), tile % self.per_image());
        (image, self.side * (tile / self.size[1]), self.side * (tile % self.size[1]))
    }

    /// Offsets of the output pixels of each tile, [`OUTSIDE`] where the output ends.
    pub(super) fn offsets(&self, tiles: Range<usize>, map: &RowMap, out: &mut Vec<usize>) {
        out.clear();
        for tile in tiles {
            let (image, y, x) = self.place(tile);
            for (y, x) in (y..y + self.side).flat_map(|y| (x..x + self.side).map(move |x| (y, x))) {
                out.push(if y < map.out[0] && x < map.out[1] {
                    map.base + image * map.step[0] + y * map.step[1] + x * map.step[2]
                } else {
                    OUTSIDE
                });
            }
        }
    }
}

/// A convolution of stride 1 with transformed and packed 3×3 weights.
pub(super) struct WinogradProduct<'a, T> {
    pub(super) level: Level,
    pub(super) tiles: Tiles,
    pub(super) windows: Windows,
    pub(super) x: &'a [T],
    pub(super) norm: Option<Norm<'a>>,
    /// Of the matrix of one position, input channels × output channels.
    pub(super) panels: Panels,
    /// `[panel, position, word of input channels, column]`.
    pub(super) weights: &'a [u32],
    pub(super) out: SharedOut<T>,
    pub(super) map: RowMap,
    pub(super) accumulate: bool,
    pub(super) finish: Option<&'a Finish<'a>>,
}

impl<T: Element> WinogradProduct<'_, T> {
    /// Runs on rayon's current pool.
    ///
    /// # Safety
    /// The slice of `out` is still borrowed, its rows are disjoint, and nothing else touches them meanwhile.
    #[expect(unsafe_code, reason = "tasks share the output")]
    pub(super) unsafe fn run(&self) {
        let blocks = self.tiles.count.div_ceil(self.tiles.block);
        let panels = self.panels.count();
        // Only the transform of the input is repeated where the panels are divided, and no result changes.
        let wanted = (3 * rayon::current_num_threads()).div_ceil(blocks.max(1));
        let splits = if rayon::current_num_threads() == 1 { 1 } else { wanted.clamp(1, panels.div_ceil(4).max(1)) };
        let per_split = panels.div_ceil(splits).max(1);
        let splits = panels.div_ceil(per_split);
        (0..blocks * splits).into_par_iter().with_max_len(1).for_each(|task| {
            let (block, split) = (task / splits, task % splits);
            // SAFETY: tasks own disjoint tiles or columns; the rest is the caller's promise.
            unsafe { self.task(block, split * per_split..panels.min((split + 1) * per_split)) }
        });
    }

    #[expect(unsafe_code, reason = "tasks share the output")]
    unsafe fn task(&self, block: usize, panels: Range<usize>) {
        let first = block * self.tiles.block;
        let tiles = first..self.tiles.count.min(first + self.tiles.block);
        let (count, words) = (tiles.len(), self.panels.words());
        with_workspace(|workspace| {
            let positions = positions(self.tiles.side);
            let step = positions * position_step(count);
            let patches = workspace.a.at_least(words.div_ceil(BLOCK) * step);
            self.transform_input(tiles.clone(), patches);
            self.tiles.offsets(tiles.clone(), &self.map, &mut workspace.rows);
            let places = &workspace.rows[..];
            let (places, inside) = (places, &mut workspace.inside);
            inside.clear();
            inside.extend(places.iter().copied().filter(|&place| place != OUTSIDE));
            let width = self.level.tile_cols();
            let products: &mut [f32] = workspace.b.at_least(positions * count * width);
            let rows = &mut workspace.product_rows;
            rows.clear();
            rows.extend((0..count).map(|tile| tile * width));
            for panel in panels {
                let (column, cols, stored) =
                    (self.panels.column(panel), self.panels.cols(panel), self.panels.width(panel));
                let weights = &self.weights[positions * self.panels.offset(panel)..][..positions * words * stored];
                for (position, weights) in weights.chunks_exact(words * stored).enumerate() {
                    let products = SharedOut::new(&mut products[position * count * width..][..count * width]);
                    let patches = &patches[position * position_step(count)..];
                    // SAFETY: `products` belongs to this thread.
                    unsafe {
                        panel_product::<T, f32>(
                            self.level,
                            Lhs::Rows { step },
                            words,
                            patches,
                            weights,
                            stored,
                            stored,
                            products,
                            rows,
                            0,
                            false,
                            &mut &[][..],
                        );
                    }
                }
                let side = self.tiles.side;
                transform_output(self.level, side, products, width, places, self.out, column, cols, self.accumulate);
                if let Some(finish) = self.finish {
                    self.finish(block, tiles.clone(), inside, column..column + cols, finish);
                }
            }
        });
    }

    fn transform_input(&self, tiles: Range<usize>, patches: &mut [u32]) {
        let (windows, norm) = (&self.windows, self.norm.as_ref());
        #[cfg(target_arch = "x86_64")]
        if self.tiles.side == 4 && matches!(self.level.isa(), Isa::Avx512 | Isa::Avx512Bf16) {
            // The larger tiles are for f32 alone.
            let x = bytemuck::cast_slice(self.x);
            // SAFETY: a `Level` is only made for instruction sets that this CPU has.
            #[expect(unsafe_code, reason = "functions for a CPU feature are called after it was detected")]
            unsafe {
                super::winograd_avx512::transform_input(windows, x, norm, &self.tiles, tiles, patches);
            }
            return;
        }
        transform_input(self.level, windows, self.x, norm, &self.tiles, tiles, patches);
    }

    /// Hands the pixels of each image to `finish`.
    fn finish(&self, block: usize, tiles: Range<usize>, mut pixels: &[usize], cols: Range<usize>, finish: &Finish) {
        let per_image = self.tiles.per_image();
        let mut from = tiles.start;
        while from < tiles.end {
            let image = from / per_image;
            let to = tiles.end.min((image + 1) * per_image);
            let end = if to == tiles.end { usize::MAX } else { (image + 1) * self.map.step[0] + self.map.base };
            let (these, rest) = pixels.split_at(pixels.partition_point(|&pixel| pixel < end));
            finish(block + image, these, cols.clone());
            (pixels, from) = (rest, to);
        }
    }
}
