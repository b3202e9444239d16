//! What libmoco has to say beside results: handed to the application, or nowhere.

#![expect(unsafe_code, reason = "exported symbols and the application's callback")]

use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, PoisonError, RwLock};

/// Weight of a message.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum moco_log_level {
    /// Something failed.
    Error = 1,
    /// Something is odd.
    Warn = 2,
    /// Something was done.
    Info = 3,
    /// Details.
    Debug = 4,
}

/// Receives messages; see moco_log_set().
pub type moco_log_callback = Option<unsafe extern "C" fn(level: u32, message: *const c_char, user: *mut c_void)>;

#[derive(Clone, Copy)]
struct Target {
    callback: unsafe extern "C" fn(u32, *const c_char, *mut c_void),
    user: *mut c_void,
}

// SAFETY: the header asks for a callback and a user pointer that any thread may use.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

static TARGET: RwLock<Option<Target>> = RwLock::new(None);
static LOGGER: Logger = Logger;

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("moco")
    }

    fn log(&self, record: &log::Record<'_>) {
        let target = *TARGET.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(Target { callback, user }) = target.filter(|_| self.enabled(record.metadata())) {
            let level = match record.level() {
                log::Level::Error => moco_log_level::Error,
                log::Level::Warn => moco_log_level::Warn,
                log::Level::Info => moco_log_level::Info,
                log::Level::Debug | log::Level::Trace => moco_log_level::Debug,
            };
            let message = CString::new(record.args().to_string().replace('\0', " ")).expect("NUL was replaced");
            // SAFETY: a callback of this signature with its own pointer, and a NUL-terminated text, by contract.
            unsafe { callback(level as u32, message.as_ptr(), user) };
        }
    }

    fn flush(&self) {}
}

/// Sets who receives libmoco's messages; nobody at first.
///
/// Parameters: `callback`: called with a moco_log_level, a text that lives during the call, and `user`; NULL = nobody.
/// `user`: handed through.
/// Thread safety: any thread; the callback may be called from any thread, several at once, and must not call
/// moco_log_set() or unwind.
#[unsafe(no_mangle)]
pub extern "C" fn moco_log_set(callback: moco_log_callback, user: *mut c_void) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Another logger is there only where Rust code links this crate as a library; it keeps its place.
        if log::set_logger(&LOGGER).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    });
    *TARGET.write().unwrap_or_else(PoisonError::into_inner) = callback.map(|callback| Target { callback, user });
}
