//! NVIDIA's libraries, opened at run time: the same program runs where they are missing.

use cudarc::{cudnn, driver};

use crate::{Error, Result};

/// The oldest cuDNN that has been built against.
const CUDNN: usize = 90_000;

/// Makes sure that the driver and cuDNN can be opened: the functions of cudarc panic where a library is missing.
///
/// # Errors
/// [`Error::Device`] naming the library and what installs it.
pub(super) fn require() -> Result<()> {
    #[expect(unsafe_code, reason = "opening a library runs its initialisers")]
    // SAFETY: the libraries are NVIDIA's own, whose initialisers have no preconditions.
    let [driver, cudnn] = unsafe { [driver::sys::is_culib_present(), cudnn::sys::is_culib_present()] };
    if !driver {
        return Err(Error::Device(
            "no NVIDIA driver: libcuda.so.1 cannot be opened. It comes with the driver (`nvidia-smi` shows it) or, in a \
             container, from the NVIDIA container toolkit; or train on the CPU with `--device cpu`"
                .into(),
        ));
    }
    if !cudnn {
        return Err(Error::Device(
            "cuDNN is missing: libcudnn.so.9 cannot be opened. Install it (`pip install nvidia-cudnn-cu13`, or the \
             package `cudnn9-cuda-13`) and put the folder that holds it into LD_LIBRARY_PATH"
                .into(),
        ));
    }
    let version = cudnn::result::get_version();
    if version < CUDNN {
        return Err(Error::Device(format!("cuDNN {version} is too old: version 9 or newer is needed")));
    }
    Ok(())
}
