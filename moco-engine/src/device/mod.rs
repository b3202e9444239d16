//! What a training step needs outside the network, as a trait over the place where it computes.
//!
//! A [`Device`] makes the [`Kernels`] of every plan of a training and holds what lies between the plans: weights,
//! gradients and keys are its memory, and loss, optimiser, momentum update and queue are its work. Everything that one
//! device is asked for happens in the order of the calls; only [`Device::download`] and [`Device::loss`] have to wait for it.

mod cpu;
mod decoded;

use std::borrow::Cow;
use std::sync::Arc;

use crate::group::{Collective, Group, OverHost};
use crate::ops::{AdamWStep, InfoNce, ParamGroup, SameImage, SgdStep, clip_factor};
use crate::{Error, Kernels, Result};

pub use cpu::Cpu;
pub use decoded::{DecodedBatch, HostBytes, HostMemory, Pageable};

/// Memory of a device, in full precision.
pub type Buffer<D> = <<D as Device>::Kernels as Kernels>::Buffer;

/// A borrowed part of it.
pub type View<D> = <<D as Device>::Kernels as Kernels>::View;

/// Where a training computes.
pub trait Device: Sized + Send {
    /// The steps of its plans.
    type Kernels: Kernels;
    /// A loss that is perhaps still being computed.
    type Loss: Send;
    /// Decoded images and tables in the memory of the device.
    type Decoded: Send;

    /// What messages call it.
    fn describe(&self) -> String;
    /// Steps for one more plan.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if it cannot hold them.
    fn kernels(&self) -> Result<Self::Kernels>;

    /// How this device sums and exchanges with those of other processes.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if what it needs for that is missing, [`Error::Group`](crate::Error::Group) if a
    /// process is lost.
    fn collective(&self, group: &Arc<Group>) -> Result<Box<dyn Collective<Self>>>
    where
        Self: 'static,
    {
        Ok(Box::new(OverHost::new(group)))
    }

