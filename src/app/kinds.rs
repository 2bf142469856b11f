//! Every kind of error that can end a session: its class, what the relay does, what a person does. `docs/errors.md` holds
//! [`reference()`].

use super::classify::Class;

/// What is said about one kind.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// In the log, as `kind`.
    pub name: &'static str,
    /// By what it shows.
    pub error: &'static str,
    /// What to do about it.
    pub class: Class,
    /// What the relay does, where it is not what it does with every error of the class.
    pub relay: &'static str,
    /// What a person does.
    pub person: &'static str,
}

macro_rules! kinds {
    ($($kind:ident: $name:literal, $class:ident, $error:literal, $relay:literal, $person:literal;)*) => {
        /// A kind of error; its meaning stands in its [`Row`].
        #[allow(missing_docs, reason = "the table says it")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Kind { $($kind,)* }

        impl Kind {
            /// All of them, in the order of the reference.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// What is said about it.
            pub fn row(self) -> Row {
                match self {
                    $(Kind::$kind => Row {
                        name: $name, class: Class::$class, error: $error, relay: $relay, person: $person,
                    },)*
                }
            }
        }
    };
}

const EVERY_TRANSIENT: &str = "tries again";
const EVERY_LOST: &str = "hands nothing to the broker any more, stands by";
const EVERY_PERMANENT: &str = "ends, exit code 1";

kinds! {
    // PostgreSQL: getting there.
    PgUnreachable: "postgres-unreachable", Transient,
        "no connection, a broken one, or no answer in time", "",
        "look whether it runs and whether `postgres.url` leads there; more than once an hour: look at the network";
    PgSettings: "postgres-settings", Permanent,
        "`postgres.url` or a file of `postgres.tls` cannot be used", "", "correct the configuration";
    PgTls: "postgres-tls", Transient,
        "the server has no TLS, or a certificate that is not trusted; it wants TLS, or a client certificate", "",
        "as the message says: `postgres.tls`, or the server's certificate or `pg_hba.conf`";
    PgLogin: "postgres-login", Transient,
        "28000, 28P01 (user, password, `pg_hba.conf`), 3D000 (database)", "",
        "correct `postgres.url`, or the server; a password that is being rotated heals by itself";
    PgDown: "postgres-down", Transient,
        "57P01, 57P02, 57P03 (shutdown, crash, start), 57P05, 08xxx", "closes its stream at once, so that the shutdown need not wait", "nothing, if it was meant";
    PgConnections: "postgres-connections", Transient,
        "53300 (too many connections)", "",
        "raise `max_connections`, or `ALTER ROLE … CONNECTION LIMIT`; a leader needs four, a standby one, and two while it starts; the web console of each up to three while somebody uses it";
    PgDisk: "postgres-disk", Transient,
        "53100 (disk full)", "", "make room on the server's disk; until then nothing moves and nothing is lost";
    PgResources: "postgres-resources", Transient,
        "53xxx, 54xxx, 58xxx (memory, limits, system errors)", "", "see the server's log";
    PgReadOnly: "postgres-read-only", Transient,
        "25006, or the server is a standby", "looks for a primary among the hosts of `postgres.url`",
        "after a failover: nothing, if `postgres.url` names all servers or follows the primary";
    PgPooled: "postgres-pooled", Permanent,
        "a connection pooler in transaction mode is in between", "",
        "connect to PostgreSQL itself, or to a pool with `pool_mode = session`";
    PgTwoServers: "postgres-two-servers", Transient,
        "two connections reached different servers", "", "point `postgres.url` at one primary";
    PgPrivilege: "postgres-privilege", Transient,
        "42501, or a grant is missing", "", "`GRANT statecast_relay TO …`, as the message says";
    PgSchema: "postgres-schema", Transient,
        "no schema `statecast`, an older one, or a damaged one (42P01, 42703, 42883, 3F000)", "", "`statecast install`";
    PgSchemaNewer: "postgres-schema-newer", Permanent,
        "a schema of a newer major version", "", "use a newer statecast";
    PgUnfit: "postgres-unfit", Permanent,
        "older than PostgreSQL 14, or a database in SQL_ASCII", "", "use another server or database";
    PgContention: "postgres-contention", Transient,
        "55P03, 40001, 40P01, 57014, 25P03 (locks, timeouts)", "", "often: look who locks `statecast.cursor` (`pg_locks`)";
    PgOther: "postgres-other", Transient, "any other SQLSTATE", "", "see the message";
    // What is in the database.
    OtherSystem: "other-system", Permanent,
        "the cursor was written on another cluster (restore, `pg_upgrade`, wrong URL)", "",
        "`statecast cursor rebase`, or correct `postgres.url`";
    SequenceBehind: "sequence-behind", Permanent,
        "the sequence went back", "", "restored: `statecast cursor rebase`; else as the message says";
    SequenceAltered: "sequence-altered", Permanent,
        "`outbox.seq` is no plain identity column any more", "", "the statement in the message";
    RowsGone: "rows-gone", Permanent,
        "unsettled rows were deleted from the outbox", "", "find out who did; `statecast cursor rebase` goes on without them";
    RowsUnseen: "rows-unseen", Transient,
        "rows that a stream brought cannot be read: their commit waits for a synchronous standby, or they were deleted", "",
        "look at the standby; deleted rows are found by the next session";
    CursorBroken: "cursor-broken", Permanent,
        "the cursor row holds what is no snapshot", "", "restore it, or `statecast cursor rebase`";
    CursorGone: "cursor-gone", Transient,
        "the cursor row was deleted under a running relay (or `superseded`, where a write finds out first)",
        "makes a new one, where a new pipeline starts: at the oldest row, or with `--from now` after all that has committed", "use `statecast cursor drop` on a stopped relay";
    WalMode: "wal-mode", Permanent,
        "`source.mode = \"wal\"`, and `wal_level` or the login does not allow it", "", "as the message says, or `source.mode = \"auto\"`";
    // Leading.
    LeaseLost: "lease-lost", LeaseLost,
        "the lease was not renewed for 3 s", "", "once: nothing. Often: PostgreSQL stalls, or this process gets no CPU";
    Superseded: "superseded", LeaseLost,
        "another relay has taken the cursor over, or its row is gone", "", "nothing; `statecast status` says who leads";
    Takeover: "takeover", Transient,
        "a former leader's connections cannot be looked at or do not end", "", "end the backend that the message names; look why the server cannot";
    // RabbitMQ.
    MqUnreachable: "rabbitmq-unreachable", Transient,
        "no connection, a broken one, no heartbeat, no answer", "", "look whether it runs and whether `rabbitmq.urls` leads there";
    MqSettings: "rabbitmq-settings", Permanent,
        "`rabbitmq.urls` or a file of `rabbitmq.tls` cannot be used", "", "correct the configuration";
    MqRefused: "rabbitmq-refused", Transient,
        "403 (login, permission), 530 (vhost)", "", "correct user, password, vhost or permissions";
    MqTopology: "rabbitmq-topology", Transient,
        "exchange or queue is missing (404) or different (406)", "", "create or correct it, or `rabbitmq.declare = \"create\"`";
    MqFence: "rabbitmq-fence", Transient,
        "another connection holds the fence for more than 30 s", "", "look for a second relay of this name on another database";
    MqForced: "rabbitmq-forced", Transient,
        "320 (closed by an operator, or the broker stops)", "", "nothing, if it was meant";
    MqMessage: "rabbitmq-message", Transient,
        "311, 406, 501 while publishing: over a message that the broker does not name", "sends one message at a time until it is found",
        "nothing yet: when it is found, the event is set aside";
    MqOther: "rabbitmq-other", Transient,
        "any other reply code", "", "see the message and the broker's log";
    // Ourselves.
    Fault: "fault", Transient, "a part of the relay ended or panicked", "", "report it";
}

