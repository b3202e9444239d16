//! `moco-train bench`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use moco_engine::group::Group;
use moco_engine::{BnGroups, Recompute};
use moco_image::{AugmentConfig, Rng};
use moco_models::arch::{ArchSpec, Projector, Stem};
use moco_models::init::initialise;
use moco_train::compute::ComputeRecipe;
use moco_train::data::{Channels, DataOptions, LoaderOptions, Share};
use moco_train::objective::{Input, Learner, MocoConfig, MocoState, Sgd, Shuffle, Views, open_learner};
use moco_train::run::{Feed, tool_version};
use serde_json::json;

use super::compute::ComputeArgs;
use super::overrides::parse_size;
use super::pretrain::open;
use super::processes::ProcessArgs;

/// Measures training steps of MoCo v2: the computation alone on synthetic images, or with --data all of it
///
/// A step is what a training does: both encoders, the contrast with the queue, backward pass, optimiser, momentum
/// update, shuffling.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  moco-train bench --arch resnet50 --size 224 --batch 16 --steps 6 --json")]
pub struct Args {
    /// Network
    #[arg(long, default_value = "resnet50")]
    arch: String,

    /// Size of the images: 224 or 128x96
    #[arg(long, default_value = "224")]
    size: String,

    /// Images a step
    #[arg(long, default_value_t = 16)]
    batch: usize,

    /// Steps that are measured
    #[arg(long, default_value_t = 6)]
    steps: usize,

    /// Steps before them
    #[arg(long, default_value_t = 2)]
    warmup: usize,

    /// 3×3 stem without pooling
    #[arg(long)]
    cifar_stem: bool,

    /// Keys in the queue
    #[arg(long, default_value_t = 65536)]
    queue: usize,

    /// Takes images from here: they are read, decoded and augmented as in a training, on all threads
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Whether a GPU makes the views of decoded images itself
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, requires = "data")]
    augment_on_device: bool,

    /// Groups of batch statistics
    #[arg(long, default_value_t = 1)]
    virtual_ranks: usize,

    /// Keeps only the results of blocks and computes the rest again for the backward pass: less memory, more time
    #[arg(long)]
    checkpoint_activations: bool,

    /// Prints one JSON line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    processes: ProcessArgs,
}

/// Length of the embedding, temperature and momentum of MoCo v2.
const DIM: usize = 128;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let role = args.processes.role()?;
    let threads = args.compute.prepare_as(&role)?;
    role.join()?.run(|group| measure(args, threads, group))
}

fn measure(args: &Args, threads: usize, group: Option<Arc<Group>>) -> Result<()> {
    let share = group.as_ref().map_or(Share::WHOLE, |group| Share { rank: group.rank(), world: group.world() });
    let local_rank = group.as_ref().map_or(0, |group| group.place().local_rank);
    let (compute, note) = args.compute.wish(ComputeRecipe::default())?.choose_for(local_rank)?;
    if let Some(note) = note.filter(|_| share.rank == 0) {
        eprintln!("{note}");
    }
    // Every process has batch statistics of its own.
    let groups = if args.virtual_ranks > 1 { args.virtual_ranks } else { share.world };
    let (batch, steps) = (args.batch, args.steps);
    if batch < 2 * groups.max(1) || steps == 0 || args.queue == 0 {
        anyhow::bail!("--batch must be at least 2 a process and virtual rank, --steps and --queue at least 1");
    }
    let [height, width] = parse_size("--size", &args.size)?.map(|side| side as usize);
    let graph = ArchSpec {
        stem: if args.cifar_stem { Stem::Cifar } else { Stem::ImageNet },
        projector: Projector::Mlp { dim: DIM },
        ..ArchSpec::new(args.arch.clone())
    }
    .build()?;
    let config = MocoConfig {
        batch,
        size: [height, width],
        temperature: 0.2,
        key_momentum: 0.999,
        symmetric: false,
        mask_same_image: false,
        bn_groups: if groups > 1 { BnGroups::Ranks(groups) } else { BnGroups::Whole },
        recompute: if args.checkpoint_activations { Recompute::Blocks } else { Recompute::Nothing },
    };
    let state = MocoState::new(initialise(&graph, 0), args.queue, DIM, 0);
    let mut moco = open_learner(&compute, &graph, &config, state, group.as_ref())?;
    let mut source = match &args.data {
        Some(data) => Source::of_images(data, args, [height, width], &*moco, share, threads)?,
        None => Source::synthetic(moco.config().batch, height * width * graph.in_channels()),
    };
    let mut rng = Rng::new(0, 0);
    let sgd = Sgd { lr: 0.03, momentum: 0.9, weight_decay: 1e-4 };
    let (mut times, mut loss, mut waited) = (vec![], 0.0, Duration::ZERO);
    let mut busy_before = None;
    for step in 0..args.warmup + steps {
        if step == args.warmup {
            busy_before = busy_seconds();
        }
        let begin = Instant::now();
        let shuffle = Shuffle::random(batch, &mut rng);
        let wait;
        (loss, wait) = source.step(step, &mut *moco, &[shuffle], &sgd)?;
        if step >= args.warmup {
            times.push(begin.elapsed().as_secs_f64() * 1e3);
            waited += wait;
        }
    }
    let threads = rayon::current_num_threads();
    let wall: f64 = times.iter().sum::<f64>() / 1e3;
    let data_wait = waited.as_secs_f64() / wall;
    let busy = busy_before.zip(busy_seconds()).map(|(before, after)| (after - before) / (wall * threads as f64));
    times.sort_by(f64::total_cmp);
    let median = (times[(steps - 1) / 2] + times[steps / 2]) / 2.0;
    let images_per_s = batch as f64 / (median / 1e3);
    if share.rank > 0 {
        return Ok(());
    }
    if args.json {
        let tenths = |x: f64| (x * 10.0).round() / 10.0;
        let line = json!({
            "peer": tool_version(), "arch": args.arch, "size": args.size, "batch": batch, "steps": steps,
            "warmup": args.warmup, "device": compute.device().to_string(), "precision": compute.precision(),
            "queue": args.queue, "cifar_stem": args.cifar_stem,
            "virtual_ranks": args.virtual_ranks, "processes": share.world,
            "checkpoint_activations": args.checkpoint_activations, "threads": threads,
            "cores_busy": busy.map(|b| (b * 1e3).round() / 1e3),
            "data": args.data, "data_wait": args.data.as_ref().map(|_| (data_wait * 1e3).round() / 1e3),
            "augment_on_device": args.data.as_ref().map(|_| args.augment_on_device && moco.makes_views()),
            "img_per_s": (images_per_s * 100.0).round() / 100.0,
            "step_ms": { "min": tenths(times[0]), "median": tenths(median), "max": tenths(times[steps - 1]) },
            "peak_mib": peak_mib(), "loss": (loss * 1e4).round() / 1e4,
        });
        println!("{line}");
    } else {
        println!(
            "{images_per_s:.2} images/s; a step of {batch} takes {median:.1} ms (median of {steps}; {:.1} to {:.1}); {} MiB; \
             {threads} threads busy {} of the time{}",
            times[0],
            times[steps - 1],
            peak_mib().map_or("unknown".into(), |m| m.to_string()),
            busy.map_or("unknown".into(), |b| format!("{:.1} %", 100.0 * b)),
            args.data.as_ref().map_or(String::new(), |_| format!("; waiting for data {:.1} %", 100.0 * data_wait)),
        );
    }
    Ok(())
}

