//! Trials of convolutions and linear layers.

use super::*;
use crate::kernels::conv::ConvShape;
use crate::kernels::{ConvInput, LinearShape, Offsets};

pub(super) fn trials<T: Value, D: Driver>(trials: &mut Vec<Box<dyn Trial<T, D>>>, scale: Scale) {
    let conv = |n, side: [usize; 2], channels: [usize; 2], kernel, stride, groups| {
        let ([h, w], [c_in, c_out]) = (side, channels);
        ConvShape { n, h, w, c_in, c_out, kernel, stride, padding: kernel / 2, groups }
    };
    let mut convs = vec![
        conv(2, [9, 7], [3, 16], 7, 2, 1),
        conv(2, [6, 5], [8, 24], 3, 1, 1),
        conv(3, [7, 8], [16, 8], 3, 2, 1),
        conv(2, [5, 5], [24, 72], 1, 1, 1),
        conv(2, [6, 6], [16, 16], 1, 2, 1),
        conv(2, [5, 6], [16, 16], 3, 1, 4),
        conv(1, [4, 4], [5, 6], 3, 1, 1),
    ];
    let mut linears = vec![[3, 7, 5], [5, 130, 70], [9, 64, 8]];
    if scale == Scale::Full {
        convs.extend([
            conv(16, [224; 2], [3, 64], 7, 2, 1),
            conv(16, [56; 2], [64, 64], 3, 1, 1),
            conv(16, [56; 2], [256, 512], 1, 2, 1),
            conv(16, [14; 2], [256, 256], 3, 1, 1),
            conv(16, [28; 2], [256, 256], 3, 1, 32),
            conv(16, [7; 2], [512, 2048], 1, 1, 1),
        ]);
        linears.extend([[256, 2048, 2048], [256, 2048, 128]]);
    }
    trials.extend(convs.into_iter().map(|shape| Box::new(Conv { shape }) as _));
    trials.extend(linears.into_iter().map(|[n, inputs, outputs]| {
        let shape = LinearShape { n, inputs, outputs };
        Box::new(Linear { shape }) as _
    }));
}

struct Conv {
    shape: ConvShape,
}

impl OnAny for Conv {
    fn name(&self) -> String {
        let ConvShape { n, h, w, c_in, c_out, kernel, stride, groups, .. } = self.shape;
        format!("convolution {n}×{h}×{w}×{c_in} → {c_out}, {kernel}×{kernel} / {stride}, {groups} groups")
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let s = &self.shape;
        let (x_len, y_len, w_len) = (s.x_len(), s.y_len(), s.weight_len());
        let len = 5 + w_len + s.c_out;
        let mut k = bench.kernels(&[Need::Conv(*s)])?;
        let x = bench.map(&mut k, noise.map(0, x_len))?;
        let dy = bench.map(&mut k, noise.map(1, y_len))?;
        let params = bench.buffer(noise.map(2, len))?;
        let params = V::Kernels::view(&params, len);
        let mut dx = bench.map(&mut k, noise.map(3, x_len))?;
        let (mut y, mut gradients) = (k.map(y_len)?, k.buffer(len)?);
        let at = Offsets { weight: 5, bias: Some(5 + w_len) };
        let input = || ConvInput { x: V::Kernels::map_view(&x, x_len), norm: None };
        k.conv_forward(s, input(), params, at, false, false, V::Kernels::map_view_mut(&mut y, y_len));
        let mut results = vec![("forward", bench.read_map(&mut k, &y, y_len)?, Tolerance::Map)];
        for (at, what) in [(at, "forward and relu"), (Offsets { bias: None, ..at }, "forward and relu, no bias")] {
            k.conv_forward(s, input(), params, at, false, true, V::Kernels::map_view_mut(&mut y, y_len));
            results.push((what, bench.read_map(&mut k, &y, y_len)?, Tolerance::Map));
        }
        let dy = V::Kernels::map_view(&dy, y_len);
        k.conv_backward_params(s, input(), dy, at, V::Kernels::view_mut(&mut gradients, len));
        let gradients = bench.read(&gradients, len)?;
        results.push(("weight gradient", gradients[..5 + w_len].to_vec(), Tolerance::Gradient));
        results.push(("bias gradient", gradients[5 + w_len..].to_vec(), Tolerance::Full));
        for accumulate in [true, false] {
            let what = if accumulate { "data gradient added" } else { "data gradient" };
            k.conv_backward_data(s, dy, params, at, V::Kernels::map_view_mut(&mut dx, x_len), accumulate);
            results.push((what, bench.read_map(&mut k, &dx, x_len)?, Tolerance::Map));
        }
        Ok(results)
    }
}

struct Linear {
    shape: LinearShape,
}

impl OnAny for Linear {
    fn name(&self) -> String {
        let LinearShape { n, inputs, outputs } = self.shape;
        format!("linear {n}×{inputs} → {outputs}")
    }

    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results> {
        let s = &self.shape;
        let (x_len, y_len, w_len) = (s.n * s.inputs, s.n * s.outputs, s.inputs * s.outputs);
        let len = 1 + w_len + s.outputs;
        let mut k = bench.kernels(&[Need::Linear(*s)])?;
        let x = bench.map(&mut k, noise.map(0, x_len))?;
        let dy = bench.map(&mut k, noise.map(1, y_len))?;
        let params = bench.buffer(noise.full(2, len))?;
        let params = V::Kernels::view(&params, len);
        let mut dx = bench.map(&mut k, noise.map(3, x_len))?;
        let (mut y, mut gradients) = (k.map(y_len)?, k.buffer(len)?);
        let at = Offsets { weight: 1, bias: Some(1 + w_len) };
        let (x, dy) = (V::Kernels::map_view(&x, x_len), V::Kernels::map_view(&dy, y_len));
        k.linear(s, x, params, at, true, V::Kernels::map_view_mut(&mut y, y_len));
        let mut results = vec![("forward and relu", bench.read_map(&mut k, &y, y_len)?, Tolerance::Map)];
        k.linear_backward_params(s, x, dy, at, V::Kernels::view_mut(&mut gradients, len));
        results.push(("parameter gradients", bench.read(&gradients, len)?, Tolerance::Full));
        for accumulate in [true, false] {
            let what = if accumulate { "data gradient added" } else { "data gradient" };
            k.linear_backward_data(s, dy, params, at, V::Kernels::map_view_mut(&mut dx, x_len), accumulate);
            results.push((what, bench.read_map(&mut k, &dx, x_len)?, Tolerance::Map));
        }
        Ok(results)
    }
}
