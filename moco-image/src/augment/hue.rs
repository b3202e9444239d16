//! torchvision's `adjust_hue` on PIL images: to PIL's 8-bit HSV, add to the hue modulo 256, and back.

use std::sync::OnceLock;

use super::planes::{CHUNK, PlaneOp, Planes, for_planes};
use crate::Image;

/// Shifts the hue by `turns` (−0.5 to 0.5); nothing on images that are not RGB.
/// The round trip through 8-bit HSV happens for a shift of 0 too, as in torchvision.
pub(super) fn adjust(image: &mut Image, turns: f64) {
    if image.channels() != 3 {
        return;
    }
    let tables = tables();
    pulp::Arch::new().dispatch(Shift { pixels: image.data_mut(), shift: shift_of(turns), tables });
}

/// What is added to PIL's 8-bit hue: numpy truncates towards 0 and wraps into 8 bits.
pub(super) fn shift_of(turns: f64) -> u8 {
    (turns * 255.0) as i32 as u8
}

/// HSV of PIL depends on few combinations of bytes: each is computed once, in PIL's own arithmetic.
struct Tables {
    /// [case 6 of 8, chroma 256, numerator 256] → hue. The hue is `base ± numerator / chroma`.
    hue: Box<[u8; 8 << 16]>,
    /// [maximum 256, chroma 256] → saturation.
    saturation: Box<[u8; 1 << 16]>,
    /// hue → sector 0–5 and position in it.
    sector: [(u8, f64); 256],
    /// saturation → fraction.
    fraction: [f64; 256],
}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let mut hue = Box::new([0u8; 8 << 16]);
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
        let mut saturation = Box::new([0u8; 1 << 16]);
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

struct Shift<'a> {
    pixels: &'a mut [u8],
    shift: u8,
    tables: &'a Tables,
}

impl pulp::NullaryFnOnce for Shift<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for_planes(self.pixels, &ShiftPlanes(self.shift, self.tables));
    }
}

struct ShiftPlanes<'a>(u8, &'a Tables);

impl PlaneOp for ShiftPlanes<'_> {
    #[inline(always)]
    fn change(&self, planes: &mut Planes) {
        shift_planes(planes, self.0, self.1);
    }
}

/// In steps over arrays, so that all but the table look-ups become vector code.
#[inline(always)]
fn shift_planes([red, green, blue]: &mut Planes, shift: u8, tables: &Tables) {
    let (mut value, mut chroma) = ([0u8; CHUNK], [0u8; CHUNK]);
    let (mut case, mut numerator) = ([0u8; CHUNK], [0u8; CHUNK]);
    for i in 0..CHUNK {
        let (r, g, b) = (red[i], green[i], blue[i]);
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        let middle = r.max(g).min(r.min(g).max(b));
        value[i] = max;
        chroma[i] = max - min;
        numerator[i] = max - middle;
        let red_case = if g == min { 1 } else { 0 };
        let green_case = if b == min { 2 } else { 3 };
        let blue_case = if r == min { 4 } else { 5 };
        let other = if g == max { green_case } else { blue_case };
        case[i] = if r == max { red_case } else { other };
    }
    let (mut sector, mut position, mut fraction) = ([0u8; CHUNK], [0f64; CHUNK], [0f64; CHUNK]);
    for i in 0..CHUNK {
        let (case, chroma, numerator) = (usize::from(case[i] & 7), usize::from(chroma[i]), usize::from(numerator[i]));
        let hue = tables.hue[(case << 16) | (chroma << 8) | numerator].wrapping_add(shift);
        (sector[i], position[i]) = tables.sector[usize::from(hue)];
        let saturation = tables.saturation[(usize::from(value[i]) << 8) | chroma];
        fraction[i] = tables.fraction[usize::from(saturation)];
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
        let pick = |v1: u8, v2: u8, at_q: u8, at_t: u8| {
            let picked = if s == at_t { t } else { p };
            let picked = if s == at_q { q } else { picked };
            if (s == v1) | (s == v2) { v } else { picked }
        };
        red[i] = pick(0, 5, 1, 4);
        green[i] = pick(1, 2, 3, 0);
        blue[i] = pick(3, 4, 5, 2);
    }
}
