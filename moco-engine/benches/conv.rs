//! Speed of every distinct convolution of a network, each pass, beside the peak of matrix products on the same threads.
//!
//!     cargo bench -p moco-engine --bench conv -- resnet50 224 16 [threads] [milliseconds per figure] [f32 | bf16] [json]
//!     cargo bench -p moco-engine --bench conv -- resnet18+cifar 32 128 1 300 bf16
//!
//! Each figure is the fastest of many runs, in GFLOP/s of the definition (borders counted as if they were data) and as a
//! share of a large matrix product in f32; Winograd's method needs fewer operations than the definition and may pass
//! 100 %. `json` prints one line for `benches/conv_table`. With `CPU_TIME=1` in the environment the time is the processor
//! time of all threads divided by their number: for machines with other work.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use moco_engine::kernels::conv::{ConvShape, Epilogue, Method, Packed, Pass, backward_data, backward_weights, forward};
use moco_engine::kernels::gemm::{Gemm, gemm};
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
    let precision = args.get(5).map_or("f32", String::as_str);
    let json = args.get(6).is_some_and(|a| a == "json");
    let layers = layers(name, size, batch)?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    pool.install(|| {
        let budget = Duration::from_millis(millis);
        let peaks =
            Peaks { fma: fma_peak() * threads as f64, gemm: gemm_peak(budget), bf16: bf16_peak() * threads as f64 };
        let rows: Vec<Row> = layers
            .iter()
            .enumerate()
            .map(|(i, &(shape, times))| Row { shape, times, seconds: time_passes(&shape, i > 0, budget) })
            .collect();
        if json {
            println!("{}", to_json(name, size, batch, threads, precision, &peaks, &rows));
        } else {
            println!("{name} at {size}, batch {batch}, {threads} thread(s), {precision}");
            print_table(&peaks, &rows);
        }
    });
    Ok(())
}

/// GFLOP/s of all threads: multiply-adds between registers, a large matrix product, products of bf16 between registers.
struct Peaks {
    fma: f64,
    gemm: f64,
    bf16: f64,
}

/// A layer, how often it occurs, and the seconds of forward, data gradient (0 = not needed), weight gradient, packing.
struct Row {
    shape: ConvShape,
    times: usize,
    seconds: [f64; 4],
}

impl Row {
    fn rate(&self, pass: usize) -> f64 {
        self.shape.flops() / self.seconds[pass] / 1e9
    }

    fn label(&self) -> String {
        let s = &self.shape;
        let groups = if s.groups > 1 { format!(" g{}", s.groups) } else { String::new() };
        format!("{}×{} {}→{} {}×{} /{}{groups}", s.h, s.w, s.c_in, s.c_out, s.kernel, s.kernel, s.stride)
    }
}

const PASSES: [&str; 3] = ["forward", "data gradient", "weight gradient"];

fn print_table(peaks: &Peaks, rows: &[Row]) {
    let Peaks { fma, gemm, bf16 } = peaks;
    println!("GFLOP/s: matrix product {gemm:.0}, multiply-adds {fma:.0}, bf16 {bf16:.0}");
    println!(
        "{:>30} {:>3}  {:13} {:>7}  {:>21} {:>21} {:>21}",
        "layer", "×", "method", "GFLOP", PASSES[0], PASSES[1], PASSES[2]
    );
    for row in rows {
        let figure = |pass: usize| {
            let rate = row.rate(pass);
            let text = format!("{rate:.1} ({:.0}%) {:5.1} ms", 100.0 * rate / gemm, 1e3 * row.seconds[pass]);
            if row.seconds[pass] > 0.0 { text } else { "–".into() }
        };
        println!(
            "{:>30} {:>3}  {:13} {:7.2}  {:>21} {:>21} {:>21}",
            row.label(),
            row.times,
            Method::of(&row.shape).to_string(),
            row.shape.flops() / 1e9,
            figure(0),
            figure(1),
            figure(2)
        );
    }
    let total = |pass: usize| 1e3 * rows.iter().map(|r| r.seconds[pass] * r.times as f64).sum::<f64>();
    let [forward, data, weights, packing] = [0, 1, 2, 3].map(total);
    println!(
        "all: forward {forward:.1} ms, data gradient {data:.1} ms, weight gradient {weights:.1} ms, packing {packing:.1} ms"
    );
}

fn to_json(
    name: &str,
    size: usize,
    batch: usize,
    threads: usize,
    precision: &str,
    peaks: &Peaks,
    rows: &[Row],
) -> String {
    let rows: Vec<String> = rows
        .iter()
        .map(|row| {
            let passes: Vec<String> = (0..3)
                .filter(|pass| row.seconds[*pass] > 0.0)
                .map(|pass| {
                    let (ms, rate) = (1e3 * row.seconds[pass], row.rate(pass));
                    let share = rate / peaks.gemm;
                    format!(r#""{}": {{"ms": {ms:.3}, "gflops": {rate:.1}, "share": {share:.3}}}"#, PASSES[pass])
                })
                .collect();
            format!(
                r#"{{"layer": "{}", "times": {}, "method": "{}", "gflop": {:.3}, "packing_ms": {:.3}, {}}}"#,
                row.label(),
                row.times,
                Method::of(&row.shape),
                row.shape.flops() / 1e9,
                1e3 * row.seconds[3],
                passes.join(", ")
            )
        })
        .collect();
    format!(
        r#"{{"network": "{name}", "size": {size}, "batch": {batch}, "threads": {threads}, "precision": "{precision}", "gemm_gflops": {:.1}, "fma_gflops": {:.1}, "layers": [{}]}}"#,
        peaks.gemm,
        peaks.fma,
        rows.join(", ")
    )
}

/// GFLOP/s of a large matrix product in f32 on the current threads.
fn gemm_peak(budget: Duration) -> f64 {
    let (m, n, k) = if budget.is_zero() { (64, 64, 64) } else { (4480, 1024, 1024) };
    let (a, b, mut c) = (vec![0.3f32; m * k], vec![0.2f32; k * n], vec![0.0f32; m * n]);
    let seconds = fastest(2 * budget, || gemm(Gemm::new(m, n, k), &a, &b, &mut c));
    2.0 * (m * n * k) as f64 / seconds / 1e9
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
