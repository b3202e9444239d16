//! Time of one MoCo v2 training step without data: two forward passes, InfoNCE, backward pass, SGD, momentum update.
//!
//!     cargo run --release -p moco-engine --example step_bench -- resnet50 224 16 [threads] [steps] [queue]
//!     cargo run --release -p moco-engine --example step_bench -- resnet18-cifar 32 128
//!
//! Prints the fastest step and its parts in milliseconds. With `CPU_TIME=1` in the environment the time is the processor
//! time of all threads divided by their number: for machines with other work.

use std::sync::LazyLock;
use std::time::Instant;

use moco_engine::ops::{
    InfoNceInputs, InfoNceWorkspace, ema, info_nce, l2_normalise, l2_normalise_backward, sgd_momentum,
};
use moco_engine::{Mode, Plan, PlanConfig};
use moco_models::arch::{ArchSpec, Projector, Stem};

const DIM: usize = 128;
const PARTS: [&str; 6] = ["momentum update", "forward (query)", "forward (key)", "InfoNCE", "backward", "SGD"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |i: usize, default: &str| args.get(i).cloned().unwrap_or(default.into());
    let (name, size, batch): (_, usize, usize) = (arg(0, "resnet50"), arg(1, "224").parse()?, arg(2, "16").parse()?);
    let (threads, steps, queue): (usize, usize, usize) =
        (arg(3, "2").parse()?, arg(4, "5").parse()?, arg(5, "65536").parse()?);

    let mut spec = ArchSpec::new(name.trim_end_matches("-cifar"));
    spec.projector = Projector::Mlp { dim: DIM };
    if name.ends_with("-cifar") {
        spec.stem = Stem::Cifar;
    }
    let graph = spec.build()?;
    let plan = |mode| Plan::compile(&graph, &PlanConfig::new(batch, size, size, mode).with_taps(&["projection"]));
    let (mut query_plan, mut key_plan) = (plan(Mode::Train)?, plan(Mode::Momentum)?);
    let mut query = moco_models::init::initialise(&graph, 0);
    let mut key = query.clone();
    let (mut gradients, mut velocity) = (vec![0.0; query.params.len()], vec![0.0; query.params.len()]);
    let images: Vec<f32> = noise(batch * size * size * spec.in_channels);
    let mut keys = noise(queue * DIM);
    l2_normalise(&keys.clone(), DIM, &mut keys);
    let mut workspace = InfoNceWorkspace::default();
    let mut rows: [Vec<f32>; 4] = std::array::from_fn(|_| vec![0.0; batch * DIM]);

    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let mut best = [f64::MAX; PARTS.len()];
    let mut fastest = f64::MAX;
    let mut loss = 0.0;
    for _ in 0..=steps {
        pool.install(|| -> Result<(), moco_engine::Error> {
            let [q, k, dq, dp] = &mut rows;
            let mut times = [0.0; PARTS.len() + 1];
            times[0] = clock(threads);
            ema(&mut key.params, &query.params, 0.999);
            times[1] = clock(threads);
            query_plan.forward(&query.params, &mut query.buffers, &images, batch)?;
            l2_normalise(query_plan.output("projection")?, DIM, q);
            times[2] = clock(threads);
            key_plan.forward(&key.params, &mut key.buffers, &images, batch)?;
            l2_normalise(key_plan.output("projection")?, DIM, k);
            times[3] = clock(threads);
            let inputs = InfoNceInputs { query: q, key: k, queue: &keys, dim: DIM, temperature: 0.2, same_image: None };
            loss = info_nce(&inputs, dq, &mut workspace)?.loss;
            l2_normalise_backward(query_plan.output("projection")?, dq, DIM, dp);
            times[4] = clock(threads);
            query_plan.backward(&query.params, &[("projection", dp)], &mut gradients)?;
            times[5] = clock(threads);
            sgd_momentum(&mut query.params, &gradients, &mut velocity, 0.03, 0.9, 1e-4);
            times[6] = clock(threads);
            for (i, best) in best.iter_mut().enumerate() {
                *best = best.min(times[i + 1] - times[i]);
            }
            fastest = fastest.min(times[6] - times[0]);
            Ok(())
        })?;
    }
    println!(
        "{name} at {size}, batch {batch}, {threads} thread(s): fastest step {:.1} ms, loss {loss:.4}",
        1e3 * fastest
    );
    for (part, time) in PARTS.iter().zip(best) {
        println!("  {part:<16} {:8.1} ms", 1e3 * time);
    }
    println!("  plans {} + {} MiB", query_plan.memory_bytes() >> 20, key_plan.memory_bytes() >> 20);
    Ok(())
}

fn noise(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Seconds: wall time, or processor time for each thread.
fn clock(threads: usize) -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    if std::env::var_os("CPU_TIME").is_none() {
        return START.elapsed().as_secs_f64();
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    #[expect(unsafe_code, reason = "the standard library has no processor time")]
    unsafe {
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time);
    }
    (time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64) / threads as f64
}
