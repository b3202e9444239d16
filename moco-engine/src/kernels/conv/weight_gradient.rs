//! The gradient of the weights: `dW[o, (ky, kx, i)] = Σ over output pixels of dy[pixel, o] · window[pixel, (ky, kx, i)]`.

use rayon::prelude::*;

use super::geometry::{Bundles, forward_windows};
use super::shape::ConvShape;
use super::{grouped, winograd, winograd_gradient};
use crate::kernels::element::Element;
use crate::kernels::gemm::level::Level;
use crate::kernels::gemm::tile::{BLOCK, Lhs, PITCH, SharedOut, panel_product};
use crate::kernels::gemm::windows::{Norm, Windows, gather_columns};
use crate::kernels::gemm::workspace::{with_shared, with_workspace};

/// Words of output pixels whose products are summed in registers.
const DEPTH: usize = 256;

/// Tasks that an operation is divided into at least, where its size allows; the same on every machine, since the sums
/// are divided as well.
const TASKS: usize = 16;

/// How the work of one layer is divided: the pixels in `splits` sums, which are added up at the end, and the result in
/// chunks of output channels and window columns.
#[derive(Clone, Copy, Debug)]
struct Division {
    splits: usize,
    /// Pixels of a split, a multiple of [`DEPTH`].
    split_rows: usize,
    out_chunks: usize,
    out_chunk: usize,
    col_chunks: usize,
    col_chunk: usize,
}

impl Division {
    fn new<T: Element>(level: Level, rows: usize, bundles: &Bundles, cols: usize) -> Division {
        let out_chunks = bundles.c_out.div_ceil(BLOCK);
        let out_chunk = bundles.c_out.div_ceil(out_chunks);
        let col_chunk = cols.div_ceil(cols.div_ceil(BLOCK)).next_multiple_of(level.tile_cols()).min(BLOCK);
        let col_chunks = cols.div_ceil(col_chunk);
        let wanted = TASKS.div_ceil(bundles.count * out_chunks * col_chunks);
        let kept = (1 << 22) / (bundles.count * bundles.c_out * cols).max(1);
        let split_rows = rows.div_ceil(wanted.min(kept.max(1))).next_multiple_of(DEPTH * T::PER_WORD).max(4 * DEPTH);
        Division { splits: rows.div_ceil(split_rows), split_rows, out_chunks, out_chunk, col_chunks, col_chunk }
    }
}

pub(super) fn backward_weights<T: Element>(
    level: Level,
    s: &ConvShape,
    x: &[T],
    dy: &[T],
    dw: &mut [f32],
    norm: Option<Norm>,
) {
    if dw.is_empty() || dy.is_empty() {
        dw.fill(0.0);
        return;
    }
    if winograd::applies(s) {
        winograd_gradient::backward_weights(level, s, x, dy, dw, norm);
        return;
    }
    if grouped::applies(level, s) {
        let windows = forward_windows(s, &Bundles::all_groups(s), 0);
        grouped::backward_weights(level, s, &windows, x, dy, dw, norm);
        return;
    }
    let bundles = Bundles::new(s);
    let (rows, cols) = (s.n * s.out_h() * s.out_w(), s.kernel * s.kernel * bundles.c_in);
    let division = Division::new::<T>(level, rows, &bundles, cols);
    let sum = Sum { level, s, bundles, division, rows, cols, x, dy, norm };
    if s.kernel == 1 && division.splits == 1 && bundles.c_in == bundles.group_in {
        sum.run(SharedOut::new(dw));
        return;
    }
    let one = bundles.c_out * cols;
    with_shared(bundles.count * division.splits * one, |sums: &mut [f32]| {
        sum.run(SharedOut::new(sums));
        let per_out = bundles.group_in * s.kernel * s.kernel;
        let at_once = (4096 / per_out).max(1);
        dw.par_chunks_mut(at_once * per_out).enumerate().for_each(|(chunk, dw)| {
            for (i, dw) in dw.chunks_exact_mut(per_out).enumerate() {
                let (bundle, o) = ((chunk * at_once + i) / bundles.c_out, (chunk * at_once + i) % bundles.c_out);
                let sums = &sums[bundle * division.splits * one..][..division.splits * one];
                add_up(sums, one, o * cols + o / bundles.group_out * bundles.group_in, &bundles, s.kernel, dw);
            }
        });
    });
}

