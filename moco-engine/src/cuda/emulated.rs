//! The emulated device: the same kernels compiled for the host, where a block's threads are fibers (`cuda/emulation`).
//!
//! It is slow and exists to test: guards around every allocation find writes outside of it, new memory that is not zeroed
//! by contract does not exist, and kernels run in an order of threads and blocks that a test can turn around.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::arguments::KERNELS;
use super::driver::{Convolution, Driver, THREADS};
use crate::Error;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes before and behind an allocation that nobody may write.
const GUARD: usize = 256;
/// What they hold; as f32 or bf16 it is NaN.
const GUARD_BYTE: u8 = 0xff;

#[expect(unsafe_code, reason = "the emulation is C++")]
unsafe extern "C" {
    fn moco_emulation_find(symbol: *const c_char, arguments: *mut u64) -> i32;
    fn moco_emulation_launch(
        kernel: i32,
        grid: *const u32,
        threads: u32,
        arguments: *const c_void,
        descending: i32,
    ) -> *const c_char;
}

/// The emulated device.
pub struct Emulated {
    /// Handles of the kernels, in the order of launch indices.
    handles: Vec<i32>,
    descending: AtomicBool,
    /// What has been recorded; `Err` after something that cannot be.
    recording: Mutex<Option<Result<Vec<Work>, ()>>>,
    replays: AtomicUsize,
    failure: Mutex<Option<String>>,
}

/// Work of the emulated device.
pub enum Work {
    /// A kernel by its launch index, its grid, and its arguments in whole words.
    Launch(usize, [u32; 3], Vec<u64>),
    /// From, to, bytes.
    Copy(u64, u64, usize),
    /// At, bytes.
    Clear(u64, usize),
}

/// Memory of the emulated device.
pub struct EmulatedMemory {
    start: *mut u8,
    bytes: usize,
}

#[expect(unsafe_code, reason = "memory that kernels of another language read and write")]
// SAFETY: the memory is owned, and the driver's methods, which alone touch it, take the plan's exclusive borrows.
unsafe impl Send for EmulatedMemory {}
#[expect(unsafe_code, reason = "memory that kernels of another language read and write")]
// SAFETY: see `Send`.
unsafe impl Sync for EmulatedMemory {}

impl Emulated {
    /// A device of its own.
    ///
    /// # Errors
    /// [`Error::Device`] if a kernel is missing or its arguments have another size in C++.
    pub fn new() -> Result<Emulated> {
        let mut handles = vec![];
        for kernel in KERNELS {
            for suffix in ["f32", "bf16"] {
                if suffix == "bf16" && !kernel.on_maps {
                    handles.push(-1);
                    continue;
                }
                let symbol = CString::new(format!("{}_{suffix}", kernel.name)).expect("no name holds a zero");
                let mut bytes = 0;
                #[expect(unsafe_code, reason = "the emulation is C++")]
                // SAFETY: a string that ends in zero and a place for the size.
                let handle = unsafe { moco_emulation_find(symbol.as_ptr(), &mut bytes) };
                if handle < 0 || bytes != kernel.bytes as u64 {
                    let name = symbol.to_string_lossy();
                    let ours = kernel.bytes;
                    return Err(Error::Device(match handle {
                        -1 => format!("there is no kernel `{name}` in cuda/*.cu"),
                        _ => format!("the arguments of `{name}` have {bytes} bytes in C++ and {ours} in Rust"),
                    }));
                }
                handles.push(handle);
            }
        }
        Ok(Emulated {
            handles,
            descending: AtomicBool::new(false),
            recording: Mutex::new(None),
            replays: AtomicUsize::new(0),
            failure: Mutex::new(None),
        })
    }

    /// From now on, threads and blocks run from the last to the first. A kernel whose result depends on it has a race.
    pub fn turn_around(&self) {
        self.descending.fetch_xor(true, Ordering::Relaxed);
    }

    /// How often recorded work has been done.
    pub fn replays(&self) -> usize {
        self.replays.load(Ordering::Relaxed)
    }

    /// Runs a kernel now.
    fn run(&self, index: usize, grid: [u32; 3], arguments: *const c_void) {
        let descending = i32::from(self.descending.load(Ordering::Relaxed));
        #[expect(unsafe_code, reason = "the emulation is C++")]
        // SAFETY: `new` has compared the size of the arguments; the addresses in them are those of live allocations, whose
        // borrows the caller holds. The message is a string constant.
        let wrong = unsafe {
            let handle = self.handles[index];
            let wrong = moco_emulation_launch(handle, grid.as_ptr(), THREADS as u32, arguments, descending);
            (!wrong.is_null()).then(|| CStr::from_ptr(wrong).to_string_lossy().into_owned())
        };
        if let Some(wrong) = wrong {
            self.remember(format!("{}: {wrong}", KERNELS[index / 2].name));
        }
    }

