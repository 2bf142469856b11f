//! What people do to a cursor row: look at it, take it over to another server, drop it.
//!
//! Changes hold the leader's advisory lock for the length of their transaction, so no relay leads meanwhile, and leave a
//! row in `statecast.audit`.

use tokio_postgres::{Client, Error, GenericClient, Row, Transaction};

use super::lease::lock_sql;

/// The window in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowRow {
    /// `window_snapshot`.
    pub snapshot: String,
    /// `window_prune_seq`.
    pub prune_seq: i64,
    /// `window_ceil`.
    pub ceil: i64,
    /// `window_seq`: its settled prefix.
    pub seq: i64,
}

/// A row of `statecast.cursor`, for people: column names, snapshots as text.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CursorRow {
    pub pipeline: String,
    pub system_identifier: i64,
    pub timeline: i32,
    pub epoch: i64,
    pub holder: Option<String>,
    pub pids: Vec<i32>,
    pub snapshot: String,
    pub prune_seq: i64,
    pub floor_seq: i64,
    /// `cand_xid` and `cand_seq`.
    pub candidate: Option<(String, i64)>,
    pub max_seq: i64,
    pub window: Option<WindowRow>,
    pub lanes: i32,
    pub base: i64,
    pub confirmed: i64,
    pub parked: i64,
    pub discarded: i64,
    /// RFC 3339, UTC.
    pub updated_at: String,
    /// Milliseconds since `updated_at`.
    pub age_ms: i64,
    /// Milliseconds until the lease is over, by the server's clock; below 0: it is. `None`: nobody has it.
    pub lease_ms: Option<i64>,
}

/// A backend that holds the pipeline's advisory lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Backend.
    pub pid: i32,
    /// `application_name`, as far as this login may see it.
    pub application: String,
}

impl CursorRow {
    /// How the lease stands, for people.
    pub fn lease(&self) -> Option<String> {
        let ms = self.lease_ms?;
        let amount = format!("{}.{} s", ms.unsigned_abs() / 1000, ms.unsigned_abs() % 1000 / 100);
        Some(if ms < 0 { format!("over for {amount}") } else { format!("for {amount}") })
    }
}

impl std::fmt::Display for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hidden = self.application.is_empty();
        write!(f, "backend {}", self.pid)?;
        if hidden { Ok(()) } else { write!(f, ", {}", self.application) }
    }
}

/// What [`rebase`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebased {
    /// Everything above this is published again.
    pub from_seq: i64,
    /// How many events that are, as far as they have committed. Those that are set aside stay so, and are among them.
    pub pending: i64,
    /// Events that are set aside, above and below.
    pub set_aside: i64,
    /// Rows whose transaction id lay in this server's future, and which got a present one.
    pub moved: u64,
    /// Where the sequence stands now.
    pub last_seq: i64,
    /// The new epoch.
    pub epoch: i64,
}

/// The cursor was not changed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A relay leads.
    #[error("a relay leads pipeline {pipeline:?} ({leader}): stop it first")]
    Led {
        /// Pipeline.
        pipeline: String,
        /// Who, or that it is gone again.
        leader: String,
    },
    /// No row.
    #[error("pipeline {0:?} has no cursor in this database: it has never run here")]
    NoCursor(String),
    /// SQL.
    #[error("cannot {doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// What the server said.
        #[source]
        source: Error,
    },
}

fn during(doing: &'static str) -> impl FnOnce(Error) -> AdminError {
    move |source| AdminError::Sql { doing, source }
}

