//! An NVIDIA GPU through the CUDA driver.
//!
//! One context, one stream, one module with every kernel. Memory comes from the driver's stream-ordered pool, which keeps
//! what is freed; copies from the host go through a ring of pinned buffers.
//!
//! Every driver call needs the context to be current on the calling thread, which [`Gpu::bind`] sees to.

mod cudnn;
mod graph;
mod libraries;
#[cfg(feature = "nccl")]
mod nccl;
mod staging;

use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::arguments::KERNELS;
use super::driver::{Convolution, Driver, Links, THREADS};
use crate::device::{HostMemory, Pageable};
use crate::group::Group;
use crate::{Error, Result};
use cudnn::Cudnn;
use staging::{GpuEvent, PinnedMemory, Staging};

pub use graph::Graph;

/// Every kernel for every kind of GPU, by nvcc.
static KERNELS_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// A GPU.
pub struct Gpu {
    ordinal: usize,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// For copies beside the work.
    copies: sys::CUstream,
    /// When the work had been done that the copies asked for next must follow.
    asked: GpuEvent,
    /// When the copies had been done that the work asked for next must follow.
    copied: GpuEvent,
    module: sys::CUmodule,
    /// In the order of launch indices; null where a kernel has no bf16 form.
    functions: Vec<sys::CUfunction>,
    multiprocessors: usize,
    name: String,
    cudnn: Mutex<Cudnn>,
    staging: Mutex<Staging>,
    failure: Mutex<Option<String>>,
    recording: Mutex<Recording>,
}

/// Whether work is being recorded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Recording {
    Off,
    On,
    /// Something in it has failed, which says nothing about running it.
    Broken,
}

#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: the driver's functions may be called from any thread on which the context is current; cuDNN's handle and the
// pinned buffers, which have one user at a time, are behind locks.
unsafe impl Send for Gpu {}
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: see `Send`.
unsafe impl Sync for Gpu {}

/// Memory of a GPU.
pub struct GpuMemory {
    address: sys::CUdeviceptr,
}

impl Gpu {
    /// Opens GPU number `ordinal` (as `CUDA_VISIBLE_DEVICES` leaves them).
    ///
    /// # Errors
    /// [`Error::Device`] naming what is missing: the driver, the GPU, or cuDNN.
    pub fn open(ordinal: usize) -> Result<Gpu> {
        let count = Gpu::count()?;
        if ordinal >= count {
            let found = match count {
                0 => "the driver sees no GPU (is CUDA_VISIBLE_DEVICES empty?)".into(),
                1 => "there is one GPU, number 0".to_string(),
                _ => format!("there are {count} GPUs, numbers 0 to {}", count - 1),
            };
            return Err(Error::Device(format!("GPU {ordinal} does not exist: {found}")));
        }
        Gpu::start(ordinal).map_err(|(what, error)| Error::Device(format!("GPU {ordinal}, {what}: {error}")))
    }

    /// Number of GPUs.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver or cuDNN is missing or does not start.
    pub fn count() -> Result<usize> {
        libraries::require()?;
        match result::init() {
            Ok(()) => {}
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
            Err(error) => return Err(Error::Device(format!("the NVIDIA driver does not start: {error}"))),
        }
        let count = result::device::get_count();
        count.map(|n| n.max(0) as usize).map_err(|error| Error::Device(format!("GPUs cannot be counted: {error}")))
    }

