//! The whole line on real images, with the programs and the library as a user gets them.

mod features;
mod summary;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::setup::{self, Tools};
use crate::{install, shell};
use summary::Summary;

/// Images, in `train` and `test`, each with a folder a class.
const IMAGES: &str = "examples/data/groceries";
/// How the backbone is trained on them.
const RECIPE: &str = "examples/groceries.toml";
/// Neighbours of the kNN accuracy: about a class's share of the 288 training images.
const NEIGHBOURS: &str = "20";
/// How much higher than both baselines the accuracy must be, of 1; two standard errors of a difference on 192 images
/// are about 0.1.
const MARGIN: f64 = 0.10;
/// Largest difference, relative to the largest feature, between ONNX Runtime and the engine that trained: both are
/// float32 with sums in another order, over at most a hundred layers.
const ENGINES_AGREE: f64 = 1e-4;

/// Where the demo writes.
#[derive(Args)]
pub struct Options {
    /// Folder for everything the demo makes; emptied first. Default: `demo` in cargo's target folder.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs it.
pub fn run(options: &Options) -> Result<()> {
    let begin = Instant::now();
    let out = match &options.out {
        Some(out) => std::path::absolute(out)?,
        None => shell::target()?.join("demo"),
    };
    let tools = setup::run()?;
    fresh_folder(&out)?;
    let demo =
        Demo { tools, prefix: out.join("prefix"), run: out.join("run"), images: shell::root().join(IMAGES), out };
    let mut summary = Summary::default();

    install::run(&demo.prefix)?;
    summary.made("programs, library, headers", &demo.prefix, "");
    demo.pretrain(&mut summary)?;
    let accuracies = demo.accuracies(&mut summary)?;
    demo.extract(&mut summary)?;
    demo.fine_tune(&mut summary)?;
    demo.report(&accuracies, &mut summary)?;
    summary.print(begin.elapsed());
    accuracies.judge()
}

struct Demo {
    tools: Tools,
    out: PathBuf,
    prefix: PathBuf,
    run: PathBuf,
    images: PathBuf,
}

/// kNN accuracies, 0 to 1.
struct Accuracies {
    trained: f64,
    untrained: f64,
    pixels: f64,
}

impl Accuracies {
    /// # Errors
    /// If the trained features are not clearly better than both baselines: then the demo has not shown anything.
    fn judge(&self) -> Result<()> {
        let best = self.untrained.max(self.pixels);
        // A NaN is no success either.
        let beats_both = self.trained >= best + MARGIN;
        if !beats_both {
            bail!(
                "the trained features do not clearly beat the baselines: kNN accuracy {:.1} % against {:.1} % (untrained) \
                 and {:.1} % (pixels), and {:.0} points more were expected",
                100.0 * self.trained,
                100.0 * self.untrained,
                100.0 * self.pixels,
                100.0 * MARGIN
            );
        }
        Ok(())
    }
}

impl Demo {
    fn program(&self, name: &str) -> Command {
        Command::new(self.prefix.join("bin").join(name))
    }

    fn backbone(&self) -> PathBuf {
        self.run.join("backbone.safetensors")
    }

    fn pretrain(&self, summary: &mut Summary) -> Result<()> {
        shell::step("pre-train MoCo v2 on the training images, without their labels");
        let begin = Instant::now();
        let mut command = self.program("moco-train");
        command.arg("pretrain").arg("--data").arg(&self.images);
        shell::run(command.arg("--recipe").arg(shell::root().join(RECIPE)).arg("--out").arg(&self.run))?;
        summary.made("training run", &self.run, &format!("{:.0} s", begin.elapsed().as_secs_f64()));
        summary.made("backbone with its card", &self.backbone(), "");
        Ok(())
    }

    fn accuracies(&self, summary: &mut Summary) -> Result<Accuracies> {
        shell::step("kNN accuracy on the test images");
        let mut command = self.program("moco-train");
        command.args(["eval", "knn", "--json", "--baselines", "--k", NEIGHBOURS]);
        command.arg("--backbone").arg(self.backbone()).arg("--data").arg(&self.images);
        let name = shell::describe(&command);
        let text = shell::capture(&mut command)?;
        let json: Value = serde_json::from_str(&text).with_context(|| format!("{name} printed no JSON: {text}"))?;
        let accuracy = |of: &str| {
            json["knn_top1"][of].as_f64().with_context(|| format!("{name} printed no accuracy of `{of}`: {text}"))
        };
        let accuracies = Accuracies {
            trained: accuracy("backbone")?,
            untrained: accuracy("untrained")?,
            pixels: accuracy("pixels")?,
        };
        for (name, value) in [
            ("kNN accuracy, trained features", accuracies.trained),
            ("kNN accuracy, untrained backbone", accuracies.untrained),
            ("kNN accuracy, raw pixels", accuracies.pixels),
        ] {
            println!("{name}: {:.1} %", 100.0 * value);
            summary.measured(name, &format!("{:.1} %", 100.0 * value));
        }
        Ok(accuracies)
    }