/// The pipeline's row, if there is one.
///
/// # Errors
/// SQL.
pub async fn load(client: &impl GenericClient, pipeline: &str) -> Result<Option<CursorRow>, Error> {
    let row = client
        .query_opt(
            "SELECT pipeline, system_identifier, timeline, epoch, holder, pids, snapshot::text, prune_seq, floor_seq,
                    cand_xid::text, cand_seq, max_seq, window_snapshot::text, window_prune_seq, window_ceil, window_seq,
                    lanes, base, confirmed, parked, discarded,
                    to_char(updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"'),
                    (extract(epoch FROM clock_timestamp() - updated_at) * 1000)::bigint,
                    CASE WHEN isfinite(lease_until)
                         THEN (extract(epoch FROM lease_until - clock_timestamp()) * 1000)::bigint END
               FROM statecast.cursor WHERE pipeline = $1",
            &[&pipeline],
        )
        .await?;
    row.map(|row| decode(&row)).transpose()
}

fn decode(row: &Row) -> Result<CursorRow, Error> {
    let window = match row.try_get(12)? {
        None => None,
        Some(snapshot) => Some(WindowRow {
            snapshot,
            prune_seq: row.try_get(13)?,
            ceil: row.try_get(14)?,
            seq: row.try_get(15)?,
        }),
    };
    let candidate: (Option<String>, Option<i64>) = (row.try_get(9)?, row.try_get(10)?);
    Ok(CursorRow {
        pipeline: row.try_get(0)?,
        system_identifier: row.try_get(1)?,
        timeline: row.try_get(2)?,
        epoch: row.try_get(3)?,
        holder: row.try_get(4)?,
        pids: row.try_get(5)?,
        snapshot: row.try_get(6)?,
        prune_seq: row.try_get(7)?,
        floor_seq: row.try_get(8)?,
        candidate: candidate.0.zip(candidate.1),
        max_seq: row.try_get(11)?,
        window,
        lanes: row.try_get(16)?,
        base: row.try_get(17)?,
        confirmed: row.try_get(18)?,
        parked: row.try_get(19)?,
        discarded: row.try_get(20)?,
        updated_at: row.try_get(21)?,
        age_ms: row.try_get(22)?,
        lease_ms: row.try_get(23)?,
    })
}

/// Who holds the pipeline's advisory lock.
///
/// # Errors
/// SQL.
pub async fn leader(client: &impl GenericClient, pipeline: &str) -> Result<Option<Leader>, Error> {
    const LEADER: &str = concat!(
        "
        SELECT l.pid, coalesce(a.application_name, '')
          FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE ",
        lock_sql!("$1::text"),
        "
         LIMIT 1"
    );
    let row = client.query_opt(LEADER, &[&pipeline]).await?;
    row.map(|row| Ok(Leader { pid: row.try_get(0)?, application: row.try_get(1)? })).transpose()
}

/// Takes the pipeline to this server: after a restore, an upgrade by dump, or where the row cannot be trusted.
///
/// Everything above `floor_seq` is published again (repeats keep their ids), and the sequence moves ahead by `gap`, since
/// the server may have issued numbers before that are unknown here.
///
/// After a restore from a dump, rows carry the transaction ids of the server they came from; those at or above this
/// server's next id would count as not yet committed, so they get the id of this transaction.
///
/// What is set aside stays so, but what lies above `floor_seq` counts as not passed again: a page will list it once more. Final
/// rows there are forgotten like everything else that was settled above it.
///
/// # Errors
/// A relay leads, there is no row, or SQL.
pub async fn rebase(
    client: &mut Client,
    pipeline: &str,
    gap: i64,
    reason: Option<&str>,
) -> Result<Rebased, AdminError> {
    let transaction = lead(client, pipeline).await?;
    let cursor = load(&transaction, pipeline).await.map_err(during("read the cursor"))?;
    let cursor = cursor.ok_or_else(|| AdminError::NoCursor(pipeline.to_owned()))?;
    let last_seq = last_seq(&transaction).await?;
    // A sequence behind the floor was itself restored or reset: then nothing is known to be settled.
    let from_seq = if last_seq < cursor.floor_seq { 0 } else { cursor.floor_seq };
    let gap = gap.max(cursor.max_seq.saturating_sub(last_seq).saturating_add(gap));
    let last_seq = transaction
        .query_one("SELECT statecast.advance_sequence($1)", &[&gap])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during("move the sequence ahead"))?;
    let moved = adopt(&transaction, from_seq).await?;
    let (set_aside, passed) = set_back(&transaction, pipeline, from_seq).await?;
    // max_seq was read before this transaction had an id, as the pairing with P demands: the floor is always safe.
    // base keeps the books: what is not pending from now on, and not counted already, was settled elsewhere.
    let row = transaction
        .query_one(
            "WITH rows AS (SELECT count(*) FILTER (WHERE seq <= $2) AS settled, count(*) FILTER (WHERE seq > $2) AS pending
                             FROM statecast.outbox),
                  dropped AS (SELECT coalesce(sum(rows), 0)::bigint AS rows FROM statecast.chunk)
             UPDATE statecast.cursor
                SET system_identifier = (SELECT system_identifier FROM pg_control_system()),
                    timeline = ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int,
                    epoch = epoch + 1, holder = NULL, pids = '{}', backends_started = '{}', lease_until = NULL,
                    snapshot = '1:1:', prune_seq = $2, floor_seq = $2, cand_xid = NULL, cand_seq = NULL, max_seq = $2,
                    window_snapshot = NULL, window_prune_seq = NULL, window_ceil = NULL, window_seq = NULL,
                    parked = $3,
                    base = rows.settled + dropped.rows - confirmed - $3 - discarded,
                    updated_at = clock_timestamp()
               FROM rows, dropped
              WHERE pipeline = $1
          RETURNING epoch, rows.pending",
            &[&pipeline, &from_seq, &passed],
        )
        .await
        .map_err(during("move the cursor"))?;
    let get = |column| row.try_get::<_, i64>(column).map_err(during("move the cursor"));
    let (epoch, pending) = (get(0)?, get(1)?);
    audit(&transaction, "cursor rebase", pipeline, reason).await?;
    transaction.commit().await.map_err(during("commit"))?;
    Ok(Rebased { from_seq, pending, set_aside, moved, last_seq, epoch })
}

