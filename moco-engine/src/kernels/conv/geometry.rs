//! How a convolution becomes products of gathered windows and packed weights.

use super::shape::ConvShape;
use crate::kernels::gemm::product::RowMap;
use crate::kernels::gemm::windows::Windows;

/// Neighbouring groups that are computed as one dense convolution with zeros off the diagonal, so that narrow groups
/// still fill a vector.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bundles {
    /// Number of bundles; 1 without groups.
    pub(super) count: usize,
    /// Channels of a bundle.
    pub(super) c_in: usize,
    pub(super) c_out: usize,
    /// Channels of a group.
    pub(super) group_in: usize,
    pub(super) group_out: usize,
}

impl Bundles {
    pub(super) fn new(s: &ConvShape) -> Bundles {
        const VECTOR: usize = 16;
        let (group_in, group_out) = (s.c_in / s.groups, s.c_out / s.groups);
        let narrow = group_in.min(group_out).max(1);
        let size = (1..=s.groups)
            .find(|size| s.groups.is_multiple_of(*size) && (size * narrow >= VECTOR || *size == s.groups))
            .unwrap_or(1);
        let size = if s.groups == 1 { 1 } else { size };
        Bundles { count: s.groups / size, c_in: size * group_in, c_out: size * group_out, group_in, group_out }
    }

    /// All groups at once, for [`grouped`](super::grouped): the input side is the channels of one group.
    pub(super) fn all_groups(s: &ConvShape) -> Bundles {
        let width = s.c_in / s.groups;
        Bundles { count: 1, c_in: width, c_out: s.c_out, group_in: width, group_out: width }
    }

    /// Place in the OIHW weight of the taps that lead from input channel `i` to output channel `o` of a bundle, if the
    /// two are of one group; counted in kernels.
    #[inline(always)]
    pub(super) fn kernel_index(&self, bundle: usize, o: usize, i: usize) -> Option<usize> {
        if self.c_in == self.group_in {
            return Some((bundle * self.c_out + o) * self.group_in + i);
        }
        (o / self.group_out == i / self.group_in).then(|| (bundle * self.c_out + o) * self.group_in + i % self.group_in)
    }
}

/// The windows of the forward pass for one bundle.
pub(super) fn forward_windows(s: &ConvShape, bundles: &Bundles, bundle: usize) -> Windows {
    let start = -(s.padding as isize);
    Windows {
        size: [s.h, s.w],
        pixel: s.c_in,
        channel: bundle * bundles.c_in,
        channels: bundles.c_in,
        kernel: [s.kernel; 2],
        stride: s.stride,
        origin: [start; 2],
        out: [s.out_h(), s.out_w()],
    }
}

/// The part of the data gradient for input pixels whose position plus padding is `residue` modulo the stride, in one
/// direction. Only every `stride`-th tap reaches these pixels, so that they see a convolution of stride 1 with a
/// smaller kernel, read backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Phase {
    pub(super) residue: usize,
    /// Taps of the smaller kernel.
    pub(super) taps: usize,
    /// First input pixel, and how many there are.
    pub(super) first: usize,
    pub(super) count: usize,
    /// Output pixel under the smaller kernel's first tap, for the first input pixel.
    pub(super) origin: isize,
}

impl Phase {
    pub(super) fn new(s: &ConvShape, size: usize, residue: usize) -> Phase {
        let taps = s.kernel.saturating_sub(residue).div_ceil(s.stride);
        // Input position = q · stride + residue − padding.
        let q_min = s.padding.saturating_sub(residue).div_ceil(s.stride);
        let count = match (size + s.padding).checked_sub(residue + 1) {
            Some(last) => (last / s.stride + 1).saturating_sub(q_min),
            None => 0,
        };
        let first = q_min * s.stride + residue - s.padding;
        Phase { residue, taps, first, count, origin: q_min as isize + 1 - taps as isize }
    }

    /// Position in the kernel of a tap of the smaller kernel.
    pub(super) fn tap(&self, s: &ConvShape, tap: usize) -> usize {
        self.residue + s.stride * (self.taps - 1 - tap)
    }
}

/// Both directions' phases, in the order in which their weights are packed.
pub(super) fn phases(s: &ConvShape) -> impl Iterator<Item = [Phase; 2]> + use<> {
    let s = *s;
    (0..s.stride)
        .flat_map(move |y| (0..s.stride).map(move |x| [y, x]))
        .map(move |[y, x]| [Phase::new(&s, s.h, y), Phase::new(&s, s.w, x)])
}

/// Windows over `dy` and places in `dx` of one phase of one bundle.
pub(super) fn backward_windows(
    s: &ConvShape,
    bundles: &Bundles,
    bundle: usize,
    phase: &[Phase; 2],
) -> (Windows, RowMap) {
    let windows = Windows {
        size: [s.out_h(), s.out_w()],
        pixel: s.c_out,
        channel: bundle * bundles.c_out,
        channels: bundles.c_out,
        kernel: phase.map(|p| p.taps),
        stride: 1,
        origin: phase.map(|p| p.origin),
        out: phase.map(|p| p.count),
    };
    let map = RowMap {
        base: (phase[0].first * s.w + phase[1].first) * s.c_in + bundle * bundles.c_in,
        step: [s.h * s.w * s.c_in, s.stride * s.w * s.c_in, s.stride * s.c_in],
        out: windows.out,
    };
    (windows, map)
}
