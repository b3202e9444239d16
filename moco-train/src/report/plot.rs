//! Line plots as inline SVG.

use plotters::prelude::*;

use crate::{Error, Result};

/// Points above which a curve is drawn as means of neighbouring points.
const MOST_POINTS: usize = 300;
const COLOURS: [RGBColor; 5] = [
    RGBColor(38, 99, 177),
    RGBColor(198, 88, 38),
    RGBColor(46, 134, 84),
    RGBColor(126, 76, 160),
    RGBColor(110, 110, 110),
];

/// A plot over epochs.
pub struct Plot<'a> {
    pub title: &'a str,
    pub unit: &'a str,
    /// Name and points (epoch, value).
    pub curves: Vec<(&'a str, Vec<(f64, f64)>)>,
    /// Dashed lines of constant value.
    pub levels: Vec<(String, f64)>,
    /// Whether the axis starts at 0.
    pub from_zero: bool,
}

/// Draws the plot; values that are not finite are left out.
///
/// # Errors
/// [`Error::Invalid`] if plotters fails, which means a defect here.
pub fn svg(plot: &Plot<'_>) -> Result<String> {
    let mut text = String::new();
    draw(plot, &mut text).map_err(|e| Error::Invalid(format!("plot `{}`: {e}", plot.title)))?;
    Ok(text)
}

fn draw(plot: &Plot<'_>, text: &mut String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let curves: Vec<(&str, Vec<(f64, f64)>)> = plot.curves.iter().map(|(n, points)| (*n, thin(points))).collect();
    let values = curves.iter().flat_map(|(_, p)| p.iter().map(|p| p.1)).chain(plot.levels.iter().map(|l| l.1));
    let (mut low, mut high) = values.fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        (low, high) = (0.0, 1.0);
    }
    let room = ((high - low) * 0.08).max(high.abs() * 0.02).max(1e-6);
    low = if plot.from_zero { 0f64.min(low) } else { low - room };
    let last = curves.iter().flat_map(|(_, p)| p.iter().map(|p| p.0)).fold(1e-6, f64::max);

    let root = SVGBackend::with_string(text, (560, 300)).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .caption(plot.title, ("sans-serif", 19))
        .margin(6)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..last, low..high + room)?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .y_desc(plot.unit)
        .light_line_style(TRANSPARENT)
        .bold_line_style(RGBColor(228, 228, 228))
        .axis_desc_style(("sans-serif", 14))
        .label_style(("sans-serif", 13))
        .x_labels(8)
        .y_labels(6)
        .draw()?;
    for (i, (name, points)) in curves.iter().enumerate() {
        let style = COLOURS[i % COLOURS.len()].stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style))?
            .label(*name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
        if points.len() <= 40 {
            chart.draw_series(points.iter().map(|p| Circle::new(*p, 3, style.filled())))?;
        }
    }
    for (i, (name, value)) in plot.levels.iter().enumerate().filter(|(_, (_, value))| value.is_finite()) {
        let style = COLOURS[(curves.len() + i) % COLOURS.len()].stroke_width(1);
        chart
            .draw_series(DashedLineSeries::new([(0.0, *value), (last, *value)], 6, 4, style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], style));
    }
    if curves.len() + plot.levels.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::MiddleRight)
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(210, 210, 210))
            .label_font(("sans-serif", 14))
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// At most [`MOST_POINTS`] points: each the mean of as many neighbours.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let finite: Vec<(f64, f64)> = points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
    let group = finite.len().div_ceil(MOST_POINTS).max(1);
    let mean = |group: &[(f64, f64)]| {
        let n = group.len() as f64;
        (group.iter().map(|p| p.0).sum::<f64>() / n, group.iter().map(|p| p.1).sum::<f64>() / n)
    };
    finite.chunks(group).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_shows_curves_and_levels() {
        let plot = Plot {
            title: "loss",
            unit: "nats",
            curves: vec![("loss", (0..5000).map(|i| (i as f64 / 10.0, 5.0 - i as f64 / 5000.0)).collect())],
            levels: vec![("ln(K+1)".into(), 5.5)],
            from_zero: false,
        };
        let svg = svg(&plot).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("ln(K+1)") && svg.contains("<polyline"));
        assert!(svg.len() < 60_000, "{} bytes for one curve", svg.len());
    }

    #[test]
    fn values_that_are_not_numbers_are_left_out() {
        let curves = vec![("loss", vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, f64::INFINITY)]), ("none", vec![])];
        let svg = svg(&Plot { title: "t", unit: "", curves, levels: vec![], from_zero: true }).unwrap();
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}
