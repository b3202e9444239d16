//! Losses against recordings of PyTorch: MoCo's InfoNCE with its gradient through the normalisation.

use std::collections::HashMap;

use moco_engine::ops::{InfoNceInputs, InfoNceWorkspace, info_nce, l2_normalise, l2_normalise_backward};
use safetensors::SafeTensors;

use super::traces::read;
use moco_tests::generator::uniform;

/// Losses of other methods in the same file, which this trainer does not have.
const OTHER_METHODS: [&str; 5] = ["ntxent", "negative_cosine", "barlow_twins", "vicreg", "dcl"];

/// Queue and temperature of the recording, as its metadata describes in words.
const QUEUE: usize = 64;
const TEMPERATURE: f32 = 0.2;

/// Compares `moco_infonce` of a file of kind `losses`; a loss that is not known is an error.
pub fn check(file: &SafeTensors<'_>, metadata: &HashMap<String, String>) -> Result<String, String> {
    let text = |key: &str| metadata.get(key).ok_or(format!("metadata lacks `{key}`"));
    let count = |key: &str| text(key)?.parse::<usize>().map_err(|e| format!("metadata `{key}`: {e}"));
    for name in file.names() {
        let method = name.split('.').next().unwrap_or_default();
        if method != "moco_infonce" && !OTHER_METHODS.contains(&method) {
            return Err(format!("`{name}`: the loss `{method}` is not known"));
        }
    }
    let described = text("moco_infonce")?;
    for part in [format!("queue of {QUEUE} "), format!("temperature {TEMPERATURE}")] {
        if !described.contains(&part) {
            return Err(format!("moco_infonce is `{described}`; this test knows `{part}` only"));
        }
    }
    let (n, dim, seed) = (count("N")?, count("D")?, text("seed")?);
    let values = |name: &str, len| -> Vec<f32> {
        uniform(&format!("{seed}/{name}"), len).into_iter().map(|v| v as f32).collect()
    };
    let unit = |x: &[f32]| {
        let mut y = vec![0.0; x.len()];
        l2_normalise(x, dim, &mut y);
        y
    };
    let raw = values("a", n * dim);
    let (query, key, queue) = (unit(&raw), unit(&values("b", n * dim)), unit(&values("queue", QUEUE * dim)));
    let inputs =
        InfoNceInputs { query: &query, key: &key, queue: &queue, dim, temperature: TEMPERATURE, same_image: None };
    let mut d_query = vec![0.0; n * dim];
    let loss = info_nce(&inputs, &mut d_query, &mut InfoNceWorkspace::default()).map_err(|e| e.to_string())?.loss;
    let mut gradient = vec![0.0; n * dim];
    l2_normalise_backward(&raw, &d_query, dim, &mut gradient);

    let gradient: Vec<f64> = gradient.into_iter().map(f64::from).collect();
    for (name, got) in [("moco_infonce.loss", &[loss][..]), ("moco_infonce.grad0", &gradient)] {
        let expected = read(file, name)?;
        let error: f64 = got.iter().zip(&expected).map(|(g, e)| (g - e).powi(2)).sum();
        let relative = (error / expected.iter().map(|e| e * e).sum::<f64>()).sqrt();
        if got.len() != expected.len() || relative.is_nan() || relative > 1e-5 {
            return Err(format!("{name}: relative error {relative:.2e}, allowed 1e-5"));
        }
    }
    Ok(format!("moco_infonce within 1e-5; not part of this trainer: {}", OTHER_METHODS.join(", ")))
}
