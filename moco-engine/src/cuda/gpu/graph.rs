//! Steps recorded once and launched as a whole: for small images, where launching costs more than computing.

use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::Gpu;
use crate::{Error, Result};

/// Recorded work. It reads and writes the addresses it was recorded with, so what owns them must live as long, and numbers
/// that change must lie in device memory.
pub struct Graph {
    gpu: Arc<Gpu>,
    graph: CUgraph,
    executable: CUgraphExec,
}

#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: the driver's functions may be called from any thread on which the context is current, which `launch` sees to.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `work` asks of the GPU, without running it. Nothing in it may wait, allocate, or copy from the host, and
    /// every convolution in it must have run before, so that its algorithm is known.
    ///
    /// # Errors
    /// [`Error::Device`] if something in `work` cannot be recorded; the error of `work`.
    pub fn record(gpu: &Arc<Gpu>, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let failed = |error| Error::Device(format!("{}, recording a graph: {error}", super::Driver::describe(&**gpu)));
        gpu.bind();
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: the stream lives; the capture is ended whatever `work` returns, and both handles are given back by `Drop`.
        unsafe {
            let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            result::stream::begin_capture(gpu.stream, mode).map_err(failed)?;
            let worked = work();
            let captured = result::stream::end_capture(gpu.stream);
            worked?;
            let graph = captured.map_err(failed)?;
            match result::graph::instantiate(graph, CUgraphInstantiate_flags(0)) {
                Ok(executable) => Ok(Graph { gpu: gpu.clone(), graph, executable }),
                Err(error) => {
                    let _ = result::graph::destroy(graph);
                    Err(failed(error))
                }
            }
        }
    }

    /// Runs the recorded work in the order of everything else that is asked of the GPU.
    pub fn launch(&self) {
        self.gpu.bind();
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: the graph and the stream live; the owner keeps alive what the graph reads and writes.
        let launched = unsafe { result::graph::launch(self.executable, self.gpu.stream) };
        self.gpu.check("a graph", launched);
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.gpu.bind();
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: made by `record`, given back once, after the work under way.
        unsafe {
            let _ = result::stream::synchronize(self.gpu.stream);
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}
