//! Features in int8 beside features in f32.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use moco_models::calibration::{Accuracy, TapAccuracy};

use crate::{Error, Extractor, FileRow, Result};

/// Images whose maps are in memory at once, in f32 and in int8.
const CHUNK: usize = 16;

/// Cosines of one tap and, for vectors, the features themselves.
#[derive(Default)]
struct Tap {
    cosines: Vec<f64>,
    vectors: Option<[Vec<Vec<f32>>; 2]>,
}

/// Runs both extractors over files; none if no file can be used.
pub(super) fn measure(
    exact: &Extractor,
    int8: &Extractor,
    files: &[PathBuf],
    skipped: &mut Vec<(PathBuf, Error)>,
    on_progress: &mut dyn FnMut(usize),
) -> Result<Option<Accuracy>> {
    let mut taps: Vec<Tap> = exact.taps().iter().map(|_| Tap::default()).collect();
    let mut done = 0;
    for chunk in files.chunks(CHUNK) {
        for (exact, int8) in rows(exact, chunk)?.into_iter().zip(rows(int8, chunk)?) {
            match (exact.features, int8.features) {
                (Ok(exact), Ok(int8)) => {
                    for ((tap, (shape, exact)), (_, int8)) in taps.iter_mut().zip(exact).zip(int8) {
                        tap.cosines.push(cosine(&exact, &int8));
                        if shape.len() == 1 {
                            let [all_exact, all_int8] = tap.vectors.get_or_insert_default();
                            all_exact.push(exact);
                            all_int8.push(int8);
                        }
                    }
                }
                (Err(error), _) | (_, Err(error)) => skipped.push((chunk[done % CHUNK].clone(), error)),
            }
            done += 1;
            on_progress(done);
        }
    }
    let images = taps.first().map_or(0, |t| t.cosines.len());
    if images == 0 {
        return Ok(None);
    }
    let named = exact.taps().iter().cloned().zip(taps.iter().map(summary));
    let taps: BTreeMap<String, TapAccuracy> = named.collect();
    Ok(Some(Accuracy { images, weight_bits: crate::pool::weight_bits().bits(), taps }))
}

fn rows(extractor: &Extractor, files: &[PathBuf]) -> Result<Vec<FileRow>> {
    let mut rows = Vec::with_capacity(files.len());
    extractor.stream_files(files, &mut |row| {
        rows.push(row);
        ControlFlow::Continue(())
    })?;
    Ok(rows)
}

fn summary(tap: &Tap) -> TapAccuracy {
    let n = tap.cosines.len() as f64;
    let centred = tap.vectors.as_ref().map(|[exact, int8]| {
        let (exact, int8) = (centred(exact, exact), centred(int8, exact));
        exact.iter().zip(&int8).map(|(a, b)| cosine(a, b)).sum::<f64>() / n
    });
    let same = tap.vectors.as_ref().filter(|[exact, _]| exact.len() > 2).map(|[exact, int8]| {
        let same = nearest(exact).iter().zip(nearest(int8)).filter(|(a, b)| **a == *b).count();
        same as f64 / n
    });
    TapAccuracy {
        mean_cosine: tap.cosines.iter().sum::<f64>() / n,
        worst_cosine: tap.cosines.iter().copied().fold(f64::INFINITY, f64::min),
        mean_centred_cosine: centred,
        same_nearest_neighbour: same,
    }
}

/// `rows` less the mean of `reference`.
fn centred(rows: &[Vec<f32>], reference: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mean = |i: usize| reference.iter().map(|r| f64::from(r[i])).sum::<f64>() / reference.len() as f64;
    let means: Vec<f64> = (0..reference[0].len()).map(mean).collect();
    rows.iter().map(|row| row.iter().zip(&means).map(|(v, m)| (f64::from(*v) - m) as f32).collect()).collect()
}

/// For each row the other row that points the most in its direction.
fn nearest(rows: &[Vec<f32>]) -> Vec<usize> {
    let others = |i: usize| (0..rows.len()).filter(move |j| *j != i);
    let closest = |i: usize| {
        let similar = others(i).map(|j| (cosine(&rows[i], &rows[j]), j));
        similar.fold((f64::NEG_INFINITY, i), |best, other| if other.0 > best.0 { other } else { best }).1
    };
    (0..rows.len()).map(closest).collect()
}

/// Cosine of the angle; 1 for two vectors of zeros, which are equal, and 0 for one.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let (ab, aa, bb) = (dot(a, b), dot(a, a), dot(b, b));
    match (aa == 0.0, bb == 0.0) {
        (true, true) => 1.0,
        (false, false) => ab / (aa * bb).sqrt(),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines_and_neighbours_are_those_of_the_definition() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!((cosine(&[0.0], &[0.0]), cosine(&[0.0], &[1.0])), (1.0, 0.0));
        let rows = [vec![1.0, 0.0], vec![0.9, 0.1], vec![0.0, 1.0], vec![0.2, 1.0]];
        assert_eq!(nearest(&rows), [1, 0, 3, 2]);
    }

    #[test]
    fn centring_uncovers_what_a_common_direction_hides() {
        let exact = vec![vec![10.0, 0.1], vec![10.0, -0.1], vec![10.1, 0.0]];
        let int8 = vec![vec![10.0, -0.1], vec![10.0, 0.1], vec![10.1, 0.0]];
        let cosines = exact.iter().zip(&int8).map(|(a, b)| cosine(a, b)).collect();
        let summary = summary(&Tap { cosines, vectors: Some([exact, int8]) });
        assert!(summary.mean_cosine > 0.999);
        assert!(summary.mean_centred_cosine.unwrap() < 0.2, "{summary:?}");
    }
}
