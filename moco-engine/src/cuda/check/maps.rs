//! Trials of elementwise steps, batch normalisation and pooling.

use super::*;
use crate::kernels::{
    BnGroups, MapShape, Mask, NormOffsets, NormShape, PoolShape, Residual, ResizeShape, SliceShape, Statistics,
};
use moco_models::Interpolation;

pub(super) fn trials<T: Value, D: Driver>(trials: &mut Vec<Box<dyn Trial<T, D>>>, scale: Scale) {
    let mut lens = vec![1, 1003, 4096];
    let mut norms = vec![
        ([7, 5, 6], BnGroups::Whole),
        ([5, 9, 24], BnGroups::Ranks(2)),
        ([7, 6, 16], BnGroups::Interleaved(3)),
        ([2, 40, 72], BnGroups::Ranks(5)),
        ([3, 400, 8], BnGroups::Whole),
        ([4, 1, 520], BnGroups::Whole),
    ];
    let mut pools = vec![
        PoolShape { n: 2, input: [7, 6], output: [4, 3], channels: 16, kernel: 3, stride: 2, padding: 1 },
        PoolShape { n: 1, input: [5, 8], output: [4, 7], channels: 5, kernel: 2, stride: 1, padding: 0 },
    ];
    if scale == Scale::Full {
        lens.push(10_000_019);
        norms.extend([
            ([32, 56 * 56, 64], BnGroups::Whole),
            ([64, 14 * 14, 1024], BnGroups::Ranks(8)),
            ([64, 7 * 7, 2048], BnGroups::Interleaved(8)),
            ([256, 1, 2048], BnGroups::Whole),
        ]);
        pools.push(PoolShape {
            n: 32,
            input: [112; 2],
            output: [56; 2],
            channels: 64,
            kernel: 3,
            stride: 2,
            padding: 1,
        });
    }
    trials.extend(lens.into_iter().map(|len| Box::new(Elementwise { len }) as _));
    let mut images =
        vec![([3, 35, 12], 4, 3), ([2, 30, 28], 7, 5), ([2, 300, 16], 1, 2), ([1, 6, 520], 2, 1), ([5, 1, 6], 3, 5)];
    if scale == Scale::Full {
        images.extend([([16, 100 * 100, 256], 32, 16), ([16, 25 * 25, 256], 32, 16)]);
    }
    for ([n, pixels, channels], groups) in norms {
        let map = MapShape { n, pixels, channels };
        let shape = NormShape { map, groups, statistics: Statistics::Batch, eps: 1e-5, momentum: 0.1 };
        trials.push(Box::new(NormForward { shape }));
        trials.push(Box::new(NormBackward { shape }));
        trials.push(Box::new(NormBackward { shape: NormShape { statistics: Statistics::Running, ..shape } }));
    }
    for ([n, pixels, channels], groups, batch) in images {
        let (map, statistics) = (MapShape { n, pixels, channels }, Statistics::Image { groups });
        let shape = NormShape { map, groups: BnGroups::Ranks(batch), statistics, eps: 1e-5, momentum: 0.1 };
        trials.push(Box::new(NormForward { shape }));
        trials.push(Box::new(NormBackward { shape }));
    }
    for shape in pools {
        trials.push(Box::new(Pools { shape }));
    }
    let mut sizes = vec![
        (2, [5, 7], [9, 13], 8),
        (1, [9, 13], [4, 5], 16),
        (3, [4, 3], [8, 6], 5),
        (1, [6, 6], [6, 6], 3),
        (2, [1, 9], [7, 2], 24),
    ];
    let mut slices = vec![(12, 8, 8, 24), (7, 5, 2, 9), (9, 16, 0, 16), (5, 8, 4, 16)];
    if scale == Scale::Full {
        sizes.extend([(8, [25, 25], [50, 50], 256), (8, [56, 56], [224, 224], 64), (4, [100, 100], [37, 37], 64)]);
        slices.extend([(100_000, 256, 64, 512)]);
    }
    for (n, input, output, channels) in sizes {
        for interpolation in [Interpolation::Nearest, Interpolation::Bilinear] {
            trials.push(Box::new(Resized { shape: ResizeShape { n, input, output, channels, interpolation } }));
        }
    }
    for (rows, channels, first, of) in slices {
        trials.push(Box::new(Sliced { shape: SliceShape { rows, channels, first, of } }));
    }
}

struct Resized {
    shape: ResizeShape,
}

