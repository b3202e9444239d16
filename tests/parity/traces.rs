//! Whole training steps against recordings of facebookresearch/moco: its v1 and v2 builder on one or more ranks, and
//! its CIFAR-10 notebook.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use moco_engine::group::{Group, Meeting, Place};
use moco_engine::ops::{InfoNceInputs, SameImage, info_nce_logits, l2_normalise};
use moco_engine::{BnGroups, Recompute};
use moco_models::FlatLayout;
use moco_models::arch::{ArchSpec, Projector, Stem};
use moco_train::compute::{Compute, ComputeRecipe, DeviceChoice, DeviceId};
use moco_train::objective::{KeyQueue, Learner, MocoConfig, MocoState, Sgd, Shuffle, Views, open_learner};
use moco_train::schedule::{Kind, Per, Schedule};
use safetensors::{Dtype, SafeTensors};

use moco_tests::generator::{images_nhwc, parameters, uniform};

type Metadata = HashMap<String, String>;

/// Runs a trace of kind `moco_v1v2` or `moco_cifar_demo` and compares every group that the file holds.
pub fn check(file: &SafeTensors<'_>, metadata: &Metadata) -> Result<String, String> {
    let trace = Trace::read(file, metadata)?;
    let one = trace.compare(file, &trace.run(file, None)?)?;
    // Processes have a GPU each.
    let on_gpu = compute()?.device() != DeviceId::Cpu;
    if trace.world == 1 || on_gpu {
        return Ok(one);
    }
    let several = trace.processes(file).and_then(|got| trace.compare(file, &got));
    several
        .map(|several| format!("{one}; as {} processes: {several}", trace.world))
        .map_err(|e| format!("as processes: {e}"))
}

struct Trace {
    seed: String,
    arch: ArchSpec,
    config: MocoConfig,
    capacity: usize,
    dim: usize,
    world: usize,
    steps: u64,
    sgd: Sgd,
    schedule: Schedule,
    float32_errors: BTreeMap<String, f64>,
    is_demo: bool,
}

/// Values by the names that the file uses.
type Values = BTreeMap<String, Vec<f64>>;

impl Trace {
    fn read(file: &SafeTensors<'_>, metadata: &Metadata) -> Result<Trace, String> {
        let text = |key: &str| metadata.get(key).ok_or(format!("metadata lacks `{key}`"));
        fn parse<T: serde::de::DeserializeOwned>(key: &str, text: &str) -> Result<T, String> {
            serde_json::from_str(text).map_err(|e| format!("metadata `{key}` = {text}: {e}"))
        }
        let number = |key: &str| text(key).and_then(|t| parse::<f64>(key, t));
        let count = |key: &str| text(key).and_then(|t| parse::<usize>(key, t));
        let count_or = |key: &str, default| if metadata.contains_key(key) { count(key) } else { Ok(default) };
        let flag_or = |key: &str, default| metadata.get(key).map_or(Ok(default), |t| parse::<bool>(key, t));
        let flag = |key: &str| flag_or(key, false);
        let word = |key: &str| text(key).and_then(|t| parse::<String>(key, t));
        let is_demo = word("kind")? == "moco_cifar_demo";
        let (world, dim, batch) = (count("world")?, count_or("dim", 128)?, count("batch")?);
        let size = count_or("size", if is_demo { 32 } else { 224 })?;
        let splits = count_or("bn_splits", 1)?;
        let steps = count("steps")? as u64;
        if file.tensor("loss").map_err(|e| e.to_string())?.shape() != [steps as usize] {
            return Err("`loss` does not hold one value a step".into());
        }
        Ok(Trace {
            seed: word("seed")?,
            arch: ArchSpec {
                stem: if is_demo { Stem::Cifar } else { Stem::ImageNet },
                projector: if flag("mlp")? { Projector::Mlp { dim } } else { Projector::Linear { dim } },
                ..ArchSpec::new(word("arch")?)
            },
            config: MocoConfig {
                batch,
                size: [size, size],
                temperature: number("T")?,
                key_momentum: number("m")?,
                symmetric: flag("symmetric")?,
                mask_same_image: false,
                bn_groups: match (world, splits) {
                    (1, 1) => BnGroups::Whole,
                    (1, s) => BnGroups::Interleaved(s),
                    (w, 1) => BnGroups::Ranks(w),
                    _ => return Err("bn_splits on several ranks is not a thing of the reference".into()),
                },
                recompute: Recompute::Nothing,
            },
            capacity: count("K")?,
            dim,
            world,
            steps,
            sgd: Sgd { lr: number("lr")?, momentum: 0.9, weight_decay: number("wd")? },
            // The notebook's schedule is the cosine; only the recordings of the builder say which they use.
            schedule: Schedule {
                kind: if flag_or("cos", is_demo)? { Kind::Cosine } else { Kind::Constant },
                milestones: vec![],
                factor: 1.0,
                per: Per::Step,
            },
            float32_errors: parse("torch_float32_error", text("torch_float32_error")?)?,
            is_demo,
        })
    }

