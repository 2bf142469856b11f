//! Plots as SVG: latency curves, and drain rates beside their limits.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::sheet::{Document, Section};
use crate::{drain, latency};

const SIZE: (u32, u32) = (900, 480);
const FONT: &str = "sans-serif";
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(90, 90, 90),
];

/// A file that was written.
#[derive(Debug)]
pub(crate) struct Plot {
    pub(crate) section: &'static str,
    pub(crate) title: String,
    pub(crate) file: String,
}

/// Writes what there is something to draw for.
pub(crate) fn write(document: &Document, dir: &Path) -> Result<Vec<Plot>> {
    std::fs::create_dir_all(dir)?;
    let mut plots = Vec::new();
    if let Some(section) = document.sections.get(drain::NAME) {
        for (prefix, file) in [("poll", "drain-poll.svg"), ("wal", "drain-wal.svg")] {
            let title = format!("Drain by {prefix}, events per second: relay and composite limit");
            if bars(section, prefix, &title, &dir.join(file)).map_err(|error| drawing(&*error))? {
                plots.push(Plot { section: drain::NAME, title, file: file.to_owned() });
            }
        }
    }
    if let Some(section) = document.sections.get(latency::NAME) {
        for (prefix, file) in [("poll", "latency-poll.svg"), ("wal", "latency-wal.svg")] {
            let title = format!("Write to confirm by {prefix}, milliseconds by percentile");
            if curves(section, prefix, &title, &dir.join(file)).map_err(|error| drawing(&*error))? {
                plots.push(Plot { section: latency::NAME, title, file: file.to_owned() });
            }
        }
    }
    Ok(plots)
}

fn drawing(error: &dyn std::error::Error) -> anyhow::Error {
    anyhow!("cannot draw a plot: {error}")
}

/// Two bars for each case: what the relay reached, and what the machine allows.
fn bars(
    section: &Section,
    prefix: &str,
    title: &str,
    path: &Path,
) -> Result<bool, Box<dyn std::error::Error>> {
    let cases: Vec<(&str, f64, f64)> = section
        .figures
        .iter()
        .filter(|figure| figure.name == drain::RELAY && figure.case.starts_with(prefix))
        .filter_map(|relay| {
            let limit = section.figure(&relay.case, drain::COMPOSITE)?;
            Some((relay.case.as_str(), relay.median, limit.median))
        })
        .collect();
    let Some(most) = cases.iter().map(|(_, relay, limit)| relay.max(*limit)).max_by(f64::total_cmp) else {
        return Ok(false);
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(330)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..cases.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(8)
        .x_max_light_lines(1)
        .x_label_formatter(&|rate| rate.to_string())
        .draw()?;
    for (series, name) in [(0, drain::RELAY), (1, drain::COMPOSITE)] {
        let colour = COLOURS[series];
        let boxes = cases.iter().enumerate().map(|(at, (_, relay, limit))| {
            // The first case on top.
            let below = (cases.len() - 1 - at) as f64 + if series == 0 { 0.48 } else { 0.12 };
            let value = if series == 0 { *relay } else { *limit };
            Rectangle::new([(0.0, below), (value, below + 0.34)], colour.filled())
        });
        let legend = chart.draw_series(boxes)?.label(name);
        legend.legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    let area = chart.plotting_area();
    for (at, (case, _, _)) in cases.iter().enumerate() {
        let (_, y) = area.map_coordinate(&(0.0, (cases.len() - 1 - at) as f64 + 0.6));
        root.draw(&Text::new((*case).to_owned(), (14, y), (FONT, 13)))?;
    }
    root.present()?;
    Ok(true)
}

/// One line for each rate; percentiles are stretched towards the tail, where things happen.
fn curves(
    section: &Section,
    prefix: &str,
    title: &str,
    path: &Path,
) -> Result<bool, Box<dyn std::error::Error>> {
    let wanted = |name: &str| name.starts_with(prefix) || name.starts_with("bare publisher, 1000");
    let curves: Vec<_> = section.curves.iter().filter(|c| wanted(&c.name) && !c.points.is_empty()).collect();
    let milliseconds = || curves.iter().flat_map(|curve| curve.points.iter().map(|(_, ms)| ms.max(0.01)));
    let (Some(least), Some(most)) =
        (milliseconds().min_by(f64::total_cmp), milliseconds().max_by(f64::total_cmp))
    else {
        return Ok(false);
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 18))
        .margin(10)
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..4.1, (least..most * 1.2).log_scale())?;
    chart
        .configure_mesh()
        .x_labels(5)
        .x_label_formatter(&|nines| format!("{}", 100.0 - 10f64.powf(2.0 - nines)))
        .y_label_formatter(&|ms| ms.to_string())
        .x_desc("percentile")
        .y_desc("ms")
        .draw()?;
    for (at, curve) in curves.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let points = curve.points.iter().map(|(percentile, ms)| (nines(*percentile), ms.max(0.01)));
        let line = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        line.label(curve.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(true)
}

/// 0 → 0, 90 → 1, 99 → 2, 99.9 → 3; the last stands where the plot ends.
pub(crate) fn nines(percentile: f64) -> f64 {
    if percentile >= 100.0 { 4.1 } else { 2.0 - (100.0 - percentile).log10() }
}
