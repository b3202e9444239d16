//! A recorded file: tensors of any type as f64, bytes or integers, and its metadata.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// A safetensors file in memory.
pub struct Reference {
    path: PathBuf,
    bytes: Vec<u8>,
    metadata: HashMap<String, String>,
}

impl Reference {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or is no safetensors file.
    pub fn open(path: &Path) -> Result<Reference, String> {
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let invalid = |e: safetensors::SafeTensorError| format!("{}: not a safetensors file: {e}", path.display());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(invalid)?;
        SafeTensors::deserialize(&bytes).map_err(invalid)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Reference { path: path.to_owned(), bytes, metadata })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors.
    pub fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("open() has read it")
    }

    /// The metadata as written.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// A text of the metadata; some recordings write it as JSON (`"resnet18"` with the quotes), some plainly.
    pub fn text(&self, key: &str) -> Option<String> {
        let raw = self.metadata.get(key)?;
        Some(serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.clone()))
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn need(&self, key: &str) -> Result<String, String> {
        self.text(key).ok_or_else(|| format!("metadata has no `{key}`"))
    }

    /// A number or truth value of the metadata.
    ///
    /// # Errors
    /// If it is missing or no such value.
    pub fn parse<T: std::str::FromStr>(&self, key: &str) -> Result<T, String> {
        let text = self.need(key)?;
        text.parse().map_err(|_| format!("metadata `{key}` is `{text}`, not a {}", std::any::type_name::<T>()))
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tensors().names().iter().map(|n| n.to_string()).collect();
        names.sort();
        names
    }

    /// Whether a tensor is there.
    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    /// Shape of a tensor.
    ///
    /// # Errors
    /// If it is not there.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>, String> {
        self.tensors().tensor(name).map(|t| t.shape().to_vec()).map_err(|_| format!("no tensor `{name}`"))
    }

    /// Values of a tensor of any numeric type, in row-major order.
    ///
    /// # Errors
    /// If it is not there or its type is not numeric.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>, String> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"))?;
        let data = tensor.data();
        Ok(match tensor.dtype() {
            Dtype::F64 => values(data, f64::from_le_bytes),
            Dtype::F32 => values(data, |b| f64::from(f32::from_le_bytes(b))),
            Dtype::F16 => values(data, |b| f64::from(half::f16::from_le_bytes(b))),
            Dtype::BF16 => values(data, |b| f64::from(half::bf16::from_le_bytes(b))),
            Dtype::I64 => values(data, |b| i64::from_le_bytes(b) as f64),
            Dtype::I32 => values(data, |b| f64::from(i32::from_le_bytes(b))),
            Dtype::I16 => values(data, |b| f64::from(i16::from_le_bytes(b))),
            Dtype::I8 => values(data, |b: [u8; 1]| f64::from(b[0] as i8)),
            Dtype::U8 | Dtype::BOOL => values(data, |b: [u8; 1]| f64::from(b[0])),
            other => return Err(format!("tensor `{name}` has type {other:?}, which is not read here")),
        })
    }

    /// Integers of an i64 tensor, such as a permutation.
    ///
    /// # Errors
    /// If it is not there or has another type.
    pub fn i64s(&self, name: &str) -> Result<Vec<i64>, String> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"))?;
        match tensor.dtype() {
            Dtype::I64 => Ok(values(tensor.data(), i64::from_le_bytes)),
            other => Err(format!("tensor `{name}` has type {other:?}, expected I64")),
        }
    }

    /// Bytes of a u8 tensor, such as an image [H, W, C].
    ///
    /// # Errors
    /// If it is not there or has another type.
    pub fn u8s(&self, name: &str) -> Result<Vec<u8>, String> {
        let tensors = self.tensors();
        let tensor = tensors.tensor(name).map_err(|_| format!("no tensor `{name}`"))?;
        match tensor.dtype() {
            Dtype::U8 => Ok(tensor.data().to_vec()),
            other => Err(format!("tensor `{name}` has type {other:?}, expected U8")),
        }
    }
}

fn values<const N: usize, T>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}
