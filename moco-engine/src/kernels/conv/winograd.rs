//! 3×3 convolutions of stride 1 by Winograd's F(2×2, 3×3) (arXiv:1509.09308): 16 multiplications for 4 outputs where the
//! definition has 36. The small transforms have coefficients 0, ±1 and ½, so that results stay as exact as those of the
//! direct sum to about one bit.
//!
//! For a tile of 2×2 outputs under a patch `d` of 4×4 inputs, `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A`; summed over channels,
//! the elementwise product becomes 16 matrix products, one for each position ξ of the 4×4 patch.
#![expect(clippy::needless_range_loop, reason = "rows and columns of small matrices, by their indices")]

use std::ops::Range;

use rayon::prelude::*;

use super::shape::ConvShape;
use crate::kernels::element::{Element, narrow_16, words_16};
use crate::kernels::gemm::level::{Level, multiversion_native};
use crate::kernels::gemm::panels::Panels;
use crate::kernels::gemm::product::{Finish, RowMap};
use crate::kernels::gemm::tile::{BLOCK, Lhs, PITCH, SharedOut, panel_product};
use crate::kernels::gemm::windows::{Norm, Windows, normalise};
use crate::kernels::gemm::workspace::with_workspace;

/// Positions of a patch.
pub(super) const POSITIONS: usize = 16;

/// Distance between the matrices of two positions of `rows` rows each, in words: an odd number of cache lines, so that
/// the 16 values that a transform reads or writes together lie in different sets of the cache.
pub(super) fn position_step(rows: usize) -> usize {
    (rows | 1) * PITCH
}

/// Channels that are transformed at a time.
const LANES: usize = 16;

/// An output pixel that lies outside the image.
pub(super) const OUTSIDE: usize = usize::MAX;

type Vector = [f32; LANES];

/// Whether a layer is computed this way: narrow layers would spend their time in the transforms.
pub(super) fn applies(s: &ConvShape) -> bool {
    s.kernel == 3 && s.stride == 1 && s.groups == 1 && s.c_in >= 32 && s.c_out >= 32
}

/// The 2×2 tiles that cover an output.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiles {
    /// Height and width of the output in tiles.
    size: [usize; 2],
    /// All tiles of all images.
    count: usize,
    /// Tiles of a task. A function of the sizes alone.
    pub(super) block: usize,
}

impl Tiles {
    pub(super) fn new<T: Element>(level: Level, windows: &Windows, n: usize) -> Tiles {
        let size = windows.out.map(|side| side.div_ceil(2));
        let count = n * size[0] * size[1];
        // Patches of a block, all channels: at most about half of a second-level cache of 1 MiB.
        let most = (512 * 1024 / (size_of::<T>() * POSITIONS * windows.channels)).clamp(28, 56);
        let block = count.div_ceil(16).clamp(14, most).next_multiple_of(level.tile_rows());
        Tiles { size, count, block }
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
    fn place(&self, tile: usize) -> (usize, usize, usize) {
        let (image, tile) = (tile / self.per_image(), tile % self.per_image());
        (image, 2 * (tile / self.size[1]), 2 * (tile % self.size[1]))
    }

    /// Offsets of the four output pixels of each tile, [`OUTSIDE`] where the output ends.
    pub(super) fn offsets(&self, tiles: Range<usize>, map: &RowMap, out: &mut Vec<usize>) {
        out.clear();
        out.extend(tiles.flat_map(|tile| {
            let (image, y, x) = self.place(tile);
            [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)].map(|(y, x)| {
                if y < map.out[0] && x < map.out[1] {
                    map.base + image * map.step[0] + y * map.step[1] + x * map.step[2]
                } else {
                    OUTSIDE
                }
            })
        }));
    }
}

