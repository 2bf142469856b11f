//! The checks before a session: does this server, database and login have what the relay rests on?

use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::install::OLDEST_SERVER;
use super::schema::{SchemaError, SchemaVersion, require_schema};

/// How often two connections are compared.
const PROCESS_LOOKS: usize = 3;

/// What the pipeline's cursor row says about the server it was written on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCursor {
    /// `cursor.system_identifier`.
    pub system_identifier: i64,
    /// `cursor.timeline`.
    pub timeline: i32,
    /// `cursor.max_seq`.
    pub max_seq: i64,
}

/// What the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: i32,
    /// Stays the same for the life of a cluster and its physical standbys.
    pub system_identifier: i64,
    /// Rises by one with every promotion or point-in-time restore.
    pub timeline: i32,
    /// Last number issued; 0 = none.
    pub last_seq: i64,
    /// Installed schema.
    pub schema: SchemaVersion,
    /// The timeline is another one than the cursor's: the sequence must be moved ahead before anything is published.
    pub timeline_changed: bool,
}

/// A check failed: what, where, what to do, on one line.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// Before PostgreSQL 14.
    #[error("this server is PostgreSQL {0}: Statecast needs 14 or newer")]
    ServerTooOld(String),
    /// A standby.
    #[error("this server is a standby: point postgres.url at the primary")]
    InRecovery,
    /// SQL_ASCII accepts any bytes, and JSON must be UTF-8.
    #[error(
        "database {0} has the encoding SQL_ASCII, which accepts text that is not JSON: use a UTF8 database"
    )]
    SqlAscii(String),
    /// The schema.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// Restored, upgraded by pg_upgrade, or another server altogether.
    #[error(
        "this cluster (system identifier {found}) is not the one the cursor was written on ({expected}): if it was restored or upgraded, run `statecast cursor rebase`; else correct postgres.url"
    )]
    OtherSystem {
        /// Here.
        found: i64,
        /// In the cursor row.
        expected: i64,
    },
    /// The identity column was altered.
    #[error("statecast.outbox.seq was altered: {what}; {remedy}")]
    Sequence {
        /// What is wrong.
        what: String,
        /// SQL that mends it.
        remedy: String,
    },
    /// The sequence went back.
    #[error(
        "the sequence of statecast.outbox stands at {last_seq}, below {max_seq} that was read before: if the data was restored, run `statecast cursor rebase`; else SELECT setval('statecast.outbox_seq_seq', {max_seq})"
    )]
    SequenceBehind {
        /// Last number issued.
        last_seq: i64,
        /// `cursor.max_seq`.
        max_seq: i64,
    },
    /// Two connections share one server process.
    #[error(
        "postgres.url leads to a connection pooler that hands a server process from client to client (pgbouncer's pool_mode = transaction or statement): Statecast keeps locks, settings and prepared statements in its sessions; connect to PostgreSQL itself, or to a pool with pool_mode = session"
    )]
    Pooled,
    /// Rights that the relay needs.
    #[error("login {login} lacks {missing}: GRANT statecast_relay TO {login}")]
    Privilege {
        /// Quoted role name.
        login: String,
        /// Comma-separated.
        missing: String,
    },
    /// A question could not be asked.
    #[error("cannot examine the database")]
    Sql(#[from] Error),
}

impl PreflightError {
    /// `true`: exit, a person must act. `false`: it may heal (a failover that is under way, a lost connection).
    pub fn is_permanent(&self) -> bool {
        match self {
            PreflightError::InRecovery | PreflightError::Sql(_) => false,
            PreflightError::Schema(error) => error.is_permanent(),
            _ => true,
        }
    }
}

/// Checks all of it, in the order in which a person would mend it.
///
/// # Errors
///
/// The first check that fails; see [`PreflightError`].
pub async fn preflight(client: &Client, cursor: Option<LastCursor>) -> Result<ServerFacts, PreflightError> {
    let version = server(client).await?;
    let schema = require_schema(client).await?;
    privileges(client).await?;
    let (system_identifier, timeline) = system(client).await?;
    if let Some(expected) = cursor.map(|c| c.system_identifier).filter(|id| *id != system_identifier) {
        return Err(PreflightError::OtherSystem { found: system_identifier, expected });
    }
    let last_seq = sequence(client).await?;
    let timeline_changed = cursor.is_some_and(|c| c.timeline != timeline);
    if let Some(max_seq) = cursor.map(|c| c.max_seq).filter(|max_seq| last_seq < *max_seq) {
        // An asynchronous standby may lag: with a new timeline the sequence is moved ahead, past max_seq, anyway.
        if !timeline_changed {
            return Err(PreflightError::SequenceBehind { last_seq, max_seq });
        }
    }
    Ok(ServerFacts { version, system_identifier, timeline, last_seq, schema, timeline_changed })
}

