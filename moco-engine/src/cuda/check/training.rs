//! Trials of what lies between the plans.

use super::*;
use crate::device::{ContrastInputs, SgdUpdate};
use crate::ops::{AdamWStep, ParamGroup, SameImage, SgdStep};

pub(super) fn trials<T: Value, D: Driver>(trials: &mut Vec<Box<dyn Trial<T, D>>>, scale: Scale) {
    let mut losses =
        vec![(3, 70, 5, false), (40, 300, 128, true), (33, 129, 200, false), (2, 0, 3, false), (5, 64, 300, true)];
    let mut lens = vec![1, 1003];
    if scale == Scale::Full {
        losses.extend([(256, 65_536, 128, false), (512, 4096, 128, true), (256, 16_384, 256, false)]);
        lens.push(27_000_001);
    }
    trials.extend(losses.into_iter().map(|(n, keys, dim, masked)| Box::new(Loss { n, keys, dim, masked }) as _));
    trials.extend(lens.into_iter().map(|len| Box::new(Updates { len }) as _));
    trials.push(Box::new(Grouped { len: 5003 }));
    if scale == Scale::Full {
        trials.push(Box::new(Grouped { len: 27_000_001 }));
    }
    trials.push(Box::new(Moves { n: 7, width: 19, places: 10 }));
    trials.push(Box::new(Moves { n: 12, width: 128, places: 5 }));
}

struct Loss {
    n: usize,
    keys: usize,
    dim: usize,
    masked: bool,
}

impl OnAny for Loss {
    fn name(&self) -> String {
        let masked = if self.masked { ", same images masked" } else { "" };
        format!("InfoNCE of {} queries and {} keys of {}{masked}", self.n, self.keys, self.dim)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let Loss { n, keys, dim, masked } = *self;
        let k = bench.kernels(&[])?;
        let raw = bench.buffer(noise.full(0, n * dim))?;
        let d_unit = bench.buffer(noise.full(1, n * dim))?;
        let (mut query, mut key, mut queue) = (k.buffer(n * dim)?, k.buffer(n * dim)?, k.buffer(keys * dim)?);
        let (mut d_query, mut d_raw) = (k.buffer(n * dim)?, k.buffer(n * dim)?);
        let view = |b, len| V::Kernels::view(b, len);
        let raw = view(&raw, n * dim);
        bench.device.l2_normalise(raw, dim, V::Kernels::view_mut(&mut query, n * dim));
        bench.device.l2_normalise_backward(raw, view(&d_unit, n * dim), dim, V::Kernels::view_mut(&mut d_raw, n * dim));
        let mut results = vec![
            ("rows of unit length", bench.read(&query, n * dim)?, Tolerance::Full),
            ("gradient of the rows", bench.read(&d_raw, n * dim)?, Tolerance::Full),
        ];
        // A positive near its query, so that some are correct; the twin's own rows, so that ties stay ties.
        let near: Vec<f32> = noise.full(0, n * dim).iter().zip(noise.full(2, n * dim)).map(|(a, b)| a + b).collect();
        let near = bench.buffer(near)?;
        bench.device.l2_normalise(view(&near, n * dim), dim, V::Kernels::view_mut(&mut key, n * dim));
        if keys > 0 {
            let rows = bench.buffer(noise.full(3, keys * dim))?;
            let rows = V::Kernels::view(&rows, keys * dim);
            bench.device.l2_normalise(rows, dim, V::Kernels::view_mut(&mut queue, keys * dim));
        }
        let of_query: Vec<u64> = (0..n as u64).map(|i| if i == 1 { SameImage::NONE } else { i }).collect();
        let of_queue: Vec<u64> = (0..keys as u64).map(|i| if i % 7 == 3 { SameImage::NONE } else { i % 50 }).collect();
        let inputs = ContrastInputs {
            query: view(&query, n * dim),
            key: view(&key, n * dim),
            queue: view(&queue, keys * dim),
            dim,
            temperature: 0.1,
            same_image: masked.then_some(SameImage { query: &of_query, queue: &of_queue }),
        };
        let loss = bench.device.info_nce(&inputs, V::Kernels::view_mut(&mut d_query, n * dim))?;
        let loss = bench.device.loss(loss)?;
        results.push(("loss", vec![loss.loss as f32], Tolerance::Full));
        results.push(("positive similarity", vec![loss.positive_similarity as f32], Tolerance::Full));
        // Near 0, so in units of a similarity.
        results.push(("negative similarity", vec![1.0 + loss.negative_similarity as f32], Tolerance::Full));
        results.push(("correct", vec![loss.correct as f32], Tolerance::Exact));
        results.push(("gradient", bench.read(&d_query, n * dim)?, Tolerance::Full));
        Ok(results)
    }
}

struct Updates {
    len: usize,
}

