//! Classification with any set of classes an image.

use super::{Names, check_label, check_length, harmonic, mean, sortable};
use crate::Result;

/// Probability from which a class counts as answered in F1.
const ANSWERED: f32 = 0.5;

/// Collects answers of a multi-label classifier.
#[derive(Clone, Debug)]
pub struct MultiLabelScores {
    images: u64,
    classes: Vec<Vec<(f32, bool)>>, // for each class, of each image: its score, and whether it has the class
}

/// How good a multi-label classifier is.
#[derive(Clone, Debug, PartialEq)]
pub struct MultiLabelReport {
    /// Images.
    pub images: u64,
    /// Mean of the average precisions of the classes that occur.
    pub mean_average_precision: Option<f64>,
    /// F1 over all answers of all classes.
    pub micro_f1: Option<f64>,
    /// Mean F1 of the classes that occur or were answered.
    pub macro_f1: Option<f64>,
    /// Each class by itself.
    pub per_class: Vec<LabelReport>,
}

/// How good a multi-label classifier is at one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelReport {
    /// Images that have the class.
    pub images: u64,
    /// Σ (R_n − R_{n−1}) P_n over the images by falling score, as `sklearn.metrics.average_precision_score`.
    pub average_precision: Option<f64>,
    /// F1 where a probability of ½ or more is an answer.
    pub f1: Option<f64>,
}

impl MultiLabelScores {
    /// For a classifier of so many classes.
    pub fn new(classes: usize) -> MultiLabelScores {
        MultiLabelScores { images: 0, classes: vec![Vec::new(); classes] }
    }

    /// Adds n images.
    /// - `probabilities` [n, classes].   - `labels`: for each of the n images the classes it has.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if lengths or labels do not fit; nothing was added then.
    pub fn add(&mut self, probabilities: &[f32], labels: &[&[usize]]) -> Result<()> {
        let classes = self.classes.len();
        check_length("probabilities of a multi-label classifier", labels.len() * classes, probabilities.len())?;
        labels.iter().flat_map(|labels| *labels).try_for_each(|label| check_label(*label, classes))?;
        self.images += labels.len() as u64;
        for (row, labels) in probabilities.chunks_exact(classes.max(1)).zip(labels) {
            for (class, (scores, p)) in self.classes.iter_mut().zip(row).enumerate() {
                scores.push((sortable(*p), labels.contains(&class)));
            }
        }
        Ok(())
    }

    /// What the images so far give.
    pub fn report(&self) -> MultiLabelReport {
        let (mut right, mut answered, mut present) = (0, 0, 0);
        let per_class = self.classes.iter().map(|scores| {
            let count = |keep: fn(&(f32, bool)) -> bool| scores.iter().filter(|s| keep(s)).count() as u64;
            let (class_right, class_answered, class_present) =
                (count(|s| s.0 >= ANSWERED && s.1), count(|s| s.0 >= ANSWERED), count(|s| s.1));
            right += class_right;
            answered += class_answered;
            present += class_present;
            LabelReport {
                images: class_present,
                average_precision: average_precision(scores),
                f1: harmonic(class_right, class_answered, class_present),
            }
        });
        let per_class: Vec<LabelReport> = per_class.collect();
        MultiLabelReport {
            images: self.images,
            mean_average_precision: mean(per_class.iter().map(|class| class.average_precision)),
            micro_f1: harmonic(right, answered, present),
            macro_f1: mean(per_class.iter().map(|class| class.f1)),
            per_class,
        }
    }
}

impl MultiLabelReport {
    /// `map`, `macro_f1`, `micro_f1`, then `ap:` and `f1:` with the name of each class, or its number.
    pub fn named(&self, class_names: &[String]) -> Vec<(String, f64)> {
        let mut names = Names::new(class_names);
        names.add("map", self.mean_average_precision);
        names.add("macro_f1", self.macro_f1);
        names.add("micro_f1", self.micro_f1);
        names.add_each("ap", self.per_class.iter().map(|class| class.average_precision));
        names.add_each("f1", self.per_class.iter().map(|class| class.f1));
        names.values
    }
}

/// Images of equal score come in together.
fn average_precision(scores: &[(f32, bool)]) -> Option<f64> {
    let present = scores.iter().filter(|s| s.1).count() as f64;
    if present == 0.0 {
        return None;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut right, mut seen, mut sum) = (0.0, 0.0, 0.0);
    for equal in sorted.chunk_by(|a, b| a.0 == b.0) {
        let new = equal.iter().filter(|s| s.1).count() as f64;
        right += new;
        seen += equal.len() as f64;
        sum += new / present * (right / seen);
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::{Recording, close};

    #[test]
    fn average_precision_and_f1_are_those_of_scikit_learn() {
        let file = Recording::open("metrics.safetensors");
        let (p, present) = (file.f32("label_scores"), file.f32("label_present"));
        let classes = file.shape("label_scores")[1];
        let sets: Vec<Vec<usize>> =
            present.chunks(classes).map(|row| (0..classes).filter(|k| row[*k] > 0.0).collect()).collect();
        let sets: Vec<&[usize]> = sets.iter().map(Vec::as_slice).collect();
        let mut scores = MultiLabelScores::new(classes);
        for (p, sets) in p.chunks(9 * classes).zip(sets.chunks(9)) {
            scores.add(p, sets).unwrap();
        }
        let report = scores.report();
        let summary = [report.mean_average_precision, report.micro_f1, report.macro_f1];
        for (value, expected) in summary.into_iter().zip(file.f64("label_summary")) {
            close("summary", value.unwrap(), expected, 1e-12);
        }
        for (class, expected) in report.per_class.iter().zip(file.f64("label_ap")) {
            close("average precision", class.average_precision.unwrap_or(-1.0), expected, 1e-12);
        }
        assert!(report.per_class.iter().any(|class| class.average_precision.is_none()));
    }

    #[test]
    fn equal_scores_come_in_together() {
        let mut scores = MultiLabelScores::new(1);
        scores.add(&[0.5; 4], &[&[], &[0], &[], &[]]).unwrap();
        assert_eq!(scores.report().mean_average_precision, Some(0.25));
        assert_eq!(scores.report().micro_f1, Some(0.4));
        assert!(scores.add(&[0.5], &[&[1]]).is_err() && scores.add(&[0.5; 2], &[&[0]]).is_err());
        assert_eq!(scores.report().images, 4);
        let names: Vec<String> = scores.report().named(&["a".into()]).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["map", "macro_f1", "micro_f1", "ap:a", "f1:a"]);
    }
}
