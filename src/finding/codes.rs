//! The table of everything that `statecast doctor` looks for. `docs/doctor.md` holds [`reference()`].

use serde::{Serialize, Serializer};

use super::Severity;

/// Whose business it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Server {
    /// The database.
    #[serde(rename = "PostgreSQL")]
    Postgres,
    /// The broker.
    #[serde(rename = "RabbitMQ")]
    Rabbitmq,
    /// Files of this process.
    #[serde(rename = "Statecast")]
    Statecast,
}

impl Server {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Server::Postgres => "PostgreSQL",
            Server::Rabbitmq => "RabbitMQ",
            Server::Statecast => "Statecast",
        }
    }
}

/// What is said about one code.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Stable, for scripts.
    pub name: &'static str,
    /// Where it is looked for.
    pub server: Server,
    /// How bad it can be, the worst first.
    pub severities: &'static [Severity],
    /// What is said where nothing is wrong.
    pub good: &'static str,
    /// What can be wrong, and why it matters.
    pub wrong: &'static str,
    /// What to do.
    pub remedy: &'static str,
    /// Looked at over the management API.
    pub management: bool,
}

macro_rules! codes {
    ($($code:ident: $name:literal, $server:ident $(+ $management:ident)?, [$($severity:ident),+], $good:literal, $wrong:literal, $remedy:literal;)*) => {
        /// One thing that is looked for; its meaning stands in its [`Row`].
        #[allow(missing_docs, reason = "the table says it")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code { $($code,)* }

        impl Code {
            /// All of them, in the order of the reference and of the report.
            pub const ALL: &[Code] = &[$(Code::$code,)*];

            /// What is said about it.
            pub fn row(self) -> Row {
                match self {
                    $(Code::$code => Row {
                        name: $name, server: Server::$server, severities: &[$(Severity::$severity),+],
                        good: $good, wrong: $wrong, remedy: $remedy,
                        management: !concat!($(stringify!($management),)? "").is_empty(),
                    },)*
                }
            }
        }
    };
}

