//! The goals, and what was reached. None of them fails the run.

use crate::fill::Arrival;
use crate::plan::Plan;
use crate::plan::Scale;
use crate::sheet::{Document, Figure};
use crate::{cost, drain, growth, latency, start, stats, tax};
use drain::{Source, Variant};

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Goal {
    pub(crate) figure: String,
    /// In words, with its bound.
    pub(crate) goal: String,
    /// In words; nothing where it was not measured.
    pub(crate) reached: Option<String>,
    pub(crate) met: bool,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn new(figure: impl Into<String>, bound: Bound, unit: &str, values: Option<Vec<f64>>) -> Goal {
        let goal = match bound {
            Bound::AtLeast(least) => format!("≥ {} {unit}", number(least)),
            Bound::AtMost(most) => format!("≤ {} {unit}", number(most)),
        };
        let values = values.filter(|values| !values.is_empty());
        let median = values.as_deref().and_then(stats::median);
        let met = median.is_some_and(|median| match bound {
            Bound::AtLeast(least) => median >= least,
            Bound::AtMost(most) => median <= most,
        });
        let reached = values.zip(median).map(|(values, median)| {
            let runs = if values.len() == 1 { "1 run".to_owned() } else { format!("{} runs", values.len()) };
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            format!("{}{unit} ({runs})", number(median))
        });
        Goal { figure: figure.into(), goal: goal.trim().to_owned(), reached, met }
    }
}

/// With three significant digits, more where there is more before the point.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 10_000.0 => {
            let digits = format!("{:.0}", value.abs());
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            if value < 0.0 { format!("-{grouped}") } else { grouped }
        }
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// All of them, as far as they were measured.
pub(crate) fn all(document: &Document) -> Vec<Goal> {
    let mut goals = drains(document);
    goals.extend(costs(document));
    goals.extend(latencies(document));
    goals.extend(growths(document));
    goals.extend(taxes(document));
    for case in start::CASES {
        let values = document.figure(start::NAME, case, start::FIGURE).map(|figure| figure.values.clone());
        goals.push(Goal::new(format!("start to first confirm, {case}"), Bound::AtMost(500.0), "ms", values));
    }
    goals
}

/// In one line.
pub(crate) fn summary(document: &Document) -> String {
    let goals = all(document);
    let met = goals.iter().filter(|goal| goal.met).count();
    let measured = goals.iter().filter(|goal| goal.reached.is_some()).count();
    format!("goals met: {met} of {measured} measured, {} in all", goals.len())
}

fn values(figure: Option<&Figure>) -> Option<Vec<f64>> {
    figure.map(|figure| figure.values.clone())
}

fn drains(document: &Document) -> Vec<Goal> {
    let sources = [(Source::Poll, "poll, backlog"), (Source::Wal(Arrival::Burst), "wal, live")];
    let mut goals = Vec::new();
    for (source, name) in sources {
        let case = Variant::base(source, 0, 0).case();
        let ratio = values(document.figure(drain::NAME, &case, drain::RATIO));
        goals.push(Goal::new(
            format!("drain, relay ÷ composite limit, {name}"),
            Bound::AtLeast(0.95),
            "",
            ratio,
        ));
    }
    goals
}

fn costs(document: &Document) -> Vec<Goal> {
    let mut goals = Vec::new();
    for (case, idle) in [(cost::POLL, 1.0), (cost::WAL, 0.3)] {
        let relay = document.figure(cost::NAME, case, cost::CPU);
        let publisher = document.figure(cost::NAME, cost::PUBLISHER, cost::CPU);
        let more = relay.zip(publisher).map(|(relay, publisher)| {
            relay.values.iter().zip(&publisher.values).map(|(relay, publisher)| relay - publisher).collect()
        });
        let figure = format!("CPU per million above the bare publisher, {case}");
        goals.push(Goal::new(figure, Bound::AtMost(3.0), "s", more));
        let peak = values(document.figure(cost::NAME, case, cost::PEAK));
        goals.push(Goal::new(format!("peak memory, {case}"), Bound::AtMost(40.0), "MB", peak));
        let share = values(document.figure(cost::NAME, case, cost::IDLE));
        goals.push(Goal::new(format!("idle CPU of a core, {case}"), Bound::AtMost(idle), "%", share));
    }
    for (lanes, most) in [(2, 57.6), (4, 74.4)] {
        let case = Variant { lanes, ..Variant::base(Source::Poll, 0, 0) }.case();
        let peak = values(document.figure(drain::NAME, &case, drain::PEAK));
        goals.push(Goal::new(format!("peak memory, poll, {lanes} lanes"), Bound::AtMost(most), "MB", peak));
    }
    goals
}

fn latencies(document: &Document) -> Vec<Goal> {
    let p99 = |case: &str| document.figure(latency::NAME, case, "p99").map(|figure| figure.median);
    let mut goals = Vec::new();
    for (streams, rate, most) in [(true, 1_000, 3.0), (false, 1_000, 8.0), (true, 1, 3.0), (false, 1, 108.0)]
    {
        let rate = latency::per_second(rate);
        let case = latency::case(streams, &rate);
        let publisher = p99(&format!("bare publisher, {rate}: confirm"));
        for (from, what) in [("write", "confirm"), ("commit", latency::AFTER_COMMIT)] {
            let relay = p99(&format!("{case}: {what}"));
            let more = relay.zip(publisher).map(|(relay, publisher)| vec![relay - publisher]);
            let figure = format!("p99 {from} → confirm above the bare publisher's, {case}");
            goals.push(Goal::new(figure, Bound::AtMost(most), "ms", more));
        }
    }
    goals
}

fn growths(document: &Document) -> Vec<Goal> {
    let most = Plan::new(Scale::Full).settled.iter().copied().max().unwrap_or(0);
    let case = growth::settled_case(most);
    [(growth::RATE_RATIO, "drain"), (growth::LATENCY_RATIO, "latency")]
        .map(|(name, what)| {
            let ratio = values(document.figure(growth::NAME, &case, name));
            Goal::new(format!("{what} with {case} ÷ with none"), Bound::AtLeast(0.95), "", ratio)
        })
        .into()
}

fn taxes(document: &Document) -> Vec<Goal> {
    [("event and relay ÷ neither", "poll"), ("event and streaming relay ÷ neither", "wal")]
        .map(|(name, relay)| {
            let ratio = values(document.figure(tax::NAME, tax::CASE, name));
            let tax = ratio.map(|ratio| ratio.iter().map(|ratio| (1.0 - ratio) * 100.0).collect());
            Goal::new(
                format!("tax on the application, event and relay ({relay})"),
                Bound::AtMost(10.0),
                "%",
                tax,
            )
        })
        .into()
}
