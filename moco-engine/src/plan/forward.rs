//! Running a plan forward.

use super::memory::Life;
use super::program::{Join, Norm, Step, ValueId};
use super::{Plan, State, norm_shape, read, rows_of};
use crate::kernels::{
    ConvInput, InputNorm, LinearShape, MapShape, Pass, PoolShape, Residual, ResizeShape, SliceShape, Statistics,
};
use crate::{Error, Kernels, Result};

impl<K: Kernels> Plan<K> {
    /// Runs the network on `n` images.
    /// - `params`, `buffers`: flat, in the graph's layouts; `buffers` (running statistics) change in
    ///   [`Mode::Momentum`] and [`Mode::Train`].
    /// - `images` [n, height, width, channels], normalised; or, where taps are given ([`PlanConfig::given`](crate::PlanConfig)),
    ///   their values instead: of each tap those of all images, NHWC, then those of the next.
    ///
    /// # Errors
    /// [`Error::Batch`], [`Error::Length`], or [`Error::OneValuePerChannel`]; nothing has changed then.
    pub fn forward(&mut self, params: &K::View, buffers: &mut K::View, images: &K::View, n: usize) -> Result<()> {
        if n == 0 || n > self.config.batch {
            return Err(Error::Batch { batch: self.config.batch, got: n });
        }
        Error::check_len("parameters", self.program.params_len, K::len(params))?;
        Error::check_len("running statistics", self.program.buffers_len, K::len(buffers))?;
        let what = if self.config.given.is_empty() { "images" } else { "given taps" };
        Error::check_len(what, n * self.program.input_len(), K::len(images))?;
        self.check_groups(n)?;

        self.state = State::Empty;
        K::enter(|| {
            let views = [params, &*buffers, images];
            let mut runs = self.kernels.begin_pass(Pass::Forward, n, &mut views.into_iter().enumerate());
            while runs {
                self.run_steps(params, buffers, images, n);
                runs = !self.kernels.end_pass();
            }
        });
        self.state = State::Forward { n };
        Ok(())
    }

    fn run_steps(&mut self, params: &K::View, buffers: &mut K::View, images: &K::View, n: usize) {
        let mut start = 0;
        for i in 0..self.program.inputs.len() {
            let value = self.program.inputs[i];
            let len = n * self.program.sample_len(value);
            let slot = self.memory.slot(value, Life::First).expect("what comes from outside has a slot");
            let mut input = self.take(slot);
            let view = K::map_view_mut(&mut input, len);
            match self.program.inputs[..] {
                [_] => self.kernels.load(images, view, false),
                _ => self.kernels.load_part(images, start, len, view),
            }
            self.put_back(slot, input);
            self.give_out(value, n);
            start += len;
        }
        for t in 0..self.program.steps.len() {
            let step = self.program.steps[t];
            if let Step::Stats { norm, summed } = step {
                self.statistics(norm, summed, params, buffers, n);
            } else {
                self.run(step, Life::First, params, n);
            }
            if let Some(y) = self.program.output(&step) {
                self.give_out(y, n);
            }
        }
    }

    /// Stores a value that has just been written where taps read it.
    fn give_out(&mut self, value: ValueId, n: usize) {
        let Plan { program, memory, slots, outputs, kernels, .. } = self;
        for ((_, of), output) in program.taps.iter().zip(outputs) {
            if *of == value {
                let from = read::<K>(program, memory, slots, Life::First, value, n);
                kernels.store(from, K::view_mut(output, n * program.sample_len(value)));
            }
        }
    }

    fn check_groups(&self, n: usize) -> Result<()> {
        let smallest = self.config.bn_groups.of(n).map(|g| g.len).min().unwrap_or(0);
        let too_few = |norm: &&Norm| smallest * norm.shape.map.pixels < 2;
        match self.program.norms.iter().filter(|n| n.shape.statistics == Statistics::Batch).find(too_few) {
            Some(norm) => Err(Error::OneValuePerChannel { node: norm.node.clone() }),
            None => Ok(()),
        }
    }

