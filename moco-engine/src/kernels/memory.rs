//! Memory for the plan's buffers: zeroed, touched once, in huge pages where the system gives them on request.

use crate::{Error, Result};

/// From this size on, huge pages are asked for.
#[cfg(target_os = "linux")]
const HUGE: usize = 4 << 20;

/// A vector of zeros whose failure to fit into memory is an error, not an abort.
pub(super) fn zeroed<T: bytemuck::Zeroable + Clone>(len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Error::Memory { bytes: len.saturating_mul(size_of::<T>()) })?;
    ask_for_huge_pages(&mut values);
    values.resize(len, T::zeroed());
    Ok(values)
}

/// Feature maps of hundreds of megabytes, read with strides, miss the TLB with 4 KiB pages. Must come before the memory
/// is touched.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages<T>(values: &mut Vec<T>) {
    const PAGE: usize = 4096;
    let bytes = values.capacity() * size_of::<T>();
    if bytes < HUGE {
        return;
    }
    let start = values.as_mut_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
    #[expect(unsafe_code, reason = "advice about pages has no safe interface in the standard library")]
    // SAFETY: [first, end) are whole pages inside the vector's own allocation, and MADV_HUGEPAGE changes neither content
    // nor validity. Its failure (a kernel without huge pages) costs only speed, so the result does not matter.
    unsafe {
        libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE);
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages<T>(_values: &mut Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_empty_vectors_are_zero_and_the_impossible_is_an_error() {
        assert!(zeroed::<f32>(0).unwrap().is_empty());
        assert!(zeroed::<f32>(5 << 20).unwrap().iter().all(|v| *v == 0.0));
        assert!(matches!(zeroed::<f32>(usize::MAX / 2), Err(Error::Memory { .. })));
    }
}
