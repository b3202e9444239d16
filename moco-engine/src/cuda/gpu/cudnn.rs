//! Convolutions by cuDNN, NHWC. For each shape every algorithm is tried once and the fastest deterministic one is kept.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::cudnn::result::{self, CudnnError};
use cudarc::cudnn::sys::{self, cudnnMathType_t, cudnnStatus_t};
use cudarc::driver;

use super::super::driver::{Convolution, Pass};
use crate::kernels::conv::ConvShape;

/// Most scratch that an algorithm may ask for.
const WORKSPACE: usize = 1 << 30;
/// More algorithms than any pass has.
const ALGORITHMS: usize = 16;

/// cuDNN on one stream.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    stream: driver::sys::CUstream,
    /// `None` where cuDNN has no algorithm for a shape.
    plans: HashMap<(Pass, ConvShape, bool), Option<Plan>>,
    workspace: driver::sys::CUdeviceptr,
    workspace_bytes: usize,
    /// How often the scratch has moved.
    generation: u64,
}

/// How one pass of one shape runs.
struct Plan {
    descriptors: Descriptors,
    algorithm: Algorithm,
    workspace: usize,
}

struct Descriptors {
    x: sys::cudnnTensorDescriptor_t,
    w: sys::cudnnFilterDescriptor_t,
    y: sys::cudnnTensorDescriptor_t,
    conv: sys::cudnnConvolutionDescriptor_t,
}

#[derive(Clone, Copy)]
enum Algorithm {
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    Weights(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// An algorithm that has been tried.
struct Tried {
    algorithm: Algorithm,
    milliseconds: f32,
    workspace: usize,
    math: cudnnMathType_t,
}

/// What went wrong: in cuDNN, or with its scratch.
pub(super) enum Failure {
    Cudnn(CudnnError),
    Driver(driver::DriverError),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Cudnn(error) => error.fmt(f),
            Failure::Driver(error) => error.fmt(f),
        }
    }
}

impl From<CudnnError> for Failure {
    fn from(error: CudnnError) -> Failure {
        Failure::Cudnn(error)
    }
}

impl From<driver::DriverError> for Failure {
    fn from(error: driver::DriverError) -> Failure {
        Failure::Driver(error)
    }
}

impl Cudnn {
    /// Needs the context to be current, as all methods do.
    pub(super) fn new(stream: driver::sys::CUstream) -> Result<Cudnn, CudnnError> {
        let handle = result::create_handle()?;
        #[expect(unsafe_code, reason = "a call of cuDNN")]
        // SAFETY: both live; the two libraries' stream types are one.
        unsafe {
            result::set_stream(handle, stream.cast())?;
        }
        Ok(Cudnn { handle, stream, plans: HashMap::new(), workspace: 0, workspace_bytes: 0, generation: 0 })
    }

