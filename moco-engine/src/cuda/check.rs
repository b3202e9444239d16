//! Every kernel against its twin on the CPU, on fresh random inputs: what to run first on a new GPU, and what tests run on
//! the emulated device.

mod maps;
mod products;
mod training;

use super::{Driver, DriverDevice, Value};
use crate::device::{Buffer, Device};
use crate::kernels::Need;
use crate::{Cpu, CpuKernels, Kernels, Result};

/// How one result of a kernel compares with its twin's.
#[derive(Clone, Debug)]
pub struct KernelCheck {
    /// Kernel, sizes, and which of its results.
    pub name: String,
    /// Largest difference, in units of the largest value of the twin; NaN where one is NaN and the other is not.
    pub error: f64,
    /// What rounding explains.
    pub bound: f64,
}

impl KernelCheck {
    /// Whether the difference is explained.
    pub fn passed(&self) -> bool {
        self.error <= self.bound
    }
}

/// How large the inputs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Awkward and small, for the emulated device.
    Small,
    /// As in training, for a GPU; includes the small ones.
    Full,
}

/// Runs every kernel on `device` and on the CPU. Inputs follow from `seed`.
///
/// # Errors
/// If something cannot be allocated or the device reports a failure: that no kernel gave wrong numbers is in the result.
pub fn run<T: Value, D: Driver>(device: &mut DriverDevice<T, D>, seed: u64, scale: Scale) -> Result<Vec<KernelCheck>> {
    let mut checks = vec![];
    let mut trials: Vec<Box<dyn Trial<T, D>>> = vec![];
    maps::trials(&mut trials, scale);
    products::trials(&mut trials, scale);
    training::trials(&mut trials, scale);
    for (i, trial) in trials.iter().enumerate() {
        let noise = Noise { seed: seed.wrapping_add(i as u64) << 20, bf16: T::BF16 };
        let expected = trial.on_cpu(&mut Cpu::<CpuKernels>::default(), noise)?;
        let got = trial.on_device(device, noise)?;
        for ((what, got, _), (_, expected, tolerance)) in got.iter().zip(&expected) {
            let bound = match (tolerance, T::BF16) {
                (Tolerance::Exact, _) => 0.0,
                (Tolerance::Full, _) | (Tolerance::Map, false) => 2e-5,
                // Half a unit in the last of 8 places, and what a sum that was rounded on its way may add.
                (Tolerance::Map, true) => 8e-3,
                (Tolerance::Gradient, true) => 8e-3,
                (Tolerance::Gradient, false) => 2e-5,
            };
            checks.push(KernelCheck {
                name: format!("{}, {what}", trial.name()),
                error: difference(got, expected),
                bound,
            });
        }
    }
    Ok(checks)
}

/// How exact a result has to be.
#[derive(Clone, Copy)]
enum Tolerance {
    /// To the bit.
    Exact,
    /// To the rounding of f32.
    Full,
    /// To the rounding of a stored map.
    Map,
    /// A weight gradient, which cuDNN rounds to the storage type.
    Gradient,
}

