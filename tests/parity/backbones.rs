//! Backbones against torchvision in float64: features, gradients and running statistics of one network.

use std::collections::BTreeSet;
use std::path::Path;

use moco_engine::{Mode, Plan, PlanConfig};
use moco_models::arch::ArchSpec;
use moco_models::{FlatLayout, Graph, Shape, Weights};
use moco_tests::generator;
use moco_tests::reference::Reference;
use moco_tests::tolerance::{FEATURES, Findings, GRADIENTS, RelativeL2, norm, relative_l2, sample};

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
        let Weights { params, mut buffers } = generator::parameters(self.graph, &self.seed);
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
        let Weights { params, mut buffers } = generator::parameters(self.graph, &self.seed);
        let mut plan = self.plan(Mode::Train)?;
        plan.forward(&params, &mut buffers, &self.images(), self.batch).map_err(|e| e.to_string())?;
        let pooled = plan.output("pooled").map_err(|e| e.to_string())?;
        findings.bound("train.pooled", relative_l2(pooled, &self.read("train.pooled")?), FEATURES);

        let cotangent = generator::uniform(&format!("{}/cotangent", self.seed), pooled.len());
        let cotangent: Vec<f32> = cotangent.into_iter().map(|v| v as f32).collect();
        let mut gradients = vec![0.0; params.len()];
        plan.backward(&params, &[("pooled", &cotangent)], &mut gradients).map_err(|e| e.to_string())?;
        self.tensors("grad", "gradients", &self.graph.parameter_layout(), &gradients, GRADIENTS, findings)?;
        self.tensors("buffer", "running statistics", &self.graph.buffer_layout(), &buffers, FEATURES, findings)
    }

    /// All tensors of a flat buffer: their samples together, and the norm of each.
    fn tensors(
        &mut self,
        prefix: &str,
        what: &str,
        layout: &FlatLayout,
        values: &[f32],
        bound: f64,
        findings: &mut Findings,
    ) -> Result<(), String> {
        let (mut together, mut worst) = (RelativeL2::default(), (0.0, String::new()));
        for (spec, range) in layout.iter() {
            let (name, got) = (format!("{prefix}.{}", spec.name), &values[range]);
            together.add(&sample(got), &self.read(&format!("{name}.sample"))?);
            let error = self.norm_error(&name, got)?;
            if error.is_nan() || error >= worst.0 {
                worst = (error, name);
            }
        }
        findings.bound(&format!("{what} together"), together.value(), bound);
        findings.bound(&format!("worst norm of {what} ({})", worst.1), worst.0, bound);
        Ok(())
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
        let config = PlanConfig::new(self.batch, self.size, self.size, mode);
        Plan::compile(self.graph, &config).map_err(|e| e.to_string())
    }

    fn images(&self) -> Vec<f32> {
        let shape = [self.batch, self.graph.in_channels(), self.size, self.size];
        generator::images_nhwc(&format!("{}/input", self.seed), shape)
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
