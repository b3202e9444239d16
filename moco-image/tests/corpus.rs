//! Files of many origins against what other readers say of them: the committed few, and where `MOCO_IMAGES_DIR` names a
//! folder of the same layout (`dicom/manifest.csv`, `nifti/manifest.csv`, `robustness/manifest.csv`) all of those.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use moco_image::{Error, ImageFile, Limits, Pixels, Raster, ReadOptions, Result, Rng, ValueRange};
use sha2::{Digest, Sha256};

#[test]
fn dicom_files_hold_the_values_that_pydicom_reads() {
    each_folder("dicom", |folder| report("DICOM", folder, &rows(folder), dicom));
}

#[test]
fn nifti_files_hold_the_values_that_nibabel_reads() {
    each_folder("nifti", |folder| report("NIfTI", folder, &rows(folder), nifti));
}

#[test]
fn pictures_are_what_pillow_sees_or_refused_for_a_reason() {
    each_folder("robustness", |folder| report("picture", folder, &rows(folder), picture));
}

/// Runs a check on the committed folder and on the one that the environment names.
fn each_folder(name: &str, check: impl Fn(&Path)) {
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus").join(name));
    if let Some(folder) = std::env::var_os("MOCO_IMAGES_DIR") {
        check(&PathBuf::from(folder).join(name));
    }
}

type Row = Vec<(String, String)>;

fn rows(folder: &Path) -> Vec<Row> {
    let path = folder.join("manifest.csv");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut lines = text.lines().map(fields);
    let names = lines.next().expect("a line of names");
    lines.map(|values| names.iter().cloned().zip(values).collect()).collect()
}

/// Fields of a line of CSV; quotes protect commas.
fn fields(line: &str) -> Vec<String> {
    let (mut fields, mut quoted) = (vec![String::new()], false);
    for c in line.trim_end().chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("never empty").push(c),
        }
    }
    fields
}

fn get<'a>(row: &'a Row, name: &str) -> &'a str {
    row.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
}

/// Checks every file of the manifest, then lists all that is wrong.
fn report(kind: &str, folder: &Path, rows: &[Row], check: fn(&Path, &Row) -> std::result::Result<String, String>) {
    assert!(!rows.is_empty());
    let (mut wrong, mut log) = (String::new(), String::new());
    for row in rows {
        let file = get(row, "file");
        let begin = Instant::now();
        let outcome = check(&folder.join(file), row);
        match &outcome {
            Ok(text) => writeln!(log, "{file}: {text}").unwrap(),
            Err(text) => writeln!(wrong, "{file}: {text}").unwrap(),
        }
        if begin.elapsed() > Duration::from_secs(10) {
            writeln!(wrong, "{file}: took {:?}", begin.elapsed()).unwrap();
        }
    }
    if std::env::var_os("MOCO_IMAGES_LOG").is_some() {
        println!("{log}");
    }
    assert!(wrong.is_empty(), "{kind} files of {}:\n{wrong}", folder.display());
}

fn frames(path: &Path) -> Result<(ImageFile, Vec<Raster>)> {
    let file = ImageFile::open_path(path, &ReadOptions::default())?;
    let frames = (0..file.frames()).map(|i| file.read(i)).collect::<Result<_>>()?;
    Ok((file, frames))
}

fn values(raster: &Raster) -> Vec<f64> {
    match &raster.pixels {
        Pixels::U8(image) => image.data().iter().map(|&v| v.into()).collect(),
        Pixels::U16(image) => image.data().iter().map(|&v| v.into()).collect(),
        Pixels::I16(image) => image.data().iter().map(|&v| v.into()).collect(),
        Pixels::F32(image) => image.data().iter().map(|&v| v.into()).collect(),
    }
}

