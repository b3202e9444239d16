//! Running a plan backward.

use super::memory::{Life, gets_gradient};
use super::program::{Join, Learns, Step, ValueId};
use super::{Mode, Plan, State, norm_shape, read, rows_of};
use crate::kernels::{
    ConvInput, InputNorm, LinearShape, MapShape, Mask, NormOffsets, Offsets, Pass, PoolShape, ResizeShape, SliceShape,
};
use crate::{Error, Kernels, Result};

impl<K: Kernels> Plan<K> {
    /// Gradients of the parameters after a forward pass in [`Mode::Train`].
    /// - `params`: those of the forward pass.
    /// - `d_taps`: gradients of the loss with respect to taps, each like the tap's output; taps left out have none.
    /// - `gradients`: flat, in the order of `params`; overwritten (0 where no gradient arrives, and where parameters are
    ///   frozen).
    ///
    /// A forward pass serves one backward pass: its buffers are reused on the way. The taps stay readable.
    ///
    /// # Errors
    /// [`Error::State`] without a forward pass in [`Mode::Train`], [`Error::Config`] for an unknown tap,
    /// [`Error::Length`].
    pub fn backward(&mut self, params: &K::View, d_taps: &[(&str, &K::View)], gradients: &mut K::View) -> Result<()> {
        let n = match self.state {
            State::Forward { n } if self.config.mode == Mode::Train => n,
            State::Taps { .. } => {
                return Err(Error::State("the forward pass has had its backward pass; run another first".into()));
            }
            _ => return Err(Error::State("a backward pass needs a forward pass in Mode::Train".into())),
        };
        Error::check_len("parameters", self.program.params_len, K::len(params))?;
        Error::check_len("gradients", self.program.params_len, K::len(gradients))?;
        for (tap, d_tap) in d_taps {
            let len = n * self.program.sample_len(self.tap_value(tap)?);
            if K::len(d_tap) != len {
                let what = format!("gradient of `{tap}`");
                return Err(Error::Length { what, expected: len, got: K::len(d_tap) });
            }
        }

        self.state = State::Taps { n };
        K::enter(|| {
            let mut runs = self.begin_backward(params, d_taps, gradients, n);
            while runs {
                let ran = self.run_backward(params, d_taps, gradients, n);
                runs = !self.kernels.end_pass();
                ran?;
            }
            Ok(())
        })
    }

    fn begin_backward(&mut self, params: &K::View, d_taps: &[(&str, &K::View)], gradients: &K::View, n: usize) -> bool {
        let Plan { program, kernels, .. } = self;
        let place = |tap: &str| program.taps.iter().position(|(known, _)| known == tap);
        // Which taps receive a gradient is part of what the pass does.
        let taps = d_taps.iter().map(|(tap, view)| (2 + place(tap).expect("it has been checked"), *view));
        kernels.begin_pass(Pass::Backward, n, &mut [(0, params), (1, gradients)].into_iter().chain(taps))
    }

    fn run_backward(
        &mut self,
        params: &K::View,
        d_taps: &[(&str, &K::View)],
        gradients: &mut K::View,
        n: usize,
    ) -> Result<()> {
        self.kernels.zero(gradients, 0, self.program.params_len);
        self.present.fill(false);
        self.learnt.fill(false);
        let mut segments = self.segments.len();
        for t in (0..self.program.steps.len()).rev() {
            let step = self.program.steps[t];
            if segments > 0 && self.segments[segments - 1].steps.end == t + 1 {
                segments -= 1;
                self.recompute(segments, params, d_taps, n)?;
            }
            if !gets_gradient(&self.program, &step) {
                continue;
            }
            let y = self.program.output(&step).expect("a step with a gradient has an output");
            for (tap, d_tap) in d_taps {
                if self.tap_value(tap)? == y {
                    self.receive(y, n, d_tap);
                }
            }
            if self.present[y] {
                self.differentiate(step, y, params, gradients, n);
            }
        }
        Ok(())
    }

    /// Computes again what the gradients of a segment read, if any gradient has reached it.
    fn recompute(&mut self, segment: usize, params: &K::View, d_taps: &[(&str, &K::View)], n: usize) -> Result<()> {
        let steps = self.segments[segment].steps.clone();
        let writes = |value| self.program.steps[steps.clone()].iter().any(|s| self.program.output(s) == Some(value));
        let mut reached = (0..self.present.len()).any(|value| self.present[value] && writes(value));
        for (tap, _) in d_taps {
            reached |= writes(self.tap_value(tap)?);
        }
        for i in 0..if reached { self.segments[segment].again.len() } else { 0 } {
            let step = self.program.steps[self.segments[segment].again[i]];
            self.run(step, Life::Second, params, n);
        }
        Ok(())
    }

    /// Adds what comes from outside to the gradient of a value.
    fn receive(&mut self, value: ValueId, n: usize, gradient: &K::View) {
        let slot = self.memory.gradient[value].expect("a value that needs a gradient has a slot for it");
        let mut buffer = self.take(slot);
        let accumulate = std::mem::replace(&mut self.present[value], true);
        let view = K::map_view_mut(&mut buffer, n * self.program.sample_len(value));
        self.kernels.load(gradient, view, accumulate);
        self.put_back(slot, buffer);
    }

