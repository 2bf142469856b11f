//! What is written down: figures by section, kept as they come.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::Scale;
use crate::stats;
use crate::usage::Machine;

/// The whole of `benchmark.json`.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Document {
    /// Of this layout.
    pub(crate) schema: u32,
    pub(crate) sections: BTreeMap<String, Section>,
}

/// One part of the benchmark.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Section {
    pub(crate) status: Status,
    /// When it began, in UTC.
    pub(crate) began: String,
    pub(crate) took_s: f64,
    pub(crate) quick: bool,
    pub(crate) surroundings: Surroundings,
    /// What was done, and with how much.
    pub(crate) notes: Vec<String>,
    pub(crate) figures: Vec<Figure>,
    pub(crate) curves: Vec<Curve>,
}

/// What the figures of a section depend on.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub(crate) struct Surroundings {
    pub(crate) machine: Machine,
    /// Program, version.
    pub(crate) versions: BTreeMap<String, String>,
    pub(crate) seed: u64,
}

/// How a section ended.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "why")]
pub(crate) enum Status {
    Measured,
    /// It was interrupted, or failed half-way: what it has is true.
    Partly(String),
    /// It has nothing.
    NotMeasured(String),
    #[default]
    Running,
}

/// Some runs of the same thing.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Figure {
    /// The row of a table: what was varied.
    pub(crate) case: String,
    /// The column.
    pub(crate) name: String,
    pub(crate) unit: String,
    /// Run by run, in order.
    pub(crate) values: Vec<f64>,
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// A line of a plot.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Curve {
    pub(crate) plot: String,
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Document {
    /// What earlier runs of the same scale wrote, so that sections can be measured one by one.
    pub(crate) fn read(path: &Path, scale: Scale) -> Document {
        let text = std::fs::read(path).unwrap_or_default();
        let mut document: Document = serde_json::from_slice(&text).unwrap_or_default();
        document.sections.retain(|_, section| section.quick == (scale == Scale::Quick));
        document.schema = 1;
        document
    }

    /// Writes a whole file or leaves the old one.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        let new = path.with_extension("json.new");
        std::fs::write(&new, text).context("write benchmark.json")?;
        std::fs::rename(&new, path).context("put benchmark.json in its place")
    }

    pub(crate) fn figure(&self, section: &str, case: &str, name: &str) -> Option<&Figure> {
        self.sections.get(section)?.figure(case, name)
    }
}

impl Section {
    /// One more run of a figure.
    pub(crate) fn add(&mut self, case: &str, name: &str, unit: &str, value: f64) {
        let known = self.figures.iter_mut().find(|figure| figure.case == case && figure.name == name);
        match known {
            Some(figure) => figure.values.push(value),
            None => self.figures.push(Figure {
                case: case.to_owned(),
                name: name.to_owned(),
                unit: unit.to_owned(),
                values: vec![value],
                median: value,
                min: value,
                max: value,
            }),
        }
        self.summarise(case, name);
    }

    /// `above` ÷ `below` of one case, pair by pair, as a figure of its own.
    pub(crate) fn ratio(&mut self, case: &str, name: &str, above: &str, below: &str) {
        self.ratio_of_cases(case, name, (case, above), (case, below));
    }

    /// The same over two cases.
    pub(crate) fn ratio_of_cases(
        &mut self,
        case: &str,
        name: &str,
        above: (&str, &str),
        below: (&str, &str),
    ) {
        let values = |(case, name)| self.figure(case, name).map(|figure| figure.values.clone());
        let (Some(above), Some(below)) = (values(above), values(below)) else { return };
        self.figures.retain(|figure| figure.case != case || figure.name != name);
        for value in stats::ratios(&above, &below) {
            self.add(case, name, "ratio", value);
        }
    }

    pub(crate) fn figure(&self, case: &str, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.case == case && figure.name == name)
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        if !self.notes.contains(&text) {
            self.notes.push(text);
        }
    }

    fn summarise(&mut self, case: &str, name: &str) {
        let known = self.figures.iter_mut().find(|figure| figure.case == case && figure.name == name);
        let Some(figure) = known else { return };
        if let (Some(median), Some((min, max))) =
            (stats::median(&figure.values), stats::extremes(&figure.values))
        {
            (figure.median, figure.min, figure.max) = (median, min, max);
        }
    }
}
