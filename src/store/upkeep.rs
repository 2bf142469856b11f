//! What all upkeep has in common: its session settings, its lock, its errors.
//!
//! An application's insert never waits more than 50 ms for upkeep: `lock_timeout` bounds how long an upkeep
//! statement stands in a lock queue, and with it how long an insert can stand behind it.

use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};

use crate::postgres::describe;

/// "statupkp" in ASCII: one upkeep per database.
const UPKEEP_LOCK: i64 = 0x7374_6174_7570_6b70;
/// What bounds every wait for a lock that inserts could stand behind.
pub(super) const LOCK_TIMEOUT: &str = "SET lock_timeout = '50ms'";
/// For waits that no insert stands behind.
pub(super) const LOCK_TIMEOUT_LONG: &str = "SET lock_timeout = '900ms'";
/// Between two tries of a statement that met a lock.
const RETRY: Duration = Duration::from_millis(100);

/// Upkeep failed. What it had begun, the next call finishes.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The grant that `install` gives has been revoked, or the login is no member of `statecast_relay`.
    #[error(
        "login {login} may not SET ROLE statecast_owner: GRANT statecast_owner TO {login}, or run `statecast maintain` from cron as a role that may"
    )]
    NotGranted {
        /// Quoted role name.
        login: String,
    },
    /// No such schema, or no right to look at it.
    #[error(
        "the outbox cannot be examined: run `statecast install`, and grant statecast_relay to this login"
    )]
    NoSchema(#[source] Error),
    /// A partition whose bounds nobody here made.
    #[error("statecast.{table} is attached to the outbox with bounds that Statecast did not make: {bound}")]
    OddBound {
        /// Table.
        table: String,
        /// As PostgreSQL prints it.
        bound: String,
    },
    /// A lock that upkeep needs was never free for long enough.
    #[error(
        "no lock on the outbox within {tries} tries to {doing}: run `statecast maintain` when fewer or shorter transactions write to it"
    )]
    NeverFree {
        /// What was being done.
        doing: &'static str,
        /// Tries.
        tries: u32,
    },
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

impl UpkeepError {
    /// Can only a person help? (The relay goes on without upkeep and reports it.)
    pub fn is_permanent(&self) -> bool {
        matches!(
            self,
            UpkeepError::NotGranted { .. } | UpkeepError::NoSchema(_) | UpkeepError::OddBound { .. }
        )
    }
}

pub(super) fn during(doing: &'static str) -> impl FnOnce(Error) -> UpkeepError {
    move |source| match source.code() {
        Some(code)
            if *code == SqlState::UNDEFINED_TABLE
                || *code == SqlState::INVALID_SCHEMA_NAME
                || *code == SqlState::INSUFFICIENT_PRIVILEGE =>
        {
            UpkeepError::NoSchema(source)
        }
        _ => UpkeepError::Sql { doing, source },
    }
}

/// Did the statement give up on a lock? `lock_timeout` and `statement_timeout` both end such a wait.
pub(super) fn gave_up(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        *code == SqlState::LOCK_NOT_AVAILABLE
            || *code == SqlState::QUERY_CANCELED
            || *code == SqlState::T_R_DEADLOCK_DETECTED
    })
}

/// Takes the upkeep lock and role. `false`: another session is at it, nothing was changed.
///
/// Afterwards [`leave`] must run, whatever happened in between; a connection that was dropped half-way must be closed.
pub(super) async fn enter(client: &Client) -> Result<bool, UpkeepError> {
    let doing = "take the upkeep lock";
    let row = client
        .query_one("SELECT pg_try_advisory_lock($1), quote_ident(current_user)", &[&UPKEEP_LOCK])
        .await
        .map_err(during(doing))?;
    if !row.try_get(0).map_err(during(doing))? {
        return Ok(false);
    }
    let entered = client
        .batch_execute("SET ROLE statecast_owner; SET lock_timeout = '50ms'; SET statement_timeout = '10s'")
        .await;
    let Err(error) = entered else { return Ok(true) };
    let unlock = format!("SELECT pg_advisory_unlock({UPKEEP_LOCK})");
    client.batch_execute(&unlock).await.map_err(during(doing))?;
    match error.code() {
        // A role that does not exist is an invalid value for the setting "role".
        Some(code)
            if *code == SqlState::INSUFFICIENT_PRIVILEGE || *code == SqlState::INVALID_PARAMETER_VALUE =>
        {
            Err(UpkeepError::NotGranted { login: row.try_get(1).map_err(during(doing))? })
        }
        _ => Err(during("become statecast_owner")(error)),
    }
}

/// Gives lock, role and settings back (settings as they were when the session began).
pub(super) async fn leave(client: &Client) -> Result<(), UpkeepError> {
    let sql = format!(
        "RESET lock_timeout; RESET statement_timeout; RESET ROLE; SELECT pg_advisory_unlock({UPKEEP_LOCK})"
    );
    client.batch_execute(&sql).await.map_err(during("release the upkeep lock"))
}

/// Runs `sql`; where it gives up on a lock, tries again up to `tries` times. `false`: it never got the lock.
pub(super) async fn patiently(
    client: &Client,
    doing: &'static str,
    sql: &str,
    tries: u32,
) -> Result<bool, UpkeepError> {
    for attempt in 1..=tries {
        match client.batch_execute(sql).await {
            Ok(()) => return Ok(true),
            Err(error) if gave_up(&error) => {
                tracing::debug!(doing, attempt, error = %describe(&error), "upkeep met a lock");
            }
            Err(error) => return Err(during(doing)(error)),
        }
        if attempt < tries {
            tokio::time::sleep(RETRY).await;
        }
    }
    Ok(false)
}
