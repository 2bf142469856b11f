//! `benchmark.md`: goals, then one table per section, with what stands in `benchmark.json` and nothing else.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use crate::goals::{self, number};
use crate::plan::Scale;
use crate::sheet::{Document, Figure, Section, Status, Surroundings};
use crate::{cost, drain, growth, keys, latency, plot, servers, start, tax};

/// In this order, with a title.
const SECTIONS: [(&str, &str); 7] = [
    (drain::NAME, "Drain"),
    (keys::NAME, "Strict order with few keys"),
    (latency::NAME, "Latency"),
    (cost::NAME, "Cost"),
    (tax::NAME, "Tax on the application"),
    (growth::NAME, "Growth"),
    (start::NAME, "Start"),
];

/// Writes `benchmark.md` and the plots.
pub(crate) fn write(document: &Document, out: &Path, scale: Scale) -> Result<()> {
    let plots = plot::write(document, &out.join("benchmark"))?;
    let text = text(document, &plots, scale)?;
    std::fs::write(out.join("benchmark.md"), text).context("write benchmark.md")
}

pub(crate) fn text(document: &Document, plots: &[plot::Plot], scale: Scale) -> Result<String> {
    let mut text = String::from("# Benchmark\n\n");
    text.push_str(
        "`make bench` writes this page, [`benchmark.json`](benchmark.json) and the plots. Servers are private, on loopback, and share the machine with the relay and \
         the load. Figures are medians, in parentheses the least and the most of the runs; what is compared was run in turns (A B A B). No run is left out.\n\n",
    );
    if scale == Scale::Quick {
        text.push_str(
            "**This is a quick run (`QUICK=1`): far too short for its figures to mean anything.**\n\n",
        );
    }
    surroundings(&mut text, document)?;
    goals_table(&mut text, document)?;
    for (name, title) in SECTIONS {
        writeln!(text, "## {title}\n")?;
        match document.sections.get(name) {
            None => writeln!(text, "Not measured: the section was not run.\n")?,
            Some(section) => {
                section_text(&mut text, section)?;
                for plot in plots.iter().filter(|plot| plot.section == name) {
                    writeln!(text, "![{}](benchmark/{})\n", plot.title, plot.file)?;
                }
            }
        }
    }
    Ok(text.trim_end().to_owned() + "\n")
}

/// Those of the newest section; a section that differs says so itself.
fn newest(document: &Document) -> Option<&Surroundings> {
    document.sections.values().max_by(|a, b| a.began.cmp(&b.began)).map(|section| &section.surroundings)
}

fn surroundings(text: &mut String, document: &Document) -> Result<()> {
    let Some(surroundings) = newest(document) else { return Ok(()) };
    write!(text, "{}. ", in_words(surroundings))?;
    let settings = servers::SETTINGS.map(|(name, value)| format!("`{name} = {value}`"));
    writeln!(
        text,
        "PostgreSQL: `fsync = on`, `wal_level = logical`, {}; otherwise its defaults.\n",
        settings.join(", ")
    )?;
    for (name, title) in SECTIONS {
        let Some(section) = document.sections.get(name) else { continue };
        if section.surroundings != *surroundings {
            writeln!(text, "{title} was measured elsewhere: {}.\n", in_words(&section.surroundings))?;
        }
    }
    Ok(())
}

fn in_words(surroundings: &Surroundings) -> String {
    let machine = &surroundings.machine;
    let versions: Vec<String> =
        surroundings.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    format!(
        "{} cores ({}), {} GB, Linux {}; {}; seed {}",
        machine.cores,
        machine.processor,
        machine.memory_gb,
        machine.kernel,
        versions.join(", "),
        surroundings.seed
    )
}

fn goals_table(text: &mut String, document: &Document) -> Result<()> {
    text.push_str("## Goals\n\n| figure | goal | reached | met |\n|---|---|---|---|\n");
    for goal in goals::all(document) {
        let (reached, met) = match &goal.reached {
            Some(reached) => (reached.as_str(), if goal.met { "yes" } else { "**no**" }),
            None => ("not measured", "–"),
        };
        writeln!(text, "| {} | {} | {reached} | {met} |", goal.figure, goal.goal)?;
    }
    text.push('\n');
    Ok(())
}

