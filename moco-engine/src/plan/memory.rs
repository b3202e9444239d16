//! Who lives when, and which buffers they share.
//!
//! The clock ticks with every step going forward, with every gradient, and once where a segment is recomputed
//! ([`schedule`](super::schedule)). Every value and every gradient gets a range of that clock; ranges that do not meet
//! share a slot. In [`Mode::Train`](super::Mode::Train) a value lives until the last gradient that reads it: convolution
//! outputs until their batch norm's gradient, block outputs until the gradient of the convolution behind them; results of
//! batch norm and ReLU between two convolutions are never written (see [`Program::build`]). A value that is recomputed
//! lives twice: until the last step that reads it going forward, and from its recomputation on.

use super::program::{Program, Step, ValueId};
use super::schedule::{Segment, backward_tick, forward_tick, recompute_tick};
use super::{Mode, PlanConfig};

/// Slots and who is in which.
#[derive(Debug)]
pub(super) struct Memory {
    /// Length of each slot in values, for the largest batch.
    pub slots: Vec<usize>,
    /// Slot of each value in its first life; `None` if it is not written out.
    value: Vec<Option<usize>>,
    /// Slot of each value in the backward pass.
    again: Vec<Option<usize>>,
    /// Slot of each value's gradient; `None` if nobody needs it. A gradient that shares its slot with the gradient of the
    /// output of a step is computed in place by that step.
    pub gradient: Vec<Option<usize>>,
}

/// Which writing of a value is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// The forward pass.
    First,
    /// The backward pass, where values that were dropped have been computed again.
    Second,
}

/// Something that needs memory from `birth` to `death`.
struct Tenant {
    len: usize,
    birth: usize,
    death: usize,
}

impl Memory {
    pub(super) fn assign(program: &Program, segments: &[Segment], config: &PlanConfig) -> Memory {
        let mut tenants = Vec::new();
        let (value, again) = value_tenants(program, segments, config, &mut tenants);
        let gradient = match config.mode {
            Mode::Train => gradient_tenants(program, config, &mut tenants),
            Mode::Eval | Mode::Momentum => vec![None; program.values.len()],
        };
        let (slots, slot_of) = share(&tenants);
        let place = |tenants: Vec<Option<usize>>| tenants.into_iter().map(|t| t.map(|t| slot_of[t])).collect();
        Memory { slots, value: place(value), again: place(again), gradient: place(gradient) }
    }

    /// Slot of a value that is written out.
    pub(super) fn slot(&self, value: ValueId, life: Life) -> Option<usize> {
        match life {
            Life::First => self.value[value],
            Life::Second => self.again[value],
        }
    }
}

/// Tenants of the values, going forward and going backward.
type Tenancy = (Vec<Option<usize>>, Vec<Option<usize>>);

fn value_tenants(program: &Program, segments: &[Segment], config: &PlanConfig, tenants: &mut Vec<Tenant>) -> Tenancy {
    let recomputed = || segments.iter().flat_map(|s| s.again.iter().map(move |t| (*t, s.steps.end - 1)));
    let mut again = vec![None; program.values.len()];
    for (t, last) in recomputed() {
        let y = program.output(&program.steps[t]).expect("what runs again writes a value");
        let birth = recompute_tick(program, last);
        tenants.push(Tenant { len: config.batch * program.sample_len(y), birth, death: birth });
        again[y] = Some(tenants.len() - 1);
    }
    let mut last_read = vec![0; program.values.len()];
    let mut read = |v: ValueId, tick: usize| {
        last_read[v] = last_read[v].max(tick);
    };
    for (t, step) in program.steps.iter().enumerate() {
        program.reads(step).into_iter().for_each(|v| read(v, forward_tick(t)));
    }
    let mut read_back = |v: ValueId, tick: usize| match again[v] {
        Some(tenant) => {
            let tenant: &mut Tenant = &mut tenants[tenant];
            tenant.death = tenant.death.max(tick);
        }
        None => read(v, tick),
    };
    for (t, last) in recomputed() {
        let tick = recompute_tick(program, last);
        program.reads(&program.steps[t]).into_iter().for_each(|v| read_back(v, tick));
    }
    for (t, step) in program.steps.iter().enumerate() {
        if config.mode == Mode::Train && gets_gradient(program, step) {
            program.backward_reads(step).into_iter().for_each(|v| read_back(v, backward_tick(program, t)));
        }
    }

    let mut of = vec![None; program.values.len()];
    for &input in &program.inputs {
        tenants.push(Tenant { len: config.batch * program.sample_len(input), birth: 0, death: last_read[input] });
        of[input] = Some(tenants.len() - 1);
    }
    for (t, step) in program.steps.iter().enumerate() {
        let Some(y) = program.output(step).filter(|y| program.values[*y].unwritten.is_none()) else { continue };
        let now = forward_tick(t);
        let dying = in_place_operand(program, step).filter(|x| last_read[*x] == now);
        of[y] = match dying.and_then(|x| of[x]) {
            Some(tenant) => {
                tenants[tenant].death = last_read[y].max(now);
                Some(tenant)
            }
            None => {
                let len = config.batch * program.sample_len(y);
                tenants.push(Tenant { len, birth: now, death: last_read[y].max(now) });
                Some(tenants.len() - 1)
            }
        };
    }
    let back = again.iter().zip(&of).map(|(again, first)| again.or(*first)).collect();
    (of, back)
}

