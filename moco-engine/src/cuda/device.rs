//! [`Device`] for what lies between the plans: loss, optimiser, momentum update, queue.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use super::arguments::*;
use super::driver::{Driver, Links, flat, launch};
use super::memory::{DeviceView, Memory, Value};
use super::views::{DecodedMemory, ViewMaker};
use super::{CudaKernels, Rows, optimisers};
use crate::device::{ContrastInputs, DecodedBatch, Device, HostMemory, SgdUpdate};
use crate::group::{Collective, Group, OverHost};
use crate::ops::{self, AdamWStep, InfoNce, ParamGroup, SgdStep};
use crate::{Error, Result};

/// Queries and keys of a tile of the loss, and columns of its gradient that a block computes; see `contrast.cu`.
const QUERIES: usize = 32;
const KEYS: usize = 32;
const DIMS: usize = 128;
/// Most stripes that the queue is cut into: merging reads a gradient of each.
const STRIPES: usize = 64;

/// A device on which plans store feature maps as `T`.
pub struct DriverDevice<T: Value, D: Driver> {
    driver: Arc<D>,
    contrast: Rows<D>,
    pub(super) sums: Rows<D>,
    order: Rows<D>,
    views: ViewMaker<D>,
    maps: PhantomData<T>,
}

impl<T: Value, D: Driver> DriverDevice<T, D> {
    /// A device over its driver.
    pub fn new(driver: Arc<D>) -> DriverDevice<T, D> {
        let views = ViewMaker::new(&driver);
        DriverDevice {
            driver,
            contrast: Rows::default(),
            sums: Rows::default(),
            order: Rows::default(),
            views,
            maps: PhantomData,
        }
    }

    /// Its driver.
    pub fn driver(&self) -> &Arc<D> {
        &self.driver
    }

    /// Waits for everything that has been asked for.
    ///
    /// # Errors
    /// [`Error::Device`] for what went wrong until here.
    pub fn wait(&self) -> Result<()> {
        self.driver.wait()
    }

    pub(super) fn launch<A: Arguments>(&self, grid: [usize; 3], arguments: A) {
        launch::<D, f32, A>(&self.driver, grid, arguments);
    }

    pub(super) fn flat(&self, len: usize) -> [usize; 3] {
        flat::<D, f32>(&self.driver, len)
    }

    fn move_rows(&mut self, from: &DeviceView<f32>, order: &[u32], to: &mut DeviceView<f32>, scatter: bool) {
        let (n, len) = (order.len(), from.len());
        assert!(len == to.len() && len.is_multiple_of(n.max(1)), "{n} rows in {len} and {} values", to.len());
        assert!(order.iter().all(|i| (*i as usize) < n), "{n} rows");
        if len == 0 {
            return;
        }
        let place = match self.order.at_least(&self.driver, size_of_val(order)) {
            Ok(place) => place,
            Err(error) => return self.driver.fail(&error),
        };
        self.driver.upload(bytemuck::cast_slice(order), place);
        let (rows, width, scatter) = (n as i32, (len / n) as i32, i32::from(scatter));
        let (from, to) = (from.address(), to.address());
        self.launch(self.flat(len), MoveRows { from, to, order: place, rows, width, scatter });
    }
}

impl<T: Value, D: Driver> Device for DriverDevice<T, D> {
    type Kernels = CudaKernels<T, D>;
    /// Four f64: loss, correct, mean positive and mean negative similarity.
    type Loss = Memory<D>;
    type Decoded = DecodedMemory<D>;

    fn describe(&self) -> String {
        self.driver.describe()
    }

    fn kernels(&self) -> Result<CudaKernels<T, D>> {
        Ok(CudaKernels::new(&self.driver))
    }

    fn collective(&self, group: &Arc<Group>) -> Result<Box<dyn Collective<Self>>> {
        Ok(match self.driver.link(group)? {
            Some(links) => Box::new(Linked { links, world: group.world() }),
            None => Box::new(OverHost::new(group)),
        })
    }

    fn buffer(&mut self, values: Vec<f32>) -> Result<Memory<D>> {
        let mut memory = Memory::zeroed(&self.driver, size_of_val(&values[..]))?;
        memory.view_mut::<f32>(values.len()).upload(&values, &*self.driver);
        Ok(memory)
    }

