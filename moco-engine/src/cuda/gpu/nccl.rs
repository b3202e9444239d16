//! Sums and exchanges among GPUs by NCCL, opened at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libloading::Library;

use super::{Driver, Gpu, Links};
use crate::group::Group;
use crate::{Error, Result};

/// `ncclFloat32`, `ncclAvg`, `ncclSuccess` of `nccl.h`.
const FLOAT32: c_int = 7;
const AVERAGE: c_int = 4;
const SUCCESS: c_int = 0;

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Handle = *mut c_void;

/// The GPUs of a training, one a process.
pub(super) struct Nccl {
    communicator: Arc<Communicator>,
    gpu: Arc<Gpu>,
}

/// What the training's thread and the one that notices a lost process share.
struct Communicator {
    functions: Functions,
    /// Null when it has been given back.
    handle: Mutex<Handle>,
    /// A process is lost: nothing more is asked of NCCL.
    ended: AtomicBool,
    group: Arc<Group>,
    /// Last, as the functions lie in it.
    _library: Library,
}

#[expect(unsafe_code, reason = "NCCL's handle is a pointer")]
// SAFETY: NCCL may be called from any thread, and `ncclCommAbort` beside other calls; all others hold the lock.
unsafe impl Send for Communicator {}
#[expect(unsafe_code, reason = "NCCL's handle is a pointer")]
// SAFETY: see `Send`.
unsafe impl Sync for Communicator {}

