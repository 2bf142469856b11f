//! Where a message would go, by what the API says about exchanges and bindings. Pure.
//!
//! The rules are the broker's: <https://www.rabbitmq.com/tutorials/amqp-concepts#exchanges>,
//! <https://www.rabbitmq.com/docs/ae>.

use std::collections::{BTreeMap, BTreeSet};

use super::shapes::{BindingShape, ExchangeShape, PolicyShape};
use crate::config::Template;
use crate::config::template::Part;

/// A type of event that the outbox has seen, with one of its entities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventType {
    /// `aggregate_type`.
    pub aggregate_type: String,
    /// `aggregate_id`.
    pub aggregate_id: String,
    /// `event_type`.
    pub event_type: String,
}

impl EventType {
    /// The routing key of such an event.
    pub(super) fn routing_key(&self, template: &Template) -> String {
        let text = |part: &Part| match part {
            Part::Literal(text) => text.clone(),
            Part::AggregateType => self.aggregate_type.clone(),
            Part::AggregateId => self.aggregate_id.clone(),
            Part::EventType => self.event_type.clone(),
        };
        template.parts.iter().map(text).collect()
    }
}

/// An exchange with what leaves it.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    pub(super) kind: String,
    pub(super) durable: bool,
    pub(super) auto_delete: bool,
    pub(super) policy: Option<String>,
    pub(super) alternate: Option<String>,
    pub(super) bindings: Vec<BindingShape>,
}

impl Exchange {
    pub(super) fn new(
        shape: ExchangeShape,
        policy: Option<&PolicyShape>,
        bindings: Vec<BindingShape>,
    ) -> Exchange {
        let alternate = shape
            .arguments
            .get("alternate-exchange")
            .or_else(|| policy?.definition.get("alternate-exchange"))
            .and_then(|name| name.as_str().map(str::to_owned));
        Exchange {
            kind: shape.kind,
            durable: shape.durable.unwrap_or(true),
            auto_delete: shape.auto_delete.unwrap_or(false),
            policy: shape.policy,
            alternate,
            bindings,
        }
    }

    /// Exchanges that messages may go on to.
    pub(super) fn leads_to(&self) -> impl Iterator<Item = &str> {
        let bound = self.bindings.iter().filter(|binding| binding.destination_type == "exchange");
        bound.map(|binding| binding.destination.as_str()).chain(self.alternate.as_deref())
    }

    /// Does it take this key? `None`: that depends on headers, or on a plugin.
    pub(super) fn takes(&self, binding: &BindingShape, key: &str) -> Option<bool> {
        match self.kind.as_str() {
            "topic" => Some(topic_matches(&binding.routing_key, key)),
            "direct" => Some(binding.routing_key == key),
            "fanout" => Some(true),
            _ => None,
        }
    }

    /// Whatever the key.
    pub(super) fn takes_everything(&self, binding: &BindingShape) -> bool {
        match self.kind.as_str() {
            "topic" => {
                let mut words = binding.routing_key.split('.');
                words.all(|word| word == "#")
            }
            "fanout" => true,
            _ => false,
        }
    }
}

/// Our exchange and those behind it.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    pub(super) root: String,
    pub(super) exchanges: BTreeMap<String, Exchange>,
    /// There were more than we follow.
    pub(super) truncated: bool,
}

/// Where a message ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    pub(super) queues: BTreeSet<String>,
    /// Some of it by an alternate exchange.
    pub(super) by_alternate: bool,
    /// Some exchange on the way cannot be judged.
    pub(super) unknown: bool,
}

impl Graph {
    /// Every queue that messages may reach.
    pub(super) fn queues(&self) -> impl Iterator<Item = &str> {
        let bindings = self.exchanges.values().flat_map(|exchange| &exchange.bindings);
        bindings
            .filter(|binding| binding.destination_type == "queue")
            .map(|binding| binding.destination.as_str())
    }

    /// Follows a message with this routing key.
    pub(super) fn ends(&self, key: &str) -> Ends {
        let mut ends = Ends { unknown: self.truncated, ..Ends::default() };
        let mut seen = BTreeSet::new();
        let mut next = vec![self.root.as_str()];
        while let Some(name) = next.pop() {
            if !seen.insert(name) {
                continue;
            }
            // A binding or an alternate exchange may name one that does not exist: the message ends there.
            let Some(exchange) = self.exchanges.get(name) else { continue };
            let mut routed = false;
            for binding in &exchange.bindings {
                match exchange.takes(binding, key) {
                    Some(true) => routed = true,
                    Some(false) => continue,
                    None => {
                        ends.unknown = true;
                        continue;
                    }
                }
                if binding.destination_type == "queue" {
                    ends.queues.insert(binding.destination.clone());
                } else {
                    next.push(&binding.destination);
                }
            }
            if !routed && let Some(alternate) = &exchange.alternate {
                ends.by_alternate = true;
                next.push(alternate);
            }
        }
        ends
    }
}

