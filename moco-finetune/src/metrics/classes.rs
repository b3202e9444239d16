//! Classification with one class an image.

use super::{Names, check_label, check_length, harmonic, mean, ratio, sortable};
use crate::Result;

/// Collects answers of a classifier.
#[derive(Clone, Debug)]
pub struct ClassificationScores {
    classes: usize,
    k: usize,
    among_k: u64,
    confusion: Vec<u64>, // [truth, answer]
}

/// How good a classifier is.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassificationReport {
    /// Images.
    pub images: u64,
    /// Share of images whose class has the largest score.
    pub accuracy: Option<f64>,
    /// What `among_k` looks at.
    pub k: usize,
    /// Share of images whose class is among the k largest scores.
    pub among_k: Option<f64>,
    /// Mean recall of the classes that occur.
    pub balanced_accuracy: Option<f64>,
    /// Mean F1 of the classes that occur or were answered.
    pub macro_f1: Option<f64>,
    /// Each class by itself.
    pub per_class: Vec<ClassReport>,
    /// Images by class and answer [classes, classes]: a row is a class, a column an answer.
    pub confusion: Vec<Vec<u64>>,
}

/// How good a classifier is at one class.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassReport {
    /// Images of the class.
    pub images: u64,
    /// Share of its images that were answered so.
    pub recall: Option<f64>,
    /// Share of such answers that were right.
    pub precision: Option<f64>,
    /// Harmonic mean of both.
    pub f1: Option<f64>,
}

impl ClassificationScores {
    /// For a classifier of so many classes; `k` is the number of answers among which the class is looked for besides.
    pub fn new(classes: usize, k: usize) -> ClassificationScores {
        ClassificationScores { classes, k, among_k: 0, confusion: vec![0; classes * classes] }
    }

    /// Adds n images. Of equal scores the first counts as larger; one that is not a number is the smallest.
    /// - `scores` [n, classes]: probabilities or logits.   - `labels` [n].
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) if lengths or labels do not fit; nothing was added then.
    pub fn add(&mut self, scores: &[f32], labels: &[usize]) -> Result<()> {
        check_length("scores of a classifier", labels.len() * self.classes, scores.len())?;
        labels.iter().try_for_each(|label| check_label(*label, self.classes))?;
        for (scores, label) in scores.chunks_exact(self.classes.max(1)).zip(labels) {
            let own = sortable(scores[*label]);
            let before = scores.iter().enumerate().filter(|(class, score)| {
                let score = sortable(**score);
                score > own || (score == own && class < label)
            });
            self.among_k += u64::from(before.count() < self.k);
            let best = (1..self.classes)
                .fold(0, |best, k| if sortable(scores[k]) > sortable(scores[best]) { k } else { best });
            self.confusion[label * self.classes + best] += 1;
        }
        Ok(())
    }

    /// What the images so far give.
    pub fn report(&self) -> ClassificationReport {
        let confusion: Vec<Vec<u64>> = self.confusion.chunks(self.classes.max(1)).map(<[u64]>::to_vec).collect();
        let per_class = (0..self.classes).map(|k| {
            let right = confusion[k][k];
            let present: u64 = confusion[k].iter().sum();
            let answered: u64 = confusion.iter().map(|row| row[k]).sum();
            ClassReport {
                images: present,
                recall: ratio(right as f64, present as f64),
                precision: ratio(right as f64, answered as f64),
                f1: harmonic(right, answered, present),
            }
        });
        let per_class: Vec<ClassReport> = per_class.collect();
        let images: u64 = self.confusion.iter().sum();
        let right: u64 = (0..self.classes).map(|k| confusion[k][k]).sum();
        ClassificationReport {
            images,
            accuracy: ratio(right as f64, images as f64),
            k: self.k,
            among_k: ratio(self.among_k as f64, images as f64),
            balanced_accuracy: mean(per_class.iter().map(|class| class.recall)),
            macro_f1: mean(per_class.iter().map(|class| class.f1)),
            per_class,
            confusion,
        }
    }
}

impl ClassificationReport {
    /// `accuracy`, `balanced_accuracy`, `macro_f1`, `top<k>_accuracy` for k above 1, then `recall:`, `precision:` and `f1:` with
    /// the name of each class, or its number.
    pub fn named(&self, class_names: &[String]) -> Vec<(String, f64)> {
        let mut names = Names::new(class_names);
        names.add("accuracy", self.accuracy);
        names.add("balanced_accuracy", self.balanced_accuracy);
        names.add("macro_f1", self.macro_f1);
        if self.k > 1 {
            names.add(&format!("top{}_accuracy", self.k), self.among_k);
        }
        names.add_each("recall", self.per_class.iter().map(|class| class.recall));
        names.add_each("precision", self.per_class.iter().map(|class| class.precision));
        names.add_each("f1", self.per_class.iter().map(|class| class.f1));
        names.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loss::testing::{Recording, close};

    #[test]
    fn classification_is_that_of_scikit_learn() {
        let file = Recording::open("metrics.safetensors");
        let (scores, labels) = (file.f32("class_scores"), file.indices("class_labels"));
        let classes = scores.len() / labels.len();
        let mut all = ClassificationScores::new(classes, 3);
        // However the images come.
        for (scores, labels) in scores.chunks(7 * classes).zip(labels.chunks(7)) {
            all.add(scores, labels).unwrap();
        }
        let report = all.report();
        let values = [report.accuracy, report.among_k, report.balanced_accuracy, report.macro_f1];
        for (value, expected) in values.into_iter().zip(file.f64("class_summary")) {
            close("summary", value.unwrap(), expected, 1e-12);
        }
        assert_eq!(report.confusion.concat(), file.indices("confusion").iter().map(|n| *n as u64).collect::<Vec<_>>());
        let per_class = file.f64("per_class");
        for (class, expected) in report.per_class.iter().zip(per_class.chunks(3)) {
            // scikit-learn says 0 where nothing can be said.
            let got = [class.precision, class.recall, class.f1].map(|v| v.unwrap_or(0.0));
            got.into_iter().zip(expected).for_each(|(got, expected)| close("class", got, *expected, 1e-12));
        }
        assert!(report.per_class.iter().any(|class| class.recall.is_none() && class.precision == Some(0.0)));
        assert!(report.per_class.iter().any(|class| class.f1.is_none()));
    }

    #[test]
    fn equal_scores_go_to_the_first_class_and_no_numbers_to_none() {
        let mut scores = ClassificationScores::new(3, 2);
        scores.add(&[1.0, 1.0, 0.0, f32::NAN, -5.0, f32::NAN], &[1, 0]).unwrap();
        let report = scores.report();
        assert_eq!(report.confusion, [[0, 1, 0], [1, 0, 0], [0, 0, 0]]);
        assert_eq!((report.accuracy, report.among_k), (Some(0.0), Some(1.0)));
        assert!(scores.add(&[0.0; 3], &[3]).is_err() && scores.add(&[0.0; 2], &[0]).is_err());
        assert_eq!(scores.report(), report, "what is refused is not counted");
    }

    #[test]
    fn values_have_names_and_the_first_decides() {
        let mut scores = ClassificationScores::new(2, 1);
        assert_eq!(scores.report().named(&[]), []);
        scores.add(&[1.0, 0.0], &[0]).unwrap();
        let named = scores.report().named(&["cat".into()]);
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["accuracy", "balanced_accuracy", "macro_f1", "recall:cat", "precision:cat", "f1:cat"]);
    }
}
