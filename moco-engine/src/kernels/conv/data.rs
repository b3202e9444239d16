//! The passes whose result is an activation: forward, and the gradient of the data.

use super::epilogue::{Epilogue, Partials, finish_row};
use super::geometry::{backward_windows, forward_windows, phases};
use super::grouped::{self, GroupedProduct};
use super::shape::ConvShape;
use super::weights::{Packed, Pass, bundles_of};
use super::winograd::{self, Tiles, WinogradProduct};
use crate::kernels::element::Element;
use crate::kernels::gemm::level::Level;
use crate::kernels::gemm::panels::Panels;
use crate::kernels::gemm::product::{Finish, Left, Product, RowMap, block_rows};
use crate::kernels::gemm::tile::SharedOut;
use crate::kernels::gemm::windows::{Norm, Windows};
use crate::kernels::gemm::workspace::with_shared;

pub(super) fn forward<T: Element>(
    s: &ConvShape,
    x: &[T],
    weights: &Packed<T>,
    y: &mut [T],
    norm: Option<Norm>,
    epilogue: Epilogue<T>,
) {
    let level = weights.level();
    let bundles = bundles_of(level, s);
    let rows_per_image = s.out_h() * s.out_w();
    let rows = s.n * rows_per_image;
    if y.is_empty() {
        if let Some(stats) = epilogue.stats {
            stats.fill(0.0);
        }
        return;
    }
    let fast = winograd::applies(s).then(|| Tiles::new::<T>(level, &forward_windows(s, &bundles, 0), s.n));
    let partials = match fast {
        Some(tiles) => Partials { block_rows: tiles.block, rows_per_image: tiles.per_image(), c_out: s.c_out },
        None => {
            let words = weights.parts(s, Pass::Forward).next().map_or(0, |(panels, _)| panels.words());
            Partials { block_rows: block_rows(level, rows, words), rows_per_image, c_out: s.c_out }
        }
    };
    let Epilogue { mut stats, bias, add, relu } = epilogue;
    let out = SharedOut::new(y);
    with_shared(if stats.is_some() { partials.len(s.n) } else { 0 }, |sums: &mut [f32]| {
        let shared_sums = SharedOut::new(sums);
        for (bundle, (panels, b)) in weights.parts(s, Pass::Forward).enumerate() {
            let base = bundle * bundles.c_out;
            let finish = |part: usize, offsets: &[usize], cols: std::ops::Range<usize>| {
                let channels = base + cols.start..base + cols.end;
                if stats.is_some() {
                    // SAFETY: a task owns the rows and channels it finishes.
                    #[expect(unsafe_code, reason = "tasks share the output")]
                    unsafe {
                        partials.sum(level, out, shared_sums, part, channels.clone(), offsets, cols.start);
                    }
                }
                if bias.is_some() || add.is_some() || relu {
                    for &offset in offsets {
                        let at = offset + cols.start;
                        // SAFETY: as above.
                        #[expect(unsafe_code, reason = "tasks share the output")]
                        let row = unsafe { out.slice(at, cols.len()) };
                        let (bias, add) = (bias.map(|b| &b[channels.clone()]), add.map(|a| &a[at..at + cols.len()]));
                        finish_row(row, bias, add, relu);
                    }
                }
            };
            let needed = stats.is_some() || bias.is_some() || add.is_some() || relu;
            let finish = needed.then_some(&finish as &Finish);
            let map = RowMap {
                base,
                step: [rows_per_image * s.c_out, s.out_w() * s.c_out, s.c_out],
                out: [s.out_h(), s.out_w()],
            };
            let windows = forward_windows(s, &bundles, bundle);
            // SAFETY: `y` is borrowed by this function and its rows are disjoint.
            #[expect(unsafe_code, reason = "tasks share the output")]
            unsafe {
                run(level, s, fast, windows, rows, x, norm, panels, b, out, map, false, finish);
            }
        }
        if let Some(stats) = &mut stats {
            partials.reduce(sums, stats);
        }
    });
}

pub(super) fn backward_data<T: Element>(s: &ConvShape, dy: &[T], weights: &Packed<T>, dx: &mut [T], accumulate: bool) {
    let level = weights.level();
    let bundles = bundles_of(level, s);
    let reached = |phase: &[super::geometry::Phase; 2]| phase.iter().all(|p| p.taps > 0);
    if !accumulate && (dy.is_empty() || !phases(s).all(|phase| reached(&phase))) {
        fill_zero(dx);
    }
    if dy.is_empty() || dx.is_empty() {
        return;
    }
    let out = SharedOut::new(dx);
    let parts = (0..bundles.count).flat_map(|bundle| phases(s).map(move |phase| (bundle, phase)));
    for ((bundle, phase), (panels, b)) in parts.zip(weights.parts(s, Pass::BackwardData)) {
        let rows = s.n * phase[0].count * phase[1].count;
        if !reached(&phase) || rows == 0 {
            continue;
        }
        let (windows, map) = backward_windows(s, &bundles, bundle, &phase);
        let fast = winograd::applies(s).then(|| Tiles::new::<T>(level, &windows, s.n));
        // SAFETY: `dx` is borrowed by this function and the rows of a phase are disjoint pixels.
        #[expect(unsafe_code, reason = "tasks share the output")]
        unsafe {
            run(level, s, fast, windows, rows, dy, None, panels, b, out, map, accumulate, None);
        }
    }
}

/// One product of windows and packed weights, by tiles if there are any.
///
/// # Safety
/// The slice of `out` is still borrowed, its rows are disjoint, and nothing else touches them meanwhile.
#[expect(unsafe_code, reason = "tasks share the output")]
#[expect(clippy::too_many_arguments, reason = "the two kinds of product, field by field")]
unsafe fn run<T: Element>(
    level: Level,
    s: &ConvShape,
    tiles: Option<Tiles>,
    windows: Windows,
    rows: usize,
    x: &[T],
    norm: Option<Norm>,
    panels: Panels,
    b: &[u32],
    out: SharedOut<T>,
    map: RowMap,
    accumulate: bool,
    finish: Option<&Finish>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match tiles {
            Some(tiles) => {
                WinogradProduct { level, tiles, windows, x, norm, panels, weights: b, out, map, accumulate, finish }
                    .run();
            }
            None if grouped::applies(level, s) => {
                let width = s.c_in / s.groups;
                let weights = bytemuck::cast_slice(b);
                GroupedProduct { level, width, rows, windows, x, norm, panels, weights, out, map, accumulate, finish }
                    .run();
            }
            None => {
                let left = Left::Windows { windows, x, norm };
                Product { level, rows, left, panels, b, out, map, accumulate, finish }.run();
            }
        }
    }
}

fn fill_zero<T: Element>(out: &mut [T]) {
    use rayon::prelude::*;
    out.par_chunks_mut(1 << 16).for_each(|part| part.fill(T::zeroed()));
}
