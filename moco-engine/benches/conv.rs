//! Speed of every distinct convolution of a network, each pass, beside the peak of the core's multiply-add units.
//!
//!     cargo bench -p moco-engine --bench conv -- resnet50 224 16 [threads] [milliseconds per figure] [f32 | bf16]
//!     cargo bench -p moco-engine --bench conv -- resnet18+cifar 32 128 1 300 bf16
//!
//! Each figure is the fastest of many runs, in GFLOP/s and as a share of the peak of all threads in f32. With `CPU_TIME=1` in the
//! environment the time is the processor time of all threads divided by their number: for machines with other work.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use moco_engine::kernels::conv::{ConvShape, Epilogue, Packed, Pass, backward_data, backward_weights, forward};
use moco_engine::{Element, bf16};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::{Op, Shape};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds `--bench`; `cargo test` runs benches too and only wants to see them work.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let measured = std::env::args().any(|a| a == "--bench");
    let name = args.first().map_or("resnet50", String::as_str);
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |a| a.parse::<usize>());
    let (size, batch) = (number(1, if measured { 224 } else { 32 })?, number(2, if measured { 16 } else { 1 })?);
    let (threads, millis) = (number(3, 1)?, number(4, if measured { 300 } else { 0 })? as u64);
    let time_passes = match args.get(5).map_or("f32", String::as_str) {
        "f32" => time_passes::<f32>,
        "bf16" => time_passes::<bf16>,
        other => return Err(format!("precision {other}: use f32 or bf16").into()),
    };
    let layers = layers(name, size, batch)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| {
        let peak = fma_peak() * threads as f64;
        let pairs = bf16_peak() * threads as f64;
        println!(
            "{name} at {size}, batch {batch}, {threads} thread(s); peak in f32 {peak:.0} GFLOP/s, bf16 {pairs:.0}"
        );
        println!("{:>38} {:>7}  {:>13} {:>13} {:>13}  pack", "layer (times)", "GFLOP", "forward", "dgrad", "wgrad");
        let mut total = [0.0; 4];
        for (i, (s, times)) in layers.iter().enumerate() {
            let seconds = time_passes(s, i > 0, Duration::from_millis(millis));
            let rate = |t: f64| format!("{:6.1} ({:3.0}%)", s.flops() / t / 1e9, 100.0 * s.flops() / t / 1e9 / peak);
            let dx = if i > 0 { rate(seconds[1]) } else { "-".into() };
            println!(
                "{:>38} {:7.2}  {:>13} {dx:>13} {:>13}  {:.2} ms",
                format!(
                    "{}×{} {}→{} {}×{} /{} g{} ({times})",
                    s.h, s.w, s.c_in, s.c_out, s.kernel, s.kernel, s.stride, s.groups
                ),
                s.flops() / 1e9,
                rate(seconds[0]),
                rate(seconds[2]),
                1e3 * seconds[3],
            );
            total.iter_mut().zip(seconds).for_each(|(total, t)| *total += t * *times as f64);
        }
        let flops: f64 = layers.iter().map(|(s, times)| s.flops() * *times as f64).sum();
        let ms = total.map(|t| t * 1e3);
        println!(
            "whole network: {:.1} GFLOP; forward {:.1} ms, dgrad {:.1} ms, wgrad {:.1} ms, packing {:.1} ms",
            flops / 1e9,
            ms[0],
            ms[1],
            ms[2],
            ms[3]
        );
    });
    Ok(())
}

/// The distinct convolutions of a network and how often each occurs.
fn layers(name: &str, size: usize, n: usize) -> moco_models::Result<Vec<(ConvShape, usize)>> {
    let mut spec = ArchSpec::new(name.trim_end_matches("+cifar"));
    if name.ends_with("+cifar") {
        spec.stem = Stem::Cifar;
    }
    let graph = spec.build()?;
    let shapes = graph.shapes(size, size)?;
    let mut layers: Vec<(ConvShape, usize)> = vec![];
    for node in graph.nodes() {
        let Op::Conv2d { in_channels: c_in, out_channels: c_out, kernel, stride, padding, groups, .. } = node.op else {
            continue;
        };
        let Shape::Map { height: h, width: w, .. } = shapes[node.inputs[0].0] else { continue };
        let shape = ConvShape { n, h, w, c_in, c_out, kernel, stride, padding, groups };
        match layers.iter_mut().find(|(s, _)| *s == shape) {
            Some((_, times)) => *times += 1,
            None => layers.push((shape, 1)),
        }
    }
    Ok(layers)
}

