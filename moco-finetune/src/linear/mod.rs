//! Linear heads on the features of a frozen backbone.
//!
//! [`LinearHead`] is softmax regression: fitted by SGD on candle's autograd ([`LinearHead::fit`]), used by
//! [`LinearHead::predict`], kept in one safetensors file that remembers its class names, its tap and the backbone it
//! belongs to.

mod file;
mod fit;
mod head;
mod options;

pub use file::HEAD_KEY;
pub use fit::{FitProgress, FitReport, Phase};
pub use head::{HeadInfo, LinearHead};
pub use options::{FitOptions, SWEPT_LEARNING_RATES, Schedule};
