//! Maps brought to another height and width on the CPU, as `torch.nn.functional.interpolate(…, align_corners=False)` does.

use moco_models::Interpolation;
use rayon::prelude::*;

use super::ResizeShape;
use super::element::Element;
use super::gemm::workspace::with_workspace;
use super::simd::multiversion;

/// What an output reads along one axis: `(1 − weight) · first + weight · second`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Source {
    pub first: u32,
    pub second: u32,
    pub weight: f32,
}

impl Source {
    /// Weight of input `i`.
    #[inline(always)]
    pub(crate) fn weight_of(&self, i: u32) -> f32 {
        let of = |at, weight| if at == i { weight } else { 0.0 };
        of(self.first, 1.0 - self.weight) + of(self.second, self.weight)
    }
}

/// What each of `output` values reads of `input` ones, in the single precision in which PyTorch computes it, so that ties
/// fall to the same side. Neither place ever goes back.
pub(crate) fn sources(input: usize, output: usize, interpolation: Interpolation) -> impl Iterator<Item = Source> {
    let last = input.saturating_sub(1);
    let ratio = input as f32 / output as f32;
    (0..output).map(move |o| match interpolation {
        _ if input == output => Source { first: o as u32, second: o as u32, weight: 0.0 },
        Interpolation::Nearest => {
            let at = if output == 2 * input { o / 2 } else { ((o as f32 * ratio).floor() as usize).min(last) };
            Source { first: at as u32, second: at as u32, weight: 0.0 }
        }
        Interpolation::Bilinear => {
            let at = (ratio * (o as f32 + 0.5) - 0.5).max(0.0);
            let first = (at.floor() as usize).min(last);
            let weight = (at - first as f32).clamp(0.0, 1.0);
            Source { first: first as u32, second: (first + 1).min(last) as u32, weight }
        }
    })
}

/// Both directions along one axis.
#[derive(Debug, Default)]
struct Axis {
    /// One per output.
    sources: Vec<Source>,
    /// The outputs that read each input: from the first to before the second.
    readers: Vec<[u32; 2]>,
}

impl Axis {
    fn fill(&mut self, input: usize, output: usize, interpolation: Interpolation) {
        self.sources.clear();
        self.sources.extend(sources(input, output, interpolation));
        self.readers.clear();
        let (mut first, mut end) = (0, 0);
        for i in 0..input as u32 {
            while first < output && self.sources[first].second < i {
                first += 1;
            }
            while end < output && self.sources[end].first <= i {
                end += 1;
            }
            self.readers.push([first as u32, end as u32]);
        }
    }
}

/// Both axes; filling them does not allocate up to the sides they were made for.
#[derive(Debug, Default)]
pub(super) struct Tables([Axis; 2]);

impl Tables {
    /// For inputs and outputs of up to so many rows and columns.
    pub(super) fn with_capacity(input: [usize; 2], output: [usize; 2]) -> Tables {
        Tables([0, 1].map(|i| Axis { sources: Vec::with_capacity(output[i]), readers: Vec::with_capacity(input[i]) }))
    }

    fn fill(&mut self, shape: &ResizeShape) -> &[Axis; 2] {
        for (i, axis) in self.0.iter_mut().enumerate() {
            axis.fill(shape.input[i], shape.output[i], shape.interpolation);
        }
        &self.0
    }
}

/// Bytes of [`Tables::with_capacity`].
pub(super) fn tables_bytes(input: [usize; 2], output: [usize; 2]) -> usize {
    output.iter().sum::<usize>() * size_of::<Source>() + input.iter().sum::<usize>() * size_of::<[u32; 2]>()
}

pub(super) fn forward<T: Element>(shape: &ResizeShape, tables: &mut Tables, x: &[T], y: &mut [T]) {
    let ([height, width], [out_height, out_width], c) = (shape.input, shape.output, shape.channels);
    let [rows, columns] = tables.fill(shape);
    y.par_chunks_mut(out_width * c).enumerate().for_each(|(r, y)| {
        let x = &x[r / out_height * height * width * c..][..height * width * c];
        let source = rows.sources[r % out_height];
        let [top, bottom] = [source.first, source.second].map(|row| &x[row as usize * width * c..][..width * c]);
        match shape.interpolation {
            _ if shape.input == shape.output => y.copy_from_slice(top),
            Interpolation::Nearest => copy_row(top, &columns.sources, c, y),
            Interpolation::Bilinear => blend_row(top, bottom, source.weight, &columns.sources, c, y),
        }
    });
}

