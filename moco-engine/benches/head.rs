//! Speed of what heads are made of, one step at a time: `cargo bench -p moco-engine --bench head -- [BATCH] [f32 | bf16]`.
//!
//! Prints the fastest time of each in milliseconds, forward and backward, for the rows that `benches/peers/head_ops_torch.py`
//! prints of PyTorch; threads are rayon's (`RAYON_NUM_THREADS`). With `-- model ARCH TASK HEAD SIZE BATCH` (say `model resnet18
//! detect fcos 256 4`): a network with a head, with more and more of it frozen, and what its plan holds.

use std::time::{Duration, Instant};

use moco_engine::kernels::conv::ConvShape;
use moco_engine::kernels::{
    BnGroups, ConvInput, MapShape, Mask, Need, NormOffsets, NormShape, Offsets, Residual, ResizeShape, SliceShape,
    Statistics,
};
use moco_engine::{CpuKernels, Element, Kernels, Mode, Plan, PlanConfig, bf16};
use moco_models::arch::ArchSpec;
use moco_models::heads::{HeadSpec, Task};
use moco_models::{Graph, Interpolation};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds `--bench`; `cargo test` runs benches too and only wants to see them work.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let measured = std::env::args().any(|a| a == "--bench");
    if let [model, arch, task, head, size, batch] = &args[..]
        && model == "model"
    {
        return models(arch, task, head, size.parse()?, batch.parse()?);
    }
    let (batch, scale) = (args.first().map_or(Ok(if measured { 4 } else { 1 }), |a| a.parse())?, !measured as usize);
    let bench = Bench { batch, shrink: 1 + 7 * scale, budget: Duration::from_millis(if measured { 400 } else { 0 }) };
    match args.get(1).map_or("f32", String::as_str) {
        "f32" => CpuKernels::<f32>::enter(|| bench.run::<f32>()),
        "bf16" => CpuKernels::<bf16>::enter(|| bench.run::<bf16>()),
        other => return Err(format!("precision {other}: use f32 or bf16").into()),
    }
    Ok(())
}

/// Rows of a whole network: forward and backward of plans that train less and less of it, and their memory.
fn models(arch: &str, task: &str, head: &str, size: usize, batch: usize) -> Result<(), Box<dyn std::error::Error>> {
    let task = match task {
        "classify" => Task::Classify,
        "segment" => Task::Segment,
        "detect" => Task::Detect,
        other => return Err(format!("task {other}: use classify, segment or detect").into()),
    };
    let backbone = ArchSpec::new(arch).build()?;
    let spec = HeadSpec::parse(task, head, 5)?;
    let graph = spec.attach(&backbone)?;
    let weights = moco_models::init::initialise(&graph, 1);
    let taps: Vec<String> = spec.outputs(&graph)?.into_iter().map(|output| output.tap).collect();
    let taps: Vec<&str> = taps.iter().map(String::as_str).collect();
    let read = graph.taps_read_by("head.")?;
    let read: Vec<&str> = read.iter().map(String::as_str).collect();
    let names: Vec<String> = graph.nodes().iter().map(|n| n.name.clone()).filter(|n| !n.starts_with("head.")).collect();
    let stages = ["conv1", "bn1", "layer1", "layer2"].map(String::from).to_vec();
    let bench = Bench { batch, shrink: 1, budget: Duration::from_secs(4) };
    let train = PlanConfig::new(batch, size, size, Mode::Train).with_taps(&taps);
    let eval = PlanConfig::new(batch, size, size, Mode::Eval);
    println!(
        "{:<42} {:>9} {:>9} {:>9}",
        format!("{arch}, {spec}, {size}, batch {batch}"),
        "forward",
        "backward",
        "MiB"
    );
    for (what, config) in [
        ("all trained", train.clone()),
        ("batch norm frozen", train.clone().with_running_norms(names.clone())),
        ("two stages frozen", train.clone().with_running_norms(names.clone()).with_frozen(stages)),
        ("backbone frozen", train.clone().with_running_norms(names.clone()).with_frozen(names.clone())),
        ("features given", train.with_given(&read)),
        ("evaluation", eval.clone().with_taps(&taps)),
        ("evaluation of the backbone", eval.with_taps(&read)),
    ] {
        let mut plan = Plan::compile(&graph, &config)?;
        let lens = read.iter().map(|tap| plan_len(&graph, size, tap)).sum::<Result<usize, moco_models::Error>>()?;
        let images = values::<f32>(batch * if config.given.is_empty() { 3 * size * size } else { lens });
        let (mut buffers, mut gradients) = (weights.buffers.clone(), vec![0.0; weights.params.len()]);
        let cotangents: Vec<Vec<f32>> = taps
            .iter()
            .map(|tap| Ok(values(batch * plan_len(&graph, size, tap)?)))
            .collect::<Result<_, moco_models::Error>>()?;
        let d_taps: Vec<(&str, &[f32])> = taps.iter().zip(&cotangents).map(|(tap, d)| (*tap, &d[..])).collect();
        let (mut forward, mut backward) = (Duration::MAX, Duration::ZERO);
        let mut fastest = Duration::MAX;
        bench.time(|| {
            let begin = Instant::now();
            plan.forward(&weights.params, &mut buffers, &images, batch).expect("the sizes are the plan's");
            let between = Instant::now();
            if config.mode == Mode::Train {
                plan.backward(&weights.params, &d_taps, &mut gradients).expect("a pass has gone forward");
            }
            forward = forward.min(between - begin);
            fastest = fastest.min(between.elapsed());
            backward = fastest;
        });
        let mebibytes = plan.memory_bytes() as f64 / (1 << 20) as f64;
        let [forward, backward] = [forward, backward].map(|t| 1e3 * t.as_secs_f64());
        println!("{what:<42} {forward:>9.1} {backward:>9.1} {mebibytes:>9.1}");
    }
    Ok(())
}