/// `*` is one word, `#` any number of them. By rows, so that no pattern takes more than words × words.
fn topic_matches(pattern: &str, key: &str) -> bool {
    let words: Vec<&str> = if key.is_empty() { Vec::new() } else { key.split('.').collect() };
    // `reach[i]`: the pattern so far takes the first i words.
    let mut reach = vec![false; words.len() + 1];
    reach[0] = true;
    for part in pattern.split('.').filter(|_| !pattern.is_empty()) {
        let mut row = vec![false; words.len() + 1];
        for i in 0..=words.len() {
            row[i] = match part {
                "#" => reach[i] || i > 0 && row[i - 1],
                "*" => i > 0 && reach[i - 1],
                word => i > 0 && reach[i - 1] && words[i - 1] == word,
            };
        }
        reach = row;
    }
    reach.last().copied().unwrap_or(false)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::sink::examine) fn exchange(kind: &str, bindings: &[(&str, &str, &str)]) -> Exchange {
        let binding = |(kind, to, key): &(&str, &str, &str)| BindingShape {
            destination: (*to).into(),
            destination_type: (*kind).into(),
            routing_key: (*key).into(),
        };
        Exchange {
            kind: kind.into(),
            durable: true,
            bindings: bindings.iter().map(binding).collect(),
            ..Exchange::default()
        }
    }

    fn graph(exchanges: &[(&str, Exchange)]) -> Graph {
        let exchanges = exchanges.iter().map(|(name, exchange)| ((*name).into(), exchange.clone()));
        Graph { root: "events".into(), exchanges: exchanges.collect(), truncated: false }
    }

    #[test]
    fn topics_as_the_tutorial_says() {
        for (pattern, key, matches) in [
            ("#", "", true),
            ("#", "a.b.c", true),
            ("*", "a", true),
            ("*", "a.b", false),
            ("*", "", false),
            ("a.*.c", "a.b.c", true),
            ("a.#", "a", true),
            ("a.#.c", "a.c", true),
            ("a.#.c", "a.b.b.c", true),
            ("#.c", "a.b", false),
            ("a", "a.b", false),
            ("", "", true),
            ("", "a", false),
            ("order.order.placed", "order.order.placed", true),
        ] {
            assert_eq!(topic_matches(pattern, key), matches, "{pattern} {key}");
        }
    }

    #[test]
    fn messages_are_followed() {
        let mut events = exchange("topic", &[("queue", "q", "a.*"), ("exchange", "fan", "b.#")]);
        let fan = exchange("fanout", &[("queue", "x", ""), ("exchange", "events", "")]);
        let ends = |graph: &Graph, key: &str| {
            let ends = graph.ends(key);
            (ends.queues.into_iter().collect::<Vec<_>>().join(","), ends.by_alternate, ends.unknown)
        };
        let all = graph(&[("events", events.clone()), ("fan", fan.clone())]);
        assert_eq!(ends(&all, "a.b"), ("q".into(), false, false));
        assert_eq!(ends(&all, "b.b"), ("x".into(), false, false), "also round a circle");
        assert_eq!(ends(&all, "c"), (String::new(), false, false));
        events.alternate = Some("fan".into());
        let all = graph(&[("events", events), ("fan", fan)]);
        assert_eq!(ends(&all, "c"), ("x".into(), true, false));
        let all = graph(&[("events", exchange("headers", &[("queue", "q", "")]))]);
        assert_eq!(ends(&all, "c"), (String::new(), false, true));
        assert_eq!(ends(&graph(&[("events", exchange("direct", &[("queue", "q", "c")]))]), "c").0, "q");
    }

    #[test]
    fn keys_come_from_the_template() {
        let seen = EventType {
            aggregate_type: "order".into(),
            aggregate_id: "7".into(),
            event_type: "placed".into(),
        };
        let key = |text: &str| seen.routing_key(&Template::parse(text).unwrap());
        assert_eq!(key("x.{aggregate_type}.{event_type}"), "x.order.placed");
        assert_eq!(key("{aggregate_id}"), "7");
    }

    proptest! {
        #[test]
        fn a_pattern_of_words_alone_is_equality(pattern in "[ab]{1,2}(\\.[ab]{1,2}){0,3}", key in "[ab]{1,2}(\\.[ab]{1,2}){0,3}") {
            prop_assert_eq!(topic_matches(&pattern, &key), pattern == key);
        }

        #[test]
        fn any_pattern_ends(pattern in "[a#*.]{0,40}", key in "[a.]{0,40}") {
            let _ = topic_matches(&pattern, &key);
        }
    }
}