/// Gradient of [`forward`]'s input: each value collects from the outputs that read it, first down the rows, then along
/// the columns.
pub(super) fn backward<T: Element>(shape: &ResizeShape, tables: &mut Tables, dy: &[T], dx: &mut [T], accumulate: bool) {
    let ([height, width], [out_height, out_width], c) = (shape.input, shape.output, shape.channels);
    let [rows, columns] = tables.fill(shape);
    let out_row = out_width * c;
    dx.par_chunks_mut(width * c).enumerate().for_each(|(r, dx)| {
        let (image, row) = (r / height, r % height);
        let dy = &dy[image * out_height * out_row..][..out_height * out_row];
        let [first, end] = rows.readers[row].map(|o| o as usize);
        with_workspace(|workspace| {
            let sum = workspace.a.at_least::<f32>(out_row);
            sum.fill(0.0);
            for o in first..end {
                let weight = rows.sources[o].weight_of(row as u32);
                if weight != 0.0 {
                    add_scaled_row(weight, &dy[o * out_row..][..out_row], sum);
                }
            }
            gather_row(sum, columns, c, dx, accumulate);
        });
    });
}

multiversion! {
    fn copy_row<T: Element>(x: &[T], sources: &[Source], c: usize, y: &mut [T]) {
        for (source, y) in sources.iter().zip(y.chunks_exact_mut(c)) {
            y.copy_from_slice(&x[source.first as usize * c..][..c]);
        }
    }
}

multiversion! {
    fn blend_row<T: Element>(top: &[T], bottom: &[T], weight: f32, sources: &[Source], c: usize, y: &mut [T]) {
        for (source, y) in sources.iter().zip(y.chunks_exact_mut(c)) {
            let [left, right] = [source.first, source.second].map(|column| column as usize * c);
            let (a, b) = (&top[left..][..c], &top[right..][..c]);
            let (p, q) = (&bottom[left..][..c], &bottom[right..][..c]);
            let (of_right, of_left) = (source.weight, 1.0 - source.weight);
            for j in 0..c {
                let above = of_left * a[j].widen() + of_right * b[j].widen();
                let below = of_left * p[j].widen() + of_right * q[j].widen();
                y[j] = T::narrow((1.0 - weight) * above + weight * below);
            }
        }
    }
}

multiversion! {
    fn add_scaled_row<T: Element>(weight: f32, from: &[T], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to += weight * from.widen();
        }
    }
}

multiversion! {
    fn gather_row<T: Element>(row: &[f32], columns: &Axis, c: usize, dx: &mut [T], accumulate: bool) {
        const CHANNELS: usize = 64;
        for (i, dx) in dx.chunks_exact_mut(c).enumerate() {
            let [first, end] = columns.readers[i].map(|o| o as usize);
            for (part, dx) in dx.chunks_mut(CHANNELS).enumerate() {
                let mut sums = [0.0f32; CHANNELS];
                let sums = &mut sums[..dx.len()];
                for o in first..end {
                    let weight = columns.sources[o].weight_of(i as u32);
                    let from = &row[o * c + part * CHANNELS..][..sums.len()];
                    for (sum, value) in sums.iter_mut().zip(from) {
                        *sum += weight * value;
                    }
                }
                for (dx, sum) in dx.iter_mut().zip(sums) {
                    *dx = T::narrow(if accumulate { dx.widen() + *sum } else { *sum });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDES: [(usize, usize); 9] = [(1, 1), (1, 7), (7, 1), (3, 9), (9, 3), (5, 13), (13, 5), (70, 100), (64, 512)];

    #[test]
    fn every_output_reads_with_weight_one_and_every_reader_is_listed() {
        for interpolation in [Interpolation::Nearest, Interpolation::Bilinear] {
            for (input, output) in SIDES {
                let mut axis = Axis::default();
                axis.fill(input, output, interpolation);
                for (o, source) in axis.sources.iter().enumerate() {
                    let listed: f32 = (0..input)
                        .filter(|&i| (axis.readers[i][0] as usize..axis.readers[i][1] as usize).contains(&o))
                        .map(|i| source.weight_of(i as u32))
                        .sum();
                    assert!((listed - 1.0).abs() < 1e-6, "{input} to {output}, output {o}: {listed}");
                }
            }
        }
    }

    #[test]
    fn equal_sides_copy_even_beside_infinity() {
        let shape =
            ResizeShape { n: 1, input: [1, 3], output: [1, 3], channels: 1, interpolation: Interpolation::Bilinear };
        let mut y = [0.0f32; 3];
        forward(&shape, &mut Tables::default(), &[1.0, f32::INFINITY, 2.0], &mut y);
        assert_eq!(y, [1.0, f32::INFINITY, 2.0]);
    }
}
