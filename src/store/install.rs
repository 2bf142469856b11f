//! `statecast install`: brings the schema to this program's version.
//!
//! Under a session advisory lock on the session that does the work, because refinery takes none: roles and schema
//! (`roles.sql`, idempotent), the numbered migrations (refinery, one transaction each, history in
//! `statecast.refinery_schema_history`), then the first chunks and the tail. Every step may be repeated: an
//! installation that was cut off is finished by the next one.
//!
//! [`print_sql`] writes the same as one script for psql, history rows included. The publication comes after it, by itself
//! ([`super::publication`]): polling does without one.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use super::chunks;
use super::layout::Plan;

mod embedded {
    #![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]
    refinery::embed_migrations!("migrations");
}

const ROLES: &str = include_str!("../../migrations/roles.sql");
const HISTORY: &str = "statecast.refinery_schema_history";
/// "statcast" in ASCII: one installer per database.
pub(super) const INSTALL_LOCK: i64 = 0x7374_6174_6361_7374;
/// How long an installer waits for another one.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);
const LOCK_RETRY: Duration = Duration::from_millis(100);
/// `server_version_num` of PostgreSQL 14, the oldest with `DETACH PARTITION … CONCURRENTLY`.
pub const OLDEST_SERVER: i32 = 140_000;

/// What an installation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstallReport {
    /// Migrations applied now, e.g. `V1__outbox`; empty if there was nothing to do.
    pub applied: Vec<String>,
    /// Chunks created now, the tail not counted.
    pub chunks: usize,
}

/// Why nothing, or not everything, was installed. One line with the remedy; an installation can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// PostgreSQL before 14.
    #[error("this server is PostgreSQL {0}: Statecast needs 14 or newer")]
    ServerTooOld(String),
    /// SQL_ASCII accepts any bytes, and JSON must be UTF-8.
    #[error(
        "database {0} has the encoding SQL_ASCII, which accepts text that is not JSON: use a UTF8 database"
    )]
    SqlAscii(String),
    /// A standby, or a read-only session.
    #[error("this server does not accept writes: connect to the primary")]
    ReadOnly,
    /// Another installer holds the lock.
    #[error(
        "another installation is running in this database (backend {pid}): wait until it has ended, then run `statecast install` again"
    )]
    Busy {
        /// Its backend.
        pid: i32,
    },
    /// The history table holds what refinery did not write.
    #[error("{HISTORY} has a row for version {0} that no installation wrote: restore or delete that row")]
    OddHistory(i32),
    /// Another program's migrations, or newer ones.
    #[error(
        "the installed schema does not belong to this version of statecast: use the version that installed it, or a newer one"
    )]
    OtherHistory(#[source] refinery::Error),
    /// A migration failed and was rolled back.
    #[error("the schema could not be installed")]
    Migration(#[source] refinery::Error),
    /// A statement failed.
    #[error("cannot {doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// What the server said.
        #[source]
        source: Error,
    },
}

fn during(doing: &'static str) -> impl FnOnce(Error) -> InstallError {
    move |source| InstallError::Sql { doing, source }
}

/// Installs or upgrades. `chunk_rows` is the size of the first chunks, where there are none yet.
///
/// # Errors
///
/// See [`InstallError`]. The session's role and lock are given back in any case.
pub async fn install(client: &mut Client, chunk_rows: i64) -> Result<InstallReport, InstallError> {
    suitable(client).await?;
    lock(client).await?;
    let done = locked(client, chunk_rows).await;
    let released = unlock(client).await;
    let report = done?;
    released?;
    Ok(report)
}

async fn suitable(client: &Client) -> Result<(), InstallError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'),
                    current_setting('server_encoding'), current_database()::text,
                    pg_is_in_recovery() OR current_setting('transaction_read_only')::bool",
            &[],
        )
        .await
        .map_err(during("ask the server for its version"))?;
    let get = during("ask the server for its version");
    let facts = || -> Result<(i32, String, String, String, bool), Error> {
        Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?, row.try_get(4)?))
    };
    let (version, text, encoding, database, read_only) = facts().map_err(get)?;
    if version < OLDEST_SERVER {
        return Err(InstallError::ServerTooOld(text));
    }
    if encoding == "SQL_ASCII" {
        return Err(InstallError::SqlAscii(database));
    }
    if read_only {
        return Err(InstallError::ReadOnly);
    }
    Ok(())
}

