//! Finds and loads ONNX Runtime: the one place of this workspace that opens a shared library.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use crate::{Error, Result};

/// Environment variables that name the library, in the order in which they are asked.
pub const LIBRARY_VARIABLES: [&str; 2] = ["MOCO_ORT_LIB", "ORT_DYLIB_PATH"];

/// Set by the build's `.cargo/config.toml`: the folder into which set-up puts the library.
const SETUP_VARIABLE: &str = "MOCO_ORT_DIR";

#[cfg(target_os = "linux")]
const NAMES: &[&str] = &["libonnxruntime.so.1", "libonnxruntime.so.1.24.4", "libonnxruntime.so"];
#[cfg(target_os = "macos")]
const NAMES: &[&str] = &["libonnxruntime.1.dylib", "libonnxruntime.1.24.4.dylib", "libonnxruntime.dylib"];
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
const NAMES: &[&str] = &["onnxruntime.dll"];

struct Loaded {
    environment: Environment,
    path: PathBuf,
}

// A mutex, not a OnceLock: a failed attempt may be repeated with another path.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The process's ONNX Runtime, loaded at the first call. Tried in order: `explicit`; `MOCO_ORT_LIB` and
/// `ORT_DYLIB_PATH`; beside the module that holds this code (libmoco or the executable) and in `../lib` from there;
/// where set-up puts it; the active virtual environment's `onnxruntime`; the system's loader.
///
/// # Errors
/// [`Error::Runtime`] with every place tried, or if another library than `explicit` is loaded already.
pub(crate) fn environment(explicit: Option<&Path>) -> Result<Environment> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = &*loaded {
        return match explicit {
            Some(wanted) if !same_file(wanted, &loaded.path) => Err(Error::Runtime(format!(
                "ONNX Runtime is loaded from {} already; a process cannot load {} beside it",
                loaded.path.display(),
                wanted.display()
            ))),
            _ => Ok(loaded.environment.clone()),
        };
    }
    let (environment, path) = load(explicit)?;
    log::info!("ONNX Runtime from {}", path.display());
    *loaded = Some(Loaded { environment: environment.clone(), path });
    Ok(environment)
}

/// Where ONNX Runtime was loaded from and how it was built, once it is loaded.
pub fn runtime_info() -> Option<String> {
    let loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    loaded.as_ref().map(|l| format!("{} ({})", l.path.display(), ort::info()))
}

fn load(explicit: Option<&Path>) -> Result<(Environment, PathBuf)> {
    if let Some(path) = explicit {
        let path = in_folder(path);
        return open(&path).map_err(|e| Error::Runtime(format!("ONNX Runtime library {}: {e}", path.display())));
    }
    for variable in LIBRARY_VARIABLES {
        if let Some(value) = std::env::var_os(variable).filter(|v| !v.is_empty()) {
            let path = in_folder(Path::new(&value));
            return open(&path).map_err(|e| {
                Error::Runtime(format!("ONNX Runtime library {} (from {variable}): {e}", path.display()))
            });
        }
    }
    let mut tried = Vec::new();
    for path in candidates() {
        // A bare name is the system loader's business; anything else must exist.
        if path.components().count() > 1 && !path.exists() {
            tried.push(format!("{}: not there", path.display()));
            continue;
        }
        match open(&path) {
            Ok(loaded) => return Ok(loaded),
            Err(reason) => tried.push(format!("{}: {reason}", path.display())),
        }
    }
    Err(Error::Runtime(format!(
        "ONNX Runtime (1.18 or newer) was not found. Set {} to the library file, or put it beside the program; \
         `pip download onnxruntime` brings one. Tried:\n  {}",
        LIBRARY_VARIABLES[0],
        tried.join("\n  ")
    )))
}

fn open(path: &Path) -> std::result::Result<(Environment, PathBuf), String> {
    // A folder or an unrelated file makes the loader's message cryptic; say it first.
    if path.components().count() > 1 && !path.is_file() {
        return Err("is not a file".into());
    }
    let builder = ort::init_from(path).map_err(|e| match &e {
        // The loader's own words (missing file, wrong architecture) are only in the source.
        ort::LoadDynamicError::Dlopen { error, .. } => {
            std::error::Error::source(error).map_or_else(|| error.to_string(), |reason| reason.to_string())
        }
        _ => e.to_string(),
    })?;
    let environment = builder.with_name("moco").with_telemetry(false).build().map_err(|e| e.to_string())?;
    Ok((environment, path.to_owned()))
}

fn candidates() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let executable = std::env::current_exe().ok();
    for module in own_module().filter(|m| has_folder(m)).into_iter().chain(executable) {
        // Symlinks first as they stand, then resolved: a package may link into its own lib folder.
        for module in [Some(module.clone()), module.canonicalize().ok()].into_iter().flatten() {
            if let Some(folder) = module.parent() {
                folders.extend([folder.to_owned(), folder.join("../lib")]);
            }
        }
    }
    folders.extend(std::env::var_os(SETUP_VARIABLE).map(PathBuf::from));
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV").map(PathBuf::from) {
        let versions = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
        folders.extend(versions.map(|v| v.path().join("site-packages/onnxruntime/capi")));
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for path in folders.iter().flat_map(|f| NAMES.iter().map(move |n| f.join(n))).chain(NAMES.iter().map(PathBuf::from))
    {
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// Whether a module's path says where it lies. For a program found through PATH dladdr gives only its bare name, which
/// would make its folder the current one: a library must never be taken from there.
fn has_folder(module: &Path) -> bool {
    module.parent().is_some_and(|folder| !folder.as_os_str().is_empty())
}

/// The library in a folder, or the path itself.
fn in_folder(path: &Path) -> PathBuf {
    let inside = NAMES.iter().map(|n| path.join(n)).find(|p| path.is_dir() && p.is_file());
    inside.unwrap_or_else(|| path.to_owned())
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((in_folder(a).canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The file this code was loaded from: libmoco in a C++ application, the executable otherwise.
#[cfg(unix)]
#[expect(unsafe_code, reason = "dladdr is a C function")]
fn own_module() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let mut info = libc::Dl_info {
        dli_fname: std::ptr::null(),
        dli_fbase: std::ptr::null_mut(),
        dli_sname: std::ptr::null(),
        dli_saddr: std::ptr::null_mut(),
    };
    // SAFETY: `info` is a valid Dl_info to write to, and dladdr accepts any address.
    let found = unsafe { libc::dladdr(own_module as *const () as *const libc::c_void, &mut info) };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: dladdr succeeded, so dli_fname is a NUL-terminated string that lives as long as the module, which is
    // the one that runs this line.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes())))
}

#[cfg(not(unix))]
fn own_module() -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_library_is_refused_with_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libonnxruntime.so.1");
        std::fs::write(&path, b"not a library").unwrap();
        let error = load(Some(&path)).err().unwrap().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        let error = load(Some(folder.path().join("absent.so").as_path())).err().unwrap().to_string();
        assert!(error.contains("absent.so") && error.contains("not a file"), "{error}");
    }

    #[test]
    fn a_bare_program_name_says_nothing_about_its_folder() {
        assert!(!has_folder(Path::new("moco-infer")));
        assert!(has_folder(Path::new("./moco-infer")) && has_folder(Path::new("/usr/lib/libmoco.so.0")));
    }

    #[test]
    fn the_system_loader_is_asked_last() {
        let candidates = candidates();
        let bare = candidates.iter().position(|p| p.components().count() == 1).unwrap();
        assert!(candidates[bare..].iter().all(|p| p.components().count() == 1));
        assert!(bare >= NAMES.len(), "the folder of the test program comes first");
    }
}
