//! How a training session is set up: what the application leaves at 0 or NULL is chosen by moco-finetune.

#![expect(unsafe_code, reason = "reads the application's options")]

use std::ffi::{c_char, c_void};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use moco_engine::compute::DeviceChoice;
use moco_finetune::augment::AugmentOptions;
use moco_finetune::model::Model;
use moco_finetune::session::{BatchNorm, ClassWeights, LossOptions, OptimiserKind, Options, Session, Start};
use moco_finetune::task::Task;
use moco_models::arch::{ArchSpec, Projector};
use moco_models::heads::HeadSpec;
use moco_models::weights::{BackboneFile, is_model};

use crate::boundary::{Options as Versioned, Result, optional_utf8, slice, texts};
use crate::{moco_error, moco_session_callback};

/// How a session is set up. Start from MOCO_SESSION_OPTIONS_INIT; `task` and `classes` must be given.
///
/// Texts are the words of `moco-train finetune`, and `settings` reaches every option it has.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_session_options {
    /// sizeof(moco_session_options).
    pub struct_size: usize,
    /// As many names as classes, all different, kept with the model. NULL = "0", "1", ….
    pub class_names: *const *const c_char,
    /// As many weights as classes, for the loss of classification and segmentation. NULL = all 1.
    pub class_weights: *const f32,
    /// Network of a random start, e.g. "resnet18" (the default) or "resnet50". With the place of a backbone only "random":
    /// its network and its rule for images, with random weights, to see what its weights are worth.
    pub arch: *const c_char,
    /// The head: "linear" (the default) or "mlp:512" to classify, "fpn" (the default), "fpn:64" or "unet:32" to segment,
    /// "fcos" or "fcos:width=96,convs=2,levels=3-7" to detect.
    pub head: *const c_char,
    /// What does not learn: "nothing", "stages:2" (the first two of stem, layer1 … layer4) or "backbone". By default the
    /// backbone under a classifier that starts from one, nothing otherwise.
    pub freeze: *const c_char,
    /// Batch normalisations of the part of the backbone that learns: "trained" (the default) or "frozen".
    pub batch_norm: *const c_char,
    /// Loss of a segmentation: "ce+dice" (the default), "ce", "dice", "focal", "0.5*ce+dice+focal".
    pub loss: *const c_char,
    /// How training images are varied: "none", "light", "default" or "microscopy". What makes no sense for the channels is
    /// switched off, which the log callback is told.
    pub augment: *const c_char,
    /// "adamw" (the default) or "sgd".
    pub optimiser: *const c_char,
    /// Which values become black and white, of images whose depth the backbone's card does not name: "full",
    /// "window:-160,240", "percentile:1,99", "min-max". They then keep their depth, and the model remembers. NULL = they are
    /// refused.
    pub values: *const c_char,
    /// "auto" (the default: a GPU if there is one), "cpu", "cuda:0".
    pub device: *const c_char,
    /// More options as TOML, e.g. "validate_every = 2\n[optimiser]\nclip = 5.0"; they count more than the fields here.
    pub settings: *const c_char,
    /// File to which moco_session_fit() writes a checkpoint after each epoch. NULL = none.
    pub checkpoint: *const c_char,
    /// NULL = none.
    pub progress: moco_session_callback,
    /// Handed to `progress`.
    pub user: *mut c_void,
    /// The head's first weights, a random start, the order of images, their variation.
    pub seed: u64,
    /// A moco_task.
    pub task: u32,
    /// Number of classes; for segmentation with the background, for detection without.
    pub classes: u32,
    /// Channels of the images; the first convolution is adapted. 0 = as the backbone's card says, 3 for a random start.
    pub channels: u32,
    /// Height of the network's input, to which images are brought; chosen by task by default.
    pub height: u32,
    /// Width of the network's input; 0 = as `height`.
    pub width: u32,
    /// Passes over the training data; chosen by task by default.
    pub epochs: u32,
    /// Steps of the whole training; needed by moco_session_step() for its learning rates, else as `epochs` make.
    pub steps: u32,
    /// Images a step; chosen by task by default.
    pub batch: u32,
    /// Validations without a better result after which the training ends; 0 = never.
    pub patience: u32,
    /// Threads that prepare images; one a core by default.
    pub threads: u32,
    /// Learning rate of the head; chosen by default.
    pub learning_rate: f32,
    /// Learning rate of the backbone's last stage, as a factor on that of the head; chosen by default.
    pub backbone_rate: f32,
    /// Learning rate of each stage of the backbone as a factor on that of the next one, up to 1, which is the default.
    pub layer_decay: f32,
    /// Weight decay; chosen by default.
    pub weight_decay: f32,
    /// Share of the training in which the learning rate rises, below 1; chosen by default.
    pub warmup: f32,
    /// Moving average of the weights, which is then validated and saved: weight of the old one a step, e.g. 0.999. 0 = none.
    pub average: f32,
}

const _: () = assert!(size_of::<moco_session_options>() == 16 * size_of::<usize>() + 8 + 10 * 4 + 6 * 4, "no padding");