/// Seconds of forward (with statistics), data gradient, weight gradient, and packing for both.
fn time_passes<T: Element>(s: &ConvShape, dgrad: bool, budget: Duration) -> [f64; 4] {
    let (x, dy, w) = (vec![T::narrow(0.3); s.x_len()], vec![T::narrow(0.2); s.y_len()], vec![0.1; s.weight_len()]);
    let (mut y, mut dx, mut dw) = (vec![T::ONE; s.y_len()], vec![T::ONE; s.x_len()], vec![0.0; s.weight_len()]);
    let mut stats = vec![0.0; 2 * s.n * s.c_out];
    let (mut fw, mut bw) = (Packed::<T>::with_capacity(0), Packed::<T>::with_capacity(0));
    fw.repack(s, Pass::Forward, &w);
    bw.repack(s, Pass::BackwardData, &w);
    let f = fastest(budget, || {
        forward(s, &x, &fw, &mut y, None, Epilogue { stats: Some(&mut stats), ..Epilogue::default() })
    });
    let d = if dgrad { fastest(budget, || backward_data(s, &dy, &bw, &mut dx, false)) } else { 0.0 };
    let g = fastest(budget, || backward_weights(s, &x, &dy, &mut dw, None));
    let p = fastest(budget / 4, || {
        fw.repack(s, Pass::Forward, &w);
        bw.repack(s, Pass::BackwardData, &w);
    });
    [f, d, g, p]
}

fn fastest(budget: Duration, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while start.elapsed() < budget || runs < if budget.is_zero() { 1 } else { 3 } {
        let t = clock();
        run();
        best = best.min(clock() - t);
        runs += 1;
    }
    best
}

/// Seconds: wall time, or processor time for each thread.
fn clock() -> f64 {
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
    (time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64) / rayon::current_num_threads() as f64
}

/// GFLOP/s of one core on multiply-adds between registers.
fn fma_peak() -> f64 {
    const N: usize = 1 << 20;
    let (mut best, mut sink) = (0.0f64, 0.0);
    for _ in 0..20 {
        let t = Instant::now();
        let flops = {
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the feature was just detected.
                    #[expect(unsafe_code, reason = "a loop for one CPU feature")]
                    unsafe {
                        sink += avx512_loop(N);
                    }
                    2.0 * (N * 12 * 16) as f64
                } else if is_x86_feature_detected!("fma") {
                    // SAFETY: the feature was just detected.
                    #[expect(unsafe_code, reason = "a loop for one CPU feature")]
                    unsafe {
                        sink += fma_loop(N);
                    }
                    2.0 * (N * 12 * 8) as f64
                } else {
                    f64::NAN
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            f64::NAN
        };
        best = best.max(flops / t.elapsed().as_secs_f64() / 1e9);
    }
    std::hint::black_box(sink);
    best
}

/// GFLOP/s of one core on products of bf16 between registers, where the CPU has them.
fn bf16_peak() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16") {
        const N: usize = 1 << 20;
        let mut best = 0.0f64;
        for _ in 0..20 {
            let t = Instant::now();
            // SAFETY: the features were just detected.
            #[expect(unsafe_code, reason = "a loop for one CPU feature")]
            std::hint::black_box(unsafe { bf16_loop(N) });
            best = best.max(2.0 * (N * 12 * 32) as f64 / t.elapsed().as_secs_f64() / 1e9);
        }
        return best;
    }
    f64::NAN
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_loop(n: usize) -> f32 {
    use std::arch::x86_64::*;
    let factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(std::hint::black_box(0.5)), _mm512_set1_ps(0.25));
    let mut s = [_mm512_set1_ps(1.0); 12];
    for _ in 0..n {
        for s in &mut s {
            *s = _mm512_dpbf16_ps(*s, factor, factor);
        }
    }
    s.iter().map(|s| _mm512_reduce_add_ps(*s)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512_loop(n: usize) -> f32 {
    use std::arch::x86_64::*;
    let factor = _mm512_set1_ps(std::hint::black_box(0.999));
    let mut s = [_mm512_set1_ps(1.0); 12];
    for _ in 0..n {
        for s in &mut s {
            *s = _mm512_fmadd_ps(*s, factor, factor);
        }
    }
    let mut sum = s[0];
    for s in &s[1..] {
        sum = _mm512_add_ps(sum, *s);
    }
    _mm512_reduce_add_ps(sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_loop(n: usize) -> f32 {
    use std::arch::x86_64::*;
    let factor = _mm256_set1_ps(std::hint::black_box(0.999));
    let mut s = [_mm256_set1_ps(1.0); 12];
    for _ in 0..n {
        for s in &mut s {
            *s = _mm256_fmadd_ps(*s, factor, factor);
        }
    }
    let mut sum = s[0];
    for s in &s[1..] {
        sum = _mm256_add_ps(sum, *s);
    }
    _mm256_cvtss_f32(sum)
}
