//! Every key: default, range and meaning, once.

use std::time::Duration;

/// One key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// With its sections: `source.poll.batch`.
    pub(super) path: &'static str,
    /// As it would be written; `None`: has none.
    pub(super) default: Option<&'static str>,
    /// What it takes.
    pub(super) kind: Kind,
    /// One sentence for the reference.
    pub(super) meaning: &'static str,
}

/// What a key takes.
#[derive(Debug)]
pub(super) enum Kind {
    /// Whole number, inclusive range.
    Number(i64, i64),
    /// Duration, inclusive range.
    Duration(Duration, Duration),
    /// Bytes, inclusive range.
    Size(u64, u64),
    /// A fraction from 0 to 1.
    Ratio,
    /// Truth.
    Bool,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Text, described.
    Text(&'static str),
    /// Text that never prints, described.
    Secret(&'static str),
    /// A list of such.
    Secrets(&'static str),
    /// Path of a file that can be read.
    File,
    /// `[[rabbitmq.queues]]`.
    Queues,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

const fn s(s: u64) -> Duration {
    Duration::from_secs(s)
}

const DAY: u64 = 86_400;

const fn key(path: &'static str, default: &'static str, kind: Kind, meaning: &'static str) -> Key {
    Key { path, default: Some(default), kind, meaning }
}

const fn bare(path: &'static str, kind: Kind, meaning: &'static str) -> Key {
    Key { path, default: None, kind, meaning }
}

const PG_URL: &str =
    "a PostgreSQL URL such as postgres://user:password@host:5432/database, or key=value pairs";
const AMQP_URLS: &str = "URLs such as amqp://user:password@host:5672/%2f or amqps://…";

/// All keys, in the order of the reference.
pub(super) const KEYS: &[Key] = &[
    key(
        "name",
        "statecast",
        Kind::Text("1 to 48 of a-z, 0-9 and -"),
        "Name of the pipeline: its cursor, its metrics' label, its messages' `app_id`.",
    ),
    bare(
        "postgres.url",
        Kind::Secret(PG_URL),
        "The database that holds the outbox. Required, here or as `url_file`.",
    ),
    bare("postgres.url_file", Kind::File, "File that holds `postgres.url`."),
    key(
        "postgres.tls.mode",
        "url",
        Kind::Choice(&["url", "disable", "verify"]),
        "`url`: as `sslmode` says, and `require` verifies; `disable`: never; `verify`: always, with certificate and name verified.",
    ),
    bare(
        "postgres.tls.ca_file",
        Kind::File,
        "PEM file of certificate authorities instead of the platform's.",
    ),
    bare("postgres.tls.cert_file", Kind::File, "PEM file of the client certificate chain; needs `key_file`."),
    bare("postgres.tls.key_file", Kind::File, "PEM file of the client certificate's key; needs `cert_file`."),
    key(
        "source.mode",
        "auto",
        Kind::Choice(&["auto", "wal", "poll"]),
        "`poll`: by snapshot difference; `wal`: also by a stream of logical replication that runs ahead of it; `auto`: `wal` where `wal_level = logical` and the login has REPLICATION, else `poll`. `statecast check` says which and why.",
    ),
    key(
        "source.timeline_gap",
        "1000000",
        Kind::Number(1, 1_000_000_000),
        "How far `seq` is moved ahead after a standby was promoted, so that no number is issued twice.",
    ),
    key(
        "source.poll.busy_interval",
        "5ms",
        Kind::Duration(ms(1), s(60)),
        "Pause after a page that held events; at most `idle_interval`.",
    ),
    key(
        "source.poll.idle_interval",
        "100ms",
        Kind::Duration(ms(1), s(60)),
        "The longest pause when nothing happens.",
    ),
    key("source.poll.batch", "1000", Kind::Number(1, 100_000), "Rows per page."),
    key(
        "source.wal.publication",
        "statecast",
        Kind::Text("a publication's name of 1 to 63 bytes"),
        "Publication to stream from: `statecast install` creates it, and pipelines of one database may share it.",
    ),
    key(
        "source.wal.reconcile_interval",
        "1s",
        Kind::Duration(ms(10), s(60)),
        "How often polling checks what the stream brought.",
    ),
    key(
        "source.wal.lag_max",
        "10s",
        Kind::Duration(ms(100), s(3600)),
        "A stream that lags more is dropped; polling carries on, and a new stream is tried later.",
    ),
    key(
        "source.wal.retain_max",
        "1GiB",
        Kind::Size(MIB, 1024 * TIB),
        "A stream that makes the server keep more WAL is dropped in the same way.",
    ),
    key(
        "event.source",
        "/<name>",
        Kind::Text("a URI reference of 1 to 512 bytes, without spaces"),
        "CloudEvents `source` of every event.",
    ),
    key(
        "event.type_prefix",
        "",
        Kind::Text("up to 127 bytes without spaces (prefix and event type share 255)"),
        "Put before every event type, such as `com.example.`.",
    ),
    key(
        "event.format",
        "structured",
        Kind::Choice(&["structured", "binary"]),
        "`structured`: one JSON document; `binary`: the payload as body, attributes as headers.",
    ),
    bare(
        "rabbitmq.urls",
        Kind::Secrets(AMQP_URLS),
        "Brokers of one cluster, tried in random order. Required, here or as `urls_file`.",
    ),
    bare("rabbitmq.urls_file", Kind::File, "File that holds `rabbitmq.urls`."),
    key(
        "rabbitmq.exchange",
        "statecast.events",
        Kind::Text("an exchange's name of 1 to 255 bytes"),
        "Exchange to publish to, a topic exchange if Statecast creates it.",
    ),
    key(
        "rabbitmq.routing_key",
        "{aggregate_type}.{event_type}",
        Kind::Text(
            "text with {aggregate_type}, {aggregate_id}, {event_type}; {{ and }} for braces; at most 255 bytes when filled",
        ),
        "Routing key template.",
    ),
    key(
        "rabbitmq.declare",
        "check",
        Kind::Choice(&["check", "create"]),
        "`check`: exchange and listed queues must exist; `create`: make them and their bindings.",
    ),
    key(
        "rabbitmq.ordering",
        "strict",
        Kind::Choice(&["strict", "pipelined"]),
        "`strict`: one event of a key in flight; `pipelined`: many, and a nack or return can invert first deliveries.",
    ),
    // Measured at 0.8 kB into a quorum queue: 250 to 8,000 carry the same rate, and each thousand costs 4 MB and some CPU.
    // 500 is a confirm of 20 ms at 25,000 events/s.
    key("rabbitmq.window", "500", Kind::Number(1, 65_535), "Unconfirmed messages per lane, at most."),
    key(
        "rabbitmq.lanes",
        "1",
        Kind::Number(1, 64),
        "Connections that publish; a key always takes the same one.",
    ),
    key(
        "rabbitmq.fence",
        "true",
        Kind::Bool,
        "Wait for a dead predecessor's last messages; without it they may arrive after newer ones.",
    ),
    key(
        "rabbitmq.max_message_size",
        "16MiB",
        Kind::Size(KIB, 512 * MIB),
        "Largest body; the broker's own limit must not be lower.",
    ),
    key(
        "rabbitmq.confirm_timeout",
        "30s",
        Kind::Duration(ms(100), s(3600)),
        "A confirm that takes longer is reported by metric and `/ready`.",
    ),
    key(
        "rabbitmq.tls.mode",
        "url",
        Kind::Choice(&["url", "disable", "verify"]),
        "`url`: `amqps://` verifies, `amqp://` is plain; `disable` and `verify` refuse URLs that say otherwise.",
    ),
    bare(
        "rabbitmq.tls.ca_file",
        Kind::File,
        "PEM file of certificate authorities instead of the platform's.",
    ),
    bare("rabbitmq.tls.cert_file", Kind::File, "PEM file of the client certificate chain; needs `key_file`."),
    bare("rabbitmq.tls.key_file", Kind::File, "PEM file of the client certificate's key; needs `cert_file`."),
    bare(
        "rabbitmq.management_url",
        Kind::Secret("a URL such as http://user:password@host:15672"),
        "Management API, so that `doctor` can look at bindings, queues, alarms and permissions; without it they read `not examined`.",
    ),
    bare("rabbitmq.management_url_file", Kind::File, "File that holds `rabbitmq.management_url`."),
    key(
        "rabbitmq.queues",
        "[]",
        Kind::Queues,
        "Queues to look for or to create: tables of `name`, `bindings` (default `[\"#\"]`), `type` (`quorum`, `classic`, `stream`; default `quorum`), `arguments` (default none).",
    ),
    key(
        "relay.read_ahead",
        "8MiB",
        Kind::Size(64 * KIB, 4 * GIB),
        "Bytes between reading and confirm, at most; one larger event passes alone.",
    ),
    key(
        "unroutable.park_after",
        "10m",
        Kind::Duration(s(1), s(30 * DAY)),
        "How long an unroutable event is retried before it is parked, for a person to decide. Its key's later events wait behind it.",
    ),
    key(
        "retention.keep",
        "24h",
        Kind::Duration(s(0), s(3650 * DAY)),
        "Settled chunks that are older are dropped.",
    ),
    key(
        "retention.max_size",
        "10GiB",
        Kind::Size(MIB, 1024 * TIB),
        "Settled chunks are dropped while the outbox is larger.",
    ),
    key(
        "retention.chunk_rows",
        "1000000",
        Kind::Number(1_000, 1_000_000_000),
        "Rows per chunk of the outbox.",
    ),
    key(
        "http.listen",
        "127.0.0.1:9465",
        Kind::Text("address:port, such as 0.0.0.0:9465 or [::]:9465"),
        "Where `/live`, `/ready` and `/metrics` answer; port 0 takes a free one.",
    ),
    key(
        "console.listen",
        "127.0.0.1:9466",
        Kind::Text("address:port, such as 0.0.0.0:9466 or [::1]:9466, or off"),
        "Where the web console answers; port 0 takes a free one, `off` is none. Beyond loopback it needs a token.",
    ),
    bare(
        "console.token",
        Kind::Secret("a secret text of at least 16 bytes without spaces"),
        "Who has it may retry and discard events in the console; once there is one, reading needs it as well.",
    ),
    bare("console.token_file", Kind::File, "File that holds `console.token`."),
    key("console.show_payload", "false", Kind::Bool, "Show payloads in the console."),
    bare(
        "otel.endpoint",
        Kind::Secret("a URL such as http://collector:4318 or https://otlp.example.com"),
        "Where spans of events are sent by OTLP over HTTP; `/v1/traces` is put behind it. Needs a program built with `--features otel`. Without it nothing is traced.",
    ),
    bare("otel.endpoint_file", Kind::File, "File that holds `otel.endpoint`."),
    bare(
        "otel.headers",
        Kind::Secret("lines of `name: value`"),
        "Headers of each request, such as `authorization: Bearer …`.",
    ),
    bare("otel.headers_file", Kind::File, "File that holds `otel.headers`."),
    key(
        "otel.service_name",
        "statecast",
        Kind::Text("1 to 255 bytes"),
        "The spans' resource attribute `service.name`.",
    ),
    key(
        "otel.sample",
        "0",
        Kind::Ratio,
        "Share of the events without a sampled `traceparent` that are traced as well.",
    ),
    key(
        "otel.timeout",
        "10s",
        Kind::Duration(ms(100), s(60)),
        "For one request, connection and answer included.",
    ),
    key(
        "otel.tls.mode",
        "url",
        Kind::Choice(&["url", "disable", "verify"]),
        "`url`: `https://` verifies, `http://` is plain; `disable` and `verify` refuse URLs that say otherwise.",
    ),
    bare("otel.tls.ca_file", Kind::File, "PEM file of certificate authorities instead of the platform's."),
    bare("otel.tls.cert_file", Kind::File, "PEM file of the client certificate chain; needs `key_file`."),
    bare("otel.tls.key_file", Kind::File, "PEM file of the client certificate's key; needs `cert_file`."),
    key("shutdown.grace", "20s", Kind::Duration(s(0), s(600)), "Time for unconfirmed messages after a stop."),
    key(
        "log.format",
        "text",
        Kind::Choice(&["text", "json"]),
        "Lines for people or for machines, on standard error.",
    ),
    key(
        "log.level",
        "info",
        Kind::Text("error, warn, info, debug, trace or off, or such as info,statecast::sink=debug"),
        "What is logged.",
    ),
];

/// The reference of all keys as a markdown table, one key a line: what `docs/configuration.md` holds.
pub fn reference() -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let mut table = String::from("| key | default | takes | meaning |\n|---|---|---|---|\n");
    for key in KEYS {
        let default = match key.default {
            Some("") => "empty".to_owned(),
            Some(default) => format!("`{default}`"),
            None => "–".to_owned(),
        };
        let takes = cell(&key.kind.to_string());
        table.push_str(&format!("| `{}` | {default} | {takes} | {} |\n", key.path, cell(key.meaning)));
    }
    table
}
