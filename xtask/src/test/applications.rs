//! The two applications of `bindings/cpp/examples`: built by CMake against the installed library, and run briefly on the
//! images of `examples/data`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::installed::{Installed, alone};
use crate::setup::Tools;
use crate::shell;

/// Small, so that a few seconds suffice; what the applications reach with their own settings stands in their README.
const DETECTION: [&str; 6] = ["--steps", "6", "--height", "96", "--width", "128"];

/// Builds both, trains with them, and compares what they say about the same images in different files.
pub fn run(tools: &Tools, installed: &Installed) -> Result<()> {
    shell::step("the applications");
    let work = shell::target()?.join("xtask-applications");
    shell::fresh_folder(&work)?;
    let build = work.join("cmake");
    let mut configure = Command::new(&tools.cmake);
    configure.arg("-S").arg(shell::root().join("bindings/cpp/examples")).arg("-B").arg(&build);
    configure.arg("-DCMAKE_BUILD_TYPE=Release");
    shell::run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", installed.prefix.display())))?;
    shell::run(Command::new(&tools.cmake).arg("--build").arg(&build).args(["--parallel", "2"]))?;
    blood_cells(&build.join("blood_cells"), installed, &work)?;
    nuclei(&build.join("nuclei"), installed, &work)
}

fn blood_cells(program: &Path, installed: &Installed, work: &Path) -> Result<()> {
    let data = shell::root().join("examples/data/blood_cells");
    let squares = work.join("blood_cells_tiles");
    let some: Vec<PathBuf> = files(&data.join("train/JPEGImages"))?.into_iter().take(16).collect();
    shell::run(alone(program).arg("tiles").arg("--out").arg(&squares).args(&some))?;
    let backbone = pretrain(installed, "blood_cells", &squares, work)?;
    let coco = work.join("test.json");
    voc_to_coco(&data.join("test/Annotations"), &coco)?;
    let model = work.join("blood_cells.safetensors");
    let drawn = work.join("drawn");
    let train = |test: &Path| {
        let mut command = alone(program);
        command.arg("train").arg("--backbone").arg(&backbone).arg("--model").arg(&model).args(DETECTION);
        command.arg("--train").arg(data.join("train")).arg("--test").arg(test);
        command
    };
    let from_voc = shell::capture(train(&data.join("test")).arg("--drawn").arg(&drawn))?;
    ensure!(from_voc.contains("ap50"), "blood_cells printed no average precision:\n{from_voc}");
    let from_coco = shell::capture(train(&coco).arg("--test-images").arg(data.join("test/JPEGImages")))?;
    let measures =
        |printed: &str| printed.lines().filter(|line| line.ends_with('%')).map(str::to_owned).collect::<Vec<_>>();
    ensure!(
        measures(&from_voc) == measures(&from_coco),
        "the same boxes from VOC and from COCO are measured differently:\n{from_voc}\n{from_coco}"
    );
    let picture = data.join("test/JPEGImages/BloodImage_00000.jpg");
    let again = work.join("again");
    let mut detect = alone(program);
    detect.arg("detect").arg("--model").arg(&model).arg("--drawn").arg(&again).arg(&picture);
    shell::run(&mut detect)?;
    same_file(&drawn.join("BloodImage_00000.png"), &again.join("BloodImage_00000.png"))?;

    let mut compare = alone(program);
    compare.arg("compare").arg("--backbone").arg(&backbone).args(DETECTION).args(["--labels", "0.1", "--seeds", "1"]);
    compare.arg("--train").arg(data.join("train")).arg("--test").arg(data.join("test"));
    table(&shell::capture(&mut compare)?)
}