/// Sets the pipeline's rows that are set aside back to `from_seq`. Returns how many are open, and how many of those still count as
/// passed.
///
/// A row that the outbox no longer has is listed by no page, so it stays passed. Transaction ids from another server's future
/// are renewed like those of the outbox, or the cursor would never pass these rows.
async fn set_back(
    transaction: &Transaction<'_>,
    pipeline: &str,
    from_seq: i64,
) -> Result<(i64, i64), AdminError> {
    let doing = "set back the events that are set aside";
    transaction
        .execute(
            "DELETE FROM statecast.parked WHERE pipeline = $1 AND state IN ('confirmed', 'discarded')",
            &[&pipeline],
        )
        .await
        .map_err(during(doing))?;
    transaction
        .execute(
            "UPDATE statecast.parked p
                SET passed = p.passed AND NOT (p.seq > $2 AND EXISTS (SELECT FROM statecast.outbox o WHERE o.seq = p.seq)),
                    xid = CASE WHEN p.xid >= pg_snapshot_xmax(pg_current_snapshot()) THEN pg_current_xact_id()
                               ELSE p.xid END
              WHERE p.pipeline = $1
                AND (p.seq > $2 OR p.xid >= pg_snapshot_xmax(pg_current_snapshot()))",
            &[&pipeline, &from_seq],
        )
        .await
        .map_err(during(doing))?;
    let row = transaction
        .query_one(
            "SELECT count(*), count(*) FILTER (WHERE passed) FROM statecast.parked WHERE pipeline = $1",
            &[&pipeline],
        )
        .await
        .map_err(during(doing))?;
    Ok((row.try_get(0).map_err(during(doing))?, row.try_get(1).map_err(during(doing))?))
}

/// Forgets the pipeline and what it has set aside: its retention no longer waits for it, and a later run starts anew. Returns how
/// many open events were set aside.
///
/// # Errors
/// A relay leads, there is no row, or SQL.
pub async fn drop(client: &mut Client, pipeline: &str, reason: Option<&str>) -> Result<i64, AdminError> {
    let transaction = lead(client, pipeline).await?;
    let deleted = transaction
        .execute("DELETE FROM statecast.cursor WHERE pipeline = $1", &[&pipeline])
        .await
        .map_err(during("delete the cursor"))?;
    if deleted == 0 {
        return Err(AdminError::NoCursor(pipeline.to_owned()));
    }
    let doing = "delete the events that are set aside";
    let set_aside = transaction
        .query_one(
            "WITH gone AS (DELETE FROM statecast.parked WHERE pipeline = $1 RETURNING state)
             SELECT count(*) FROM gone WHERE state NOT IN ('confirmed', 'discarded')",
            &[&pipeline],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))?;
    audit(&transaction, "cursor drop", pipeline, reason).await?;
    transaction.commit().await.map_err(during("commit"))?;
    Ok(set_aside)
}

/// A transaction that holds the leader's lock.
async fn lead<'a>(client: &'a mut Client, pipeline: &str) -> Result<Transaction<'a>, AdminError> {
    let doing = "take the leader's lock";
    let transaction = client.transaction().await.map_err(during(doing))?;
    let free: bool = transaction
        .query_one(
            "SELECT pg_try_advisory_xact_lock(hashtextextended('statecast:' || $1::text, 0))",
            &[&pipeline],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))?;
    if free {
        return Ok(transaction);
    }
    let leader = leader(&transaction, pipeline).await.map_err(during("look who leads"))?;
    let leader =
        leader.map_or_else(|| "it has just ended: try again".to_owned(), |leader| leader.to_string());
    Err(AdminError::Led { pipeline: pipeline.to_owned(), leader })
}

async fn last_seq(transaction: &Transaction<'_>) -> Result<i64, AdminError> {
    transaction
        .query_one(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq",
            &[],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during("read the sequence"))
}

/// Gives rows from this server's future a present transaction id. Only the owner may, and only where there are any.
async fn adopt(transaction: &Transaction<'_>, from_seq: i64) -> Result<u64, AdminError> {
    let doing = "look for rows of another server's transactions";
    let foreign: bool = transaction
        .query_one(
            "SELECT EXISTS (SELECT FROM statecast.outbox
                             WHERE seq > $1 AND xid >= pg_snapshot_xmax(pg_current_snapshot())
                               AND xid <> pg_current_xact_id())",
            &[&from_seq],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))?;
    if !foreign {
        return Ok(0);
    }
    let doing = "give restored rows a transaction id of this server (GRANT statecast_owner to this login)";
    transaction.batch_execute("SET LOCAL ROLE statecast_owner").await.map_err(during(doing))?;
    let moved = transaction
        .execute(
            "UPDATE statecast.outbox SET xid = pg_current_xact_id()
              WHERE seq > $1 AND xid >= pg_snapshot_xmax(pg_current_snapshot())",
            &[&from_seq],
        )
        .await
        .map_err(during(doing))?;
    transaction.batch_execute("RESET ROLE").await.map_err(during(doing))?;
    Ok(moved)
}

async fn audit(
    transaction: &Transaction<'_>,
    act: &str,
    pipeline: &str,
    reason: Option<&str>,
) -> Result<(), AdminError> {
    transaction
        .execute(
            "INSERT INTO statecast.audit (actor, act, selector, reason) VALUES (session_user, $1, $2, $3)",
            &[&act, &pipeline, &reason],
        )
        .await
        .map_err(during("write the audit row"))?;
    Ok(())
}