impl OnAny for Updates {
    fn name(&self) -> String {
        format!("updates of {} parameters", self.len)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let len = self.len;
        let mut buffers = vec![];
        for stream in 0..4 {
            buffers.push(bench.buffer(noise.full(stream, len))?);
        }
        let [params, gradients, velocity, target] = &mut buffers[..] else { unreachable!("four buffers") };
        let update = SgdUpdate { lr: 0.03, momentum: 0.9, weight_decay: 1e-4 };
        let from = V::Kernels::view(gradients, len);
        let moved = V::Kernels::view_mut(params, len);
        bench.device.sgd_momentum(moved, from, V::Kernels::view_mut(velocity, len), &update);
        bench.device.ema(V::Kernels::view_mut(target, len), V::Kernels::view(params, len), 0.99);
        let mut results = vec![
            ("parameters", bench.read(params, len)?, Tolerance::Full),
            ("velocity", bench.read(velocity, len)?, Tolerance::Full),
            ("moving average", bench.read(target, len)?, Tolerance::Full),
        ];
        bench.device.add_assign(V::Kernels::view(params, len), V::Kernels::view_mut(target, len));
        results.push(("sum", bench.read(target, len)?, Tolerance::Full));
        bench.device.copy(V::Kernels::view(params, len), V::Kernels::view_mut(target, len));
        results.push(("copy", bench.read(target, len)?, Tolerance::Full));
        Ok(results)
    }
}

struct Grouped {
    len: usize,
}

impl OnAny for Grouped {
    fn name(&self) -> String {
        format!("groups of {} parameters", self.len)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let len = self.len;
        let group = |range, lr, weight_decay| ParamGroup { range, lr, weight_decay };
        // They begin anywhere, one is empty, and some parameters are in none.
        let groups =
            [group(1..len / 3, 0.1, 1e-2), group(len / 3..len / 3, 1.0, 0.0), group(len / 2..len - 1, 0.01, 0.0)];
        let mut buffers = vec![];
        for stream in 0..4 {
            buffers.push(bench.buffer(noise.full(stream, len))?);
        }
        buffers.push(bench.buffer(noise.full(4, len).into_iter().map(f32::abs).collect())?);
        let [params, gradients, velocity, first, second] = &mut buffers[..] else { unreachable!("five buffers") };
        let mut results = vec![];
        for nesterov in [false, true] {
            let (to, from) = (V::Kernels::view_mut(params, len), V::Kernels::view(gradients, len));
            let step = SgdStep { momentum: 0.9, nesterov };
            bench.device.sgd_groups(to, from, V::Kernels::view_mut(velocity, len), &step, &groups)?;
            let what = if nesterov { "SGD that looks ahead" } else { "SGD" };
            results.push((what, bench.read(params, len)?, Tolerance::Full));
            results.push(("velocity", bench.read(velocity, len)?, Tolerance::Full));
        }
        let (to, from) = (V::Kernels::view_mut(params, len), V::Kernels::view(gradients, len));
        let step = AdamWStep { step: 3, betas: [0.9, 0.98], eps: 1e-6 };
        let (mean, square) = (V::Kernels::view_mut(first, len), V::Kernels::view_mut(second, len));
        bench.device.adamw_groups(to, from, mean, square, &step, &groups)?;
        results.push(("AdamW", bench.read(params, len)?, Tolerance::Full));
        results.push(("its means", bench.read(first, len)?, Tolerance::Full));
        results.push(("its mean squares", bench.read(second, len)?, Tolerance::Full));
        let norm = bench.device.clip_gradients(V::Kernels::view_mut(gradients, len), 0.5, &groups)?;
        results.push(("norm", vec![norm as f32], Tolerance::Full));
        results.push(("clipped gradients", bench.read(gradients, len)?, Tolerance::Full));
        bench.device.zero(V::Kernels::view_mut(gradients, len / 2))?;
        results.push(("cleared", bench.read(gradients, len)?, Tolerance::Full));
        Ok(results)
    }
}

struct Moves {
    n: usize,
    width: usize,
    places: usize,
}

impl OnAny for Moves {
    fn name(&self) -> String {
        format!("{} rows of {} moved", self.n, self.width)
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let Moves { n, width, places } = *self;
        let len = n * width;
        let rows = bench.buffer(noise.full(0, len))?;
        let mut queue = bench.buffer(noise.full(1, places * width))?;
        let mut moved = bench.buffer(vec![0.0; len])?;
        let order: Vec<u32> = (0..n as u32).map(|i| (i * 5 + 2) % n as u32).collect();
        let rows = V::Kernels::view(&rows, len);
        bench.device.gather_rows(rows, &order, V::Kernels::view_mut(&mut moved, len));
        let mut results = vec![("gathered", bench.read(&moved, len)?, Tolerance::Exact)];
        bench.device.scatter_rows(rows, &order, V::Kernels::view_mut(&mut moved, len));
        results.push(("scattered", bench.read(&moved, len)?, Tolerance::Exact));
        bench.device.enqueue(rows, width, places - 2, V::Kernels::view_mut(&mut queue, places * width));
        results.push(("queue", bench.read(&queue, places * width)?, Tolerance::Exact));
        Ok(results)
    }
}
