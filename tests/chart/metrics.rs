//! Which metrics there are, and which a query asks for.

use std::collections::BTreeMap;

/// Names and kinds of all metrics that the program exposes.
pub(crate) fn exposed() -> BTreeMap<String, String> {
    let reference = statecast::metrics::reference();
    let rows = reference.lines().skip(2).map(|row| {
        let mut cells = row.split('|').map(str::trim).skip(1);
        (cells.next().unwrap().trim_matches('`').to_owned(), cells.next().unwrap().to_owned())
    });
    let exposed: BTreeMap<String, String> = rows.collect();
    assert_eq!(exposed["statecast_leader"], "gauge");
    exposed
}

/// The metrics in a query that are Statecast's own, the process's, or made by a recording rule.
pub(crate) fn asked(query: &str) -> Vec<String> {
    // Texts in quotes are values of labels.
    let outside: String = query.split('"').step_by(2).collect::<Vec<_>>().join(" ");
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    outside
        .split(|c| !of_a_name(c))
        .filter(|word| ["statecast_", "process_", "pipeline:"].iter().any(|prefix| word.starts_with(prefix)))
        .map(str::to_owned)
        .collect()
}

/// Panics unless each metric in `query` exists and is asked for as its kind allows.
pub(crate) fn check(place: &str, query: &str, recorded: &[String]) {
    let exposed = exposed();
    let names = asked(query);
    for name in &names {
        let kind = |name: &str| exposed.get(name).map(String::as_str);
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        let plain = kind(name).is_some_and(|kind| kind != "histogram");
        let of_histogram = base.and_then(kind) == Some("histogram");
        assert!(plain || of_histogram || recorded.contains(name), "{place}: there is no metric {name}");
        if kind(name) == Some("counter") {
            let counted = ["rate(", "increase("].iter().any(|of| query.contains(&format!("{of}{name}")));
            assert!(counted, "{place}: {name} is a counter: only its rate or increase says something");
        }
    }
}

#[test]
fn names_are_found_in_queries() {
    let query = "histogram_quantile(0.5, sum by (le) (rate(statecast_a_seconds_bucket{pipeline=\"statecast_x\"}[5m]))) > pipeline:b:max";
    assert_eq!(asked(query), ["statecast_a_seconds_bucket", "pipeline:b:max"]);
    let refused = |query: &str| std::panic::catch_unwind(|| check("test", query, &[])).is_err();
    assert!(!refused("max(statecast_leader) and rate(statecast_recorded_to_confirm_seconds_sum[1m])"));
    assert!(refused("statecast_leaders"));
    assert!(refused("statecast_leader_count"));
    assert!(refused("statecast_events_confirmed_total"));
    assert!(refused("pipeline:statecast_nothing:max"));
}