    fn differentiate(&mut self, step: Step, y: ValueId, params: &K::View, gradients: &mut K::View, n: usize) {
        let slot = self.memory.gradient[y].expect("a present gradient has a slot");
        let mut buffer = self.take(slot);
        let dy = K::map_view_mut(&mut buffer, n * self.program.sample_len(y));
        self.parameter_gradients(step, dy, gradients, n);
        // Every target but the heir reads the gradient of the output; the heir then takes it over.
        let mut heir = None;
        for i in 0.. {
            let Some((x, _)) = self.program.gradient_target(&step, i) else { break };
            if !self.program.values[x].needs_gradient {
                continue;
            }
            if self.memory.gradient[x] == Some(slot) {
                heir = Some((x, i));
            } else {
                self.input_gradient(step, i, x, dy, params, n);
            }
        }
        if let Some((x, i)) = heir {
            self.inherit(step, i, dy, n);
            self.present[x] = true;
        }
        self.put_back(slot, buffer);
    }

    /// Masks `dy` by the step's ReLU where that has to be written, and computes the gradients of the step's parameters.
    fn parameter_gradients(&mut self, step: Step, dy: &mut K::MapView, gradients: &mut K::View, n: usize) {
        let Plan { program, memory, slots, kernels, .. } = self;
        let value = |v| read::<K>(program, memory, slots, Life::Second, v, n);
        match step {
            Step::Conv { y, relu: true, .. }
            | Step::Linear { y, relu: true, .. }
            | Step::Relu { y, .. }
            | Step::Add { y, relu: true, .. } => kernels.relu_mask(value(y), dy),
            _ => {}
        }
        match step {
            Step::Conv { learns: Learns::Nothing, .. } | Step::Linear { learns: Learns::Nothing, .. } => {}
            Step::Conv { x, shape, at, learns, .. } => self.learn(learns, at.weight, gradients, |plan, start, into| {
                let Plan { program, memory, slots, stats, kernels, .. } = plan;
                let norm = program.values[x].unwritten.map(|u| (norm_shape(&program.norms[u.norm], n), u));
                let norm = norm.as_ref().map(|(shape, u)| InputNorm { shape, stats: &stats[u.norm], relu: u.relu });
                let input = ConvInput { x: read::<K>(program, memory, slots, Life::Second, x, n), norm };
                kernels.conv_backward_params(&shape.with_n(n), input, dy, layer_at(at, start), into);
            }),
            Step::Linear { x, shape, at, learns, .. } => {
                self.learn(learns, at.weight, gradients, |plan, start, into| {
                    let Plan { program, memory, slots, kernels, .. } = plan;
                    let x = read::<K>(program, memory, slots, Life::Second, x, n);
                    kernels.linear_backward_params(&LinearShape { n, ..shape }, x, dy, layer_at(at, start), into);
                })
            }
            Step::Apply { norm, join, relu, y } => {
                let recompute = relu && matches!(join, Join::Nothing);
                let mask = (relu && !recompute).then_some(y);
                self.norm_gradients(norm, recompute, mask, dy, gradients, n);
                if let Join::Norm(other) = join {
                    self.norm_gradients(other, false, None, dy, gradients, n);
                }
            }
            Step::Relu { .. }
            | Step::Add { .. }
            | Step::MaxPool { .. }
            | Step::MeanPool { .. }
            | Step::Resize { .. }
            | Step::Concat { .. } => {}
            Step::Stats { .. } => unreachable!("statistics have no output"),
        }
    }

    /// The sums with which the gradient of a normalisation begins; `mask` is the value by whose sign `dy` is masked.
    fn norm_gradients(
        &mut self,
        of: usize,
        recompute: bool,
        mask: Option<ValueId>,
        dy: &mut K::MapView,
        gradients: &mut K::View,
        n: usize,
    ) {
        if !self.program.reduces(of) {
            if let Some(y) = mask {
                let y = read::<K>(&self.program, &self.memory, &self.slots, Life::Second, y, n);
                self.kernels.relu_mask(y, dy);
            }
            return;
        }
        let (at, learns, channels) = {
            let norm = &self.program.norms[of];
            (norm.at, norm.learns, norm.shape.map.channels)
        };
        self.learn(learns, at.weight, gradients, |plan, start, into| {
            let Plan { program, memory, slots, stats, kernels, .. } = plan;
            let value = |v| read::<K>(program, memory, slots, Life::Second, v, n);
            let mask = match mask {
                _ if recompute => Mask::Recompute,
                None => Mask::None,
                Some(y) => Mask::Output(value(y)),
            };
            let norm = &program.norms[of];
            let (shape, z) = (norm_shape(norm, n), value(norm.z));
            kernels.norm_backward_reduce(&shape, z, &mut stats[of], mask, dy, norm_at(at, start), into);
        });
        if learns == Learns::Nothing {
            // They came with the sums of the statistics.
            self.kernels.zero(gradients, at.weight, channels);
            self.kernels.zero(gradients, at.bias, channels);
        }
    }

