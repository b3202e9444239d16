//! Two feature files compared: what ONNX Runtime and the training engine make of the same images.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Largest difference of two matrices.
pub struct Difference {
    /// Images.
    pub rows: usize,
    /// Features of an image.
    pub columns: usize,
    /// Of two values.
    pub absolute: f64,
    /// Largest value of the second matrix.
    pub scale: f64,
}

impl Difference {
    /// The difference as a share of the largest value.
    pub fn relative(&self) -> f64 {
        self.absolute / self.scale
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1e} where values reach {:.2} ({:.1e} of it)", self.absolute, self.scale, self.relative())
    }
}

/// Compares two `.npy` matrices of float32.
///
/// # Errors
/// If a file is no such matrix, or the shapes differ.
pub fn compare(a: &Path, b: &Path) -> Result<Difference> {
    let ((shape_a, a), (shape_b, b)) = (read(a)?, read(b)?);
    ensure!(shape_a == shape_b, "the feature files have different shapes, {shape_a:?} and {shape_b:?}");
    ensure!(a.iter().chain(&b).all(|v| v.is_finite()), "a feature is not finite");
    let differences = a.iter().zip(&b).map(|(a, b)| f64::from((a - b).abs()));
    Ok(Difference {
        rows: shape_a[0],
        columns: shape_a[1],
        absolute: differences.fold(0.0, f64::max),
        scale: b.iter().map(|v| f64::from(v.abs())).fold(0.0, f64::max),
    })
}

/// NumPy's format 1.0 to 3.0: magic, version, length of the header, the header as a Python dictionary, values.
fn read(path: &Path) -> Result<([usize; 2], Vec<f32>)> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&bytes).with_context(|| format!("{} is no .npy matrix of float32", path.display()))
}

fn parse(bytes: &[u8]) -> Result<([usize; 2], Vec<f32>)> {
    ensure!(bytes.starts_with(b"\x93NUMPY") && bytes.len() > 12, "it does not begin as one");
    let (begin, length) = match bytes[6] {
        1 => (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))),
        _ => (12, u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]) as usize),
    };
    let header = bytes.get(begin..begin + length).context("its header is cut off")?;
    let header = std::str::from_utf8(header)?;
    ensure!(header.contains("'<f4'") && header.contains("'fortran_order': False"), "its header is {header}");
    let shape = header.split("'shape': (").nth(1).and_then(|s| s.split(')').next()).context("it has no shape")?;
    let sides: Vec<usize> =
        shape.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::parse).collect::<Result<_, _>>()?;
    let &[rows, columns] = &sides[..] else { bail!("its shape is ({shape})") };
    let data = &bytes[begin + length..];
    ensure!(data.len() == rows * columns * 4, "it holds {} bytes of values, not {rows} × {columns} × 4", data.len());
    Ok(([rows, columns], data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(shape: &str, values: &[f32]) -> Vec<u8> {
        let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n");
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        bytes
    }

    #[test]
    fn the_largest_difference_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a.npy"), folder.path().join("b.npy"));
        std::fs::write(&a, npy("(2, 2)", &[1.0, 2.0, 3.0, 4.0])).unwrap();
        std::fs::write(&b, npy("(2, 2)", &[1.0, 2.5, 3.0, 4.25])).unwrap();
        let difference = compare(&a, &b).unwrap();
        assert_eq!((difference.rows, difference.columns, difference.absolute, difference.scale), (2, 2, 0.5, 4.25));
        std::fs::write(&b, npy("(4, 1)", &[1.0, 2.5, 3.0, 4.25])).unwrap();
        assert!(compare(&a, &b).is_err());
        std::fs::write(&b, npy("(2, 2)", &[1.0, f32::NAN, 3.0, 4.25])).unwrap();
        assert!(compare(&a, &b).is_err());
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        for bytes in [b"".to_vec(), b"\x93NUMPY".to_vec(), npy("(2,)", &[1.0, 2.0]), npy("(2, 2)", &[1.0])] {
            assert!(parse(&bytes).is_err(), "{bytes:?}");
        }
    }
}
