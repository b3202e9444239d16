//! Changes of values, in floats from 0 to 1 whatever the depth of the file: one way for 8 and for 16 bits.

use moco_image::Image;

/// One change with its parameter fixed. Definitions are torchvision's on tensors; results are clamped to [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PixelChange {
    /// `v · f`.
    Brightness(f32),
    /// `m + f · (v − m)` with the image's mean luma m.
    Contrast(f32),
    /// `y + f · (v − y)` with the pixel's luma y; nothing unless there are 3 channels.
    Saturation(f32),
    /// The hue turned by so many turns; nothing unless there are 3 channels.
    Hue(f32),
    /// `v ^ g`.
    Gamma(f32),
    /// A Gaussian of this standard deviation in pixels, edges repeated.
    Blur(f32),
}

impl PixelChange {
    /// Changes the image in place.
    pub(super) fn apply(self, image: &mut Image<f32>) {
        let channels = image.channels();
        match self {
            Self::Brightness(factor) => each(image, |v| v * factor),
            Self::Contrast(factor) => {
                let mean = mean_luma(image);
                each(image, |v| mean + factor * (v - mean));
            }
            Self::Saturation(factor) if channels == 3 => pixels(image, |[r, g, b]| {
                let grey = luma(r, g, b);
                [r, g, b].map(|v| grey + factor * (v - grey))
            }),
            Self::Hue(turns) if channels == 3 => pixels(image, |rgb| turned(rgb, turns)),
            Self::Saturation(_) | Self::Hue(_) => {}
            Self::Gamma(exponent) => each(image, |v| v.powf(exponent)),
            Self::Blur(sigma) => blur(image, sigma),
        }
    }
}

fn each(image: &mut Image<f32>, change: impl Fn(f32) -> f32) {
    image.data_mut().iter_mut().for_each(|v| *v = change(*v).clamp(0.0, 1.0));
}

fn pixels(image: &mut Image<f32>, change: impl Fn([f32; 3]) -> [f32; 3]) {
    for pixel in image.data_mut().as_chunks_mut::<3>().0 {
        *pixel = change(*pixel).map(|v| v.clamp(0.0, 1.0));
    }
}

/// ITU-R 601-2, as PIL and torchvision.
fn luma(r: f32, g: f32, b: f32) -> f32 {
    0.299 * r + 0.587 * g + 0.114 * b
}

fn mean_luma(image: &Image<f32>) -> f32 {
    let sum: f64 = match image.channels() {
        3 => image.data().as_chunks::<3>().0.iter().map(|&[r, g, b]| f64::from(luma(r, g, b))).sum(),
        _ => image.data().iter().map(|&v| f64::from(v)).sum::<f64>() / image.channels() as f64,
    };
    (sum / (image.width() * image.height()) as f64) as f32
}

/// Through HSV, as torchvision's `adjust_hue` on tensors.
fn turned([r, g, b]: [f32; 3], turns: f32) -> [f32; 3] {
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    let chroma = max - min;
    if chroma <= 0.0 {
        return [r, g, b];
    }
    let sixths = if max == r {
        (g - b) / chroma
    } else if max == g {
        2.0 + (b - r) / chroma
    } else {
        4.0 + (r - g) / chroma
    };
    let hue = (sixths / 6.0 + turns).rem_euclid(1.0) * 6.0;
    // Foley and van Dam: a channel falls from the maximum to the minimum within one sixth, two sixths from its own hue.
    let channel = |n: f32| {
        let k = (n + hue) % 6.0;
        max - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
    };
    [channel(5.0), channel(3.0), channel(1.0)]
}

fn blur(image: &mut Image<f32>, sigma: f32) {
    let radius = (3.0 * sigma).ceil() as usize;
    if radius == 0 {
        return;
    }
    let weights: Vec<f32> =
        (0..=2 * radius).map(|i| (-0.5 * ((i as f32 - radius as f32) / sigma).powi(2)).exp()).collect();
    let sum: f32 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|w| w / sum).collect();
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let stride = width * channels;
    let mut rows = vec![0.0; image.data().len()];
    for (input, output) in image.data().chunks_exact(stride).zip(rows.chunks_exact_mut(stride)) {
        for x in 0..width {
            for (t, weight) in weights.iter().enumerate() {
                let from = (x + t).saturating_sub(radius).min(width - 1) * channels;
                for c in 0..channels {
                    output[x * channels + c] += weight * input[from + c];
                }
            }
        }
    }
    let output = image.data_mut();
    output.fill(0.0);
    for y in 0..height {
        let target = &mut output[y * stride..(y + 1) * stride];
        for (t, weight) in weights.iter().enumerate() {
            let from = (y + t).saturating_sub(radius).min(height - 1) * stride;
            target.iter_mut().zip(&rows[from..from + stride]).for_each(|(out, v)| *out += weight * v);
        }
    }
    output.iter_mut().for_each(|v| *v = v.clamp(0.0, 1.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(change: PixelChange, channels: usize, data: &[f32]) -> Vec<f32> {
        let mut image = Image::from_values(data.len() / channels, 1, channels, data.to_vec()).unwrap();
        change.apply(&mut image);
        image.into_data()
    }

    fn close(a: &[f32], b: &[f32]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6), "{a:?} {b:?}");
    }

    // torchvision.transforms.v2.functional on torch.tensor([[[.8]], [[.2]], [[.4]]])
    #[test]
    fn colours_change_as_in_torchvision() {
        let rgb = [0.8, 0.2, 0.4];
        close(&changed(PixelChange::Brightness(1.5), 3, &rgb), &[1.0, 0.3, 0.6]);
        close(&changed(PixelChange::Saturation(0.5), 3, &rgb), &[0.6011, 0.3011, 0.4011]);
        close(&changed(PixelChange::Hue(1.0 / 3.0), 3, &rgb), &[0.4, 0.8, 0.2]);
        close(&changed(PixelChange::Hue(-0.5), 3, &rgb), &[0.2, 0.8, 0.6]);
        close(&changed(PixelChange::Gamma(2.0), 3, &rgb), &[0.64, 0.04, 0.16]);
        let two = [0.8, 0.2, 0.4, 0.0, 0.0, 0.0];
        close(&changed(PixelChange::Contrast(0.0), 3, &two), &[0.2011; 6]);
        close(&changed(PixelChange::Saturation(0.0), 1, &[0.3]), &[0.3]);
        close(&changed(PixelChange::Hue(0.2), 3, &[0.5; 3]), &[0.5; 3]);
    }

    #[test]
    fn a_blur_keeps_what_is_even_and_spreads_a_point_by_its_sigma() {
        close(&changed(PixelChange::Blur(1.3), 1, &[0.7; 9]), &[0.7; 9]);
        let mut point = vec![0.0; 41 * 41];
        point[20 * 41 + 20] = 1.0;
        let mut image = Image::from_values(41, 41, 1, point).unwrap();
        PixelChange::Blur(2.0).apply(&mut image);
        let moment =
            |of: &dyn Fn(usize) -> f32| -> f32 { image.data().iter().enumerate().map(|(i, v)| v * of(i)).sum() };
        let variance = moment(&|i| ((i % 41) as f32 - 20.0).powi(2));
        assert!((moment(&|_| 1.0) - 1.0).abs() < 1e-4 && (variance - 4.0).abs() < 0.15, "{variance}");
    }
}