impl Kind {
    /// What the relay does about it.
    fn relay(self) -> String {
        let row = self.row();
        let every = match row.class {
            Class::Transient => EVERY_TRANSIENT,
            Class::LeaseLost => EVERY_LOST,
            Class::Permanent => EVERY_PERMANENT,
        };
        if row.relay.is_empty() { every.to_owned() } else { format!("{every}; {}", row.relay) }
    }
}

/// All kinds as a markdown table: what `docs/errors.md` holds.
pub fn reference() -> String {
    let mut table = String::from("| kind | error | class | the relay | you |\n|---|---|---|---|---|\n");
    for kind in Kind::ALL {
        let Row { name, error, class, person, .. } = kind.row();
        let class = match class {
            Class::Transient => "transient",
            Class::LeaseLost => "lease lost",
            Class::Permanent => "permanent",
        };
        table.push_str(&format!("| `{name}` | {error} | {class} | {} | {person} |\n", kind.relay()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_differ() {
        let names: HashSet<&str> = Kind::ALL.iter().map(|kind| kind.row().name).collect();
        assert_eq!(names.len(), Kind::ALL.len());
    }

    /// `UPDATE_DOCS=1 cargo test the_documentation` writes the table.
    #[test]
    fn the_documentation_holds_the_table() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let start = text.find("| kind |").unwrap();
        let end = start + text[start..].find("\n\n").map_or(text.len() - start, |end| end + 1);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{}{}{}", &text[..start], reference(), &text[end..])).unwrap();
        } else {
            assert_eq!(&text[start..end], reference(), "run this test with UPDATE_DOCS=1");
        }
    }
}