    fn extract(&self, summary: &mut Summary) -> Result<()> {
        shell::step("features of all images, by ONNX Runtime and by the engine that trained");
        let (ort, engine) = (self.out.join("features.npy"), self.out.join("features_engine.npy"));
        let mut command = self.program("moco-infer");
        shell::run(
            command.arg("embed").arg(&self.images).arg("--backbone").arg(self.backbone()).arg("--out").arg(&ort),
        )?;
        let mut command = self.program("moco-train");
        command.arg("embed").arg("--data").arg(&self.images).arg("--backbone").arg(self.backbone());
        shell::run(command.arg("--out").arg(&engine))?;
        let difference = features::compare(&ort, &engine)?;
        println!("largest difference: {difference}");
        summary.made("features of all images", &ort, &format!("{} × {}", difference.rows, difference.columns));
        summary.measured("ONNX Runtime against the training engine", &difference.to_string());
        let agree = difference.relative() <= ENGINES_AGREE;
        if !agree {
            bail!("ONNX Runtime and the training engine do not agree: {difference}; {ENGINES_AGREE:.0e} is expected");
        }
        Ok(())
    }

    fn fine_tune(&self, summary: &mut Summary) -> Result<()> {
        shell::step("a C++ program against the installed libmoco fits a linear head");
        let (source, build) = (shell::root().join("examples"), self.out.join("cpp"));
        let cmake = || Command::new(&self.tools.cmake);
        let mut configure = cmake();
        configure.arg("-S").arg(source).arg("-B").arg(&build).arg("-DCMAKE_BUILD_TYPE=Release");
        shell::run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", self.prefix.display())))?;
        shell::run(cmake().arg("--build").arg(&build))?;
        let head = self.out.join("head.safetensors");
        let mut program = Command::new(build.join("finetune"));
        program.arg(self.backbone()).arg(self.images.join("train")).arg(self.images.join("test")).arg(&head);
        let text = shell::capture(&mut program)?;
        print!("{text}");
        let line = text.lines().rfind(|l| l.contains("accuracy")).context("finetune printed no accuracy")?;
        summary.made("C++ program", &build.join("finetune"), "");
        summary.made("linear head", &head, "");
        summary.measured("linear head from C++", line);
        Ok(())
    }

    fn report(&self, accuracies: &Accuracies, summary: &mut Summary) -> Result<()> {
        shell::step("report");
        let page = self.out.join("report.html");
        let mut command = self.program("moco-train");
        command.arg("report").arg(&self.run).arg("--out").arg(&page).arg("--neighbours").arg(self.images.join("test"));
        command.arg("--baseline").arg(format!("untrained backbone={}", accuracies.untrained));
        shell::run(command.arg("--baseline").arg(format!("raw pixels={}", accuracies.pixels)))?;
        summary.made("report: curves and neighbours", &page, "open in a browser");
        Ok(())
    }
}

/// Empties the folder if the demo made it; leaves anything else alone.
fn fresh_folder(out: &Path) -> Result<()> {
    let mark = out.join(".moco-demo");
    let is_empty = || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if out.exists() && !is_empty() {
        if !mark.is_file() {
            bail!("{} holds something that is not from the demo; give another folder by --out", out.display());
        }
        std::fs::remove_dir_all(out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    std::fs::write(&mark, "made by `cargo xtask demo`, which empties this folder\n")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_are_hardly_better_fail_the_demo() {
        let with = |trained| Accuracies { trained, untrained: 0.26, pixels: 0.18 }.judge();
        assert!(with(0.40).is_ok());
        assert!(with(0.30).unwrap_err().to_string().contains("30.0 %"));
        assert!(with(f64::NAN).is_err());
    }

    #[test]
    fn a_folder_of_someone_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fresh_folder(folder.path()).unwrap();
        std::fs::write(folder.path().join("old"), "").unwrap();
        fresh_folder(folder.path()).unwrap();
        assert!(!folder.path().join("old").exists());
        std::fs::remove_file(folder.path().join(".moco-demo")).unwrap();
        std::fs::write(folder.path().join("theirs"), "").unwrap();
        assert!(fresh_folder(folder.path()).is_err());
        assert!(folder.path().join("theirs").exists());
    }
}
