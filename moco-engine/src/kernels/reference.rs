//! [`Kernels`] in f64, written as the formulas stand: what the fast kernels are judged against.
//!
//! Slow and simple on purpose, and independent of the fast kernels: no blocks, no packing, no fusion beyond what the
//! trait demands.

mod conv;
mod maps;
mod pool;

use super::conv::ConvShape;
use super::*;

/// The oracle. With [`ReferenceKernels::with_noise`] it also tells how far rounding alone can move a result: a ReLU whose
/// input is within rounding of 0 may open or close, which no accuracy of the rest makes up for.
#[derive(Debug, Default)]
pub struct ReferenceKernels {
    noise: f64,
    state: u64,
}

impl ReferenceKernels {
    /// Adds uniform noise to the result of every convolution: up to `amplitude` times its root mean square, as the sums of
    /// a lower precision do. Draws depend on `seed` only.
    pub fn with_noise(amplitude: f64, seed: u64) -> ReferenceKernels {
        ReferenceKernels { noise: amplitude, state: seed }
    }

    fn disturb(&mut self, y: &mut [f64]) {
        if self.noise == 0.0 {
            return;
        }
        let amplitude = self.noise * (y.iter().map(|v| v * v).sum::<f64>() / y.len() as f64).sqrt();
        for y in y {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *y += amplitude * ((self.state >> 11) as f64 / (1u64 << 52) as f64 - 1.0);
        }
    }
}

/// Mean, 1/σ, scale and shift of [groups, channels], then the two means of the gradient.
const FIELDS: usize = 6;

fn place(shape: &NormShape, field: usize, group: usize) -> usize {
    (field * shape.groups.count() + group) * shape.map.channels
}

/// Indices into the map of one channel's values in one group.
fn of_channel(shape: &NormShape, group: Group, channel: usize) -> impl Iterator<Item = usize> + use<> {
    let map = shape.map;
    group.samples().flat_map(move |i| (0..map.pixels).map(move |p| (i * map.pixels + p) * map.channels + channel))
}

/// Channel and group of an index into the map.
fn channel_and_group(shape: &NormShape, i: usize) -> (usize, usize) {
    (i % shape.map.channels, shape.groups.group_of(i / shape.map.sample_len(), shape.map.n))
}

fn normalised(shape: &NormShape, z: f64, stats: &[f64], i: usize) -> f64 {
    let (j, g) = channel_and_group(shape, i);
    z * stats[place(shape, 2, g) + j] + stats[place(shape, 3, g) + j]
}

fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

fn set(to: &mut f64, value: f64, accumulate: bool) {
    *to = if accumulate { *to + value } else { value };
}

impl Kernels for ReferenceKernels {
    type Buffer = Vec<f64>;
    type View = [f64];
    type Map = Vec<f64>;
    type MapView = [f64];
    type Bytes = Vec<u8>;

    const MAP_VALUE_BYTES: usize = size_of::<f64>();