/// Named results.
type Results = Vec<(&'static str, Vec<f32>, Tolerance)>;

/// Something that can be done on any device.
trait OnAny {
    fn name(&self) -> String;
    fn run<V: Device>(&self, bench: &mut Bench<'_, V>, noise: Noise) -> Result<Results>;
}

/// [`OnAny`], for a list of different ones.
trait Trial<T: Value, D: Driver> {
    fn name(&self) -> String;
    fn on_cpu(&self, cpu: &mut Cpu, noise: Noise) -> Result<Results>;
    fn on_device(&self, device: &mut DriverDevice<T, D>, noise: Noise) -> Result<Results>;
}

impl<O: OnAny, T: Value, D: Driver> Trial<T, D> for O {
    fn name(&self) -> String {
        OnAny::name(self)
    }

    fn on_cpu(&self, cpu: &mut Cpu, noise: Noise) -> Result<Results> {
        self.run(&mut Bench { device: cpu }, noise)
    }

    fn on_device(&self, device: &mut DriverDevice<T, D>, noise: Noise) -> Result<Results> {
        let results = self.run(&mut Bench { device }, noise)?;
        device.wait()?;
        Ok(results)
    }
}

/// Random values in [−1, 1), the same for both devices.
#[derive(Clone, Copy)]
struct Noise {
    seed: u64,
    bf16: bool,
}

impl Noise {
    /// Values that maps of the device hold exactly; `stream` tells one input from the next.
    fn map(&self, stream: u64, len: usize) -> Vec<f32> {
        self.map_around(0.0, stream, len)
    }

    /// The same around another mean.
    fn map_around(&self, mean: f32, stream: u64, len: usize) -> Vec<f32> {
        let stored = |v: f32| if self.bf16 { round_to_bf16(v + mean) } else { v + mean };
        self.full(stream, len).into_iter().map(stored).collect()
    }

    /// Values in full precision.
    fn full(&self, stream: u64, len: usize) -> Vec<f32> {
        (0..len as u64)
            .map(|i| {
                let mut z = (self.seed + stream)
                    .wrapping_mul(0xD134_2543_DE82_EF95)
                    .wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }
}

/// Round to nearest even, as the device does; of finite values.
fn round_to_bf16(v: f32) -> f32 {
    let bits = v.to_bits();
    f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
}

/// A device to try kernels on.
struct Bench<'a, V: Device> {
    device: &'a mut V,
}

impl<V: Device> Bench<'_, V> {
    /// Kernels that have been told these needs.
    fn kernels(&self, needs: &[Need]) -> Result<V::Kernels> {
        let mut kernels = self.device.kernels()?;
        for need in needs {
            kernels.expect(need, true);
        }
        kernels.allocate_workspace()?;
        Ok(kernels)
    }

    fn buffer(&mut self, values: Vec<f32>) -> Result<Buffer<V>> {
        self.device.buffer(values)
    }

    fn map(&mut self, kernels: &mut V::Kernels, values: Vec<f32>) -> Result<<V::Kernels as Kernels>::Map> {
        let len = values.len();
        let (buffer, mut map) = (self.buffer(values)?, kernels.map(len)?);
        kernels.load(V::Kernels::view(&buffer, len), V::Kernels::map_view_mut(&mut map, len), false);
        Ok(map)
    }

    fn read(&self, buffer: &Buffer<V>, len: usize) -> Result<Vec<f32>> {
        Ok(self.device.download(V::Kernels::view(buffer, len))?.into_owned())
    }

    fn read_map(&self, kernels: &mut V::Kernels, map: &<V::Kernels as Kernels>::Map, len: usize) -> Result<Vec<f32>> {
        let mut buffer = kernels.buffer(len)?;
        kernels.store(V::Kernels::map_view(map, len), V::Kernels::view_mut(&mut buffer, len));
        self.read(&buffer, len)
    }
}

/// Largest difference in units of the largest expected value.
fn difference(got: &[f32], expected: &[f32]) -> f64 {
    if got.len() != expected.len() || got.iter().zip(expected).any(|(g, e)| g.is_nan() != e.is_nan()) {
        return f64::NAN;
    }
    let finite = expected.iter().filter(|e| !e.is_nan()).map(|e| f64::from(e.abs()));
    let largest = finite.fold(f64::MIN_POSITIVE, f64::max);
    let pairs = got.iter().zip(expected).filter(|(g, _)| !g.is_nan());
    pairs.map(|(g, e)| (f64::from(*g) - f64::from(*e)).abs()).fold(0.0, f64::max) / largest
}

#[cfg(all(test, feature = "cuda-emulation"))]
mod tests {
    use super::*;
    use crate::cuda::{Bf16, EmulatedCuda};

    fn assert_all_pass<T: Value>() {
        let checks = run(&mut EmulatedCuda::<T>::emulated().unwrap(), 5, Scale::Small).unwrap();
        assert!(checks.len() > 50, "{} checks", checks.len());
        let failed: Vec<_> = checks.iter().filter(|c| !c.passed()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn every_kernel_agrees_with_the_cpu_in_f32() {
        assert_all_pass::<f32>();
    }

    #[test]
    fn every_kernel_agrees_with_the_cpu_in_bf16() {
        assert_all_pass::<Bf16>();
    }

    #[test]
    fn a_difference_is_seen() {
        assert_eq!(difference(&[1.0, 2.0], &[1.0, 4.0]), 0.5);
        assert!(difference(&[f32::NAN], &[1.0]).is_nan());
        assert!(!KernelCheck { name: String::new(), error: f64::NAN, bound: 1.0 }.passed());
    }
}
