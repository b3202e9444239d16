//! Training sessions: a head, and as much of its backbone as is wanted, learned from labelled images.

#![expect(unsafe_code, reason = "exported symbols and the application's callbacks")]

use std::ffi::{c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use moco_finetune::model::Evaluation;
use moco_finetune::session::{EpochReport, Event, FitData, Outcome, Session};

use crate::boundary::{Result, give, guard, optional_utf8, required, utf8, versioned};
use crate::samples::{Expected, Given, batch};
use crate::session_options::{self, Told};
use crate::{
    moco_code, moco_error, moco_metrics, moco_model, moco_pixels, moco_samples, moco_session_options, moco_target,
    moco_task,
};

/// What a session has just done, for moco_session_progress.event.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum moco_session_event {
    /// A step of the training.
    Step = 1,
    /// An epoch, with its validation if it had one.
    Epoch = 2,
    /// Some images of an evaluation.
    Evaluated = 3,
}

/// How far a training or an evaluation is.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_session_progress {
    /// Steps done.
    pub step: u64,
    /// Steps of the whole training; 0 if it has no end.
    pub steps: u64,
    /// A moco_session_event.
    pub event: u32,
    /// Epochs done.
    pub epoch: u32,
    /// Epochs of the whole training; 0 for a session that is fed batch by batch.
    pub epochs: u32,
    /// Images done, of an evaluation.
    pub images: u32,
    /// Images of it.
    pub images_total: u32,
    /// Loss of the step, mean loss of the epoch; NaN during an evaluation.
    pub loss: f32,
    /// Learning rate of the head.
    pub learning_rate: f32,
    /// The measure that decides, on the validation samples of this epoch; NaN if there was no validation.
    pub metric: f32,
    /// The best of it so far; NaN if there is none.
    pub best_metric: f32,
    /// 0.
    pub reserved: u32,
}

/// Called after each step, after each epoch and during evaluations, by the thread that called libmoco. Anything but 0
/// cancels. Must not unwind, and must not call functions on the session but moco_session_cancel().
pub type moco_session_callback =
    Option<unsafe extern "C" fn(progress: *const moco_session_progress, user: *mut c_void) -> c_int>;

/// A training in progress: a backbone with a head that learns.
///
/// 1. moco_session_open(), or moco_session_resume() from a checkpoint.
/// 2. moco_session_fit() for a whole training, or moco_session_step() for batches of the application's own.
/// 3. moco_session_evaluate(), moco_session_model(), moco_session_checkpoint().
/// 4. moco_session_free().
///
/// One call at a time: another that is made meanwhile is an error. Only moco_session_cancel() may be called at any time.
pub struct moco_session {
    training: Mutex<Session>,
    expected: Expected,
    told: Told,
    cancelled: AtomicBool,
}

const fn shareable<T: Send + Sync>() {}
const _: () = shareable::<moco_session>();

/// Starts a session.
///
/// Parameters: `place`: what the training starts from: a backbone, as in moco_backbone_open(); a model that
/// moco_model_save() wrote, with its head where task, classes and head are the same; or NULL for a random start. `options`:
/// `task` and `classes` must be given. `out`: receives the session.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_FORMAT, MOCO_CODE_INVALID_ARGUMENT that names the option.
/// Memory: free the session with moco_session_free(). Texts and arrays of the options are copied.
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_open(
    place: *const c_char,
    options: *const moco_session_options,
    out: Option<&mut MaybeUninit<*mut moco_session>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let place = unsafe { optional_utf8(place, "place")? };
        required((!options.is_null()).then_some(()), "options")?;
        // SAFETY: as above.
        let raw = unsafe { versioned(options, "options")? };
        // SAFETY: as above.
        let training = unsafe { session_options::open(place, &raw)? };
        // SAFETY: as above.
        let told = unsafe { Told::new(&raw)? };
        give(out, moco_session::new(training, told));
        Ok(())
    })
}

/// Goes on from a checkpoint, to the bit as if the training had not been interrupted.
///
/// Parameters: `checkpoint`: a file that moco_session_checkpoint() or a fit with `options->checkpoint` wrote. `options`: of
/// which only `progress`, `user`, `checkpoint`, `threads` and `device` are read, for the checkpoint holds all others; or
/// NULL. `out`: receives the session.
/// Returns: NULL, or an error: MOCO_CODE_IO, MOCO_CODE_FORMAT.
/// Memory: free the session with moco_session_free().
/// Thread safety: any thread.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_resume(
    checkpoint: *const c_char,
    options: *const moco_session_options,
    out: Option<&mut MaybeUninit<*mut moco_session>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(checkpoint, "checkpoint")? };
        // SAFETY: as above.
        let raw = unsafe { versioned(options, "options")? };
        // SAFETY: as above.
        let training = unsafe { session_options::resume(Path::new(path), &raw)? };
        // SAFETY: as above.
        let told = unsafe { Told::new(&raw)? };
        give(out, moco_session::new(training, told));
        Ok(())
    })
}

