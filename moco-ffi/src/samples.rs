//! Labelled images as the application gives them: in arrays, or one by one through a callback.

#![expect(unsafe_code, reason = "reads the application's images, and calls it")]

use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

use moco_finetune::Error;
use moco_finetune::data::LabelledData;
use moco_finetune::task::{BBox, IGNORED, LabelledBox, Mask, Sample, Target, Task};
use moco_image::{PreprocessRule, Raster};

use crate::boundary::{Options, Result, required, slice, versioned};
use crate::pixels::image;
use crate::{moco_error, moco_pixels};

/// What a model says about an image.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum moco_task {
    /// One class.
    Classify = 1,
    /// Any number of classes.
    MultiLabel = 2,
    /// A class for every pixel.
    Segment = 3,
    /// Boxes with a class each.
    Detect = 4,
}

/// An object that is known to be there. Edges, not pixel indices, in pixels of the image: all of it is 0, 0, width,
/// height; COCO's [x, y, w, h] is x, y, x + w, y + h.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_box {
    /// Left edge.
    pub x0: f32,
    /// Upper edge.
    pub y0: f32,
    /// Right edge, above x0.
    pub x1: f32,
    /// Lower edge, above y0.
    pub y1: f32,
    /// Its class, from 0.
    pub label: u32,
    /// 0, or MOCO_BOX_IGNORED.
    pub flags: u32,
}

/// The truth about an image. Only the fields of the session's or model's task are read.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_target {
    /// MOCO_TASK_MULTI_LABEL: a byte a class, 1 if the image has it, 0 if not.
    pub labels: *const u8,
    /// MOCO_TASK_SEGMENT: the class of every pixel, rows from top to bottom, of the size of the image; 255 says nothing.
    pub mask: *const u8,
    /// MOCO_TASK_DETECT: array of `boxes_len` objects. NULL if there are none.
    pub boxes: *const moco_box,
    /// Bytes from one row of `mask` to the next; 0 = rows follow each other without a gap.
    pub mask_stride: usize,
    /// Number of objects.
    pub boxes_len: usize,
    /// MOCO_TASK_CLASSIFY: the class, from 0.
    pub label: u32,
    /// 0.
    pub reserved: u32,
}

/// A labelled image.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct moco_sample {
    /// The image.
    pub pixels: moco_pixels,
    /// The truth about it.
    pub target: moco_target,
    /// The application's own, e.g. what moco_samples.release frees.
    pub owner: *mut c_void,
}

/// Gives sample `index`, below moco_samples.len: fills all of `out`, which is zero. What it points at must stay until
/// moco_samples.release is called for it; without one, until the next call of this function or the end of the function
/// that was given the samples. Anything but 0 is a failure, which the training reports with this number. Must not unwind.
pub type moco_sample_read =
    Option<unsafe extern "C" fn(index: usize, out: *mut moco_sample, user: *mut c_void) -> c_int>;

/// Called when a sample that moco_sample_read gave has been copied. Must not unwind.
pub type moco_sample_release = Option<unsafe extern "C" fn(sample: *const moco_sample, user: *mut c_void)>;

/// A set of labelled images: an array, or a callback. Start from MOCO_SAMPLES_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct moco_samples {
    /// sizeof(moco_samples).
    pub struct_size: usize,
    /// Number of samples.
    pub len: usize,
    /// Array of `len` samples; NULL = `read` gives them.
    pub samples: *const moco_sample,
    /// Gives one sample. It is called from threads of libmoco, for the same index again in every epoch.
    pub read: moco_sample_read,
    /// NULL = nothing is to be released.
    pub release: moco_sample_release,
    /// Handed to `read` and `release`.
    pub user: *mut c_void,
    /// 1 = `read` and `release` may be called by several threads at once, which needs a `release` or samples that stay.
    /// By default one call is made after the other.
    pub concurrent: u32,
    /// 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<moco_samples>() == 6 * size_of::<usize>() + 8, "no padding");

// SAFETY: repr(C), `struct_size` first, integers and nullable pointers only, no padding by the assertion above.
unsafe impl Options for moco_samples {
    const ZERO: Self = Self {
        struct_size: 0,
        len: 0,
        samples: std::ptr::null(),
        read: None,
        release: None,
        user: std::ptr::null_mut(),
        concurrent: 0,
        reserved: 0,
    };
}

/// What truths must look like: of which task, with which classes.
#[derive(Clone)]
pub(crate) struct Expected {
    pub task: Task,
    pub classes: Vec<String>,
    pub channels: usize,
    pub bit_depth: u8,
}

impl From<Task> for moco_task {
    fn from(task: Task) -> moco_task {
        match task {
            Task::Classify => moco_task::Classify,
            Task::MultiLabel => moco_task::MultiLabel,
            Task::Segment => moco_task::Segment,
            Task::Detect => moco_task::Detect,
        }
    }
}