fn nuclei(program: &Path, installed: &Installed, work: &Path) -> Result<()> {
    let data = shell::root().join("examples/data/nuclei");
    let squares = work.join("nuclei_tiles");
    shell::run(alone(program).arg("tiles").arg("--out").arg(&squares).args(files(&data.join("train/images"))?))?;
    let backbone = pretrain(installed, "nuclei", &squares, work)?;
    let model = work.join("nuclei.safetensors");
    let mut train = alone(program);
    train.arg("train").arg("--backbone").arg(&backbone).arg("--model").arg(&model);
    train.args(["--steps", "60", "--batch", "8", "--rate", "0.001"]);
    train.arg("--train").arg(data.join("train")).arg("--test").arg(data.join("test"));
    let printed = shell::capture(train.arg("--masks").arg(work.join("masks")))?;
    let dice: f64 = printed
        .lines()
        .find_map(|line| line.strip_prefix("Dice over all pixels")?.split_whitespace().nth(1)?.parse().ok())
        .with_context(|| format!("nuclei printed no Dice:\n{printed}"))?;
    ensure!(dice > 0.5, "after 60 steps the Dice of nuclei is {dice}");
    let (found, truth) = (files(&work.join("masks"))?.len(), files(&data.join("test/masks"))?.len());
    ensure!(found == truth, "{found} masks were written for {truth} pictures");

    let pictures: Vec<PathBuf> = files(&data.join("test/images"))?.into_iter().take(3).collect();
    let dicom = work.join("dicom");
    shell::run(alone(program).arg("wrap").args(["--bits", "12"]).arg("--out").arg(&dicom).args(&pictures))?;
    // The same values, spread over 8 and over 12 bits.
    let segment = |pictures: &[PathBuf], masks: &Path| {
        let mut segment = alone(program);
        segment.arg("segment").arg("--model").arg(&model).arg("--masks").arg(masks).args(["--window", "full"]);
        shell::capture(segment.args(pictures))
    };
    let (of_png, of_dicom) = (work.join("masks_of_png"), work.join("masks_of_dicom"));
    let said = segment(&pictures, &of_png)?;
    ensure!(said == segment(&files(&dicom)?, &of_dicom)?, "PNG and DICOM of the same pictures are marked differently");
    ensure!(said.lines().count() == 3, "segment printed:\n{said}");
    for mask in files(&of_png)? {
        same_file(&mask, &of_dicom.join(mask.file_name().expect("it is a file")))?;
    }

    let mut compare = alone(program);
    compare.arg("compare").arg("--backbone").arg(&backbone).args(["--steps", "2", "--size", "64"]);
    compare.args(["--labels", "0.1", "--seeds", "2"]);
    compare.arg("--train").arg(data.join("train")).arg("--test").arg(data.join("test"));
    table(&shell::capture(&mut compare)?)
}

/// An epoch by the application's recipe.
fn pretrain(installed: &Installed, name: &str, images: &Path, work: &Path) -> Result<PathBuf> {
    let run = work.join(format!("{name}_run"));
    let mut train = alone(&installed.prefix.join("bin/moco-train"));
    train
        .args(["pretrain", "--quiet", "--set", "optim.epochs=1", "--set", "method.queue=64"])
        .arg("--data")
        .arg(images);
    train.arg("--recipe").arg(shell::root().join(format!("examples/{name}.toml")));
    shell::run(train.arg("--out").arg(&run))?;
    Ok(run.join("backbone.safetensors"))
}

/// A header, a rule and a row for each start.
fn table(printed: &str) -> Result<()> {
    let rows: Vec<&str> = printed.lines().filter(|line| line.starts_with('|')).collect();
    let starts = |start: &str| rows.iter().filter(|row| row.contains(start)).count();
    ensure!(rows.len() == 4 && starts("| random |") == 1 && starts("| MoCo |") == 1, "no table:\n{printed}");
    Ok(())
}

/// The boxes of a folder of VOC files as one COCO file.
fn voc_to_coco(annotations: &Path, coco: &Path) -> Result<()> {
    let names = ["Platelets", "RBC", "WBC"];
    let (mut images, mut objects) = (Vec::new(), Vec::new());
    for (id, file) in files(annotations)?.iter().enumerate() {
        let xml = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = |inside: &str, tag: &str| -> Result<String> {
            let after =
                inside.split(&format!("<{tag}>")).nth(1).with_context(|| format!("no {tag} in {}", file.display()))?;
            Ok(after.split('<').next().unwrap_or_default().to_owned())
        };
        images.push(json!({"id": id, "file_name": text(&xml, "filename")?, "width": 320, "height": 240}));
        for object in xml.split("<object>").skip(1) {
            let number = |tag: &str| -> Result<f64> { Ok(text(object, tag)?.parse()?) };
            let (x, y) = (number("xmin")? - 1.0, number("ymin")? - 1.0);
            let (width, height) = (number("xmax")? - x, number("ymax")? - y);
            let name = text(object, "name")?;
            let category = names.iter().position(|n| *n == name).with_context(|| format!("the class {name} is new"))?;
            objects.push(json!({
                "id": objects.len(), "image_id": id, "category_id": category + 1, "iscrowd": 0,
                "bbox": [x, y, width, height], "area": width * height,
            }));
        }
    }
    let categories: Vec<_> = names.iter().enumerate().map(|(i, name)| json!({"id": i + 1, "name": name})).collect();
    let all = json!({"images": images, "annotations": objects, "categories": categories});
    std::fs::write(coco, all.to_string()).with_context(|| format!("cannot write {}", coco.display()))
}

fn same_file(a: &Path, b: &Path) -> Result<()> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    ensure!(read(a)? == read(b)?, "{} and {} differ", a.display(), b.display());
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "{} is empty", folder.display());
    Ok(files)
}
