//! The lease: who leads a pipeline, until when, and how another takes it over.
//!
//! A leader holds an advisory lock for as long as its connection lives, and renews `lease_until` in the cursor row. The
//! lock alone is not enough: a process that is stopped keeps it, since the kernel answers for it. The lease alone would do,
//! but costs its length at every change of leader; a lock that is free says at once that the leader is gone.
//!
//! ```text
//! standby ──lock is free──────────────────────────▶ claims (epoch + 1) ──▶ leads
//!    └─────lease over and seen unchanged──▶ seizes (epoch + 1), ends the predecessor, locks ──▶ claims …
//!                                           (never led: discards the row)
//! ```
//!
//! *Over* is a lease that is past on the server's clock, was released, or lies further ahead than any lease: that clock was
//! set back. A clock that jumps ahead makes a lease past, but not unchanged: its leader goes on renewing. Every write here
//! names the epoch that it belongs to; who has lost it finds no row.

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement, ToStatement};

use super::cursor::{CursorError, sql};
use crate::backend::Part;
use crate::gate::LEASE;

/// In `pg_locks l`: the advisory lock that leads a pipeline of this database, held. `$pipeline`: SQL for its name, as text.
macro_rules! lock_sql {
    ($pipeline:literal) => {
        concat!(
            "l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND (l.classid::bigint << 32 | l.objid::bigint) = hashtextextended('statecast:' || ",
            $pipeline,
            ", 0)"
        )
    };
}
pub(super) use lock_sql;

/// One of a leader's backends. Its number is given again, with the time of its start it is unique.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Its process.
    pub pid: i32,
    /// Seconds since 1970, as the server prints them.
    pub started: String,
}

/// What the cursor row says about its leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The leader's.
    pub epoch: i64,
    /// `lease_until` in seconds since 1970, as the server prints them; `None`: released.
    pub lease_until: Option<String>,
    /// For people.
    pub holder: Option<String>,
    /// The keeper first.
    pub backends: Vec<Backend>,
    /// A new pipeline is being made, which may take as long as counting its whole outbox.
    pub creating: bool,
}

/// What a candidate sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// The advisory lock is ours now, for as long as this connection lives.
    pub locked: bool,
    /// `None`: the pipeline has never been led.
    pub row: Option<Holding>,
    /// Nobody's lease is running.
    pub over: bool,
}

/// A lease that is running, of the row `c`. `$2` is its length in seconds.
const RUNNING: &str = "coalesce(c.lease_until BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => $2), false)";

/// Looks who leads, and with `may_lead` tries to take the advisory lock.
///
/// It is not tried while the lease is running and the keeper's backend alive: either that is the leader, or a standby that
/// has seized the row and waits until its predecessor lets go of the lock. (The name tells them from a backend that a pooler
/// keeps when its client was killed: the pooler resets it.)
///
/// # Errors
/// SQL.
pub async fn look(client: &Client, pipeline: &str, may_lead: bool) -> Result<Look, CursorError> {
    let statement = format!(
        "SELECT CASE WHEN NOT $3 THEN false
                     WHEN {RUNNING}
                      AND EXISTS (SELECT FROM pg_stat_activity a
                                   WHERE a.pid = c.pids[1] AND a.pid <> pg_backend_pid()
                                     AND a.application_name = ANY ($4)
                                     -- hidden from this login where the backend is another's
                                     AND coalesce(a.backend_start = c.backends_started[1], true)) THEN false
                     ELSE pg_try_advisory_lock(hashtextextended('statecast:' || $1::text, 0)) END,
                NOT {RUNNING},
                c.epoch, extract(epoch FROM c.lease_until)::text, c.holder, c.pids,
                ARRAY(SELECT extract(epoch FROM s.at)::text
                        FROM unnest(c.backends_started) WITH ORDINALITY AS s (at, place) ORDER BY s.place),
                coalesce(c.epoch = 0 AND c.lease_until = 'infinity', false)
           FROM (VALUES (1)) AS one
           LEFT JOIN statecast.cursor c ON c.pipeline = $1"
    );
    let names = Part::OF_A_CANDIDATE.map(|part| part.application_name(pipeline));
    let names = names.as_slice();
    let row = client
        .query_one(&statement, &[&pipeline, &LEASE.as_secs_f64(), &may_lead, &names])
        .await
        .map_err(sql(pipeline))?;
    let look = || -> Result<Look, tokio_postgres::Error> {
        Ok(Look { locked: row.try_get(0)?, over: row.try_get(1)?, row: holding(&row)? })
    };
    look().map_err(sql(pipeline))
}

fn holding(row: &Row) -> Result<Option<Holding>, tokio_postgres::Error> {
    let Some(epoch) = row.try_get(2)? else { return Ok(None) };
    let (pids, started): (Vec<i32>, Vec<String>) = (row.try_get(5)?, row.try_get(6)?);
    let backends = pids.into_iter().zip(started).map(|(pid, started)| Backend { pid, started }).collect();
    let (lease_until, holder) = (row.try_get(3)?, row.try_get(4)?);
    Ok(Some(Holding { epoch, lease_until, holder, backends, creating: row.try_get(7)? }))
}

