//! What an event's spans look like: names, kinds, times, attributes. Pure but for the ids of publishes.
//!
//! By OpenTelemetry's conventions for messaging and for RabbitMQ, which are still in development
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>,
//! <https://opentelemetry.io/docs/specs/semconv/messaging/rabbitmq/>):
//!
//! - The row's context is a *creation context* that the application gave: it goes on to the consumers unchanged. So the
//!   publish's own context goes nowhere, its span is of kind `CLIENT` (a request whose answer is the confirm), and it links to
//!   the creation context besides being its child.
//! - The destination is exchange and routing key. A routing key may hold an entity's id, so the span is named by the template.

use lapin::uri::AMQPUri;
use prost::Message as _;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::otlp::{
    CLIENT, ERROR, ExportTraceServiceRequest, INTERNAL, InstrumentationScope, KeyValue, LOCAL, Link, REMOTE,
    Resource, ResourceSpans, ScopeSpans, Span, Status,
};
use super::record::Record;
use crate::config::{Config, Otel};
use crate::contract::Published;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The flag `sampled`: what is exported is.
const SAMPLED: u32 = 1;

/// What is the same in all spans of a pipeline.
#[derive(Debug)]
pub(super) struct Shape {
    resource: Resource,
    exchange: String,
    /// `messaging.destination.template`.
    template: String,
    /// Of a publish.
    name: String,
    /// The broker, where there is only one to choose.
    server: Option<(String, u16)>,
}

/// Why an event was refused.
struct Refused<'a> {
    /// `error.type`.
    kind: &'static str,
    why: &'a str,
}

impl Shape {
    pub(super) fn new(config: &Config, otel: &Otel) -> Shape {
        let text = KeyValue::text;
        let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "localhost".to_owned());
        let attributes = vec![
            text("service.name", &otel.service_name),
            text("service.version", VERSION),
            text("service.instance.id", &format!("{host}/{}", std::process::id())),
            text("statecast.pipeline", &config.name),
        ];
        let template = format!("{}:{}", config.rabbitmq.exchange, config.rabbitmq.routing_key);
        Shape {
            resource: Resource { attributes },
            exchange: config.rabbitmq.exchange.clone(),
            name: format!("publish {template}"),
            template,
            server: server(config),
        }
    }

    /// The request for these records, and how many spans it holds.
    pub(super) fn request(&self, records: &[Record]) -> (Vec<u8>, u64) {
        let spans: Vec<Span> = records.iter().flat_map(|record| self.spans(record)).collect();
        let count = spans.len() as u64;
        let scope = InstrumentationScope { name: "statecast".to_owned(), version: VERSION.to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans }];
        let resource_spans = vec![ResourceSpans { resource: Some(self.resource.clone()), scope_spans }];
        (ExportTraceServiceRequest { resource_spans }.encode_to_vec(), count)
    }

    /// As many as [`Record::spans`] says.
    fn spans(&self, record: &Record) -> Vec<Span> {
        let sent_us =
            record.answered_at_us.saturating_sub(i64::try_from(record.took.as_micros()).unwrap_or(0));
        match &record.result {
            Published::Confirmed => {
                vec![in_outbox(record, sent_us, None), self.publish(record, sent_us, None)]
            }
            Published::Nacked => {
                let refused = Refused { kind: "nack", why: "the broker answered with a nack" };
                vec![self.publish(record, sent_us, Some(&refused))]
            }
            Published::Returned { code, text } => {
                let why = format!("returned as unroutable: {code} {text}");
                vec![self.publish(record, sent_us, Some(&Refused { kind: "unroutable", why: &why }))]
            }
            // Never sent, and parked: that is where its time in the outbox ends.
            Published::TooLarge { reason } => {
                let refused = Refused { kind: "too_large", why: reason };
                vec![in_outbox(record, record.answered_at_us, Some(&refused))]
            }
            Published::Invalid { reason } => {
                let refused = Refused { kind: "invalid", why: reason };
                vec![in_outbox(record, record.answered_at_us, Some(&refused))]
            }
        }
    }

    /// One try: from the socket to the broker's answer.
    fn publish(&self, record: &Record, sent_us: i64, refused: Option<&Refused<'_>>) -> Span {
        let mut span = Span {
            span_id: fastrand::u64(1..).to_be_bytes().to_vec(),
            name: self.name.clone(),
            kind: CLIENT,
            links: link(record).into_iter().collect(),
            ..span(record, sent_us, record.answered_at_us, refused)
        };
        if record.context.is_none() {
            span.parent_span_id = outbox_span_id(record.event_id);
            span.flags = LOCAL | SAMPLED;
        }
        let routing_key = record.routing_key.as_str();
        let destination = match routing_key {
            "" => self.exchange.clone(),
            routing_key => format!("{}:{routing_key}", self.exchange),
        };
        let text = KeyValue::text;
        span.attributes.extend([
            text("messaging.operation.type", "send"),
            text("messaging.operation.name", "publish"),
            text("messaging.destination.name", &destination),
            text("messaging.destination.template", &self.template),
            KeyValue::int("messaging.message.body.size", i64::try_from(record.bytes).unwrap_or(i64::MAX)),
        ]);
        if !routing_key.is_empty() {
            span.attributes.push(text("messaging.rabbitmq.destination.routing_key", routing_key));
        }
        if let Some(correlation_id) = &record.correlation_id {
            span.attributes.push(text("messaging.message.conversation_id", correlation_id));
        }
        if let Some((host, port)) = &self.server {
            span.attributes.push(text("server.address", host));
            span.attributes.push(KeyValue::int("server.port", i64::from(*port)));
        }
        span
    }
}

