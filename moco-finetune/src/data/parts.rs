//! Parts of a data set: a held-out share, a fraction of the labels. Every class keeps its share.

use std::collections::BTreeMap;
use std::sync::Arc;

use moco_image::{Raster, Rng};

use super::LabelledData;
use crate::task::{Target, Task};
use crate::{Error, Result};

/// Some of the images of a data set, in its order.
#[derive(Clone)]
pub struct Subset {
    data: Arc<dyn LabelledData>,
    indices: Vec<usize>,
}

impl Subset {
    /// The images of `data` numbered in `indices`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that `data` does not have, or none at all.
    pub fn new(data: Arc<dyn LabelledData>, indices: Vec<usize>) -> Result<Self> {
        match indices.iter().find(|&&index| index >= data.len()) {
            Some(index) => Err(Error::Invalid(format!("image {index} of a set of {}", data.len()))),
            None if indices.is_empty() => Err(Error::Invalid("a part without images".into())),
            None => Ok(Self { data, indices }),
        }
    }

    /// Numbers of its images in the whole set.
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }
}

impl LabelledData for Subset {
    fn task(&self) -> Task {
        self.data.task()
    }

    fn len(&self) -> usize {
        self.indices.len()
    }

    fn classes(&self) -> &[String] {
        self.data.classes()
    }

    fn channels(&self) -> usize {
        self.data.channels()
    }

    fn bit_depth(&self) -> u8 {
        self.data.bit_depth()
    }

    fn name(&self, index: usize) -> String {
        self.data.name(self.indices[index])
    }

    fn image(&self, index: usize) -> Result<Raster> {
        self.data.image(self.indices[index])
    }

    fn target(&self, index: usize) -> Result<Target> {
        self.data.target(self.indices[index])
    }

    fn strata(&self, index: usize) -> Result<Vec<usize>> {
        self.data.strata(self.indices[index])
    }
}

/// Divides a set in two: what is trained on, and `validation` (a share within (0, 1)) that is held out.
///
/// Images are drawn class by class: an image counts for the rarest class in it, and images without any are a class of
/// their own. A class of one image stays in training.
///
/// # Errors
/// [`Error::Invalid`] for a share outside (0, 1), or a set too small to divide.
pub fn split(data: Arc<dyn LabelledData>, validation: f64, seed: u64) -> Result<(Subset, Subset)> {
    if !(validation > 0.0 && validation < 1.0) {
        return Err(Error::Invalid(format!(
            "a validation share of {validation}: expected more than 0 and less than 1"
        )));
    }
    let (mut held_out, mut rest) = (Vec::new(), Vec::new());
    for stratum in strata(&*data, seed, 0x5641_4C49)? {
        let count = (stratum.len() as f64 * validation).round() as usize;
        let count = count.clamp(usize::from(stratum.len() > 1), stratum.len() - 1);
        held_out.extend_from_slice(&stratum[..count]);
        rest.extend_from_slice(&stratum[count..]);
    }
    if held_out.is_empty() {
        return Err(Error::Invalid(format!("{} image(s) are too few to hold some out", data.len())));
    }
    held_out.sort_unstable();
    rest.sort_unstable();
    Ok((Subset::new(data.clone(), rest)?, Subset::new(data, held_out)?))
}

/// A fraction, within (0, 1], of the images, drawn as [`split`] draws; at least one of each class. Of one seed a smaller
/// fraction is part of every larger one.
///
/// # Errors
/// [`Error::Invalid`] for a fraction outside (0, 1].
pub fn take(data: Arc<dyn LabelledData>, fraction: f64, seed: u64) -> Result<Subset> {
    if !(fraction > 0.0 && fraction <= 1.0) {
        return Err(Error::Invalid(format!("a fraction of {fraction}: expected more than 0 and at most 1")));
    }
    let mut taken = Vec::new();
    for stratum in strata(&*data, seed, 0x5441_4B45)? {
        let count = (stratum.len() as f64 * fraction).round() as usize;
        taken.extend_from_slice(&stratum[..count.clamp(1, stratum.len())]);
    }
    taken.sort_unstable();
    Subset::new(data, taken)
}

/// Numbers of the images of each class in a random order, rarest class first. `purpose` keeps draws apart.
fn strata(data: &dyn LabelledData, seed: u64, purpose: u64) -> Result<Vec<Vec<usize>>> {
    let classes: Vec<Vec<usize>> = (0..data.len()).map(|index| data.strata(index)).collect::<Result<_>>()?;
    let mut counts = vec![0usize; data.classes().len()];
    classes.iter().flatten().for_each(|&class| counts[class] += 1);
    let mut by_class: BTreeMap<(usize, Option<usize>), Vec<usize>> = BTreeMap::new();
    for (index, classes) in classes.iter().enumerate() {
        let rarest = classes.iter().copied().min_by_key(|&class| (counts[class], class));
        let key = (rarest.map_or(usize::MAX, |class| counts[class]), rarest);
        by_class.entry(key).or_default().push(index);
    }
    let shuffled = by_class.into_iter().map(|((_, class), mut indices)| {
        Rng::for_sample(seed, purpose, class.map_or(u64::MAX, |class| class as u64), 0).shuffle(&mut indices);
        indices
    });
    Ok(shuffled.collect())
}
