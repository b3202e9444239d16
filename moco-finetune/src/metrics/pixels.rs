//! Segmentation: how the classes of pixels agree.

use super::{Names, check_length, harmonic, mean, ratio};
use crate::task::IGNORED;
use crate::{Error, Result};

/// Collects class maps.
#[derive(Clone, Debug)]
pub struct SegmentationScores {
    classes: usize,
    images: u64,
    confusion: Vec<u64>,   // [truth, answer]
    dice: Vec<(f64, u64)>, // [classes] Σ of an image's Dice, images where it is defined
    mean_dice: (f64, u64), // Σ of an image's mean Dice, images where it is defined
}

/// How good class maps are.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentationReport {
    /// Images.
    pub images: u64,
    /// Mean Dice of the classes that occur or were answered, each over the pixels of all images.
    pub mean_dice: Option<f64>,
    /// The same without class 0.
    pub foreground_dice: Option<f64>,
    /// Mean over images of the mean Dice of the classes that occur or were answered in the image.
    pub image_dice: Option<f64>,
    /// Mean intersection over union of the classes that occur or were answered.
    pub mean_iou: Option<f64>,
    /// Share of pixels whose class was answered.
    pub pixel_accuracy: Option<f64>,
    /// Each class by itself.
    pub per_class: Vec<PixelReport>,
    /// Pixels by class and answer [classes, classes]: a row is a class, a column an answer.
    pub confusion: Vec<Vec<u64>>,
}

/// How good class maps are at one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PixelReport {
    /// Pixels of the class.
    pub pixels: u64,
    /// 2·|both| / (|class| + |answer|) over the pixels of all images.
    pub dice: Option<f64>,
    /// |both| / |either| over the pixels of all images.
    pub iou: Option<f64>,
    /// Mean of the Dice of each image in which the class occurs or was answered: 0 where it was only answered.
    pub image_dice: Option<f64>,
}

impl SegmentationScores {
    /// For maps of so many classes.
    pub fn new(classes: usize) -> SegmentationScores {
        SegmentationScores {
            classes,
            images: 0,
            confusion: vec![0; classes * classes],
            dice: vec![(0.0, 0); classes],
            mean_dice: (0.0, 0),
        }
    }

    /// Adds one image. Pixels whose truth is 255 do not count.
    /// - `answer`, `truth` [height · width].
    ///
    /// # Errors
    /// [`Error::Invalid`] if lengths or classes do not fit; nothing was added then.
    pub fn add(&mut self, answer: &[u8], truth: &[u8]) -> Result<()> {
        check_length("class map against its mask", truth.len(), answer.len())?;
        let mut pairs = vec![0u64; 256 * 256];
        for (answer, truth) in answer.iter().zip(truth) {
            pairs[usize::from(*truth) << 8 | usize::from(*answer)] += 1;
        }
        let valid = |class: usize| class < self.classes;
        for (pair, _) in pairs.iter().enumerate().filter(|(_, n)| **n > 0) {
            let (truth, answer) = (pair >> 8, pair & 255);
            if truth != usize::from(IGNORED) && !(valid(truth) && valid(answer)) {
                return Err(Error::Invalid(format!(
                    "a pixel of class {truth} was answered with {answer}; there are {} classes, from 0, and {IGNORED} in a \
                     mask is what is ignored",
                    self.classes
                )));
            }
        }
        let image: Vec<u64> = (0..self.classes)
            .flat_map(|truth| (0..self.classes).map(move |answer| truth << 8 | answer))
            .map(|i| pairs[i])
            .collect();
        let per_class: Vec<Option<f64>> =
            counts(&image, self.classes).map(|c| harmonic(c.both, c.answered, c.present)).collect();
        for (sum, value) in self.dice.iter_mut().zip(&per_class) {
            collect(sum, *value);
        }
        collect(&mut self.mean_dice, mean(per_class));
        self.confusion.iter_mut().zip(&image).for_each(|(sum, n)| *sum += n);
        self.images += 1;
        Ok(())
    }

    /// What the images so far give.
    pub fn report(&self) -> SegmentationReport {
        let per_class: Vec<PixelReport> = counts(&self.confusion, self.classes)
            .zip(&self.dice)
            .map(|(c, image_dice)| PixelReport {
                pixels: c.present,
                dice: harmonic(c.both, c.answered, c.present),
                iou: ratio(c.both as f64, (c.answered + c.present - c.both) as f64),
                image_dice: ratio(image_dice.0, image_dice.1 as f64),
            })
            .collect();
        let right: u64 = counts(&self.confusion, self.classes).map(|c| c.both).sum();
        SegmentationReport {
            images: self.images,
            mean_dice: mean(per_class.iter().map(|class| class.dice)),
            foreground_dice: mean(per_class.iter().skip(1).map(|class| class.dice)),
            image_dice: ratio(self.mean_dice.0, self.mean_dice.1 as f64),
            mean_iou: mean(per_class.iter().map(|class| class.iou)),
            pixel_accuracy: ratio(right as f64, self.confusion.iter().sum::<u64>() as f64),
            per_class,
            confusion: self.confusion.chunks(self.classes.max(1)).map(<[u64]>::to_vec).collect(),
        }
    }
}