    fn start(ordinal: usize) -> std::result::Result<Gpu, (&'static str, String)> {
        fn at<E: std::fmt::Display>(what: &'static str) -> impl Fn(E) -> (&'static str, String) {
            move |error| (what, error.to_string())
        }
        let device = result::device::get(ordinal as i32).map_err(at("opening"))?;
        let name = result::device::get_name(device).map_err(at("its name"))?;
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: `device` exists; every handle is used after it was made and before it is given back by `Drop`. The image
        // is nvcc's, and copied to where its header is aligned; names end in a zero.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(at("its context"))?;
            result::ctx::set_current(context).map_err(at("its context"))?;
            let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            let multiprocessors = result::device::get_attribute(device, attribute).map_err(at("its size"))? as usize;
            let pool = result::device::get_default_mem_pool(device).map_err(at("its memory pool"))?;
            // The pool would otherwise give every freed block back to the system at the next wait.
            let mut keep = u64::MAX;
            let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, threshold, (&raw mut keep).cast()).map_err(at("its memory pool"))?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(at("a stream"))?;
            let copies = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(at("a stream"))?;
            let asked = GpuEvent::new().map_err(at("an event"))?;
            let copied = GpuEvent::new().map_err(at("an event"))?;
            let mut image = vec![0u64; KERNELS_IMAGE.len().div_ceil(8)];
            bytemuck::cast_slice_mut(&mut image)[..KERNELS_IMAGE.len()].copy_from_slice(KERNELS_IMAGE);
            let module = result::module::load_data(image.as_ptr().cast())
                .map_err(at("loading the kernels (A100, H100, H200 and newer are supported)"))?;
            let mut functions = vec![];
            for kernel in KERNELS {
                for suffix in ["f32", "bf16"] {
                    functions.push(if suffix == "f32" || kernel.on_maps {
                        let name = CString::new(format!("{}_{suffix}", kernel.name)).expect("no name holds a zero");
                        result::module::get_function(module, name).map_err(at(kernel.name))?
                    } else {
                        std::ptr::null_mut()
                    });
                }
            }
            let cudnn = Mutex::new(Cudnn::new(stream).map_err(at("cuDNN"))?);
            let staging = Mutex::new(Staging::new().map_err(at("pinned memory"))?);
            let failure = Mutex::new(None);
            Ok(Gpu {
                ordinal,
                device,
                context,
                stream,
                copies,
                asked,
                copied,
                module,
                functions,
                multiprocessors,
                name,
                cudnn,
                staging,
                failure,
                recording: Mutex::new(Recording::Off),
            })
        }
    }

    /// Bytes free and in total.
    ///
    /// # Errors
    /// [`Error::Device`] if the driver cannot tell.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.bind();
        result::mem_get_info().map_err(|error| Error::Device(format!("{}: {error}", self.describe())))
    }

    /// Convolutions so far that cuDNN has no algorithm for, which the engine's own, slower kernels do; for benchmarks.
    pub fn own_convolutions(&self) -> Vec<String> {
        let cudnn = self.cudnn.lock().unwrap_or_else(|held| held.into_inner());
        cudnn.refused().into_iter().map(|(pass, shape)| format!("{pass:?} of {shape:?}")).collect()
    }

    /// Makes the context current on this thread.
    fn bind(&self) {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the context lives until `self` is dropped.
        let bound = unsafe { result::ctx::set_current(self.context) };
        self.check("its context", bound);
    }

    /// The first failure, if there has been one.
    fn failed(&self) -> Result<()> {
        match self.failure.lock().unwrap_or_else(|held| held.into_inner()).clone() {
            Some(what) => Err(Error::Device(what)),
            None => Ok(()),
        }
    }

    /// Keeps the first failure for who waits next.
    fn check<E: std::fmt::Display>(&self, what: &str, outcome: std::result::Result<(), E>) {
        if let Err(error) = outcome {
            let mut recording = self.recording.lock().unwrap_or_else(|held| held.into_inner());
            if *recording != Recording::Off {
                *recording = Recording::Broken;
                return;
            }
            let mut failure = self.failure.lock().unwrap_or_else(|held| held.into_inner());
            failure.get_or_insert_with(|| format!("{}, {what}: {error}", self.describe()));
        }
    }
}

impl Driver for Gpu {
    type Allocation = GpuMemory;
    type Recording = Graph;

    fn allocate(&self, bytes: usize) -> Result<GpuMemory> {
        self.bind();
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: the stream lives; the memory is cleared before anything else that is asked of the stream.
        let made = unsafe {
            result::malloc_async(self.stream, bytes).and_then(|address| {
                result::memset_d8_async(address, 0, bytes, self.stream)?;
                Ok(GpuMemory { address })
            })
        };
        made.map_err(|error| match error.0 {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::Memory { bytes },
            _ => Error::Device(format!("{}, allocating {bytes} bytes: {error}", self.describe())),
        })
    }

    fn free(&self, memory: &mut GpuMemory) {
        self.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: it came from `allocate` on this stream and is freed once, when its owner is dropped; the stream frees it
        // after the work that uses it.
        let freed = unsafe { result::free_async(memory.address, self.stream) };
        self.check("freeing memory", freed);
    }

    fn address(memory: &GpuMemory) -> u64 {
        memory.address
    }