codes! {
    // PostgreSQL: getting there, and what `run` rests on.
    PostgresUnreachable: "postgres-unreachable", Postgres, [Error, Warning], "a connection can be opened",
        "no connection to a primary: nothing else of PostgreSQL is examined (warning: one of several hosts cannot be reached)",
        "as the message says; `postgres.url` and `postgres.tls`";
    HostsDiffer: "hosts-differ", Postgres, [Error], "the hosts of `postgres.url` are one cluster with one primary",
        "several hosts in `postgres.url` are different clusters, or more than one of them accepts writes: events are written and read in different places",
        "name the servers of one cluster in `postgres.url`";
    Pooler: "pooler", Postgres, [Error], "each connection has a server process of its own",
        "a connection pooler hands server processes from client to client; Statecast keeps locks and settings in its sessions",
        "connect to PostgreSQL itself, or to a pool with `pool_mode = session`";
    TlsPostgres: "tls-postgres", Postgres, [Error, Warning], "its certificate is valid for long enough",
        "the server's certificate ends within 30 days (error: within 7)", "renew the certificate on the PostgreSQL server";
    ServerUnfit: "server-unfit", Postgres, [Error], "a primary of PostgreSQL 14 or newer, with an encoding that fits",
        "a version before 14, a standby, or a database in SQL_ASCII", "use another server or database in `postgres.url`";
    Schema: "schema", Postgres, [Error], "the schema is there, in a version that fits",
        "the schema `statecast` is missing, incomplete, older or newer than this program can use", "`statecast install`";
    Privileges: "privileges", Postgres, [Error], "this login has the rights of a relay",
        "rights that a relay needs are missing", "`GRANT statecast_relay TO …`";
    CursorMismatch: "cursor-mismatch", Postgres, [Error, Info], "the cursor belongs to this server",
        "the cursor was written on another cluster, or the sequence stands behind it (info: a standby was promoted since, and the relay will move the sequence ahead)",
        "restored or upgraded: `statecast cursor rebase`; else correct `postgres.url`";
    ClockPostgres: "clock-postgres", Postgres, [Warning], "its clock agrees with this machine's",
        "the clocks of this machine and of the server differ by more than a second: ages and latencies in metrics and events are off (order and lease do not rest on it)",
        "synchronise the clocks (NTP)";
    // The relays.
    LeaderNone: "leader-none", Postgres, [Error, Warning, Info], "a relay leads",
        "no relay leads the pipeline: events wait in the outbox (warning: for moments, as at each change of leader; info: it has never run)",
        "start `statecast run`, or see its log";
    LeaseStale: "lease-stale", Postgres, [Error, Warning], "the leader renews its lease",
        "the leader does not renew its lease: its process is stopped, or cut off from PostgreSQL (warning: a standby is about to follow it)",
        "look at the process that leads; see /ready of the others";
    StandbyNone: "standby-none", Postgres, [Info], "a standby is connected",
        "a relay leads and no other stands by",
        "run a second replica, if a takeover is to take seconds";
    TakeoverRights: "takeover-rights", Postgres, [Warning], "every standby may follow the leader",
        "the login of a standby may not end the connections of the leader: it could not follow one that stops answering",
        "run all relays of a pipeline with one login, or `GRANT` one to the other";
    EventsParked: "events-parked", Postgres, [Warning], "no event waits for a person",
        "events were given up (`unroutable`, `too_large`, `invalid`) and wait for a person; they hold up later events of their entities",
        "`statecast parked list`; mend the cause, then `statecast parked retry`, or `discard`";
    EventsWaiting: "events-waiting", Postgres, [Warning], "no event is set aside",
        "the broker refused events, which are tried again, with later events of their entities behind them (`nack`: a queue is full or has no majority; `unroutable`: no queue takes them)",
        "mend the queue or the binding: see `statecast parked list`, and the findings on RabbitMQ";
    RequestsUnanswered: "requests-unanswered", Postgres, [Warning], "no request of a person waits",
        "`statecast parked retry` or `discard` was asked for more than a minute ago, and no leader has acted on it",
        "see `leader-none` and `lease-stale`";
    // Streaming.
    WalLevel: "wal-level", Postgres, [Error, Info], "`wal_level` fits `source.mode`",
        "`wal_level` is not `logical`: with `source.mode = \"wal\"` `run` ends, with `auto` it polls",
        "set `wal_level = logical` and restart PostgreSQL, or set `source.mode = \"poll\"`";
    Streaming: "streaming", Postgres, [Error, Info], "nothing else stands in the way of a stream",
        "the REPLICATION right, the publication, a slot or a walsender is missing, or commits would wait for the stream",
        "as the message says, or set `source.mode = \"poll\"`";
    SlotLeft: "slot-left", Postgres, [Error], "no slot of this pipeline is left behind",
        "a slot with this pipeline's name that is not temporary or not in use: it makes the server keep WAL. Statecast leaves none",
        "drop it, as the message says";
    WalsenderLeft: "walsender-left", Postgres, [Warning], "no walsender of this pipeline is left behind",
        "a walsender of this pipeline runs, and no relay leads", "the next leader ends it; or end it, as the message says";
    SlotForeign: "slot-foreign", Postgres, [Error, Warning, Info], "no other slot retains WAL",
        "another slot: unused (warning), retaining more than 1 GiB (warning) or 10 GiB (error) of WAL, or about to be lost (error). A full disk stops the application and the relay",
        "start its reader, or drop it, as the message says; bound it by `max_slot_wal_keep_size`";
    // Transactions.
    TransactionLong: "transaction-long", Postgres, [Warning], "no transaction is open for long",
        "a transaction is open for longer than `--long-transaction`: it delays streaming, retention and vacuum",
        "let the application end it; `idle_in_transaction_session_timeout` ends idle ones";
    TransactionPrepared: "transaction-prepared", Postgres, [Warning], "no prepared transaction is waiting",
        "a prepared transaction waits for longer than `--long-transaction`: it survives restarts, holds its locks, and delays streaming, retention and vacuum",
        "`COMMIT PREPARED` or `ROLLBACK PREPARED`, whichever its coordinator says";
    VacuumHorizon: "vacuum-horizon", Postgres, [Warning], "nothing holds vacuum back",
        "a transaction, slot, prepared transaction or standby holds a snapshot that is `--horizon-age` transactions old: dead rows since then stay, here also those of `statecast.cursor`",
        "end what holds it, as the message says";
    // The outbox.
    SequenceAltered: "sequence-altered", Postgres, [Error], "`outbox.seq` counts by one, without cache or cycle",
        "the identity column was altered (cache, increment, cycle, GENERATED ALWAYS): events would be lost or overtaken, and `run` refuses",
        "the statement in the message";
    TailFilled: "tail-filled", Postgres, [Error], "the tail is empty",
        "the writers have reached the outbox's last partition: it grows without bound and retention stops there",
        "`statecast maintain`";
    ChunksShort: "chunks-short", Postgres, [Error, Warning], "there are empty chunks ahead of the writers",
        "fewer than two empty chunks are left before the tail (warning), or there is no tail (error: inserts will fail)",
        "look why upkeep does not run: a relay must lead, with the grant of `statecast_owner`; or `statecast maintain`";
    ChunkStray: "chunk-stray", Postgres, [Warning, Info], "no table is left over",
        "a table that looks like a chunk is not attached, or a detach has not been finished",
        "upkeep repairs what is empty; archive or drop one that holds rows";
    CursorStuck: "cursor-stuck", Postgres, [Warning, Info], "no cursor is left behind",
        "a pipeline's cursor has not moved for an hour, and nobody leads it, or its leader does not come on: retention keeps every chunk above it (info: no chunk waits yet)",
        "start its relay, or drop it: `statecast cursor drop` with that pipeline's name; with a leader: see its /ready";
    WriterGrants: "writer-grants", Postgres, [Warning], "nobody else may write `xid` or `seq`, or change events",
        "a role may INSERT `xid`, `seq` or `recorded_at`, or UPDATE, DELETE or TRUNCATE the outbox: order and completeness rest on these",
        "the REVOKE in the message, and `GRANT statecast_writer`";
    RowsForged: "rows-forged", Postgres, [Error, Warning], "the latest rows carry the ids of their own transactions",
        "rows whose `xid` is not that of the transaction that wrote them, or whose `seq` lies beyond the sequence: such events are late, lost or out of order. A restore from a dump leaves such rows as well, until `statecast cursor rebase`",
        "let clients write through `statecast.publish()` or without naming `xid` and `seq`";
    // RabbitMQ over AMQP.
    RabbitmqUnreachable: "rabbitmq-unreachable", Rabbitmq, [Error, Warning], "a connection can be opened",
        "no connection to any of the brokers (error) or to one of several (warning)",
        "as the message says; `rabbitmq.urls` and `rabbitmq.tls`";
    TlsRabbitmq: "tls-rabbitmq", Rabbitmq, [Error, Warning], "its certificates are valid for long enough",
        "a broker's certificate, or that of the management API, ends within 30 days (error: within 7)",
        "renew the certificate on the RabbitMQ server";
    ExchangeMissing: "exchange-missing", Rabbitmq, [Error, Info], "the exchange is there",
        "the exchange does not exist (info: `run` will create it)", "create it, or set `rabbitmq.declare = \"create\"`";
    QueueMissing: "queue-missing", Rabbitmq, [Error, Info], "the configured queues are there",
        "a queue of `rabbitmq.queues` does not exist (info: `run` will create it)",
        "create it, or set `rabbitmq.declare = \"create\"`";
    // RabbitMQ over the management API.
    ManagementUnreachable: "management-unreachable", Rabbitmq + management, [Warning], "the management API answers",
        "`rabbitmq.management_url` is set, and nobody answers there, or refuses this user",
        "correct host, user and password in `rabbitmq.management_url`; the user needs the tag `monitoring`";
    ClockRabbitmq: "clock-rabbitmq", Rabbitmq + management, [Warning], "its clock agrees with this machine's",
        "the clocks of this machine and of the broker differ by more than a second", "synchronise the clocks (NTP)";
    BrokerAlarm: "broker-alarm", Rabbitmq + management, [Error], "no alarm, no partition, every node runs",
        "a node has its memory or disk alarm (publishers are blocked), does not run, or sees a partition",
        "free memory or disk on that node; see the broker's log";
    ExchangeTransient: "exchange-transient", Rabbitmq + management, [Warning], "the exchange is durable",
        "the exchange is not durable or deletes itself: it is gone after a restart of the broker, with its bindings",
        "declare it again as durable";
    AlternateExchange: "alternate-exchange", Rabbitmq + management, [Warning], "no alternate exchange",
        "the exchange has an alternate exchange, by argument or policy: an event without a binding goes there and counts as delivered, so that a missing binding stays unnoticed",
        "remove it, or watch what arrives there";
    CatchAll: "catch-all", Rabbitmq + management, [Warning, Info], "no binding takes everything",
        "a binding takes every event. Where other bindings are specific, types that only the catch-all takes are named (warning): a missing binding stays unnoticed",
        "bind the queue that should have these types, or leave the catch-all out";
    BindingNone: "binding-none", Rabbitmq + management, [Error], "queues are bound to the exchange",
        "no queue is bound to the exchange: every event comes back, waits, and is parked", "bind a queue to it";
    TypeUnbound: "type-unbound", Rabbitmq + management, [Error], "every type seen lately has a queue",
        "no queue takes the routing key of a type that the outbox holds: its events come back, wait, and are parked",
        "bind a queue with that key";
    QueueNoConsumer: "queue-no-consumer", Rabbitmq + management, [Warning], "every queue has a consumer",
        "nobody consumes from a queue that gets events: it grows until the broker blocks publishers",
        "start the consumer, or delete the queue";
    QueueDrops: "queue-drops", Rabbitmq + management, [Warning], "no queue drops events",
        "a queue drops events beyond a length (`max-length` without `reject-publish`) or an age (`message-ttl`), by argument or policy, after they were confirmed",
        "remove the limit, or set `overflow = reject-publish` so that the relay waits instead";
    QueueTransient: "queue-transient", Rabbitmq + management, [Warning], "every queue is durable",
        "a queue is not durable, exclusive, or deletes itself: a restart of the broker or of its consumer loses its events",
        "declare a durable queue, best a quorum queue";
    QueueNotReplicated: "queue-not-replicated", Rabbitmq + management, [Warning], "every queue is replicated, or there is one node",
        "on a cluster, a queue lives on one node: with that node down its events wait or come back",
        "declare it as a quorum queue or stream";
    QueueDown: "queue-down", Rabbitmq + management, [Error, Warning], "every queue is up",
        "a queue is down or has lost its majority (error), or some of its members (warning)", "start the missing nodes";
    PolicyApplies: "policy-applies", Rabbitmq + management, [Info], "no policy applies",
        "a policy applies to the exchange or to a queue: it changes how they behave without a trace in their declaration",
        "nothing, if it was meant";
    UserPermissions: "user-permissions", Rabbitmq + management, [Error], "the user may do what a relay does",
        "the user of `rabbitmq.urls` may not write to the exchange, configure the fence queue, or, with `declare = \"create\"`, create and bind",
        "the `rabbitmqctl set_permissions` in the message";
    // Here.
    TlsOwn: "tls-own", Statecast, [Error, Warning], "the certificates in the configuration are valid for long enough",
        "a certificate in `ca_file` or `cert_file` ends within 30 days (error: within 7)",
        "renew the file, and restart or wait for the next session";
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.row().name)
    }
}