// SAFETY: repr(C), `struct_size` first, integers, floats and nullable pointers only, no padding by the assertion above.
unsafe impl Versioned for moco_session_options {
    const ZERO: Self = Self {
        struct_size: 0,
        class_names: std::ptr::null(),
        class_weights: std::ptr::null(),
        arch: std::ptr::null(),
        head: std::ptr::null(),
        freeze: std::ptr::null(),
        batch_norm: std::ptr::null(),
        loss: std::ptr::null(),
        augment: std::ptr::null(),
        optimiser: std::ptr::null(),
        values: std::ptr::null(),
        device: std::ptr::null(),
        settings: std::ptr::null(),
        checkpoint: std::ptr::null(),
        progress: None,
        user: std::ptr::null_mut(),
        seed: 0,
        task: 0,
        classes: 0,
        channels: 0,
        height: 0,
        width: 0,
        epochs: 0,
        steps: 0,
        batch: 0,
        patience: 0,
        threads: 0,
        learning_rate: 0.0,
        backbone_rate: 0.0,
        layer_decay: 0.0,
        weight_decay: 0.0,
        warmup: 0.0,
        average: 0.0,
    };
}

/// A session that starts from a file, or at random.
///
/// # Safety
/// What the options point at is as the header says.
pub(crate) unsafe fn open(place: Option<&str>, raw: &moco_session_options) -> Result<Session> {
    let task = match raw.task {
        1 => Task::Classify,
        2 => Task::MultiLabel,
        3 => Task::Segment,
        4 => Task::Detect,
        other => return Err(moco_error::argument(format!("`options->task` is {other}, which is no moco_task"))),
    };
    let classes = raw.classes as usize;
    if classes == 0 {
        return Err(moco_error::argument("`options->classes` is 0: say how many classes there are"));
    }
    // SAFETY: forwarded.
    let names = unsafe { class_names(raw, classes)? };
    // SAFETY: forwarded.
    let words = unsafe { Words::of(raw)? };
    let head = HeadSpec::parse(task, words.head.unwrap_or(""), classes)?;
    let mut start = start(place, raw, &words)?;
    if let Some(range) = words.values {
        start = start.with_other_depths(range.parse()?);
    }
    let mut options = Options::for_head(&head, start.is_pretrained());
    // SAFETY: forwarded.
    let weights = unsafe { slice(raw.class_weights, if raw.class_weights.is_null() { 0 } else { classes }, "")? };
    if !weights.is_empty() {
        options.class_weights = ClassWeights::Given(weights.to_vec());
    }
    choose(&mut options, raw, &words)?;
    if let Some(text) = words.settings {
        options = options.with_toml(text)?;
    }
    let session = Session::new(start, head, names, options)?;
    session.notes().iter().for_each(|note| log::warn!("{note}"));
    Ok(session)
}

/// A session that goes on from a checkpoint.
///
/// # Safety
/// As [`open`].
pub(crate) unsafe fn resume(checkpoint: &Path, raw: &moco_session_options) -> Result<Session> {
    // SAFETY: forwarded.
    let words = unsafe { Words::of(raw)? };
    Ok(Session::resume(checkpoint, words.device.map(device).transpose()?)?)
}

/// What a session asks for while it trains.
pub(crate) struct Told {
    pub progress: moco_session_callback,
    pub user: *mut c_void,
    pub checkpoint: Option<PathBuf>,
    pub threads: usize,
}

// SAFETY: the callback is called by the thread that calls libmoco, one call at a time.
unsafe impl Send for Told {}
// SAFETY: as above.
unsafe impl Sync for Told {}

impl Told {
    /// # Safety
    /// As [`open`].
    pub(crate) unsafe fn new(raw: &moco_session_options) -> Result<Told> {
        // SAFETY: forwarded.
        let checkpoint = unsafe { optional_utf8(raw.checkpoint, "options->checkpoint")? }.map(PathBuf::from);
        Ok(Told { progress: raw.progress, user: raw.user, checkpoint, threads: raw.threads as usize })
    }
}

/// An option that cannot be.
fn option(name: &str, reason: &dyn Display) -> moco_error {
    moco_error::argument(format!("`options->{name}`: {reason}"))
}

/// A device by its name, for an option of that name.
pub(crate) fn device(name: &str) -> Result<DeviceChoice> {
    name.parse().map_err(|e: <DeviceChoice as FromStr>::Err| option("device", &e))
}

/// The texts of the options.
struct Words<'a> {
    arch: Option<&'a str>,
    head: Option<&'a str>,
    freeze: Option<&'a str>,
    batch_norm: Option<&'a str>,
    loss: Option<&'a str>,
    augment: Option<&'a str>,
    optimiser: Option<&'a str>,
    values: Option<&'a str>,
    device: Option<&'a str>,
    settings: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// # Safety
    /// As [`open`], and the texts outlive `'a`.
    unsafe fn of(raw: &moco_session_options) -> Result<Words<'a>> {
        // SAFETY: forwarded.
        let word = |text, name: &str| unsafe { optional_utf8(text, &format!("options->{name}")) };
        Ok(Words {
            arch: word(raw.arch, "arch")?,
            head: word(raw.head, "head")?,
            freeze: word(raw.freeze, "freeze")?,
            batch_norm: word(raw.batch_norm, "batch_norm")?,
            loss: word(raw.loss, "loss")?,
            augment: word(raw.augment, "augment")?,
            optimiser: word(raw.optimiser, "optimiser")?,
            values: word(raw.values, "values")?,
            device: word(raw.device, "device")?,
            settings: word(raw.settings, "settings")?,
        })
    }
}

