//! Judges what is bound to our exchange: nothing, everything, or not what the outbox holds.

use super::routing::{Exchange, Graph};
use super::{Context, NAMES_MAX};
use crate::finding::{Code, Finding, listed};

pub(super) fn judge(graph: &Graph, context: &Context<'_>) -> Vec<Finding> {
    let Some(root) = graph.exchanges.get(&graph.root) else { return Vec::new() };
    let place = format!("exchange {}", graph.root);
    let mut findings = Vec::new();
    if !root.durable || root.auto_delete {
        let text = if root.durable { "it deletes itself with its last binding" } else { "it is not durable" };
        findings.push(Finding::warning(Code::ExchangeTransient, &place, text));
    }
    if graph.queues().next().is_none() {
        findings.push(Finding::error(Code::BindingNone, &place, "no queue is bound to it"));
    }
    let keys = keys(context);
    let (unbound, by_alternate, unknown) = sorted(graph, &keys);
    findings.extend(alternate(root, &place, &by_alternate));
    findings.extend(catch_all(root, &place, &keys));
    findings.push(unbound_types(context, &place, &keys, &unbound, unknown));
    findings
}

/// The routing keys of the types seen, each once.
fn keys(context: &Context<'_>) -> Vec<String> {
    let template = &context.config.routing_key;
    let mut keys: Vec<String> =
        context.types.unwrap_or_default().iter().map(|seen| seen.routing_key(template)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Keys without a queue, keys that only an alternate exchange takes, and how many cannot be judged.
fn sorted<'a>(graph: &Graph, keys: &'a [String]) -> (Vec<&'a str>, Vec<&'a str>, usize) {
    let (mut unbound, mut by_alternate, mut unknown) = (Vec::new(), Vec::new(), 0);
    for key in keys {
        let ends = graph.ends(key);
        if ends.queues.is_empty() && ends.unknown {
            unknown += 1;
        } else if ends.queues.is_empty() {
            unbound.push(key.as_str());
        } else if ends.by_alternate {
            by_alternate.push(key.as_str());
        }
    }
    (unbound, by_alternate, unknown)
}

fn alternate(root: &Exchange, place: &str, keys: &[&str]) -> Option<Finding> {
    let name = root.alternate.as_ref()?;
    let goes = match keys {
        [] => "no type seen lately goes there".to_owned(),
        keys => format!("{} go there", listed(keys, NAMES_MAX)),
    };
    let text =
        format!("what has no binding goes to its alternate exchange {name} and counts as delivered; {goes}");
    Some(Finding::warning(Code::AlternateExchange, place, text))
}

fn catch_all(root: &Exchange, place: &str, keys: &[String]) -> Option<Finding> {
    let (all, specific): (Vec<_>, Vec<_>) =
        root.bindings.iter().partition(|binding| root.takes_everything(binding));
    if all.is_empty() {
        return None;
    }
    let names: Vec<String> =
        all.iter().map(|binding| format!("{} {}", binding.destination_type, binding.destination)).collect();
    let names = listed(&names, NAMES_MAX);
    let bound = |key: &str| specific.iter().any(|binding| root.takes(binding, key) == Some(true));
    let only: Vec<&str> = keys.iter().map(String::as_str).filter(|key| !bound(key)).collect();
    if specific.is_empty() {
        let text = format!("{names} takes every event: a missing binding cannot be noticed");
        return Some(
            Finding::info(Code::CatchAll, place, text).with_remedy("nothing, if it is meant for every event"),
        );
    }
    if only.is_empty() {
        let text = format!("{names} takes every event; each type seen lately has another binding as well");
        return Some(Finding::info(Code::CatchAll, place, text).with_remedy("nothing"));
    }
    let text = format!("only {names}, which takes every event, takes {}", listed(&only, NAMES_MAX));
    Some(Finding::warning(Code::CatchAll, place, text))
}

fn unbound_types(
    context: &Context<'_>,
    place: &str,
    keys: &[String],
    unbound: &[&str],
    unknown: usize,
) -> Finding {
    const CODE: Code = Code::TypeUnbound;
    match context.seen(CODE) {
        Err(not_examined) => not_examined,
        Ok([]) => Finding::ok_with(CODE, "the outbox holds no event yet"),
        Ok(_) if !unbound.is_empty() => {
            let text = format!("no queue takes {}", listed(unbound, NAMES_MAX));
            Finding::error(CODE, place, text)
        }
        Ok(_) if unknown > 0 => Finding::not_examined(
            CODE,
            format!("{unknown} of {} routing keys pass an exchange whose rule is not known here", keys.len()),
        ),
        Ok(_) => {
            Finding::ok_with(CODE, format!("all of the {} routing keys seen lately have a queue", keys.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::routing::tests::exchange;
    use super::super::tests::{account, config};
    use super::super::{EventType, routing::Graph};
    use super::*;
    use crate::finding::Severity;

    fn found(root: Exchange, types: Result<&[EventType], &str>) -> Vec<(Code, Severity, String)> {
        let (config, account) = (config(), account());
        let context = Context { config: &config, pipeline: "p", account: &account, types };
        let sink = exchange("fanout", &[("queue", "rest", "")]);
        let exchanges = [("statecast.events".to_owned(), root), ("rest".to_owned(), sink)].into();
        let graph = Graph { root: "statecast.events".into(), exchanges, truncated: false };
        judge(&graph, &context).into_iter().map(|f| (f.code, f.severity, f.what)).collect()
    }

    fn types(names: &[&str]) -> Vec<EventType> {
        let seen = |name: &&str| EventType {
            aggregate_type: "order".into(),
            aggregate_id: "1".into(),
            event_type: (*name).into(),
        };
        names.iter().map(seen).collect()
    }

    fn one(findings: &[(Code, Severity, String)], code: Code) -> (Severity, &str) {
        let found = findings.iter().find(|found| found.0 == code);
        found.map_or((Severity::Ok, ""), |found| (found.1, found.2.as_str()))
    }

    #[test]
    fn types_need_a_queue() {
        let all =
            found(exchange("topic", &[("queue", "q", "order.placed")]), Ok(&types(&["placed", "paid"])));
        assert_eq!(one(&all, Code::TypeUnbound), (Severity::Error, "no queue takes order.paid"));
        let all = found(exchange("topic", &[("queue", "q", "order.*")]), Ok(&types(&["placed", "paid"])));
        assert_eq!(one(&all, Code::TypeUnbound).0, Severity::Ok);
        assert_eq!(one(&all, Code::CatchAll).0, Severity::Ok);
        let all = found(exchange("headers", &[("queue", "q", "")]), Ok(&types(&["placed"])));
        assert_eq!(one(&all, Code::TypeUnbound).0, Severity::NotExamined);
        assert_eq!(one(&found(exchange("topic", &[]), Ok(&[])), Code::TypeUnbound).0, Severity::Ok);
        let all = found(exchange("topic", &[]), Err("no connection"));
        let text = "the types in the outbox are not known: no connection";
        assert_eq!(one(&all, Code::TypeUnbound), (Severity::NotExamined, text));
    }

    #[test]
    fn an_alternate_exchange_hides_what_is_missing() {
        let mut root = exchange("topic", &[("queue", "q", "order.placed")]);
        root.alternate = Some("rest".into());
        let all = found(root, Ok(&types(&["placed", "paid"])));
        let (severity, text) = one(&all, Code::AlternateExchange);
        assert!(severity == Severity::Warning && text.ends_with("; order.paid go there"), "{text}");
        assert_eq!(one(&all, Code::TypeUnbound).0, Severity::Ok, "it has a queue");
    }

    #[test]
    fn a_catch_all_hides_what_is_missing_where_others_are_specific() {
        let seen = types(&["placed", "paid"]);
        let root = |bindings: &[(&str, &str, &str)]| found(exchange("topic", bindings), Ok(&seen));
        let all = root(&[("queue", "q", "order.placed"), ("queue", "log", "#")]);
        let (severity, text) = one(&all, Code::CatchAll);
        assert!(severity == Severity::Warning && text.ends_with("takes order.paid"), "{text}");
        assert_eq!(one(&root(&[("queue", "q", "#")]), Code::CatchAll).0, Severity::Info);
        let both = root(&[("queue", "q", "order.*"), ("queue", "log", "#.#")]);
        assert_eq!(one(&both, Code::CatchAll).0, Severity::Info);
    }

    #[test]
    fn an_exchange_stays_and_has_bindings() {
        // The graph of these tests has another exchange with a queue.
        let (config, account) = (config(), account());
        let context = Context { config: &config, pipeline: "p", account: &account, types: Ok(&[]) };
        let root = Exchange { durable: false, ..exchange("topic", &[]) };
        let exchanges = [("e".to_owned(), root)].into();
        let all = judge(&Graph { root: "e".into(), exchanges, truncated: false }, &context);
        let has = |code, severity| all.iter().any(|f| f.code == code && f.severity == severity);
        assert!(has(Code::ExchangeTransient, Severity::Warning) && has(Code::BindingNone, Severity::Error));
    }
}