    fn statistics(&mut self, norm: usize, summed: bool, params: &K::View, buffers: &mut K::View, n: usize) {
        let Plan { program, memory, slots, stats, kernels, .. } = self;
        let (norm, stats) = (&program.norms[norm], &mut stats[norm]);
        let shape = norm_shape(norm, n);
        let z = || read::<K>(program, memory, slots, Life::First, norm.z, n);
        match shape.statistics {
            Statistics::Running => kernels.norm_running_stats(&shape, params, norm.at, buffers, stats),
            Statistics::Batch => kernels.norm_batch_stats(&shape, z(), summed, params, norm.at, buffers, stats),
            Statistics::Image { .. } => kernels.norm_image_stats(&shape, z(), summed, params, norm.at, stats),
        }
    }

    /// Runs a step that writes a value. In its second life it finds its statistics and writes no other trace.
    pub(super) fn run(&mut self, step: Step, life: Life, params: &K::View, n: usize) {
        let y = self.program.output(&step).expect("every step but statistics writes a value");
        let Some(y_slot) = self.memory.slot(y, life) else { return };
        let mut output = self.take(y_slot);
        let Plan { program, memory, slots, stats, kernels, config, indices, .. } = self;
        let value = |v| read::<K>(program, memory, slots, life, v, n);
        // An operand in the output's own slot is read in place.
        let operand = |v: usize| (memory.slot(program.stored(v), life) != Some(y_slot)).then(|| value(v));
        let y = K::map_view_mut(&mut output, n * program.sample_len(y));
        match step {
            Step::Stats { .. } => unreachable!("statistics write no value"),
            Step::Conv { x, shape, at, sums, relu, .. } => {
                let norm = program.values[x].unwritten.map(|u| (norm_shape(&program.norms[u.norm], n), u));
                let norm = norm.as_ref().map(|(shape, u)| InputNorm { shape, stats: &stats[u.norm], relu: u.relu });
                let sums = sums && life == Life::First;
                kernels.conv_forward(&shape.with_n(n), ConvInput { x: value(x), norm }, params, at, sums, relu, y);
            }
            Step::Apply { norm, join, relu, .. } => {
                let z = operand(program.norms[norm].z);
                let residual = match join {
                    Join::Nothing => Residual::None,
                    Join::Value(r) => Residual::Map(value(r)),
                    Join::Norm(other) => Residual::Norm { z: value(program.norms[other].z), stats: &stats[other] },
                };
                kernels.norm_apply(&norm_shape(&program.norms[norm], n), z, &stats[norm], residual, relu, y);
            }
            Step::Relu { x, .. } => kernels.relu(operand(x), y),
            Step::Add { a, b, relu, .. } => kernels.add(operand(a), value(b), relu, y),
            Step::MaxPool { x, shape, index, .. } => {
                let wanted = program.indices[index] > 0 && life == Life::First;
                let index = indices.get_mut(index).filter(|_| wanted);
                kernels.max_pool(&PoolShape { n, ..shape }, value(x), y, index);
            }
            Step::MeanPool { x, shape, .. } => kernels.mean_pool(&MapShape { n, ..shape }, value(x), y),
            Step::Linear { x, shape, at, relu, .. } => {
                kernels.linear(&LinearShape { n, ..shape }, value(x), params, at, relu, y);
            }
            Step::Resize { x, shape, .. } => kernels.resize(&ResizeShape { n, ..shape }, value(x), y),
            Step::Concat { parts, .. } => {
                for (x, shape) in &program.joined[parts] {
                    let rows = rows_of(shape, n, config.batch);
                    kernels.insert_channels(&SliceShape { rows, ..*shape }, value(*x), y);
                }
            }
        }
        self.put_back(y_slot, output);
    }
}
