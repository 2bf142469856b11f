//! One outbox row ([`Event`]) and the message it becomes ([`Message`]). Pure: no I/O, no clock.
//!
//! - `assemble` turns an event into a message: routing key, properties, headers, and a body made by
//! - `structured` (one CloudEvents JSON document) or `binary` (the payload as it was committed).
//! - `headers` reads the extension attributes, `route` renders the routing key.

pub mod assemble;
pub mod attributes;
pub mod binary;
pub mod headers;
pub mod route;
pub mod structured;

use std::borrow::Cow;

use bytes::Bytes;
use compact_str::CompactString;
use uuid::Uuid;

/// A transaction id as PostgreSQL's `xid8`: 64 bits, never wraps.
pub type Xid = u64;

/// `statecast.outbox.seq`: allocated in write order, unique for ever, with gaps.
pub type Seq = i64;

/// A name or an identifier of an event. Most are short: up to 24 bytes need no allocation, of which there would be a
/// dozen for each event.
pub type Text = CompactString;

/// One row of `statecast.outbox`, with its JSON as the bytes that were committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The writing (top-level) transaction.
    pub xid: Xid,
    /// Position in write order.
    pub seq: Seq,
    /// The idempotency key, fixed at write.
    pub event_id: Uuid,
    /// `[A-Za-z0-9_-]{1,64}`.
    pub aggregate_type: Text,
    /// 1–200 bytes.
    pub aggregate_id: Text,
    /// `[A-Za-z0-9_.-]{1,128}`.
    pub event_type: Text,
    /// Semantic version of the payload's schema.
    pub schema_version: Text,
    /// The application's own version of the entity, if it keeps one.
    pub entity_version: Option<i64>,
    /// Full state as JSON text; `None` = the entity was deleted. Of a polled row it is still in the buffer that it was
    /// received in.
    pub payload: Option<Bytes>,
    /// Extension attributes: a flat JSON object, as text.
    pub headers: Option<Vec<u8>>,
    /// Groups the events of one request or saga.
    pub correlation_id: Option<String>,
    /// The event or command that led to this one.
    pub causation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// W3C trace context.
    pub tracestate: Option<String>,
    /// Time of writing, microseconds since 1970-01-01 UTC.
    pub recorded_at_us: i64,
}

impl Event {
    /// Bytes of its JSON, which is most of it.
    pub fn json_bytes(&self) -> usize {
        self.payload.as_ref().map_or(0, Bytes::len) + self.headers.as_ref().map_or(0, Vec::len)
    }
}

/// A message as the sink publishes it. Knows AMQP's vocabulary, but no client library's types.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// The event's place in write order: how outcomes are matched in the relay.
    pub seq: Seq,
    /// `message_id`.
    pub event_id: Uuid,
    /// 64-bit hash of the partition key: lane and ordering.
    pub key_hash: u64,
    /// Rendered from the template; at most 255 bytes.
    pub routing_key: Text,
    /// AMQP `type`: prefix + event type.
    pub event_type: Text,
    /// AMQP `content_type`.
    pub content_type: &'static str,
    /// AMQP `timestamp`, seconds since the epoch.
    pub timestamp_s: u64,
    /// Time of writing, microseconds since the epoch, for latency figures.
    pub recorded_at_us: i64,
    /// AMQP `correlation_id`.
    pub correlation_id: Option<String>,
    /// AMQP headers in a fixed order.
    pub headers: Vec<(Cow<'static, str>, HeaderValue)>,
    /// The body, complete.
    pub body: Vec<u8>,
}

/// What an event costs in memory besides its body and headers: its strings, its place in the relay's books, its key, and
/// what the AMQP client holds until the confirm. Measured with small events, where it is most of it.
const MESSAGE_BYTES: usize = 1_000;
/// The same for a header: two strings and their places.
const HEADER_BYTES: usize = 128;

impl Message {
    /// Bytes this message holds in memory, roughly: what the read-ahead is measured in.
    pub fn bytes(&self) -> usize {
        self.body.len() + self.headers.len() * HEADER_BYTES + MESSAGE_BYTES
    }
}

/// An AMQP header value of the kinds that Statecast writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderValue {
    /// AMQP long string.
    Text(Text),
    /// AMQP boolean.
    Bool(bool),
    /// AMQP 32-bit integer (`I`).
    Int(i32),
}
