//! The method: Momentum Contrast. [`Moco::step`] is Algorithm 1 of arXiv:1911.05722; the parts it is made of stand
//! beside it: the [`KeyQueue`], the [`Shuffle`] of shuffling BN, and an [`Encoder`] that is run and may learn.

mod encoder;
mod moco;
mod queue;
mod shuffle;

pub use encoder::Encoder;
pub use moco::{Moco, MocoConfig, MocoState, Sgd, StateRef, StepReport, Views};
pub use queue::KeyQueue;
pub use shuffle::Shuffle;
