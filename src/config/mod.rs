//! Configuration: parsed once into types that cannot be invalid.
//!
//! `keys` is the table of all keys, `load` reads file and environment into `raw`, `validate` turns that into types by way
//! of `reader` (one value each), `queues` and `otel`, and reports every mistake together; `units` parses durations and sizes,
//! `template` the routing key, `secret` keeps passwords out of every print.

mod keys;
pub mod load;
pub mod otel;
mod queues;
mod raw;
mod reader;
pub mod secret;
pub mod template;
#[cfg(test)]
mod tests;
pub mod units;
mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use keys::reference;
pub use load::{ConfigErrors, environment, load};
pub use otel::Otel;
pub use secret::SecretString;
pub use template::Template;

/// Everything `statecast` can be told, valid.
#[derive(Clone, Debug)]
pub struct Config {
    /// Pipeline: `[a-z0-9-]{1,48}`.
    pub name: String,
    /// `[postgres]`.
    pub postgres: Postgres,
    /// `[source]`.
    pub source: Source,
    /// `[event]`.
    pub event: EventConfig,
    /// `[rabbitmq]`.
    pub rabbitmq: Rabbitmq,
    /// `[relay]`.
    pub relay: Relay,
    /// `[unroutable]`.
    pub unroutable: Unroutable,
    /// `[retention]`.
    pub retention: Retention,
    /// `[http]`.
    pub http: Http,
    /// `[console]`.
    pub console: Console,
    /// `[otel]`; `None`: nothing is traced.
    pub otel: Option<Otel>,
    /// `[shutdown]`.
    pub shutdown: Shutdown,
    /// `[log]`.
    pub log: Log,
}

/// `[postgres]`.
#[derive(Clone, Debug)]
pub struct Postgres {
    /// A URL or key=value string that tokio-postgres has parsed without complaint.
    pub url: SecretString,
    /// TLS.
    pub tls: Tls,
}

/// TLS towards one server.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// How much of it.
    pub mode: TlsMode,
    /// PEM file of CAs; without it the platform's.
    pub ca_file: Option<PathBuf>,
    /// PEM file: client certificate chain.
    pub cert_file: Option<PathBuf>,
    /// PEM file: the client certificate's key.
    pub key_file: Option<PathBuf>,
}

/// How much TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// As the URL says: `amqps://` verifies; for PostgreSQL, `sslmode=require` verifies, everything else is plain.
    #[default]
    Url,
    /// Never.
    Disable,
    /// Always, with the server's certificate and name verified.
    Verify,
}

/// `[source]`.
#[derive(Clone, Debug)]
pub struct Source {
    /// Poll or stream.
    pub mode: Mode,
    /// How far the sequence is moved ahead when the server's timeline has changed (a standby was promoted).
    pub timeline_gap: i64,
    /// `[source.poll]`.
    pub poll: Poll,
    /// `[source.wal]`.
    pub wal: Wal,
}

/// How events are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Stream where the server allows it, else poll.
    Auto,
    /// Stream.
    Wal,
    /// Poll.
    Poll,
}

/// `[source.poll]`.
#[derive(Clone, Debug)]
pub struct Poll {
    /// Pause after a page that held rows.
    pub busy_interval: Duration,
    /// Longest pause.
    pub idle_interval: Duration,
    /// Rows per page, at most.
    pub batch: u32,
}

/// `[source.wal]`. Read and checked; used by the stream.
#[derive(Clone, Debug)]
pub struct Wal {
    /// Publication to stream from.
    pub publication: String,
    /// How often the poller checks the stream.
    pub reconcile_interval: Duration,
    /// A stream later than this is dropped.
    pub lag_max: Duration,
    /// A stream that retains more WAL than this (bytes) is dropped.
    pub retain_max: u64,
}

/// `[event]`.
#[derive(Clone, Debug)]
pub struct EventConfig {
    /// CloudEvents `source`, a URI reference.
    pub source: String,
    /// Put before every event type.
    pub type_prefix: String,
    /// CloudEvents content mode.
    pub format: Format,
}

