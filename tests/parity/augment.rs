//! Augmentations against torchvision on PIL: the file holds a source image, the result of each operation, and the
//! operation's parameters as text under the tensor's name.

use std::path::Path;

use moco_image::{
    AugmentConfig, AugmentParams, CropBox, Filter, Image, PixelOp, Scratch, Step, apply_ops, augment_exactly,
    center_crop, render, resize_shorter_side,
};
use moco_tests::reference::Reference;
use moco_tests::tolerance::Findings;

pub fn check(path: &Path) -> Result<String, String> {
    let file = Reference::open(path)?;
    let source = image(&file, "source")?;
    let mut findings = Findings::default();
    let (mut plain, mut round_trip) = (Worst::default(), Worst::default());
    for name in file.names().iter().filter(|name| *name != "source") {
        let text = file.need(name)?;
        let fail = |reason: String| format!("{name} (`{text}`): {reason}");
        if let Some(of) = name.strip_suffix(".normalized") {
            let error = normalised_error(&file, &source, name, &file.need(of)?, &text).map_err(fail)?;
            findings.bound(name, error, NORMALISED);
            continue;
        }
        let operation = Operation::parse(name, &text).map_err(fail)?;
        let got = operation.run(&source).map_err(|e| fail(e.to_string()))?;
        let difference = compare(&got, &image(&file, name)?).map_err(fail)?;
        let (worst, share, most) =
            if operation.goes_through_hsv_or_blur() { (&mut round_trip, 0.01, 6) } else { (&mut plain, 0.005, 3) };
        if difference.share > share || difference.most > most {
            findings.holds(&format!("{name}: {difference} stays within {most} grey levels and {share}"), false);
        }
        worst.add(difference);
    }
    // What was compared is always told, so that a file without one of the groups shows it.
    findings.holds(&format!("{plain}"), true);
    findings.holds(&format!("hue and blur: {round_trip}"), plain.files + round_trip.files > 0);
    findings.finish()
}

const NORMALISED: f64 = 0.02;

/// What one tensor records.
enum Operation {
    View { crop: Option<Crop>, ops: Vec<PixelOp> },
    Evaluation { side: usize, filter: Filter, crop: usize },
}

struct Crop {
    region: CropBox,
    size: usize,
    filter: Filter,
}

impl Operation {
    /// Parameters come from the text; the name (before its first dot) only says which operation it is.
    fn parse(name: &str, text: &str) -> Result<Operation, String> {
        let kind = name.split('.').next().unwrap_or(name);
        match kind {
            "eval_transform" => {
                let (resize, crop) = text.split_once(", ").ok_or("expected `resize …, center crop …`")?;
                let words: Vec<&str> = resize.split(' ').collect();
                let ["resize", "shorter", "side", side, filter, "antialias"] = words[..] else {
                    return Err("expected `resize shorter side N FILTER antialias`".into());
                };
                let crop = crop.strip_prefix("center crop ").ok_or("expected `center crop N`")?;
                Ok(Operation::Evaluation { side: number(side)?, filter: parse_filter(filter)?, crop: number(crop)? })
            }
            "chain" => Operation::chain(text),
            "resized_crop" | "resized_crop_bicubic" => {
                let crop = Crop::parse(text)?;
                if (kind == "resized_crop_bicubic") != (crop.filter == Filter::Bicubic) {
                    return Err("name and text disagree about the filter".into());
                }
                Ok(Operation::View { crop: Some(crop), ops: Vec::new() })
            }
            _ => {
                let value = match text.rsplit_once('=') {
                    Some((_, value)) => value,
                    None => "",
                };
                Ok(Operation::View { crop: None, ops: vec![parse_op(kind, value)?] })
            }
        }
    }

    fn chain(text: &str) -> Result<Operation, String> {
        let (mut crop, mut ops) = (None, Vec::new());
        for (i, step) in text.split(" -> ").enumerate() {
            let (kind, value) = step.split_once(' ').unwrap_or((step, ""));
            match kind {
                "resized_crop" if i == 0 => crop = Some(Crop::parse(value)?),
                _ => ops.push(parse_op(kind, value)?),
            }
        }
        Ok(Operation::View { crop, ops })
    }

    fn run(&self, source: &Image) -> moco_image::Result<Image> {
        match self {
            Operation::View { crop: None, ops } => apply_ops(source, ops),
            Operation::View { crop: Some(crop), ops } => {
                let params = AugmentParams { crop: crop.region, ops: ops.clone() };
                render(source, &params, (crop.size, crop.size), crop.filter)
            }
            Operation::Evaluation { side, filter, crop } => {
                center_crop(&resize_shorter_side(source, *side, *filter)?, *crop, *crop)
            }
        }
    }

    fn goes_through_hsv_or_blur(&self) -> bool {
        match self {
            Operation::View { ops, .. } => ops.iter().any(|op| matches!(op, PixelOp::Hue(_) | PixelOp::Blur(_))),
            Operation::Evaluation { .. } => false,
        }
    }
}

