//! Sound files give PIL's pixels, damaged and foreign ones a clear error.

use super::*;
use crate::Pixels;

/// JPEG files and what PIL 13 (libjpeg-turbo) decodes them to, as PNG.
macro_rules! fixture {
    ($name:literal) => {
        (
            $name,
            include_bytes!(concat!("../../fixtures/", $name, ".jpg")),
            include_bytes!(concat!("../../fixtures/", $name, ".png")),
        )
    };
}

const FIXTURES: [(&str, &[u8], &[u8]); 5] = [
    fixture!("baseline_420"),
    fixture!("progressive_444"),
    fixture!("grey"),
    fixture!("cmyk"),
    fixture!("exif_rotated_422"),
];

fn read(bytes: &[u8]) -> Result<Image> {
    decode(bytes, &Limits::default())
}

/// A PNG of any kind, from its raw scanlines' samples.
fn png(color: ::png::ColorType, depth: ::png::BitDepth, width: u32, height: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == ::png::ColorType::Indexed {
        encoder.set_palette(vec![1, 2, 3, 200, 100, 50]);
    }
    encoder.write_header().unwrap().write_image_data(data).unwrap();
    bytes
}

#[test]
fn jpegs_are_within_two_grey_levels_of_pil() {
    for (name, jpeg, reference) in FIXTURES {
        let (got, expected) = (read(jpeg).unwrap(), read(reference).unwrap());
        let shape = |i: &Image| (i.width(), i.height(), i.channels());
        assert_eq!(shape(&got), shape(&expected), "{name}");
        assert_eq!(shape(&got).2, if name == "grey" { 1 } else { 3 });
        let off = || got.data().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b));
        let far = off().filter(|&d| d > 2).count() as f64 / got.data().len() as f64;
        // Subsampled colour at the right edge of an image this small is a few per cent of it.
        assert!(far < 0.05, "{name}: {far} of the values are off by more than 2, at most {:?}", off().max());
        let mean = off().map(f64::from).sum::<f64>() / got.data().len() as f64;
        assert!(mean < 0.8, "{name}: {mean} grey levels off on average");
    }
}

#[test]
fn the_exif_orientation_is_ignored_as_pil_does() {
    let image = read(FIXTURES[4].1).unwrap();
    assert_eq!((image.width(), image.height()), (27, 18));
}

#[test]
fn png_kinds_become_8_bit_grey_or_rgb() {
    use ::png::{BitDepth, ColorType};
    type Case = (ColorType, BitDepth, &'static [u8], usize, &'static [u8]);
    let cases: [Case; 6] = [
        (ColorType::Grayscale, BitDepth::One, &[0b1000_0000], 1, &[255, 0]),
        (ColorType::Grayscale, BitDepth::Four, &[0x3F], 1, &[51, 255]),
        (ColorType::Grayscale, BitDepth::Eight, &[7, 9], 1, &[7, 9]),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, &[7, 0, 9, 255], 1, &[7, 9]),
        (ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0, 4, 5, 6, 9], 3, &[1, 2, 3, 4, 5, 6]),
        (ColorType::Indexed, BitDepth::One, &[0b0100_0000], 3, &[1, 2, 3, 200, 100, 50]),
    ];
    for (color, depth, data, channels, expected) in cases {
        let bytes = png(color, depth, 2, 1, data);
        let image = read(&bytes).unwrap();
        assert_eq!((image.channels(), image.data()), (channels, expected), "{color:?} {depth:?}");
        let info = probe(&bytes).unwrap();
        assert_eq!((info.width, info.height, info.channels, info.format), (2, 1, channels, Format::Png));
    }
}

#[test]
fn sixteen_bits_are_read_as_such_and_never_cut() {
    use ::png::{BitDepth, ColorType};
    let grey = png(ColorType::Grayscale, BitDepth::Sixteen, 1, 1, &[1, 2]);
    let error = read(&grey).unwrap_err();
    assert!(matches!(error, Error::Depth(_)) && error.to_string().contains("16 bits"), "{error}");
    let colour = png(ColorType::Rgba, BitDepth::Sixteen, 1, 1, &[0, 1, 0, 2, 255, 255, 0, 9]);
    for (bytes, expected) in [(grey, vec![258]), (colour, vec![1, 2, 65535])] {
        let file = ImageFile::open(bytes, &ReadOptions::default()).unwrap();
        let raster = file.read(0).unwrap();
        let Pixels::U16(image) = &raster.pixels else { panic!("{raster:?}") };
        assert_eq!((image.data(), raster.bits, file.info().frames), (&expected[..], 16, 1));
    }
}

