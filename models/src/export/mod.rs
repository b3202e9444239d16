//! Weights for others: torchvision's names for PyTorch, Detectron2's for detection.

mod detectron2;
mod pickle;
mod torch;

pub use detectron2::{detectron2, detectron2_name, torchvision_name};
pub use torch::torchvision;

#[cfg(test)]
mod python_tests;
