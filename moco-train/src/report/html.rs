//! The page itself.

use std::fmt::Write;
use std::path::Path;

use super::plot::{Plot, svg};
use super::{Curves, Neighbours, ReportOptions};
use crate::Result;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#222;background:#fff}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}.plots{display:flex;flex-wrap:wrap;gap:12px}.plots svg{max-width:100%;height:auto}\
table{border-collapse:collapse}td,th{padding:2px 14px 2px 0;text-align:left;vertical-align:top}\
pre{background:#f5f5f5;padding:1rem;overflow:auto;font-size:13px}.warn{background:#fff3d6;padding:.5rem 1rem;margin:.4rem 0}\
.row{display:flex;gap:8px;align-items:flex-start;margin:6px 0;flex-wrap:wrap}figure{margin:0;width:84px;text-align:center;font-size:11px;overflow-wrap:anywhere}\
figure img{border:3px solid #ddd;max-width:74px}figure.query{margin-right:18px}figure.query img{border-color:#333}figure.same img{border-color:#2e8654}figure.other img{border-color:#c65826}";

/// Builds the page.
pub fn page(run: &Path, curves: &Curves, recipe: &str, options: &ReportOptions) -> Result<String> {
    let mut page = begin(run, "Training run");
    page.push_str(&summary(curves, options));
    page.push_str("<h2>Curves</h2>\n<div class=\"plots\">\n");
    for plot in plots(curves, options) {
        page.push_str(&svg(&plot)?);
    }
    page.push_str("</div>\n");
    if let Some(neighbours) = &options.neighbours {
        page.push_str(&pictures(neighbours));
    }
    let _ = write!(page, "<h2>Recipe</h2>\n<pre>{}</pre>\n</body></html>\n", escape(recipe));
    Ok(page)
}

/// The page up to its headline.
pub fn begin(run: &Path, what: &str) -> String {
    let name = run.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|| run.display().to_string());
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{what} {0}</h1>\n",
        escape(&name)
    )
}

fn summary(curves: &Curves, options: &ReportOptions) -> String {
    let last = curves.steps.last().expect("a run in which nothing was recorded is refused before");
    let mut rows = vec![
        ("steps".to_owned(), format!("{} ({:.1} epochs)", last.step, curves.epoch_of(last.step))),
        ("images seen".to_owned(), curves.steps.iter().map(|s| s.images as u64).sum::<u64>().to_string()),
    ];
    let tail = &curves.steps[curves.steps.len() - curves.steps.len().min(50)..];
    let mean = |f: fn(&crate::run::StepRecord) -> f64| tail.iter().map(f).sum::<f64>() / tail.len() as f64;
    let against = curves.chance().map(|c| format!(" (guessing: ln(K+1) = {c:.3})")).unwrap_or_default();
    rows.push(("loss, last steps".into(), format!("{:.3} nats{against}", mean(|s| s.loss))));
    rows.push(("(K+1)-way accuracy, last steps".into(), percent(mean(|s| s.acc1))));
    rows.push(("images a second, last steps".into(), format!("{:.0}", mean(|s| s.images_per_s))));
    if let Some(eval) = curves.evals.last() {
        rows.push((format!("{} accuracy", eval.metric), percent(eval.value)));
    }
    rows.extend(options.baselines.iter().map(|(name, value)| (format!("compare: {name}"), percent(*value))));
    let mut text = String::from("<table>\n");
    for (name, value) in rows {
        let _ = writeln!(text, "<tr><td>{}</td><td><b>{}</b></td></tr>", escape(&name), escape(&value));
    }
    text.push_str("</table>\n");
    if let Some(health) = curves.health.last() {
        let _ = writeln!(text, "<p>{}</p>", escape(&health.verdict));
        for warning in &health.warnings {
            let _ = writeln!(text, "<p class=\"warn\">{}</p>", escape(warning));
        }
    }
    text
}