impl Crop {
    fn parse(text: &str) -> Result<Crop, String> {
        let (mut top, mut left, mut height, mut width, mut size) = (None, None, None, None, None);
        let mut filter = Filter::Bilinear;
        for word in text.split(' ') {
            match word.split_once('=') {
                Some(("top", v)) => top = Some(number(v)?),
                Some(("left", v)) => left = Some(number(v)?),
                Some(("height", v)) => height = Some(number(v)?),
                Some(("width", v)) => width = Some(number(v)?),
                Some(("size", v)) => size = Some(number(v)?),
                Some((key, _)) => return Err(format!("unknown parameter `{key}`")),
                None if word == "antialias" => {}
                None => filter = parse_filter(word)?,
            }
        }
        match (top, left, height, width, size) {
            (Some(top), Some(left), Some(height), Some(width), Some(size)) => {
                Ok(Crop { region: CropBox { top, left, height, width }, size, filter })
            }
            _ => Err("expected top, left, height, width and size".into()),
        }
    }
}

fn parse_op(kind: &str, value: &str) -> Result<PixelOp, String> {
    Ok(match kind {
        "brightness" => PixelOp::Brightness(number(value)?),
        "contrast" => PixelOp::Contrast(number(value)?),
        "saturation" => PixelOp::Saturation(number(value)?),
        "hue" => PixelOp::Hue(number(value)?),
        "blur" => PixelOp::Blur(number(value)?),
        "solarize" => PixelOp::Solarize(number(value)?),
        "grayscale" => PixelOp::Grayscale,
        "hflip" => PixelOp::Flip,
        _ => return Err(format!("unknown operation `{kind}`")),
    })
}

fn parse_filter(word: &str) -> Result<Filter, String> {
    match word {
        "bilinear" => Ok(Filter::Bilinear),
        "bicubic" => Ok(Filter::Bicubic),
        _ => Err(format!("unknown word `{word}`")),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.trim().parse().map_err(|_| format!("`{text}` is not a {}", std::any::type_name::<T>()))
}

/// Largest difference of the view `of` describes, made as the loader makes it, to the recorded tensor [C, H, W].
fn normalised_error(file: &Reference, source: &Image, name: &str, of: &str, text: &str) -> Result<f64, String> {
    let Operation::View { crop, ops } = Operation::chain(of)? else { return Err("not a view".into()) };
    let list = |key: &str| -> Result<Vec<f32>, String> {
        let (_, rest) = text.split_once(&format!("{key}=[")).ok_or(format!("no `{key}=[…]`"))?;
        let (list, _) = rest.split_once(']').ok_or(format!("`{key}` is not closed"))?;
        list.split(',').map(number).collect()
    };
    if !text.starts_with("to_tensor, normalize ") {
        return Err("expected `to_tensor, normalize …`".into());
    }
    let whole = CropBox { top: 0, left: 0, height: source.height(), width: source.width() };
    let (region, size, filter) = match crop {
        Some(crop) => (crop.region, [crop.size; 2], crop.filter),
        None => (whole, [source.height(), source.width()], Filter::Bilinear),
    };
    let order: Vec<Step> = Vec::new();
    let config =
        AugmentConfig { size, filter, order, mean: list("mean")?, std: list("std")?, ..AugmentConfig::moco_v2() };
    let mut got = vec![0f32; size[0] * size[1] * source.channels()];
    let params = AugmentParams { crop: region, ops };
    augment_exactly(source, &config, &params, &mut Scratch::default(), &mut got).map_err(|e| e.to_string())?;
    let expected = file.f64s(name)?;
    let (pixels, channels) = (size[0] * size[1], source.channels());
    if file.shape(name)? != [channels, size[0], size[1]] {
        return Err(format!("shape {:?}, expected [{channels}, {}, {}]", file.shape(name)?, size[0], size[1]));
    }
    let at = |pixel: usize, c: usize| (f64::from(got[pixel * channels + c]) - expected[c * pixels + pixel]).abs();
    Ok((0..pixels * channels).map(|i| at(i / channels, i % channels)).fold(0.0, f64::max))
}

fn image(file: &Reference, name: &str) -> Result<Image, String> {
    let (height, width, channels) = match file.shape(name)?[..] {
        [height, width, channels] => (height, width, channels),
        [height, width] => (height, width, 1),
        ref other => return Err(format!("{name} has shape {other:?}, expected [height, width, channels]")),
    };
    Image::new(width, height, channels, file.u8s(name)?).map_err(|e| format!("{name}: {e}"))
}

/// Difference of two images in grey levels.
#[derive(Clone, Copy, Default)]
struct Difference {
    most: u8,
    share: f64,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at most {} off, {:.3} % by more than 1", self.most, self.share * 100.0)
    }
}

fn compare(got: &Image, expected: &Image) -> Result<Difference, String> {
    let shape = |i: &Image| [i.height(), i.width(), i.channels()];
    if shape(got) != shape(expected) {
        return Err(format!("got shape {:?}, recorded {:?}", shape(got), shape(expected)));
    }
    let off = || got.data().iter().zip(expected.data()).map(|(a, b)| a.abs_diff(*b));
    let above = off().filter(|&d| d > 1).count();
    Ok(Difference { most: off().max().unwrap_or(0), share: above as f64 / got.data().len() as f64 })
}

#[derive(Default)]
struct Worst {
    files: usize,
    worst: Difference,
}

impl Worst {
    fn add(&mut self, d: Difference) {
        self.files += 1;
        self.worst = Difference { most: self.worst.most.max(d.most), share: self.worst.share.max(d.share) };
    }
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} operations, {}", self.files, self.worst)
    }
}
