//! Which library is this.

#![expect(unsafe_code, reason = "exported symbols")]

use std::ffi::{CStr, c_char};

/// Version of the library that is loaded, e.g. "0.1.0". Compare its first two numbers with MOCO_VERSION_MAJOR and
/// MOCO_VERSION_MINOR to see whether the program was built for it.
///
/// Returns: text.
/// Memory: static.
/// Thread safety: any thread.
#[unsafe(no_mangle)]
pub extern "C" fn moco_version() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a version holds no NUL"),
    };
    TEXT.as_ptr()
}

/// Number of the loaded library's C ABI: a program built for one MOCO_ABI_VERSION does not run with another.
///
/// Returns: the number.
/// Thread safety: any thread.
#[unsafe(no_mangle)]
pub extern "C" fn moco_abi_version() -> u32 {
    0
}
