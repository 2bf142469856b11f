//! Judges the queues behind our exchange: does somebody consume, does anything get lost there, does it survive a node?

use serde_json::Value;

use super::shapes::QueueShape;
use crate::finding::{Code, Finding};

/// `nodes`: of the cluster, if that is known.
pub(super) fn judge(queues: &[QueueShape], nodes: Option<usize>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for queue in queues {
        let place = format!("queue {}", queue.name);
        findings.extend(consumers(queue, &place));
        findings.extend(drops(queue, &place));
        findings.extend(transient(queue, &place));
        findings.extend(replicated(queue, &place, nodes));
        findings.extend(up(queue, &place));
    }
    findings
}

fn consumers(queue: &QueueShape, place: &str) -> Option<Finding> {
    match queue.consumers() {
        Some(0) => {
            let messages =
                queue.messages.map_or(String::new(), |messages| format!("; it holds {messages} messages"));
            Some(Finding::warning(Code::QueueNoConsumer, place, format!("nobody consumes from it{messages}")))
        }
        Some(_) => None,
        None => Some(Finding::not_examined(
            Code::QueueNoConsumer,
            format!("{place}: the broker keeps no figures"),
        )),
    }
}

/// A stream is a log: what it forgets has been there to read.
fn drops(queue: &QueueShape, place: &str) -> Vec<Finding> {
    if queue.kind.as_deref() == Some("stream") {
        return Vec::new();
    }
    let overflow = queue.setting("overflow").and_then(Value::as_str).unwrap_or("drop-head");
    let kept = match queue.setting("dead-letter-exchange").and_then(Value::as_str) {
        Some(exchange) => format!("to the dead-letter exchange {exchange:?}"),
        None => "for good".to_owned(),
    };
    let mut findings = Vec::new();
    for (name, which) in [
        ("max-length", "its oldest messages beyond that"),
        ("max-length-bytes", "its oldest messages beyond that"),
        ("message-ttl", "messages older than that, in ms,"),
    ] {
        let Some(limit) = queue.setting(name).and_then(Value::as_i64) else { continue };
        if name != "message-ttl" && overflow.starts_with("reject-publish") {
            continue;
        }
        let text = format!("{name} is {limit} ({}): it drops {which} {kept}", queue.source(name));
        findings.push(Finding::warning(Code::QueueDrops, place, text));
    }
    findings
}

fn transient(queue: &QueueShape, place: &str) -> Option<Finding> {
    let mut how = Vec::new();
    for (so, text) in [
        (queue.durable == Some(false), "it is not durable"),
        (queue.exclusive == Some(true), "it belongs to one connection"),
        (queue.auto_delete == Some(true), "it deletes itself with its last consumer"),
    ] {
        if so {
            how.push(text);
        }
    }
    (!how.is_empty()).then(|| Finding::warning(Code::QueueTransient, place, how.join(", ")))
}

fn replicated(queue: &QueueShape, place: &str, nodes: Option<usize>) -> Option<Finding> {
    const CODE: Code = Code::QueueNotReplicated;
    let kind = queue.kind.as_deref().unwrap_or("classic");
    // Mirrored, before RabbitMQ 4.
    let mirrored = queue.effective_policy_definition.get("ha-mode").is_some();
    if kind != "classic" || mirrored {
        return None;
    }
    match nodes {
        None => Some(Finding::not_examined(CODE, format!("{place}: the nodes of the cluster are not known"))),
        Some(0 | 1) => None,
        Some(nodes) => {
            let text = format!("a classic queue lives on one of the {nodes} nodes");
            Some(Finding::warning(CODE, place, text))
        }
    }
}

fn up(queue: &QueueShape, place: &str) -> Option<Finding> {
    if let Some(state) =
        queue.state.as_deref().filter(|state| matches!(*state, "down" | "stopped" | "crashed"))
    {
        return Some(Finding::error(Code::QueueDown, place, format!("it is {state}")));
    }
    let (members, online) = (queue.members.as_ref()?.len(), queue.online.as_ref()?.len());
    let text = format!("{online} of its {members} members are online");
    if online * 2 <= members {
        return Some(Finding::error(Code::QueueDown, place, text));
    }
    (online < members).then(|| Finding::warning(Code::QueueDown, place, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn found(json: &str, nodes: Option<usize>) -> Vec<(Code, Severity)> {
        let mut queue: QueueShape = serde_json::from_str(json).unwrap();
        queue.consumers = queue.consumers.or(Some(1));
        judge(&[queue], nodes).into_iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn a_quorum_queue_with_a_consumer_is_good() {
        let json = r#"{"name":"q","type":"quorum","durable":true,"members":["a"],"online":["a"],"state":"running",
                       "arguments":{"x-max-length":5,"x-overflow":"reject-publish"}}"#;
        assert_eq!(found(json, Some(3)), []);
    }

    #[test]
    fn faults_of_queues() {
        use Code::{QueueDown, QueueDrops, QueueNoConsumer, QueueNotReplicated, QueueTransient};
        use Severity::{Error, NotExamined, Warning};
        for (json, nodes, expected) in [
            (r#"{"consumers":0}"#, 1, vec![(QueueNoConsumer, Warning)]),
            (r#"{"arguments":{"x-max-length":5}}"#, 1, vec![(QueueDrops, Warning)]),
            (r#"{"effective_policy_definition":{"max-length-bytes":5}}"#, 1, vec![(QueueDrops, Warning)]),
            (
                r#"{"arguments":{"x-overflow":"reject-publish"},"effective_policy_definition":{"max-length":5,"message-ttl":9}}"#,
                1,
                vec![(QueueDrops, Warning)],
            ),
            (r#"{"type":"stream","arguments":{"x-max-length-bytes":5}}"#, 3, vec![]),
            (r#"{"durable":false,"exclusive":true}"#, 1, vec![(QueueTransient, Warning)]),
            (r#"{"type":"classic"}"#, 3, vec![(QueueNotReplicated, Warning)]),
            (r#"{"type":"classic","effective_policy_definition":{"ha-mode":"all"}}"#, 3, vec![]),
            (r#"{"state":"down"}"#, 1, vec![(QueueDown, Error)]),
            (r#"{"type":"quorum","members":["a","b","c"],"online":["a"]}"#, 3, vec![(QueueDown, Error)]),
            (
                r#"{"type":"quorum","members":["a","b","c"],"online":["a","b"]}"#,
                3,
                vec![(QueueDown, Warning)],
            ),
        ] {
            assert_eq!(found(json, Some(nodes)), expected, "{json}");
        }
        assert_eq!(found("{}", None), [(QueueNotReplicated, NotExamined)]);
        let unknown = judge(&[QueueShape::default()], Some(1));
        assert_eq!((unknown[0].code, unknown[0].severity), (QueueNoConsumer, NotExamined));
    }

    #[test]
    fn what_drops_is_named() {
        let queue: QueueShape = serde_json::from_str(
            r#"{"name":"q","consumers":1,"policy":"cap","effective_policy_definition":{"max-length":5,"dead-letter-exchange":"dlx"}}"#,
        )
        .unwrap();
        let what = &judge(&[queue], Some(1))[0].what;
        assert_eq!(
            what,
            "max-length is 5 (policy cap): it drops its oldest messages beyond that to the dead-letter exchange \"dlx\""
        );
    }
}