/// Where the views come from.
enum Source {
    /// Noise, the same in every step; a device keeps it.
    Synthetic { views: [Vec<f32>; 2], images: Vec<u64> },
    /// Images, read and augmented.
    Images(Box<Feed>),
}

impl Source {
    fn synthetic(batch: usize, values: usize) -> Source {
        let mut rng = Rng::new(0, 0);
        let views = std::array::from_fn(|_| (0..batch * values).map(|_| rng.normal() as f32).collect());
        Source::Synthetic { views, images: (0..batch as u64).collect() }
    }

    fn of_images(
        data: &Path,
        args: &Args,
        size: [usize; 2],
        moco: &dyn Learner,
        share: Share,
        threads: usize,
    ) -> Result<Source> {
        let dataset = open(data, &DataOptions { channels: Channels::Rgb, ..DataOptions::default() })?;
        let view = AugmentConfig { size, ..AugmentConfig::moco_v2() };
        let options = LoaderOptions {
            batch: args.batch,
            share,
            drop_last: true,
            seed: 0,
            views: [view.clone(), view],
            threads,
            prefetch: 2,
            cache_bytes: 0,
            max_corrupt: 100,
        };
        let feed = Feed::start(Arc::new(dataset), options, moco, args.augment_on_device, (0, 0))?;
        Ok(Source::Images(Box::new(feed)))
    }

    /// One step; its loss, and how long it waited for data.
    fn step(
        &mut self,
        step: usize,
        moco: &mut dyn Learner,
        shuffles: &[Shuffle],
        sgd: &Sgd,
    ) -> Result<(f64, Duration)> {
        match self {
            Source::Synthetic { views: [first, second], images } => {
                let views = Views { views: [first, second], images };
                let input = if step > 0 && moco.makes_views() { Input::Again(images) } else { Input::Views(&views) };
                moco.launch(input, shuffles, sgd)?;
                Ok((moco.finish()?.loss, Duration::ZERO))
            }
            Source::Images(feed) => {
                let (batch, waited) = feed.next(moco)?;
                let images: Vec<u64> = batch.indices.iter().map(|&i| i as u64).collect();
                Ok((feed.step(&batch, &images, moco, shuffles, sgd)?.loss, waited))
            }
        }
    }
}

/// Processor time of all threads of this process so far, in steps of 10 ms, where the system tells.
fn busy_seconds() -> Option<f64> {
    /// The unit in which Linux reports to programs, on every architecture that Rust's standard library supports.
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is a name in parentheses that may hold anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(|field| field.parse::<f64>().ok());
    Some((times.next()?? + times.next()??) / TICKS_PER_SECOND)
}

/// Largest memory of this process so far, where the system tells.
fn peak_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}