fn plots<'a>(curves: &Curves, options: &ReportOptions) -> Vec<Plot<'a>> {
    let steps = |f: fn(&crate::run::StepRecord) -> f64| -> Vec<(f64, f64)> {
        curves.steps.iter().map(|s| (curves.epoch_of(s.step), f(s))).collect()
    };
    let health = |f: fn(&crate::health::HealthReport) -> f64| -> Vec<(f64, f64)> {
        curves.health.iter().map(|h| (curves.epoch_of(h.step), f(h))).collect()
    };
    let mut plots = vec![
        Plot {
            title: "Contrastive loss",
            unit: "nats",
            curves: vec![("loss", steps(|s| s.loss))],
            levels: curves.chance().map(|c| ("guessing: ln(K+1)".to_owned(), c)).into_iter().collect(),
            from_zero: false,
        },
        Plot {
            title: "Own key found among K+1",
            unit: "share of queries",
            curves: vec![("accuracy", steps(|s| s.acc1))],
            levels: vec![],
            from_zero: true,
        },
    ];
    if !curves.evals.is_empty() {
        let knn = curves.evals.iter().map(|e| (curves.epoch_of(e.step), e.value)).collect();
        plots.push(Plot {
            title: "kNN accuracy",
            unit: "share of images",
            curves: vec![("trained features", knn)],
            levels: options.baselines.clone(),
            from_zero: true,
        });
    }
    plots.push(Plot {
        title: "Similarity",
        unit: "cosine",
        curves: vec![("positives", steps(|s| s.pos_sim)), ("negatives", steps(|s| s.neg_sim))],
        levels: vec![],
        from_zero: true,
    });
    if let Some(last) = curves.health.last() {
        plots.push(Plot {
            title: "Spread of the embeddings",
            unit: "standard deviation",
            curves: vec![("over images", health(|h| h.feature_std))],
            levels: vec![("even on the sphere: 1/√d".into(), last.ideal_std)],
            from_zero: true,
        });
        plots.push(Plot {
            title: "Effective rank of the embeddings",
            unit: "dimensions",
            curves: vec![("effective rank", health(|h| h.effective_rank))],
            levels: vec![],
            from_zero: true,
        });
    }
    plots.push(Plot {
        title: "Learning rate",
        unit: "",
        curves: vec![("lr", steps(|s| s.lr))],
        levels: vec![],
        from_zero: true,
    });
    plots.push(Plot {
        title: "Speed",
        unit: "images a second",
        curves: vec![("images a second", steps(|s| s.images_per_s))],
        levels: vec![],
        from_zero: true,
    });
    plots
}

fn pictures(neighbours: &Neighbours) -> String {
    let mut text = String::from(
        "<h2>Nearest neighbours</h2>\n<p>Left an image, then the images whose features are nearest to its own (cosine \
         similarity); green where the class is the same, orange where it is another.</p>\n",
    );
    for query in &neighbours.queries {
        text.push_str("<div class=\"row\">");
        text.push_str(&figure("query", &query.png, &query.caption));
        for (png, caption, similarity, same) in &query.nearest {
            let class = match same {
                Some(true) => "same",
                Some(false) => "other",
                None => "",
            };
            text.push_str(&figure(class, png, &format!("{caption} {similarity:.2}")));
        }
        text.push_str("</div>\n");
    }
    text
}

fn figure(class: &str, png: &[u8], caption: &str) -> String {
    let (data, caption) = (base64(png), escape(caption));
    format!(
        "<figure class=\"{class}\"><img alt=\"{caption}\" src=\"data:image/png;base64,{data}\">\
         <figcaption>{caption}</figcaption></figure>"
    )
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, b| bits << 8 | u32::from(*b)) << (8 * (3 - group.len()));
        for i in 0..4 {
            let sextet = (bits >> (18 - 6 * i)) as usize & 63;
            text.push(if i <= group.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