fn plan_len(graph: &Graph, size: usize, tap: &str) -> Result<usize, moco_models::Error> {
    Ok(graph.shapes(size, size)?[graph.tap(tap)?.0].numel())
}

#[derive(Clone, Copy)]
struct Bench {
    batch: usize,
    /// Divides the sides of maps.
    shrink: usize,
    budget: Duration,
}

impl Bench {
    fn run<T: Element>(self) {
        println!("{:<42} {:>9} {:>9}", format!("batch {}", self.batch), "forward", "backward");
        for (side, c_in, c_out) in [(64, 128, 128), (32, 256, 256), (128, 64, 64), (64, 128, 2)] {
            self.conv::<T>(side / self.shrink, c_in, c_out);
        }
        for (side, channels) in [(64, 128), (16, 256)] {
            self.group_norm::<T>(side / self.shrink, channels);
        }
        for (from, to, channels, interpolation) in [
            (32, 64, 128, Interpolation::Nearest),
            (32, 64, 128, Interpolation::Bilinear),
            (128, 512, 2, Interpolation::Bilinear),
            (128, 512, 21, Interpolation::Bilinear),
        ] {
            self.resize::<T>(from / self.shrink, to / self.shrink, channels, interpolation);
        }
        self.concat::<T>(64 / self.shrink, [128, 128]);
    }

    /// 3×3 with bias and ReLU.
    fn conv<T: Element>(self, side: usize, c_in: usize, c_out: usize) {
        let s = ConvShape { n: self.batch, h: side, w: side, c_in, c_out, kernel: 3, stride: 1, padding: 1, groups: 1 };
        let mut k = ready::<T>(Need::Conv(s));
        let (x, mut y) = (values::<T>(s.x_len()), values::<T>(s.y_len()));
        let (mut dy, mut dx) = (y.clone(), x.clone());
        let params: Vec<f32> = values::<f32>(s.weight_len() + c_out).iter().map(|v| v * 0.05).collect();
        let mut gradients = params.clone();
        let at = Offsets { weight: 0, bias: Some(s.weight_len()) };
        let forward =
            self.time(|| k.conv_forward(&s, ConvInput { x: &x, norm: None }, &params, at, false, true, &mut y));
        let backward = self.time(|| {
            k.relu_mask(&y, &mut dy);
            k.conv_backward_params(&s, ConvInput { x: &x, norm: None }, &dy, at, &mut gradients);
            k.conv_backward_data(&s, &dy, &params, at, &mut dx, false);
        });
        print(format!("conv 3×3 {c_in}→{c_out}, bias, ReLU, {side}×{side}"), forward, backward);
    }