/// A convolution of stride 1 with transformed and packed 3×3 weights.
pub(super) struct WinogradProduct<'a, T> {
    pub(super) level: Level,
    pub(super) tiles: Tiles,
    pub(super) windows: Windows,
    pub(super) x: &'a [T],
    pub(super) norm: Option<Norm<'a>>,
    /// Of one of the 16 matrices, input channels × output channels.
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
            let step = POSITIONS * position_step(count);
            let patches = workspace.a.at_least(words.div_ceil(BLOCK) * step);
            transform_input(self.level, &self.windows, self.x, self.norm.as_ref(), &self.tiles, tiles.clone(), patches);
            self.tiles.offsets(tiles.clone(), &self.map, &mut workspace.rows);
            let places = &workspace.rows[..];
            let (places, inside) = (places, &mut workspace.inside);
            inside.clear();
            inside.extend(places.iter().copied().filter(|&place| place != OUTSIDE));
            let width = self.level.tile_cols();
            let products: &mut [f32] = workspace.b.at_least(POSITIONS * count * width);
            let rows = &mut workspace.product_rows;
            rows.clear();
            rows.extend((0..count).map(|tile| tile * width));
            for panel in panels {
                let (column, cols, stored) =
                    (self.panels.column(panel), self.panels.cols(panel), self.panels.width(panel));
                let weights = &self.weights[POSITIONS * self.panels.offset(panel)..][..POSITIONS * words * stored];
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
                transform_output(self.level, products, width, places, self.out, column, cols, self.accumulate);
                if let Some(finish) = self.finish {
                    self.finish(block, tiles.clone(), inside, column..column + cols, finish);
                }
            }
        });
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

multiversion_native! {
    /// `Bᵀ d B` of every tile and channel, to `[channel block, position, tile, word of channels]`, tiles [`PITCH`] and
    /// positions [`position_step`] apart.
    fn transform_input<T: Element>(
        windows: &Windows, x: &[T], norm: Option<&Norm<'_>>, tiles: &Tiles, range: Range<usize>, out: &mut [u32],
    ) = transform_input_body;
}

#[inline(always)]
fn transform_input_body<T: Element, const NATIVE: bool>(
    w: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    let step = position_step(range.len());
    for (t, tile) in range.enumerate() {
        let patch = Patch::new(w, x, norm, tiles, tile);
        for channel in (0..w.channels).step_by(LANES) {
            let values = input_side(patch.values(w, norm, channel));
            let word = channel / T::PER_WORD;
            let base = word / BLOCK * POSITIONS * step + t * PITCH + word % BLOCK;
            for (position, values) in values.as_flattened().iter().enumerate() {
                let words = &mut out[base + position * step..][..LANES / T::PER_WORD];
                bytemuck::cast_slice_mut(words).copy_from_slice(&narrow_16::<T, NATIVE>(values));
            }
        }
    }
}

multiversion_native! {
    /// `Bᵀ d B` of every tile and channel, to `[position, word of tiles, channel]`, words [`PITCH`] and positions
    /// [`position_step`] apart.
    pub(super) fn transform_input_columns<T: Element>(
        windows: &Windows, x: &[T], norm: Option<&Norm<'_>>, tiles: &Tiles, range: Range<usize>, out: &mut [u32],
    ) = transform_input_columns_body;
}

#[inline(always)]
fn transform_input_columns_body<T: Element, const NATIVE: bool>(
    w: &Windows,
    x: &[T],
    norm: Option<&Norm<'_>>,
    tiles: &Tiles,
    range: Range<usize>,
    out: &mut [u32],
) {
    let step = position_step(range.len().div_ceil(T::PER_WORD));
    for (t, tile) in range.clone().step_by(T::PER_WORD).enumerate() {
        let first = Patch::new(w, x, norm, tiles, tile);
        let second = (T::PER_WORD > 1 && tile + 1 < range.end).then(|| Patch::new(w, x, norm, tiles, tile + 1));
        for channel in (0..w.channels).step_by(LANES) {
            let values = input_side(first.values(w, norm, channel));
            let next = match &second {
                Some(second) => input_side(second.values(w, norm, channel)),
                None => [[[0.0; LANES]; 4]; 4],
            };
            let values = values.as_flattened().iter().zip(next.as_flattened());
            for (position, (values, next)) in values.enumerate() {
                let out = &mut out[position * step + t * PITCH + channel..][..LANES];
                out.copy_from_slice(&words_16::<T, NATIVE>(values, next));
            }
        }
    }
}

/// The inputs of a tile.
struct Patch<'a, T> {
    /// Of its image.
    pixels: &'a [T],
    /// Channel 0 of each position, or [`OUTSIDE`].
    places: [usize; POSITIONS],
    /// Of the image's group of statistics.
    group: usize,
}

