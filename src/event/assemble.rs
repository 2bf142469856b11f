//! Turns an [`Event`] into the [`Message`] that the sink publishes: routing key, properties, headers and body.
//!
//! Pure and total: what cannot be encoded is [`Invalid`] with a reason, and no value of a row makes it panic.

use std::borrow::Cow;

use time::OffsetDateTime;
use xxhash_rust::xxh3::xxh3_64;

use super::attributes::{Attributes, Invalid};
use super::binary;
use super::headers;
use super::route::{SHORT_STRING_BYTES_MAX, routing_key};
use super::structured::{self, Structured};
use super::{Event, HeaderValue, Message, Text};
use crate::config::{Config, Format, Template};

/// Assembles messages; holds what is the same for all of them.
#[derive(Clone, Debug)]
pub struct Assembler {
    source: String,
    type_prefix: String,
    routing_key: Template,
    format: Format,
    structured: Structured,
}

impl Assembler {
    /// An assembler for a pipeline.
    pub fn new(config: &Config) -> Self {
        Assembler {
            source: config.event.source.clone(),
            type_prefix: config.event.type_prefix.clone(),
            routing_key: config.rabbitmq.routing_key.clone(),
            format: config.event.format,
            structured: Structured::new(&config.event.source),
        }
    }

    /// The message for `event`.
    ///
    /// # Errors
    /// It cannot be encoded: headers that are not flat or use a reserved name, a time outside the years 1 to 9999, a
    /// routing key, type or correlation id over 255 bytes, a negative sequence.
    pub fn assemble(&self, event: Event) -> Result<Message, Invalid> {
        let routing_key = routing_key(&self.routing_key, &event)?;
        let kind = joined([&self.type_prefix, &event.event_type]);
        short("type", &kind)?;
        short("correlation_id", event.correlation_id.as_deref().unwrap_or_default())?;
        let time = rfc3339(event.recorded_at_us)?;
        let sequence = sequence(event.seq)?;
        let partition_key = partition_key(&event.aggregate_type, &event.aggregate_id);
        let key_hash = xxh3_64(partition_key.as_bytes());
        let extensions = event.headers.as_deref().map(headers::parse).transpose()?.unwrap_or_default();

        let attributes = Attributes {
            event: &event,
            kind: &kind,
            time: &time,
            partition_key: &partition_key,
            sequence: &sequence,
            extensions: &extensions,
        };
        let mut cloud_events = Vec::new();
        let (content_type, encoded) = match self.format {
            Format::Structured => (structured::CONTENT_TYPE, Some(self.structured.body(&attributes)?)),
            Format::Binary => {
                binary::attributes(&self.source, &attributes, &mut cloud_events);
                (binary::CONTENT_TYPE, None)
            }
        };
        let body = encoded.unwrap_or_else(|| event.payload.unwrap_or_default().to_vec());

        let mut headers = Vec::with_capacity(5 + extensions.len() + cloud_events.len());
        let mut put = |name: &'static str, value: Text| {
            headers.push((Cow::Borrowed(name), HeaderValue::Text(value)));
        };
        put("partitionkey", partition_key);
        put("sequence", sequence);
        put("schemaversion", event.schema_version);
        event.traceparent.into_iter().for_each(|value| put("traceparent", value.into()));
        event.tracestate.into_iter().for_each(|value| put("tracestate", value.into()));
        headers.extend(extensions.into_iter().map(|(name, value)| (Cow::Owned(name), value)));
        headers.append(&mut cloud_events);

        Ok(Message {
            seq: event.seq,
            event_id: event.event_id,
            key_hash,
            routing_key,
            event_type: kind,
            content_type,
            // AMQP counts unsigned seconds; what was recorded before 1970 is told by `time`.
            timestamp_s: u64::try_from(event.recorded_at_us / 1_000_000).unwrap_or(0),
            recorded_at_us: event.recorded_at_us,
            correlation_id: event.correlation_id,
            headers,
            body,
        })
    }
}

/// The partition key: what events must not overtake each other. A type has no colon, so no two keys collide.
pub fn partition_key(aggregate_type: &str, aggregate_id: &str) -> Text {
    joined([aggregate_type, ":", aggregate_id])
}

