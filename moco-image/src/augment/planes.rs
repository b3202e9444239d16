//! Interleaved RGB a few pixels at a time as three planes: the shape in which colour arithmetic becomes vector code.

/// Pixels at a time.
pub(super) const CHUNK: usize = 64;

/// Red, green, blue.
pub(super) type Planes = [[u8; CHUNK]; 3];

/// What is done to each chunk. A trait and no closure: the method must be `#[inline(always)]` to be compiled with the
/// instruction set of the loop around it.
pub(super) trait PlaneOp {
    /// Alters the pixels of a chunk.
    fn change(&self, planes: &mut Planes);
}

/// Applies the operation to all pixels; the last, partial chunk is filled up with black.
#[inline(always)]
pub(super) fn for_planes(pixels: &mut [u8], op: &impl PlaneOp) {
    for chunk in pixels.chunks_mut(3 * CHUNK) {
        let mut buffer = [0; 3 * CHUNK];
        buffer[..chunk.len()].copy_from_slice(chunk);
        let mut planes = split_planes(&buffer);
        op.change(&mut planes);
        join_planes(&planes, &mut buffer);
        chunk.copy_from_slice(&buffer[..chunk.len()]);
    }
}

#[inline(always)]
pub(super) fn split_planes(chunk: &[u8; 3 * CHUNK]) -> Planes {
    let [mut red, mut green, mut blue] = [[0; CHUNK]; 3];
    for i in 0..CHUNK {
        red[i] = chunk[3 * i];
        green[i] = chunk[3 * i + 1];
        blue[i] = chunk[3 * i + 2];
    }
    [red, green, blue]
}

#[inline(always)]
fn join_planes([red, green, blue]: &Planes, chunk: &mut [u8; 3 * CHUNK]) {
    for i in 0..CHUNK {
        chunk[3 * i] = red[i];
        chunk[3 * i + 1] = green[i];
        chunk[3 * i + 2] = blue[i];
    }
}