impl<'a, T: Element> Patch<'a, T> {
    #[inline(always)]
    fn new(w: &Windows, x: &'a [T], norm: Option<&Norm<'_>>, tiles: &Tiles, tile: usize) -> Patch<'a, T> {
        let image_len = w.size[0] * w.size[1] * w.pixel;
        let (image, y, x_out) = tiles.place(tile);
        let (top, left) = (y as isize + w.origin[0], x_out as isize + w.origin[1]);
        let mut places = [OUTSIDE; POSITIONS];
        for i in 0..4 {
            for j in 0..4 {
                let (y, x) = (top + i as isize, left + j as isize);
                if y >= 0 && x >= 0 && y < w.size[0] as isize && x < w.size[1] as isize {
                    places[4 * i + j] = (y as usize * w.size[1] + x as usize) * w.pixel + w.channel;
                }
            }
        }
        let group = norm.and_then(|norm| norm.group_of_image.get(image)).map_or(0, |&g| g as usize) * w.pixel;
        Patch { pixels: &x[image * image_len..][..image_len], places, group }
    }

    /// Some channels, normalised.
    #[inline(always)]
    fn values(&self, w: &Windows, norm: Option<&Norm<'_>>, channel: usize) -> [[Vector; 4]; 4] {
        let lanes = LANES.min(w.channels - channel);
        let mut patch = [[[0.0; LANES]; 4]; 4];
        let values = patch.as_flattened_mut();
        let at = self.group + w.channel + channel;
        if lanes == LANES {
            for p in 0..POSITIONS {
                if self.places[p] != OUTSIDE {
                    values[p] = widened(vector(self.pixels, self.places[p] + channel));
                }
            }
            if let Some(norm) = norm {
                let (scale, shift) = (vector(norm.scale, at), vector(norm.shift, at));
                for p in 0..POSITIONS {
                    if self.places[p] != OUTSIDE {
                        values[p] = affine(values[p], scale, shift, norm.relu);
                    }
                }
            }
            return patch;
        }
        for p in 0..POSITIONS {
            if self.places[p] == OUTSIDE {
                continue;
            }
            let from = &self.pixels[self.places[p] + channel..][..lanes];
            match norm {
                None => values[p].iter_mut().zip(from).for_each(|(value, from)| *value = from.widen()),
                Some(norm) => {
                    let (scale, shift) = (&norm.scale[at..at + lanes], &norm.shift[at..at + lanes]);
                    normalise::<T, f32, false>(from, scale, shift, norm.relu, &mut values[p][..lanes]);
                }
            }
        }
        patch
    }
}

#[inline(always)]
fn vector<T>(values: &[T], at: usize) -> &[T; LANES] {
    values[at..at + LANES].first_chunk().expect("a whole vector")
}

#[inline(always)]
pub(super) fn widened<T: Element, const N: usize>(values: &[T; N]) -> [f32; N] {
    let mut out = [0.0; N];
    for i in 0..N {
        out[i] = values[i].widen();
    }
    out
}

/// [`normalise`] of a whole vector.
#[inline(always)]
fn affine(x: Vector, scale: &Vector, shift: &Vector, relu: bool) -> Vector {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = x[i] * scale[i] + shift[i];
    }
    if relu {
        for value in &mut out {
            *value = if *value < 0.0 { 0.0 } else { *value };
        }
    }
    out
}