    fn launch(&self, index: usize, grid: [u32; 3], arguments: *const c_void) {
        self.bind();
        let block = (THREADS as u32, 1, 1);
        #[expect(unsafe_code, reason = "a launch")]
        // SAFETY: the caller gives the kernel's own argument struct, which the driver copies before it returns; the
        // addresses in it are of live allocations, which are freed in stream order.
        let launched = unsafe {
            let function = self.functions[index];
            let grid = (grid[0], grid[1], grid[2]);
            result::launch_kernel(function, grid, block, 0, self.stream, &mut [arguments.cast_mut()])
        };
        self.check(KERNELS[index / 2].name, launched);
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) {
        self.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: both lie in live allocations, which are freed in stream order.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) };
        self.check("a copy", copied);
    }

    fn clear(&self, at: u64, bytes: usize) {
        self.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: lies in a live allocation, which is freed in stream order.
        let cleared = unsafe { result::memset_d8_async(at, 0, bytes, self.stream) };
        self.check("clearing memory", cleared);
    }

    fn upload(&self, from: &[u8], to: u64) {
        self.bind();
        let mut staging = self.staging.lock().unwrap_or_else(|held| held.into_inner());
        self.check("a copy from the host", staging.upload(from, to, self.stream));
    }

    fn upload_beside(&self, from: &[u8], to: u64) {
        self.bind();
        // Behind what has been asked of the memory until now; beside what will be.
        let outcome = self.asked.record(self.stream).and_then(|()| self.asked.hold_back(self.copies));
        self.check("an event", outcome);
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: `to` lies in a live allocation, freed in the order of the work, which joins the copies before it uses them;
        // the caller keeps `from` as it is until then.
        let copied = unsafe { result::memcpy_htod_async(to, from, self.copies) };
        self.check("a copy beside the work", copied);
    }

    fn join_copies(&self) {
        self.bind();
        let outcome = self.copied.record(self.copies).and_then(|()| self.copied.hold_back(self.stream));
        self.check("an event", outcome);
    }

    fn host_memory(&self) -> Arc<dyn HostMemory> {
        match PinnedMemory::new(self.device) {
            Ok(pinned) => Arc::new(pinned),
            // Slower, and right.
            Err(_) => Arc::new(Pageable),
        }
    }

    fn download(&self, from: u64, to: &mut [u8]) -> Result<()> {
        self.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: `from` lies in a live allocation; `to` stays borrowed until the wait below.
        let copied = unsafe { result::memcpy_dtoh_async(to, from, self.stream) };
        self.check("a copy to the host", copied);
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        self.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the stream lives until `self` is dropped.
        let waited = unsafe { result::stream::synchronize(self.stream) };
        self.check("waiting", waited);
        self.failed()
    }

    fn begin_recording(&self) -> bool {
        self.bind();
        // Nothing is kept as a failure: without recording the pass runs as it is.
        let begun = graph::begin(self.stream).is_ok();
        *self.recording.lock().unwrap_or_else(|held| held.into_inner()) =
            if begun { Recording::On } else { Recording::Off };
        begun
    }

    fn end_recording(&self) -> Option<Graph> {
        self.bind();
        let recorded = graph::end(self.stream, self.context);
        let mut recording = self.recording.lock().unwrap_or_else(|held| held.into_inner());
        let intact = std::mem::replace(&mut *recording, Recording::Off) == Recording::On;
        recorded.ok().filter(|_| intact)
    }

    fn replay(&self, recording: &Graph) {
        self.bind();
        self.check("a graph", recording.launch(self.stream));
    }

    fn generation(&self) -> u64 {
        self.cudnn.lock().unwrap_or_else(|held| held.into_inner()).generation()
    }

    fn fail(&self, error: &Error) {
        self.check("its memory", Err::<(), _>(error));
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn describe(&self) -> String {
        format!("GPU {} ({})", self.ordinal, self.name)
    }

    fn convolve(&self, job: &Convolution) -> bool {
        self.bind();
        let mut cudnn = self.cudnn.lock().unwrap_or_else(|held| held.into_inner());
        match cudnn.run(job) {
            Ok(ran) => ran,
            Err(error) => {
                self.check("a convolution of cuDNN", Err::<(), _>(error));
                true
            }
        }
    }

    #[cfg(feature = "nccl")]
    fn link(self: &Arc<Self>, group: &Arc<Group>) -> Result<Option<Box<dyn Links>>> {
        Ok(Some(Box::new(nccl::Nccl::join(self, group)?)))
    }

    #[cfg(not(feature = "nccl"))]
    fn link(self: &Arc<Self>, _group: &Arc<Group>) -> Result<Option<Box<dyn Links>>> {
        Err(Error::Device(format!(
            "{}: this program was built without NCCL, by which GPUs of several processes exchange; `cargo xtask cuda` builds \
             one with it",
            self.describe()
        )))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        self.bind();
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: each handle was made by `start` and is given back once, after the stream has finished. What cannot be
        // given back is lost with the process.
        unsafe {
            let _ = result::stream::synchronize(self.copies);
            let _ = result::stream::synchronize(self.stream);
            self.cudnn.get_mut().unwrap_or_else(|held| held.into_inner()).close();
            self.staging.get_mut().unwrap_or_else(|held| held.into_inner()).close();
            let _ = result::module::unload(self.module);
            let _ = result::stream::destroy(self.copies);
            let _ = result::stream::destroy(self.stream);
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds on every machine: without a driver, with the driver's stub, and with any number of GPUs.
    #[test]
    fn a_gpu_that_is_not_there_is_an_error_that_says_what_is_missing() {
        let error = Gpu::open(1000).map(|_| ()).unwrap_err().to_string();
        let says =
            ["libcuda.so.1", "libcudnn.so.9", "cuDNN", "the NVIDIA driver does not start", "GPU 1000 does not exist"];
        assert!(says.iter().any(|part| error.contains(part)), "{error}");
    }

    #[test]
    fn the_kernels_are_a_fat_binary() {
        // The magic number of a fatbin container.
        assert_eq!(KERNELS_IMAGE[..4], 0xba55_ed50u32.to_le_bytes());
    }
}
