//! Answers compared with the truth.

use std::ops::ControlFlow;

use moco_image::Raster;
use rayon::prelude::*;

use super::ask::Asking;
use super::prediction::{Evaluation, Scores};
use crate::data::LabelledData;
use crate::session::features::Features;
use crate::session::network::Which;
use crate::session::stack::Stack;
use crate::task::Sample;
use crate::{Error, Result};

/// Gets the number of images done; ends the evaluation where it breaks.
type Told<'a> = dyn FnMut(usize) -> ControlFlow<()> + 'a;

impl Asking {
    /// Asks about every image of a data set.
    pub(crate) fn evaluate(
        &self,
        stack: &mut Stack,
        which: Which,
        data: &dyn LabelledData,
        class_names: &[String],
        told: &mut Told<'_>,
    ) -> Result<Evaluation> {
        let mut scores = Scores::new(&self.head);
        for start in (0..data.len()).step_by(self.options.batch) {
            let end = data.len().min(start + self.options.batch);
            let samples: Vec<Sample> = (start..end).into_par_iter().map(|i| data.get(i)).collect::<Result<_>>()?;
            let images: Vec<&Raster> = samples.iter().map(|s| &s.image).collect();
            let predictions = self.predict(stack, which, &images)?;
            for (i, (prediction, sample)) in predictions.iter().zip(&samples).enumerate() {
                scores
                    .add(prediction, &sample.target)
                    .map_err(|e| Error::Invalid(format!("{}: {e}", data.name(start + i))))?;
            }
            if told(end).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(scores.evaluation(data.len(), class_names))
    }

    /// Asks about features that were kept.
    pub(crate) fn evaluate_features(
        &self,
        stack: &mut Stack,
        which: Which,
        features: &Features,
        class_names: &[String],
        told: &mut Told<'_>,
    ) -> Result<Evaluation> {
        let mut scores = Scores::new(&self.head);
        for start in (0..features.len()).step_by(256) {
            let (rows, targets) = features.part(start, 256.min(features.len() - start));
            let mut predictions = vec![];
            stack.net.ask(which, rows, targets.len(), [1, 1], &mut |outputs| {
                predictions = self.classes(outputs[0]);
                Ok(())
            })?;
            for (prediction, target) in predictions.iter().zip(targets) {
                scores.add(prediction, target)?;
            }
            if told(start + targets.len()).is_break() {
                return Err(Error::Cancelled);
            }
        }
        Ok(scores.evaluation(features.len(), class_names))
    }
}