/// `Bᵀ d B`. Plain loops instead of closures over arrays: those are not inlined into functions for a CPU feature.
#[inline(always)]
fn input_side(d: [[Vector; 4]; 4]) -> [[Vector; 4]; 4] {
    let mut rows = [[[0.0; LANES]; 4]; 4];
    for i in 0..4 {
        rows[i] = input_line(d[i]);
    }
    let mut out = [[[0.0; LANES]; 4]; 4];
    for j in 0..4 {
        let column = input_line([rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
        for i in 0..4 {
            out[i][j] = column[i];
        }
    }
    out
}

#[inline(always)]
fn input_line([a, b, c, d]: [Vector; 4]) -> [Vector; 4] {
    [sub(a, c), add(b, c), sub(c, b), sub(b, d)]
}

multiversion_native! {
    /// `Y = Aᵀ m A` of `cols` columns of every tile, from `[position, tile, width]` to the four pixels of each tile in
    /// `out`, which the calling task owns; overwrites or adds.
    fn transform_output<T: Element>(
        products: &[f32], width: usize, places: &[usize], out: SharedOut<T>, column: usize, cols: usize,
        accumulate: bool,
    ) = transform_output_body;
}

#[inline(always)]
fn transform_output_body<T: Element, const NATIVE: bool>(
    products: &[f32],
    width: usize,
    places: &[usize],
    out: SharedOut<T>,
    column: usize,
    cols: usize,
    accumulate: bool,
) {
    let count = places.len() / 4;
    for (t, places) in places.chunks_exact(4).enumerate() {
        let mut from = 0;
        while from + LANES <= cols {
            output_tile::<T, LANES, NATIVE>(products, width, count, t, from, places, out, column, LANES, accumulate);
            from += LANES;
        }
        while from < cols {
            output_tile::<T, 8, NATIVE>(
                products,
                width,
                count,
                t,
                from,
                places,
                out,
                column,
                (cols - from).min(8),
                accumulate,
            );
            from += 8;
        }
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a tile among the products and among the outputs")]
fn output_tile<T: Element, const N: usize, const NATIVE: bool>(
    products: &[f32],
    width: usize,
    count: usize,
    t: usize,
    from: usize,
    places: &[usize],
    out: SharedOut<T>,
    column: usize,
    lanes: usize,
    accumulate: bool,
) {
    let mut rows = [[[0.0; N]; 2]; 4];
    for i in 0..4 {
        let mut line = [[0.0; N]; 4];
        for j in 0..4 {
            let at = ((4 * i + j) * count + t) * width + from;
            line[j] = *products[at..].first_chunk().expect("panels are whole vectors");
        }
        rows[i] = output_line(line);
    }
    for j in 0..2 {
        let column_of = output_line([rows[0][j], rows[1][j], rows[2][j], rows[3][j]]);
        for i in 0..2 {
            let place = places[2 * i + j];
            if place == OUTSIDE {
                continue;
            }
            // SAFETY: the calling task owns these pixels and columns.
            #[expect(unsafe_code, reason = "tasks share the output")]
            let pixel = unsafe { out.slice(place + column + from, lanes) };
            if lanes == N {
                let pixel: &mut [T; N] = pixel.first_chunk_mut().expect("N values");
                let sum = if accumulate { add(widened(pixel), column_of[i]) } else { column_of[i] };
                match sum.first_chunk() {
                    Some(sum) if N == LANES => pixel.copy_from_slice(&narrow_16::<T, NATIVE>(sum)),
                    _ => {
                        for lane in 0..N {
                            pixel[lane] = T::narrow(sum[lane]);
                        }
                    }
                }
            } else {
                for (pixel, value) in pixel.iter_mut().zip(column_of[i]) {
                    *pixel = T::narrow(if accumulate { pixel.widen() + value } else { value });
                }
            }
        }
    }
}

#[inline(always)]
fn output_line<const N: usize>([a, b, c, d]: [[f32; N]; 4]) -> [[f32; N]; 2] {
    [add(add(a, b), c), sub(sub(b, c), d)]
}

/// `G g Gᵀ` of the nine taps of `N` kernels side by side.
#[inline(always)]
pub(super) fn transform_kernel<const N: usize>(taps: &[[f32; N]; 9]) -> [[f32; N]; POSITIONS] {
    let mut rows = [[[0.0; N]; 4]; 3];
    for i in 0..3 {
        rows[i] = kernel_line([taps[3 * i], taps[3 * i + 1], taps[3 * i + 2]]);
    }
    let mut out = [[0.0; N]; POSITIONS];
    for j in 0..4 {
        let column = kernel_line([rows[0][j], rows[1][j], rows[2][j]]);
        for i in 0..4 {
            out[4 * i + j] = column[i];
        }
    }
    out
}

#[inline(always)]
fn kernel_line<const N: usize>([a, b, c]: [[f32; N]; 3]) -> [[f32; N]; 4] {
    let (ends, middle) = (halve(add(a, c)), halve(b));
    [a, add(ends, middle), sub(ends, middle), c]
}

#[inline(always)]
pub(super) fn add<const N: usize>(a: [f32; N], b: [f32; N]) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] += b[i];
    }
    out
}

#[inline(always)]
pub(super) fn sub<const N: usize>(a: [f32; N], b: [f32; N]) -> [f32; N] {
    let mut out = a;
    for i in 0..N {
        out[i] -= b[i];
    }
    out
}

#[inline(always)]
pub(super) fn halve<const N: usize>(a: [f32; N]) -> [f32; N] {
    let mut out = a;
    for value in &mut out {
        *value *= 0.5;
    }
    out
}
