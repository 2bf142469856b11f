//! CloudEvents 1.0, binary content mode: the body is the payload as it was committed (empty for a delete), the
//! attributes are AMQP headers with the prefix `cloudEvents_` (CloudEvents AMQP binding, section 3.1).

use std::borrow::Cow;

use super::HeaderValue;
use super::attributes::Attributes;

/// AMQP `content_type` of this mode: `datacontenttype` itself.
pub const CONTENT_TYPE: &str = "application/json";

/// Put before the name of every attribute. The underscore is the binding's choice for what JMS clients must read.
pub const PREFIX: &str = "cloudEvents_";

/// Appends the attributes.
pub(super) fn attributes(
    source: &str,
    from: &Attributes<'_>,
    headers: &mut Vec<(Cow<'static, str>, HeaderValue)>,
) {
    let event = from.event;
    headers.reserve(20 + from.extensions.len());
    let mut put = |name: &str, value: HeaderValue| headers.push((Cow::Owned(prefixed(name)), value));
    let text = |value: &str| HeaderValue::Text(value.into());
    put("specversion", text("1.0"));
    put("source", text(source));
    put("id", HeaderValue::Text(event.event_id.to_string().into()));
    put("type", text(from.kind));
    put("subject", text(&event.aggregate_id));
    put("time", text(from.time));
    put("partitionkey", text(from.partition_key));
    put("sequence", text(from.sequence));
    put("aggregatetype", text(&event.aggregate_type));
    put("operation", text(from.operation()));
    put("schemaversion", text(&event.schema_version));
    if let Some(version) = event.entity_version {
        put("entityversion", HeaderValue::Text(version.to_string().into()));
    }
    for (name, value) in from.optional() {
        put(name, text(value));
    }
    for (name, value) in from.extensions {
        put(name, value.clone());
    }
}

fn prefixed(name: &str) -> String {
    let mut full = String::with_capacity(PREFIX.len() + name.len());
    full.push_str(PREFIX);
    full.push_str(name);
    full
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;

    use crate::config::Format;
    use crate::event::HeaderValue;
    use crate::event::assemble::tests::{assembler, event};

    #[test]
    fn attributes_are_headers_and_the_body_is_the_payload() {
        let mut event = event();
        event.payload = Some(Bytes::from_static(b"{ \"n\" : 1.10, \"n\":9007199254740993 }"));
        let payload = event.payload.clone().unwrap();
        let message = assembler(Format::Binary).assemble(event).unwrap();
        assert_eq!((message.content_type, message.body), ("application/json", payload.to_vec()));
        let count = message.headers.len();
        let headers: BTreeMap<_, HeaderValue> = message.headers.into_iter().collect();
        assert_eq!(headers.len(), count, "no name twice");
        let text = |name: &str| match &headers[name] {
            HeaderValue::Text(text) => text.as_str(),
            other => panic!("{name}: {other:?}"),
        };
        for (name, value) in [
            ("cloudEvents_specversion", "1.0"),
            ("cloudEvents_source", "/orders"),
            ("cloudEvents_id", "018f0000-0000-7000-8000-000000000001"),
            ("cloudEvents_type", "shop.order.placed"),
            ("cloudEvents_subject", "4711"),
            ("cloudEvents_time", "2026-11-03T12:34:56.000789Z"),
            ("cloudEvents_partitionkey", "order:4711"),
            ("cloudEvents_sequence", "00000000000000000042"),
            ("cloudEvents_aggregatetype", "order"),
            ("cloudEvents_operation", "upsert"),
            ("cloudEvents_schemaversion", "1.2.0"),
            ("cloudEvents_entityversion", "7"),
            ("cloudEvents_correlationid", "corr"),
            ("cloudEvents_causationid", "cause"),
            ("cloudEvents_tracestate", "a=b"),
            ("cloudEvents_tenant", "acme"),
            ("partitionkey", "order:4711"),
            ("sequence", "00000000000000000042"),
            ("schemaversion", "1.2.0"),
            ("tracestate", "a=b"),
            ("tenant", "acme"),
        ] {
            assert_eq!(text(name), value, "{name}");
        }
        assert_eq!(headers["cloudEvents_count"], HeaderValue::Int(3));
        assert_eq!(headers["cloudEvents_test"], HeaderValue::Bool(true));
        assert!(!headers.contains_key("cloudEvents_data"));
        assert!(!headers.contains_key("cloudEvents_datacontenttype"), "the property content_type carries it");
    }

    #[test]
    fn a_delete_has_an_empty_body() {
        let mut event = event();
        event.payload = None;
        let message = assembler(Format::Binary).assemble(event).unwrap();
        assert!(message.body.is_empty());
        assert!(
            message.headers.contains(&("cloudEvents_operation".into(), HeaderValue::Text("delete".into())))
        );
    }
}
