//! What a former leader has left on the server: its backends, found and ended.
//!
//! A backend whose client is stopped, or cut off, lives on: the keeper's holds the advisory lock, one in the middle of a
//! statement holds a snapshot or a lock, a walsender holds a slot. (A walsender that waits inside the creation of its slot
//! does not even notice that its client is dead.) Only who has the row (a new epoch) may end them, and only these:
//!
//! - the keeper's backend, if the cursor row names it, by number *and* start, and who holds the pipeline's advisory lock
//!   under the name of a keeper or a standby. (A backend of the row that is a standby's and has no lock is one that a pooler
//!   has given to another relay when its own was killed.)
//! - source, upkeep and stream of the pipeline, by their names: nobody has those but a leader, and the new one does not
//!   have them yet.
//!
//! All in this database. A name can be taken by anybody who can connect: who does so is ended, or, where this login may
//! not end it, left alone. Nothing else is ever ended, whatever stands in the row.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::{Client, Error};

use super::lease::{Backend, lock_sql};
use crate::backend::Part;

/// For backends that were told to end.
const GONE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks.
const GONE_INTERVAL: Duration = Duration::from_millis(10);

/// A backend of a former leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its process.
    pub pid: i32,
    /// What it calls itself.
    pub application: String,
    /// Whose it is, quoted.
    pub login: String,
    /// This login may end it.
    pub may_end: bool,
    /// It holds the pipeline's advisory lock.
    pub locks: bool,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "backend {} ({}, login {})", self.pid, self.application, self.login)
    }
}

/// Why a lease that is over cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// Another login's.
    #[error(
        "login {login} may not end {found} of the relay that does not answer: run all relays of a pipeline with one login, or GRANT {} TO {login}",
        .found.login
    )]
    MayNotEnd {
        /// Our own, quoted.
        login: String,
        /// What is in the way.
        found: Found,
    },
    /// Not a relay: a person's command, or something else that took the number.
    #[error("{0}, which is no relay, holds the lock of the pipeline: end it if it is not needed")]
    Foreign(String),
}

/// `$1` pipeline, `$2` end them, `$3` and `$4` the backends of the row, `$5` names that only a leader has, `$6` the
/// keeper's, `$7` a standby's, `$8` our epoch (where they are to end).
const FIND: &str = concat!(
    "
WITH known AS (
    SELECT * FROM unnest($3::int[], $4::text[]) AS k (pid, started)
), locked AS (
    SELECT l.pid FROM pg_locks l
         WHERE ",
    lock_sql!("$1::text"),
    "
), found AS (
    SELECT a.pid, a.application_name, a.usename::text AS login,
           l.pid IS NOT NULL AS locks,
           k.pid IS NOT NULL OR l.pid IS NOT NULL AS certain,
           -- as pg_terminate_backend decides; a role that is gone leaves backends that only a superuser may end
           me.rolsuper OR (NOT coalesce(r.rolsuper, true)
                           AND (pg_has_role(me.oid, r.oid, 'USAGE')
                                OR pg_has_role(me.oid, 'pg_signal_backend', 'USAGE'))) AS may_end
      FROM pg_stat_activity a
      JOIN pg_roles me ON me.rolname = current_user
      LEFT JOIN pg_roles r ON r.oid = a.usesysid
      -- the start of another login's backend is hidden
      LEFT JOIN known k ON k.pid = a.pid
                       AND coalesce(extract(epoch FROM a.backend_start)::text = k.started, true)
      LEFT JOIN locked l ON l.pid = a.pid
     WHERE a.datname = current_database() AND a.pid <> pg_backend_pid()
       AND (a.application_name = ANY ($5)
            OR a.application_name = $6 AND (k.pid IS NOT NULL OR l.pid IS NOT NULL)
            OR a.application_name = $7 AND l.pid IS NOT NULL)
)
SELECT pid, application_name, coalesce(quote_ident(login), '?'), locks, may_end,
       -- CASE: evaluated for none but these
       CASE WHEN $2 AND may_end THEN pg_terminate_backend(pid) END
  FROM found
 -- somebody else under one of our names is no obstacle
 WHERE (certain OR may_end)
   -- who has been followed meanwhile would end the new leader
   AND (NOT $2 OR (SELECT epoch FROM statecast.cursor WHERE pipeline = $1) IS NOT DISTINCT FROM $8)
 ORDER BY pid"
);

/// Whom [`query`] ends.
#[derive(Clone, Copy)]
enum End {
    Nobody,
    /// For who has the row in this epoch, or has seen that there is none.
    As(Option<i64>),
}

async fn query(client: &Client, pipeline: &str, known: &[Backend], end: End) -> Result<Vec<Found>, Error> {
    let (end, epoch) = match end {
        End::Nobody => (false, None),
        End::As(epoch) => (true, epoch),
    };
    let pids: Vec<i32> = known.iter().map(|backend| backend.pid).collect();
    let started: Vec<&str> = known.iter().map(|backend| backend.started.as_str()).collect();
    let name = |part: Part| part.application_name(pipeline);
    let leader = Part::OF_A_LEADER.map(name);
    let (leader, keeper, standby) = (leader.as_slice(), name(Part::Keeper), name(Part::Standby));
    let rows =
        client.query(FIND, &[&pipeline, &end, &pids, &started, &leader, &keeper, &standby, &epoch]).await?;
    let found = |row: &tokio_postgres::Row| {
        Ok(Found {
            pid: row.try_get(0)?,
            application: row.try_get(1)?,
            login: row.try_get(2)?,
            locks: row.try_get(3)?,
            may_end: row.try_get(4)?,
        })
    };
    rows.iter().map(found).collect()
}

/// What would keep this login from taking over from the leader that has the lock and `known` backends; changes nothing.
///
/// # Errors
/// SQL.
pub async fn obstacle(client: &Client, pipeline: &str, known: &[Backend]) -> Result<Option<Obstacle>, Error> {
    let found = query(client, pipeline, known, End::Nobody).await?;
    let locked = found.iter().any(|found| found.locks);
    if let Some(found) = found.into_iter().find(|found| !found.may_end) {
        let login = client.query_one("SELECT quote_ident(current_user)", &[]).await?.try_get(0)?;
        return Ok(Some(Obstacle::MayNotEnd { login, found }));
    }
    if locked {
        return Ok(None);
    }
    let holder = super::cursor_admin::leader(client, pipeline).await?;
    Ok(holder.map(|holder| Obstacle::Foreign(holder.to_string())))
}

/// Tells them to end; returns those that are still there. Only for who has taken the row, and only while it has: `epoch` is
/// its own (`None`: there is no row).
///
/// # Errors
/// SQL.
pub async fn end(
    client: &Client,
    pipeline: &str,
    known: &[Backend],
    epoch: Option<i64>,
) -> Result<Vec<Found>, Error> {
    query(client, pipeline, known, End::As(epoch)).await
}

/// Ends them and waits until they are gone; returns those that are still there after three seconds, or that this login may
/// not end.
///
/// # Errors
/// SQL.
pub async fn end_and_wait(
    client: &Client,
    pipeline: &str,
    known: &[Backend],
    epoch: Option<i64>,
) -> Result<Vec<Found>, Error> {
    let until = Instant::now() + GONE_LIMIT;
    loop {
        let left = end(client, pipeline, known, epoch).await?;
        if left.iter().all(|found| !found.may_end) || Instant::now() > until {
            return Ok(left);
        }
        sleep(GONE_INTERVAL).await;
    }
}
