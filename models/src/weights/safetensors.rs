//! Safetensors files: read by mmap, written whole or not at all, the same bytes for the same content.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::{SafeTensors, tensor::Metadata};
use memmap2::{Mmap, MmapMut};
use serde_json::{Map, Value, json};

use super::{Dtype, Tensor, TensorInfo, TensorSource};
use crate::files::{sha256_of_bytes, write_atomically};
use crate::{Error, Result};

/// The data section starts at a multiple of this, so that readers may use the tensors in place.
const ALIGNMENT: usize = 64;

/// A safetensors file, mapped into memory, or tensors laid out in memory as such a file; the header is checked in full when it is opened.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Mmap,
    data_start: usize,
    header: Metadata,
    names: Vec<String>,
}

impl SafetensorsFile {
    /// Opens and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] saying what is wrong with the header.
    pub fn open(path: &Path) -> Result<SafetensorsFile> {
        SafetensorsFile::checked(path, map_file(path)?)
    }

    /// Lays tensors out in memory as [`save_safetensors`] writes them; `path` is the file they come from.
    ///
    /// # Errors
    /// [`Error::Io`] if there is not enough memory, [`Error::Mismatch`] as [`save_safetensors`].
    pub(crate) fn in_memory(
        path: &Path,
        tensors: &[TensorOut<'_>],
        metadata: &BTreeMap<String, String>,
    ) -> Result<SafetensorsFile> {
        let failed = |cause| Error::Io { path: path.to_owned(), cause };
        let layout = Layout::new(tensors, metadata)?;
        let mut map = MmapMut::map_anon(layout.len()).map_err(failed)?;
        layout.write(&mut &mut map[..]).map_err(failed)?;
        SafetensorsFile::checked(path, map.make_read_only().map_err(failed)?)
    }

    fn checked(path: &Path, map: Mmap) -> Result<SafetensorsFile> {
        let (header_len, header) = SafeTensors::read_metadata(&map).map_err(|e| Error::Format {
            path: path.to_owned(),
            reason: format!("not a valid safetensors file ({e}); is the download complete?"),
        })?;
        let names = header.offset_keys();
        Ok(SafetensorsFile { path: path.to_owned(), map, data_start: 8 + header_len, header, names })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file, as mapped.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Place of a tensor's values in [`SafetensorsFile::bytes`].
    pub fn span(&self, name: &str) -> Option<Range<usize>> {
        let (start, end) = self.header.info(name)?.data_offsets;
        Some(self.data_start + start..self.data_start + end)
    }

    /// An entry of the header's `__metadata__`.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// SHA-256 of the whole file in hexadecimal.
    pub fn sha256(&self) -> String {
        sha256_of_bytes(&self.map)
    }
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let info = self.header.info(name)?;
        Some(TensorInfo { dtype: known_dtype(info.dtype)?, shape: info.shape.clone() })
    }

    fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let failed = |reason: String| Error::Format { path: self.path.clone(), reason };
        let info = self.header.info(name).ok_or_else(|| failed(format!("has no tensor `{name}`")))?;
        let dtype = known_dtype(info.dtype)
            .ok_or_else(|| failed(format!("tensor `{name}` has the unsupported type {:?}", info.dtype)))?;
        let span = self.span(name).expect("the header has this tensor");
        Ok(Tensor { dtype, shape: info.shape.clone(), data: Cow::Borrowed(&self.map[span]) })
    }
}

/// A tensor to be written: name, type, shape and little-endian row-major bytes.
#[derive(Clone, Debug)]
pub struct TensorOut<'a> {
    /// Name.
    pub name: String,
    /// Type.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub data: Cow<'a, [u8]>,
}

impl<'a> TensorOut<'a> {
    /// A tensor of f32 values.
    pub fn f32(name: impl Into<String>, shape: &[usize], values: &'a [f32]) -> TensorOut<'a> {
        let data = Cow::Borrowed(bytemuck::cast_slice(values));
        TensorOut { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), data }
    }

    /// A scalar of type i64.
    pub fn i64_scalar(name: impl Into<String>, value: i64) -> TensorOut<'a> {
        TensorOut { name: name.into(), dtype: Dtype::I64, shape: vec![], data: value.to_le_bytes().to_vec().into() }
    }
}

/// Writes tensors in the given order (those of 8-byte types first, as the alignment wants) with `metadata`,
/// atomically. The bytes depend on nothing else.
///
/// # Errors
/// [`Error::Io`]; [`Error::Mismatch`] for a tensor whose bytes do not fit its shape or a name that occurs twice.
pub fn save_safetensors(path: &Path, tensors: &[TensorOut<'_>], metadata: &BTreeMap<String, String>) -> Result<()> {
    let layout = Layout::new(tensors, metadata)?;
    write_atomically(path, |out| layout.write(out))
}

/// A file before it is written: its header, padded, and its tensors in order.
struct Layout<'a> {
    header: Vec<u8>,
    order: Vec<&'a TensorOut<'a>>,
}