    /// Memory that holds these values.
    ///
    /// # Errors
    /// If the device has not that much.
    fn buffer(&mut self, values: Vec<f32>) -> Result<Buffer<Self>>;
    /// Host values as the device reads them: themselves where it can, else a copy in `memory`, which is made or grown.
    ///
    /// # Errors
    /// If the device has not that much memory.
    fn stage<'a>(&mut self, values: &'a [f32], memory: &'a mut Option<Buffer<Self>>) -> Result<&'a View<Self>>;
    /// Values as the host reads them: themselves where it can, else a copy. Waits for all that was asked for before.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if something has gone wrong since the last wait.
    fn download<'a>(&self, view: &'a View<Self>) -> Result<Cow<'a, [f32]>>;

    /// Whether it makes views of decoded images itself.
    fn makes_views(&self) -> bool {
        false
    }
    /// Host memory from which [`Device::send`] copies without a detour.
    fn host_memory(&self) -> Arc<dyn HostMemory> {
        Arc::new(Pageable)
    }
    /// Begins to copy a batch to the device, beside the work that has been asked for. `reuse` is a batch that is not needed
    /// any more. The batch must stay as it is until [`Device::make_view`] has been called and a wait has ended.
    ///
    /// # Errors
    /// If the device has not that much memory, or makes no views.
    fn send(&mut self, batch: &DecodedBatch<'_>, reuse: Option<Self::Decoded>) -> Result<Self::Decoded> {
        let _ = (batch, reuse);
        Err(Error::State(format!("{} makes no views of decoded images", self.describe())))
    }
    /// Makes the first (0) or the second (1) view of each image: [n, height, width, channels], as `moco_image::augment_exactly`
    /// does.
    ///
    /// # Errors
    /// If the device has not that much memory, or makes no views.
    fn make_view(&mut self, batch: &Self::Decoded, which: usize, view: &mut View<Self>) -> Result<()> {
        let _ = (batch, which, view);
        Err(Error::State(format!("{} makes no views of decoded images", self.describe())))
    }

    /// As [`ops::l2_normalise`](crate::ops::l2_normalise).
    fn l2_normalise(&mut self, x: &View<Self>, dim: usize, y: &mut View<Self>);
    /// As [`ops::l2_normalise_backward`](crate::ops::l2_normalise_backward).
    fn l2_normalise_backward(&mut self, x: &View<Self>, dy: &View<Self>, dim: usize, dx: &mut View<Self>);
    /// As [`ops::info_nce`](crate::ops::info_nce); `d_query` [n, dim] is overwritten.
    ///
    /// # Errors
    /// As [`ops::info_nce`](crate::ops::info_nce).
    fn info_nce(&mut self, inputs: &ContrastInputs<'_, Self>, d_query: &mut View<Self>) -> Result<Self::Loss>;
    /// Waits for a loss.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if something has gone wrong since the last wait.
    fn loss(&mut self, loss: Self::Loss) -> Result<InfoNce>;
    /// `to = from`.
    fn copy(&mut self, from: &View<Self>, to: &mut View<Self>);
    /// `to += from`.
    fn add_assign(&mut self, from: &View<Self>, to: &mut View<Self>);
    /// As [`ops::sgd_momentum`](crate::ops::sgd_momentum).
    fn sgd_momentum(
        &mut self,
        params: &mut View<Self>,
        gradients: &View<Self>,
        velocity: &mut View<Self>,
        update: &SgdUpdate,
    );
    /// As [`ops::sgd_groups`](crate::ops::sgd_groups).
    ///
    /// # Errors
    /// As there, and [`Error::Device`](crate::Error::Device) where the device has no such optimiser.
    fn sgd_groups(
        &mut self,
        params: &mut View<Self>,
        gradients: &View<Self>,
        velocity: &mut View<Self>,
        step: &SgdStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        let _ = (params, gradients, velocity, step, groups);
        Err(lacks(self, "SGD over groups of parameters"))
    }
    /// As [`ops::adamw_groups`](crate::ops::adamw_groups).
    ///
    /// # Errors
    /// As there, and [`Error::Device`](crate::Error::Device) where the device has no such optimiser.
    fn adamw_groups(
        &mut self,
        params: &mut View<Self>,
        gradients: &View<Self>,
        first: &mut View<Self>,
        second: &mut View<Self>,
        step: &AdamWStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        let _ = (params, gradients, first, second, step, groups);
        Err(lacks(self, "AdamW"))
    }
    /// As [`ops::gradient_norm`](crate::ops::gradient_norm). Waits for all that was asked for before.
    ///
    /// # Errors
    /// As there, and [`Error::Device`](crate::Error::Device) where the device cannot.
    fn gradient_norm(&mut self, gradients: &View<Self>, groups: &[ParamGroup]) -> Result<f64> {
        let _ = (gradients, groups);
        Err(lacks(self, "the norm of a gradient"))
    }
    /// As [`ops::scale_groups`](crate::ops::scale_groups).
    ///
    /// # Errors
    /// As there, and [`Error::Device`](crate::Error::Device) where the device cannot.
    fn scale_groups(&mut self, values: &mut View<Self>, factor: f32, groups: &[ParamGroup]) -> Result<()> {
        let _ = (values, factor, groups);
        Err(lacks(self, "scaling of groups of parameters"))
    }
    /// Scales the groups' parts of a gradient down to the norm `max_norm` where they are longer, as PyTorch's
    /// `clip_grad_norm_` does; the norm before. One that is not finite changes nothing.
    ///
    /// # Errors
    /// As [`Device::gradient_norm`] and [`Device::scale_groups`].
    fn clip_gradients(&mut self, gradients: &mut View<Self>, max_norm: f32, groups: &[ParamGroup]) -> Result<f64> {
        let norm = self.gradient_norm(gradients, groups)?;
        if let Some(factor) = clip_factor(norm, max_norm) {
            self.scale_groups(gradients, factor, groups)?;
        }
        Ok(norm)
    }
    /// `view = 0`.
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) where the device cannot.
    fn zero(&mut self, view: &mut View<Self>) -> Result<()> {
        let _ = view;
        Err(lacks(self, "clearing of memory"))
    }
    /// As [`ops::ema`](crate::ops::ema).
    fn ema(&mut self, target: &mut View<Self>, source: &View<Self>, m: f32);
    /// As [`ops::gather_rows`](crate::ops::gather_rows).
    fn gather_rows(&mut self, rows: &View<Self>, order: &[u32], gathered: &mut View<Self>);
    /// As [`ops::scatter_rows`](crate::ops::scatter_rows).
    fn scatter_rows(&mut self, rows: &View<Self>, order: &[u32], scattered: &mut View<Self>);
    /// As [`ops::enqueue`](crate::ops::enqueue).
    fn enqueue(&mut self, keys: &View<Self>, dim: usize, pointer: usize, queue: &mut View<Self>);
}

fn lacks<D: Device>(device: &D, what: &str) -> Error {
    Error::Device(format!("{} has no {what} yet; use the CPU", device.describe()))
}

/// Inputs of [`Device::info_nce`]: [`ops::InfoNceInputs`](crate::ops::InfoNceInputs) on the device.
pub struct ContrastInputs<'a, D: Device> {
    /// [n, dim], rows of unit length.
    pub query: &'a View<D>,
    /// [n, dim], rows of unit length: the positive of each query. Gets no gradient.
    pub key: &'a View<D>,
    /// [K, dim], one key a row, rows of unit length: the negatives. Gets no gradient.
    pub queue: &'a View<D>,
    /// Dimension of the embedding.
    pub dim: usize,
    /// Divides the similarities.
    pub temperature: f32,
    /// Leaves out negatives that are another view of the query's own image; the images lie on the host.
    pub same_image: Option<SameImage<'a>>,
}

/// Numbers of one step of SGD.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SgdUpdate {
    /// Learning rate.
    pub lr: f32,
    /// Momentum.
    pub momentum: f32,
    /// Weight decay, on every parameter.
    pub weight_decay: f32,
}
