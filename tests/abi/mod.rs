//! The C ABI as C and C++ programs meet it: compiled against `moco.h` and `moco.hpp`, linked to the built libmoco, run
//! under the address and undefined-behaviour sanitizers with leak detection.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use moco_infer::{Backbone, CalibrationOptions, Extractor, ExtractorOptions, calibrate};
use moco_models::arch::{ArchSpec, Stem};
use moco_models::{card::Card, init::initialise, weights::save_backbone};

const STRICT: &[&str] = &["-Wall", "-Wextra", "-Werror", "-pedantic"];
const SANITIZE: &[&str] = &["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

#[test]
fn a_c_program_gets_features_and_heads_and_every_error() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let program = folder.path().join("program");
    compile("cc", &["-std=c99"], &["abi/program.c"], &program);
    run(&program, folder.path());
}

#[test]
fn a_cpp_program_of_two_units_shares_a_backbone_between_threads() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let program = folder.path().join("program");
    compile("c++", &["-std=c++17", "-pthread"], &["abi/program.cpp", "abi/second_unit.cpp"], &program);
    run(&program, folder.path());
}

#[test]
fn a_c_program_trains_and_uses_models_and_gets_every_error() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let program = folder.path().join("training");
    compile("cc", &["-std=c99"], &["abi/training.c"], &program);
    run(&program, folder.path());
}

#[test]
fn a_cpp_program_trains_cancels_and_shares_a_model_between_threads() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let program = folder.path().join("training");
    compile("c++", &["-std=c++17", "-pthread"], &["abi/training.cpp"], &program);
    run(&program, folder.path());
}

