//! torchvision's `adjust_hue` on PIL images: to PIL's 8-bit HSV, add to the hue modulo 256, and back.

use std::sync::OnceLock;

use crate::Image;

/// Shifts the hue by `turns` (−0.5 to 0.5); nothing on images that are not RGB.
/// The round trip through 8-bit HSV happens for a shift of 0 too, as in torchvision.
pub(super) fn adjust(image: &mut Image, turns: f64) {
    if image.channels() != 3 {
        return;
    }
    // numpy truncates towards 0 and wraps into 8 bits.
    let shift = (turns * 255.0) as i32 as u8;
    let tables = tables();
    pulp::Arch::new().dispatch(Shift { pixels: image.data_mut(), shift, tables });
}

const CHUNK: usize = 64;

/// HSV of PIL depends on few combinations of bytes: each is computed once, in PIL's own arithmetic.
struct Tables {
    /// [case 6, chroma 256, numerator 256] → hue. The hue is `base ± numerator / chroma`.
    hue: Vec<u8>,
    /// [maximum 256, chroma 256] → saturation.
    saturation: Vec<u8>,
    /// hue → sector 0–5 and position in it.
    sector: [(u8, f64); 256],
    /// saturation → fraction.
    fraction: [f64; 256],
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut hue = vec![0u8; 6 << 16];
        for (case, (base, sign)) in CASES.into_iter().enumerate() {
            for chroma in 1..256usize {
                for numerator in 0..=chroma {
                    // libImaging/Convert.c rgb2hsv: quotients in single, the rest in double precision.
                    let quotient = numerator as f32 / chroma as f32;
                    let h = (base + sign * f64::from(quotient)) as f32;
                    let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
                    hue[(case << 16) + (chroma << 8) + numerator] = (f64::from(h) * 255.0) as u8;
                }
            }
        }
        let mut saturation = vec![0u8; 1 << 16];
        for maximum in 1..256usize {
            for chroma in 0..=maximum {
                let s = chroma as f32 / maximum as f32;
                saturation[(maximum << 8) + chroma] = (f64::from(s) * 255.0) as u8;
            }
        }
        let sector = std::array::from_fn(|h| {
            // hsv2rgb: the sector is 6 only for hue 255, which is sector 0 at position 0.
            let position = f64::from(h as f32) * 6.0 / 255.0;
            let sector = position.floor();
            ((sector as u8) % 6, f64::from((position - sector) as f32))
        });
        let fraction = std::array::from_fn(|s| f64::from((f64::from(s as f32) / 255.0) as f32));
        Tables { hue, saturation, sector, fraction }
    })
}

/// Of the three quotients `(maximum − channel) / chroma` the smallest channel's is 1 and the largest's is 0, so the hue
/// in sixths is a base plus or minus the middle channel's.
const CASES: [(f64, f64); 6] = [
    (1.0, -1.0), // red largest, blue smallest
    (-1.0, 1.0), // red largest, green smallest
    (1.0, 1.0),  // green largest, blue smallest
    (3.0, -1.0), // green largest, red smallest
    (3.0, 1.0),  // blue largest, red smallest
    (5.0, -1.0), // blue largest, green smallest
];

/// `CHUNK` pixels at a time, in steps over arrays so that all but the table look-ups become vector code.
struct Shift<'a> {
    pixels: &'a mut [u8],
    shift: u8,
    tables: &'a Tables,
}

impl pulp::NullaryFnOnce for Shift<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { pixels, shift, tables } = self;
        for chunk in pixels.chunks_mut(3 * CHUNK) {
            let mut rgb = [[0u8; CHUNK]; 3];
            for (i, pixel) in chunk.chunks_exact(3).enumerate() {
                for c in 0..3 {
                    rgb[c][i] = pixel[c];
                }
            }
            shift_planes(&mut rgb, shift, tables);
            for (i, pixel) in chunk.chunks_exact_mut(3).enumerate() {
                for c in 0..3 {
                    pixel[c] = rgb[c][i];
                }
            }
        }
    }
}

#[inline(always)]
fn shift_planes([red, green, blue]: &mut [[u8; CHUNK]; 3], shift: u8, tables: &Tables) {
    let mut hue_index = [0u32; CHUNK];
    let mut saturation_index = [0u32; CHUNK];
    let mut value = [0u8; CHUNK];
    for i in 0..CHUNK {
        let (r, g, b) = (red[i], green[i], blue[i]);
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let middle = r.max(g).min(r.min(g).max(b));
        let chroma = u32::from(max - min);
        let case = if r == max {
            if g == min { 1 } else { 0 }
        } else if g == max {
            if b == min { 2 } else { 3 }
        } else if r == min {
            4
        } else {
            5
        };
        hue_index[i] = (case << 16) | (chroma << 8) | u32::from(max - middle);
        saturation_index[i] = (u32::from(max) << 8) | chroma;
        value[i] = max;
    }
    let mut sector = [0u8; CHUNK];
    let mut position = [0f64; CHUNK];
    let mut fraction = [0f64; CHUNK];
    for i in 0..CHUNK {
        let hue = tables.hue[hue_index[i] as usize].wrapping_add(shift);
        (sector[i], position[i]) = tables.sector[usize::from(hue)];
        fraction[i] = tables.fraction[usize::from(tables.saturation[saturation_index[i] as usize])];
    }
    let (mut low, mut falling, mut rising) = ([0u8; CHUNK], [0u8; CHUNK], [0u8; CHUNK]);
    for i in 0..CHUNK {
        let v = f64::from(value[i]);
        // C's round(): half away from 0, and all of these are at least 0.
        let round = |x: f64| (x + 0.5) as i32 as u8;
        low[i] = round(v * (1.0 - fraction[i]));
        falling[i] = round(v * (1.0 - fraction[i] * position[i]));
        rising[i] = round(v * (1.0 - fraction[i] * (1.0 - position[i])));
    }
    for i in 0..CHUNK {
        let (s, v, p, q, t) = (sector[i], value[i], low[i], falling[i], rising[i]);
        let pick = |at_v: [u8; 2], at_q: u8, at_t: u8| {
            if s == at_v[0] || s == at_v[1] {
                v
            } else if s == at_q {
                q
            } else if s == at_t {
                t
            } else {
                p
            }
        };
        red[i] = pick([0, 5], 1, 4);
        green[i] = pick([1, 2], 3, 0);
        blue[i] = pick([3, 4], 5, 2);
    }
}