impl OnAny for Resized {
    fn name(&self) -> String {
        format!("{:?}", self.shape)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let s = &self.shape;
        let len = |[height, width]: [usize; 2]| s.n * height * width * s.channels;
        let (x_len, y_len) = (len(s.input), len(s.output));
        let mut k = bench.kernels(&[Need::Resize(*s)])?;
        let x = bench.map(&mut k, noise.map(0, x_len))?;
        let dy = bench.map(&mut k, noise.map(1, y_len))?;
        let mut dx = bench.map(&mut k, noise.map(2, x_len))?;
        let mut y = k.map(y_len)?;
        k.resize(s, V::Kernels::map_view(&x, x_len), V::Kernels::map_view_mut(&mut y, y_len));
        let mut results = vec![("forward", bench.read_map(&mut k, &y, y_len)?, Tolerance::Map)];
        for accumulate in [true, false] {
            let what = if accumulate { "gradient added" } else { "gradient" };
            let to = V::Kernels::map_view_mut(&mut dx, x_len);
            k.resize_backward(s, V::Kernels::map_view(&dy, y_len), to, accumulate);
            results.push((what, bench.read_map(&mut k, &dx, x_len)?, Tolerance::Map));
        }
        Ok(results)
    }
}

struct Sliced {
    shape: SliceShape,
}

impl OnAny for Sliced {
    fn name(&self) -> String {
        format!("{:?}", self.shape)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let s = &self.shape;
        let (slice, whole) = (s.rows * s.channels, s.rows * s.of);
        let mut k = bench.kernels(&[Need::Concat, Need::Shared(slice)])?;
        let x = bench.map(&mut k, noise.map(0, slice))?;
        let mut y = bench.map(&mut k, noise.map(1, whole))?;
        k.insert_channels(s, V::Kernels::map_view(&x, slice), V::Kernels::map_view_mut(&mut y, whole));
        let mut results = vec![("inserted", bench.read_map(&mut k, &y, whole)?, Tolerance::Exact)];
        let dy = bench.map(&mut k, noise.map(2, whole))?;
        let mut dx = bench.map(&mut k, noise.map(3, slice))?;
        for accumulate in [true, false] {
            let what = if accumulate { "taken and added" } else { "taken" };
            let to = V::Kernels::map_view_mut(&mut dx, slice);
            k.take_channels(s, V::Kernels::map_view(&dy, whole), to, accumulate);
            results.push((what, bench.read_map(&mut k, &dx, slice)?, Tolerance::Map));
        }
        let from = bench.buffer(noise.full(4, slice))?;
        let mut gradients = bench.buffer(noise.full(5, slice + 3))?;
        let to = V::Kernels::view_mut(&mut gradients, slice + 3);
        k.add_to_gradients(V::Kernels::view(&from, slice), slice, to, 3);
        results.push(("added to gradients", bench.read(&gradients, slice + 3)?, Tolerance::Full));
        Ok(results)
    }
}

struct Elementwise {
    len: usize,
}

impl OnAny for Elementwise {
    fn name(&self) -> String {
        format!("elementwise, {} values", self.len)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let len = self.len;
        let mut k = bench.kernels(&[])?;
        let a = bench.map(&mut k, noise.map(0, len))?;
        let b = bench.map(&mut k, noise.map(1, len))?;
        let full = bench.buffer(noise.full(2, len))?;
        let mut results = vec![];
        let mut y = k.map(len)?;
        macro_rules! view {
            ($map:expr) => {
                V::Kernels::map_view(&$map, len)
            };
        }
        macro_rules! given {
            ($what:literal, $tolerance:expr) => {
                results.push(($what, bench.read_map(&mut k, &y, len)?, $tolerance))
            };
        }
        k.load(V::Kernels::view(&full, len), V::Kernels::map_view_mut(&mut y, len), false);
        given!("load", Tolerance::Map);
        k.copy(view!(a), V::Kernels::map_view_mut(&mut y, len));
        given!("copy", Tolerance::Exact);
        k.load(V::Kernels::view(&full, len), V::Kernels::map_view_mut(&mut y, len), true);
        given!("load and add", Tolerance::Map);
        let last = len / 3;
        let part = V::Kernels::map_view_mut(&mut y, len - last);
        k.load_part(V::Kernels::view(&full, len), last, len - last, part);
        given!("load a part", Tolerance::Map);
        k.add(Some(view!(a)), view!(b), true, V::Kernels::map_view_mut(&mut y, len));
        given!("add and relu", Tolerance::Map);
        k.relu_mask(view!(b), V::Kernels::map_view_mut(&mut y, len));
        given!("relu's mask", Tolerance::Map);
        k.relu(Some(view!(b)), V::Kernels::map_view_mut(&mut y, len));
        given!("relu", Tolerance::Exact);
        k.add_assign(view!(a), V::Kernels::map_view_mut(&mut y, len));
        given!("add in place", Tolerance::Map);
        Ok(results)
    }
}