    fn buffer(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn map(&self, len: usize) -> Result<Vec<f64>> {
        Ok(vec![0.0; len])
    }

    fn bytes(&self, len: usize) -> Result<Vec<u8>> {
        Ok(vec![0; len])
    }

    fn view(buffer: &Vec<f64>, len: usize) -> &[f64] {
        &buffer[..len]
    }

    fn view_mut(buffer: &mut Vec<f64>, len: usize) -> &mut [f64] {
        &mut buffer[..len]
    }

    fn len(view: &[f64]) -> usize {
        view.len()
    }

    fn map_view(map: &Vec<f64>, len: usize) -> &[f64] {
        &map[..len]
    }

    fn map_view_mut(map: &mut Vec<f64>, len: usize) -> &mut [f64] {
        &mut map[..len]
    }

    fn describe(&self) -> String {
        "the f64 reference".into()
    }

    fn supports(&self, _need: &Need, _backward: bool) -> bool {
        true
    }

    fn expect(&mut self, _need: &Need, _backward: bool) {}

    fn workspace_bytes(&self) -> usize {
        0
    }

    fn allocate_workspace(&mut self) -> Result<()> {
        Ok(())
    }

    fn load(&mut self, from: &[f64], to: &mut [f64], accumulate: bool) {
        if accumulate {
            self.add_assign(from, to);
        } else {
            self.copy(from, to);
        }
    }

    fn load_part(&mut self, from: &[f64], offset: usize, len: usize, to: &mut [f64]) {
        self.copy(&from[offset..][..len], to);
    }

    fn store(&mut self, from: &[f64], to: &mut [f64]) {
        self.copy(from, to);
    }

    fn copy(&mut self, from: &[f64], to: &mut [f64]) {
        to.copy_from_slice(from);
    }

    fn add_assign(&mut self, from: &[f64], to: &mut [f64]) {
        to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }

    fn zero(&mut self, view: &mut [f64], offset: usize, len: usize) {
        view[offset..][..len].fill(0.0);
    }

    fn conv_forward(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        params: &[f64],
        at: Offsets,
        _sums: bool,
        act: bool,
        y: &mut [f64],
    ) {
        conv::forward(shape, &input, params, at, y);
        self.disturb(y);
        if act {
            self.relu(None, y);
        }
    }

    fn conv_backward_params(
        &mut self,
        shape: &ConvShape,
        input: ConvInput<'_, Self>,
        dy: &[f64],
        at: Offsets,
        gradients: &mut [f64],
    ) {
        conv::backward_params(shape, &input, dy, at, gradients);
    }

    fn conv_backward_data(
        &mut self,
        shape: &ConvShape,
        dy: &[f64],
        params: &[f64],
        at: Offsets,
        dx: &mut [f64],
        accumulate: bool,
    ) {
        conv::backward_data(shape, dy, params, at, dx, accumulate);
    }

    fn norm_stats_len(shape: &NormShape) -> usize {
        FIELDS * shape.groups.count() * shape.map.channels
    }

    fn norm_batch_stats(
        &mut self,
        shape: &NormShape,
        z: &[f64],
        _summed: bool,
        params: &[f64],
        at: NormOffsets,
        buffers: &mut [f64],
        stats: &mut Vec<f64>,
    ) {
        let momentum = f64::from(shape.momentum);
        for j in 0..shape.map.channels {
            let mut running = Vec::new();
            for (g, group) in shape.groups.of(shape.map.n).enumerate() {
                let count = (group.len * shape.map.pixels) as f64;
                let mean = of_channel(shape, group, j).map(|i| z[i]).sum::<f64>() / count;
                let square: f64 = of_channel(shape, group, j).map(|i| (z[i] - mean).powi(2)).sum();
                let inv_std = 1.0 / (square / count + f64::from(shape.eps)).sqrt();
                let scale = params[at.weight + j] * inv_std;
                for (field, value) in [mean, inv_std, scale, params[at.bias + j] - mean * scale].into_iter().enumerate()
                {
                    stats[place(shape, field, g) + j] = value;
                }
                running.push((mean, square / (count - 1.0)));
            }
            if !matches!(shape.groups, BnGroups::Interleaved(_)) {
                running.truncate(1);
            }
            let mean_of = |field: fn(&(f64, f64)) -> f64| running.iter().map(field).sum::<f64>() / running.len() as f64;
            for (at, new) in [(at.running_mean + j, mean_of(|r| r.0)), (at.running_var + j, mean_of(|r| r.1))] {
                buffers[at] = (1.0 - momentum) * buffers[at] + momentum * new;
            }
        }
    }

    fn norm_image_stats(
        &mut self,
        shape: &NormShape,
        z: &[f64],
        _summed: bool,
        params: &[f64],
        at: NormOffsets,
        stats: &mut Vec<f64>,
    ) {
        maps::image_stats(shape, z, params, at, stats);
    }

    fn norm_running_stats(
        &mut self,
        shape: &NormShape,
        params: &[f64],
        at: NormOffsets,
        buffers: &[f64],
        stats: &mut Vec<f64>,
    ) {
        for (g, j) in (0..shape.groups.count()).flat_map(|g| (0..shape.map.channels).map(move |j| (g, j))) {
            let (mean, variance) = (buffers[at.running_mean + j], buffers[at.running_var + j]);
            let inv_std = 1.0 / (variance + f64::from(shape.eps)).sqrt();
            let scale = params[at.weight + j] * inv_std;
            let fields = [mean, inv_std, scale, params[at.bias + j] - mean * scale, 0.0, 0.0];
            for (field, value) in fields.into_iter().enumerate() {
                stats[place(shape, field, g) + j] = value;
            }
        }
    }

    fn norm_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&[f64]>,
        stats: &Vec<f64>,
        residual: Residual<'_, Self>,
        act: bool,
        y: &mut [f64],
    ) {
        for (i, y) in y.iter_mut().enumerate() {
            let added = match &residual {
                Residual::None => 0.0,
                Residual::Map(map) => map[i],
                Residual::Norm { z, stats } => normalised(shape, z[i], stats, i),
            };
            let sum = normalised(shape, z.map_or(*y, |z| z[i]), stats, i) + added;
            *y = if act { relu(sum) } else { sum };
        }
    }