fn joined<const N: usize>(parts: [&str; N]) -> Text {
    let mut text = Text::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.into_iter().for_each(|part| text.push_str(part));
    text
}

/// 64-bit hash of the partition key. Stored and compared across versions: it never changes.
pub fn key_hash(aggregate_type: &str, aggregate_id: &str) -> u64 {
    xxh3_64(partition_key(aggregate_type, aggregate_id).as_bytes())
}

/// CloudEvents `sequence`: zero-padded, so that it sorts as text.
fn sequence(seq: i64) -> Result<Text, Invalid> {
    if seq < 0 {
        return Err(Invalid::new(format!("the sequence {seq} is negative")));
    }
    let mut text = Text::with_capacity(20);
    digits(&mut text, seq.unsigned_abs(), 20);
    Ok(text)
}

/// RFC 3339 in UTC with microseconds.
fn rfc3339(recorded_at_us: i64) -> Result<Text, Invalid> {
    let out_of_range = || {
        Invalid::new(format!("recorded_at ({recorded_at_us} µs since 1970) is outside the years 1 to 9999"))
    };
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(recorded_at_us) * 1000)
        .ok()
        .filter(|at| (1..=9999).contains(&at.year()))
        .ok_or_else(out_of_range)?;
    let parts: [(u32, usize, char); 7] = [
        (at.year().unsigned_abs(), 4, '-'),
        (u8::from(at.month()).into(), 2, '-'),
        (at.day().into(), 2, 'T'),
        (at.hour().into(), 2, ':'),
        (at.minute().into(), 2, ':'),
        (at.second().into(), 2, '.'),
        (at.microsecond(), 6, 'Z'),
    ];
    let mut text = Text::with_capacity(27);
    for (value, width, after) in parts {
        digits(&mut text, value.into(), width);
        text.push(after);
    }
    Ok(text)
}

/// The last `width` digits of at most 20, zero-padded. Twice per event, where `format!` would take its time.
fn digits(text: &mut Text, mut value: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let from = digits.len().saturating_sub(width);
    for digit in digits[from..].iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    text.extend(digits[from..].iter().map(|digit| char::from(*digit)));
}