/// CloudEvents content mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON document.
    Structured,
    /// Payload as body, attributes as headers.
    Binary,
}

/// `[rabbitmq]`.
#[derive(Clone, Debug)]
pub struct Rabbitmq {
    /// At least one `amqp://` or `amqps://` URL.
    pub urls: Vec<SecretString>,
    /// 1–255 bytes (`amq.default` or empty are refused: confirms would say nothing about bindings).
    pub exchange: String,
    /// Routing key template.
    pub routing_key: Template,
    /// Check or create the topology.
    pub declare: Declare,
    /// Order within a key.
    pub ordering: Ordering,
    /// Unconfirmed messages per lane, at most.
    pub window: usize,
    /// Connections that publish.
    pub lanes: usize,
    /// Wait for a dead predecessor's last messages.
    pub fence: bool,
    /// Bytes of a body, at most.
    pub max_message_size: u64,
    /// No confirm for this long is reported.
    pub confirm_timeout: Duration,
    /// TLS.
    pub tls: Tls,
    /// Management API, for `doctor`.
    pub management_url: Option<SecretString>,
    /// Queues that `declare = "create"` makes and `"check"` looks for.
    pub queues: Vec<Queue>,
}

/// What is done about exchange and queues at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declare {
    /// Passive declares only.
    Check,
    /// Exchange, listed queues and bindings are created.
    Create,
}

/// Order within a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ordering {
    /// One message of a key in flight: promise 2 holds.
    Strict,
    /// Many in flight: a nack or return can invert first deliveries.
    Pipelined,
}

/// `[[rabbitmq.queues]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Queue name, 1–255 bytes.
    pub name: String,
    /// Binding keys (topic patterns).
    pub bindings: Vec<String>,
    /// `quorum` (default), `classic` or `stream`.
    pub kind: QueueKind,
    /// Further `x-…` arguments, by name.
    pub arguments: Vec<(String, Argument)>,
}

/// Queue type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// Replicated.
    Quorum,
    /// One node.
    Classic,
    /// A log.
    Stream,
}

impl QueueKind {
    /// The value of `x-queue-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            QueueKind::Quorum => "quorum",
            QueueKind::Classic => "classic",
            QueueKind::Stream => "stream",
        }
    }
}

/// A queue argument's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Text.
    Text(String),
    /// Number.
    Int(i64),
    /// Truth.
    Bool(bool),
}

/// `[relay]`.
#[derive(Clone, Debug)]
pub struct Relay {
    /// Bytes between source and confirm, at most (one larger event passes alone).
    pub read_ahead: u64,
}

/// `[unroutable]`.
#[derive(Clone, Debug)]
pub struct Unroutable {
    /// How long an unroutable event is retried before it is parked.
    pub park_after: Duration,
}

/// `[retention]`.
#[derive(Clone, Debug)]
pub struct Retention {
    /// Settled chunks older than this are dropped.
    pub keep: Duration,
    /// Settled chunks are dropped while the outbox is larger than this (bytes).
    pub max_size: u64,
    /// Rows per chunk.
    pub chunk_rows: i64,
}

/// `[http]`.
#[derive(Clone, Debug)]
pub struct Http {
    /// Probes and metrics.
    pub listen: SocketAddr,
}

/// `[console]`.
#[derive(Clone, Debug)]
pub struct Console {
    /// Where it answers; `None`: nowhere. Beyond loopback there is a token.
    pub listen: Option<SocketAddr>,
    /// For acts and, once there is one, for reading.
    pub token: Option<SecretString>,
    /// Payloads are shown.
    pub show_payload: bool,
}

/// `[shutdown]`.
#[derive(Clone, Debug)]
pub struct Shutdown {
    /// Time for unconfirmed messages after a stop.
    pub grace: Duration,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// Text or JSON lines.
    pub format: LogFormat,
    /// A tracing filter, e.g. `info` or `statecast=debug`.
    pub level: String,
}

/// Text or JSON lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}