/// Waits until no other installer works in this database.
pub(super) async fn lock(client: &Client) -> Result<(), InstallError> {
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        // Asking again and again instead of waiting: a wait would be at the mercy of lock_timeout settings.
        let row = client
            .query_one("SELECT pg_try_advisory_lock($1)", &[&INSTALL_LOCK])
            .await
            .map_err(during("take the installation lock"))?;
        if row.try_get(0).map_err(during("take the installation lock"))? {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(InstallError::Busy { pid: holder(client).await? });
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

/// Gives the lock back, and the role that was taken meanwhile.
pub(super) async fn unlock(client: &Client) -> Result<(), InstallError> {
    client
        .batch_execute(&format!("RESET ROLE; SELECT pg_advisory_unlock({INSTALL_LOCK})"))
        .await
        .map_err(during("release the installation lock"))
}

async fn holder(client: &Client) -> Result<i32, InstallError> {
    let row = client
        .query_opt(
            "SELECT pid FROM pg_locks
             WHERE locktype = 'advisory' AND granted AND objsubid = 1
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND (classid::bigint << 32 | objid::bigint) = $1",
            &[&INSTALL_LOCK],
        )
        .await
        .map_err(during("look who holds the installation lock"))?;
    Ok(row.and_then(|row| row.try_get(0).ok()).unwrap_or(0))
}

async fn locked(client: &mut Client, chunk_rows: i64) -> Result<InstallReport, InstallError> {
    roles(client).await?;
    // Everything from here on belongs to the owner role, the history table too.
    client
        .batch_execute("SET ROLE statecast_owner")
        .await
        .map_err(during("become statecast_owner (GRANT statecast_owner to this login)"))?;
    history_is_readable(client).await?;
    let mut runner = embedded::migrations::runner();
    runner.set_migration_table_name(HISTORY);
    let report = runner.run_async(client).await.map_err(|error| match error.kind() {
        refinery::error::Kind::DivergentVersion(..) | refinery::error::Kind::MissingVersion(..) => {
            InstallError::OtherHistory(error)
        }
        _ => InstallError::Migration(error),
    })?;
    let applied = report.applied_migrations().iter().map(ToString::to_string).collect();
    let chunks = first_chunks(client, chunk_rows).await?;
    Ok(InstallReport { applied, chunks })
}

/// Two databases may be installed at once: catalog rows of roles are then "concurrently updated", and the second
/// try finds what the other one made.
async fn roles(client: &Client) -> Result<(), InstallError> {
    const TRIES: u32 = 10;
    let mut tries = 0;
    loop {
        tries += 1;
        let Err(error) = client.batch_execute(ROLES).await else {
            return Ok(());
        };
        let raced =
            [&SqlState::INTERNAL_ERROR, &SqlState::T_R_SERIALIZATION_FAILURE, &SqlState::UNIQUE_VIOLATION];
        if tries == TRIES || !error.code().is_some_and(|code| raced.contains(&code)) {
            return Err(during("create the roles and the schema")(error));
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

/// refinery panics on a row that it cannot parse.
async fn history_is_readable(client: &Client) -> Result<(), InstallError> {
    let doing = "read the installation history";
    let exists: bool = client
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&HISTORY])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))?;
    if !exists {
        return Ok(());
    }
    let odd = client
        .query_opt(
            "SELECT version FROM statecast.refinery_schema_history
             WHERE (name IS NOT NULL
                    AND CASE WHEN checksum ~ '^[0-9]{1,20}$' THEN checksum::numeric <= 18446744073709551615 END
                    AND CASE WHEN applied_on ~ ('^[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]'
                                  '([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$')
                             THEN applied_on::timestamptz IS NOT NULL END) IS NOT TRUE
             ORDER BY version LIMIT 1",
            &[],
        )
        .await
        .map_err(during(doing))?;
    match odd {
        Some(row) => Err(InstallError::OddHistory(row.try_get(0).map_err(during(doing))?)),
        None => Ok(()),
    }
}

async fn first_chunks(client: &Client, chunk_rows: i64) -> Result<usize, InstallError> {
    let doing = "create the first chunks of the outbox";
    let none: bool = client
        .query_one(
            "SELECT NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'statecast.outbox'::regclass)",
            &[],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))?;
    if !none {
        return Ok(0);
    }
    client.batch_execute(&first_chunks_sql(chunk_rows)).await.map_err(during(doing))?;
    Ok(chunks::CHUNKS_AT_ONCE)
}

fn first_chunks_sql(chunk_rows: i64) -> String {
    let plan = Plan::new(1, chunk_rows, chunks::CHUNKS_AT_ONCE);
    format!("{}{}", plan.create_sql(), plan.attach_sql())
}

/// The whole installation as one script, for `psql -v ON_ERROR_STOP=1`. It is one transaction, refuses a database
/// where Statecast is installed already, and leaves nothing to do for a later [`install`].
pub fn print_sql(chunk_rows: i64) -> String {
    let mut sql = format!(
        "-- Statecast: schema, roles and first chunks, for PostgreSQL 14 and newer.
-- Run by a superuser, or by a role with CREATEROLE and CREATE on this database:
--     psql -v ON_ERROR_STOP=1 -f this-file
BEGIN;
SELECT pg_advisory_xact_lock({INSTALL_LOCK});
DO $check$
BEGIN
    IF current_setting('server_version_num')::int < {OLDEST_SERVER} THEN
        RAISE EXCEPTION 'Statecast needs PostgreSQL 14 or newer';
    END IF;
    IF current_setting('server_encoding') = 'SQL_ASCII' THEN
        RAISE EXCEPTION 'Statecast needs a database with the encoding UTF8, not SQL_ASCII';
    END IF;
    IF EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'statecast' AND c.relname = 'outbox') THEN
        RAISE EXCEPTION 'Statecast is installed in this database already: use \"statecast install\" to upgrade';
    END IF;
END
$check$;

{ROLES}
SET LOCAL ROLE statecast_owner;

CREATE TABLE IF NOT EXISTS {HISTORY} (
    version    int4 PRIMARY KEY,
    name       varchar(255),
    applied_on varchar(255),
    checksum   varchar(255));
"
    );
    let mut migrations = embedded::migrations::runner().get_migrations().clone();
    migrations.sort();
    for migration in &migrations {
        // Writing to a String cannot fail.
        let _ = write!(
            sql,
            "\n-- {migration}\n{}\nINSERT INTO {HISTORY} (version, name, applied_on, checksum) VALUES ({}, '{}',
    to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), '{}');\n",
            migration.sql().unwrap_or_default(),
            migration.version(),
            migration.name(),
            migration.checksum(),
        );
    }
    let _ = write!(sql, "\n-- The first chunks and the tail.\n{}\nCOMMIT;\n", first_chunks_sql(chunk_rows));
    sql
}
