//! Alerts and recording rules: the metrics exist, each alert has an entry in the runbook and a test in which it fires.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::{files, metrics};

const RULES: &str = "helm/statecast/rules/statecast.rules.yaml";
const TESTS: &str = "helm/statecast/rules/statecast.test.yaml";
const RUNBOOK: &str = "docs/runbook.md";
/// The parts of an entry, in their order.
const PARTS: [&str; 4] = ["**Meaning.** ", "**Impact.** ", "**Diagnosis.**", "**Remedy.** "];

fn rules() -> Vec<Value> {
    let file = files::yaml(RULES);
    let groups = file["groups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
}

/// Names of the alerts, in their order.
pub(crate) fn alerts() -> Vec<String> {
    rules().iter().filter_map(|rule| rule["alert"].as_str().map(str::to_owned)).collect()
}

/// Entries of the runbook by name, in their order, and what stands before the first.
pub(crate) fn runbook() -> (String, Vec<(String, String)>) {
    let text = files::text(RUNBOOK);
    let mut parts = text.split("\n## ");
    let introduction = parts.next().unwrap().split_once('\n').unwrap().1.to_owned();
    let entries = parts.map(|part| {
        let (name, entry) = part.split_once('\n').unwrap();
        (name.to_owned(), entry.to_owned())
    });
    (introduction, entries.collect())
}

#[test]
fn rules_ask_for_metrics_that_exist() {
    let rules = rules();
    let recorded: Vec<String> =
        rules.iter().filter_map(|rule| rule["record"].as_str().map(str::to_owned)).collect();
    assert!(recorded.len() >= 5);
    for rule in &rules {
        let name = rule["alert"].as_str().or(rule["record"].as_str()).unwrap();
        let query = rule["expr"].as_str().unwrap();
        assert!(!metrics::asked(query).is_empty(), "{name}");
        metrics::check(name, query, &recorded);
        // A pipeline is told apart by its name, the job and the namespace; recorded ones are so already.
        let parts = query.contains("by (namespace, job, pipeline") || query.contains("pipeline:");
        assert!(parts, "{name} mixes pipelines");
    }
}

#[test]
fn each_alert_says_what_is_wrong_and_where_to_read_on() {
    for rule in rules().iter().filter(|rule| rule["alert"].is_string()) {
        let name = rule["alert"].as_str().unwrap();
        assert!(
            ["info", "warning", "critical"].contains(&rule["labels"]["severity"].as_str().unwrap()),
            "{name}"
        );
        let note = |key: &str| rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name}: {key}"));
        assert!(note("summary").starts_with("Pipeline {{ $labels.pipeline }}: "), "{name}");
        assert!(note("description").len() > 20, "{name}");
        assert_eq!(note("runbook"), format!("{RUNBOOK}#{}", name.to_lowercase()));
    }
}

#[test]
fn the_runbook_has_an_entry_for_each_alert() {
    let (introduction, entries) = runbook();
    assert!(introduction.contains("/ready"));
    let names: Vec<&String> = entries.iter().map(|(name, _)| name).collect();
    assert_eq!(names, alerts().iter().collect::<Vec<_>>(), "entries stand in the order of the rules");
    for (name, entry) in &entries {
        let places: Vec<usize> =
            PARTS.iter().map(|part| entry.find(part).unwrap_or_else(|| panic!("{name}: {part}"))).collect();
        assert!(places.is_sorted(), "{name}");
        let diagnosis = &entry[places[2]..places[3]];
        assert!(diagnosis.contains("```sh\n") || diagnosis.contains("```sql\n"), "{name}: no command");
    }
}

#[test]
fn each_alert_fires_in_a_test_and_is_silent_when_all_is_well() {
    let file = files::yaml(TESTS);
    let tests = file["tests"].as_array().unwrap();
    let mut fires: BTreeMap<&str, BTreeSet<bool>> = BTreeMap::new();
    for test in tests {
        for case in test["alert_rule_test"].as_array().into_iter().flatten() {
            let alert = case["alertname"].as_str().unwrap();
            fires.entry(alert).or_default().insert(!case["exp_alerts"].as_array().unwrap().is_empty());
        }
    }
    let well = tests[0]["alert_rule_test"].as_array().unwrap();
    for alert in alerts() {
        assert_eq!(fires[alert.as_str()].len(), 2, "{alert} must fire in one test and be silent in one");
        let silent = well.iter().filter(|case| case["alertname"] == alert.as_str());
        assert!(
            silent.clone().count() >= 2
                && silent.clone().all(|case| case["exp_alerts"] == serde_json::json!([]))
        );
    }
}