fn short(what: &str, text: &str) -> Result<(), Invalid> {
    if text.len() > SHORT_STRING_BYTES_MAX {
        return Err(Invalid::new(format!(
            "{what} has {} bytes, AMQP allows {SHORT_STRING_BYTES_MAX}",
            text.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::template::Part;
    use bytes::Bytes;
    use proptest::prelude::*;
    use uuid::Uuid;

    /// An assembler as the configuration in the documentation makes it.
    pub(in crate::event) fn assembler(format: Format) -> Assembler {
        Assembler {
            source: "/orders".into(),
            type_prefix: "shop.".into(),
            routing_key: Template {
                parts: vec![Part::AggregateType, Part::Literal(".".into()), Part::EventType],
            },
            format,
            structured: Structured::new("/orders"),
        }
    }

    /// An event with every attribute.
    pub(crate) fn event() -> Event {
        Event {
            xid: 700,
            seq: 42,
            event_id: Uuid::from_u128(0x018f_0000_0000_7000_8000_0000_0000_0001),
            aggregate_type: "order".into(),
            aggregate_id: "4711".into(),
            event_type: "order.placed".into(),
            schema_version: "1.2.0".into(),
            entity_version: Some(7),
            payload: Some(Bytes::from_static(br#"{"total":12}"#)),
            headers: Some(
                br#"{"tenant":"acme","count":3,"test":true,"big":12345678901234567890123,"no":null}"#
                    .to_vec(),
            ),
            correlation_id: Some("corr".into()),
            causation_id: Some("cause".into()),
            traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            tracestate: Some("a=b".into()),
            recorded_at_us: 1_793_709_296_000_789,
        }
    }

    #[test]
    fn properties_and_headers() {
        let message = assembler(Format::Structured).assemble(event()).unwrap();
        assert_eq!(message.seq, 42);
        assert_eq!(message.routing_key, "order.order.placed");
        assert_eq!(message.event_type, "shop.order.placed");
        assert_eq!(message.content_type, "application/cloudevents+json");
        assert_eq!(message.timestamp_s, 1_793_709_296);
        assert_eq!(message.correlation_id.as_deref(), Some("corr"));
        assert_eq!(message.key_hash, key_hash("order", "4711"));
        let names: Vec<&str> = message.headers.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(
            names,
            [
                "partitionkey",
                "sequence",
                "schemaversion",
                "traceparent",
                "tracestate",
                "big",
                "count",
                "tenant",
                "test"
            ]
        );
    }

    /// Stored in tables and compared by other versions: these values must never change.
    #[test]
    fn key_hash_is_stable_for_ever() {
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2, "the algorithm's own test vector");
        let long = "Zoë:😀 and a rather long identifier, to leave the short input path";
        assert_eq!(
            [key_hash("order", "4711"), key_hash("a", "b"), key_hash("customer", long)],
            [8_397_505_155_478_155_539, 3_865_638_370_100_626_521, 16_524_771_496_436_755_131]
        );
    }

    #[test]
    fn time_has_microseconds_and_bounds() {
        let of = |us| rfc3339(us).map_err(|e| e.reason);
        assert_eq!(of(0).unwrap(), "1970-01-01T00:00:00.000000Z");
        assert_eq!(of(-1).unwrap(), "1969-12-31T23:59:59.999999Z");
        assert_eq!(of(1_709_210_096_000_001).unwrap(), "2024-02-29T12:34:56.000001Z");
        assert_eq!(of(253_402_300_799_999_999).unwrap(), "9999-12-31T23:59:59.999999Z");
        assert_eq!(of(-62_135_596_800_000_000).unwrap(), "0001-01-01T00:00:00.000000Z");
        for us in [253_402_300_800_000_000, -62_135_596_800_000_001, i64::MAX, i64::MIN] {
            assert!(of(us).unwrap_err().contains("outside the years"), "{us}");
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        let assembler = assembler(Format::Structured);
        let reason = |change: fn(&mut Event)| {
            let mut event = event();
            change(&mut event);
            assembler.assemble(event).unwrap_err().reason
        };
        assert!(reason(|e| e.seq = -1).contains("negative"));
        assert!(reason(|e| e.headers = Some(b"[]".to_vec())).contains("headers"));
        assert!(reason(|e| e.recorded_at_us = i64::MAX).contains("recorded_at"));
        assert!(reason(|e| e.correlation_id = Some("x".repeat(256))).contains("correlation_id"));
        assert!(reason(|e| e.event_type = "x".repeat(250).into()).contains("routing key"));
        assert!(
            reason(|e| (e.aggregate_type, e.event_type) = (Text::default(), "x".repeat(251).into()))
                .contains("type")
        );
    }

    #[test]
    fn sequence_sorts_as_text() {
        assert_eq!(sequence(0).unwrap(), "00000000000000000000");
        assert_eq!(sequence(i64::MAX).unwrap(), "09223372036854775807");
    }

    fn hostile_bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
        prop::option::of(prop::collection::vec(any::<u8>(), 0..60))
    }

    fn hostile_text() -> impl Strategy<Value = Option<String>> {
        prop::option::of("(?s).{0,300}")
    }

    prop_compose! {
        fn hostile_event()(
            (seq, entity_version, recorded_at_us) in any::<(i64, Option<i64>, i64)>(),
            (aggregate_type, aggregate_id, event_type) in ("(?s).{0,80}", "(?s).{0,220}", "(?s).{0,140}"),
            (payload, headers) in (hostile_bytes(), hostile_bytes()),
            (correlation_id, causation_id, tracestate) in (hostile_text(), hostile_text(), hostile_text()),
        ) -> Event {
            let (aggregate_type, aggregate_id) = (aggregate_type.into(), aggregate_id.into());
            let (event_type, payload) = (event_type.into(), payload.map(Bytes::from));
            Event {
                seq, entity_version, recorded_at_us, aggregate_type, aggregate_id, event_type, payload, headers,
                correlation_id, causation_id, tracestate, ..event()
            }
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_stays_within_amqp(event in hostile_event(), binary: bool) {
            let format = if binary { Format::Binary } else { Format::Structured };
            if let Ok(message) = assembler(format).assemble(event) {
                prop_assert!(message.routing_key.len() <= 255);
                prop_assert!(message.event_type.len() <= 255);
                prop_assert!(message.correlation_id.unwrap_or_default().len() <= 255);
            }
        }
    }
}
