//! The arguments of every kernel: field by field what `cuda/*.cu` declares. Addresses are u64.
//!
//! The emulated device compares sizes with those of C++, and runs every kernel.

use crate::kernels::BnGroups;

/// Arguments of a kernel, laid out as C++ lays them out.
pub(super) trait Arguments {
    /// Place in [`KERNELS`].
    const INDEX: usize;
}

/// A kernel of `cuda/*.cu`.
pub(super) struct Kernel {
    /// Its name, before `_f32` or `_bf16`.
    pub name: &'static str,
    /// Whether it reads or writes maps, so that there is one for bf16.
    pub on_maps: bool,
    /// Size of its arguments.
    #[cfg_attr(not(feature = "cuda-emulation"), expect(dead_code, reason = "the emulated device compares it"))]
    pub bytes: usize,
}

macro_rules! kernels {
    ($($name:literal $on_maps:literal $arguments:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[repr(C)]
            #[derive(Clone, Copy, Debug)]
            pub(super) struct $arguments { $(pub $field: $type),* }

            impl Arguments for $arguments {
                const INDEX: usize = Index::$arguments as usize;
            }
        )*

        enum Index { $($arguments),* }

        /// Every kernel.
        pub(super) const KERNELS: &[Kernel] =
            &[$(Kernel { name: $name, on_maps: $on_maps, bytes: size_of::<$arguments>() }),*];
    };
}

/// `Groups` of `common.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Groups {
    interleaved: i32,
    count: i32,
    n: i32,
    pixels: i32,
}

impl Groups {
    pub(super) fn new(groups: BnGroups, n: usize, pixels: usize) -> Groups {
        let interleaved = i32::from(matches!(groups, BnGroups::Interleaved(_)));
        Groups { interleaved, count: groups.count() as i32, n: n as i32, pixels: pixels as i32 }
    }
}

/// `PoolSizes` of `pool.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolSizes {
    pub n: i32,
    pub input: [i32; 2],
    pub output: [i32; 2],
    pub channels: i32,
    pub kernel: i32,
    pub stride: i32,
    pub padding: i32,
}

/// `ResizeSizes` of `heads.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ResizeSizes {
    pub n: i32,
    pub input: [i32; 2],
    pub output: [i32; 2],
    pub channels: i32,
    pub bilinear: i32,
}

/// `ConvSizes` of `product.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ConvSizes {
    pub n: i32,
    pub input: [i32; 3],
    pub output: [i32; 3],
    pub kernel: i32,
    pub stride: i32,
    pub padding: i32,
    pub groups: i32,
}

/// `Views` of `augment.cu`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Views {
    pub pixels: u64,
    pub table: u64,
    pub between: u64,
    pub image: u64,
    pub other: u64,
    pub normal: u64,
    pub out: u64,
    pub n: i32,
    pub height: i32,
    pub width: i32,
    pub channels: i32,
}