impl<'a> Layout<'a> {
    fn new(tensors: &'a [TensorOut<'a>], metadata: &BTreeMap<String, String>) -> Result<Layout<'a>> {
        let mut order: Vec<&TensorOut> = tensors.iter().collect();
        order.sort_by_key(|t| std::cmp::Reverse(t.dtype.size()));
        let mut entries = Map::new();
        if !metadata.is_empty() {
            entries.insert("__metadata__".into(), json!(metadata));
        }
        let mut offset = 0;
        for tensor in &order {
            let bytes = tensor.shape.iter().try_fold(tensor.dtype.size(), |n, d| n.checked_mul(*d));
            if bytes != Some(tensor.data.len()) {
                let (name, shape, len) = (&tensor.name, &tensor.shape, tensor.data.len());
                return Err(Error::Mismatch(format!("tensor `{name}` {shape:?} of {} has {len} bytes", tensor.dtype)));
            }
            let end = offset + tensor.data.len();
            let entry = json!({
                "dtype": tensor.dtype.safetensors_name(),
                "shape": tensor.shape,
                "data_offsets": [offset, end],
            });
            if entries.insert(tensor.name.clone(), entry).is_some() {
                return Err(Error::Mismatch(format!("tensor `{}` is written twice", tensor.name)));
            }
            offset = end;
        }
        let mut header = Value::Object(entries).to_string().into_bytes();
        header.resize((8 + header.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        Ok(Layout { header, order })
    }

    fn len(&self) -> usize {
        8 + self.header.len() + self.order.iter().map(|t| t.data.len()).sum::<usize>()
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&(self.header.len() as u64).to_le_bytes())?;
        out.write_all(&self.header)?;
        self.order.iter().try_for_each(|t| out.write_all(&t.data))
    }
}

#[expect(unsafe_code, reason = "mapping a file is unsafe by nature")]
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let failed = |cause| Error::Io { path: path.to_owned(), cause };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(Error::Format { path: path.to_owned(), reason: "is not a file".into() });
    }
    // SAFETY: the map is read-only and only ever read as bytes, for which every value is valid. That nobody truncates
    // the file meanwhile is the caller's part, as with every mmap reader; our own writers replace files by renaming
    // and never change one in place.
    unsafe { Mmap::map(&file) }.map_err(failed)
}

fn known_dtype(dtype: ::safetensors::Dtype) -> Option<Dtype> {
    use ::safetensors::Dtype as S;
    Some(match dtype {
        S::BOOL => Dtype::Bool,
        S::U8 => Dtype::U8,
        S::I8 => Dtype::I8,
        S::I16 => Dtype::I16,
        S::I32 => Dtype::I32,
        S::I64 => Dtype::I64,
        S::F16 => Dtype::F16,
        S::BF16 => Dtype::BF16,
        S::F32 => Dtype::F32,
        S::F64 => Dtype::F64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(path: &Path) {
        let values = [1.0, 2.0, 3.0];
        let tensors = [TensorOut::f32("w", &[3, 1], &values), TensorOut::i64_scalar("n", 7)];
        save_safetensors(path, &tensors, &BTreeMap::from([("format".into(), "pt".into())])).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_the_bytes_are_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        sample(&a);
        sample(&b);
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let file = SafetensorsFile::open(&a).unwrap();
        assert_eq!(file.names(), ["n", "w"]);
        assert_eq!(file.metadata("format"), Some("pt"));
        assert_eq!(file.span("n").unwrap().start % ALIGNMENT, 0);
        assert_eq!(file.info("w").unwrap(), TensorInfo { dtype: Dtype::F32, shape: vec![3, 1] });
        let mut values = [0.0; 3];
        file.tensor("w").unwrap().write_f32(&mut values);
        assert_eq!(values, [1.0, 2.0, 3.0]);
        assert_eq!(&*file.tensor("n").unwrap().data, 7i64.to_le_bytes());
        assert!(file.tensor("x").unwrap_err().to_string().contains("`x`"));
    }

    #[test]
    fn truncated_files_are_refused_and_flipped_bits_never_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        sample(&path);
        let good = std::fs::read(&path).unwrap();
        let bad = folder.path().join("bad");
        for len in 0..good.len() {
            std::fs::write(&bad, &good[..len]).unwrap();
            assert!(SafetensorsFile::open(&bad).is_err(), "cut at {len}");
        }
        for bit in (0..good.len() * 8).step_by(3) {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&bad, &bytes).unwrap();
            if let Ok(file) = SafetensorsFile::open(&bad) {
                for name in file.names() {
                    let _ = file.tensor(name);
                }
            }
        }
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad");
        let huge = usize::MAX;
        for (lie, header) in [
            ("not json", "{".to_string()),
            ("hole", r#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#.to_string()),
            ("overlap", r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_string()),
            ("size", r#"{"w":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#.to_string()),
            ("overflow", format!(r#"{{"w":{{"dtype":"F32","shape":[{huge},{huge}],"data_offsets":[0,8]}}}}"#)),
            ("negative", r#"{"w":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#.to_string()),
            ("past the end", r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#.to_string()),
            ("deep", "[".repeat(100_000)),
        ] {
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend([0; 8]);
            std::fs::write(&path, &bytes).unwrap();
            let error = SafetensorsFile::open(&path).expect_err(lie).to_string();
            assert!(error.contains("safetensors"), "{lie}: {error}");
        }
        std::fs::write(&path, u64::MAX.to_le_bytes()).unwrap();
        assert!(SafetensorsFile::open(&path).is_err());
        std::fs::write(&path, "").unwrap();
        assert!(SafetensorsFile::open(&path).is_err());
    }

    #[test]
    fn tensors_that_do_not_fit_are_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let none = BTreeMap::new();
        assert!(save_safetensors(&path, &[TensorOut::f32("w", &[2], &[1.0])], &none).is_err());
        let twice = [TensorOut::f32("w", &[1], &[1.0]), TensorOut::f32("w", &[1], &[1.0])];
        assert!(save_safetensors(&path, &twice, &none).is_err());
        assert!(!path.exists());
    }
}