    /// Lets `step` write the gradients of a layer's parameters, which begin at `start`: into `gradients`, or, where another
    /// use of the layer has left its own there, into the scratch that is then added. `step` is told where they begin.
    fn learn(
        &mut self,
        learns: Learns,
        start: usize,
        gradients: &mut K::View,
        step: impl FnOnce(&mut Plan<K>, usize, &mut K::View),
    ) {
        match learns {
            Learns::Shared(layer) if std::mem::replace(&mut self.learnt[layer], true) => {
                let len = self.program.shared[layer];
                let mut scratch = self.scratch.take().expect("a plan with shared layers has a scratch");
                step(self, 0, K::view_mut(&mut scratch, len));
                self.kernels.add_to_gradients(K::view(&scratch, len), len, gradients, start);
                self.scratch = Some(scratch);
            }
            _ => step(self, start, gradients),
        }
    }

    /// Writes the gradient of the `i`-th target, `x`, into a buffer of its own.
    fn input_gradient(&mut self, step: Step, i: usize, x: ValueId, dy: &K::MapView, params: &K::View, n: usize) {
        let slot = self.memory.gradient[x].expect("a value that needs a gradient has a slot for it");
        let mut buffer = self.take(slot);
        let accumulate = std::mem::replace(&mut self.present[x], true);
        let Plan { program, memory, slots, stats, kernels, config, indices, .. } = self;
        let dx = K::map_view_mut(&mut buffer, n * program.sample_len(x));
        match step {
            Step::Conv { shape, at, .. } => {
                kernels.conv_backward_data(&shape.with_n(n), dy, params, at, dx, accumulate);
            }
            Step::Linear { shape, at, .. } => {
                kernels.linear_backward_data(&LinearShape { n, ..shape }, dy, params, at, dx, accumulate);
            }
            Step::MaxPool { shape, index, .. } => {
                kernels.max_pool_backward(&PoolShape { n, ..shape }, dy, &indices[index], dx, accumulate);
            }
            Step::MeanPool { shape, .. } => kernels.mean_pool_backward(&MapShape { n, ..shape }, dy, dx, accumulate),
            Step::Resize { shape, .. } => kernels.resize_backward(&ResizeShape { n, ..shape }, dy, dx, accumulate),
            Step::Concat { parts, .. } => {
                let shape = &program.joined[parts][i].1;
                let rows = rows_of(shape, n, config.batch);
                kernels.take_channels(&SliceShape { rows, ..*shape }, dy, dx, accumulate);
            }
            Step::Relu { .. } | Step::Add { .. } => pass_on(kernels, dy, dx, accumulate),
            Step::Apply { norm, join, relu, .. } => match normalised_target(norm, join, i) {
                None => pass_on(kernels, dy, dx, accumulate),
                Some(of) => {
                    let (norm, stats) = (&program.norms[of], &stats[of]);
                    let recompute = relu && matches!(join, Join::Nothing);
                    let z = (program.backward_reads_z(of, recompute))
                        .then(|| read::<K>(program, memory, slots, Life::Second, norm.z, n));
                    kernels.norm_backward_apply(&norm_shape(norm, n), z, stats, recompute, Some(dy), dx, accumulate);
                }
            },
            Step::Stats { .. } => unreachable!("statistics have no output"),
        }
        self.put_back(slot, buffer);
    }

    /// Turns the gradient of the output into that of the `i`-th target.
    fn inherit(&mut self, step: Step, i: usize, dy: &mut K::MapView, n: usize) {
        let Plan { program, memory, slots, stats, kernels, .. } = self;
        if let Step::Apply { norm, join, relu, .. } = step
            && let Some(of) = normalised_target(norm, join, i)
        {
            let (norm, stats) = (&program.norms[of], &stats[of]);
            let recompute = relu && matches!(join, Join::Nothing);
            let z = (program.backward_reads_z(of, recompute))
                .then(|| read::<K>(program, memory, slots, Life::Second, norm.z, n));
            kernels.norm_backward_apply(&norm_shape(norm, n), z, stats, recompute, None, dy, false);
        }
    }
}

/// The normalisation between a step's output and its `i`-th target, if there is one.
fn normalised_target(norm: usize, join: Join, i: usize) -> Option<usize> {
    match (join, i) {
        (Join::Nothing, _) | (Join::Value(_) | Join::Norm(_), 1) => Some(norm),
        (Join::Norm(other), _) => Some(other),
        (Join::Value(_), _) => None,
    }
}

fn pass_on<K: Kernels>(kernels: &mut K, dy: &K::MapView, dx: &mut K::MapView, accumulate: bool) {
    if accumulate {
        kernels.add_assign(dy, dx);
    } else {
        kernels.copy(dy, dx);
    }
}

/// Places of a layer's gradients where they begin at `start`.
fn layer_at(at: Offsets, start: usize) -> Offsets {
    Offsets { weight: start, bias: at.bias.map(|bias| bias - at.weight + start) }
}

/// The same of a normalisation.
fn norm_at(at: NormOffsets, start: usize) -> NormOffsets {
    NormOffsets { weight: start, bias: at.bias - at.weight + start, ..at }
}