kernels! {
    "view_first" false ViewFirst { views: Views }
    "view_second" false ViewSecond { views: Views }
    "view_colour" false ViewColour { views: Views }
    "view_normal" false ViewNormal { views: Views }
    "load" true Load { from: u64, to: u64, len: u64, accumulate: i32 }
    "store" true Store { from: u64, to: u64, len: u64 }
    "add" true Add { a: u64, b: u64, y: u64, len: u64, relu: i32 }
    "relu_mask" true ReluMask { y: u64, dy: u64, len: u64 }
    "pad_channels" true PadChannels { from: u64, to: u64, rows: u64, channels: i32, padded: i32 }
    "add_bias" true AddBias { y: u64, bias: u64, rows: u64, channels: i32, relu: i32 }
    "norm_sums" true NormSums { z: u64, partial: u64, groups: Groups, channels: i32, chunk: i32 }
    "norm_finish" true NormFinish {
        z: u64, partial: u64, weight: u64, bias: u64, running_mean: u64, running_var: u64, stats: u64,
        groups: Groups, channels: i32, chunks: i32, eps: f32, momentum: f32,
    }
    "norm_running" false NormRunning {
        weight: u64, bias: u64, running_mean: u64, running_var: u64, stats: u64, groups: Groups, channels: i32, eps: f32,
    }
    "norm_apply" true NormApply {
        z: u64, stats: u64, residual: u64, residual_stats: u64, y: u64,
        groups: Groups, channels: i32, chunk: i32, relu: i32,
    }
    "norm_gradient_sums" true NormGradientSums {
        z: u64, stats: u64, y: u64, dy: u64, partial: u64, groups: Groups, channels: i32, chunk: i32, masked: i32,
    }
    "norm_gradient_finish" false NormGradientFinish {
        partial: u64, stats: u64, d_weight: u64, d_bias: u64, groups: Groups, channels: i32, chunks: i32, constant: i32,
    }
    "norm_gradient_apply" true NormGradientApply {
        z: u64, stats: u64, dy: u64, dz: u64, groups: Groups, channels: i32, chunk: i32, masked: i32, accumulate: i32,
    }
    "group_norm_finish" true GroupNormFinish {
        z: u64, partial: u64, weight: u64, bias: u64, stats: u64,
        images: i32, pixels: i32, channels: i32, width: i32, chunks: i32, eps: f32,
    }
    "group_norm_gradient" false GroupNormGradient {
        partial: u64, stats: u64, images: i32, pixels: i32, channels: i32, width: i32, chunks: i32,
    }
    "resize" true Resize { x: u64, y: u64, sizes: ResizeSizes }
    "resize_gradient" true ResizeGradient { dy: u64, dx: u64, sizes: ResizeSizes, accumulate: i32 }
    "move_channels" true MoveChannels {
        from: u64, to: u64, rows: u64, channels: i32, first: i32, of: i32, take: i32, accumulate: i32,
    }
    "add_floats" false AddFloats { from: u64, to: u64, len: u64 }
    "max_pool" true MaxPool { x: u64, y: u64, index: u64, sizes: PoolSizes }
    "max_pool_gradient" true MaxPoolGradient { dy: u64, index: u64, dx: u64, sizes: PoolSizes, accumulate: i32 }
    "mean_pool" true MeanPool { x: u64, y: u64, n: i32, pixels: i32, channels: i32 }
    "mean_pool_gradient" true MeanPoolGradient { dy: u64, dx: u64, n: i32, pixels: i32, channels: i32, accumulate: i32 }
    "linear" true Linear { x: u64, weight: u64, bias: u64, y: u64, n: i32, inputs: i32, outputs: i32, relu: i32 }
    "linear_data" true LinearData { dy: u64, weight: u64, dx: u64, n: i32, inputs: i32, outputs: i32, accumulate: i32 }
    "linear_weights" true LinearWeights { x: u64, dy: u64, d_weight: u64, n: i32, inputs: i32, outputs: i32 }
    "column_sums" true ColumnSums { from: u64, sums: u64, rows: i32, columns: i32 }
    "conv" true Conv { x: u64, weight: u64, bias: u64, y: u64, sizes: ConvSizes }
    "conv_data" true ConvData { dy: u64, weight: u64, dx: u64, sizes: ConvSizes, accumulate: i32 }
    "conv_weights" true ConvWeights { x: u64, dy: u64, partial: u64, sizes: ConvSizes, splits: i32, each: i32 }
    "weights_in" true WeightsIn { from: u64, to: u64, c_out: i32, c_in: i32, taps: i32, padded: i32 }
    "weights_out" true WeightsOut { from: u64, to: u64, c_out: i32, c_in: i32, taps: i32, padded: i32, splits: i32 }
    "sgd" false Sgd {
        params: u64, gradients: u64, velocity: u64, rates: u64, len: u64, lr: f32, momentum: f32, weight_decay: f32,
    }
    "sgd_group" false SgdGroup {
        params: u64, gradients: u64, velocity: u64, len: u64, lr: f32, momentum: f32, weight_decay: f32, nesterov: i32,
    }
    "adamw" false AdamW {
        params: u64, gradients: u64, first: u64, second: u64, len: u64,
        beta1: f32, beta2: f32, new1: f32, new2: f32, rate: f32, kept: f32, root: f32, eps: f32,
    }
    "scale" false Scale { values: u64, len: u64, factor: f32 }
    "square_sums" false SquareSums { values: u64, sums: u64, len: u64 }
    "ema" false Ema { target: u64, source: u64, rates: u64, len: u64, m: f32, rest: f32 }
    "move_rows" false MoveRows { from: u64, to: u64, order: u64, rows: i32, width: i32, scatter: i32 }
    "enqueue" false Enqueue { keys: u64, queue: u64, place: u64, pointer: u64, slots: u64, rows: i32, width: i32 }
    "normalise" false Normalise { x: u64, dy: u64, out: u64, n: i32, dim: i32 }
    "contrast" false Contrast {
        query: u64, queue: u64, query_image: u64, queue_image: u64, pulls: u64, bounds: u64, totals: u64,
        keys: u64, stripe: u64, n: i32, dim: i32, scale: f32,
    }
    "contrast_merge" false ContrastMerge {
        query: u64, key: u64, pulls: u64, bounds: u64, totals: u64, d_query: u64, results: u64,
        n: i32, dim: i32, stripes: i32, temperature: f32,
    }
    "contrast_result" false ContrastResult { results: u64, out: u64, n: i32, temperature: f32 }
}
