//! Memory of a device and borrowed parts of it.

use std::marker::PhantomData;
use std::sync::Arc;

use super::Driver;
use crate::Result;

/// Values are stored in f32 or bf16 on the device; this says which, and how wide they are.
pub trait Value: Send + Sync + 'static {
    /// Bytes of a value.
    const BYTES: usize;
    /// Whether it is bf16.
    const BF16: bool;
}

/// Alignment of what shares an allocation.
pub(super) const ALIGN: usize = 256;

impl Value for f32 {
    const BYTES: usize = 4;
    const BF16: bool = false;
}

/// A bf16 value on a device. The host never holds one.
#[derive(Debug)]
pub struct Bf16;

impl Value for Bf16 {
    const BYTES: usize = 2;
    const BF16: bool = true;
}

/// An allocation of the device, freed when dropped.
pub struct Memory<D: Driver> {
    allocation: D::Allocation,
    driver: Arc<D>,
    bytes: usize,
}

impl<D: Driver> Memory<D> {
    /// `bytes` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`](crate::Error::Memory) if the device has not that much.
    pub fn zeroed(driver: &Arc<D>, bytes: usize) -> Result<Memory<D>> {
        // No allocation is empty, so that every view has an address.
        let allocation = driver.allocate(bytes.max(16))?;
        Ok(Memory { allocation, driver: driver.clone(), bytes })
    }

    pub(super) fn address(&self) -> u64 {
        D::address(&self.allocation)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first `len` values.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn view<T: Value>(&self, len: usize) -> &DeviceView<T> {
        self.check::<T>(len);
        DeviceView::at(self.address(), len)
    }

    /// The first `len` values, to be written.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn view_mut<T: Value>(&mut self, len: usize) -> &mut DeviceView<T> {
        self.check::<T>(len);
        DeviceView::at_mut(self.address(), len)
    }

    fn check<T: Value>(&self, len: usize) {
        assert!(len * T::BYTES <= self.bytes, "a view of {len} values in an allocation of {} bytes", self.bytes);
    }
}

impl<D: Driver> Drop for Memory<D> {
    fn drop(&mut self) {
        self.driver.free(&mut self.allocation);
    }
}

/// Scratch that grows to what is asked of it.
pub(super) struct Rows<D: Driver>(Option<Memory<D>>);

impl<D: Driver> Default for Rows<D> {
    fn default() -> Rows<D> {
        Rows(None)
    }
}

impl<D: Driver> Rows<D> {
    /// Address of at least `bytes` bytes; what they held is lost.
    pub(super) fn at_least(&mut self, driver: &Arc<D>, bytes: usize) -> Result<u64> {
        match &self.0 {
            Some(memory) if memory.bytes() >= bytes => Ok(memory.address()),
            _ => Ok(self.0.insert(Memory::zeroed(driver, bytes)?).address()),
        }
    }

    /// Addresses of parts of these lengths in bytes, aligned.
    pub(super) fn parts<const N: usize>(&mut self, driver: &Arc<D>, bytes: [usize; N]) -> Result<[u64; N]> {
        let lens = bytes.map(|bytes| bytes.next_multiple_of(ALIGN));
        let mut next = self.at_least(driver, lens.iter().sum())?;
        Ok(lens.map(|len| {
            let at = next;
            next += len as u64;
            at
        }))
    }
}

/// A borrowed run of values on a device: their address and their number. The host cannot read them.
///
/// `[()]` gives the reference a length and a data pointer that is never read, as its values have no size.
#[repr(transparent)]
pub struct DeviceView<T> {
    of: PhantomData<T>,
    places: [()],
}

impl<T: Value> DeviceView<T> {
    /// Values at a device address that is not 0; the caller ties the result to what owns them.
    pub(super) fn at<'a>(address: u64, len: usize) -> &'a DeviceView<T> {
        let data = std::ptr::without_provenance::<()>(address as usize);
        assert!(!data.is_null(), "no allocation lies at address 0");
        let places = std::ptr::slice_from_raw_parts(data, len) as *const DeviceView<T>;
        #[expect(unsafe_code, reason = "a reference that carries an address of the device")]
        // SAFETY: the pointer is not null, and `DeviceView` is a transparent wrapper of a slice of zero-sized values with
        // alignment 1, for which every such pointer is valid: nothing is ever read through it.
        unsafe {
            &*places
        }
    }

    /// [`DeviceView::at`], to be written.
    pub(super) fn at_mut<'a>(address: u64, len: usize) -> &'a mut DeviceView<T> {
        let data = std::ptr::without_provenance_mut::<()>(address as usize);
        assert!(!data.is_null(), "no allocation lies at address 0");
        let places = std::ptr::slice_from_raw_parts_mut(data, len) as *mut DeviceView<T>;
        #[expect(unsafe_code, reason = "a reference that carries an address of the device")]
        // SAFETY: as in `at`; references to no bytes overlap no others.
        unsafe {
            &mut *places
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Bytes of all values.
    pub(super) fn bytes(&self) -> usize {
        self.len() * T::BYTES
    }

    /// Address of the first value.
    pub(super) fn address(&self) -> u64 {
        self.places.as_ptr().addr() as u64
    }

    /// Address of value `i`, which with the `len` values from there lies inside.
    pub(super) fn part(&self, i: usize, len: usize) -> u64 {
        assert!(i + len <= self.len(), "values {i}..{} of {}", i + len, self.len());
        self.address() + (i * T::BYTES) as u64
    }
}

impl DeviceView<f32> {
    /// Copies `from` to the device; it may change as soon as this returns.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn upload<D: Driver>(&mut self, from: &[f32], driver: &D) {
        assert_eq!(self.len(), from.len(), "as many values as the view has");
        driver.upload(bytemuck::cast_slice(from), self.address());
    }

    /// The values, after all that has been asked of the device.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) for what went wrong until here.
    pub fn download<D: Driver>(&self, driver: &D) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.len()];
        driver.download(self.address(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_carries_address_and_length() {
        let view = DeviceView::<Bf16>::at(0x1234_5670, 10);
        assert_eq!((view.address(), view.len(), view.bytes(), view.part(3, 7)), (0x1234_5670, 10, 20, 0x1234_5676));
        assert!(std::panic::catch_unwind(|| view.part(3, 8)).is_err());
    }
}