    fn stage<'a>(&mut self, values: &'a [f32], memory: &'a mut Option<Memory<D>>) -> Result<&'a DeviceView<f32>> {
        let bytes = size_of_val(values);
        if memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            *memory = Some(Memory::zeroed(&self.driver, bytes)?);
        }
        let memory = memory.as_mut().expect("it has just been made");
        let view = memory.view_mut::<f32>(values.len());
        view.upload(values, &*self.driver);
        Ok(view)
    }

    fn download<'a>(&self, view: &'a DeviceView<f32>) -> Result<Cow<'a, [f32]>> {
        view.download(&*self.driver).map(Cow::Owned)
    }

    fn makes_views(&self) -> bool {
        true
    }

    fn host_memory(&self) -> Arc<dyn HostMemory> {
        self.driver.host_memory()
    }

    fn send(&mut self, batch: &DecodedBatch<'_>, reuse: Option<DecodedMemory<D>>) -> Result<DecodedMemory<D>> {
        self.views.send(batch, reuse)
    }

    fn make_view(&mut self, batch: &DecodedMemory<D>, which: usize, view: &mut DeviceView<f32>) -> Result<()> {
        self.views.make(batch, which, view)
    }

    fn l2_normalise(&mut self, x: &DeviceView<f32>, dim: usize, y: &mut DeviceView<f32>) {
        let n = rows(x, dim, y);
        let (x, out) = (x.address(), y.address());
        self.launch([n, 1, 1], Normalise { x, dy: 0, out, n: n as i32, dim: dim as i32 });
    }

    fn l2_normalise_backward(
        &mut self,
        x: &DeviceView<f32>,
        dy: &DeviceView<f32>,
        dim: usize,
        dx: &mut DeviceView<f32>,
    ) {
        let n = rows(x, dim, dx);
        assert_eq!(x.len(), dy.len(), "a gradient for every value");
        let (x, dy, out) = (x.address(), dy.address(), dx.address());
        self.launch([n, 1, 1], Normalise { x, dy, out, n: n as i32, dim: dim as i32 });
    }

    fn info_nce(&mut self, inputs: &ContrastInputs<'_, Self>, d_query: &mut DeviceView<f32>) -> Result<Memory<D>> {
        let ContrastInputs { query, key, queue, dim, temperature, same_image } = *inputs;
        let lens = [query.len(), key.len(), queue.len()];
        let (n, keys) = ops::check_contrast(lens, dim, temperature, same_image.as_ref())?;
        Error::check_len("gradient of the queries", n * dim, d_query.len())?;

        let (tiles, chunks) = (n.div_ceil(QUERIES), dim.div_ceil(DIMS));
        let wanted = (8 * self.driver.multiprocessors()).div_ceil(tiles * chunks).clamp(1, STRIPES);
        let stripe = keys.div_ceil(wanted).next_multiple_of(KEYS).max(KEYS);
        let stripes = keys.div_ceil(stripe).max(1);

        let images = if same_image.is_some() { [n, keys] } else { [0; 2] };
        let [pulls, bounds, totals, results, query_image, queue_image] = self.contrast.parts(
            &self.driver,
            [4 * stripes * n * dim, 8 * stripes * n, 16 * stripes * n, 40 * n, 8 * images[0], 8 * images[1]],
        )?;
        if let Some(same) = same_image {
            self.driver.upload(bytemuck::cast_slice(same.query), query_image);
            self.driver.upload(bytemuck::cast_slice(same.queue), queue_image);
        }
        let [query_image, queue_image] = if same_image.is_some() { [query_image, queue_image] } else { [0; 2] };
        let (query, key, d_query) = (query.address(), key.address(), d_query.address());
        let contrast = Contrast {
            query,
            queue: queue.address(),
            query_image,
            queue_image,
            pulls,
            bounds,
            totals,
            keys: keys as u64,
            stripe: stripe as u64,
            n: n as i32,
            dim: dim as i32,
            scale: 1.0 / temperature,
        };
        self.launch([tiles, stripes, chunks], contrast);
        let (n_, dim, stripes) = (n as i32, dim as i32, stripes as i32);
        let merge =
            ContrastMerge { query, key, pulls, bounds, totals, d_query, results, n: n_, dim, stripes, temperature };
        self.launch([n, 1, 1], merge);
        let loss = Memory::zeroed(&self.driver, 4 * size_of::<f64>())?;
        self.launch([1; 3], ContrastResult { results, out: loss.address(), n: n_, temperature });
        Ok(loss)
    }

    fn loss(&mut self, loss: Memory<D>) -> Result<InfoNce> {
        let mut values = [0.0f64; 4];
        self.driver.download(loss.address(), bytemuck::cast_slice_mut(&mut values))?;
        let [loss, correct, positive_similarity, negative_similarity] = values;
        Ok(InfoNce { loss, correct: correct as usize, positive_similarity, negative_similarity })
    }

    fn copy(&mut self, from: &DeviceView<f32>, to: &mut DeviceView<f32>) {
        assert_eq!(from.len(), to.len(), "one value for each");
        self.driver.copy(from.address(), to.address(), from.bytes());
    }

    fn add_assign(&mut self, from: &DeviceView<f32>, to: &mut DeviceView<f32>) {
        assert_eq!(from.len(), to.len(), "one value for each");
        let (a, len) = (to.address(), to.len());
        self.launch(self.flat(len), Add { a, b: from.address(), y: a, len: len as u64, relu: 0 });
    }

    fn sgd_momentum(
        &mut self,
        params: &mut DeviceView<f32>,
        gradients: &DeviceView<f32>,
        velocity: &mut DeviceView<f32>,
        update: &SgdUpdate,
    ) {
        assert_eq!(params.len(), gradients.len(), "one gradient per parameter");
        assert_eq!(params.len(), velocity.len(), "one velocity per parameter");
        let sgd = Sgd {
            params: params.address(),
            gradients: gradients.address(),
            velocity: velocity.address(),
            rates: 0,
            len: params.len() as u64,
            lr: update.lr,
            momentum: update.momentum,
            weight_decay: update.weight_decay,
        };
        self.launch(self.flat(params.len()), sgd);
    }

    fn sgd_groups(
        &mut self,
        params: &mut DeviceView<f32>,
        gradients: &DeviceView<f32>,
        velocity: &mut DeviceView<f32>,
        step: &SgdStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        optimisers::sgd(self, params, gradients, velocity, step, groups)
    }

    fn adamw_groups(
        &mut self,
        params: &mut DeviceView<f32>,
        gradients: &DeviceView<f32>,
        first: &mut DeviceView<f32>,
        second: &mut DeviceView<f32>,
        step: &AdamWStep,
        groups: &[ParamGroup],
    ) -> Result<()> {
        optimisers::adamw(self, params, gradients, [first, second], step, groups)
    }

    fn gradient_norm(&mut self, gradients: &DeviceView<f32>, groups: &[ParamGroup]) -> Result<f64> {
        optimisers::norm(self, gradients, groups)
    }

    fn scale_groups(&mut self, values: &mut DeviceView<f32>, factor: f32, groups: &[ParamGroup]) -> Result<()> {
        optimisers::scale(self, values, factor, groups)
    }

    fn zero(&mut self, view: &mut DeviceView<f32>) -> Result<()> {
        self.driver.clear(view.address(), view.bytes());
        Ok(())
    }

    fn ema(&mut self, target: &mut DeviceView<f32>, source: &DeviceView<f32>, m: f32) {
        assert_eq!(target.len(), source.len(), "one source value per target value");
        // 1 − m in f64, as Python computes it before it meets the f32 tensor.
        let rest = (1.0 - f64::from(m)) as f32;
        let (len, target, source) = (target.len(), target.address(), source.address());
        self.launch(self.flat(len), Ema { target, source, rates: 0, len: len as u64, m, rest });
    }

    fn gather_rows(&mut self, from: &DeviceView<f32>, order: &[u32], gathered: &mut DeviceView<f32>) {
        self.move_rows(from, order, gathered, false);
    }

    fn scatter_rows(&mut self, from: &DeviceView<f32>, order: &[u32], scattered: &mut DeviceView<f32>) {
        self.move_rows(from, order, scattered, true);
    }

    fn enqueue(&mut self, keys: &DeviceView<f32>, dim: usize, pointer: usize, queue: &mut DeviceView<f32>) {
        let places = queue.len() / dim;
        assert!(keys.len().is_multiple_of(dim) && queue.len().is_multiple_of(dim), "whole keys of {dim} values");
        assert!(pointer < places, "place {pointer} of {places}");
        let n = keys.len() / dim;
        let skipped = n.saturating_sub(places);
        let enqueue = Enqueue {
            keys: keys.part(skipped * dim, (n - skipped) * dim),
            queue: queue.address(),
            place: 0,
            pointer: ((pointer + skipped) % places) as u64,
            slots: places as u64,
            rows: (n - skipped) as i32,
            width: dim as i32,
        };
        self.launch(self.flat((n - skipped) * dim), enqueue);
    }
}