/// From the clock of the database to the socket, or to where the event was given up.
fn in_outbox(record: &Record, until_us: i64, refused: Option<&Refused<'_>>) -> Span {
    // The database has its own clock, which may be ahead of ours.
    let from_us = record.recorded_at_us.min(until_us);
    Span {
        span_id: outbox_span_id(record.event_id),
        name: "outbox".to_owned(),
        kind: INTERNAL,
        ..span(record, from_us, until_us, refused)
    }
}

/// What all spans say.
fn span(record: &Record, from_us: i64, until_us: i64, refused: Option<&Refused<'_>>) -> Span {
    let mut attributes = vec![
        KeyValue::text("messaging.system", "rabbitmq"),
        KeyValue::text("messaging.message.id", &record.event_id.hyphenated().to_string()),
        KeyValue::int("statecast.sequence", record.seq),
    ];
    if let Some(refused) = refused {
        attributes.push(KeyValue::text("error.type", refused.kind));
    }
    let context = record.context;
    let trace_id = context.map_or(*record.event_id.as_bytes(), |context| context.trace_id);
    Span {
        trace_id: trace_id.to_vec(),
        trace_state: record.tracestate.as_deref().unwrap_or_default().to_owned(),
        parent_span_id: context.map(|context| context.span_id.to_vec()).unwrap_or_default(),
        flags: context.map_or(LOCAL | SAMPLED, |context| REMOTE | SAMPLED | u32::from(context.flags)),
        start_time_unix_nano: nanos(from_us),
        end_time_unix_nano: nanos(until_us),
        attributes,
        status: refused.map(|refused| Status { message: refused.why.to_owned(), code: ERROR }),
        ..Span::default()
    }
}

fn link(record: &Record) -> Option<Link> {
    record.context.map(|context| Link {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        trace_state: record.tracestate.as_deref().unwrap_or_default().to_owned(),
        flags: REMOTE | u32::from(context.flags),
    })
}

/// An event is in the outbox once, however often it is told: the id of that span is made of its own.
fn outbox_span_id(event_id: Uuid) -> Vec<u8> {
    xxh3_64(event_id.as_bytes()).max(1).to_be_bytes().to_vec()
}

/// Nothing was written before 1970.
fn nanos(us: i64) -> u64 {
    u64::try_from(us).unwrap_or(0).saturating_mul(1_000)
}

