//! A message as AMQP properties, and the limits it must keep.
//!
//! A header table over the negotiated frame size closes the connection, a body over the broker's limit closes the
//! channel, and neither answer names the event: so both are refused here, where the event is known.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use crate::contract::Published;
use crate::event::{HeaderValue, Message};

/// AMQP short strings hold at most this many bytes.
const SHORT_STRING_MAX: usize = 255;
/// Frame header (7), frame end (1).
const FRAME_OVERHEAD: usize = 8;
/// Class, weight, body size, property flags; delivery mode, timestamp.
const CONTENT_HEADER_FIXED: usize = 14 + 1 + 8;
/// Persistent.
const DELIVERY_MODE: u8 = 2;

/// What the broker accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Negotiated frame size in bytes; 0 = none.
    pub frame_max: usize,
    /// Bytes of a body.
    pub body_max: u64,
}

/// What goes with every message of a pipeline.
#[derive(Clone, Debug)]
pub struct Envelope {
    /// `app_id`.
    pub app_id: ShortString,
    /// Exchange.
    pub exchange: ShortString,
}

/// A message ready for lapin.
#[derive(Debug)]
pub struct Encoded {
    /// Routing key.
    pub routing_key: ShortString,
    /// Properties with headers.
    pub properties: BasicProperties,
}

/// Encodes, or says why the message can never go.
///
/// # Errors
/// [`Published::TooLarge`] or [`Published::Invalid`].
pub fn encode(message: &Message, envelope: &Envelope, limits: Limits) -> Result<Encoded, Published> {
    let body = message.body.len() as u64;
    if body > limits.body_max {
        let reason = format!("body of {body} bytes is over rabbitmq.max_message_size = {}", limits.body_max);
        return Err(Published::TooLarge { reason });
    }
    let header = header_frame_bytes(message, envelope);
    if limits.frame_max > 0 && header > limits.frame_max {
        let reason = format!(
            "its headers need a frame of {header} bytes and the broker's frame_max is {}",
            limits.frame_max
        );
        return Err(Published::TooLarge { reason });
    }
    let mut headers = FieldTable::default();
    for (name, value) in &message.headers {
        let value = match value {
            HeaderValue::Text(text) => AMQPValue::LongString(LongString::from(text.as_bytes())),
            HeaderValue::Bool(value) => AMQPValue::Boolean(*value),
            HeaderValue::Int(value) => AMQPValue::LongInt(*value),
        };
        headers.insert(short(name, "header name")?, value);
    }
    let mut properties = BasicProperties::default()
        .with_delivery_mode(DELIVERY_MODE)
        .with_content_type(message.content_type.into())
        .with_message_id(short(message.event_id.hyphenated().encode_lower(&mut [0; 36]), "message_id")?)
        .with_type(short(&message.event_type, "type")?)
        .with_timestamp(message.timestamp_s)
        .with_app_id(envelope.app_id.clone())
        .with_headers(headers);
    if let Some(correlation_id) = &message.correlation_id {
        properties = properties.with_correlation_id(short(correlation_id, "correlation_id")?);
    }
    Ok(Encoded { routing_key: short(&message.routing_key, "routing key")?, properties })
}

fn short(text: &str, what: &str) -> Result<ShortString, Published> {
    ShortString::try_new(text).map_err(|_| Published::Invalid {
        reason: format!("{what} has {} bytes; AMQP allows {SHORT_STRING_MAX}", text.len()),
    })
}

/// Bytes of the content header frame, an upper bound.
fn header_frame_bytes(message: &Message, envelope: &Envelope) -> usize {
    let shorts = [
        message.content_type.len(),
        36,
        message.event_type.len(),
        envelope.app_id.as_str().len(),
        message.correlation_id.as_ref().map_or(0, String::len),
    ];
    let table: usize = message
        .headers
        .iter()
        .map(|(name, value)| {
            2 + name.len()
                + match value {
                    HeaderValue::Text(text) => 4 + text.len(),
                    HeaderValue::Bool(_) => 1,
                    HeaderValue::Int(_) => 4,
                }
        })
        .sum();
    FRAME_OVERHEAD + CONTENT_HEADER_FIXED + shorts.iter().map(|n| n + 1).sum::<usize>() + 4 + table
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn message() -> Message {
        Message {
            seq: 1,
            event_id: Uuid::from_u128(1),
            key_hash: 1,
            routing_key: "order.created".into(),
            event_type: "created".into(),
            content_type: "application/json",
            timestamp_s: 1,
            recorded_at_us: 1,
            correlation_id: None,
            headers: vec![("a".into(), HeaderValue::Text("b".into()))],
            body: vec![b'x'; 100],
        }
    }

    fn envelope() -> Envelope {
        Envelope { app_id: "orders".into(), exchange: "e".into() }
    }

    const LIMITS: Limits = Limits { frame_max: 131_072, body_max: 100 };

    #[test]
    fn limits_are_exact() {
        assert!(encode(&message(), &envelope(), LIMITS).is_ok());
        let body = Message { body: vec![0; 101], ..message() };
        assert!(matches!(encode(&body, &envelope(), LIMITS), Err(Published::TooLarge { .. })));
        let headers = vec![("a".into(), HeaderValue::Text("b".repeat(131_072).into()))];
        let wide = Message { headers, ..message() };
        assert!(matches!(encode(&wide, &envelope(), LIMITS), Err(Published::TooLarge { .. })));
    }

    #[test]
    fn long_short_strings_are_refused_not_fatal() {
        for message in [
            Message { routing_key: "r".repeat(256).into(), ..message() },
            Message { event_type: "t".repeat(256).into(), ..message() },
            Message { correlation_id: Some("ä".repeat(128)), ..message() },
            Message { headers: vec![("h".repeat(256).into(), HeaderValue::Bool(true))], ..message() },
        ] {
            assert!(matches!(encode(&message, &envelope(), LIMITS), Err(Published::Invalid { .. })));
        }
    }
}
