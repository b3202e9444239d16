//! DICOM's run-length encoding (PS3.5 annex G): each byte of each channel is a segment of its own, packed as in TIFF.

use super::elements::corrupt;
use crate::Result;

/// Values of `pixels` pixels, channels interleaved.
pub(super) fn decode(frame: &[u8], pixels: usize, samples: usize, bytes_each: usize) -> Result<Vec<u32>> {
    let header: &[u8; 64] = frame.first_chunk().ok_or_else(|| corrupt("an RLE frame without its header".into()))?;
    let word = |i: usize| u32::from_le_bytes([header[4 * i], header[4 * i + 1], header[4 * i + 2], header[4 * i + 3]]);
    let segments = word(0) as usize;
    if segments != samples * bytes_each || segments > 15 {
        return Err(corrupt(format!("{segments} RLE segments for {samples} channel(s) of {bytes_each} byte(s)")));
    }
    let mut values = vec![0u32; pixels * samples];
    let mut plane = Vec::with_capacity(pixels);
    for segment in 0..segments {
        let start = word(segment + 1) as usize;
        let end = if segment + 1 < segments { word(segment + 2) as usize } else { frame.len() };
        let data = frame.get(start..end).ok_or_else(|| corrupt("an RLE segment that leaves its frame".into()))?;
        unpack(data, pixels, &mut plane)?;
        // The most significant byte comes first.
        let (channel, shift) = (segment / bytes_each, 8 * (bytes_each - 1 - segment % bytes_each));
        for (value, byte) in values[channel..].iter_mut().step_by(samples).zip(&plane) {
            *value |= u32::from(*byte) << shift;
        }
    }
    Ok(values)
}

fn unpack(mut data: &[u8], len: usize, out: &mut Vec<u8>) -> Result<()> {
    out.clear();
    let short = || corrupt("an RLE segment that ends too early".into());
    while out.len() < len {
        let (&control, rest) = data.split_first().ok_or_else(short)?;
        let room = len - out.len();
        match control {
            0..=127 => {
                let count = usize::from(control) + 1;
                let (literal, rest) = rest.split_at_checked(count).ok_or_else(short)?;
                out.extend_from_slice(&literal[..count.min(room)]);
                data = rest;
            }
            128 => data = rest,
            129.. => {
                let (&value, rest) = rest.split_first().ok_or_else(short)?;
                out.resize(out.len() + (257 - usize::from(control)).min(room), value);
                data = rest;
            }
        }
    }
    Ok(())
}
