//! One MoCo step on synthetic images, part by part: `cargo bench -p moco-engine --bench step -- ARCH SIZE BATCH STEPS [f32 | bf16]`.
//!
//! Prints the fastest and the median time of each part in milliseconds; threads are rayon's (`RAYON_NUM_THREADS`). An
//! architecture with `+cifar` behind its name gets the stem for small images.

use std::time::Instant;

use moco_engine::ops::{
    InfoNceInputs, InfoNceWorkspace, ema, info_nce, l2_normalise, l2_normalise_backward, sgd_momentum,
};
use moco_engine::{CpuKernels, Element, Mode, Plan, PlanConfig, bf16};
use moco_models::arch::{ArchSpec, Projector, Stem};

const DIM: usize = 128;
const QUEUE: usize = 65536;
const PARTS: [&str; 7] =
    ["momentum update", "key forward", "query forward", "InfoNCE", "query backward", "SGD", "step"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let precision = std::env::args().skip(1).filter(|a| !a.starts_with("--")).nth(4);
    match precision.as_deref().unwrap_or("f32") {
        "f32" => run::<f32>(),
        "bf16" => run::<bf16>(),
        other => Err(format!("precision {other}: use f32 or bf16").into()),
    }
}

fn run<T: Element>() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds `--bench`; `cargo test` runs benches too and only wants to see them work.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let measured = std::env::args().any(|a| a == "--bench");
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let name = args.first().map_or("resnet18", String::as_str);
    let (size, batch) = (number(1, if measured { 224 } else { 32 })?, number(2, if measured { 16 } else { 2 })?);
    let steps = number(3, if measured { 4 } else { 1 })?;
    let stem = if name.ends_with("+cifar") { Stem::Cifar } else { Stem::ImageNet };
    let projector = Projector::Mlp { dim: DIM };
    let graph = ArchSpec { projector, stem, ..ArchSpec::new(name.trim_end_matches("+cifar")) }.build()?;
    let weights = moco_models::init::initialise(&graph, 1);
    let (mut params, mut buffers) = (weights.params.clone(), weights.buffers.clone());
    let (mut key_params, mut key_buffers) = (weights.params, weights.buffers);
    let (mut gradients, mut velocity) = (vec![0.0; params.len()], vec![0.0; params.len()]);

    let compile = |mode| {
        let config = PlanConfig::new(batch, size, size, mode).with_taps(&["projection"]);
        Plan::compile_with(&graph, &config, CpuKernels::<T>::default())
    };
    let (mut query_plan, mut key_plan) = (compile(Mode::Train)?, compile(Mode::Momentum)?);
    let images: Vec<f32> = (0..batch * size * size * 3).map(|i| ((i * 7919) % 2003) as f32 / 500.0 - 2.0).collect();
    let raw: Vec<f32> = (0..QUEUE * DIM).map(|i| ((i * 7919 + i / 128) % 2003) as f32 / 1000.0 - 1.0).collect();
    let mut queue = vec![0.0; raw.len()];
    l2_normalise(&raw, DIM, &mut queue);
    let mut unit = [(); 4].map(|()| vec![0.0; batch * DIM]);
    let mut workspace = InfoNceWorkspace::default();

    let mut times = vec![vec![]; PARTS.len()];
    let mut loss = 0.0;
    for step in 0..steps + 1 {
        let start = Instant::now();
        let mut marks = vec![];
        let mut mark = || marks.push(start.elapsed().as_secs_f64() * 1e3);
        ema(&mut key_params, &params, 0.999);
        mark();
        key_plan.forward(&key_params, &mut key_buffers, &images, batch)?;
        mark();
        query_plan.forward(&params, &mut buffers, &images, batch)?;
        mark();
        let [q, k, d_q, d_projection] = &mut unit;
        l2_normalise(query_plan.output("projection")?, DIM, q);
        l2_normalise(key_plan.output("projection")?, DIM, k);
        let inputs = InfoNceInputs { query: q, key: k, queue: &queue, dim: DIM, temperature: 0.2, same_image: None };
        loss = info_nce(&inputs, d_q, &mut workspace)?.loss;
        l2_normalise_backward(query_plan.output("projection")?, d_q, DIM, d_projection);
        mark();
        query_plan.backward(&params, &[("projection", d_projection)], &mut gradients)?;
        mark();
        sgd_momentum(&mut params, &gradients, &mut velocity, 0.03, 0.9, 1e-4);
        queue[..batch * DIM].copy_from_slice(k);
        mark();
        if step > 0 {
            let mut before = 0.0;
            for (i, mark) in marks.iter().enumerate() {
                times[i].push(mark - before);
                before = *mark;
            }
            times[PARTS.len() - 1].push(before);
        }
    }
    let memory = (query_plan.memory_bytes() + key_plan.memory_bytes()) >> 20;
    println!(
        "{name} {size} batch {batch}, {} threads, plans {memory} MiB, loss {loss:.4}",
        rayon::current_num_threads()
    );
    for (part, times) in PARTS.iter().zip(&mut times) {
        times.sort_by(f64::total_cmp);
        println!("  {part:16} {:9.1} min {:9.1} median", times[0], times[times.len() / 2]);
    }
    Ok(())
}
