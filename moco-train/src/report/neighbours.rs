//! Nearest neighbours in feature space, and their pictures as embedded PNG.

use moco_image::{Filter, Image};

use crate::data::Dataset;
use crate::{Error, Result};

/// Longer side of a thumbnail in pixels.
const THUMBNAIL: usize = 72;

/// Queries with their nearest neighbours.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// What was asked, in the order to show.
    pub queries: Vec<Query>,
}

/// One image and what lies next to it.
#[derive(Clone, Debug)]
pub struct Query {
    /// PNG file of the query.
    pub png: Vec<u8>,
    /// Its class, or its name.
    pub caption: String,
    /// PNG, caption, cosine similarity, and whether the class is the query's (if there are classes); nearest first.
    pub nearest: Vec<(Vec<u8>, String, f32, Option<bool>)>,
}

impl Neighbours {
    /// Finds the `count` nearest neighbours, by cosine similarity, of `queries` images spread evenly over `data`, each
    /// among all other images.
    /// - `features` [data.len(), dim]: one row an image.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the features do not fit the data set; the data set's errors for an image that cannot be
    /// read.
    pub fn find(data: &Dataset, features: &[f32], dim: usize, queries: usize, count: usize) -> Result<Neighbours> {
        let n = data.len();
        if dim == 0 || features.len() != n * dim || n < 2 {
            let found = features.len();
            return Err(Error::Invalid(format!("{found} values are not {n} rows of {dim} features, 2 rows at least")));
        }
        let rows = unit_rows(features, dim);
        let queries = queries.min(n);
        let one = |i: usize| -> Result<Query> {
            let index = i * n / queries;
            let query = &rows[index * dim..][..dim];
            let mut others: Vec<(f32, usize)> = rows
                .chunks(dim)
                .enumerate()
                .filter(|(other, _)| *other != index)
                .map(|(other, row)| (row.iter().zip(query).map(|(a, b)| a * b).sum(), other))
                .collect();
            others.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let nearest = others[..count.min(others.len())].iter().map(|(similarity, other)| {
                let same = data.label(index).zip(data.label(*other)).map(|(a, b)| a == b);
                Ok((picture(data, *other)?, caption(data, *other), *similarity, same))
            });
            Ok(Query {
                png: picture(data, index)?,
                caption: caption(data, index),
                nearest: nearest.collect::<Result<_>>()?,
            })
        };
        Ok(Neighbours { queries: (0..queries).map(one).collect::<Result<_>>()? })
    }
}

fn caption(data: &Dataset, index: usize) -> String {
    let class = data.label(index).and_then(|label| data.class_names().get(label));
    class.cloned().unwrap_or_else(|| data.name(index).to_string())
}

fn picture(data: &Dataset, index: usize) -> Result<Vec<u8>> {
    thumbnail(&data.load(index)?)
}

fn unit_rows(features: &[f32], dim: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt().max(1e-12) as f32;
        row.iter().map(|v| v / norm).collect::<Vec<_>>()
    };
    features.chunks(dim).flat_map(unit).collect()
}

fn thumbnail(image: &Image) -> Result<Vec<u8>> {
    let longer = image.width().max(image.height());
    let side = |s: usize| (s * THUMBNAIL / longer).clamp(1, THUMBNAIL);
    let small = moco_image::resize(image, side(image.width()), side(image.height()), Filter::Bilinear)?;
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, small.width() as u32, small.height() as u32);
    encoder.set_color(if small.channels() == 1 { png::ColorType::Grayscale } else { png::ColorType::Rgb });
    encoder.set_depth(png::BitDepth::Eight);
    let failed = |e: png::EncodingError| Error::Invalid(format!("thumbnail: {e}"));
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(small.data()).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(file)
}
