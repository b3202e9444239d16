//! Backbones against torchvision in float64: features, gradients and running statistics of one network.

use std::collections::BTreeSet;
use std::path::Path;

use moco_engine::kernels::ReferenceKernels;
use moco_engine::{Kernels, Mode, Plan, PlanConfig};
use moco_models::arch::ArchSpec;
use moco_models::{FlatLayout, Graph, Shape, Weights};
use moco_tests::generator;
use moco_tests::reference::Reference;
use moco_tests::tolerance::{FEATURES, Findings, GRADIENTS, RelativeL2, TIMES_TORCH, norm, relative_l2, sample};

/// Relative error of an f32 sum of the few hundred to few thousand products of a convolution.
const F32_SUMS: f64 = 5e-7;

/// Beyond this no flipped ReLU is an excuse: pooled features, running statistics, gradients. A wrong kernel is off by
/// about 1, PyTorch's f32 by up to 0.03 in the gradients of the recorded bottleneck networks.
const LOOSEST: [f64; 3] = [1e-3, 1e-3, 0.1];

/// Compares everything in a recording of a backbone: what it names and this does not know is an error.
pub fn check(path: &Path) -> Result<String, String> {
    let file = Reference::open(path)?;
    let graph = ArchSpec::new(file.need("arch")?).build().map_err(|e| e.to_string())?;
    let mut recording = Recording {
        seed: file.need("seed")?,
        batch: file.parse("batch")?,
        size: file.parse("size")?,
        unread: file.names().into_iter().collect(),
        file: &file,
        graph: &graph,
    };
    let mut findings = Findings::default();
    recording.evaluation(&mut findings)?;
    recording.training(&mut findings)?;
    if let Some(name) = recording.unread.first() {
        let more = recording.unread.len() - 1;
        return Err(format!("`{name}` and {more} other tensors of the recording are not known here"));
    }
    findings.finish()
}

struct Recording<'a> {
    file: &'a Reference,
    graph: &'a Graph,
    seed: String,
    batch: usize,
    size: usize,
    /// Tensors of the file that nothing has been compared with.
    unread: BTreeSet<String>,
}

impl Recording<'_> {
    /// `c1` … `c5` and pooled features with the running statistics.
    fn evaluation(&mut self, findings: &mut Findings) -> Result<(), String> {
        let Weights { params, mut buffers, .. } = generator::parameters(self.graph, &self.seed);
        let mut plan = self.plan(Mode::Eval)?;
        plan.forward(&params, &mut buffers, &self.images(), self.batch).map_err(|e| e.to_string())?;
        for tap in ["c1", "c2", "c3", "c4", "c5"] {
            let shape = plan.output_shape(tap).map_err(|e| e.to_string())?;
            let got = to_nchw(plan.output(tap).map_err(|e| e.to_string())?, shape);
            let Shape::Map { channels, height, width } = shape else { unreachable!("{tap} is a map") };
            let name = format!("eval.{tap}");
            let expected: Vec<f64> = self.read(&format!("{name}.shape"))?;
            let shape = [self.batch, channels, height, width].map(|v| v as f64);
            findings.holds(&format!("shape of {name} is {shape:?}"), expected == shape);
            findings.bound(&format!("{name}.norm"), self.norm_error(&name, &got)?, FEATURES);
            findings.bound(&name, relative_l2(&sample(&got), &self.read(&format!("{name}.sample"))?), FEATURES);
        }
        let pooled = plan.output("pooled").map_err(|e| e.to_string())?;
        findings.bound("eval.pooled", relative_l2(pooled, &self.read("eval.pooled")?), FEATURES);
        Ok(())
    }

    /// One forward and backward pass with batch statistics; the loss is Σ pooled · cotangent.
    fn training(&mut self, findings: &mut Findings) -> Result<(), String> {
        let Weights { params, buffers, .. } = generator::parameters(self.graph, &self.seed);
        let plan = self.plan(Mode::Train)?;
        let fast = self.train(plan, params, buffers, self.images(), |v| v as f32)?;
        let exact = self.train_exactly(ReferenceKernels::default())?;
        let off = self.distances(&fast)?;
        self.distances(&exact)?.bound("f64: ", [FEATURES, FEATURES, GRADIENTS], findings);
        let strict = [FEATURES, FEATURES, GRADIENTS];
        if off.within(strict) {
            off.bound("", strict, findings);
            return Ok(());
        }
        // A ReLU whose input lies within f32's rounding of 0 opens or closes by chance and takes its whole gradient with
        // it, and batch statistics of the 8 or 16 values that a small recording leaves in the last stage enlarge every
        // rounding: PyTorch's own f32 is as far off there. The bound is then, as for the traces, ten times what the
        // rounding of f32 sums does to the exact result.
        let mut bounds = strict;
        for seed in 0..2 {
            let moved = self.train_exactly(ReferenceKernels::with_noise(F32_SUMS, seed))?;
            for ((bound, chance), loosest) in bounds.iter_mut().zip(self.distances(&moved)?.worst()).zip(LOOSEST) {
                *bound = bound.max((TIMES_TORCH * chance).min(loosest));
            }
        }
        off.bound("(bounds: 10 times what rounding does) ", bounds, findings);
        Ok(())
    }

    /// The pass in f64, from weights that were never rounded to f32.
    fn train_exactly(&self, kernels: ReferenceKernels) -> Result<Pass<f64>, String> {
        let exact = |layout: &FlatLayout| -> Vec<f64> {
            layout.iter().flat_map(|(s, _)| generator::exact_parameter(&self.seed, &s.name, &s.shape)).collect()
        };
        let (params, buffers) = (exact(&self.graph.parameter_layout()), exact(&self.graph.buffer_layout()));
        let images = self.images().into_iter().map(f64::from).collect();
        let plan = Plan::compile_with(self.graph, &self.config(Mode::Train), kernels).map_err(|e| e.to_string())?;
        self.train(plan, params, buffers, images, |v| v)
    }

    fn train<T: Copy + Default + Send + Sync, K: Kernels<View = [T]>>(
        &self,
        mut plan: Plan<K>,
        params: Vec<T>,
        mut buffers: Vec<T>,
        images: Vec<T>,
        rounded: fn(f64) -> T,
    ) -> Result<Pass<T>, String> {
        let mut run = || {
            plan.forward(&params, &mut buffers, &images, self.batch)?;
            let pooled = plan.output("pooled")?.to_vec();
            let cotangent = generator::uniform(&format!("{}/cotangent", self.seed), pooled.len());
            let cotangent: Vec<T> = cotangent.into_iter().map(rounded).collect();
            let mut gradients = vec![T::default(); params.len()];
            plan.backward(&params, &[("pooled", &cotangent)], &mut gradients)?;
            Ok((pooled, gradients))
        };
        let (pooled, gradients) = run().map_err(|e: moco_engine::Error| e.to_string())?;
        Ok(Pass { pooled, buffers, gradients })
    }

    fn distances<T: Copy + Into<f64>>(&mut self, pass: &Pass<T>) -> Result<Distances, String> {
        Ok(Distances {
            pooled: relative_l2(&pass.pooled, &self.read("train.pooled")?),
            statistics: self.tensors("buffer", &self.graph.buffer_layout(), &pass.buffers)?,
            gradients: self.tensors("grad", &self.graph.parameter_layout(), &pass.gradients)?,
        })
    }

    /// How far all tensors of a flat buffer are from the recording.
    fn tensors<T: Copy + Into<f64>>(
        &mut self,
        prefix: &str,
        layout: &FlatLayout,
        values: &[T],
    ) -> Result<Distance, String> {
        let (mut together, mut distance) = (RelativeL2::default(), Distance::default());
        for (spec, range) in layout.iter() {
            let (name, got) = (format!("{prefix}.{}", spec.name), &values[range]);
            together.add(&sample(got), &self.read(&format!("{name}.sample"))?);
            distance.add_norm(&spec.name, norm(got), self.read(&format!("{name}.norm"))?[0]);
        }
        distance.together = together.value();
        Ok(distance)
    }

    fn norm_error(&mut self, name: &str, got: &[f32]) -> Result<f64, String> {
        let expected = self.read(&format!("{name}.norm"))?[0];
        Ok((norm(got) - expected).abs() / expected)
    }

    fn read(&mut self, name: &str) -> Result<Vec<f64>, String> {
        self.unread.remove(name);
        self.file.f64s(name)
    }

    fn plan(&self, mode: Mode) -> Result<Plan, String> {
        Plan::compile(self.graph, &self.config(mode)).map_err(|e| e.to_string())
    }

    fn config(&self, mode: Mode) -> PlanConfig {
        PlanConfig::new(self.batch, self.size, self.size, mode)
    }

    fn images(&self) -> Vec<f32> {
        let shape = [self.batch, self.graph.in_channels(), self.size, self.size];
        generator::images_nhwc(&format!("{}/input", self.seed), shape)
    }
}