/// All codes as a markdown table: what `docs/doctor.md` holds.
pub fn reference() -> String {
    let mut table = String::from("| code | severity | on | what | remedy |\n|---|---|---|---|---|\n");
    for code in Code::ALL {
        let Row { name, server, severities, wrong, remedy, management, .. } = code.row();
        let severities: Vec<&str> = severities.iter().map(|severity| severity.as_str()).collect();
        let on = server.as_str();
        let on = if management { format!("{on} ¹") } else { on.to_owned() };
        table.push_str(&format!("| `{name}` | {} | {on} | {wrong} | {remedy} |\n", severities.join(", ")));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_differ_and_are_kebab_case() {
        let names: HashSet<&str> = Code::ALL.iter().map(|code| code.row().name).collect();
        assert_eq!(names.len(), Code::ALL.len());
        let kebab = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(names.iter().all(|name| kebab(name)), "{names:?}");
        for code in Code::ALL {
            let row = code.row();
            assert!(!row.good.is_empty() && !row.wrong.is_empty() && !row.remedy.is_empty(), "{code:?}");
            assert!(row.severities.is_sorted_by(|a, b| a > b), "{code:?}");
        }
    }

    /// `UPDATE_DOCS=1 cargo test the_documentation` writes the table.
    #[test]
    fn the_documentation_holds_the_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/doctor.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let start = text.find("| code |").unwrap();
        let end = start + text[start..].find("\n\n").map_or(text.len() - start, |end| end + 1);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{}{}{}", &text[..start], reference(), &text[end..])).unwrap();
        } else {
            assert_eq!(&text[start..end], reference(), "run this test with UPDATE_DOCS=1");
        }
    }
}
