//! Working memory that each thread keeps between calls.

use std::cell::Cell;

use bytemuck::Pod;

use super::AlignedBuffer;

/// Buffers of one task.
#[derive(Default)]
pub(crate) struct Workspace {
    /// Gathered rows of A.
    pub(crate) a: AlignedBuffer,
    /// Gathered rows of B.
    pub(crate) b: AlignedBuffer,
    /// Rows on the way into words.
    pub(crate) rows_of_words: AlignedBuffer,
    /// Offsets of rows in C.
    pub(crate) rows: Vec<usize>,
    /// Those of `rows` that exist.
    pub(crate) inside: Vec<usize>,
    /// Offsets of rows in a result that is kept here.
    pub(crate) product_rows: Vec<usize>,
}

thread_local! {
    static TASK: Cell<Option<Box<Workspace>>> = const { Cell::new(None) };
    static CALLER: Cell<AlignedBuffer> = const { Cell::new(AlignedBuffer::empty()) };
}

/// Runs `task` with this thread's buffers. A nested use gets buffers of its own.
pub(crate) fn with_workspace<R>(task: impl FnOnce(&mut Workspace) -> R) -> R {
    let mut workspace = TASK.take().unwrap_or_default();
    let result = task(&mut workspace);
    TASK.set(Some(workspace));
    result
}

/// Runs `operation` with `len` values kept by the calling thread, for what the tasks of one operation share; their
/// content is not specified.
pub(crate) fn with_shared<T: Pod, R>(len: usize, operation: impl FnOnce(&mut [T]) -> R) -> R {
    let mut buffer = CALLER.take();
    let result = operation(buffer.at_least(len));
    CALLER.set(buffer);
    result
}