/// Values as numpy writes them in that type.
fn bytes(values: &[f64], dtype: &str) -> Vec<u8> {
    match dtype {
        "|u1" => values.iter().map(|&v| v as u8).collect(),
        "<u2" => values.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
        "<i2" => values.iter().flat_map(|&v| (v as i16).to_le_bytes()).collect(),
        "<u4" => values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect(),
        other => panic!("dtype {other}"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn dicom(path: &Path, row: &Row) -> std::result::Result<String, String> {
    let outcome = frames(path);
    let (syntax, photometric) = (get(row, "ts_name"), get(row, "photometric"));
    let refusal = match () {
        // More digits than a float has.
        () if get(row, "file").contains("rle_32bit") => Some("digits"),
        () if get(row, "file").contains("no_meta.dcm") => Some("bytes 20 08"),
        () if get(row, "file").contains("embedded-sequence-delimiter") => Some("JPEG 2000"),
        () if get(row, "rows").is_empty() => Some(""),
        () if get(row, "file").contains("truncated") => Some("truncated"),
        () if get(row, "frames").contains('A') => Some("number of frames"),
        () => None,
    };
    let (file, frames) = match (outcome, refusal) {
        (Err(error), Some(word)) if error.to_string().contains(word) => return Ok(format!("refused: {error}")),
        (Err(error), _) => return Err(format!("refused: {error}")),
        (Ok(_), Some(word)) => return Err(format!("read, where `{word}` was expected as the reason why not")),
        (Ok(opened), None) => opened,
    };
    let all: Vec<f64> = frames.iter().flat_map(values).collect();
    let info = file.info();
    let shape = format!("{}×{}×{}×{}", info.frames, info.height, info.width, info.channels);
    if get(row, "sha256_le").is_empty() {
        return Ok(format!("read, where pydicom does not: {shape}"));
    }
    let number = |name: &str| get(row, name).parse::<f64>().map_err(|_| format!("no {name}"));
    let (low, high) = all.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    if photometric == "PALETTE COLOR" {
        // The manifest's values are indices.
        return (info.channels == 3).then(|| format!("{shape}, mean {mean:.3}")).ok_or("a palette gives no RGB".into());
    }
    let lossy = ["JPEG Baseline", "JPEG Extended", "JPEG 2000 Image Compression"].iter().any(|s| syntax.starts_with(s))
        && !syntax.contains("Lossless Only");
    if lossy {
        let (l, h, m) = (number("min")?, number("max")?, number("mean")?);
        let close = (low - l).abs() <= 6.0 && (high - h).abs() <= 6.0 && (mean - m).abs() <= 0.35;
        let text = format!("{shape}, {low} to {high}, mean {mean:.3}; expected {l} to {h}, mean {m:.3}");
        return if close { Ok(text) } else { Err(text) };
    }
    if sha256(&bytes(&all, get(row, "dtype"))) != get(row, "sha256_le") {
        return Err(format!("{shape}, {low} to {high}, mean {mean:.4}: other values than {row:?}"));
    }
    check_window(&frames[0], row)?;
    Ok(shape)
}

/// The window and the units of the manifest's columns.
fn check_window(raster: &Raster, row: &Row) -> std::result::Result<(), String> {
    let first = |name: &str| {
        let text = get(row, name).trim_start_matches('[').split([',', ']']).next().unwrap_or("");
        text.parse::<f64>().ok()
    };
    if let (Some(centre), Some(width)) = (first("wc"), first("ww")) {
        let ValueRange::Window(expected) = ValueRange::centred(centre, width) else { unreachable!() };
        if raster.window != Some(expected) {
            return Err(format!("window {:?}, expected {expected:?}", raster.window));
        }
    }
    if get(row, "modality") == "RTDOSE" {
        // The dose grid's scaling, which is not among the columns.
        return raster.rescale.map_or(Err("no dose grid scaling".into()), |_| Ok(()));
    }
    let expected = (first("slope").unwrap_or(1.0), first("intercept").unwrap_or(0.0));
    let got = raster.rescale.map_or((1.0, 0.0), |r| (r.slope, r.intercept));
    if got != expected { Err(format!("units {got:?}, expected {expected:?}")) } else { Ok(()) }
}

fn nifti(path: &Path, row: &Row) -> std::result::Result<String, String> {
    let (file, frames) = frames(path).map_err(|e| e.to_string())?;
    let dims: Vec<usize> = get(row, "shape").split('x').map(|d| d.parse().unwrap()).collect();
    let info = file.info();
    let shape = [info.width, info.height, info.frames];
    if shape != [dims[0], dims[1], dims[2..].iter().product()] {
        return Err(format!("{shape:?} instead of {dims:?}"));
    }
    let scaled = |raster: &Raster| -> Vec<f64> {
        let (slope, intercept) = raster.rescale.map_or((1.0, 0.0), |r| (r.slope, r.intercept));
        values(raster).into_iter().map(|v| v * slope + intercept).collect()
    };
    let all: Vec<f64> = frames.iter().flat_map(scaled).collect();
    let (low, high) = all.iter().fold((f64::MAX, f64::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    for (name, got) in [("min", low), ("max", high), ("mean_scaled", mean)] {
        let expected: f64 = get(row, name).parse().map_err(|_| format!("no {name}"))?;
        if (got - expected).abs() > expected.abs() * 1e-5 + 1e-9 {
            return Err(format!("{name} is {got}, expected {expected}"));
        }
    }
    Ok(format!("{shape:?}"))
}

// python3 -c "import numpy as np, hashlib; from PIL import Image; [print(hashlib.sha256(np.asarray(Image.open(
// f'g4_orientation_{n}.tif').convert('L')).tobytes()).hexdigest()) for n in range(1, 9)]", Pillow 13.0
#[test]
fn pages_are_upright_as_pillow_turns_them() {
    let upright = [
        "d0987eb6fd0faab876b06ee1c66be95a475b64f254eaea5712f7bbbaafe61199",
        "1d84d2f5655c9af7b8844650e931ebd33df93b70ec9a90b741ffebbab6019296",
        "d36362827dca29ccbf1cffa56d67fe06a85001d2490f6003eecfb4e54d8dba75",
        "478183aeb328e84178260bb3022971a52b97c0c0455ce1bdc7cb077e5e1c1892",
        "af1d1f4dec176c5e646839a0862763208f363d266a6fd0303c451a666b30bde4",
        "a67d40453c780401b3f1f133d1cd8a4fb7944340068f5aa783f5505fc84cef90",
        "2a3de13cf33dbbcd4ca7432a9c6b624c00618b541640ceffab68ac0209ab2f0a",
        "2a3de13cf33dbbcd4ca7432a9c6b624c00618b541640ceffab68ac0209ab2f0a",
    ];
    each_folder("robustness", |folder| {
        for (n, expected) in (1..).zip(upright) {
            let path = folder.join(format!("pillow/g4_orientation_{n}.tif"));
            let image = frames(&path).unwrap().1.remove(0).to_8_bits(ValueRange::Full).unwrap();
            assert_eq!(sha256(image.data()), expected, "orientation {n}");
        }
    });
}

#[test]
fn damaged_files_never_panic_or_hang() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/corpus");
    let files = [
        "dicom/pydicom/MR_small_RLE.dcm",
        "dicom/pydicom/SC_rgb_jpeg_gdcm.dcm",
        "dicom/pydicom/SC_rgb_gdcm_KY.dcm",
        "dicom/pydicom/JPGExtended.dcm",
        "dicom/pydicom/MR_small_jpeg_ls_lossless.dcm",
        "dicom/pydicom/SC_rgb_jls_lossy_line.dcm",
        "dicom/pydicom/SC_rgb_rle_2frame.dcm",
        "dicom/pydicom/rtdose_expb.dcm",
        "dicom/pydicom/image_dfl.dcm",
        "nifti/ct_small/example_seg_roi_subset.nii.gz",
        "robustness/pillow/16bit.deflate.tif",
        "robustness/pillow/g4_orientation_5.tif",
    ];
    let limits = Limits { max_pixels: 1 << 20, ..Limits::default() };
    let options = ReadOptions { limits, ..ReadOptions::default() };
    let read = |bytes: Vec<u8>| -> Result<usize> {
        let file = ImageFile::open(bytes, &options)?;
        (0..file.frames().min(2)).map(|i| file.read(i).map(|r| r.channels())).sum()
    };
    // The crates behind TIFF and JPEG 2000 may panic inside; that is caught, and need not be printed.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcome = std::panic::catch_unwind(|| {
        let mut rng = Rng::new(11, 0);
        for name in files {
            let original = std::fs::read(corpus.join(name)).unwrap();
            let begin = Instant::now();
            for _ in 0..150 {
                let mut bytes = original.clone();
                // Half of the changes hit the header.
                let span = if rng.chance(0.5) { 1500.min(bytes.len()) } else { bytes.len() };
                for _ in 0..1 + rng.below(3) {
                    let at = rng.below(span);
                    bytes[at] = [0, 0xFF, 0x7F, rng.below(256) as u8][rng.below(4)];
                }
                let _ = read(bytes);
                let _ = read(original[..rng.below(original.len())].to_vec());
            }
            assert!(begin.elapsed() < Duration::from_secs(30), "{name}: {:?}", begin.elapsed());
        }
    });
    std::panic::set_hook(hook);
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn hostile_volumes_and_medical_files_are_refused_at_once() {
    each_folder("robustness", |folder| {
        let mut tried = 0;
        for entry in std::fs::read_dir(folder.join("generated")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if [".dcm", ".nii", ".nii.gz", ".npy", ".npz", "-ubyte"].iter().any(|end| name.ends_with(end)) {
                let begin = Instant::now();
                let error = frames(&path).expect_err(&name).to_string();
                assert!(begin.elapsed() < Duration::from_secs(2), "{name}: {:?}", begin.elapsed());
                assert!(!error.is_empty());
                tried += 1;
            }
        }
        assert!(tried >= 6, "{tried} files in {}", folder.display());
        let (_, floats) = frames(&folder.join("generated/float_nan_inf.tiff")).unwrap();
        let error = floats[0].to_8_bits(ValueRange::MinMax).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
    });
}

/// Damage that Pillow passes over (bad check sums, data that ends early in the last block, codes without meaning) and
/// this reader does not.
const PASSED_OVER: [&str; 9] = [
    "xcsn0g01.png",
    "broken_data_stream.png",
    "truncated_end_chunk.png",
    "crash-0da013a13571cc8eb457a39fee8db18f8a3c7127.tif",
    "crash-74d2a78403a5a59db1fb0a2b8735ac068a75f6e3.tif",
    "7997b6b229f25315d33f5c7085e37500.jpg",
    "b55977028a3a574336966b6536640fc9.jpg",
    "f6b4389c3cf0f5997b2e5a4b905aea8d.jpg",
    "png_flipped_",
];

/// Formats that are not read.
const FOREIGN: [&str; 7] = ["BMP", "GIF", "ICO", "JPEG2000", "PPM", "WEBP", "AVIF"];

fn picture(path: &Path, row: &Row) -> std::result::Result<String, String> {
    let (status, format) = (get(row, "pillow_status"), get(row, "format"));
    let outcome = ImageFile::open_path(path, &ReadOptions::default()).and_then(|file| Ok((file.read(0)?, file)));
    match outcome {
        Err(error) => {
            let reason = error.to_string();
            let inner = match &error {
                Error::File { source, .. } => source,
                other => other,
            };
            let may_refuse = status != "ok"
                || FOREIGN.contains(&format)
                || PASSED_OVER.iter().any(|name| get(row, "file").contains(name))
                || matches!(inner, Error::Unsupported(_) | Error::TooLarge { .. });
            if may_refuse { Ok(format!("refused: {reason}")) } else { Err(format!("Pillow reads it: {reason}")) }
        }
        Ok((raster, file)) => {
            let (height, width) = raster.size();
            let size = (get(row, "width"), get(row, "height"));
            if status != "error_open" && (width.to_string(), height.to_string()) != (size.0.into(), size.1.into()) {
                return Err(format!("{width} × {height}, Pillow says {size:?}"));
            }
            let info = file.info();
            if (info.width, info.height, info.channels) != (width, height, raster.channels()) {
                return Err(format!("{info:?}, but the image is {width} × {height} × {}", raster.channels()));
            }
            if status == "error_in_pixels" {
                return Err(format!("read, where Pillow finds it damaged: {}", get(row, "pillow_message")));
            }
            let expected = get(row, "values_sha256");
            let dtype = if raster.is_8_bit() { "|u1" } else { "<u2" };
            if !expected.is_empty() && sha256(&bytes(&values(&raster), dtype)) != expected {
                return Err(format!("other values than Pillow's ({})", raster.depth_in_words()));
            }
            Ok(format!("{width} × {height}, {}, {status}", raster.depth_in_words()))
        }
    }
}