#[test]
fn jpeg_kinds_that_are_not_read_are_named() {
    let (_, jpeg, _) = FIXTURES[0];
    let frame = jpeg.windows(4).position(|w| w == [0xFF, 0xC0, 0, 17]).expect("a baseline frame of 3 components");
    let cases = [
        (1, 0xC3, "lossless"),
        (1, 0xC5, "hierarchical"),
        (1, 0xC9, "arithmetic"),
        (4, 12, "12 bits"),
        (9, 2, "2 components"),
        (6, 0, "a size of 27 × 0"),
    ];
    for (at, value, word) in cases {
        let mut bytes = jpeg.to_vec();
        bytes[frame + at] = value;
        if at == 6 {
            bytes[frame + 5] = 0;
        }
        let error = read(&bytes).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

#[test]
fn truncated_files_are_errors_at_every_length() {
    for (name, jpeg, reference) in FIXTURES {
        for len in 0..jpeg.len() {
            assert!(read(&jpeg[..len]).is_err(), "{name}.jpg cut to {len} of {} bytes was decoded", jpeg.len());
        }
        for len in 0..reference.len() {
            assert!(read(&reference[..len]).is_err(), "{name}.png cut to {len} bytes was decoded");
        }
    }
}

#[test]
fn changed_bytes_never_panic() {
    for (_, jpeg, reference) in FIXTURES {
        for original in [jpeg, reference] {
            for at in 0..original.len() {
                for value in [0, 0xFF, original[at] ^ 0x10] {
                    let mut bytes = original.to_vec();
                    bytes[at] = value;
                    let _ = decode(&bytes, &Limits { max_pixels: 1 << 20, ..Limits::default() });
                }
            }
        }
    }
}

#[test]
fn stray_bytes_between_jpeg_segments_are_harmless() {
    let (_, jpeg, _) = FIXTURES[0];
    let expected = read(jpeg).unwrap();
    let mut cluttered = jpeg.to_vec();
    let first_length = usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]]));
    for byte in [0, 7, 0] {
        cluttered.insert(4 + first_length, byte);
    }
    assert_eq!(read(&cluttered).unwrap(), expected);
}

#[test]
fn limits_are_checked_before_pixels_are_decoded() {
    let (_, jpeg, reference) = FIXTURES[0];
    for bytes in [jpeg, reference] {
        let pixels = decode(bytes, &Limits { max_pixels: 27 * 18 - 1, ..Limits::default() }).unwrap_err().to_string();
        assert!(pixels.contains("27 × 18") && pixels.contains("485"), "{pixels}");
        let size = decode(bytes, &Limits { max_bytes: 100, ..Limits::default() }).unwrap_err().to_string();
        assert!(size.contains("100 bytes"), "{size}");
    }
    // A header that claims 2^31 − 1 squared pixels, with nothing behind it.
    let mut bomb = reference[..60].to_vec();
    bomb[16..24].copy_from_slice(&[0x7F, 0xFF, 0xFF, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF]);
    assert!(matches!(read(&bomb), Err(Error::TooLarge { .. })));
}

#[test]
fn foreign_files_are_named() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"GIF89a...", "GIF"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "WebP"),
        (b"hello, world", "68 65 6c"),
        (b"\x89PNG\n\x1a\n", "text mode"),
    ];
    for (bytes, word) in cases {
        let error = read(bytes).unwrap_err();
        assert!(matches!(error, Error::UnknownFormat(_)) && error.to_string().contains(word), "{error}");
    }
}

#[test]
fn errors_of_files_name_them() {
    let folder = std::env::temp_dir().join(format!("moco-image-decode-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("ünïcode 画像.png");
    std::fs::write(&path, b"\x89PNG\r\n\x1a\n").unwrap();
    let error = decode_file(&path, &Limits::default()).unwrap_err().to_string();
    assert!(error.contains("画像.png") && error.contains("header"), "{error}");
    std::fs::write(&path, FIXTURES[0].1).unwrap();
    assert_eq!(decode_file(&path, &Limits::default()).unwrap().width(), 27);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(decode_file(&path, &Limits::default()), Err(Error::Io { .. })));
}
