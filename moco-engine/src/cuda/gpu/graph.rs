//! Recorded work: a graph of the CUDA driver.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{CUcontext, CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstream, CUstreamCaptureMode};

/// Work that has been recorded from a stream. It reads and writes the addresses it was recorded with.
pub struct Graph {
    context: CUcontext,
    graph: CUgraph,
    executable: CUgraphExec,
}

#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: the driver's functions may be called from any thread on which the context is current.
unsafe impl Send for Graph {}
#[expect(unsafe_code, reason = "handles of the driver are pointers")]
// SAFETY: see `Send`; a graph is only launched, which changes nothing in it, and the engine launches into one stream.
unsafe impl Sync for Graph {}

/// From now on, work for `stream` is recorded instead of done.
pub(super) fn begin(stream: CUstream) -> Result<(), DriverError> {
    #[expect(unsafe_code, reason = "a call of the driver")]
    // SAFETY: the stream lives.
    unsafe {
        result::stream::begin_capture(stream, CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    }
}

/// What has been recorded since [`begin`].
pub(super) fn end(stream: CUstream, context: CUcontext) -> Result<Graph, DriverError> {
    #[expect(unsafe_code, reason = "calls of the driver")]
    // SAFETY: the stream lives and records; both handles are given back by `Drop`, or here where there is only one.
    unsafe {
        let graph = result::stream::end_capture(stream)?;
        match result::graph::instantiate(graph, CUgraphInstantiate_flags(0)) {
            Ok(executable) => Ok(Graph { context, graph, executable }),
            Err(error) => {
                let _ = result::graph::destroy(graph);
                Err(error)
            }
        }
    }
}

impl Graph {
    /// Does the recorded work in the order of `stream`.
    pub(super) fn launch(&self, stream: CUstream) -> Result<(), DriverError> {
        #[expect(unsafe_code, reason = "a call of the driver")]
        // SAFETY: graph and stream live; whoever recorded keeps alive what the graph reads and writes.
        unsafe {
            result::graph::launch(self.executable, stream)
        }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "calls of the driver")]
        // SAFETY: made by `end`, given back once; the driver keeps what a launch under way needs. The context lives as long
        // as the GPU, which outlives the plans that record.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::graph::exec_destroy(self.executable);
            let _ = result::graph::destroy(self.graph);
        }
    }
}