    fn norm_backward_reduce(
        &mut self,
        shape: &NormShape,
        z: &[f64],
        stats: &mut Vec<f64>,
        mask: Mask<'_, Self>,
        dy: &mut [f64],
        at: NormOffsets,
        gradients: &mut [f64],
    ) {
        if let Mask::Output(y) = mask {
            self.relu_mask(y, dy);
        }
        if let Statistics::Image { groups } = shape.statistics {
            maps::image_gradients(shape, groups, z, stats, matches!(mask, Mask::Recompute), dy, at, gradients);
            return;
        }
        let recompute = matches!(mask, Mask::Recompute);
        let open = |i: usize, stats: &[f64]| !recompute || normalised(shape, z[i], stats, i) > 0.0;
        for j in 0..shape.map.channels {
            let (mut d_weight, mut d_bias) = (0.0, 0.0);
            for (g, group) in shape.groups.of(shape.map.n).enumerate() {
                let (mean, inv_std) = (stats[place(shape, 0, g) + j], stats[place(shape, 1, g) + j]);
                let (mut sum, mut dot) = (0.0, 0.0);
                for i in of_channel(shape, group, j).filter(|&i| open(i, stats)) {
                    sum += dy[i];
                    dot += dy[i] * (z[i] - mean) * inv_std;
                }
                d_weight += dot;
                d_bias += sum;
                let count = (group.len * shape.map.pixels) as f64;
                let moves = if shape.statistics == Statistics::Batch { stats[place(shape, 2, g) + j] } else { 0.0 };
                stats[place(shape, 4, g) + j] = moves * sum / count;
                stats[place(shape, 5, g) + j] = moves * dot / count;
            }
            gradients[at.weight + j] = d_weight;
            gradients[at.bias + j] = d_bias;
        }
    }

    fn norm_backward_apply(
        &mut self,
        shape: &NormShape,
        z: Option<&[f64]>,
        stats: &Vec<f64>,
        recompute_mask: bool,
        dy: Option<&[f64]>,
        dz: &mut [f64],
        accumulate: bool,
    ) {
        for (i, dz) in dz.iter_mut().enumerate() {
            let (j, g) = channel_and_group(shape, i);
            let field = |f| stats[place(shape, f, g) + j];
            // Where it is missing, the terms that it belongs to are 0.
            let z = z.map_or(field(0), |z| z[i]);
            let open = !recompute_mask || normalised(shape, z, stats, i) > 0.0;
            let gradient = if open { dy.map_or(*dz, |dy| dy[i]) } else { 0.0 };
            let unit = (z - field(0)) * field(1);
            set(dz, field(2) * gradient - field(4) - unit * field(5), accumulate);
        }
    }

    fn relu(&mut self, x: Option<&[f64]>, y: &mut [f64]) {
        y.iter_mut().enumerate().for_each(|(i, y)| *y = relu(x.map_or(*y, |x| x[i])));
    }

    fn relu_mask(&mut self, y: &[f64], dy: &mut [f64]) {
        dy.iter_mut().zip(y).filter(|(_, y)| **y <= 0.0).for_each(|(dy, _)| *dy = 0.0);
    }

