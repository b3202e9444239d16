//! JPEG 2000 codestreams, by the pure-Rust decoder `hayro-jpeg2000`.

use hayro_jpeg2000::{DecodeSettings, DecoderContext, Image};

use super::elements::corrupt;
use crate::Result;

/// Values of a frame, channels interleaved; negative ones as two's complement.
pub(super) fn decode(frame: &[u8], (rows, columns): (usize, usize), samples: usize) -> Result<Vec<u32>> {
    // Its authors promise no panics; a promise about hostile files is worth a net.
    std::panic::catch_unwind(|| decode_frame(frame, (rows, columns), samples))
        .unwrap_or_else(|_| Err(corrupt("a JPEG 2000 frame that its decoder cannot bear".into())))
}

fn decode_frame(frame: &[u8], (rows, columns): (usize, usize), samples: usize) -> Result<Vec<u32>> {
    let failed = |e: hayro_jpeg2000::DecodeError| corrupt(format!("a JPEG 2000 frame: {e}"));
    // Some files wrap the codestream in boxes; what they say DICOM says better.
    let start = frame.windows(4).position(|w| w == [0xFF, 0x4F, 0xFF, 0x51]);
    let frame = &frame[start.ok_or_else(|| corrupt("a JPEG 2000 frame without a codestream".into()))?..];
    let settings = DecodeSettings { resolve_palette_indices: false, strict: true, target_resolution: None };
    let image = Image::new(frame, &settings).map_err(failed)?;
    if (image.height() as usize, image.width() as usize) != (rows, columns) {
        return Err(corrupt(format!(
            "a JPEG 2000 frame of {} × {}, the file announces {columns} × {rows}",
            image.width(),
            image.height()
        )));
    }
    let mut context = DecoderContext::default();
    let decoded = image.decode(&mut context).map_err(failed)?;
    let components = decoded.components();
    if components.len() != samples || components.iter().any(|c| c.samples().len() != rows * columns) {
        return Err(corrupt(format!("a JPEG 2000 frame of {} channels instead of {samples}", components.len())));
    }
    // The decoder lifts signed values too.
    let lift = match signed_bits(frame) {
        Some(bits) => 1 << (bits - 1),
        None => 0,
    };
    let mut values = vec![0u32; rows * columns * samples];
    for (c, component) in components.iter().enumerate() {
        for (value, sample) in values[c..].iter_mut().step_by(samples).zip(component.samples()) {
            *value = (sample.round() as i32 - lift) as u32;
        }
    }
    Ok(values)
}

/// Bits of a value if it has a sign, from the codestream's first marker segment (ITU T.800 A.5.1).
fn signed_bits(frame: &[u8]) -> Option<u32> {
    let depth = *frame.get(42)?;
    (depth & 0x80 != 0).then(|| u32::from(depth & 0x7F) + 1).filter(|&bits| bits <= 31)
}