impl SegmentationReport {
    /// `mean_dice`, `foreground_dice`, `image_dice`, `miou`, `pixel_accuracy`, then `dice:`, `iou:` and `image_dice:` with the name
    /// of each class, or its number.
    pub fn named(&self, class_names: &[String]) -> Vec<(String, f64)> {
        let mut names = Names::new(class_names);
        names.add("mean_dice", self.mean_dice);
        names.add("foreground_dice", self.foreground_dice);
        names.add("image_dice", self.image_dice);
        names.add("miou", self.mean_iou);
        names.add("pixel_accuracy", self.pixel_accuracy);
        names.add_each("dice", self.per_class.iter().map(|class| class.dice));
        names.add_each("iou", self.per_class.iter().map(|class| class.iou));
        names.add_each("image_dice", self.per_class.iter().map(|class| class.image_dice));
        names.values
    }
}

/// Pixels of a class.
struct Counts {
    both: u64,
    answered: u64,
    present: u64,
}

fn counts(confusion: &[u64], classes: usize) -> impl Iterator<Item = Counts> {
    (0..classes).map(move |k| Counts {
        both: confusion[k * classes + k],
        answered: (0..classes).map(|truth| confusion[truth * classes + k]).sum(),
        present: confusion[k * classes..][..classes].iter().sum(),
    })
}

fn collect(sum: &mut (f64, u64), value: Option<f64>) {
    if let Some(value) = value {
        *sum = (sum.0 + value, sum.1 + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::{Recording, close};

    #[test]
    fn overlap_and_dice_are_those_of_scikit_learn_and_monai() {
        let file = Recording::open("metrics.safetensors");
        let shape = file.shape("masks");
        let bytes = |name: &str| -> Vec<u8> { file.i32(name).into_iter().map(|v| v as u8).collect() };
        let (answers, truths) = (bytes("maps"), bytes("masks"));
        let mut scores = SegmentationScores::new(5);
        let pixels = shape[1] * shape[2];
        for (answer, truth) in answers.chunks(pixels).zip(truths.chunks(pixels)) {
            scores.add(answer, truth).unwrap();
        }
        let report = scores.report();
        assert_eq!(report.confusion.concat(), file.indices("pixels").iter().map(|n| *n as u64).collect::<Vec<_>>());
        let check = |what: &str, got: Vec<Option<f64>>, bound: f64| {
            let expected = file.f64(what);
            assert_eq!(got.len(), expected.len(), "{what}");
            for (got, expected) in got.into_iter().zip(expected) {
                // −1 is recorded where nothing can be said.
                close(what, got.unwrap_or(-1.0), expected, bound);
            }
        };
        check("iou", report.per_class.iter().map(|class| class.iou).collect(), 1e-12);
        check("dice", report.per_class.iter().map(|class| class.dice).collect(), 1e-12);
        check("pixel_accuracy", vec![report.pixel_accuracy], 1e-12);
        // MONAI computes in f32.
        check("image_dice", vec![report.image_dice], 1e-7);
        check("image_dice_of_class", report.per_class.iter().map(|class| class.image_dice).collect(), 1e-7);
        assert_eq!(report.mean_iou, mean(report.per_class.iter().map(|class| class.iou)));
        let foreground = report.per_class[1..].iter().map(|class| class.dice);
        assert_eq!(report.foreground_dice, mean(foreground));
        assert!(report.per_class[4].iou.is_none() && report.named(&[]).iter().all(|(name, _)| name != "iou:4"));
    }

    #[test]
    fn ignored_pixels_do_not_count_and_what_does_not_fit_is_refused() {
        let mut scores = SegmentationScores::new(2);
        scores.add(&[0, 1, 77, 1], &[0, 1, IGNORED, 0]).unwrap();
        let report = scores.report();
        assert_eq!(report.confusion, [[1, 1], [0, 1]]);
        assert_eq!((report.mean_dice, report.pixel_accuracy), (Some(2.0 / 3.0), Some(2.0 / 3.0)));
        assert!(scores.add(&[2], &[0]).unwrap_err().to_string().contains("answered with 2"));
        assert!(scores.add(&[0], &[2]).is_err() && scores.add(&[0], &[0, 0]).is_err());
        assert_eq!(scores.report(), report);
        // Nothing but ignored pixels is an image about which nothing is said.
        scores.add(&[0], &[IGNORED]).unwrap();
        assert_eq!((scores.report().images, scores.report().image_dice), (2, report.image_dice));
    }
}