#[test]
fn the_examples_of_each_language_agree() {
    let folder = tempfile::tempdir().unwrap();
    prepare(folder.path());
    let (embed, finetune) = (folder.path().join("embed"), folder.path().join("finetune"));
    compile("cc", &["-std=c99"], &["../examples/embed.c"], &embed);
    compile("c++", &["-std=c++17"], &["../examples/finetune.cpp"], &finetune);
    let backbone = folder.path().join("backbone.safetensors");
    let pictures = pictures();

    let printed = success(Command::new(&embed).arg(&backbone).args(&pictures[..3]));
    let extractor = Extractor::new(&Backbone::open(&backbone).unwrap(), &ExtractorOptions::default()).unwrap();
    let features = extractor.extract_files(&pictures[..3], &mut |_| ()).unwrap().features.remove(0);
    let rows: Vec<&[f32]> = features.data.chunks(features.shape[1]).collect();
    for ((row, path), line) in rows.iter().zip(&pictures).zip(printed.lines()) {
        assert_eq!(line, format!("{:.4}  {}", cosine(rows[0], row), path.display()));
    }

    let groceries = root().join("examples/data/groceries");
    let head = folder.path().join("head.safetensors");
    let printed = success(
        Command::new(&finetune).arg(&backbone).arg(groceries.join("train")).arg(groceries.join("test")).arg(&head),
    );
    let accuracy: f64 = printed.split("accuracy ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(accuracy > 100.0 / 12.0, "12 classes, better than chance even untrained:\n{printed}");
    let head = moco_finetune::linear::LinearHead::open(&head).unwrap();
    assert_eq!((head.classes(), head.info().tap.as_str()), (12, "pooled"));
    assert_eq!(head.info().class_names[0], "Banana");
}

/// A small backbone, the features of the first pictures as this crate's world gets them, and damaged files.
fn prepare(folder: &Path) {
    let arch = ArchSpec { width: 0.125, stem: Stem::Cifar, ..ArchSpec::new("resnet18") };
    let graph = arch.build().unwrap();
    let path = folder.join("backbone.safetensors");
    save_backbone(&path, &graph, &initialise(&graph, 3), &Card::new(arch.clone(), "random").unwrap()).unwrap();
    let mut deep = Card::new(arch.clone(), "random").unwrap();
    deep.preprocess.bit_depth = 12;
    save_backbone(&folder.join("twelve_bits.safetensors"), &graph, &initialise(&graph, 3), &deep).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(folder.join("truncated.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(folder.join("rubbish.safetensors"), b"not tensors at all").unwrap();
    for (i, picture) in pictures().iter().take(4).enumerate() {
        std::fs::copy(picture, folder.join(format!("{i}.jpg"))).unwrap();
    }
    let corpus = root().join("moco-image/fixtures/corpus");
    std::fs::copy(corpus.join("dicom/pydicom/MR_small_RLE.dcm"), folder.join("mr.dcm")).unwrap();
    std::fs::copy(corpus.join("nifti/nibabel/functional.nii"), folder.join("volume.nii")).unwrap();
    let jpeg = std::fs::read(folder.join("0.jpg")).unwrap();
    std::fs::write(folder.join("broken.jpg"), &jpeg[..200]).unwrap();
    let paths: Vec<PathBuf> = (0..4).map(|i| folder.join(format!("{i}.jpg"))).collect();
    let extractor = Extractor::new(&Backbone::open(&path).unwrap(), &ExtractorOptions::default()).unwrap();
    let features = extractor.extract_files(&paths, &mut |_| ()).unwrap().features.remove(0);
    let floats: Vec<u8> = features.data.iter().flat_map(|v| v.to_ne_bytes()).collect();
    std::fs::write(folder.join("expected.f32"), floats).unwrap();

    let backbone = Backbone::open(&path).unwrap();
    let none_held_out = CalibrationOptions { held_out: 0, ..CalibrationOptions::default() };
    let mut calibration = calibrate(&backbone, &paths, &none_held_out, &mut |_, _| ()).unwrap().calibration;
    calibration.write(&folder.join("int8.json")).unwrap();
    calibration.backbone_sha256 = "0".repeat(64);
    calibration.write(&folder.join("foreign.json")).unwrap();
}

fn pictures() -> Vec<PathBuf> {
    moco_infer::image_files(&root().join("examples/data/groceries/test")).unwrap()
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Folder of libmoco.so, which is built first: cargo does not build a shared library for another crate's tests.
pub(crate) fn library() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let program = std::env::current_exe().unwrap();
        let folder = program.parent().and_then(Path::parent).unwrap().to_owned();
        let profile: &[&str] = if cfg!(debug_assertions) { &[] } else { &["--release"] };
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let target = folder.parent().unwrap();
        let mut build = Command::new(cargo);
        // The same packages as `cargo xtask test` builds: others would be compiled again with other features.
        build
            .args(["build", "--quiet", "--workspace", "--exclude", "xtask"])
            .args(profile)
            .arg("--target-dir")
            .arg(target);
        success(build.current_dir(root()));
        assert!(folder.join("libmoco.so").is_file());
        // Programs ask for the name by which the library is installed.
        let link = folder.join("libmoco.so.0");
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink("libmoco.so", &link).unwrap();
        folder
    })
}

pub(crate) fn compile(compiler: &str, flags: &[&str], sources: &[&str], program: &Path) {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(compiler);
    command.args(flags).args(STRICT).args(SANITIZE).arg("-o").arg(program);
    command.arg("-I").arg(root().join("moco-ffi/include")).arg("-I").arg(root().join("bindings/cpp/include"));
    command.args(sources.iter().map(|s| tests.join(s)));
    command.arg("-L").arg(library()).arg("-lmoco").arg(format!("-Wl,-rpath,{}", library().display())).arg("-lm");
    success(&mut command);
}

fn run(program: &Path, folder: &Path) {
    success(Command::new(program).arg(folder));
}

fn success(command: &mut Command) -> String {
    // What ONNX Runtime keeps for the life of the process is not ours.
    let suppressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("abi/leaks.txt");
    command.env("LSAN_OPTIONS", format!("suppressions={}:print_suppressions=0", suppressions.display()));
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / ((dot(a, a) * dot(b, b)).sqrt() + 1e-30)
}
