//! CloudEvents 1.0, structured content mode: one JSON document (CloudEvents JSON format, sections 2 and 3).
//!
//! The payload's bytes are spliced in as they were committed and never parsed: parsing and writing again would change
//! numbers beyond 2^53, the order of keys and white space.

use std::io::Write as _;

use bytes::Bytes;

use super::HeaderValue;
use super::attributes::{Attributes, Invalid};

/// AMQP `content_type` of this mode.
pub const CONTENT_TYPE: &str = "application/cloudevents+json";

/// Bytes of the fixed text of an envelope with every optional attribute, and some escapes.
const ENVELOPE_BYTES: usize = 480;

/// Writes envelopes; what never changes is escaped once.
#[derive(Clone, Debug)]
pub(super) struct Structured {
    /// `{"specversion":"1.0","source":"…","id":"`.
    head: Vec<u8>,
}

impl Structured {
    pub(super) fn new(source: &str) -> Self {
        let source = serde_json::Value::from(source);
        Structured { head: format!(r#"{{"specversion":"1.0","source":{source},"id":""#).into_bytes() }
    }

    /// The whole body.
    pub(super) fn body(&self, attributes: &Attributes<'_>) -> Result<Vec<u8>, Invalid> {
        let event = attributes.event;
        let mut out = Vec::with_capacity(self.capacity(attributes));
        out.extend_from_slice(&self.head);
        write!(out, "{}\"", event.event_id.hyphenated())?;
        member(&mut out, "type", attributes.kind)?;
        member(&mut out, "subject", &event.aggregate_id)?;
        member(&mut out, "time", attributes.time)?;
        out.extend_from_slice(br#","datacontenttype":"application/json""#);
        member(&mut out, "partitionkey", attributes.partition_key)?;
        member(&mut out, "sequence", attributes.sequence)?;
        member(&mut out, "aggregatetype", &event.aggregate_type)?;
        member(&mut out, "operation", attributes.operation())?;
        member(&mut out, "schemaversion", &event.schema_version)?;
        if let Some(version) = event.entity_version {
            write!(out, ",\"entityversion\":\"{version}\"")?;
        }
        for (name, value) in attributes.optional() {
            member(&mut out, name, value)?;
        }
        for (name, value) in attributes.extensions {
            extension(&mut out, name, value)?;
        }
        out.extend_from_slice(br#","data":"#);
        out.extend_from_slice(event.payload.as_deref().unwrap_or(b"null"));
        out.push(b'}');
        Ok(out)
    }

    fn capacity(&self, attributes: &Attributes<'_>) -> usize {
        let event = attributes.event;
        let optional: usize = attributes.optional().map(|(_, value)| value.len()).sum();
        let extensions: usize = attributes.extensions.iter().map(|(n, v)| n.len() + 8 + text_bytes(v)).sum();
        self.head.len()
            + ENVELOPE_BYTES
            + attributes.kind.len()
            + attributes.partition_key.len() * 2
            + optional
            + extensions
            + event.payload.as_ref().map_or(4, Bytes::len)
    }
}

fn text_bytes(value: &HeaderValue) -> usize {
    match value {
        HeaderValue::Text(text) => text.len(),
        HeaderValue::Bool(_) | HeaderValue::Int(_) => 11,
    }
}

/// `,"name":"value"`. Names come from this crate or have been checked: they need no escapes.
fn member(out: &mut Vec<u8>, name: &str, value: &str) -> Result<(), Invalid> {
    name_of(out, name);
    string(out, value)
}

fn extension(out: &mut Vec<u8>, name: &str, value: &HeaderValue) -> Result<(), Invalid> {
    name_of(out, name);
    match value {
        HeaderValue::Text(text) => string(out, text)?,
        HeaderValue::Bool(truth) => write!(out, "{truth}")?,
        HeaderValue::Int(number) => write!(out, "{number}")?,
    }
    Ok(())
}

fn name_of(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn string(out: &mut Vec<u8>, text: &str) -> Result<(), Invalid> {
    serde_json::to_writer(out, text).map_err(|e| Invalid::new(format!("not text: {e}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    use crate::config::Format;
    use crate::event::assemble::tests::{assembler, event};
    use crate::event::{Event, Message};

    fn message(event: Event) -> Message {
        assembler(Format::Structured).assemble(event).unwrap()
    }

    fn parsed(event: Event) -> Value {
        serde_json::from_slice(&message(event).body).unwrap()
    }

    /// The bytes of `data`, found by a parser and not by searching.
    fn data(body: &[u8]) -> String {
        let members: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(body).unwrap();
        members["data"].get().to_owned()
    }

    #[test]
    fn holds_every_attribute() {
        let body = parsed(event());
        assert_eq!(
            body,
            json!({
                "specversion": "1.0",
                "source": "/orders",
                "id": "018f0000-0000-7000-8000-000000000001",
                "type": "shop.order.placed",
                "subject": "4711",
                "time": "2026-11-03T12:34:56.000789Z",
                "datacontenttype": "application/json",
                "partitionkey": "order:4711",
                "sequence": "00000000000000000042",
                "aggregatetype": "order",
                "operation": "upsert",
                "schemaversion": "1.2.0",
                "entityversion": "7",
                "correlationid": "corr",
                "causationid": "cause",
                "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
                "tracestate": "a=b",
                "big": "12345678901234567890123",
                "count": 3,
                "tenant": "acme",
                "test": true,
                "data": {"total": 12},
            })
        );
    }

    #[test]
    fn leaves_out_what_is_absent() {
        let mut event = event();
        event.entity_version = None;
        event.correlation_id = None;
        event.causation_id = None;
        event.traceparent = None;
        event.tracestate = None;
        event.headers = None;
        let body = parsed(event);
        let names: Vec<&str> = body.as_object().unwrap().keys().map(String::as_str).collect();
        for absent in ["entityversion", "correlationid", "causationid", "traceparent", "tracestate", "tenant"]
        {
            assert!(!names.contains(&absent), "{absent}");
        }
        assert_eq!(names.len(), 13);
    }

    #[test]
    fn a_delete_has_null_data() {
        let mut event = event();
        event.payload = None;
        let body = parsed(event);
        assert_eq!((&body["operation"], &body["data"]), (&json!("delete"), &Value::Null));
        assert!(body.as_object().unwrap().contains_key("data"));
    }

    #[test]
    fn payload_bytes_survive() {
        for payload in [
            r#"{"n":9007199254740993,"m":1.10,"e":1E400,"d":12345678901234567890123.0000}"#,
            "{ \"a\" :\t[ 1 ,\n 2 ] , \"a\":3 }",
            r#"{"s":"\ud800","t":"\u0000","u":"é😀\/"}"#,
            "[]",
            "0",
            "\"text\"",
        ] {
            let mut event = event();
            event.payload = Some(payload.into());
            assert_eq!(data(&message(event).body), payload);
        }
    }

    #[test]
    fn capacity_is_enough_for_an_ordinary_event() {
        let mut event = event();
        event.payload = Some(vec![b'1'; 2000].into());
        let body = message(event).body;
        assert!(body.capacity() < body.len() + 600, "{} of {}", body.len(), body.capacity());
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn hostile_text_is_escaped(id in "(?s).{1,60}", correlation in "(?s).{0,60}", version in "(?s).{0,20}") {
            let mut event = event();
            event.aggregate_id = id.as_str().into();
            event.correlation_id = Some(correlation.clone());
            event.schema_version = version.as_str().into();
            let body = parsed(event);
            prop_assert_eq!(&body["subject"], &json!(id));
            prop_assert_eq!(&body["partitionkey"], &json!(format!("order:{id}")));
            prop_assert_eq!(&body["correlationid"], &json!(correlation));
            prop_assert_eq!(&body["schemaversion"], &json!(version));
        }

        #[test]
        fn any_payload_survives(value in json_value(), pretty: bool) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let mut event = event();
            event.payload = Some(text.clone().into());
            prop_assert_eq!(data(&message(event).body), text);
        }
    }
}