/// Adds the splits of one output channel from `[tap, channel]` order up into `[channel, tap]`.
fn add_up(sums: &[f32], one: usize, start: usize, bundles: &Bundles, kernel: usize, dw: &mut [f32]) {
    let area = kernel * kernel;
    for tap in 0..area {
        let at = start + tap * bundles.c_in;
        for (i, &first) in sums[at..at + bundles.group_in].iter().enumerate() {
            dw[i * area + tap] = first;
        }
        for split in sums[one..].chunks_exact(one) {
            for (i, &value) in split[at..at + bundles.group_in].iter().enumerate() {
                dw[i * area + tap] += value;
            }
        }
    }
}

struct Sum<'a, T> {
    level: Level,
    s: &'a ConvShape,
    bundles: Bundles,
    division: Division,
    /// Output pixels.
    rows: usize,
    /// Columns of the im2col matrix of a bundle.
    cols: usize,
    x: &'a [T],
    dy: &'a [T],
    norm: Option<Norm<'a>>,
}

impl<T: Element> Sum<'_, T> {
    /// Fills `out` `[bundle, split, output channel, column]`.
    fn run(&self, out: SharedOut<f32>) {
        let d = &self.division;
        let tasks = self.bundles.count * d.splits * d.out_chunks * d.col_chunks;
        (0..tasks).into_par_iter().with_max_len(1).for_each(|task| {
            let (task, col) = (task / d.col_chunks, task % d.col_chunks);
            let (task, chunk) = (task / d.out_chunks, task % d.out_chunks);
            self.task(task / d.splits, task % d.splits, chunk, col, out);
        });
    }

    fn task(&self, bundle: usize, split: usize, chunk: usize, col: usize, out: SharedOut<f32>) {
        let d = &self.division;
        let outs = chunk * d.out_chunk..self.bundles.c_out.min((chunk + 1) * d.out_chunk);
        let cols = col * d.col_chunk..self.cols.min((col + 1) * d.col_chunk);
        let first = bundle * self.bundles.c_out;
        let windows = forward_windows(self.s, &self.bundles, bundle);
        let gradient = Windows::matrix(self.rows, self.s.c_out);
        let base = (bundle * d.splits + split) * self.bundles.c_out * self.cols;
        with_workspace(|workspace| {
            workspace.rows.clear();
            workspace.rows.extend(outs.clone().map(|o| base + o * self.cols + cols.start));
            let start = split * d.split_rows;
            let end = self.rows.min(start + d.split_rows);
            let deep = DEPTH * T::PER_WORD;
            for from in (start..end).step_by(deep) {
                let rows = from..end.min(from + deep);
                let words = rows.len().div_ceil(T::PER_WORD);
                let outs = first + outs.start..first + outs.end;
                let (a, b) = (workspace.a.at_least(words * PITCH), workspace.b.at_least(words * PITCH));
                let buffer = &mut workspace.rows_of_words;
                gather_columns(self.level, &gradient, self.dy, None, rows.clone(), outs, a, buffer);
                gather_columns(self.level, &windows, self.x, self.norm.as_ref(), rows.clone(), cols.clone(), b, buffer);
                let next = rows.end..end.min(rows.end + deep);
                let mut ahead = if col == 0 { gradient.dense_rows(self.dy, next.clone()) } else { &[] };
                let mut ahead_of_x = if cols.len() == self.cols { windows.dense_rows(self.x, next) } else { &[] };
                for j in (0..cols.len()).step_by(self.level.tile_cols()) {
                    if ahead.is_empty() {
                        std::mem::swap(&mut ahead, &mut ahead_of_x);
                    }
                    let wide = self.level.tile_cols().min(cols.len() - j);
                    // SAFETY: a task owns its output channels and columns of its split.
                    #[expect(unsafe_code, reason = "tasks share the output")]
                    unsafe {
                        panel_product::<T, f32>(
                            self.level,
                            Lhs::Columns,
                            words,
                            a,
                            &b[j..],
                            PITCH,
                            wide,
                            out,
                            &workspace.rows,
                            j,
                            from > start,
                            &mut ahead,
                        );
                    }
                }
            }
        });
    }
}
