//! Tensors as files hold them: a dtype, a shape, little-endian row-major bytes.

use std::borrow::Cow;
use std::fmt;

use half::{bf16, f16};

use crate::Result;

// Files are little-endian and are read in place.
const _: () = assert!(cfg!(target_endian = "little"), "moco-models needs a little-endian machine");

/// Types of values that checkpoints hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Dtype {
    Bool,
    U8,
    I8,
    I16,
    I32,
    I64,
    F16,
    BF16,
    F32,
    F64,
}

impl Dtype {
    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Dtype::Bool | Dtype::U8 | Dtype::I8 => 1,
            Dtype::I16 | Dtype::F16 | Dtype::BF16 => 2,
            Dtype::I32 | Dtype::F32 => 4,
            Dtype::I64 | Dtype::F64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
    }

    /// Name in a safetensors header.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::Bool => "BOOL",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::I16 => "I16",
            Dtype::I32 => "I32",
            Dtype::I64 => "I64",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::F32 => "F32",
            Dtype::F64 => "F64",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.safetensors_name())
    }
}

/// What is known of a tensor without reading its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Type of the values.
    pub dtype: Dtype,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
}

/// A tensor that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Type of the values.
    pub dtype: Dtype,
    /// Shape; empty for a scalar.
    pub shape: Vec<usize>,
    /// Little-endian values, row-major; `shape` product × size of `dtype` bytes.
    pub data: Cow<'a, [u8]>,
}

impl Tensor<'_> {
    /// The values as f32, rounded where the type holds more digits.
    ///
    /// # Panics
    /// If `out` has another length than the tensor.
    pub fn write_f32(&self, out: &mut [f32]) {
        assert_eq!(out.len() * self.dtype.size(), self.data.len(), "one f32 per value");
        fn each<const N: usize>(data: &[u8], out: &mut [f32], convert: impl Fn([u8; N]) -> f32) {
            let (values, _) = data.as_chunks::<N>();
            for (target, value) in out.iter_mut().zip(values) {
                *target = convert(*value);
            }
        }
        match self.dtype {
            Dtype::Bool | Dtype::U8 => each(&self.data, out, |[b]| f32::from(b)),
            Dtype::I8 => each(&self.data, out, |b| f32::from(i8::from_le_bytes(b))),
            Dtype::I16 => each(&self.data, out, |b| f32::from(i16::from_le_bytes(b))),
            Dtype::I32 => each(&self.data, out, |b| i32::from_le_bytes(b) as f32),
            Dtype::I64 => each(&self.data, out, |b| i64::from_le_bytes(b) as f32),
            Dtype::F16 => each(&self.data, out, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(&self.data, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F32 => each(&self.data, out, f32::from_le_bytes),
            Dtype::F64 => each(&self.data, out, |b| f64::from_le_bytes(b) as f32),
        }
    }
}

/// A file of named tensors: safetensors or a PyTorch checkpoint.
pub trait TensorSource {
    /// Names in the order of the file.
    fn names(&self) -> Vec<&str>;

    /// Type and shape of a tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads a tensor.
    ///
    /// # Errors
    /// Naming the file and the tensor if it is not there or cannot be read.
    fn tensor(&self, name: &str) -> Result<Tensor<'_>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_converts_to_f32() {
        let cases: [(Dtype, Vec<u8>); 10] = [
            (Dtype::Bool, vec![1]),
            (Dtype::U8, vec![1]),
            (Dtype::I8, 1i8.to_le_bytes().to_vec()),
            (Dtype::I16, 1i16.to_le_bytes().to_vec()),
            (Dtype::I32, 1i32.to_le_bytes().to_vec()),
            (Dtype::I64, 1i64.to_le_bytes().to_vec()),
            (Dtype::F16, f16::ONE.to_le_bytes().to_vec()),
            (Dtype::BF16, bf16::ONE.to_le_bytes().to_vec()),
            (Dtype::F32, 1f32.to_le_bytes().to_vec()),
            (Dtype::F64, 1f64.to_le_bytes().to_vec()),
        ];
        for (dtype, data) in cases {
            assert_eq!(data.len(), dtype.size());
            let mut out = [0.0];
            Tensor { dtype, shape: vec![], data: data.into() }.write_f32(&mut out);
            assert_eq!(out, [1.0], "{dtype}");
        }
    }
}
