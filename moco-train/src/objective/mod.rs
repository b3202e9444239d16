//! The method: Momentum Contrast. [`Moco::step`] is Algorithm 1 of arXiv:1911.05722; the parts it is made of stand
//! beside it: the [`KeyQueue`], the [`Shuffle`] of shuffling BN, and an [`Encoder`] that is run and may learn. All of it
//! computes on a [`Device`](moco_engine::Device); a [`Learner`] is a training whose device is chosen at run time.

mod config;
mod encoder;
mod learner;
mod moco;
mod others;
mod queue;
mod shuffle;
mod state;
mod step;

pub use config::MocoConfig;
pub use encoder::Encoder;
pub use learner::{Learner, open_learner};
pub use moco::Moco;
pub use queue::{KeyQueue, QueueRef, same_image_share};
pub use shuffle::Shuffle;
pub use state::{MocoState, StateRef, WeightsRef};
pub use step::{Input, Sgd, StepReport, Views};