    /// One process for each rank of the recording, here a thread, over real connections; what the first one has.
    fn processes(&self, file: &SafeTensors<'_>) -> Result<Values, String> {
        let meeting = Meeting::on_this_machine().map_err(|e| e.to_string())?;
        let address = format!("127.0.0.1:{}", meeting.port().map_err(|e| e.to_string())?);
        let place = |rank| {
            let (world, address) = (self.world, address.clone());
            Place { rank, world, local_rank: 0, local_world: 1, address }
        };
        std::thread::scope(|scope| {
            let part = |group: moco_engine::Result<Arc<Group>>| {
                let group = group.map_err(|e| e.to_string())?;
                let values = self.run(file, Some(&group))?;
                group.leave();
                Ok(values)
            };
            let others: Vec<_> = (1..self.world)
                .map(|rank| {
                    let place = place(rank);
                    scope.spawn(move || part(Group::join(&place)))
                })
                .collect();
            let values = part(Group::host(&place(0), meeting, &mut || Ok(())));
            let ends =
                others.into_iter().map(|other| other.join().map_err(|_| "a process panicked".to_owned())?.map(|_| ()));
            let ends = ends.collect::<Result<(), String>>();
            values.and_then(|values| ends.map(|()| values))
        })
    }

    fn run(&self, file: &SafeTensors<'_>, group: Option<&Arc<Group>>) -> Result<Values, String> {
        let graph = self.arch.build().map_err(|e| e.to_string())?;
        let weights = parameters(&graph, &self.seed);
        let queue = self.queue()?;
        let state =
            MocoState { key: weights.clone(), velocity: vec![0.0; weights.params.len()], query: weights, queue };
        let first_queue = state.queue.clone();
        let mut moco = open_learner(&compute()?, &graph, &self.config, state, group).map_err(|e| e.to_string())?;

        let [height, width] = self.config.size;
        let shape = [self.config.batch, self.arch.in_channels, height, width];
        let n = moco.config().batch;
        let images = vec![SameImage::NONE; n];
        let slice = group.map_or(0, |group| group.rank()) * n;
        let mut values = Values::new();
        for step in 0..self.steps {
            let view = |which| images_nhwc(&format!("{}/step{step}.{which}", self.seed), shape);
            let (view_q, view_k) = (view("view_q"), view("view_k"));
            let width = view_q.len() / self.config.batch;
            let part = |view: &'_ Vec<f32>| slice * width..view.len().min((slice + n) * width);
            let batch = Views { views: [&view_q[part(&view_q)], &view_k[part(&view_k)]], images: &images };
            let sgd = Sgd { lr: self.schedule.lr(self.sgd.lr, step, self.steps, 1), ..self.sgd };
            let report = moco.step(&batch, &self.shuffles(file, step)?, &sgd).map_err(|e| e.to_string())?;
            values.entry("loss".into()).or_default().push(report.loss);
            values.entry("acc1".into()).or_default().push(report.accuracy);
            if step == 0 {
                let gradients = moco.gradients().map_err(|e| e.to_string())?;
                summarise("step0.grad", &graph.parameter_layout(), &gradients, &mut values);
                if file.tensor("step0.logits.rank0").is_ok() {
                    values.insert("step0.logits.rank0".into(), self.logits(&*moco, &first_queue)?);
                }
            }
        }

        moco.check_equal().map_err(|e| e.to_string())?;
        let state = moco.state().map_err(|e| e.to_string())?;
        for (name, weights) in [("final.q", &state.query), ("final.k", &state.key)] {
            summarise(name, &graph.parameter_layout(), &weights.params, &mut values);
            summarise(name, &graph.buffer_layout(), &weights.buffers, &mut values);
        }
        let transposed = transpose(state.queue.keys(), self.dim);
        summary("final.queue", &transposed, &mut values);
        values.insert("final.queue_ptr".into(), vec![state.queue.pointer() as f64]);
        Ok(values)
    }

    /// The reference's `queue` is [dim, K] with normalised columns; ours holds one key a row.
    fn queue(&self) -> Result<KeyQueue, String> {
        let values = uniform(&format!("{}/queue", self.seed), self.dim * self.capacity);
        let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
        let mut keys = vec![0.0; values.len()];
        l2_normalise(&transpose(&values, self.capacity), self.dim, &mut keys);
        KeyQueue::from_parts(self.dim, keys, vec![SameImage::NONE; self.capacity], 0).map_err(|e| e.to_string())
    }

    /// The permutations that were drawn in this step: one per direction.
    fn shuffles(&self, file: &SafeTensors<'_>, step: u64) -> Result<Vec<Shuffle>, String> {
        let directions = self.config.directions() as u64;
        (0..directions)
            .map(|d| {
                let demo = format!("perm{}", step * directions + d);
                let name = if self.is_demo { demo } else { format!("step{step}.perm") };
                let order = read(file, &name)?.into_iter().map(|v| v as usize).collect();
                Shuffle::new(order).map_err(|e| format!("`{name}`: {e}"))
            })
            .collect()
    }

