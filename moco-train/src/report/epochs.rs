//! A fine-tuning as one HTML page: loss and measures over its epochs, the best of them class by class, its options.

use std::fmt::Write;
use std::path::Path;

use moco_finetune::session::EpochReport;

use super::html::{begin, escape};
use super::plot::{Plot, svg};
use crate::{Error, Result};

/// Writes the page of the fine-tuning in the folder `run` to `out`. `settings` are shown as they are.
///
/// # Errors
/// [`Error::Invalid`] if nothing was trained yet; [`Error::Model`] if the file cannot be written.
pub fn write_finetune(run: &Path, out: &Path, epochs: &[EpochReport], settings: &str) -> Result<()> {
    let Some(last) = epochs.last() else {
        return Err(Error::Invalid(format!("{}: no epoch has ended yet", run.display())));
    };
    let mut page = begin(run, "Fine-tuning");
    let best = epochs.iter().rev().find(|e| e.best).unwrap_or(last);
    let _ = writeln!(page, "<table>\n<tr><td>epochs</td><td><b>{}</b></td></tr>", last.epoch);
    if let Some(validation) = &best.validation {
        let _ = writeln!(page, "<tr><td>best epoch</td><td><b>{}</b></td></tr>", best.epoch);
        for (name, value) in &validation.metrics {
            let _ = writeln!(page, "<tr><td>{}</td><td><b>{value:.4}</b></td></tr>", escape(name));
        }
    }
    page.push_str("</table>\n<h2>Curves</h2>\n<div class=\"plots\">\n");
    for plot in plots(epochs) {
        page.push_str(&svg(&plot)?);
    }
    let _ = write!(page, "</div>\n<h2>Settings</h2>\n<pre>{}</pre>\n</body></html>\n", escape(settings));
    moco_models::write_atomically(out, |file| std::io::Write::write_all(file, page.as_bytes())).map_err(Error::from)
}

fn plots(epochs: &[EpochReport]) -> Vec<Plot<'_>> {
    let over = |f: &dyn Fn(&EpochReport) -> Option<f64>| -> Vec<(f64, f64)> {
        epochs.iter().filter_map(|e| Some((e.epoch as f64, f(e)?))).collect()
    };
    let plot = |title, unit, curves, from_zero| Plot { title, unit, curves, levels: vec![], from_zero };
    let mut plots = vec![plot("Training loss", "", vec![("mean of the epoch", over(&|e| Some(e.loss)))], true)];
    // Measures over all classes; those of single classes have a colon in their names.
    let validated = epochs.iter().find_map(|e| e.validation.as_ref());
    let names = validated.iter().flat_map(|v| &v.metrics).map(|(name, _)| name.as_str()).filter(|n| !n.contains(':'));
    let curves: Vec<(&str, Vec<(f64, f64)>)> =
        names.take(4).map(|name| (name, over(&|e| e.validation.as_ref()?.get(name)))).collect();
    if !curves.is_empty() {
        plots.push(plot("Validation", "", curves, true));
    }
    plots.push(plot("Learning rate of the head", "", vec![("lr", over(&|e| Some(e.lr)))], true));
    plots
}

#[cfg(test)]
mod tests {
    use moco_finetune::model::Evaluation;

    use super::*;

    #[test]
    fn the_page_shows_the_best_epoch_and_escapes_names() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("report.html");
        let epoch = |epoch, value, best| {
            let metrics = vec![("accuracy".into(), value), ("recall:<b>".into(), 0.5)];
            let validation = Some(Evaluation { images: 3, metrics });
            EpochReport { epoch, step: epoch * 2, loss: 1.0 / epoch as f64, lr: 0.1, validation, best }
        };
        write_finetune(
            folder.path(),
            &out,
            &[epoch(1, 0.25, true), epoch(2, 0.75, true), epoch(3, 0.5, false)],
            "a < b",
        )
        .unwrap();
        let page = std::fs::read_to_string(&out).unwrap();
        for part in ["<td>best epoch</td><td><b>2</b>", "0.7500", "recall:&lt;b&gt;", "a &lt; b", "<svg"] {
            assert!(page.contains(part), "{part}");
        }
        assert!(write_finetune(folder.path(), &out, &[], "").unwrap_err().to_string().contains("no epoch"));
    }
}