const AT: fn(usize) -> NormOffsets = |c| NormOffsets { weight: 3, bias: 3 + c, running_mean: 1, running_var: 1 + c };

struct NormForward {
    shape: NormShape,
}

impl OnAny for NormForward {
    fn name(&self) -> String {
        let MapShape { n, pixels, channels } = self.shape.map;
        format!("norm of {n}×{pixels}×{channels}, {:?}, {:?}", self.shape.groups, self.shape.statistics)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let shape = &self.shape;
        let (len, c, groups) = (shape.map.len(), shape.map.channels, shape.groups.count());
        let mut k = bench.kernels(&[Need::Norm(*shape)])?;
        let z = bench.map(&mut k, noise.map_around(1.0, 0, len))?;
        let other = bench.map(&mut k, noise.map(1, len))?;
        let params = bench.buffer(noise.full(2, 3 + 2 * c))?;
        let params = V::Kernels::view(&params, 3 + 2 * c);
        let mut buffers = bench.buffer(noise.full(3, 1 + 2 * c).into_iter().map(f32::abs).collect())?;
        let stats_len = V::Kernels::norm_stats_len(shape);
        let (mut stats, mut running) = (k.buffer(stats_len)?, k.buffer(stats_len)?);
        let z = V::Kernels::map_view(&z, len);
        k.norm_running_stats(shape, params, AT(c), V::Kernels::view(&buffers, 1 + 2 * c), &mut running);
        let moved = V::Kernels::view_mut(&mut buffers, 1 + 2 * c);
        match shape.statistics {
            Statistics::Image { .. } => k.norm_image_stats(shape, z, false, params, AT(c), &mut stats),
            _ => k.norm_batch_stats(shape, z, false, params, AT(c), moved, &mut stats),
        }
        // Of empty groups nothing is defined; scale and shift are fields 2 and 3 on every device.
        let used = groups.min(shape.map.n) * c;
        let part = |values: Vec<f32>, field: usize| values[field * groups * c..][..used].to_vec();
        let mut results = vec![
            ("running statistics", bench.read(&buffers, 1 + 2 * c)?, Tolerance::Full),
            ("scale", part(bench.read(&stats, stats_len)?, 2), Tolerance::Full),
            ("shift", part(bench.read(&stats, stats_len)?, 3), Tolerance::Full),
            ("scale of running statistics", part(bench.read(&running, stats_len)?, 2), Tolerance::Full),
        ];
        let mut y = k.map(len)?;
        k.norm_apply(shape, Some(z), &stats, Residual::None, true, V::Kernels::map_view_mut(&mut y, len));
        results.push(("apply and relu", bench.read_map(&mut k, &y, len)?, Tolerance::Map));
        let map = Residual::Map(V::Kernels::map_view(&other, len));
        k.norm_apply(shape, Some(z), &stats, map, false, V::Kernels::map_view_mut(&mut y, len));
        results.push(("apply and add", bench.read_map(&mut k, &y, len)?, Tolerance::Map));
        let norm = Residual::Norm { z: V::Kernels::map_view(&other, len), stats: &running };
        k.copy(z, V::Kernels::map_view_mut(&mut y, len));
        k.norm_apply(shape, None, &stats, norm, true, V::Kernels::map_view_mut(&mut y, len));
        results.push(("apply in place, add a normalised map", bench.read_map(&mut k, &y, len)?, Tolerance::Map));
        Ok(results)
    }
}

struct NormBackward {
    shape: NormShape,
}

