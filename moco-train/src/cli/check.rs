//! `moco-train check`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, bail};
use moco_train::compute::DeviceId;
use moco_train::data::{Summary, summarise};
use moco_train::run::preview::{memory, time};
use moco_train::run::{RunConfig, RunPlan, kind_in_words};

use super::compute::ComputeArgs;
use super::overrides::RecipeArgs;
use super::pretrain::open;

/// Tells in seconds what a training would do: data, queue, memory, time
///
/// Reads the data set, fits the recipe to it and measures a few images; writes nothing.
#[derive(clap::Args)]
#[command(
    allow_negative_numbers = true,
    args_override_self = true,
    after_help = "Example:\n  moco-train check --data photos --recipe moco-v2 --arch resnet18 --size 96 --batch 64"
)]
pub struct Args {
    /// Images to learn from
    #[arg(long, value_name = "DIR")]
    data: PathBuf,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    recipe: RecipeArgs,
}

/// Images that are decoded to judge the set, and the seconds after which that ends.
const SAMPLE: usize = 256;
const SECONDS: f64 = 3.0;

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    args.compute.prepare()?;
    let recipe = args.recipe.resolve()?;
    let dataset = open(&args.data, &recipe.data_options())?;
    let summary = summarise(&dataset, SAMPLE, SECONDS)?;
    let mut verdicts = Verdicts::default();
    print_data(&summary, &mut verdicts);
    let (config, notes) = RunConfig::resolve(&recipe, &args.data, &dataset, None)?;
    let recipe = &config.recipe;

    let plan = RunPlan::new(&config, dataset.len())?;
    let [height, width] = recipe.augment.size;
    println!(
        "recipe   {}: {}, views of {height}×{width}, {} channels, batch {}, {} epochs of {} steps",
        recipe.name, recipe.model.arch, config.source.channels, recipe.optim.batch, plan.epochs, plan.steps_per_epoch
    );
    notes.iter().for_each(|note| println!("note     {note}"));
    let smallest = summary.width.0.min(summary.height.0);
    if smallest > 0 && smallest < height.min(width) {
        verdicts.hint(format!(
            "images are as small as {smallest} pixels and views are {height}×{width}: they are enlarged, which costs \
             time and adds nothing; use `--size {smallest}`, and `--stem cifar` up to about 64"
        ));
    }
    if let Some(hint) = recipe.linear_rule_hint() {
        verdicts.hint(hint);
    }
    let (queue, images) = (recipe.method.queue, dataset.len());
    let times = queue as f64 / images as f64;
    println!("queue    {queue} keys for {images} images: an image is in the queue {times:.2} times");
    if let Some(hint) = config.queue_hint() {
        verdicts.hint(hint);
    }

    let compute = args.compute.choose(recipe.compute)?;
    let need = memory(&config, &compute, summary.decoded_bytes)?;
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    println!(
        "memory   about {} MiB: encoders {}, weights and queue {}, batches {}, decoded images up to {}",
        mib(need.total()),
        mib(need.plans),
        mib(need.state),
        mib(need.batches),
        mib(need.cache)
    );
    // A GPU holds encoders, weights and queue in its own memory.
    let (on_host, plans_on_host) = match compute.device() {
        DeviceId::Cpu => (need.total(), need.plans),
        DeviceId::Cuda(_) => (need.batches + need.cache, 0),
    };
    if let Some(free) = available_bytes()
        && on_host > free
    {
        verdicts.problem(format!(
            "the run needs about {} MiB and {} MiB are free: lower --batch, --size, --queue or --cache-mib",
            mib(on_host),
            mib(free)
        ));
    }

    if plans_on_host < available_bytes().unwrap_or(u64::MAX) {
        let t = time(&config, &compute, &plan, &Arc::new(dataset), args.compute.threads)?;
        println!(
            "time     about {} an epoch, {} in all ({:.1} images/s; computing {:.0} %, data {:.0} %)",
            duration(t.epoch()),
            duration(t.epoch() * plan.epochs as f64),
            t.images_per_epoch / t.epoch(),
            100.0 * t.compute_per_image / (t.compute_per_image + t.data_per_image),
            100.0 * t.data_per_image / (t.compute_per_image + t.data_per_image),
        );
    }
    verdicts.print()
}

fn print_data(s: &Summary, verdicts: &mut Verdicts) {
    let classes = match s.class_sizes {
        Some((least, most)) => format!(", {} classes of {least} to {most} images", s.classes),
        None => ", no labels (none are needed)".into(),
    };
    println!("data     {}: {} images of {} channels{classes}", kind_in_words(s.kind), s.images, s.channels);
    for (kind, images) in &s.kinds {
        println!(
            "files    {}: {}, {} channel(s), {images} images looked into",
            kind.format,
            kind.depth(),
            kind.channels
        );
    }
    let sizes: Vec<_> = s.sizes.iter().map(|b| format!("{}–{}: {}", b.from, b.to - 1, b.count)).collect();
    println!(
        "sizes    {}–{} × {}–{} pixels (width × height) in {} images looked at; shorter side {}",
        s.width.0,
        s.width.1,
        s.height.0,
        s.height.1,
        s.looked_at,
        sizes.join(", ")
    );
    println!("decoding {:.0} images/s on one thread", s.decode_rate);
    for c in s.corrupt.iter().take(10) {
        println!("broken   {}: {}", c.name, c.reason);
    }
    if !s.corrupt.is_empty() {
        verdicts.hint(format!(
            "{} of {} images looked at cannot be read; a run replaces up to --max-corrupt of them by others",
            s.corrupt.len(),
            s.looked_at
        ));
    }
    if s.images < 1000 {
        verdicts.hint(format!(
            "{} images are few: expect to need hundreds of epochs, and watch the kNN accuracy or the health reports",
            s.images
        ));
    }
}

#[derive(Default)]
struct Verdicts {
    hints: Vec<String>,
    problems: Vec<String>,
}

impl Verdicts {
    fn hint(&mut self, text: String) {
        self.hints.push(text);
    }

    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn print(&self) -> Result<()> {
        self.hints.iter().for_each(|h| println!("hint     {h}"));
        self.problems.iter().for_each(|p| println!("problem  {p}"));
        if self.problems.is_empty() {
            println!("verdict  ready to train");
            return Ok(());
        }
        bail!("this training would not work as it is")
    }
}

fn duration(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..=119 => format!("{seconds:.0} s"),
        120..=7199 => format!("{} min", (s + 30) / 60),
        7200..=172_799 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86400.0),
    }
}

/// Memory that the system could give, where it tells.
fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("MemAvailable:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
