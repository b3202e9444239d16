//! When everything happens, and what is computed a second time.
//!
//! A graph falls into segments wherever a single value leads from what was computed to all that comes: for a residual
//! network these are the blocks, the stem and the pooling. With [`Recompute::Blocks`] only the values between segments
//! survive the forward pass; what the gradients of a segment read is computed again from its input right before them
//! (arXiv:1604.06174). Batch statistics are kept, so that nothing but convolutions and their like runs twice and every
//! bit comes out as before.

use std::ops::Range;

use moco_models::Shape;

use super::memory::gets_gradient;
use super::program::{Program, Step, ValueId};
use super::{Mode, PlanConfig, Recompute};

/// A segment with something to recompute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Its steps.
    pub steps: Range<usize>,
    /// Those that run again, in this order, before the gradient of the last step.
    pub again: Vec<usize>,
}

/// The segments with something to recompute, from the first to the last; none unless the plan asks for it.
pub(super) fn segments(program: &Program, config: &PlanConfig) -> Vec<Segment> {
    if config.mode != Mode::Train || config.recompute == Recompute::Nothing {
        return vec![];
    }
    let mut first = 0;
    let mut segments: Vec<Segment> = bridges(program)
        .into_iter()
        .map(|(end, kept)| {
            let steps = std::mem::replace(&mut first, end)..end;
            Segment { again: again(program, steps.clone(), kept), steps }
        })
        .filter(|segment| !segment.again.is_empty())
        .collect();
    // The gradients of the last one follow at once: nothing would be gained.
    segments.pop();
    segments
}

/// Tick at which a step runs going forward.
pub(super) fn forward_tick(step: usize) -> usize {
    step
}

/// Tick at which a segment that ends with this step is recomputed.
pub(super) fn recompute_tick(program: &Program, last: usize) -> usize {
    let steps = program.steps.len();
    steps + 2 * (steps - 1 - last)
}

/// Tick at which the gradient of a step is computed.
pub(super) fn backward_tick(program: &Program, step: usize) -> usize {
    recompute_tick(program, step) + 1
}

/// Where segments end (before which step), and the value that leads on; `None` at the end of the program. A plain
/// convolution's output is no such value: it is what is to be dropped.
fn bridges(program: &Program) -> Vec<(usize, Option<ValueId>)> {
    let steps = program.steps.len();
    let mut last_read = vec![0; program.values.len()];
    for (t, step) in program.steps.iter().enumerate() {
        program.reads(step).into_iter().for_each(|v| last_read[v] = t);
    }
    let mut bridges = vec![];
    // What has been written and will be read.
    let mut open = program.inputs.clone();
    for (t, step) in program.steps.iter().enumerate() {
        open.extend(program.output(step).filter(|y| program.stored(*y) == *y));
        open.retain(|&v| last_read[v] > t);
        if let [v] = open[..]
            && program.output(step) == Some(v)
            && !matches!(step, Step::Conv { relu: false, .. })
        {
            bridges.push((t + 1, Some(v)));
        }
    }
    if bridges.last().is_none_or(|(end, _)| *end < steps) {
        bridges.push((steps, None));
    }
    bridges
}

/// The steps of a segment that have to run again, where only `kept` and vectors, which are small, survive.
fn again(program: &Program, steps: Range<usize>, kept: Option<ValueId>) -> Vec<usize> {
    let mut dropped = vec![false; program.values.len()];
    for y in program.steps[steps.clone()].iter().filter_map(|step| program.output(step)) {
        let map = matches!(program.values[y].shape, Shape::Map { .. });
        dropped[y] = map && kept != Some(y) && program.stored(y) == y;
    }
    let mut needed = vec![false; program.values.len()];
    for step in program.steps[steps.clone()].iter().filter(|step| gets_gradient(program, step)) {
        program.backward_reads(step).into_iter().for_each(|v| needed[v] |= dropped[v]);
    }
    let mut again = vec![];
    for t in steps.rev() {
        let step = &program.steps[t];
        if program.output(step).is_some_and(|y| needed[y]) {
            program.reads(step).into_iter().for_each(|v| needed[v] |= dropped[v]);
            again.push(t);
        }
    }
    again.reverse();
    again
}
