//! Judges the nodes of the broker, and names the policies that apply.

use std::collections::BTreeMap;

use super::NAMES_MAX;
use super::routing::Graph;
use super::shapes::{NodeShape, QueueShape};
use crate::config::units::about_size;
use crate::finding::{Code, Finding, listed};

pub(super) fn judge(nodes: &[NodeShape]) -> Vec<Finding> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "?".to_owned(), about_size);
    let mut findings = Vec::new();
    for node in nodes {
        let mut say = |text: String| {
            findings.push(Finding::error(Code::BrokerAlarm, format!("node {}", node.name), text));
        };
        if node.running == Some(false) {
            say("it does not run".to_owned());
        }
        if node.mem_alarm == Some(true) {
            let (used, limit) = (size(node.mem_used), size(node.mem_limit));
            say(format!("memory alarm ({used} in use, limit {limit}): publishers are blocked"));
        }
        if node.disk_free_alarm == Some(true) {
            let (free, limit) = (size(node.disk_free), size(node.disk_free_limit));
            say(format!("disk alarm ({free} free, limit {limit}): publishers are blocked"));
        }
        if let Some(others) = node.partitions.as_ref().filter(|others| !others.is_empty()) {
            say(format!("it is cut off from {}", listed(others, NAMES_MAX)));
        }
    }
    if findings.is_empty() && !nodes.is_empty() {
        findings.push(Finding::ok_with(
            Code::BrokerAlarm,
            format!("{} nodes run, without an alarm", nodes.len()),
        ));
    }
    findings
}

/// One finding for each policy.
pub(super) fn policies(graph: &Graph, queues: &[QueueShape]) -> Vec<Finding> {
    let mut applies: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, exchange) in &graph.exchanges {
        if let Some(policy) = &exchange.policy {
            applies.entry(format!("policy {policy}")).or_default().push(format!("exchange {name}"));
        }
    }
    for queue in queues {
        let policies = [("policy", &queue.policy), ("operator policy", &queue.operator_policy)];
        for (kind, policy) in policies {
            if let Some(policy) = policy.as_ref().filter(|policy| !policy.is_empty()) {
                applies.entry(format!("{kind} {policy}")).or_default().push(format!("queue {}", queue.name));
            }
        }
    }
    let finding = |(place, objects): (String, Vec<String>)| {
        Finding::info(Code::PolicyApplies, place, format!("applies to {}", listed(&objects, NAMES_MAX)))
    };
    applies.into_iter().map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::super::routing::Exchange;
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn alarms_and_partitions_are_errors() {
        let nodes: Vec<NodeShape> = serde_json::from_str(
            r#"[{"name":"a","running":true,"mem_alarm":false},
                {"name":"b","mem_alarm":true,"mem_used":2048,"mem_limit":1024},
                {"name":"c","disk_free_alarm":true},{"name":"d","running":false,"partitions":["a","b"]}]"#,
        )
        .unwrap();
        let found = judge(&nodes);
        let texts: Vec<&str> = found.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(
            texts[0].contains("2.0 KiB in use, limit 1.0 KiB") && texts[3].ends_with("a, b"),
            "{texts:?}"
        );
        assert!(found.iter().all(|finding| finding.severity == Severity::Error));
        assert_eq!(judge(&nodes[..1])[0].severity, Severity::Ok);
        assert!(judge(&[]).is_empty());
    }

    #[test]
    fn policies_are_named_once() {
        let exchange = Exchange { policy: Some("p".into()), ..Exchange::default() };
        let graph = Graph { exchanges: [("e".to_owned(), exchange)].into(), ..Graph::default() };
        let queue: QueueShape =
            serde_json::from_str(r#"{"name":"q","policy":"p","operator_policy":"op"}"#).unwrap();
        let found = policies(&graph, &[queue]);
        assert_eq!(found.len(), 2);
        assert_eq!(
            (found[1].place.as_str(), found[1].what.as_str()),
            ("policy p", "applies to exchange e, queue q")
        );
    }
}
