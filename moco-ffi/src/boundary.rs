//! Where Rust ends: the only module that turns the caller's pointers into Rust values.

#![expect(unsafe_code, reason = "reads memory that the C caller describes")]

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{moco_code, moco_error};

pub(crate) type Result<T> = std::result::Result<T, moco_error>;

/// Largest options struct a caller can sensibly have; more is an uninitialised `struct_size`.
const MAX_OPTIONS: usize = 4096;

/// A struct of options that may be copied byte by byte: every bit pattern is a value, and there is no padding.
///
/// # Safety
/// `repr(C)`, first field `struct_size: usize`, only integers, floats and nullable pointers, no implicit padding.
pub(crate) unsafe trait Options: Copy {
    /// All fields 0.
    const ZERO: Self;
}

/// Runs `body`; its error, or its panic, becomes the returned object.
pub(crate) fn guard(body: impl FnOnce() -> Result<()>) -> Option<Box<moco_error>> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(Box::new(error)),
        Err(payload) => {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("panic");
            let message = format!("a fault inside libmoco, please report it: {text}");
            // Dropping a payload may panic in turn; leaking it cannot.
            std::mem::forget(payload);
            Some(Box::new(moco_error::new(moco_code::Internal, message)))
        }
    }
}

/// The argument, or an error that names it.
pub(crate) fn required<T>(argument: Option<T>, name: &str) -> Result<T> {
    argument.ok_or_else(|| null(name))
}

/// Gives a new object to the caller.
pub(crate) fn give<T>(out: &mut MaybeUninit<*mut T>, object: T) {
    out.write(Box::into_raw(Box::new(object)));
}

/// # Safety
/// `text` is NULL or points to a NUL-terminated string that outlives `'a`.
pub(crate) unsafe fn utf8<'a>(text: *const c_char, name: &str) -> Result<&'a str> {
    // SAFETY: forwarded.
    unsafe { optional_utf8(text, name)? }.ok_or_else(|| null(name))
}

/// # Safety
/// As [`utf8`].
pub(crate) unsafe fn optional_utf8<'a>(text: *const c_char, name: &str) -> Result<Option<&'a str>> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL by the check above, NUL-terminated by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|e| moco_error::argument(format!("`{name}` is not UTF-8: {e}")))
}

/// Strings of an array.
///
/// # Safety
/// `texts` is NULL or points to `n` pointers, each as in [`utf8`].
pub(crate) unsafe fn texts<'a>(texts: *const *const c_char, n: usize, name: &str) -> Result<Vec<&'a str>> {
    // SAFETY: forwarded.
    let pointers = unsafe { slice(texts, n, name)? };
    // SAFETY: forwarded.
    let text = |(i, p): (usize, &*const c_char)| unsafe { utf8(*p, &format!("{name}[{i}]")) };
    pointers.iter().enumerate().map(text).collect()
}

/// The first `struct_size` bytes of `*options` over zeros.
///
/// # Safety
/// `options` is NULL or points to at least `struct_size` readable bytes, the first field being `struct_size`.
pub(crate) unsafe fn versioned<T: Options>(options: *const T, name: &str) -> Result<T> {
    let mut known = T::ZERO;
    if options.is_null() {
        return Ok(known);
    }
    // SAFETY: every struct of options starts with `struct_size: usize`, readable by contract.
    let given = unsafe { options.cast::<usize>().read() };
    if !(size_of::<usize>()..=MAX_OPTIONS).contains(&given) {
        let message = format!("`{name}->struct_size` is {given}; initialise the struct with its MOCO_…_INIT");
        return Err(moco_error::argument(message));
    }
    let shared = given.min(size_of::<T>());
    // SAFETY: `shared` bytes are readable by contract and fit in `known`; any bytes are a value by `Options`.
    unsafe { std::ptr::copy_nonoverlapping(options.cast::<u8>(), (&raw mut known).cast::<u8>(), shared) };
    Ok(known)
}

/// # Safety
/// `data` is NULL or points to `len` readable elements that nobody writes during `'a`.
pub(crate) unsafe fn slice<'a, T>(data: *const T, len: usize, name: &str) -> Result<&'a [T]> {
    if len == 0 {
        return Ok(&[]);
    }
    check(data, len, name)?;
    // SAFETY: not NULL, aligned, of a possible size; readable by contract.
    Ok(unsafe { std::slice::from_raw_parts(data, len) })
}

/// # Safety
/// `data` is NULL or points to `len` writable elements that nobody else touches during `'a`.
pub(crate) unsafe fn out_slice<'a, T: Copy>(data: *mut T, len: usize, name: &str) -> Result<&'a mut [MaybeUninit<T>]> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(data, len, name)?;
    // SAFETY: not NULL, aligned, of a possible size; writable by contract, and uninitialised memory is allowed.
    Ok(unsafe { std::slice::from_raw_parts_mut(data.cast(), len) })
}

/// Copies results to the caller; lengths must agree.
pub(crate) fn copy_out<T: Copy>(values: &[T], out: &mut [MaybeUninit<T>], name: &str) -> Result<()> {
    if values.len() != out.len() {
        let message = format!("`{name}_len` is {}, expected {}", out.len(), values.len());
        return Err(moco_error::argument(message));
    }
    for (out, value) in out.iter_mut().zip(values) {
        out.write(*value);
    }
    Ok(())
}

fn check<T>(data: *const T, len: usize, name: &str) -> Result<()> {
    if data.is_null() {
        return Err(null(name));
    }
    if !data.is_aligned() || len.checked_mul(size_of::<T>()).is_none_or(|n| n > isize::MAX as usize) {
        return Err(moco_error::argument(format!("`{name}` is not aligned, or its length of {len} is impossible")));
    }
    Ok(())
}

fn null(name: &str) -> moco_error {
    moco_error::argument(format!("`{name}` is NULL"))
}