    /// Changes when the scratch has moved.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    /// Runs a convolution; `false` if cuDNN has no algorithm for it.
    pub(super) fn run(&mut self, job: &Convolution) -> Result<bool, Failure> {
        let key = (job.pass, job.shape, job.bf16);
        let fresh = !self.plans.contains_key(&key);
        if fresh {
            let plan = self.plan(job)?;
            if let Some(plan) = &plan {
                self.grow(plan.workspace)?;
            }
            self.plans.insert(key, plan);
        }
        let Some(Some(plan)) = self.plans.get(&key) else { return Ok(false) };
        let d = &plan.descriptors;
        let (one, zero) = (1.0f32, 0.0f32);
        let alpha = (&raw const one).cast::<c_void>();
        let beta = if job.accumulate { alpha } else { (&raw const zero).cast() };
        let (x, w, y) = (job.x as *mut c_void, job.w as *mut c_void, job.y as *mut c_void);
        let (scratch, bytes) = (self.workspace as *mut c_void, plan.workspace);
        #[expect(unsafe_code, reason = "a call of cuDNN")]
        // SAFETY: the descriptors were made for this shape, whose memory the caller's addresses hold; the scratch has as
        // many bytes as the algorithm asked for.
        let outcome = unsafe {
            match plan.algorithm {
                Algorithm::Forward(algorithm) => result::convolution_forward(
                    self.handle,
                    alpha,
                    d.x,
                    x,
                    d.w,
                    w,
                    d.conv,
                    algorithm,
                    scratch,
                    bytes,
                    beta,
                    d.y,
                    y,
                ),
                Algorithm::Data(algorithm) => result::convolution_backward_data(
                    self.handle,
                    alpha,
                    d.w,
                    w,
                    d.y,
                    y,
                    d.conv,
                    algorithm,
                    scratch,
                    bytes,
                    beta,
                    d.x,
                    x,
                ),
                Algorithm::Weights(algorithm) => result::convolution_backward_filter(
                    self.handle,
                    alpha,
                    d.x,
                    x,
                    d.y,
                    y,
                    d.conv,
                    algorithm,
                    scratch,
                    bytes,
                    beta,
                    d.w,
                    w,
                ),
            }
        };
        match outcome {
            Ok(()) => Ok(true),
            // What was found by trying may still be refused, as the arithmetic is fixed afterwards.
            Err(_) if fresh => {
                if let Some(Some(plan)) = self.plans.insert(key, None) {
                    plan.descriptors.destroy();
                }
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The convolutions that cuDNN has no algorithm for and that the engine's own kernels do.
    pub(super) fn refused(&self) -> Vec<(Pass, ConvShape)> {
        self.plans.iter().filter(|(_, plan)| plan.is_none()).map(|((pass, shape, _), _)| (*pass, *shape)).collect()
    }

    /// Tries every algorithm on the job's own memory and keeps the fastest.
    fn plan(&mut self, job: &Convolution) -> Result<Option<Plan>, Failure> {
        let Some(descriptors) = Descriptors::new(&job.shape, job.bf16)? else { return Ok(None) };
        self.grow_as_far_as_possible(WORKSPACE)?;
        let tried = self.try_all(job, &descriptors)?;
        let best = tried.into_iter().min_by(|a, b| a.milliseconds.total_cmp(&b.milliseconds));
        let Some(best) = best else {
            descriptors.destroy();
            return Ok(None);
        };
        if job.bf16 {
            #[expect(unsafe_code, reason = "a call of cuDNN")]
            // SAFETY: the descriptor lives. An algorithm is fastest with the arithmetic it was tried with; in f32 it stays
            // that of the descriptor, whatever was tried, so that TF32 stays out.
            unsafe {
                result::set_convolution_math_type(descriptors.conv, best.math)?;
            }
        }
        Ok(Some(Plan { descriptors, algorithm: best.algorithm, workspace: best.workspace }))
    }

    /// Every algorithm that runs this job and gives the same bits every time. None where cuDNN refuses the shape.
    fn try_all(&self, job: &Convolution, d: &Descriptors) -> Result<Vec<Tried>, Failure> {
        let mut spare = 0;
        if job.accumulate {
            // Trying overwrites the result, which here holds what is to be added to.
            let bytes = job.shape.x_len() * if job.bf16 { 2 } else { 4 };
            #[expect(unsafe_code, reason = "calls of the driver")]
            // SAFETY: the stream lives; freed below, in its order.
            unsafe {
                spare = driver::result::malloc_async(self.stream, bytes)?;
            }
        }
        let (x, w, y) = (job.x as *mut c_void, job.w as *mut c_void, job.y as *mut c_void);
        let out = if job.accumulate { spare as *mut c_void } else { x };
        let (scratch, bytes) = (self.workspace as *mut c_void, self.workspace_bytes);
        let mut found = 0;
        macro_rules! tried {
            ($results:expr, $algorithm:path, $status:expr) => {{
                let status: cudnnStatus_t = $status;
                let ran = $results.iter().take(found.max(0) as usize).filter(|r| {
                    r.status == cudnnStatus_t::CUDNN_STATUS_SUCCESS
                        && r.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                        && r.memory <= bytes
                });
                let tried = ran.map(|r| Tried {
                    algorithm: $algorithm(r.algo),
                    milliseconds: r.time,
                    workspace: r.memory,
                    math: r.mathType,
                });
                if status == cudnnStatus_t::CUDNN_STATUS_SUCCESS { tried.collect() } else { vec![] }
            }};
        }
        let count = ALGORITHMS as i32;
        #[expect(unsafe_code, reason = "calls of cuDNN")]
        // SAFETY: as in `run`; the results are plain numbers, for which zeros are valid, and there are `count` of them.
        let tried = unsafe {
            match job.pass {
                Pass::Forward => {
                    let mut results: [sys::cudnnConvolutionFwdAlgoPerf_t; ALGORITHMS] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionForwardAlgorithmEx(
                        self.handle,
                        d.x,
                        x,
                        d.w,
                        w,
                        d.conv,
                        d.y,
                        y,
                        count,
                        &mut found,
                        results.as_mut_ptr(),
                        scratch,
                        bytes,
                    );
                    tried!(results, Algorithm::Forward, status)
                }
                Pass::Data => {
                    let mut results: [sys::cudnnConvolutionBwdDataAlgoPerf_t; ALGORITHMS] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionBackwardDataAlgorithmEx(
                        self.handle,
                        d.w,
                        w,
                        d.y,
                        y,
                        d.conv,
                        d.x,
                        out,
                        count,
                        &mut found,
                        results.as_mut_ptr(),
                        scratch,
                        bytes,
                    );
                    tried!(results, Algorithm::Data, status)
                }
                Pass::Weights => {
                    let mut results: [sys::cudnnConvolutionBwdFilterAlgoPerf_t; ALGORITHMS] = std::mem::zeroed();
                    let status = sys::cudnnFindConvolutionBackwardFilterAlgorithmEx(
                        self.handle,
                        d.x,
                        x,
                        d.y,
                        y,
                        d.conv,
                        d.w,
                        w,
                        count,
                        &mut found,
                        results.as_mut_ptr(),
                        scratch,
                        bytes,
                    );
                    tried!(results, Algorithm::Weights, status)
                }
            }
        };
        if spare != 0 {
            #[expect(unsafe_code, reason = "a call of the driver")]
            // SAFETY: made above, freed once, after the trials in the stream's order.
            unsafe {
                driver::result::free_async(spare, self.stream)?;
            }
        }
        Ok(tried)
    }

    /// Makes the scratch as large as `bytes`, or as large as memory allows: less scratch means fewer algorithms.
    fn grow_as_far_as_possible(&mut self, bytes: usize) -> Result<(), Failure> {
        let mut bytes = bytes;
        while let Err(error) = self.grow(bytes) {
            if bytes < 1 << 20 {
                return Err(error);
            }
            bytes /= 2;
        }
        Ok(())
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Failure> {
        if bytes <= self.workspace_bytes {
            return Ok(());
        }
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: the stream lives; what the old scratch is used for comes before its being freed in the stream's order.
        unsafe {
            if self.workspace_bytes > 0 {
                driver::result::free_async(self.workspace, self.stream)?;
                self.workspace_bytes = 0;
            }
            self.workspace = driver::result::malloc_async(self.stream, bytes)?;
        }
        self.workspace_bytes = bytes;
        self.generation += 1;
        Ok(())
    }

    /// Gives everything back.
    pub(super) fn close(&mut self) {
        for plan in self.plans.drain().filter_map(|(_, plan)| plan) {
            plan.descriptors.destroy();
        }
        #[expect(unsafe_code, reason = "calls of cuDNN and the driver")]
        // SAFETY: made by this object, given back once.
        unsafe {
            if self.workspace_bytes > 0 {
                let _ = driver::result::free_async(self.workspace, self.stream);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

impl Descriptors {
    /// `None` where cuDNN cannot describe the shape.
    fn new(shape: &ConvShape, bf16: bool) -> Result<Option<Descriptors>, Failure> {
        use sys::cudnnDataType_t::{CUDNN_DATA_BFLOAT16, CUDNN_DATA_FLOAT};
        use sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC as NHWC;
        let (kind, math) = match bf16 {
            true => (CUDNN_DATA_BFLOAT16, cudnnMathType_t::CUDNN_TENSOR_OP_MATH),
            // Keeps TF32 out: f32 is for comparison with the CPU.
            false => (CUDNN_DATA_FLOAT, cudnnMathType_t::CUDNN_FMA_MATH),
        };
        let i = |v: usize| i32::try_from(v).expect("sizes of an image");
        let (n, k, s, p) = (i(shape.n), i(shape.kernel), i(shape.stride), i(shape.padding));
        let made = Descriptors {
            x: result::create_tensor_descriptor()?,
            w: result::create_filter_descriptor()?,
            y: result::create_tensor_descriptor()?,
            conv: result::create_convolution_descriptor()?,
        };
        #[expect(unsafe_code, reason = "calls of cuDNN")]
        // SAFETY: the descriptors live.
        let set = unsafe {
            result::set_tensor4d_descriptor(made.x, NHWC, kind, [n, i(shape.c_in), i(shape.h), i(shape.w)])
                .and_then(|()| {
                    let sizes = [n, i(shape.c_out), i(shape.out_h()), i(shape.out_w())];
                    result::set_tensor4d_descriptor(made.y, NHWC, kind, sizes)
                })
                .and_then(|()| {
                    let sizes = [i(shape.c_out), i(shape.c_in / shape.groups), k, k];
                    result::set_filter4d_descriptor(made.w, kind, NHWC, sizes)
                })
                .and_then(|()| {
                    let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
                    result::set_convolution2d_descriptor(made.conv, p, p, s, s, 1, 1, mode, CUDNN_DATA_FLOAT)
                })
                .and_then(|()| result::set_convolution_group_count(made.conv, i(shape.groups)))
                .and_then(|()| result::set_convolution_math_type(made.conv, math))
        };
        match set {
            Ok(()) => Ok(Some(made)),
            Err(_) => {
                made.destroy();
                Ok(None)
            }
        }
    }

    fn destroy(self) {
        #[expect(unsafe_code, reason = "calls of cuDNN")]
        // SAFETY: made by `new`, given back once.
        unsafe {
            let _ = result::destroy_tensor_descriptor(self.x);
            let _ = result::destroy_filter_descriptor(self.w);
            let _ = result::destroy_tensor_descriptor(self.y);
            let _ = sys::cudnnDestroyConvolutionDescriptor(self.conv);
        }
    }
}