/// [`Collective`] by a driver's own connections.
struct Linked {
    links: Box<dyn Links>,
    world: usize,
}

impl<T: Value, D: Driver> Collective<DriverDevice<T, D>> for Linked {
    fn mean(&mut self, _device: &mut DriverDevice<T, D>, values: &mut DeviceView<f32>) -> Result<()> {
        self.links.mean(values.address(), values.len())
    }

    fn gather(
        &mut self,
        _device: &mut DriverDevice<T, D>,
        own: &DeviceView<f32>,
        all: &mut DeviceView<f32>,
    ) -> Result<()> {
        Error::check_len("values of all processes", own.len() * self.world, all.len())?;
        self.links.gather(own.address(), own.len(), all.address())
    }

    fn exchange(
        &mut self,
        _device: &mut DriverDevice<T, D>,
        values: &DeviceView<f32>,
        to: &[usize],
        received: &mut DeviceView<f32>,
        from: &[usize],
    ) -> Result<()> {
        for (counts, len) in [(to, values.len()), (from, received.len())] {
            Error::check_len("counts of an exchange", self.world, counts.len())?;
            Error::check_len("values of an exchange", counts.iter().sum(), len)?;
        }
        self.links.exchange(values.address(), to, received.address(), from)
    }
}

/// Rows of `dim` values in two views of one length.
fn rows(x: &DeviceView<f32>, dim: usize, y: &DeviceView<f32>) -> usize {
    assert!(dim > 0 && x.len() == y.len() && x.len().is_multiple_of(dim), "rows of {dim} in {} values", x.len());
    x.len() / dim
}