/// One step on a batch of the application's own: images are varied and prepared, the network learns. Its learning rate
/// follows the schedule over `options->steps`.
///
/// Parameters: `session`: a session. `pixels`, `targets`: `n` images, which may differ in size and type, and the truth about
/// each. `loss`: receives the loss before the step; may be NULL.
/// Returns: NULL, or an error that names the image; nothing was learned then.
/// Memory: pixels and targets are read during the call only.
/// Thread safety: one call at a time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_step(
    session: *mut moco_session,
    pixels: *const moco_pixels,
    targets: *const moco_target,
    n: usize,
    loss: Option<&mut MaybeUninit<f32>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        // SAFETY: a session or NULL, by contract.
        let session = required(unsafe { session.as_ref() }, "session")?;
        // SAFETY: forwarded from this function's own contract.
        let samples = unsafe { batch(pixels, targets, n, &session.expected)? };
        let report = session.training()?.step(samples)?;
        if let Some(loss) = loss {
            loss.write(report.loss as f32);
        }
        Ok(())
    })
}

/// Trains to the end of the last epoch, from wherever the session is: a session that was cancelled or resumed goes on.
///
/// Parameters: `session`: a session. `train`: the samples to learn. `validation`: samples on which the weights are judged
/// after each epoch, the best of which the session then gives; NULL = none. Both as in moco_samples, of the session's task.
/// Returns: NULL, or an error: MOCO_CODE_CANCELLED where the callback or moco_session_cancel() said so, and the session can be
/// used on; MOCO_CODE_INVALID_ARGUMENT that names the sample; MOCO_CODE_IO where a checkpoint cannot be written.
/// Memory: samples are read during the call only, from threads of libmoco.
/// Thread safety: one call at a time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_fit(
    session: *mut moco_session,
    train: *const moco_samples,
    validation: *const moco_samples,
) -> Option<Box<moco_error>> {
    guard(|| {
        // SAFETY: a session or NULL, by contract.
        let session = required(unsafe { session.as_ref() }, "session")?;
        // SAFETY: forwarded from this function's own contract.
        let train = unsafe { Given::new(train, session.expected.clone(), "train")? };
        let validation = match validation.is_null() {
            true => None,
            // SAFETY: as above.
            false => Some(unsafe { Given::new(validation, session.expected.clone(), "validation")? }),
        };
        session.fit(&train, validation.as_ref())
    })
}

/// Measures the session's model, as moco_session_model() would give it, on labelled images.
///
/// Parameters: `session`: a session. `samples`: as in moco_samples. `out`: receives the measures.
/// Returns: NULL, or an error: MOCO_CODE_CANCELLED, or MOCO_CODE_INVALID_ARGUMENT that names the sample.
/// Memory: free the measures with moco_metrics_free().
/// Thread safety: one call at a time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_evaluate(
    session: *mut moco_session,
    samples: *const moco_samples,
    out: Option<&mut MaybeUninit<*mut moco_metrics>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        // SAFETY: a session or NULL, by contract.
        let session = required(unsafe { session.as_ref() }, "session")?;
        let out = required(out, "out")?;
        // SAFETY: forwarded from this function's own contract.
        let samples = unsafe { Given::new(samples, session.expected.clone(), "samples")? };
        give(out, moco_metrics::new(session.evaluate(&samples)?));
        Ok(())
    })
}

/// What it learns to say about an image.
///
/// Parameters: `session`: a session or NULL.
/// Returns: a moco_task; 0 for NULL.
/// Thread safety: any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn moco_session_task(session: Option<&moco_session>) -> u32 {
    session.map_or(0, |s| moco_task::from(s.expected.task) as u32)
}

/// Number of classes.
///
/// Parameters: `session`: a session or NULL.
/// Returns: the number; 0 for NULL.
/// Thread safety: any thread, at any time.
#[unsafe(no_mangle)]
pub extern "C" fn moco_session_classes(session: Option<&moco_session>) -> usize {
    session.map_or(0, |s| s.expected.classes.len())
}

/// Makes the call that runs on a session stop soon: it returns MOCO_CODE_CANCELLED. Without such a call, the next one stops.
///
/// Parameters: `session`: a session or NULL.
/// Thread safety: any thread, at any time before moco_session_free().
#[unsafe(no_mangle)]
pub extern "C" fn moco_session_cancel(session: Option<&moco_session>) {
    if let Some(session) = session {
        session.cancelled.store(true, Ordering::Relaxed);
    }
}

/// Writes everything that moco_session_resume() needs, whole or not at all.
///
/// Parameters: `session`: a session. `path`: the file, which is replaced if it exists.
/// Returns: NULL, or an error: MOCO_CODE_IO.
/// Thread safety: one call at a time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_checkpoint(
    session: *mut moco_session,
    path: *const c_char,
) -> Option<Box<moco_error>> {
    guard(|| {
        // SAFETY: a session or NULL, by contract.
        let session = required(unsafe { session.as_ref() }, "session")?;
        // SAFETY: forwarded from this function's own contract.
        let path = unsafe { utf8(path, "path")? };
        Ok(session.training()?.checkpoint(Path::new(path))?)
    })
}

