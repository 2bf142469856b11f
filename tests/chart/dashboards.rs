//! The dashboards: whole, legible, and of metrics that exist. `UPDATE_DOCS=1 cargo test --test chart the_runbook` writes the
//! one that holds the runbook.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::{files, metrics, rules};

const FOLDER: &str = "helm/statecast/dashboards";
const RUNBOOK: &str = "helm/statecast/dashboards/statecast-runbook.json";

fn panels(dashboard: &Value) -> &Vec<Value> {
    dashboard["panels"].as_array().unwrap()
}

/// All but the runbook.
fn dashboards() -> Vec<(String, Value)> {
    let names = files::listed(FOLDER, ".json").into_iter().filter(|name| name != RUNBOOK);
    let all: Vec<(String, Value)> = names.map(|name| (name.clone(), files::json(&name))).collect();
    assert!(all.len() >= 3);
    all
}

#[test]
fn each_has_a_name_of_its_own_and_the_same_variables() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap();
        assert_eq!(name, format!("{FOLDER}/{uid}.json"));
        assert!(uids.insert(uid.to_owned()), "{name}");
        assert!(dashboard["title"].as_str().unwrap().starts_with("Statecast / "), "{name}");
        let variables: Vec<&Value> = dashboard["templating"]["list"]
            .as_array()
            .unwrap()
            .iter()
            .map(|variable| &variable["name"])
            .collect();
        assert_eq!(variables, ["datasource", "namespace", "pipeline"], "{name}");
    }
}

#[test]
fn each_panel_is_legible() {
    for (name, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        let mut cells = BTreeSet::new();
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            let place = format!("{name}: {title}");
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{place}: its id is not its own");
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24 && w > 0 && h > 0, "{place}: beyond the edge");
            for cell in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(cells.insert(cell), "{place}: lies over another");
            }
            if panel["type"] == "row" {
                continue;
            }
            assert!(panel["description"].as_str().unwrap().len() > 10, "{place}: says nothing");
            let defaults = &panel["fieldConfig"]["defaults"];
            let heatmap = panel["type"] == "heatmap";
            let unit = if heatmap { &panel["options"]["yAxis"]["unit"] } else { &defaults["unit"] };
            assert!(unit.is_string(), "{place}: no unit");
            assert!(heatmap || defaults["thresholds"]["steps"].is_array(), "{place}: no thresholds");
        }
    }
}

#[test]
fn each_query_asks_for_metrics_that_exist_of_one_pipeline() {
    for (name, dashboard) in dashboards() {
        let mut queries = 0;
        for panel in panels(&dashboard).iter().filter(|panel| panel["type"] != "row") {
            let place = format!("{name}: {}", panel["title"]);
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{place}");
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"]["uid"], "${datasource}", "{place}");
                let query = target["expr"].as_str().unwrap();
                metrics::check(&place, query, &[]);
                let asked = metrics::asked(query).len().max(1);
                let told = query.matches("{namespace=~\"$namespace\", pipeline=~\"$pipeline\"").count();
                assert_eq!(told, asked, "{place}: not of the chosen pipeline alone");
                assert_eq!(query.matches('(').count(), query.matches(')').count(), "{place}");
                queries += 1;
            }
        }
        assert!(queries >= 15, "{name}");
    }
}

#[test]
fn every_metric_is_shown() {
    let mut shown = BTreeSet::new();
    for (_, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            let targets = panel["targets"].as_array().into_iter().flatten();
            shown.extend(targets.flat_map(|target| metrics::asked(target["expr"].as_str().unwrap())));
        }
    }
    let hidden = metrics::exposed().into_iter().filter(|(name, kind)| {
        let parts: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        !parts.iter().any(|part| shown.contains(&format!("{name}{part}")))
    });
    let hidden: Vec<String> = hidden.map(|(name, _)| name).collect();
    // Nobody can tell from them whether a process is well.
    assert_eq!(hidden, ["process_threads", "process_virtual_memory_bytes"]);
}

#[test]
fn links_to_the_runbook_lead_to_the_alert() {
    let alerts = rules::alerts();
    let mut linked = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            for link in panel["links"].as_array().into_iter().flatten() {
                let alert = link["title"].as_str().unwrap();
                let id = alerts
                    .iter()
                    .position(|known| known == alert)
                    .unwrap_or_else(|| panic!("{name}: {alert}"))
                    + 2;
                let url = link["url"].as_str().unwrap();
                assert!(
                    url.starts_with("/d/statecast-runbook?") && url.ends_with(&format!("viewPanel={id}")),
                    "{name}: {url}"
                );
                linked.insert(alert.to_owned());
            }
        }
    }
    let unlinked: Vec<&String> = alerts.iter().filter(|alert| !linked.contains(*alert)).collect();
    // Nothing to plot: the table of processes shows versions.
    assert_eq!(unlinked, ["StatecastVersionsDiffer"]);
}

#[test]
fn the_runbook_is_shown_as_it_is_written() {
    let (introduction, entries) = rules::runbook();
    let names: Vec<String> = entries.iter().map(|(name, _)| name.to_lowercase()).collect();
    let panel = |id: usize, title: &str, text: &str, [x, y, w, h]: [usize; 4]| {
        let content = with_links(text, &names);
        json!({ "id": id, "type": "text", "title": title, "datasource": null,
                "gridPos": { "x": x, "y": y, "w": w, "h": h }, "options": { "mode": "markdown", "content": content.trim() } })
    };
    let mut panels = vec![panel(1, "First look", &introduction, [0, 0, 24, 11])];
    for (index, (name, entry)) in entries.iter().enumerate() {
        panels.push(panel(index + 2, name, entry, [index % 2 * 12, 11 + index / 2 * 14, 12, 14]));
    }
    let mut dashboard = files::json(RUNBOOK);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        dashboard["panels"] = panels.into();
        std::fs::write(files::path(RUNBOOK), serde_json::to_string_pretty(&dashboard).unwrap() + "\n")
            .unwrap();
    } else {
        assert!(
            dashboard["panels"] == Value::from(panels),
            "{RUNBOOK} is not docs/runbook.md: run this test with UPDATE_DOCS=1"
        );
    }
}

/// Links to entries lead to their panels; links to other files, which Grafana does not have, are their text.
fn with_links(text: &str, names: &[String]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, label, target, after)) = next_link(rest) {
        out.push_str(before);
        match target.strip_prefix('#').and_then(|anchor| names.iter().position(|name| name == anchor)) {
            Some(index) => out.push_str(&format!("[{label}](/d/statecast-runbook?viewPanel={})", index + 2)),
            None => {
                assert!(!target.starts_with('#'), "there is no entry {target}");
                out.push_str(label);
            }
        }
        rest = after;
    }
    out + rest
}

/// What stands before the first `[label](target)`, its two parts, and what stands behind it.
fn next_link(text: &str) -> Option<(&str, &str, &str, &str)> {
    let middle = text.find("](")?;
    let start = text[..middle].rfind('[')?;
    let end = middle + text[middle..].find(')')?;
    Some((&text[..start], &text[start + 1..middle], &text[middle + 2..end], &text[end + 1..]))
}