struct Functions {
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init: unsafe extern "C" fn(*mut Handle, c_int, UniqueId, c_int) -> c_int,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    all_reduce: unsafe extern "C" fn(u64, u64, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    all_gather: unsafe extern "C" fn(u64, u64, usize, c_int, Handle, *mut c_void) -> c_int,
    send: unsafe extern "C" fn(u64, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    receive: unsafe extern "C" fn(u64, usize, c_int, c_int, Handle, *mut c_void) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    message: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Nccl {
    /// Joins the GPUs of all processes. All call this at the same time, each with its own GPU.
    ///
    /// # Errors
    /// [`Error::Device`] if NCCL is missing or refuses, [`Error::Group`] if a process is lost.
    pub fn join(gpu: &Arc<Gpu>, group: &Arc<Group>) -> Result<Nccl> {
        gpu.bind();
        let (library, functions) = open()?;
        let communicator = Arc::new(Communicator {
            functions,
            handle: Mutex::new(std::ptr::null_mut()),
            ended: AtomicBool::new(false),
            group: group.clone(),
            _library: library,
        });
        let lost = Arc::downgrade(&communicator);
        group.when_lost(move || lost.upgrade().into_iter().for_each(|communicator| communicator.abort()));
        communicator.join()?;
        Ok(Nccl { communicator, gpu: gpu.clone() })
    }

    /// Asks NCCL for something, on the stream of the other work.
    fn ask(&mut self, what: &str, call: impl FnOnce(&Functions, Handle, *mut c_void) -> c_int) -> Result<()> {
        let Communicator { functions, ended, group, .. } = &*self.communicator;
        group.check()?;
        self.gpu.bind();
        let handle = self.communicator.handle();
        if ended.load(Ordering::SeqCst) || handle.is_null() {
            group.check()?;
            return Err(Error::Device(format!("NCCL, {what}: it has ended")));
        }
        let status = call(functions, *handle, self.gpu.stream.cast());
        drop(handle);
        // Where a process is lost, that is the reason.
        functions.check(what, status).map_err(|error| group.check().err().unwrap_or(error))
    }
}

impl Links for Nccl {
    fn mean(&mut self, at: u64, len: usize) -> Result<()> {
        self.ask("a mean over all processes", |nccl, handle, stream| {
            #[expect(unsafe_code, reason = "a call of NCCL")]
            // SAFETY: in place on memory that is borrowed to be written and freed in stream order.
            unsafe {
                (nccl.all_reduce)(at, at, len, FLOAT32, AVERAGE, handle, stream)
            }
        })
    }

    fn gather(&mut self, from: u64, len: usize, to: u64) -> Result<()> {
        self.ask("gathering from all processes", |nccl, handle, stream| {
            #[expect(unsafe_code, reason = "a call of NCCL")]
            // SAFETY: both are borrowed, of the lengths that the caller has checked, and freed in stream order.
            unsafe {
                (nccl.all_gather)(from, to, len, FLOAT32, handle, stream)
            }
        })
    }

    fn exchange(&mut self, from: u64, to: &[usize], into: u64, counts: &[usize]) -> Result<()> {
        self.ask("an exchange of rows", |nccl, handle, stream| {
            let (mut outgoing, mut incoming) = (from, into);
            #[expect(unsafe_code, reason = "calls of NCCL")]
            // SAFETY: all parts lie in memory that is borrowed, of the lengths that the caller has checked, and freed in stream
            // order; what is begun is ended.
            unsafe {
                let mut status = (nccl.group_start)();
                if status != SUCCESS {
                    return status;
                }
                for (peer, (sent, received)) in to.iter().zip(counts).enumerate() {
                    // What is empty at one end is empty at the other.
                    if status == SUCCESS && *sent > 0 {
                        status = (nccl.send)(outgoing, *sent, FLOAT32, peer as c_int, handle, stream);
                    }
                    if status == SUCCESS && *received > 0 {
                        status = (nccl.receive)(incoming, *received, FLOAT32, peer as c_int, handle, stream);
                    }
                    outgoing += (size_of::<f32>() * sent) as u64;
                    incoming += (size_of::<f32>() * received) as u64;
                }
                let end = (nccl.group_end)();
                if status == SUCCESS { end } else { status }
            }
        })
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        if self.communicator.ended.load(Ordering::SeqCst) {
            return;
        }
        let _ = self.gpu.wait();
        let mut handle = self.communicator.handle();
        let taken = std::mem::replace(&mut *handle, std::ptr::null_mut());
        if !taken.is_null() {
            #[expect(unsafe_code, reason = "a call of NCCL")]
            // SAFETY: made by `join`, given back once, after the work that uses it.
            let _ = unsafe { (self.communicator.functions.destroy)(taken) };
        }
    }
}

impl Communicator {
    fn join(&self) -> Result<()> {
        // Held while NCCL waits for the others, so that `abort` notices it.
        let mut handle = self.handle();
        self.group.check()?;
        let id = UniqueId(self.identity()?);
        let (world, rank) = (self.group.world() as c_int, self.group.rank() as c_int);
        #[expect(unsafe_code, reason = "a call of NCCL")]
        // SAFETY: a place for the handle; the context is current; every process calls with the same identity.
        let status = unsafe { (self.functions.init)(&mut *handle, world, id, rank) };
        self.functions.check("joining", status)
    }

    /// What process 0 draws and tells the others.
    fn identity(&self) -> Result<[u8; 128]> {
        let mut id = UniqueId([0; 128]);
        if self.group.rank() == 0 {
            #[expect(unsafe_code, reason = "a call of NCCL")]
            // SAFETY: a place for the identity.
            let status = unsafe { (self.functions.unique_id)(&mut id) };
            self.functions.check("an identity", status)?;
        }
        let shared = self.group.from_first(&id.0)?;
        shared[..].try_into().map_err(|_| Error::Group("process 0 gave no identity of NCCL".into()))
    }

    fn handle(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what waits for a lost process on the GPU, so that a wait of the training's thread ends as well.
    fn abort(&self) {
        /// A call that only asks for work is over by then; one that waits for the lost process is not.
        const MOMENT: Duration = Duration::from_secs(5);
        self.ended.store(true, Ordering::SeqCst);
        let late = Instant::now() + MOMENT;
        let handle = loop {
            match self.handle.try_lock() {
                Ok(mut handle) => break std::mem::replace(&mut *handle, std::ptr::null_mut()),
                Err(_) if Instant::now() < late => std::thread::sleep(Duration::from_millis(5)),
                // NCCL itself waits. Without the handle nothing can end that but the process.
                Err(_) => {
                    let why = self.group.check().err().map_or_else(String::new, |error| error.to_string());
                    eprintln!("error: {why}; NCCL waits for it, so this process ends here");
                    std::process::exit(1);
                }
            }
        };
        if !handle.is_null() {
            #[expect(unsafe_code, reason = "a call of NCCL")]
            // SAFETY: made by `join`, taken out of its place, so that nobody uses it any more.
            let _ = unsafe { (self.functions.abort)(handle) };
        }
    }
}

/// NCCL and what is used of it.
fn open() -> Result<(Library, Functions)> {
    #[expect(unsafe_code, reason = "opening a library runs its initialisers")]
    // SAFETY: NCCL's own, which has no preconditions.
    let library = unsafe { Library::new("libnccl.so.2") }.map_err(|error| {
        Error::Device(format!(
            "NCCL is missing: libnccl.so.2 cannot be opened ({error}). Install it (`pip install nvidia-nccl-cu13`, or \
             the package `libnccl2`) and put the folder that holds it into LD_LIBRARY_PATH"
        ))
    })?;
    let functions = Functions::find(&library)?;
    Ok((library, functions))
}

impl Functions {
    fn find(library: &Library) -> Result<Functions> {
        macro_rules! function {
            ($name:literal) => {{
                #[expect(unsafe_code, reason = "a function of a library")]
                // SAFETY: the type is that of `nccl.h`; the library outlives the functions, see `Communicator`.
                let found = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *found.map_err(|error| Error::Device(format!("libnccl.so.2 is too old: {error}")))?
            }};
        }
        Ok(Functions {
            unique_id: function!("ncclGetUniqueId"),
            init: function!("ncclCommInitRank"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            all_reduce: function!("ncclAllReduce"),
            all_gather: function!("ncclAllGather"),
            send: function!("ncclSend"),
            receive: function!("ncclRecv"),
            group_start: function!("ncclGroupStart"),
            group_end: function!("ncclGroupEnd"),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds on every machine: where NCCL is, everything that is used of it is found.
    #[test]
    fn nccl_is_complete_or_named_as_missing() {
        match open() {
            Ok((_library, functions)) => {
                let error = functions.check("a test", 4).unwrap_err().to_string();
                assert!(error.contains("NCCL, a test") && error.contains("invalid argument"), "{error}");
            }
            Err(error) => assert!(error.to_string().contains("libnccl.so.2"), "{error}"),
        }
    }
}