/// Takes the row from a leader that does not renew. `None`: it has renewed after all, or another standby was faster.
///
/// `seen` is what the caller has seen unchanged for [`LEASE`]. The lock is still the predecessor's.
///
/// # Errors
/// SQL: also where somebody keeps the row locked for longer than `lock_timeout`.
pub async fn seize(
    client: &Client,
    pipeline: &str,
    seen: &Holding,
    holder: &str,
) -> Result<Option<i64>, CursorError> {
    // Two standbys meet at the row's lock: the second one looks at what the first one wrote.
    let statement = format!(
        "UPDATE statecast.cursor c
            SET epoch = c.epoch + 1, holder = $5, pids = own.pids, backends_started = own.started,
                lease_until = clock_timestamp() + make_interval(secs => $2)
           FROM ({OWN}) AS own
          WHERE c.pipeline = $1 AND c.epoch = $3
            AND extract(epoch FROM c.lease_until)::text IS NOT DISTINCT FROM $4
            AND NOT {RUNNING}
      RETURNING c.epoch"
    );
    let row = client
        .query_opt(&statement, &[&pipeline, &LEASE.as_secs_f64(), &seen.epoch, &seen.lease_until, &holder])
        .await
        .map_err(sql(pipeline))?;
    row.map(|row| row.try_get(0).map_err(sql(pipeline))).transpose()
}

/// Discards a row that nobody has ever led by (its epoch is 0): who was making the pipeline does not come further. `false`:
/// it has come further after all, or another standby was faster.
///
/// Such a row is not seized: with an epoch it would pass for one that is whole, and its start (`--from now`) would be lost.
/// Without it the next leader makes the pipeline anew; who made it before finds no row to claim.
///
/// # Errors
/// As [`seize`].
pub async fn discard(client: &Client, pipeline: &str, seen: &Holding) -> Result<bool, CursorError> {
    let statement = format!(
        "DELETE FROM statecast.cursor c
          WHERE c.pipeline = $1 AND c.epoch = 0
            AND extract(epoch FROM c.lease_until)::text IS NOT DISTINCT FROM $3
            AND NOT {RUNNING}"
    );
    let discarded = client
        .execute(&statement, &[&pipeline, &LEASE.as_secs_f64(), &seen.lease_until])
        .await
        .map_err(sql(pipeline))?;
    Ok(discarded == 1)
}

/// This connection's own backend.
pub(super) const OWN: &str = "SELECT ARRAY[a.pid] AS pids, ARRAY[a.backend_start] AS started
             FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()";

const RENEW: &str = "UPDATE statecast.cursor SET lease_until = clock_timestamp() + make_interval(secs => $3)
  WHERE pipeline = $1 AND epoch = $2";

/// Prepares [`renew`]'s statement, for who renews often.
///
/// # Errors
/// SQL.
pub async fn prepare_renew(client: &Client, pipeline: &str) -> Result<Statement, CursorError> {
    client.prepare(RENEW).await.map_err(sql(pipeline))
}

/// Renews the lease, by a prepared statement if there is one.
///
/// # Errors
/// SQL, or another relay has taken over.
pub async fn renew(
    client: &Client,
    prepared: Option<&Statement>,
    pipeline: &str,
    epoch: i64,
) -> Result<(), CursorError> {
    let lease_s = LEASE.as_secs_f64();
    let values: [&(dyn ToSql + Sync); 3] = [&pipeline, &epoch, &lease_s];
    match prepared {
        Some(statement) => fenced(client, statement, pipeline, &values).await,
        None => fenced(client, RENEW, pipeline, &values).await,
    }
}

/// Notes the backend that reads for this leader, so that a successor can end it; renews the lease as well.
///
/// # Errors
/// SQL, or another relay has taken over.
pub async fn note_source(
    client: &Client,
    pipeline: &str,
    epoch: i64,
    source_pid: i32,
) -> Result<(), CursorError> {
    let statement = "
        UPDATE statecast.cursor
           SET pids = b.pids, backends_started = b.started,
               lease_until = clock_timestamp() + make_interval(secs => $3)
          FROM (SELECT array_agg(a.pid ORDER BY a.pid <> pg_backend_pid()) AS pids,
                       array_agg(a.backend_start ORDER BY a.pid <> pg_backend_pid()) AS started
                  FROM pg_stat_activity a WHERE a.pid IN (pg_backend_pid(), $4)) AS b
         WHERE pipeline = $1 AND epoch = $2";
    fenced(client, statement, pipeline, &[&pipeline, &epoch, &LEASE.as_secs_f64(), &source_pid]).await
}

/// Gives the lease back: nobody has to wait until it is over. What another relay has taken stays as it is.
///
/// # Errors
/// SQL.
pub async fn release(client: &Client, pipeline: &str, epoch: i64) -> Result<(), CursorError> {
    let statement = "UPDATE statecast.cursor
            SET lease_until = NULL, holder = NULL, pids = '{}', backends_started = '{}'
          WHERE pipeline = $1 AND epoch = $2";
    client.execute(statement, &[&pipeline, &epoch]).await.map(|_| ()).map_err(sql(pipeline))
}

/// A write that belongs to an epoch.
async fn fenced<T: ?Sized + ToStatement>(
    client: &Client,
    statement: &T,
    pipeline: &str,
    values: &[&(dyn ToSql + Sync)],
) -> Result<(), CursorError> {
    match client.execute(statement, values).await.map_err(sql(pipeline))? {
        0 => Err(CursorError::Superseded(pipeline.to_owned())),
        _ => Ok(()),
    }
}