/// The broker, if there is only one URL.
fn server(config: &Config) -> Option<(String, u16)> {
    let [url] = config.rabbitmq.urls.as_slice() else { return None };
    let uri: AMQPUri = url.expose().parse().ok()?;
    Some((uri.authority.host, uri.authority.port))
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest as Decoded;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::trace::v1::Span as DecodedSpan;
    use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
    use proptest::prelude::*;

    use super::super::record::tests::{TRACEPARENT, message, record};
    use super::*;
    use crate::event::Message;

    fn config(more: &[(&str, &str)]) -> Config {
        let urls = [
            ("STATECAST_POSTGRES__URL", "postgres://app@db/shop"),
            ("STATECAST_RABBITMQ__URLS", "amqp://app:hunter2@mq:5673/%2f"),
            ("STATECAST_OTEL__ENDPOINT", "http://collector:4318"),
        ];
        let all = urls.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        crate::config::load(None, all).unwrap()
    }

    fn shape(more: &[(&str, &str)]) -> Shape {
        let config = config(more);
        Shape::new(&config, config.otel.as_ref().unwrap())
    }

    /// As a collector reads it.
    fn spans_with(more: &[(&str, &str)], records: &[Record]) -> Vec<DecodedSpan> {
        let (bytes, count) = shape(more).request(records);
        let mut decoded = Decoded::decode(bytes.as_slice()).unwrap();
        assert_eq!(decoded.resource_spans.len(), 1);
        let mut of_resource = decoded.resource_spans.remove(0);
        let resource = of_resource.resource.unwrap().attributes;
        let name = resource.iter().find(|attribute| attribute.key == "service.name").unwrap();
        assert_eq!(name.value.clone().unwrap().value, Some(Value::StringValue("statecast".into())));
        let of_scope = of_resource.scope_spans.remove(0);
        assert_eq!(of_scope.scope.unwrap().name, "statecast");
        assert_eq!(of_scope.spans.len() as u64, count);
        assert_eq!(count, records.iter().map(Record::spans).sum::<u64>());
        of_scope.spans
    }

    fn spans(message: Message, result: Published) -> Vec<DecodedSpan> {
        spans_with(&[], &[record(message, result)])
    }

    fn attribute(span: &DecodedSpan, key: &str) -> Option<String> {
        let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
        match found.value.clone()?.value? {
            Value::StringValue(text) => Some(text),
            Value::IntValue(number) => Some(number.to_string()),
            other => panic!("{other:?}"),
        }
    }

    const NS: u64 = 1_000_000;

    #[test]
    fn a_confirmed_event_has_its_time_in_the_outbox_and_its_publish() {
        let all = spans(message(Some(TRACEPARENT)), Published::Confirmed);
        let [outbox, publish] = all.as_slice() else { panic!("{all:?}") };
        let written = 1_700_000_000_000 * NS;
        for span in &all {
            assert_eq!(
                u128::from_be_bytes(span.trace_id.as_slice().try_into().unwrap()),
                0x0af7651916cd43dd8448eb211c80319c
            );
            assert_eq!(
                u64::from_be_bytes(span.parent_span_id.as_slice().try_into().unwrap()),
                0xb7ad6b7169203331
            );
            assert_eq!((span.span_id.len(), span.flags, &span.status), (8, 0x301, &None));
            assert_eq!(attribute(span, "messaging.system").as_deref(), Some("rabbitmq"));
            assert_eq!(
                attribute(span, "messaging.message.id").as_deref(),
                Some("01900000-0000-7000-8000-000000000001")
            );
            assert_eq!(attribute(span, "error.type"), None);
        }
        assert_eq!((outbox.name.as_str(), outbox.kind()), ("outbox", SpanKind::Internal));
        assert_eq!((outbox.start_time_unix_nano, outbox.end_time_unix_nano), (written, written + 6 * NS));
        assert_eq!(publish.kind(), SpanKind::Client);
        assert_eq!(publish.name, "publish statecast.events:{aggregate_type}.{event_type}");
        assert_eq!(
            (publish.start_time_unix_nano, publish.end_time_unix_nano),
            (written + 6 * NS, written + 10 * NS)
        );
        for (key, value) in [
            ("messaging.operation.type", "send"),
            ("messaging.operation.name", "publish"),
            ("messaging.destination.name", "statecast.events:order.placed"),
            ("messaging.destination.template", "statecast.events:{aggregate_type}.{event_type}"),
            ("messaging.rabbitmq.destination.routing_key", "order.placed"),
            ("messaging.message.body.size", "900"),
            ("server.address", "mq"),
            ("server.port", "5673"),
            ("statecast.sequence", "42"),
        ] {
            assert_eq!(attribute(publish, key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(attribute(publish, "messaging.message.conversation_id"), None);
        let [link] = publish.links.as_slice() else { panic!("{publish:?}") };
        assert_eq!((&link.trace_id, &link.span_id), (&publish.trace_id, &publish.parent_span_id));
        assert!(!format!("{all:?}").contains("hunter2"));
    }

    #[test]
    fn refusals_are_errors() {
        let returned = Published::Returned { code: 312, text: "NO_ROUTE".into() };
        let reason = "body of 20 bytes is over 10".to_owned();
        for (result, name, kind, why) in [
            (Published::Nacked, "publish", "nack", "nack"),
            (returned, "publish", "unroutable", "312 NO_ROUTE"),
            (Published::TooLarge { reason: reason.clone() }, "outbox", "too_large", "over 10"),
            (Published::Invalid { reason }, "outbox", "invalid", "over 10"),
        ] {
            let all = spans(message(Some(TRACEPARENT)), result);
            assert_eq!(all.len(), 1, "{kind}");
            let status = all[0].status.clone().unwrap();
            assert!(all[0].name.starts_with(name) && status.message.contains(why), "{all:?}");
            assert_eq!((status.code, attribute(&all[0], "error.type").as_deref()), (2, Some(kind)));
        }
    }

    #[test]
    fn an_event_without_a_context_is_a_trace_of_its_own() {
        let all = spans(message(None), Published::Confirmed);
        let nacked = spans(message(None), Published::Nacked);
        let [outbox, publish] = all.as_slice() else { panic!("{all:?}") };
        assert!(outbox.parent_span_id.is_empty() && publish.links.is_empty());
        assert_eq!((&publish.parent_span_id, &nacked[0].parent_span_id), (&outbox.span_id, &outbox.span_id));
        assert_eq!(outbox.trace_id, message(None).event_id.as_bytes());
        assert_ne!(publish.span_id, nacked[0].span_id);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let bare = Message { routing_key: "".into(), correlation_id: Some("c-1".into()), ..message(None) };
        let two = [("STATECAST_RABBITMQ__URLS", "amqp://one amqp://two")];
        let all = spans_with(&two, &[record(bare, Published::Nacked)]);
        assert_eq!(attribute(&all[0], "messaging.destination.name").as_deref(), Some("statecast.events"));
        assert_eq!(attribute(&all[0], "messaging.rabbitmq.destination.routing_key"), None);
        assert_eq!(attribute(&all[0], "server.address"), None);
        assert_eq!(attribute(&all[0], "messaging.message.conversation_id").as_deref(), Some("c-1"));
    }

    proptest! {
        #[test]
        fn no_span_ends_before_it_begins(recorded_at_us: i64, answered_at_us: i64, took in 0_u64..1 << 60) {
            let mut record = record(message(Some(TRACEPARENT)), Published::Confirmed);
            (record.recorded_at_us, record.answered_at_us) = (recorded_at_us, answered_at_us);
            record.took = std::time::Duration::from_micros(took);
            for span in spans_with(&[], &[record]) {
                prop_assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
                prop_assert!(span.span_id.iter().any(|byte| *byte != 0));
            }
        }
    }
}
