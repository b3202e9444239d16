//! Features for asynchronous programs: many tasks share the sessions of one extractor without blocking its runtime.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::{Error, Extractor, Features, Input, Result};

/// A handle for tasks of a tokio runtime; cheap to clone. As many images are worked on at a time as the extractor has
/// threads, on tokio's blocking threads; further calls are pending, in the order of their arrival.
#[derive(Clone)]
pub struct AsyncExtractor {
    extractor: Extractor,
    slots: Arc<Semaphore>,
}

impl AsyncExtractor {
    /// A handle on an extractor, which may be used directly at the same time.
    pub fn new(extractor: Extractor) -> AsyncExtractor {
        let slots = Arc::new(Semaphore::new(extractor.inner.threads));
        AsyncExtractor { extractor, slots }
    }

    /// Features of one image, one [`Features`] a tap with a first dimension of 1. A call that is dropped while it is
    /// pending costs nothing.
    ///
    /// # Errors
    /// As [`Extractor::extract`]; [`Error::Session`] if the runtime shuts down under the call.
    ///
    /// # Panics
    /// Outside of a tokio runtime, as [`tokio::task::spawn_blocking`] does.
    pub async fn extract<I: Input + Send + 'static>(&self, image: I) -> Result<Vec<Features>> {
        let slot = self.slots.clone().acquire_owned().await.expect("this semaphore is never closed");
        let extractor = self.extractor.clone();
        let work = tokio::task::spawn_blocking(move || {
            let features = extractor.extract(std::slice::from_ref(&image));
            drop(slot);
            features
        });
        work.await.map_err(|e| Error::Session(format!("the extraction did not end: {e}")))?
    }
}
