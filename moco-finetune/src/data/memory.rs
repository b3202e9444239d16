//! Samples that lie in memory: what callers of the library hand over.

use moco_image::Raster;

use super::LabelledData;
use crate::task::{Sample, Target, Task};
use crate::{Error, Result};

/// A data set in memory.
#[derive(Debug, Clone)]
pub struct InMemory {
    classes: Vec<String>,
    samples: Vec<Sample>,
    task: Task,
}

impl InMemory {
    /// A set over `samples`, all of one task, whose labels number `classes`.
    ///
    /// # Errors
    /// [`Error::Invalid`] naming the first sample that does not fit: another kind of target or number of channels, a
    /// label that is no class, a mask of another size than its image, a box that is not finite, empty or outside.
    pub fn new(classes: Vec<String>, samples: Vec<Sample>) -> Result<Self> {
        let Some(first) = samples.first() else {
            return Err(Error::Invalid("a data set without samples".into()));
        };
        let task = task_of(&first.target);
        let channels = first.image.channels();
        for (i, sample) in samples.iter().enumerate() {
            let problem = if task_of(&sample.target) != task {
                Some("its target is of another kind than the first sample's".to_owned())
            } else if sample.image.channels() != channels {
                Some(format!("it has {} channels, the first has {channels}", sample.image.channels()))
            } else {
                check(sample, classes.len()).err()
            };
            if let Some(problem) = problem {
                return Err(Error::Invalid(format!("sample {i} (`{}`): {problem}", sample.name)));
            }
        }
        Ok(Self { classes, samples, task })
    }
}

impl LabelledData for InMemory {
    fn task(&self) -> Task {
        self.task
    }

    fn len(&self) -> usize {
        self.samples.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn channels(&self) -> usize {
        self.samples[0].image.channels()
    }

    fn bit_depth(&self) -> u8 {
        self.samples.iter().map(|sample| sample.image.bits.max(8)).max().unwrap_or(8)
    }

    fn name(&self, index: usize) -> String {
        self.samples[index].name.clone()
    }

    fn image(&self, index: usize) -> Result<Raster> {
        Ok(self.samples[index].image.clone())
    }

    fn target(&self, index: usize) -> Result<Target> {
        Ok(self.samples[index].target.clone())
    }
}

fn task_of(target: &Target) -> Task {
    match target {
        Target::Class(_) => Task::Classify,
        Target::Classes(_) => Task::MultiLabel,
        Target::Mask(_) => Task::Segment,
        Target::Boxes(_) => Task::Detect,
    }
}

/// What is wrong with a sample.
pub(super) fn check(sample: &Sample, classes: usize) -> std::result::Result<(), String> {
    let (height, width) = sample.image.size();
    let no_class = |label: usize| format!("the label {label}: expected 0 to {}", classes.saturating_sub(1));
    match &sample.target {
        Target::Class(label) if *label >= classes => Err(no_class(*label)),
        Target::Class(_) => Ok(()),
        Target::Classes(labels) => match labels.iter().find(|&&label| label >= classes) {
            Some(label) => Err(no_class(*label)),
            None => Ok(()),
        },
        Target::Mask(mask) => {
            if (mask.height(), mask.width()) != (height, width) {
                let (mask_height, mask_width) = (mask.height(), mask.width());
                return Err(format!(
                    "its mask has {mask_width} × {mask_height} pixels (width × height), the image has {width} × {height}"
                ));
            }
            let wrong = mask.data().iter().find(|&&v| usize::from(v) >= classes && v != crate::task::IGNORED);
            wrong.map_or(Ok(()), |value| Err(no_class(usize::from(*value))))
        }
        Target::Boxes(boxes) => boxes.iter().enumerate().try_for_each(|(i, labelled)| {
            let b = labelled.bbox;
            if labelled.label >= classes {
                return Err(format!("box {i}: {}", no_class(labelled.label)));
            }
            let finite = [b.x0, b.y0, b.x1, b.y1].iter().all(|v| v.is_finite());
            if !finite || b.clipped(width, height).area() <= 0.0 {
                return Err(format!("box {i}: {b:?} is not finite, empty or outside the image of {width} × {height}"));
            }
            Ok(())
        }),
    }
}
