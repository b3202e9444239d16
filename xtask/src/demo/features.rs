//! Two feature files compared: what ONNX Runtime and the training engine make of the same images.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

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

/// Compares two `.npy` matrices of float32, each with the names of its rows in `<file>.files.txt`: rows of one name,
/// wherever they stand.
///
/// # Errors
/// If a file is no such matrix, or the shapes or the names differ.
pub fn compare(a: &Path, b: &Path) -> Result<Difference> {
    let ([rows, columns], a, b) = (read(a)?.0, named_rows(a)?, named_rows(b)?);
    ensure!(a.keys().eq(b.keys()), "the two feature files are not of the same images");
    let values = |of: &BTreeMap<String, Vec<f32>>| of.values().flatten().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    let (a, b) = (values(&a), values(&b));
    ensure!(a.len() == b.len(), "the two feature files have different numbers of features");
    ensure!(a.iter().chain(&b).all(|v| v.is_finite()), "a feature is not finite");
    Ok(Difference {
        rows,
        columns,
        absolute: a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max),
        scale: b.iter().map(|v| v.abs()).fold(0.0, f64::max),
    })
}

fn named_rows(path: &Path) -> Result<BTreeMap<String, Vec<f32>>> {
    let ([rows, columns], values) = read(path)?;
    let list = PathBuf::from(format!("{}.files.txt", path.display()));
    let names = std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let named: BTreeMap<String, Vec<f32>> =
        names.lines().map(str::to_owned).zip(values.chunks(columns.max(1)).map(<[f32]>::to_vec)).collect();
    ensure!(named.len() == rows, "{} names {} different images, not {rows}", list.display(), named.len());
    Ok(named)
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
    fn the_largest_difference_is_found_whatever_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, shape: &str, values: &[f32], files: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, npy(shape, values)).unwrap();
            std::fs::write(format!("{}.files.txt", path.display()), files).unwrap();
            path
        };
        let a = write("a.npy", "(2, 2)", &[1.0, 2.0, 3.0, 4.0], "x.jpg\ny.jpg\n");
        let b = write("b.npy", "(2, 2)", &[3.0, 4.25, 1.0, 2.5], "y.jpg\nx.jpg\n");
        let difference = compare(&a, &b).unwrap();
        assert_eq!((difference.rows, difference.columns, difference.absolute, difference.scale), (2, 2, 0.5, 4.25));
        for (shape, values, files) in [
            ("(4, 1)", [1.0, 2.5, 3.0, 4.25], "x.jpg\ny.jpg\nz.jpg\nw.jpg\n"),
            ("(2, 2)", [1.0, 2.5, 3.0, 4.25], "x.jpg\nz.jpg\n"),
            ("(2, 2)", [1.0, 2.5, 3.0, 4.25], "x.jpg\n"),
            ("(2, 2)", [1.0, f32::NAN, 3.0, 4.25], "x.jpg\ny.jpg\n"),
        ] {
            assert!(compare(&a, &write("c.npy", shape, &values, files)).is_err(), "{shape} {files}");
        }
    }

    #[test]
    fn what_is_no_matrix_is_refused() {
        for bytes in [b"".to_vec(), b"\x93NUMPY".to_vec(), npy("(2,)", &[1.0, 2.0]), npy("(2, 2)", &[1.0])] {
            assert!(parse(&bytes).is_err(), "{bytes:?}");
        }
    }
}