/// Looks whether each connection has a server process of its own. Before anything else: behind a pooler that takes the
/// process back after each transaction, a SET or a lock would stay with whoever gets it next.
///
/// An idle pool hands the process that was given back last to the next who asks, so that both get the same one; from a
/// busy pool neither gets the same one each time.
///
/// # Errors
///
/// [`PreflightError::Pooled`], or SQL.
pub async fn own_processes(one: &Client, other: &Client) -> Result<(), PreflightError> {
    let first = process(one).await?;
    for _ in 0..PROCESS_LOOKS {
        let (another, again) = (process(other).await?, process(one).await?);
        if first == another || first != again {
            return Err(PreflightError::Pooled);
        }
    }
    Ok(())
}

/// The server process behind a connection. By the simple protocol, which prepares nothing.
async fn process(client: &Client) -> Result<Option<String>, Error> {
    let sql = "SELECT pid || ' ' || backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    let messages = client.simple_query(sql).await?;
    Ok(messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }))
}

pub(super) async fn server(client: &Client) -> Result<i32, PreflightError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'),
                    pg_is_in_recovery(), current_setting('server_encoding'), current_database()::text",
            &[],
        )
        .await?;
    let version: i32 = row.try_get(0)?;
    if version < OLDEST_SERVER {
        return Err(PreflightError::ServerTooOld(row.try_get(1)?));
    }
    if row.try_get(2)? {
        return Err(PreflightError::InRecovery);
    }
    let encoding: String = row.try_get(3)?;
    if encoding == "SQL_ASCII" {
        return Err(PreflightError::SqlAscii(row.try_get(4)?));
    }
    Ok(version)
}

/// Which server's transactions this connection sees: system identifier and timeline.
///
/// The timeline comes from the name of the WAL file being written: `pg_control_checkpoint` shows the old one until
/// the first checkpoint after a promotion.
///
/// # Errors
///
/// SQL.
pub async fn system(client: &Client) -> Result<(i64, i32), PreflightError> {
    let row = client
        .query_one(
            "SELECT system_identifier,
                    ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int
             FROM pg_control_system()",
            &[],
        )
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

pub(super) async fn sequence(client: &Client) -> Result<i64, PreflightError> {
    let row = client
        .query_opt(
            "SELECT a.attidentity::text, s.seqincrement, s.seqcache, s.seqcycle
             FROM pg_attribute a
             JOIN pg_sequence s ON s.seqrelid = pg_get_serial_sequence('statecast.outbox', 'seq')::regclass
             WHERE a.attrelid = 'statecast.outbox'::regclass AND a.attname = 'seq'
               AND s.seqrelid = to_regclass('statecast.outbox_seq_seq')",
            &[],
        )
        .await?;
    let altered = |what: &str, remedy: &str| PreflightError::Sequence {
        what: what.to_owned(),
        remedy: format!("ALTER TABLE statecast.outbox ALTER COLUMN seq {remedy}"),
    };
    let Some(row) = row else {
        return Err(altered("it is no identity column any more", "ADD GENERATED ALWAYS AS IDENTITY"));
    };
    let (kind, increment, cache, cycle): (String, i64, i64, bool) =
        (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
    if kind != "a" {
        return Err(altered("it is no longer GENERATED ALWAYS", "SET GENERATED ALWAYS"));
    }
    if increment != 1 {
        return Err(altered(&format!("its increment is {increment}"), "SET INCREMENT 1"));
    }
    if cache != 1 {
        // Each session would hand out its own block: numbers out of write order, and rows lost.
        return Err(altered(&format!("its cache is {cache}"), "SET CACHE 1"));
    }
    if cycle {
        return Err(altered("it cycles", "SET NO CYCLE"));
    }
    let row = client
        .query_one(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq",
            &[],
        )
        .await?;
    Ok(row.try_get(0)?)
}

pub(super) async fn privileges(client: &Client) -> Result<(), PreflightError> {
    let row = client
        .query_one(
            "SELECT quote_ident(current_user),
                    (SELECT string_agg(kind || ' on statecast.' || name, ', ' ORDER BY name, kind)
                     FROM (VALUES ('outbox', 'SELECT'), ('chunk', 'SELECT'),
                                  ('cursor', 'SELECT'), ('cursor', 'INSERT'), ('cursor', 'UPDATE'),
                                  ('cursor', 'DELETE'), ('parked', 'SELECT'), ('parked', 'INSERT'),
                                  ('parked', 'UPDATE'), ('parked', 'DELETE'), ('audit', 'INSERT')) AS need (name, kind)
                     WHERE NOT has_table_privilege('statecast.' || name, kind)),
                    coalesce(has_sequence_privilege(to_regclass('statecast.outbox_seq_seq'), 'SELECT'), true),
                    has_function_privilege('statecast.advance_sequence(bigint)', 'EXECUTE')",
            &[],
        )
        .await?;
    let mut missing: Vec<String> = row.try_get::<_, Option<String>>(1)?.into_iter().collect();
    if !row.try_get::<_, bool>(2)? {
        missing.push("SELECT on statecast.outbox_seq_seq".to_owned());
    }
    if !row.try_get::<_, bool>(3)? {
        missing.push("EXECUTE on statecast.advance_sequence".to_owned());
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(PreflightError::Privilege { login: row.try_get(0)?, missing: missing.join(", ") })
}
