//! Interleaved RGB a few pixels at a time as three planes: the shape in which colour arithmetic becomes vector code.

/// Pixels at a time.
pub(super) const CHUNK: usize = 64;

/// Red, green, blue.
pub(super) type Planes = [[u8; CHUNK]; 3];

/// Lets `change` alter all pixels; the last, partial chunk is filled up with black.
#[inline(always)]
pub(super) fn for_planes(pixels: &mut [u8], mut change: impl FnMut(&mut Planes)) {
    let (chunks, rest) = pixels.as_chunks_mut::<{ 3 * CHUNK }>();
    for chunk in chunks {
        let mut planes = split_planes(chunk);
        change(&mut planes);
        join_planes(&planes, chunk);
    }
    if !rest.is_empty() {
        let mut chunk = [0; 3 * CHUNK];
        chunk[..rest.len()].copy_from_slice(rest);
        let mut planes = split_planes(&chunk);
        change(&mut planes);
        join_planes(&planes, &mut chunk);
        rest.copy_from_slice(&chunk[..rest.len()]);
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