    fn add(&mut self, a: Option<&[f64]>, b: &[f64], act: bool, y: &mut [f64]) {
        for (i, (y, b)) in y.iter_mut().zip(b).enumerate() {
            let sum = a.map_or(*y, |a| a[i]) + b;
            *y = if act { relu(sum) } else { sum };
        }
    }

    fn max_pool(&mut self, shape: &PoolShape, x: &[f64], y: &mut [f64], index: Option<&mut Vec<u8>>) {
        pool::max_pool(shape, x, y, index);
    }

    fn max_pool_backward(&mut self, shape: &PoolShape, dy: &[f64], index: &Vec<u8>, dx: &mut [f64], accumulate: bool) {
        pool::max_pool_backward(shape, dy, index, dx, accumulate);
    }

    fn mean_pool(&mut self, shape: &MapShape, x: &[f64], y: &mut [f64]) {
        pool::mean_pool(shape, x, y);
    }

    fn mean_pool_backward(&mut self, shape: &MapShape, dy: &[f64], dx: &mut [f64], accumulate: bool) {
        pool::mean_pool_backward(shape, dy, dx, accumulate);
    }

    fn linear(&mut self, shape: &LinearShape, x: &[f64], params: &[f64], at: Offsets, act: bool, y: &mut [f64]) {
        for (i, y) in y.iter_mut().enumerate() {
            let (row, o) = (i / shape.outputs, i % shape.outputs);
            let weight = &params[at.weight + o * shape.inputs..][..shape.inputs];
            let dot: f64 = x[row * shape.inputs..].iter().zip(weight).map(|(x, w)| x * w).sum();
            let sum = dot + at.bias.map_or(0.0, |bias| params[bias + o]);
            *y = if act { relu(sum) } else { sum };
        }
    }

    fn linear_backward_params(
        &mut self,
        shape: &LinearShape,
        x: &[f64],
        dy: &[f64],
        at: Offsets,
        gradients: &mut [f64],
    ) {
        for o in 0..shape.outputs {
            let dy = |row: usize| dy[row * shape.outputs + o];
            for j in 0..shape.inputs {
                gradients[at.weight + o * shape.inputs + j] =
                    (0..shape.n).map(|row| dy(row) * x[row * shape.inputs + j]).sum();
            }
            if let Some(bias) = at.bias {
                gradients[bias + o] = (0..shape.n).map(dy).sum();
            }
        }
    }

    fn linear_backward_data(
        &mut self,
        shape: &LinearShape,
        dy: &[f64],
        params: &[f64],
        at: Offsets,
        dx: &mut [f64],
        accumulate: bool,
    ) {
        for (i, dx) in dx.iter_mut().enumerate() {
            let (row, j) = (i / shape.inputs, i % shape.inputs);
            let sum = (0..shape.outputs)
                .map(|o| dy[row * shape.outputs + o] * params[at.weight + o * shape.inputs + j])
                .sum();
            set(dx, sum, accumulate);
        }
    }

    fn resize(&mut self, shape: &ResizeShape, x: &[f64], y: &mut [f64]) {
        maps::resize(shape, x, y);
    }

    fn resize_backward(&mut self, shape: &ResizeShape, dy: &[f64], dx: &mut [f64], accumulate: bool) {
        maps::resize_backward(shape, dy, dx, accumulate);
    }

    fn insert_channels(&mut self, shape: &SliceShape, x: &[f64], y: &mut [f64]) {
        for (i, x) in x.iter().enumerate() {
            y[i / shape.channels * shape.of + shape.first + i % shape.channels] = *x;
        }
    }

    fn take_channels(&mut self, shape: &SliceShape, dy: &[f64], dx: &mut [f64], accumulate: bool) {
        for (i, dx) in dx.iter_mut().enumerate() {
            set(dx, dy[i / shape.channels * shape.of + shape.first + i % shape.channels], accumulate);
        }
    }

    fn add_to_gradients(&mut self, from: &[f64], len: usize, gradients: &mut [f64], offset: usize) {
        self.add_assign(&from[..len], &mut gradients[offset..][..len]);
    }
}