fn section_text(text: &mut String, section: &Section) -> Result<()> {
    match &section.status {
        Status::Measured => {}
        Status::Running => writeln!(text, "**Not finished.**\n")?,
        Status::Partly(why) => {
            writeln!(text, "**Not complete: {why}.** What follows was measured before.\n")?
        }
        Status::NotMeasured(why) => writeln!(text, "Not measured: {why}.\n")?,
    }
    for note in &section.notes {
        writeln!(text, "{note}\n")?;
    }
    for group in groups(&section.figures) {
        table(text, &group)?;
    }
    writeln!(text, "Measured {} in {:.0} s.\n", section.began, section.took_s)?;
    Ok(())
}

/// Cases with the same columns, in the order in which they came: one table each.
fn groups(figures: &[Figure]) -> Vec<Vec<&Figure>> {
    let mut cases: Vec<(&str, Vec<&Figure>)> = Vec::new();
    for figure in figures {
        match cases.iter_mut().find(|(case, _)| *case == figure.case) {
            Some((_, known)) => known.push(figure),
            None => cases.push((&figure.case, vec![figure])),
        }
    }
    let columns = |figures: &[&Figure]| figures.iter().map(|figure| figure.name.clone()).collect::<Vec<_>>();
    let mut groups: Vec<(Vec<String>, Vec<&Figure>)> = Vec::new();
    for (_, figures) in cases {
        let mine = columns(&figures);
        // A case may lack a column, such as the ratio to itself.
        let fits = |theirs: &[String]| {
            mine.iter().all(|name| theirs.contains(name)) || theirs.iter().all(|name| mine.contains(name))
        };
        match groups.iter_mut().find(|(theirs, _)| fits(theirs)) {
            Some((theirs, known)) => {
                known.extend(figures);
                if mine.len() > theirs.len() {
                    *theirs = mine;
                }
            }
            None => groups.push((mine, figures)),
        }
    }
    groups.into_iter().map(|(_, figures)| figures).collect()
}

/// A row for each case, a column for each figure; with more columns than cases the other way round.
fn table(text: &mut String, figures: &[&Figure]) -> Result<()> {
    let mut rows: Vec<&str> = Vec::new();
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for figure in figures {
        if !rows.contains(&figure.case.as_str()) {
            rows.push(&figure.case);
        }
        if !columns.iter().any(|(name, _)| *name == figure.name) {
            columns.push((&figure.name, &figure.unit));
        }
    }
    let title = |(name, unit): &(&str, &str)| match *unit {
        "" | "ratio" => (*name).to_owned(),
        unit => format!("{name}, {unit}"),
    };
    let cell = |row: &str, column: &str| {
        figures
            .iter()
            .find(|figure| figure.case == row && figure.name == column)
            .map_or("–".to_owned(), |f| value(f))
    };
    if rows.len() == 1 {
        writeln!(text, "| {} | |\n|---|---|", rows[0])?;
        for column in &columns {
            writeln!(text, "| {} | {} |", title(column), cell(rows[0], column.0))?;
        }
    } else {
        let titles: Vec<String> = columns.iter().map(title).collect();
        writeln!(text, "| | {} |\n|---|{}", titles.join(" | "), "---|".repeat(columns.len()))?;
        for row in rows {
            let cells: Vec<String> = columns.iter().map(|(name, _)| cell(row, name)).collect();
            writeln!(text, "| {row} | {} |", cells.join(" | "))?;
        }
    }
    text.push('\n');
    Ok(())
}

fn value(figure: &Figure) -> String {
    let median = number(figure.median);
    if figure.values.len() < 2 {
        return median;
    }
    format!("{median} ({}–{})", number(figure.min), number(figure.max))
}