/// Results of a forward and backward pass with batch statistics.
struct Pass<T> {
    pooled: Vec<T>,
    buffers: Vec<T>,
    gradients: Vec<T>,
}

/// How far the results of a pass are from the recording.
struct Distances {
    pooled: f64,
    statistics: Distance,
    gradients: Distance,
}

impl Distances {
    fn worst(&self) -> [f64; 3] {
        let of = |d: &Distance| d.together.max(d.worst_norm);
        [self.pooled, of(&self.statistics), of(&self.gradients)]
    }

    fn within(&self, bounds: [f64; 3]) -> bool {
        self.worst().iter().zip(bounds).all(|(error, bound)| *error <= bound)
    }

    fn bound(&self, prefix: &str, bounds: [f64; 3], findings: &mut Findings) {
        findings.bound(&format!("{prefix}train.pooled"), self.pooled, bounds[0]);
        self.statistics.bound(&format!("{prefix}running statistics"), bounds[1], findings);
        self.gradients.bound(&format!("{prefix}gradients"), bounds[2], findings);
    }
}

/// Distance of many tensors from their references.
#[derive(Default)]
struct Distance {
    /// Relative L2 error of all together.
    together: f64,
    /// Largest relative error of a norm, and whose.
    worst_norm: f64,
    worst: String,
}

impl Distance {
    fn add_norm(&mut self, name: &str, got: f64, reference: f64) {
        let error = (got - reference).abs() / reference;
        if error.is_nan() || error > self.worst_norm {
            (self.worst_norm, self.worst) = (error, name.into());
        }
    }

    fn bound(&self, what: &str, bound: f64, findings: &mut Findings) {
        findings.bound(&format!("{what} together"), self.together, bound);
        findings.bound(&format!("worst norm of {what} ({})", self.worst), self.worst_norm, bound);
    }
}

/// PyTorch's order of what the engine holds as [n, height, width, channels].
fn to_nchw(nhwc: &[f32], shape: Shape) -> Vec<f32> {
    let (c, pixels) = (shape.channels(), shape.numel() / shape.channels());
    let value = |i: usize| {
        let (image, rest) = (i / (c * pixels), i % (c * pixels));
        nhwc[(image * pixels + rest % pixels) * c + rest / pixels]
    };
    (0..nhwc.len()).map(value).collect()
}
