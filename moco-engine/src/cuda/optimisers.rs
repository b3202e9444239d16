//! Updates of groups of parameters on a device, and the norm of a gradient.

use super::DriverDevice;
use super::arguments::*;
use super::driver::{Driver, THREADS};
use super::memory::{DeviceView, Value};
use crate::ops::{AdamWStep, ParamGroup, SgdStep, check_groups};
use crate::{Error, Result};

/// Most blocks that sum a group's squares: the host adds up what they leave.
const BLOCKS: usize = 256;

pub(super) fn sgd<T: Value, D: Driver>(
    device: &DriverDevice<T, D>,
    params: &mut DeviceView<f32>,
    gradients: &DeviceView<f32>,
    velocity: &mut DeviceView<f32>,
    step: &SgdStep,
    groups: &[ParamGroup],
) -> Result<()> {
    Error::check_len("gradients", params.len(), gradients.len())?;
    Error::check_len("velocities", params.len(), velocity.len())?;
    check_groups(groups, params.len())?;
    for ParamGroup { range, lr, weight_decay } in groups {
        let (start, len) = (range.start, range.len());
        let update = SgdGroup {
            params: params.part(start, len),
            gradients: gradients.part(start, len),
            velocity: velocity.part(start, len),
            len: len as u64,
            lr: *lr,
            momentum: step.momentum,
            weight_decay: *weight_decay,
            nesterov: i32::from(step.nesterov),
        };
        device.launch(device.flat(len), update);
    }
    Ok(())
}

pub(super) fn adamw<T: Value, D: Driver>(
    device: &DriverDevice<T, D>,
    params: &mut DeviceView<f32>,
    gradients: &DeviceView<f32>,
    [first, second]: [&mut DeviceView<f32>; 2],
    step: &AdamWStep,
    groups: &[ParamGroup],
) -> Result<()> {
    Error::check_len("gradients", params.len(), gradients.len())?;
    Error::check_len("means of the gradients", params.len(), first.len())?;
    Error::check_len("mean squares of the gradients", params.len(), second.len())?;
    check_groups(groups, params.len())?;
    let correction = step.correction()?;
    let [beta1, beta2] = step.betas;
    let [new1, new2] = step.betas.map(|beta| (1.0 - f64::from(beta)) as f32);
    for ParamGroup { range, lr, weight_decay } in groups {
        let (start, len) = (range.start, range.len());
        let update = AdamW {
            params: params.part(start, len),
            gradients: gradients.part(start, len),
            first: first.part(start, len),
            second: second.part(start, len),
            len: len as u64,
            beta1,
            beta2,
            new1,
            new2,
            rate: (f64::from(*lr) / correction[0]) as f32,
            kept: (1.0 - f64::from(*lr) * f64::from(*weight_decay)) as f32,
            root: correction[1].sqrt() as f32,
            eps: step.eps,
        };
        device.launch(device.flat(len), update);
    }
    Ok(())
}

pub(super) fn scale<T: Value, D: Driver>(
    device: &DriverDevice<T, D>,
    values: &mut DeviceView<f32>,
    factor: f32,
    groups: &[ParamGroup],
) -> Result<()> {
    check_groups(groups, values.len())?;
    for ParamGroup { range, .. } in groups {
        let (values, len) = (values.part(range.start, range.len()), range.len());
        device.launch(device.flat(len), Scale { values, len: len as u64, factor });
    }
    Ok(())
}

/// L2 norm of the groups' parts, summed in f64 in an order of its own.
pub(super) fn norm<T: Value, D: Driver>(
    device: &mut DriverDevice<T, D>,
    gradients: &DeviceView<f32>,
    groups: &[ParamGroup],
) -> Result<f64> {
    check_groups(groups, gradients.len())?;
    let lens: Vec<usize> = groups.iter().map(|group| group.range.len()).filter(|len| *len > 0).collect();
    let blocks: Vec<usize> = lens.iter().map(|len| len.div_ceil(8 * THREADS).min(BLOCKS)).collect();
    let mut squares = vec![0.0f64; blocks.iter().sum()];
    if squares.is_empty() {
        return Ok(0.0);
    }
    let driver = device.driver().clone();
    let mut sums = device.sums.at_least(&driver, size_of_val(&squares[..]))?;
    let all = sums;
    for (group, blocks) in groups.iter().filter(|group| !group.range.is_empty()).zip(&blocks) {
        let (start, len) = (group.range.start, group.range.len());
        device.launch([*blocks, 1, 1], SquareSums { values: gradients.part(start, len), sums, len: len as u64 });
        sums += (blocks * size_of::<f64>()) as u64;
    }
    driver.download(all, bytemuck::cast_slice_mut(&mut squares))?;
    Ok(squares.iter().sum::<f64>().sqrt())
}
