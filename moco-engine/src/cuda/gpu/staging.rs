//! Copies from the host through pinned memory: the driver reads pinned memory behind the caller's back at full speed, and
//! the caller may change its own memory at once.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use rayon::prelude::*;

/// Bytes of a pinned buffer.
const PIECE: usize = 8 << 20;
/// Pinned buffers: one is filled while others are read.
const PIECES: usize = 4;
/// Bytes that one thread copies at a time.
const PART: usize = 1 << 20;

/// A ring of pinned buffers.
pub(super) struct Staging {
    pieces: Vec<Piece>,
    next: usize,
}

struct Piece {
    memory: *mut u8,
    /// When the GPU has read it.
    read: sys::CUevent,
}

impl Staging {
    /// Needs the context to be current, as all methods do.
    pub(super) fn new() -> Result<Staging, DriverError> {
        let mut pieces = vec![];
        for _ in 0..PIECES {
            #[expect(unsafe_code, reason = "pinned memory is the driver's")]
            // SAFETY: the context is current; the memory is given back by `close`.
            let memory = unsafe { result::malloc_host(PIECE, 0)? };
            let read = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            pieces.push(Piece { memory: memory.cast(), read });
        }
        Ok(Staging { pieces, next: 0 })
    }

    /// Copies `from` to the device address `to` in the order of `stream`.
    pub(super) fn upload(&mut self, from: &[u8], to: u64, stream: sys::CUstream) -> Result<(), DriverError> {
        for (i, from) in from.chunks(PIECE).enumerate() {
            let piece = &self.pieces[self.next];
            self.next = (self.next + 1) % PIECES;
            #[expect(unsafe_code, reason = "pinned memory is the driver's")]
            // SAFETY: the buffer has PIECE bytes, and after its event nobody reads it; the GPU reads it before the event
            // that is recorded behind the copy.
            unsafe {
                result::event::synchronize(piece.read)?;
                let pinned = std::slice::from_raw_parts_mut(piece.memory, from.len());
                pinned.par_chunks_mut(PART).zip(from.par_chunks(PART)).for_each(|(to, from)| to.copy_from_slice(from));
                result::memcpy_htod_async(to + (i * PIECE) as u64, pinned, stream)?;
                result::event::record(piece.read, stream)?;
            }
        }
        Ok(())
    }

    /// Gives everything back; nothing may be under way.
    pub(super) fn close(&mut self) {
        for piece in self.pieces.drain(..) {
            #[expect(unsafe_code, reason = "pinned memory is the driver's")]
            // SAFETY: made by `new`, given back once.
            unsafe {
                let _ = result::event::destroy(piece.read);
                let _ = result::free_host(piece.memory.cast());
            }
        }
    }
}
