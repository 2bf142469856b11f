//! The rules as they are tried live, and the queries of the dashboards.

use serde_json::Value;

use crate::files;

const RULES: &str = "helm/statecast/rules/statecast.rules.yaml";
const DASHBOARDS: &str = "helm/statecast/dashboards";
/// Grafana's, for an interval of 1 s: at least four scrapes.
const RATE_INTERVAL: &str = "10s";
const RANGE: &str = "5m";

/// What is rewritten, so that faults of seconds show.
const WINDOW: (&str, &str) = ("[5m]", "[10s]");

/// The rules file with short windows, and with `for: 0s`. The real durations are what `promtool test rules` is for.
pub fn live() -> String {
    let text = files::text(RULES);
    let (real, short) = WINDOW;
    assert!(text.contains(real), "{real} is not in {RULES}");
    let text = text.replace(real, short);
    let lines = text.lines().map(|line| match line.split_once("for: ") {
        Some((indent, _)) if indent.trim().is_empty() => format!("{indent}for: 0s\n"),
        _ => format!("{line}\n"),
    });
    lines.collect()
}

/// Names of all rules of a kind, `alert` or `record`.
pub fn names(kind: &str) -> Vec<String> {
    let file = files::yaml(RULES);
    let groups = file["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.filter_map(|rule| rule[kind].as_str().map(str::to_owned)).collect()
}

/// One query of a panel.
#[derive(Debug)]
pub struct Query {
    /// Dashboard and panel, and which of its queries.
    pub place: String,
    text: String,
}

impl Query {
    /// With the dashboard's variables filled in, as Grafana does it.
    pub fn of(&self, pipeline: &str) -> String {
        let filled = [
            ("$namespace", ".*"),
            ("$pipeline", pipeline),
            ("$__rate_interval", RATE_INTERVAL),
            ("$__range", RANGE),
        ]
        .into_iter()
        .fold(self.text.clone(), |text, (variable, value)| text.replace(variable, value));
        assert!(!filled.contains('$'), "{}: {filled}", self.place);
        filled
    }
}

/// Every query of every dashboard.
pub fn queries() -> Vec<Query> {
    let mut queries = Vec::new();
    for name in files::listed(DASHBOARDS, ".json") {
        let dashboard = files::json(&name);
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().into_iter().flatten();
            queries.extend(targets.enumerate().map(|(number, target): (usize, &Value)| Query {
                place: format!(
                    "{} / {} / {}",
                    dashboard["title"].as_str().unwrap(),
                    panel["title"].as_str().unwrap(),
                    number + 1
                ),
                text: target["expr"].as_str().unwrap().to_owned(),
            }));
        }
    }
    queries
}
