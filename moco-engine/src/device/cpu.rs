//! [`Device`] on the CPU: host memory and the functions of [`ops`].

use std::borrow::Cow;
use std::marker::PhantomData;

use super::{ContrastInputs, Device, SgdUpdate};
use crate::ops::{self, AdamWStep, InfoNce, InfoNceInputs, InfoNceWorkspace, ParamGroup, SgdStep};
use crate::{CpuKernels, Kernels, Result};

/// The CPU with one of its implementations of [`Kernels`].
pub struct Cpu<K = CpuKernels> {
    workspace: InfoNceWorkspace,
    kernels: PhantomData<fn() -> K>,
}

impl<K> Default for Cpu<K> {
    fn default() -> Cpu<K> {
        Cpu { workspace: InfoNceWorkspace::default(), kernels: PhantomData }
    }
}

impl<K: Kernels<Buffer = Vec<f32>, View = [f32]> + Default> Device for Cpu<K> {
    type Kernels = K;
    type Loss = InfoNce;
    type Decoded = std::convert::Infallible;

    fn describe(&self) -> String {
        "cpu".into()
    }

    fn kernels(&self) -> Result<K> {
        Ok(K::default())
    }

    fn buffer(&mut self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn stage<'a>(&mut self, values: &'a [f32], _memory: &'a mut Option<Vec<f32>>) -> Result<&'a [f32]> {
        Ok(values)
    }

    fn download<'a>(&self, view: &'a [f32]) -> Result<Cow<'a, [f32]>> {
        Ok(Cow::Borrowed(view))
    }

    fn l2_normalise(&mut self, x: &[f32], dim: usize, y: &mut [f32]) {
        ops::l2_normalise(x, dim, y);
    }

    fn l2_normalise_backward(&mut self, x: &[f32], dy: &[f32], dim: usize, dx: &mut [f32]) {
        ops::l2_normalise_backward(x, dy, dim, dx);
    }

    fn info_nce(&mut self, inputs: &ContrastInputs<'_, Self>, d_query: &mut [f32]) -> Result<InfoNce> {
        let ContrastInputs { query, key, queue, dim, temperature, same_image } = *inputs;
        let inputs = InfoNceInputs { query, key, queue, dim, temperature, same_image };
        ops::info_nce(&inputs, d_query, &mut self.workspace)
    }

    fn loss(&mut self, loss: InfoNce) -> Result<InfoNce> {
        Ok(loss)
    }

    fn copy(&mut self, from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    fn add_assign(&mut self, from: &[f32], to: &mut [f32]) {
        ops::add_assign(from, to);
    }

    fn sgd_momentum(&mut self, params: &mut [f32], gradients: &[f32], velocity: &mut [f32], update: &SgdUpdate) {
        ops::sgd_momentum(params, gradients, velocity, update.lr, update.momentum, update.weight_decay);
    }

    fn sgd_groups(
        &mut self,
        params: &mut [f32],
        gradients: &[f32],
        velocity: &mut [f32],
        step: &SgdStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        ops::sgd_groups(params, gradients, velocity, step, groups)
    }

    fn adamw_groups(
        &mut self,
        params: &mut [f32],
        gradients: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        step: &AdamWStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        ops::adamw_groups(params, gradients, first, second, step, groups)
    }

    fn gradient_norm(&mut self, gradients: &[f32], groups: &[ParamGroup]) -> Result<f64> {
        ops::gradient_norm(gradients, groups)
    }

    fn scale_groups(&mut self, values: &mut [f32], factor: f32, groups: &[ParamGroup]) -> Result<()> {
        ops::scale_groups(values, factor, groups)
    }

    fn zero(&mut self, view: &mut [f32]) -> Result<()> {
        view.fill(0.0);
        Ok(())
    }

    fn ema(&mut self, target: &mut [f32], source: &[f32], m: f32) {
        ops::ema(target, source, m);
    }

    fn gather_rows(&mut self, rows: &[f32], order: &[u32], gathered: &mut [f32]) {
        ops::gather_rows(rows, order, gathered);
    }

    fn scatter_rows(&mut self, rows: &[f32], order: &[u32], scattered: &mut [f32]) {
        ops::scatter_rows(rows, order, scattered);
    }

    fn enqueue(&mut self, keys: &[f32], dim: usize, pointer: usize, queue: &mut [f32]) {
        ops::enqueue(keys, dim, pointer, queue);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_the_memory_of_the_cpu() {
        let mut cpu = Cpu::<CpuKernels>::default();
        let values = vec![1.0, 2.0, 3.0];
        assert_eq!(cpu.stage(&values, &mut None).unwrap().as_ptr(), values.as_ptr());
        let address = values.as_ptr();
        let buffer = cpu.buffer(values).unwrap();
        assert_eq!(cpu.download(&buffer).unwrap().as_ptr(), address);
    }
}