impl OnAny for NormBackward {
    fn name(&self) -> String {
        let MapShape { n, pixels, channels } = self.shape.map;
        format!("gradient of norm of {n}×{pixels}×{channels}, {:?}, {:?}", self.shape.groups, self.shape.statistics)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let shape = &self.shape;
        let (len, c) = (shape.map.len(), shape.map.channels);
        let mut k = bench.kernels(&[Need::Norm(*shape)])?;
        let z = bench.map(&mut k, noise.map(0, len))?;
        let y = bench.map(&mut k, noise.map(1, len))?;
        let z = V::Kernels::map_view(&z, len);
        let params = bench.buffer(noise.full(2, 3 + 2 * c))?;
        let mut buffers = bench.buffer(noise.full(3, 1 + 2 * c).into_iter().map(f32::abs).collect())?;
        let mut stats = k.buffer(V::Kernels::norm_stats_len(shape))?;
        let (params, moved) = (V::Kernels::view(&params, 3 + 2 * c), V::Kernels::view_mut(&mut buffers, 1 + 2 * c));
        match shape.statistics {
            Statistics::Batch => k.norm_batch_stats(shape, z, false, params, AT(c), moved, &mut stats),
            Statistics::Running => k.norm_running_stats(shape, params, AT(c), moved, &mut stats),
            Statistics::Image { .. } => k.norm_image_stats(shape, z, false, params, AT(c), &mut stats),
        }
        let mut results = vec![];
        for (i, name) in ["unmasked", "masked by the value", "masked by the output"].into_iter().enumerate() {
            let mut dy = bench.map(&mut k, noise.map(4 + i as u64, len))?;
            let mut dz = bench.map(&mut k, noise.map(8, len))?;
            let mut gradients = k.buffer(3 + 2 * c)?;
            let mask = match i {
                0 => Mask::None,
                1 => Mask::Recompute,
                _ => Mask::Output(V::Kernels::map_view(&y, len)),
            };
            let recompute = i == 1;
            let (to, masked) =
                (V::Kernels::view_mut(&mut gradients, 3 + 2 * c), V::Kernels::map_view_mut(&mut dy, len));
            k.norm_backward_reduce(shape, z, &mut stats, mask, masked, AT(c), to);
            results.push((name, bench.read(&gradients, 3 + 2 * c)?, Tolerance::Full));
            let read = V::Kernels::map_view(&dy, len);
            let to = V::Kernels::map_view_mut(&mut dz, len);
            k.norm_backward_apply(shape, Some(z), &stats, recompute, Some(read), to, i > 0);
            results.push((name, bench.read_map(&mut k, &dz, len)?, Tolerance::Map));
            let unread = shape.statistics == Statistics::Running && !recompute;
            k.norm_backward_apply(
                shape,
                if unread { None } else { Some(z) },
                &stats,
                recompute,
                None,
                V::Kernels::map_view_mut(&mut dy, len),
                false,
            );
            results.push((name, bench.read_map(&mut k, &dy, len)?, Tolerance::Map));
        }
        Ok(results)
    }
}

struct Pools {
    shape: PoolShape,
}

impl OnAny for Pools {
    fn name(&self) -> String {
        let PoolShape { n, input: [h, w], channels, kernel, stride, .. } = self.shape;
        format!("pooling {n}×{h}×{w}×{channels} by {kernel} / {stride}")
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let s = &self.shape;
        let pixels = s.input[0] * s.input[1];
        let (len, out) = (s.n * pixels * s.channels, s.n * s.output[0] * s.output[1] * s.channels);
        let means = s.n * s.channels;
        let mut k = bench.kernels(&[])?;
        // Few different values, so that there are ties, and a NaN.
        let mut x: Vec<f32> = noise.map(0, len).into_iter().map(|v| (v * 4.0).round()).collect();
        x[len / 2] = f32::NAN;
        let x = bench.map(&mut k, x)?;
        let dy = bench.map(&mut k, noise.map(1, out))?;
        let d_mean = bench.map(&mut k, noise.map(2, means))?;
        let mut dx = bench.map(&mut k, noise.map(3, len))?;
        let (mut y, mut index, mut mean) = (k.map(out)?, k.bytes(out)?, k.map(means)?);
        let (x, dy) = (V::Kernels::map_view(&x, len), V::Kernels::map_view(&dy, out));
        k.max_pool(s, x, V::Kernels::map_view_mut(&mut y, out), Some(&mut index));
        let mut results = vec![("max", bench.read_map(&mut k, &y, out)?, Tolerance::Exact)];
        k.max_pool_backward(s, dy, &index, V::Kernels::map_view_mut(&mut dx, len), true);
        results.push(("max, gradient added", bench.read_map(&mut k, &dx, len)?, Tolerance::Map));
        k.max_pool_backward(s, dy, &index, V::Kernels::map_view_mut(&mut dx, len), false);
        results.push(("max, gradient", bench.read_map(&mut k, &dx, len)?, Tolerance::Map));
        let shape = MapShape { n: s.n, pixels, channels: s.channels };
        k.mean_pool(&shape, x, V::Kernels::map_view_mut(&mut mean, means));
        results.push(("mean", bench.read_map(&mut k, &mean, means)?, Tolerance::Map));
        let d_mean = V::Kernels::map_view(&d_mean, means);
        k.mean_pool_backward(&shape, d_mean, V::Kernels::map_view_mut(&mut dx, len), true);
        results.push(("mean, gradient added", bench.read_map(&mut k, &dx, len)?, Tolerance::Map));
        Ok(results)
    }
}
