//! The numbers of a convolution.

/// A 2-D cross-correlation as `torch.nn.Conv2d` computes it, square kernel, on NHWC activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub n: usize,
    /// Height of the input.
    pub h: usize,
    /// Width of the input.
    pub w: usize,
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Side of the kernel.
    pub kernel: usize,
    /// Step between output pixels, in input pixels.
    pub stride: usize,
    /// Zeros on all four sides.
    pub padding: usize,
    /// Groups; divides both channel counts.
    pub groups: usize,
}

impl ConvShape {
    /// Height of the output; 0 where the kernel does not fit.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.padding).checked_sub(self.kernel).map_or(0, |d| d / self.stride + 1)
    }

    /// Width of the output; 0 where the kernel does not fit.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.padding).checked_sub(self.kernel).map_or(0, |d| d / self.stride + 1)
    }

    /// Values of the input `[n, h, w, c_in]`.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c_in
    }

    /// Values of the output `[n, out_h, out_w, c_out]`.
    pub fn y_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.c_out
    }

    /// Values of the weight `[c_out, c_in / groups, kernel, kernel]`.
    pub fn weight_len(&self) -> usize {
        self.c_out * (self.c_in / self.groups) * self.kernel * self.kernel
    }

    /// Multiplications and additions of one pass (forward, data gradient or weight gradient), borders counted as if
    /// they were data.
    pub fn flops(&self) -> f64 {
        2.0 * self.y_len() as f64 * ((self.c_in / self.groups) * self.kernel * self.kernel) as f64
    }

    /// The same layer on another number of images.
    pub fn with_n(self, n: usize) -> ConvShape {
        ConvShape { n, ..self }
    }

    /// # Panics
    /// If a divisor is 0 or the groups do not divide the channels: the graph that was compiled is wrong.
    pub(crate) fn assert_valid(&self) {
        assert!(
            self.kernel > 0 && self.stride > 0 && self.groups > 0,
            "{self:?}: kernel, stride and groups are positive"
        );
        assert!(
            self.c_in.is_multiple_of(self.groups) && self.c_out.is_multiple_of(self.groups),
            "{self:?}: groups divide the channels"
        );
    }
}