fn gradient_tenants(program: &Program, config: &PlanConfig, tenants: &mut Vec<Tenant>) -> Vec<Option<usize>> {
    let mut of: Vec<Option<usize>> = vec![None; program.values.len()];
    for (t, step) in program.steps.iter().enumerate().rev() {
        let Some(y) = program.output(step).filter(|_| gets_gradient(program, step)) else { continue };
        let now = backward_tick(program, t);
        let mut tenant = |v: ValueId| {
            tenants.push(Tenant { len: config.batch * program.sample_len(v), birth: now, death: now });
            tenants.len() - 1
        };
        // Without a reader, a tap's gradient comes from outside and is copied in.
        let of_y = *of[y].get_or_insert_with(|| tenant(y));
        let targets = || program.gradient_targets(step);
        let mut given_away = false;
        for (i, (x, may_inherit)) in targets().enumerate() {
            if of[x].is_some() || !program.values[x].needs_gradient {
                continue;
            }
            let twice = targets().enumerate().any(|(j, other)| j != i && other.0 == x);
            if may_inherit && !given_away && !twice {
                of[x] = Some(of_y);
                given_away = true;
            } else {
                of[x] = Some(tenant(x));
            }
        }
        tenants[of_y].death = now;
        for tenant in targets().filter_map(|(x, _)| of[x]) {
            tenants[tenant].death = now;
        }
    }
    of
}

/// Whether anything asks for the gradient of a step.
pub(super) fn gets_gradient(program: &Program, step: &Step) -> bool {
    program.output(step).is_some_and(|y| program.values[y].needs_gradient)
}

/// The operand whose memory the output may take over.
fn in_place_operand(program: &Program, step: &Step) -> Option<ValueId> {
    match *step {
        Step::Apply { norm, .. } => Some(program.norms[norm].z),
        Step::Relu { x, .. } => Some(x),
        Step::Add { a, b, .. } if a != b => Some(a),
        _ => None,
    }
}

/// Gives every tenant a slot: the longest first, each in the tightest slot that is free as long as it lives ("greedy by
/// size", arXiv:2001.03288).
fn share(tenants: &[Tenant]) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by_key(|&t| (std::cmp::Reverse(tenants[t].len), tenants[t].birth));
    let (mut slots, mut slot_of) = (Vec::<Vec<usize>>::new(), vec![0; tenants.len()]);
    for t in order {
        let meets =
            |other: &usize| tenants[*other].birth <= tenants[t].death && tenants[t].birth <= tenants[*other].death;
        // Slots are made longest first, so the last one that is free is the tightest.
        let slot = slots.iter().rposition(|slot| !slot.iter().any(meets)).unwrap_or(slots.len());
        if slot == slots.len() {
            slots.push(vec![]);
        }
        slots[slot].push(t);
        slot_of[t] = slot;
    }
    (slots.iter().map(|slot| tenants[slot[0]].len).collect(), slot_of)
}

/// Values that are alive at once, at most: no sharing of slots needs less.
#[cfg(test)]
pub(super) fn least(program: &Program, segments: &[Segment], config: &PlanConfig) -> usize {
    let mut tenants = Vec::new();
    value_tenants(program, segments, config, &mut tenants);
    if config.mode == Mode::Train {
        gradient_tenants(program, config, &mut tenants);
    }
    let alive = |tick| tenants.iter().filter(|t| (t.birth..=t.death).contains(&tick)).map(|t| t.len).sum();
    (0..=backward_tick(program, 0)).map(alive).max().unwrap_or(0)
}
