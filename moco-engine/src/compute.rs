//! Which device computes and in which precision: known at run time only, and turned into types once, here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Cpu, CpuKernels, Device, Error, Result, bf16};

/// A device as it is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum DeviceChoice {
    /// The first GPU, if this build can use one and there is one; else the CPU.
    #[default]
    Auto,
    /// This one.
    Given(DeviceId),
}

/// A device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceId {
    /// All CPU cores.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number.
    Cuda(usize),
}

/// Precision in which feature maps are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with the exponent of f32: half the memory traffic.
    Bf16,
}

/// A device and a precision that this build can compute with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Compute {
    device: DeviceId,
    precision: Precision,
}

/// Something to be done on a device whose type is only known at run time.
pub trait OnDevice {
    /// What comes of it; of the same type for every device.
    type Output;
    /// What can go wrong.
    type Error: From<Error>;

    /// Does it.
    ///
    /// # Errors
    /// Its own.
    fn on<D: Device + 'static>(self, device: D) -> std::result::Result<Self::Output, Self::Error>;
}

impl Compute {
    /// What is wished for, if it can be had; for [`DeviceChoice::Auto`] with a sentence on why it is the CPU where that
    /// may surprise.
    ///
    /// # Errors
    /// [`Error::Device`] saying what is missing.
    pub fn choose(device: DeviceChoice, precision: Precision) -> Result<(Compute, Option<String>)> {
        let (device, note) = match device {
            DeviceChoice::Given(device) => (device, None),
            DeviceChoice::Auto => cuda::first_usable(),
        };
        let compute = Compute { device, precision };
        compute.with(Nothing)?;
        Ok((compute, note))
    }

    /// The device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The precision of feature maps.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same device in full precision.
    pub fn in_f32(self) -> Compute {
        Compute { precision: Precision::F32, ..self }
    }

    /// Does something on this device in this precision: the one place where the two pick an implementation.
    ///
    /// # Errors
    /// [`Error::Device`] if this build or this machine has no such thing; those of the task.
    pub fn with<T: OnDevice>(&self, task: T) -> std::result::Result<T::Output, T::Error> {
        match (self.device, self.precision) {
            (DeviceId::Cpu, Precision::F32) => task.on(Cpu::<CpuKernels<f32>>::default()),
            (DeviceId::Cpu, Precision::Bf16) => task.on(Cpu::<CpuKernels<bf16>>::default()),
            (DeviceId::Cuda(ordinal), precision) => cuda::with(ordinal, precision, task),
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in {}", self.device, self.precision)
    }
}

/// Only opens the device.
struct Nothing;

impl OnDevice for Nothing {
    type Output = ();
    type Error = Error;

    fn on<D: Device + 'static>(self, _device: D) -> Result<()> {
        Ok(())
    }
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::cuda::{Bf16, Cuda};

    pub(super) fn first_usable() -> (DeviceId, Option<String>) {
        match Cuda::<f32>::open(0) {
            Ok(_) => (DeviceId::Cuda(0), None),
            Err(error) => (DeviceId::Cpu, Some(format!("computing on the CPU: {error}"))),
        }
    }

    pub(super) fn with<T: OnDevice>(
        ordinal: usize,
        precision: Precision,
        task: T,
    ) -> std::result::Result<T::Output, T::Error> {
        let failed = |e| Error::Device(format!("--device cuda:{ordinal}: {e}"));
        match precision {
            Precision::F32 => task.on(Cuda::<f32>::open(ordinal).map_err(failed)?),
            Precision::Bf16 => task.on(Cuda::<Bf16>::open(ordinal).map_err(failed)?),
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::*;

    pub(super) fn first_usable() -> (DeviceId, Option<String>) {
        (DeviceId::Cpu, None)
    }

    pub(super) fn with<T: OnDevice>(
        ordinal: usize,
        _precision: Precision,
        _task: T,
    ) -> std::result::Result<T::Output, T::Error> {
        Err(Error::Device(format!(
            "--device cuda:{ordinal}: this program was built for the CPU only; `cargo xtask cuda` builds one for NVIDIA \
             GPUs, or use --device cpu"
        ))
        .into())
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<DeviceChoice, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            other => other.parse().map(DeviceChoice::Given),
        }
    }
}

impl FromStr for DeviceId {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<DeviceId, String> {
        let ordinal = |digits: &str| digits.parse().ok().map(DeviceId::Cuda);
        match text {
            "cpu" => Some(DeviceId::Cpu),
            "cuda" => Some(DeviceId::Cuda(0)),
            _ => text.strip_prefix("cuda:").and_then(ordinal),
        }
        .ok_or_else(|| format!("there is no device `{text}`; use `auto`, `cpu`, `cuda` or `cuda:N`"))
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Precision, String> {
        match text {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            _ => Err(format!("there is no precision `{text}`; use `f32` or `bf16`")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Given(device) => device.fmt(f),
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceId::Cpu => f.write_str("cpu"),
            DeviceId::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<DeviceChoice, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_text_and_others_are_named() {
        for text in ["auto", "cpu", "cuda:0", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceId::Cuda(0)));
        for text in ["gpu", "cuda:", "cuda:-1", "CPU", ""] {
            assert!(text.parse::<DeviceChoice>().unwrap_err().contains("cuda:N"), "{text}");
        }
        assert!("f16".parse::<Precision>().unwrap_err().contains("bf16"));
    }

    #[test]
    fn the_cpu_can_always_be_had_in_both_precisions() {
        for precision in [Precision::F32, Precision::Bf16] {
            let (compute, note) = Compute::choose(DeviceChoice::Given(DeviceId::Cpu), precision).unwrap();
            assert_eq!((compute.device(), compute.precision(), note), (DeviceId::Cpu, precision, None));
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_names_the_flag() {
        let error = Compute::choose(DeviceChoice::Given(DeviceId::Cuda(63)), Precision::F32).unwrap_err().to_string();
        assert!(error.contains("--device cuda:63"), "{error}");
    }
}