    /// First 17 logits of rank 0's queries in the first step.
    fn logits(&self, moco: &dyn Learner, queue: &KeyQueue) -> Result<Vec<f64>, String> {
        let (query, key) = (moco.embeddings().map_err(|e| e.to_string())?, moco.keys().map_err(|e| e.to_string())?);
        let inputs = InfoNceInputs {
            query: &query,
            key: &key[..query.len()],
            queue: queue.keys(),
            dim: self.dim,
            temperature: self.config.temperature as f32,
            same_image: None,
        };
        let mut logits = vec![];
        for row in 0..self.config.batch / self.world {
            let mut first = vec![0.0; 17.min(1 + self.capacity)];
            info_nce_logits(&inputs, row, &mut first).map_err(|e| e.to_string())?;
            logits.extend(first.into_iter().map(f64::from));
        }
        Ok(logits)
    }

    /// Relative L2 error of each group against 10 × what PyTorch's own float32 does, or 1e-4.
    fn compare(&self, file: &SafeTensors<'_>, got: &Values) -> Result<String, String> {
        let mut groups: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        let inputs = |name: &str| name.starts_with("perm") || name.ends_with(".perm");
        for name in file.names().into_iter().filter(|n| !inputs(n)) {
            let expected = read(file, name)?;
            let got = got.get(name).ok_or(format!("`{name}` is in the file, and this test does not compute it"))?;
            if got.len() != expected.len() {
                return Err(format!("`{name}` has {} values, got {}", expected.len(), got.len()));
            }
            if name == "final.queue_ptr" {
                if *got != expected {
                    return Err(format!("`{name}` is {expected:?}, got {got:?}"));
                }
                continue;
            }
            let group = ["step0.grad", "step0.logits", "loss", "acc1", "final.queue", "final.q", "final.k"]
                .into_iter()
                .find(|g| name == *g || name.strip_prefix(g).is_some_and(|rest| rest.starts_with('.')))
                .ok_or(format!("`{name}` belongs to no known group"))?;
            let (error, norm) = groups.entry(group).or_default();
            *error += got.iter().zip(&expected).map(|(g, e)| (g - e) * (g - e)).sum::<f64>();
            *norm += expected.iter().map(|e| e * e).sum::<f64>();
        }
        if let Some(missing) = self.float32_errors.keys().find(|g| !groups.contains_key(g.as_str())) {
            return Err(format!("the file has a bound for `{missing}` and nothing to compare"));
        }
        let (mut lines, mut failed) = (vec![], vec![]);
        for (group, (error, norm)) in groups {
            let relative = if error == 0.0 { 0.0 } else { (error / norm).sqrt() };
            let torch = self.float32_errors.get(group).copied().unwrap_or(0.0);
            let bound = (10.0 * torch).max(1e-4);
            lines.push(format!("{group} {relative:.1e}"));
            if relative.is_nan() || relative > bound {
                failed.push(format!("{group}: relative error {relative:.2e}, allowed {bound:.2e}"));
            }
        }
        if !failed.is_empty() {
            return Err(format!("{} (all: {}); losses {:?}", failed.join("; "), lines.join(", "), got["loss"]));
        }
        Ok(format!("{} steps of {}: {}", self.steps, self.arch.name, lines.join(", ")))
    }
}

/// The CPU in f32, or the device that `MOCO_PARITY_DEVICE` names, in f32 as well.
fn compute() -> Result<Compute, String> {
    let device = match std::env::var("MOCO_PARITY_DEVICE") {
        Ok(name) => name.parse()?,
        Err(_) => DeviceChoice::Given(DeviceId::Cpu),
    };
    let (compute, _) = ComputeRecipe { device, ..ComputeRecipe::default() }.choose().map_err(|e| e.to_string())?;
    Ok(compute)
}

fn summarise(prefix: &str, layout: &FlatLayout, values: &[f32], out: &mut Values) {
    for (spec, range) in layout.iter() {
        summary(&format!("{prefix}.{}", spec.name), &values[range], out);
    }
}

/// `X.norm` and `X.sample` as the README of the recordings defines them.
fn summary(name: &str, values: &[f32], out: &mut Values) {
    let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    let count = values.len().min(16);
    let sample = (0..count).map(|i| f64::from(values[i * values.len() / count])).collect();
    out.insert(format!("{name}.norm"), vec![norm]);
    out.insert(format!("{name}.sample"), sample);
}

/// [rows, width] → [width, rows].
fn transpose(values: &[f32], width: usize) -> Vec<f32> {
    let rows = values.len() / width;
    (0..values.len()).map(|i| values[(i % rows) * width + i / rows]).collect()
}

pub(super) fn read(file: &SafeTensors<'_>, name: &str) -> Result<Vec<f64>, String> {
    let tensor = file.tensor(name).map_err(|e| format!("`{name}`: {e}"))?;
    let words = tensor.data().chunks_exact(8).map(|c| <[u8; 8]>::try_from(c).expect("chunks of eight"));
    match tensor.dtype() {
        Dtype::F64 => Ok(words.map(f64::from_le_bytes).collect()),
        Dtype::I64 => Ok(words.map(|w| i64::from_le_bytes(w) as f64).collect()),
        other => Err(format!("`{name}` has dtype {other:?}; f64 or i64 expected")),
    }
}
