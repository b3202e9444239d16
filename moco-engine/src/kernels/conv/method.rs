//! Which way a layer is computed, for those who measure.

use std::fmt;

use super::shape::ConvShape;
use super::{grouped, winograd};
use crate::kernels::gemm::level::Level;

/// How the passes of a layer are computed on this CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// 1×1 at stride 1: a matrix product of the map as it lies.
    Product,
    /// A matrix product whose rows are gathered from windows of the map.
    ImplicitProduct,
    /// Products of transformed tiles (arXiv:1509.09308).
    Winograd,
    /// A kernel for narrow groups.
    Grouped,
}

impl Method {
    /// That of a layer.
    ///
    /// # Panics
    /// If the groups do not divide the channels, or kernel, stride or groups are 0.
    pub fn of(shape: &ConvShape) -> Method {
        shape.assert_valid();
        if winograd::applies(shape) {
            Method::Winograd
        } else if grouped::applies(Level::detect(), shape) {
            Method::Grouped
        } else if shape.kernel == 1 && shape.stride == 1 && shape.padding == 0 {
            Method::Product
        } else {
            Method::ImplicitProduct
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Method::Product => "1×1 GEMM",
            Method::ImplicitProduct => "implicit GEMM",
            Method::Winograd => "Winograd",
            Method::Grouped => "grouped",
        })
    }
}