    /// Records work if the device records.
    fn records(&self, work: impl FnOnce() -> Option<Work>) -> bool {
        let mut recording = self.recording.lock().expect("no holder of the lock panics");
        let Some(list) = recording.as_mut() else { return false };
        match (work(), &mut *list) {
            (Some(work), Ok(all)) => all.push(work),
            (None, _) => *list = Err(()),
            (Some(_), Err(())) => {}
        }
        true
    }

    fn remember(&self, what: String) {
        self.failure.lock().expect("no holder of the lock panics").get_or_insert(what);
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.next_multiple_of(256) + 2 * GUARD, 256).expect("a size that was allocated")
}

impl Driver for Emulated {
    type Allocation = EmulatedMemory;
    type Recording = Vec<Work>;

    fn allocate(&self, bytes: usize) -> Result<EmulatedMemory> {
        if bytes > isize::MAX as usize / 2 {
            return Err(Error::Memory { bytes });
        }
        let layout = layout(bytes);
        #[expect(unsafe_code, reason = "aligned memory with guards")]
        // SAFETY: the layout is not empty; what is written lies inside it.
        unsafe {
            let whole = alloc(layout);
            if whole.is_null() {
                return Err(Error::Memory { bytes });
            }
            whole.write_bytes(GUARD_BYTE, layout.size());
            let start = whole.add(GUARD);
            start.write_bytes(0, bytes);
            Ok(EmulatedMemory { start, bytes })
        }
    }

    fn free(&self, memory: &mut EmulatedMemory) {
        let layout = layout(memory.bytes);
        #[expect(unsafe_code, reason = "aligned memory with guards")]
        // SAFETY: `start` came from `allocate` with this layout; the slice spans the whole of it, all initialised.
        let intact = unsafe {
            let whole = memory.start.sub(GUARD);
            let all = std::slice::from_raw_parts(whole, layout.size());
            let guards = all[..GUARD].iter().chain(&all[GUARD + memory.bytes..]);
            let intact = guards.into_iter().all(|b| *b == GUARD_BYTE);
            dealloc(whole, layout);
            intact
        };
        assert!(intact || std::thread::panicking(), "a kernel wrote outside an allocation of {} bytes", memory.bytes);
    }

    fn address(memory: &EmulatedMemory) -> u64 {
        memory.start as u64
    }

    fn launch(&self, index: usize, grid: [u32; 3], arguments: *const c_void) {
        let bytes = KERNELS[index / 2].bytes;
        let mut words = vec![0u64; bytes.div_ceil(8)];
        #[expect(unsafe_code, reason = "arguments are structs of C")]
        // SAFETY: the caller gives the kernel's own argument struct, which has `bytes` bytes.
        unsafe {
            std::ptr::copy_nonoverlapping(arguments.cast::<u8>(), words.as_mut_ptr().cast(), bytes);
        }
        if !self.records(|| Some(Work::Launch(index, grid, words.clone()))) {
            self.run(index, grid, words.as_ptr().cast());
        }
    }

    fn begin_recording(&self) -> bool {
        *self.recording.lock().expect("no holder of the lock panics") = Some(Ok(vec![]));
        true
    }

    fn end_recording(&self) -> Option<Vec<Work>> {
        self.recording.lock().expect("no holder of the lock panics").take()?.ok()
    }

    fn replay(&self, recording: &Vec<Work>) {
        self.replays.fetch_add(1, Ordering::Relaxed);
        for work in recording {
            match *work {
                Work::Launch(index, grid, ref words) => self.run(index, grid, words.as_ptr().cast()),
                Work::Copy(from, to, bytes) => self.copy(from, to, bytes),
                Work::Clear(at, bytes) => self.clear(at, bytes),
            }
        }
    }

    fn generation(&self) -> u64 {
        0
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) {
        if self.records(|| Some(Work::Copy(from, to, bytes))) {
            return;
        }
        #[expect(unsafe_code, reason = "device addresses are host addresses here")]
        // SAFETY: both lie in live allocations, whose borrows the caller holds; they may overlap.
        unsafe {
            std::ptr::copy(from as *const u8, to as *mut u8, bytes);
        }
    }

    fn clear(&self, at: u64, bytes: usize) {
        if self.records(|| Some(Work::Clear(at, bytes))) {
            return;
        }
        #[expect(unsafe_code, reason = "device addresses are host addresses here")]
        // SAFETY: lies in a live allocation that the caller borrows to write.
        unsafe {
            std::ptr::write_bytes(at as *mut u8, 0, bytes);
        }
    }

    fn upload(&self, from: &[u8], to: u64) {
        if self.records(|| None) {
            return;
        }
        self.copy(from.as_ptr() as u64, to, from.len());
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.wait()?;
        self.copy(from, to.as_mut_ptr() as u64, to.len());
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        match self.failure.lock().expect("no holder of the lock panics").clone() {
            Some(what) => Err(Error::Device(what)),
            None => Ok(()),
        }
    }

    fn fail(&self, error: &Error) {
        self.remember(error.to_string());
    }

    fn multiprocessors(&self) -> usize {
        2
    }

    fn describe(&self) -> String {
        "CUDA kernels emulated on the CPU".into()
    }

    fn convolve(&self, _job: &Convolution) -> bool {
        false
    }
}