/// The model as it is now: with the best weights that were validated, else their moving average, else the last ones.
///
/// Parameters: `session`: a session, which goes on independently. `out`: receives the model.
/// Returns: NULL, or an error.
/// Memory: free the model with moco_model_free().
/// Thread safety: one call at a time.
#[must_use]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn moco_session_model(
    session: *mut moco_session,
    out: Option<&mut MaybeUninit<*mut moco_model>>,
) -> Option<Box<moco_error>> {
    guard(|| {
        // SAFETY: a session or NULL, by contract.
        let session = required(unsafe { session.as_ref() }, "session")?;
        let out = required(out, "out")?;
        let model = session.training()?.model()?;
        give(out, moco_model::new(model));
        Ok(())
    })
}

/// Frees a session.
///
/// Parameters: `session`: a session or NULL.
/// Thread safety: must be the last call on `session`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_session_free(session: Option<Box<moco_session>>) {
    drop(session);
}

impl moco_session {
    fn new(training: Session, told: Told) -> moco_session {
        let expected = Expected::new(training.head().task(), training.class_names(), training.rule());
        moco_session { training: Mutex::new(training), expected, told, cancelled: AtomicBool::new(false) }
    }

    fn fit(&self, train: &Given, validation: Option<&Given>) -> Result<()> {
        let mut training = self.training()?;
        let mut progress = Progress::new(self, &training);
        let data = FitData {
            train,
            validation: validation.map(|v| v as _),
            checkpoint: self.told.checkpoint.as_deref(),
            threads: self.told.threads,
        };
        match training.fit(&data, &mut |event| progress.told(event))?.outcome {
            Outcome::Cancelled => {
                Err(moco_error::new(moco_code::Cancelled, "the training was cancelled; it can go on"))
            }
            _ => Ok(()),
        }
    }

    fn evaluate(&self, samples: &Given) -> Result<Evaluation> {
        let mut training = self.training()?;
        let mut progress = Progress::new(self, &training);
        Ok(training.evaluate(samples, &mut |event| progress.told(event))?)
    }

    /// The training, for one call.
    fn training(&self) -> Result<MutexGuard<'_, Session>> {
        match self.training.try_lock() {
            Ok(training) => Ok(training),
            Err(TryLockError::WouldBlock) => {
                Err(moco_error::argument("`session` is busy with a call of another thread, or of its callback"))
            }
            Err(TryLockError::Poisoned(_)) => Err(moco_error::argument(
                "`session` is unusable after a fault inside libmoco: resume from a checkpoint",
            )),
        }
    }
}

/// What the callback is told, from one event to the next.
struct Progress<'a> {
    session: &'a moco_session,
    now: moco_session_progress,
}

impl<'a> Progress<'a> {
    fn new(session: &'a moco_session, training: &Session) -> Progress<'a> {
        let epochs = training.epochs();
        let value = |e: &EpochReport| e.validation.as_ref().and_then(|v| v.deciding()).map(|(_, value)| value as f32);
        let now = moco_session_progress {
            step: training.steps_done(),
            steps: 0,
            event: 0,
            epoch: epochs.last().map_or(0, |e| e.epoch as u32),
            epochs: 0,
            images: 0,
            images_total: 0,
            loss: f32::NAN,
            learning_rate: f32::NAN,
            metric: f32::NAN,
            best_metric: epochs.iter().filter_map(value).fold(f32::NAN, f32::max),
            reserved: 0,
        };
        Progress { session, now }
    }

    fn told(&mut self, event: &Event<'_>) -> ControlFlow<()> {
        let now = &mut self.now;
        now.metric = f32::NAN;
        match event {
            Event::Started { step, steps, steps_per_epoch } => {
                (now.step, now.steps, now.epochs) = (*step, *steps, steps.div_ceil((*steps_per_epoch).max(1)) as u32);
                return self.cancelled();
            }
            Event::Features { done, total } | Event::Evaluating { done, total } => {
                now.event = moco_session_event::Evaluated as u32;
                (now.images, now.images_total, now.loss) = (*done as u32, *total as u32, f32::NAN);
            }
            Event::Step(report) => {
                now.event = moco_session_event::Step as u32;
                (now.step, now.loss, now.learning_rate) = (report.step, report.loss as f32, report.lr as f32);
            }
            Event::Epoch(report) => {
                now.event = moco_session_event::Epoch as u32;
                (now.epoch, now.step) = (report.epoch as u32, report.step);
                (now.loss, now.learning_rate) = (report.loss as f32, report.lr as f32);
                if let Some((_, value)) = report.validation.as_ref().and_then(Evaluation::deciding) {
                    now.metric = value as f32;
                    // The maximum of NaN and a number is the number.
                    now.best_metric = now.best_metric.max(now.metric);
                }
            }
        }
        if let Some(callback) = self.session.told.progress {
            // SAFETY: a callback of this signature with its own pointer, by contract.
            if unsafe { callback(&self.now, self.session.told.user) } != 0 {
                return ControlFlow::Break(());
            }
        }
        self.cancelled()
    }

    /// A wish to cancel holds for one call.
    fn cancelled(&self) -> ControlFlow<()> {
        match self.session.cancelled.swap(false, Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}
