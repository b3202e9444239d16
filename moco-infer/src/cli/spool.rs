//! Features on their way to a file: values go to a temporary file beside the target until their number is known.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use moco_models::weights::{TensorOut, save_safetensors};
use moco_models::write_atomically;
use npyz::WriterBuilder;

/// Rows of one tap.
pub struct Spool {
    tap: String,
    file: BufWriter<File>,
    row: Vec<usize>,
    rows: usize,
}

impl Spool {
    pub fn new(tap: &str, target: &Path) -> Result<Spool> {
        let file = tempfile::tempfile_in(folder(target)).with_context(|| format!("{}", folder(target).display()))?;
        Ok(Spool { tap: tap.to_owned(), file: BufWriter::with_capacity(1 << 20, file), row: vec![], rows: 0 })
    }

    pub fn push(&mut self, shape: &[usize], values: &[f32]) -> Result<()> {
        if self.rows == 0 {
            self.row = shape.to_vec();
        }
        if self.row != shape {
            bail!(
                "tap `{}` is {shape:?} here and {:?} for the files before; a file holds one shape: take `pooled`, or \
                 use a backbone whose card crops images to one size",
                self.tap,
                self.row
            );
        }
        for value in values {
            self.file.write_all(&value.to_le_bytes())?;
        }
        self.rows += 1;
        Ok(())
    }

    fn shape(&self) -> Vec<usize> {
        [&[self.rows], &self.row[..]].concat()
    }

    /// The values from the start.
    fn rewind(self) -> Result<impl Read> {
        let mut file = self.file.into_inner().context("the temporary file")?;
        file.rewind()?;
        Ok(BufReader::with_capacity(1 << 20, file))
    }
}

/// Writes one tap as a NumPy array [rows, …] of f32, whole or not at all.
pub fn write_npy(spool: Spool, target: &Path) -> Result<()> {
    let shape: Vec<u64> = spool.shape().iter().map(|&n| n as u64).collect();
    let mut values = spool.rewind()?;
    write_atomically(target, |out| {
        let mut writer = npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(out).begin_nd()?;
        let mut bytes = [0; 4];
        for _ in 0..shape.iter().product::<u64>() {
            values.read_exact(&mut bytes)?;
            writer.push(&f32::from_le_bytes(bytes))?;
        }
        writer.finish()
    })?;
    Ok(())
}

/// Writes all taps as tensors of their names; holds them in memory meanwhile.
pub fn write_safetensors(
    spools: Vec<Spool>,
    metadata: &std::collections::BTreeMap<String, String>,
    target: &Path,
) -> Result<()> {
    let mut taps = Vec::new();
    for spool in spools {
        let (tap, shape) = (spool.tap.clone(), spool.shape());
        let mut bytes = Vec::new();
        spool.rewind()?.read_to_end(&mut bytes)?;
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        taps.push((tap, shape, values));
    }
    let tensors: Vec<_> = taps.iter().map(|(tap, shape, values)| TensorOut::f32(tap.clone(), shape, values)).collect();
    Ok(save_safetensors(target, &tensors, metadata)?)
}

fn folder(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
