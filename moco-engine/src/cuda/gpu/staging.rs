//! Copies from the host through pinned memory: the driver reads pinned memory behind the caller's back at full speed, and
//! the caller may change its own memory at once.

use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use rayon::prelude::*;

use crate::device::{HostBytes, HostMemory};
use crate::{Error, Result as EngineResult};

/// Bytes of a pinned buffer of the ring.
const PIECE: usize = 8 << 20;
/// Pinned buffers: one is filled while others are read.
const PIECES: usize = 4;
/// Bytes that one thread copies at a time.
const PART: usize = 1 << 20;

/// A ring of pinned buffers.
pub(super) struct Staging {
    /// Each with the event after which the GPU has read it.
    pieces: Vec<(Pinned, GpuEvent)>,
    next: usize,
}

impl Staging {
    /// Needs the context to be current, as everything here does.
    pub(super) fn new() -> Result<Staging, DriverError> {
        let pieces =
            (0..PIECES).map(|_| Ok((Pinned::new(PIECE)?, GpuEvent::new()?))).collect::<Result<_, DriverError>>()?;
        Ok(Staging { pieces, next: 0 })
    }

    /// Copies `from` to the device address `to` in the order of `stream`.
    pub(super) fn upload(&mut self, from: &[u8], to: u64, stream: sys::CUstream) -> Result<(), DriverError> {
        for (i, from) in from.chunks(PIECE).enumerate() {
            let (pinned, read) = &mut self.pieces[self.next];
            self.next = (self.next + 1) % PIECES;
            read.wait()?;
            let pinned = &mut pinned.bytes_mut()[..from.len()];
            pinned.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
            #[expect(unsafe_code, reason = "a call of the driver")]
            // SAFETY: `to` lies in a live allocation, freed in stream order; nobody writes the buffer before its event.
            unsafe {
                result::memcpy_htod_async(to + (i * PIECE) as u64, pinned, stream)?;
            }
            read.record(stream)?;
        }
        Ok(())
    }

    /// Gives everything back; nothing may be under way.
    pub(super) fn close(&mut self) {
        self.pieces.clear();
    }
}

/// Pinned memory for whoever puts batches together, on any thread. Keeps the GPU's context, which it belongs to.
#[derive(Clone, Debug)]
pub(super) struct PinnedMemory(Arc<Context>);

#[derive(Debug)]
struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
}

#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: the driver's functions may be called from any thread on which the context is current.
unsafe impl Send for Context {}
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: see `Send`.
unsafe impl Sync for Context {}

impl Context {
    fn bind(&self) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the context is retained.
        unsafe {
            result::ctx::set_current(self.context)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: retained by `PinnedMemory::new`, given back once.
        unsafe {
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

impl PinnedMemory {
    pub(super) fn new(device: sys::CUdevice) -> Result<PinnedMemory, DriverError> {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the device exists; `Context` gives the context back.
        let context = unsafe { result::primary_ctx::retain(device)? };
        Ok(PinnedMemory(Arc::new(Context { device, context })))
    }
}

impl HostMemory for PinnedMemory {
    fn allocate(&self, len: usize) -> EngineResult<Box<dyn HostBytes>> {
        let pinned = self.0.bind().and_then(|()| Pinned::new(len)).map_err(|_| Error::Memory { bytes: len })?;
        Ok(Box::new(PinnedBytes { pinned: Some(pinned), context: self.0.clone() }))
    }
}

#[derive(Debug)]
struct PinnedBytes {
    /// Only gone while it is dropped, on a thread on which the context is current.
    pinned: Option<Pinned>,
    context: Arc<Context>,
}

impl HostBytes for PinnedBytes {
    fn bytes(&self) -> &[u8] {
        self.pinned.as_ref().expect("it is there until it is dropped").bytes()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        self.pinned.as_mut().expect("it is there until it is dropped").bytes_mut()
    }
}

impl Drop for PinnedBytes {
    fn drop(&mut self) {
        let _ = self.context.bind();
        self.pinned = None;
    }
}

/// Memory of the host that the system never moves.
#[derive(Debug)]
pub(super) struct Pinned {
    memory: *mut u8,
    bytes: usize,
}

#[expect(unsafe_code, reason = "pinned memory is the driver's")]
// SAFETY: the memory is owned and is read and written through borrows of its owner.
unsafe impl Send for Pinned {}
#[expect(unsafe_code, reason = "pinned memory is the driver's")]
// SAFETY: see `Send`.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Zeros.
    fn new(bytes: usize) -> Result<Pinned, DriverError> {
        #[expect(unsafe_code, reason = "pinned memory is the driver's")]
        // SAFETY: the context is current; the memory has as many bytes as are cleared and is given back by `Drop`.
        unsafe {
            let memory: *mut u8 = result::malloc_host(bytes.max(1), 0)?.cast();
            memory.write_bytes(0, bytes);
            Ok(Pinned { memory, bytes })
        }
    }

    fn bytes(&self) -> &[u8] {
        #[expect(unsafe_code, reason = "pinned memory is the driver's")]
        // SAFETY: owned, initialised, and borrowed with `self`.
        unsafe {
            std::slice::from_raw_parts(self.memory, self.bytes)
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        #[expect(unsafe_code, reason = "pinned memory is the driver's")]
        // SAFETY: owned, initialised, and borrowed with `self`.
        unsafe {
            std::slice::from_raw_parts_mut(self.memory, self.bytes)
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "pinned memory is the driver's")]
        // SAFETY: made by `new`, given back once. The driver waits for copies that read it.
        unsafe {
            let _ = result::free_host(self.memory.cast());
        }
    }
}

/// A place in a stream.
pub(super) struct GpuEvent(sys::CUevent);

#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: the driver's functions may be called from any thread on which the context is current.
unsafe impl Send for GpuEvent {}
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: see `Send`.
unsafe impl Sync for GpuEvent {}

impl GpuEvent {
    pub(super) fn new() -> Result<GpuEvent, DriverError> {
        result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING).map(GpuEvent)
    }

    pub(super) fn record(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: both live.
        unsafe {
            result::event::record(self.0, stream)
        }
    }

    /// Lets a stream wait for the event.
    pub(super) fn hold_back(&self, stream: sys::CUstream) -> Result<(), DriverError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: both live.
        unsafe {
            result::stream::wait_event(stream, self.0, flags)
        }
    }

    /// Waits for it here.
    pub(super) fn wait(&self) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the event lives.
        unsafe {
            result::event::synchronize(self.0)
        }
    }
}

impl Drop for GpuEvent {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: made by `new`, given back once.
        unsafe {
            let _ = result::event::destroy(self.0);
        }
    }
}
