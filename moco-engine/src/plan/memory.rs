//! Who lives when, and which buffers they share.
//!
//! The clock counts steps: step `t` of `s` runs at `t` going forward and at `2s − 1 − t` going backward. Every value and
//! every gradient gets a range of that clock; ranges that do not meet share a slot. In
//! [`Mode::Train`](super::Mode::Train) a value lives until the last gradient that reads it: convolution outputs until their
//! batch norm's gradient, block outputs until the gradient of the convolution behind them; results of batch norm and
//! ReLU between two convolutions are never written (see [`Program::build`]).

use super::program::{Program, Step, ValueId};
use super::{Mode, PlanConfig};

/// Slots and who is in which.
#[derive(Debug)]
pub(super) struct Memory {
    /// Length of each slot in values, for the largest batch.
    pub slots: Vec<usize>,
    /// Slot of each value; `None` if it is not written out.
    pub value: Vec<Option<usize>>,
    /// Slot of each value's gradient; `None` if nobody needs it. A gradient that shares its slot with the gradient of the
    /// output of a step is computed in place by that step.
    pub gradient: Vec<Option<usize>>,
}

/// Something that needs memory from `birth` to `death`.
struct Tenant {
    len: usize,
    birth: usize,
    death: usize,
}

impl Memory {
    pub(super) fn assign(program: &Program, config: &PlanConfig) -> Memory {
        let mut tenants = Vec::new();
        let value = value_tenants(program, config, &mut tenants);
        let gradient = match config.mode {
            Mode::Train => gradient_tenants(program, config, &mut tenants),
            Mode::Eval | Mode::Momentum => vec![None; program.values.len()],
        };
        let (slots, slot_of) = share(&tenants);
        let place = |tenants: Vec<Option<usize>>| tenants.into_iter().map(|t| t.map(|t| slot_of[t])).collect();
        Memory { slots, value: place(value), gradient: place(gradient) }
    }
}

fn value_tenants(program: &Program, config: &PlanConfig, tenants: &mut Vec<Tenant>) -> Vec<Option<usize>> {
    let steps = program.steps.len();
    let mut last_read = vec![0; program.values.len()];
    for (t, step) in program.steps.iter().enumerate() {
        for v in program.reads(step) {
            last_read[v] = last_read[v].max(t);
        }
        if config.mode == Mode::Train && gets_gradient(program, step) {
            for v in program.backward_reads(step) {
                last_read[v] = last_read[v].max(2 * steps - 1 - t);
            }
        }
    }

    let mut of = vec![None; program.values.len()];
    tenants.push(Tenant { len: config.batch * program.sample_len(0), birth: 0, death: last_read[0] });
    of[0] = Some(0);
    for (t, step) in program.steps.iter().enumerate() {
        let Some(y) = program.output(step).filter(|y| program.values[*y].unwritten.is_none()) else { continue };
        let dying = in_place_operand(program, step).filter(|x| last_read[*x] == t);
        of[y] = match dying.and_then(|x| of[x]) {
            Some(tenant) => {
                tenants[tenant].death = last_read[y].max(t);
                Some(tenant)
            }
            None => {
                let len = config.batch * program.sample_len(y);
                tenants.push(Tenant { len, birth: t, death: last_read[y].max(t) });
                Some(tenants.len() - 1)
            }
        };
    }
    of
}

fn gradient_tenants(program: &Program, config: &PlanConfig, tenants: &mut Vec<Tenant>) -> Vec<Option<usize>> {
    let mut of: Vec<Option<usize>> = vec![None; program.values.len()];
    for (t, step) in program.steps.iter().enumerate().rev() {
        let Some(y) = program.output(step).filter(|_| gets_gradient(program, step)) else { continue };
        let now = 2 * program.steps.len() - 1 - t;
        let mut tenant = |v: ValueId| {
            tenants.push(Tenant { len: config.batch * program.sample_len(v), birth: now, death: now });
            tenants.len() - 1
        };
        // Without a reader, a tap's gradient comes from outside and is copied in.
        let of_y = *of[y].get_or_insert_with(|| tenant(y));
        let targets = program.gradient_targets(step);
        let mut given_away = false;
        for (i, (x, may_inherit)) in targets.clone().enumerate() {
            if of[x].is_some() || !program.values[x].needs_gradient {
                continue;
            }
            let twice = targets.clone().enumerate().any(|(j, other)| j != i && other.0 == x);
            if may_inherit && !given_away && !twice {
                of[x] = Some(of_y);
                given_away = true;
            } else {
                of[x] = Some(tenant(x));
            }
        }
        tenants[of_y].death = now;
        for tenant in targets.filter_map(|(x, _)| of[x]) {
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

/// Gives every tenant a slot; a free slot is taken where it has to grow least, then where it wastes least.
fn share(tenants: &[Tenant]) -> (Vec<usize>, Vec<usize>) {
    let mut order: Vec<usize> = (0..tenants.len()).collect();
    order.sort_by_key(|&t| (tenants[t].birth, std::cmp::Reverse(tenants[t].len)));
    let (mut slots, mut free_after, mut slot_of) = (Vec::<usize>::new(), Vec::<usize>::new(), vec![0; tenants.len()]);
    for t in order {
        let Tenant { len, birth, death } = tenants[t];
        let best = (0..slots.len())
            .filter(|&s| free_after[s] < birth)
            .min_by_key(|&s| (len.saturating_sub(slots[s]), slots[s].saturating_sub(len)));
        let slot = match best {
            Some(slot) if slots[slot] > 0 => slot,
            _ => {
                slots.push(0);
                free_after.push(0);
                slots.len() - 1
            }
        };
        slots[slot] = slots[slot].max(len);
        free_after[slot] = death;
        slot_of[t] = slot;
    }
    (slots, slot_of)
}