    fn group_norm<T: Element>(self, side: usize, channels: usize) {
        let map = MapShape { n: self.batch, pixels: side * side, channels };
        let (groups, statistics) = (BnGroups::Ranks(self.batch), Statistics::Image { groups: 32 });
        let shape = NormShape { map, groups, statistics, eps: 1e-5, momentum: 0.0 };
        let mut k = ready::<T>(Need::Norm(shape));
        let (z, mut y, mut dy) = (values::<T>(map.len()), values::<T>(map.len()), values::<T>(map.len()));
        let mut stats = vec![0.0; CpuKernels::<T>::norm_stats_len(&shape)];
        let params = vec![1.0; 2 * channels];
        let mut gradients = params.clone();
        let at = NormOffsets { weight: 0, bias: channels, running_mean: 0, running_var: 0 };
        let forward = self.time(|| {
            k.norm_image_stats(&shape, &z, false, &params, at, &mut stats);
            k.norm_apply(&shape, Some(&z), &stats, Residual::None, true, &mut y);
        });
        let backward = self.time(|| {
            k.norm_backward_reduce(&shape, &z, &mut stats, Mask::Recompute, &mut dy, at, &mut gradients);
            k.norm_backward_apply(&shape, Some(&z), &stats, true, Some(&dy), &mut y, false);
        });
        print(format!("group norm 32, ReLU, {channels} channels, {side}×{side}"), forward, backward);
    }

    fn resize<T: Element>(self, from: usize, to: usize, channels: usize, interpolation: Interpolation) {
        let shape = ResizeShape { n: self.batch, input: [from; 2], output: [to; 2], channels, interpolation };
        let mut k = ready::<T>(Need::Resize(shape));
        let mut x = values::<T>(self.batch * from * from * channels);
        let mut y = values::<T>(self.batch * to * to * channels);
        let forward = self.time(|| k.resize(&shape, &x, &mut y));
        let backward = self.time(|| k.resize_backward(&shape, &y, &mut x, false));
        print(format!("{interpolation:?} {from}→{to}, {channels} channels"), forward, backward);
    }

    fn concat<T: Element>(self, side: usize, channels: [usize; 2]) {
        let of = channels[0] + channels[1];
        let rows = self.batch * side * side;
        let mut k = CpuKernels::<T>::default();
        let mut parts = channels.map(|channels| values::<T>(rows * channels));
        let mut y = values::<T>(rows * of);
        let shapes = [0, 1].map(|i| SliceShape { rows, channels: channels[i], first: i * channels[0], of });
        let forward = self.time(|| (0..2).for_each(|i| k.insert_channels(&shapes[i], &parts[i], &mut y)));
        let backward = self.time(|| (0..2).for_each(|i| k.take_channels(&shapes[i], &y, &mut parts[i], false)));
        print(format!("concat {}+{} channels, {side}×{side}", channels[0], channels[1]), forward, backward);
    }

    fn time(self, mut run: impl FnMut()) -> Duration {
        let start = Instant::now();
        let mut fastest = Duration::MAX;
        loop {
            let begin = Instant::now();
            run();
            fastest = fastest.min(begin.elapsed());
            if start.elapsed() >= self.budget {
                return fastest;
            }
        }
    }
}

fn ready<T: Element>(need: Need) -> CpuKernels<T> {
    let mut kernels = CpuKernels::default();
    kernels.expect(&need, true);
    kernels.allocate_workspace().expect("benches fit into memory");
    kernels
}

fn values<T: Element>(len: usize) -> Vec<T> {
    (0..len).map(|i| T::narrow(((i * 7919) % 2003) as f32 / 1000.0 - 1.0)).collect()
}

fn print(what: String, forward: Duration, backward: Duration) {
    println!("{what:<42} {:>9.3} {:>9.3}", 1e3 * forward.as_secs_f64(), 1e3 * backward.as_secs_f64());
}