/// # Safety
/// As [`open`].
unsafe fn class_names(raw: &moco_session_options, classes: usize) -> Result<Vec<String>> {
    if raw.class_names.is_null() {
        return Ok((0..classes).map(|class| class.to_string()).collect());
    }
    // SAFETY: as many names as classes, by contract.
    let names = unsafe { texts(raw.class_names, classes, "options->class_names")? };
    Ok(names.into_iter().map(str::to_owned).collect())
}

fn start(place: Option<&str>, raw: &moco_session_options, words: &Words<'_>) -> Result<Start> {
    let channels = (raw.channels > 0).then_some(raw.channels as usize);
    let Some(place) = place else {
        let spec = ArchSpec { in_channels: channels.unwrap_or(3), ..ArchSpec::new(words.arch.unwrap_or("resnet18")) };
        return Ok(Start::random(spec, None, raw.seed)?);
    };
    if words.arch == Some("random") {
        let card = open_backbone(Path::new(place), channels)?.card().clone();
        let spec = ArchSpec { projector: Projector::None, ..card.arch };
        return Ok(Start::random(spec, Some(card.preprocess), raw.seed)?);
    }
    if let Some(arch) = words.arch {
        let message = format!(
            "`options->arch` is {arch}, but {place} has a network of its own; only \"random\" is possible, for random weights in it"
        );
        return Err(moco_error::argument(message));
    }
    let path = moco_hub::locate(Path::new(place), &mut |_| ())?;
    if path.is_file() && is_model(&path)? {
        let model = Model::open(&path)?;
        let has = model.card().arch.in_channels;
        if channels.is_some_and(|channels| channels != has) {
            let message = format!("`options->channels` is {}, the model {place} reads {has}", raw.channels);
            return Err(moco_error::argument(message));
        }
        return Ok(Start::model(&model)?);
    }
    Ok(Start::backbone(&open_backbone(&path, channels)?)?)
}

fn open_backbone(place: &Path, channels: Option<usize>) -> Result<BackboneFile> {
    let opened = moco_hub::open_backbone(place, channels, &mut |_| ())?;
    opened.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    Ok(opened.file)
}

fn choose(options: &mut Options, raw: &moco_session_options, words: &Words<'_>) -> Result<()> {
    fn set<T, V>(field: &mut T, given: V, convert: impl FnOnce(V) -> T)
    where
        V: Default + PartialEq,
    {
        if given != V::default() {
            *field = convert(given);
        }
    }
    if raw.height > 0 {
        options.size = [raw.height, if raw.width > 0 { raw.width } else { raw.height }].map(|side| side as usize);
    } else if raw.width > 0 {
        return Err(moco_error::argument("`options->width` is given without `height`"));
    }
    if let Some(freeze) = words.freeze {
        options.freeze = freeze.parse().map_err(|e| option("freeze", &e))?;
    }
    if let Some(name) = words.batch_norm {
        options.batch_norm = match name {
            "trained" => BatchNorm::Trained,
            "frozen" => BatchNorm::Frozen,
            other => return Err(option("batch_norm", &format!("`{other}`: expected trained or frozen"))),
        };
    }
    if let Some(name) = words.optimiser {
        options.optimiser.kind = match name {
            "adamw" => OptimiserKind::AdamW,
            "sgd" => OptimiserKind::Sgd,
            other => return Err(option("optimiser", &format!("`{other}`: expected adamw or sgd"))),
        };
    }
    if let Some(text) = words.loss {
        let LossOptions::Segment(loss) = &mut options.loss else {
            return Err(option("loss", &"only segmentation has a choice; others are set by `settings`"));
        };
        *loss = text.parse().map_err(|e| option("loss", &e))?;
    }
    if let Some(name) = words.augment {
        options.augment = AugmentOptions::preset(name).map_err(|e| option("augment", &e))?;
    }
    if let Some(name) = words.device {
        options.device = device(name)?;
    }
    set(&mut options.seed, raw.seed, |seed| seed);
    set(&mut options.epochs, raw.epochs, u64::from);
    set(&mut options.steps, raw.steps, u64::from);
    set(&mut options.batch, raw.batch, |n| n as usize);
    set(&mut options.patience, raw.patience, u64::from);
    set(&mut options.optimiser.lr, raw.learning_rate, f64::from);
    set(&mut options.optimiser.backbone_rate, raw.backbone_rate, f64::from);
    set(&mut options.optimiser.layer_decay, raw.layer_decay, f64::from);
    set(&mut options.optimiser.weight_decay, raw.weight_decay, f64::from);
    set(&mut options.schedule.warmup, raw.warmup, f64::from);
    set(&mut options.average, raw.average, f64::from);
    Ok(())
}