impl Expected {
    /// Of a head, with the rule by which images are prepared for it.
    pub(crate) fn new(task: Task, classes: &[String], rule: &PreprocessRule) -> Expected {
        Expected { task, classes: classes.to_vec(), channels: rule.channels, bit_depth: rule.bit_depth }
    }
}

/// The application's samples as a training reads them.
pub(crate) struct Given {
    samples: moco_samples,
    expected: Expected,
    /// Held during a call of the application, if it wants one call after the other.
    turn: Mutex<()>,
}

// SAFETY: the header says that libmoco's threads read the arrays and call the callbacks; unless the application allows
// more, one at a time, by `turn`.
unsafe impl Send for Given {}
// SAFETY: as above.
unsafe impl Sync for Given {}

impl Given {
    /// # Safety
    /// `samples` is NULL or as the header says, until the value is dropped.
    pub(crate) unsafe fn new(samples: *const moco_samples, expected: Expected, name: &str) -> Result<Given> {
        required((!samples.is_null()).then_some(()), name)?;
        // SAFETY: forwarded.
        let given = unsafe { versioned(samples, name)? };
        if given.samples.is_null() && given.read.is_none() && given.len > 0 {
            return Err(moco_error::argument(format!("`{name}` has neither `samples` nor `read`")));
        }
        // SAFETY: forwarded; checks the array as a whole once.
        unsafe {
            slice(given.samples, if given.samples.is_null() { 0 } else { given.len }, &format!("{name}->samples"))?
        };
        Ok(Given { samples: given, expected, turn: Mutex::new(()) })
    }

    /// Hands a sample to `body`, and back to the application.
    fn with<T>(&self, index: usize, body: impl FnOnce(&moco_sample) -> Result<T>) -> moco_finetune::Result<T> {
        let in_words = |e: moco_error| Error::Invalid(format!("sample {index}: {}", e.message.to_string_lossy()));
        if index >= self.samples.len {
            let message = format!("sample {index} of {} was asked for", self.samples.len);
            return Err(Error::Invalid(message));
        }
        if !self.samples.samples.is_null() {
            // SAFETY: `index` is within the array, which the header wants to be there as long as this value.
            return body(unsafe { &*self.samples.samples.add(index) }).map_err(in_words);
        }
        let read = self.samples.read.expect("checked by new");
        let _turn = (self.samples.concurrent == 0).then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        let mut sample = EMPTY;
        // SAFETY: a callback of this signature with its own pointer, and a sample to fill, by contract.
        let answer = unsafe { read(index, &mut sample, self.samples.user) };
        if answer != 0 {
            return Err(Error::Invalid(format!("sample {index}: the application's callback answered {answer}")));
        }
        let result = body(&sample).map_err(in_words);
        if let Some(release) = self.samples.release {
            // SAFETY: as above; the sample has been copied.
            unsafe { release(&sample, self.samples.user) };
        }
        result
    }
}

const EMPTY: moco_sample = moco_sample {
    pixels: moco_pixels {
        data: std::ptr::null(),
        row_stride: 0,
        width: 0,
        height: 0,
        channels: 0,
        r#type: 0,
        black: 0.0,
        white: 0.0,
    },
    target: moco_target {
        labels: std::ptr::null(),
        mask: std::ptr::null(),
        boxes: std::ptr::null(),
        mask_stride: 0,
        boxes_len: 0,
        label: 0,
        reserved: 0,
    },
    owner: std::ptr::null_mut(),
};

/// Copies labelled images.
///
/// # Safety
/// `pixels` and `targets` are NULL or point to `n` structs as the header says.
pub(crate) unsafe fn batch(
    pixels: *const moco_pixels,
    targets: *const moco_target,
    n: usize,
    expected: &Expected,
) -> Result<Vec<Sample>> {
    // SAFETY: forwarded.
    let pixels = unsafe { slice(pixels, n, "pixels")? };
    // SAFETY: forwarded.
    let targets = unsafe { slice(targets, n, "targets")? };
    let sample = |(i, (pixels, truth)): (usize, (&moco_pixels, &moco_target))| {
        // SAFETY: forwarded.
        let image = unsafe { image(pixels, &format!("pixels[{i}]"))? };
        // SAFETY: forwarded.
        let target = unsafe { target(truth, pixels, expected, &format!("targets[{i}]"))? };
        Ok(Sample { image, target, name: format!("pixels[{i}]") })
    };
    pixels.iter().zip(targets).enumerate().map(sample).collect()
}

