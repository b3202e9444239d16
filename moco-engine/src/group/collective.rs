//! What the processes of a training do together with the memory of their devices.

use std::sync::Arc;

use super::Group;
use crate::device::{Buffer, Device, View};
use crate::{Kernels, Result};

/// Sums and exchanges among devices, one a process. All processes call the same methods in the same order.
pub trait Collective<D: Device>: Send {
    /// Replaces values by their mean over all processes: the same in each to the bit.
    ///
    /// # Errors
    /// [`Error::Group`](crate::Error::Group) if a process is lost, those of the device.
    fn mean(&mut self, device: &mut D, values: &mut View<D>) -> Result<()>;
    /// Puts the values of all processes behind each other, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Collective::mean`], and [`Error::Length`](crate::Error::Length) if `all` does not hold that many.
    fn gather(&mut self, device: &mut D, own: &View<D>, all: &mut View<D>) -> Result<()>;
    /// Gives each process its part of `values` and gathers what the others give to this one, in their order. `to` and `from`
    /// hold a number of values for each process.
    ///
    /// # Errors
    /// As [`Collective::mean`], and [`Error::Length`](crate::Error::Length) where numbers and values do not fit.
    fn exchange(
        &mut self,
        device: &mut D,
        values: &View<D>,
        to: &[usize],
        received: &mut View<D>,
        from: &[usize],
    ) -> Result<()>;
}

/// [`Collective`] through the memory of the host and the group's own connections: for CPUs, and for every device that has
/// nothing faster.
pub struct OverHost<D: Device> {
    group: Arc<Group>,
    values: Vec<f32>,
    results: Vec<f32>,
    staged: Option<Buffer<D>>,
}

impl<D: Device> OverHost<D> {
    /// Over the connections of this group.
    pub fn new(group: &Arc<Group>) -> OverHost<D> {
        OverHost { group: group.clone(), values: vec![], results: vec![], staged: None }
    }

    /// Takes values to the host.
    fn take(&mut self, device: &D, values: &View<D>) -> Result<()> {
        self.values.clear();
        self.values.extend_from_slice(&device.download(values)?);
        Ok(())
    }

    /// Brings results to the device.
    fn put(&mut self, device: &mut D, to: &mut View<D>) -> Result<()> {
        let staged = device.stage(&self.results, &mut self.staged)?;
        device.copy(staged, to);
        Ok(())
    }
}

impl<D: Device> Collective<D> for OverHost<D> {
    fn mean(&mut self, device: &mut D, values: &mut View<D>) -> Result<()> {
        self.take(device, values)?;
        self.group.mean(&mut self.values)?;
        std::mem::swap(&mut self.values, &mut self.results);
        self.put(device, values)
    }

    fn gather(&mut self, device: &mut D, own: &View<D>, all: &mut View<D>) -> Result<()> {
        crate::Error::check_len(
            "values of all processes",
            D::Kernels::len(own) * self.group.world(),
            D::Kernels::len(all),
        )?;
        self.take(device, own)?;
        let parts = self.group.gather(bytemuck::cast_slice(&self.values))?;
        self.results.resize(D::Kernels::len(all), 0.0);
        for (rank, (part, to)) in parts.iter().zip(self.results.chunks_exact_mut(self.values.len().max(1))).enumerate()
        {
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            crate::Error::check_len(&format!("values of process {rank}"), to.len() / 4, part.len() / 4)?;
            to.copy_from_slice(part);
        }
        self.put(device, all)
    }

    fn exchange(
        &mut self,
        device: &mut D,
        values: &View<D>,
        to: &[usize],
        received: &mut View<D>,
        from: &[usize],
    ) -> Result<()> {
        self.take(device, values)?;
        self.results.resize(D::Kernels::len(received), 0.0);
        self.group.exchange(&self.values, to, &mut self.results, from)?;
        self.put(device, received)
    }
}
