//! Sums and exchanges among GPUs by NCCL, opened at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

use libloading::Library;

use super::super::memory::DeviceView;
use super::{Driver, Gpu, Place};
use crate::{Error, Result};

/// How long processes wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(300);
/// `ncclFloat32`, `ncclAvg`, `ncclSuccess` of `nccl.h`.
const FLOAT32: c_int = 7;
const AVERAGE: c_int = 4;
const SUCCESS: c_int = 0;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Communicator = *mut c_void;

/// The GPUs of a training, one a process.
pub struct ProcessGroup {
    functions: Functions,
    communicator: Communicator,
    place: Place,
    gpu: Arc<Gpu>,
    /// Last, as the functions lie in it.
    _library: Library,
}

struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Communicator, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Communicator) -> c_int,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    all_gather: unsafe extern "C" fn(u64, u64, usize, c_int, Communicator, *mut c_void) -> c_int,
    broadcast: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int,
    message: unsafe extern "C" fn(c_int) -> *const c_char,
}

#[expect(unsafe_code, reason = "NCCL's handle is a pointer")]
// SAFETY: a communicator may be used by one thread at a time, from any; its methods take `&mut self`.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Joins the processes of a training. All call this at the same time, each with its own GPU.
    ///
    /// # Errors
    /// [`Error::Device`] if NCCL is missing, or the processes do not find each other.
    pub fn join(gpu: &Arc<Gpu>, place: &Place) -> Result<ProcessGroup> {
        gpu.bind();
        #[expect(unsafe_code, reason = "opening a library runs its initialisers")]
        // SAFETY: NCCL's own, which has no preconditions.
        let library = unsafe { Library::new("libnccl.so.2") }.map_err(|error| {
            Error::Device(format!(
                "NCCL is missing: libnccl.so.2 cannot be opened ({error}). Install it (`pip install nvidia-nccl-cu13`, or \
                 the package `libnccl2`) and put the folder that holds it into LD_LIBRARY_PATH"
            ))
        })?;
        let functions = Functions::find(&library)?;
        let id = place.share(
            || {
                let mut id = UniqueId([0; 128]);
                #[expect(unsafe_code, reason = "a call of NCCL")]
                // SAFETY: a place for the identity.
                let status = unsafe { (functions.unique_id)(&mut id) };
                functions.check("an identity", status).map(|()| id.0)
            },
            PATIENCE,
        )?;
        let mut communicator = std::ptr::null_mut();
        let (world, rank) = (place.world as c_int, place.rank as c_int);
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: a place for the handle; the context is current; every process calls with the same identity.
        let status = unsafe { (functions.init)(&mut communicator, world, UniqueId(id), rank) };
        functions.check("joining", status)?;
        Ok(ProcessGroup { functions, communicator, place: place.clone(), gpu: gpu.clone(), _library: library })
    }

    /// This process.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Replaces values by their mean over all processes.
    ///
    /// # Errors
    /// [`Error::Device`] with NCCL's message.
    pub fn all_reduce_mean(&mut self, values: &mut DeviceView<f32>) -> Result<()> {
        self.gpu.bind();
        let (at, stream) = (values.address(), self.gpu.stream.cast());
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: in place on memory that is borrowed to be written and freed in stream order.
        let status =
            unsafe { (self.functions.all_reduce)(at, at, values.len(), FLOAT32, AVERAGE, self.communicator, stream) };
        self.functions.check("a mean over all processes", status)
    }

    /// Puts the values of all processes behind each other, in the order of their numbers.
    ///
    /// # Errors
    /// [`Error::Length`] if `all` does not hold that many, [`Error::Device`] with NCCL's message.
    pub fn all_gather(&mut self, own: &DeviceView<f32>, all: &mut DeviceView<f32>) -> Result<()> {
        Error::check_len("values of all processes", own.len() * self.place.world, all.len())?;
        self.gpu.bind();
        let (from, to, stream) = (own.address(), all.address(), self.gpu.stream.cast());
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: both are borrowed, of the lengths that were checked, and freed in stream order.
        let status = unsafe { (self.functions.all_gather)(from, to, own.len(), FLOAT32, self.communicator, stream) };
        self.functions.check("gathering from all processes", status)
    }

    /// Gives every process the values of the first.
    ///
    /// # Errors
    /// [`Error::Device`] with NCCL's message.
    pub fn broadcast(&mut self, values: &mut DeviceView<f32>) -> Result<()> {
        self.gpu.bind();
        let (at, stream) = (values.address(), self.gpu.stream.cast());
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: in place on memory that is borrowed to be written and freed in stream order.
        let status = unsafe { (self.functions.broadcast)(at, at, values.len(), FLOAT32, 0, self.communicator, stream) };
        self.functions.check("values of the first process", status)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let _ = self.gpu.wait();
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: made by `join`, given back once, after the work that uses it.
        unsafe {
            let _ = (self.functions.destroy)(self.communicator);
        }
    }
}

impl Functions {
    fn find(library: &Library) -> Result<Functions> {
        macro_rules! function {
            ($name:literal) => {{
                #[expect(unsafe_code, reason = "a function of a library")]
                // SAFETY: the type is that of `nccl.h`; the library outlives the functions, see `ProcessGroup`.
                let found = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *found.map_err(|error| Error::Device(format!("libnccl.so.2 is too old: {error}")))?
            }};
        }
        Ok(Functions {
            unique_id: function!("ncclGetUniqueId"),
            init: function!("ncclCommInitRank"),
            destroy: function!("ncclCommDestroy"),
            all_reduce: function!("ncclAllReduce"),
            all_gather: function!("ncclAllGather"),
            broadcast: function!("ncclBroadcast"),
            message: function!("ncclGetErrorString"),
        })
    }

    fn check(&self, what: &str, status: c_int) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: NCCL gives a constant string for every number.
        let message = unsafe { CStr::from_ptr((self.message)(status)) }.to_string_lossy().into_owned();
        Err(Error::Device(format!("NCCL, {what}: {message}")))
    }
}
