//! The error object and its codes.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CString, c_char};

/// Kind of an error. Numbers are never given another meaning.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum moco_code {
    /// No error.
    Ok = 0,
    /// An argument is NULL, out of range, or does not fit another one.
    InvalidArgument = 1,
    /// A file is missing, or cannot be read, written or fetched.
    Io = 2,
    /// A file is damaged or not of the kind that was expected.
    Format = 3,
    /// ONNX Runtime was not found or cannot be used.
    Runtime = 4,
    /// An image cannot be decoded, or is not what the backbone's card asks for.
    Image = 5,
    /// The progress callback asked to stop.
    Cancelled = 6,
    /// A fault inside libmoco.
    Internal = 255,
}

/// What went wrong. Owned by the caller, freed with moco_error_free().
pub struct moco_error {
    pub(crate) code: moco_code,
    pub(crate) message: CString,
}

impl moco_error {
    pub(crate) fn new(code: moco_code, message: impl Into<String>) -> moco_error {
        let message = message.into().replace('\0', " ");
        moco_error { code, message: CString::new(message).expect("NUL was replaced") }
    }

    pub(crate) fn argument(message: impl Into<String>) -> moco_error {
        moco_error::new(moco_code::InvalidArgument, message)
    }
}

impl From<moco_models::Error> for moco_error {
    fn from(error: moco_models::Error) -> moco_error {
        use moco_models::Error as E;
        let code = match &error {
            E::Io { .. } => moco_code::Io,
            E::Arch(_) => moco_code::InvalidArgument,
            _ => moco_code::Format,
        };
        moco_error::new(code, error.to_string())
    }
}

impl From<moco_image::Error> for moco_error {
    fn from(error: moco_image::Error) -> moco_error {
        use moco_image::Error as E;
        let code = match &error {
            E::Io { .. } => moco_code::Io,
            E::Parameter { .. } | E::Shape(_) | E::OutputLength { .. } => moco_code::InvalidArgument,
            _ => moco_code::Image,
        };
        moco_error::new(code, error.to_string())
    }
}

impl From<moco_hub::Error> for moco_error {
    fn from(error: moco_hub::Error) -> moco_error {
        use moco_hub::Error as E;
        let code = match error {
            E::Model(error) => return error.into(),
            E::Reference { .. } | E::Settings(_) => moco_code::InvalidArgument,
            E::Answer { .. } | E::Damaged { .. } => moco_code::Format,
            _ => moco_code::Io,
        };
        moco_error::new(code, error.to_string())
    }
}

impl From<moco_infer::Error> for moco_error {
    fn from(error: moco_infer::Error) -> moco_error {
        use moco_infer::Error as E;
        match error {
            E::Model(error) => error.into(),
            E::Hub(error) => error.into(),
            E::Image(error) => error.into(),
            E::File { path, source } => {
                let error = moco_error::from(source);
                let message = format!("{}: {}", path.display(), error.message.to_string_lossy());
                moco_error::new(error.code, message)
            }
            E::ImageAt { index, source } => {
                let error = moco_error::from(source);
                moco_error::new(error.code, format!("image {index}: {}", error.message.to_string_lossy()))
            }
            E::Io { .. } => moco_error::new(moco_code::Io, error.to_string()),
            E::Input(_) => moco_error::argument(error.to_string()),
            E::Runtime(_) | E::Session(_) => moco_error::new(moco_code::Runtime, error.to_string()),
            _ => moco_error::new(moco_code::Internal, error.to_string()),
        }
    }
}

impl From<moco_finetune::Error> for moco_error {
    fn from(error: moco_finetune::Error) -> moco_error {
        use moco_finetune::Error as E;
        match error {
            E::Model(error) => error.into(),
            E::Image(error) => error.into(),
            E::Cancelled => moco_error::new(moco_code::Cancelled, error.to_string()),
            E::Io { .. } => moco_error::new(moco_code::Io, error.to_string()),
            E::Format { .. } => moco_error::new(moco_code::Format, error.to_string()),
            E::Invalid(_) | E::Diverged { .. } => moco_error::argument(error.to_string()),
            _ => moco_error::new(moco_code::Internal, error.to_string()),
        }
    }
}

/// Kind of an error.
///
/// Parameters: `error`: an error or NULL.
/// Returns: its code; MOCO_CODE_OK for NULL.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_error_code(error: Option<&moco_error>) -> moco_code {
    error.map_or(moco_code::Ok, |e| e.code)
}

/// What went wrong, in words: the file, tensor, argument or option, what was expected and what to do.
///
/// Parameters: `error`: an error or NULL.
/// Returns: text; empty for NULL.
/// Memory: the text belongs to `error`.
/// Thread safety: const.
#[unsafe(no_mangle)]
pub extern "C" fn moco_error_message(error: Option<&moco_error>) -> *const c_char {
    error.map_or(c"".as_ptr(), |e| e.message.as_ptr())
}

/// Frees an error.
///
/// Parameters: `error`: an error or NULL.
/// Thread safety: must be the last call on `error`.
#[unsafe(no_mangle)]
pub extern "C" fn moco_error_free(error: Option<Box<moco_error>>) {
    drop(error);
}