/// Copies and checks a truth.
///
/// # Safety
/// What the field of the task points at reaches as far as the sizes say.
unsafe fn target(target: &moco_target, pixels: &moco_pixels, expected: &Expected, name: &str) -> Result<Target> {
    let classes = expected.classes.len();
    let wrong = |what: String| Err(moco_error::argument(format!("`{name}.{what}")));
    match expected.task {
        Task::Classify if target.label as usize >= classes => {
            wrong(format!("label` is {}, there are {classes} classes (from 0)", target.label))
        }
        Task::Classify => Ok(Target::Class(target.label as usize)),
        Task::MultiLabel => {
            // SAFETY: a byte a class, by contract.
            let bytes = unsafe { slice(target.labels, classes, &format!("{name}.labels"))? };
            if let Some(class) = bytes.iter().position(|b| *b > 1) {
                return wrong(format!("labels[{class}]` is {}, expected 0 or 1", bytes[class]));
            }
            Ok(Target::Classes((0..classes).filter(|class| bytes[*class] == 1).collect()))
        }
        Task::Segment => {
            let (width, height) = (pixels.width as usize, pixels.height as usize);
            let stride = if target.mask_stride == 0 { width } else { target.mask_stride };
            if stride < width {
                return wrong(format!("mask_stride` is {stride}, a row has {width} bytes"));
            }
            let len = height.checked_sub(1).and_then(|rows| rows.checked_mul(stride)?.checked_add(width));
            let Some(len) = len else { return wrong("mask` has no pixels, or too many".into()) };
            // SAFETY: rows of the image's size, by contract.
            let bytes = unsafe { slice(target.mask, len, &format!("{name}.mask"))? };
            let data: Vec<u8> = bytes.chunks(stride).flat_map(|row| &row[..width]).copied().collect();
            if let Some(at) = data.iter().position(|class| *class != IGNORED && usize::from(*class) >= classes) {
                let (x, y) = (at % width, at / width);
                return wrong(format!(
                    "mask` is {} at column {x}, row {y}: there are {classes} classes (from 0), and 255 says nothing",
                    data[at]
                ));
            }
            Ok(Target::Mask(Mask::new(width, height, data)?))
        }
        Task::Detect => {
            // SAFETY: as many boxes as is said, by contract.
            let boxes = unsafe { slice(target.boxes, target.boxes_len, &format!("{name}.boxes"))? };
            let labelled = |(i, b): (usize, &moco_box)| {
                let name = format!("`{name}.boxes[{i}]`");
                let edges = [b.x0, b.y0, b.x1, b.y1];
                if edges.iter().any(|e| !e.is_finite()) || b.x0 >= b.x1 || b.y0 >= b.y1 {
                    let message = format!("{name} is {edges:?}: expected edges with x0 < x1 and y0 < y1");
                    return Err(moco_error::argument(message));
                }
                if b.label as usize >= classes {
                    let message = format!("{name} has label {}, there are {classes} classes (from 0)", b.label);
                    return Err(moco_error::argument(message));
                }
                if b.flags > BOX_IGNORED {
                    return Err(moco_error::argument(format!("{name} has the unknown flags {:#x}", b.flags)));
                }
                let bbox = BBox { x0: b.x0, y0: b.y0, x1: b.x1, y1: b.y1 };
                Ok(LabelledBox { bbox, label: b.label as usize, ignore: b.flags & BOX_IGNORED != 0 })
            };
            Ok(Target::Boxes(boxes.iter().enumerate().map(labelled).collect::<Result<_>>()?))
        }
    }
}

/// MOCO_BOX_IGNORED.
const BOX_IGNORED: u32 = 1;

impl LabelledData for Given {
    fn len(&self) -> usize {
        self.samples.len
    }

    fn task(&self) -> Task {
        self.expected.task
    }

    fn classes(&self) -> &[String] {
        &self.expected.classes
    }

    fn channels(&self) -> usize {
        self.expected.channels
    }

    fn bit_depth(&self) -> u8 {
        self.expected.bit_depth
    }

    fn name(&self, index: usize) -> String {
        format!("sample {index}")
    }

    fn image(&self, index: usize) -> moco_finetune::Result<Raster> {
        // SAFETY: a sample is as the header says, by contract of `new`.
        self.with(index, |sample| unsafe { image(&sample.pixels, "pixels") })
    }

    fn get(&self, index: usize) -> moco_finetune::Result<Sample> {
        self.with(index, |sample| {
            // SAFETY: as above.
            let image = unsafe { image(&sample.pixels, "pixels")? };
            // SAFETY: as above.
            let target = unsafe { target(&sample.target, &sample.pixels, &self.expected, "target")? };
            Ok(Sample { image, target, name: self.name(index) })
        })
    }

    fn target(&self, index: usize) -> moco_finetune::Result<Target> {
        // SAFETY: as above.
        self.with(index, |sample| unsafe { target(&sample.target, &sample.pixels, &self.expected, "target") })
    }
}
