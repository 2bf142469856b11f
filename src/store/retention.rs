//! Retention: drops chunks that every pipeline has left behind.
//!
//! A chunk is *settled* when its upper bound is at or below the committed `floor_seq` of every pipeline. Nothing else
//! counts, no lock test either: an insert may hold a number of that chunk while a column expression still runs.
//!
//! ```text
//! settled, and old or in the way
//!   → one transaction: record (lo, hi, rows), TRUNCATE the leaf     its rows are gone, its space is free
//!   → DETACH CONCURRENTLY                                           no lock that inserts meet
//!   → DROP
//! ```
//!
//! An interruption after any arrow is finished by the next call: a leaf with a record is detached without another
//! look, a table that is not attached and empty is dropped.

use tokio_postgres::Client;

use super::chunks::{self, Chunk, ChunkState, Postponed};
use super::upkeep::{UpkeepError, during, enter, gave_up, leave, patiently};
use crate::config::Retention;

/// More attached leaves than this slow every generic plan, which locks them all.
pub const LEAVES_MAX: usize = 64;
/// Chunks dropped by one call, at most.
const DROPS_PER_CALL: usize = 16;
const TRIES: u32 = 5;

/// A chunk that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DroppedChunk {
    /// Lowest number.
    pub lo: i64,
    /// One past the highest number.
    pub hi: i64,
    /// Rows it held.
    pub rows: i64,
}

/// A limit that retention cannot keep, because what would have to go is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// Larger than `retention.max_size`.
    Size {
        /// Now.
        bytes: u64,
    },
    /// More than [`LEAVES_MAX`] partitions.
    Leaves {
        /// Now.
        count: usize,
    },
}

impl std::fmt::Display for Overdue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let why = "and its oldest events are not settled by every pipeline: see whether one is stopped, or an old transaction is open";
        match self {
            Overdue::Size { bytes } => {
                write!(f, "the outbox holds {bytes} bytes, more than retention.max_size, {why}")
            }
            Overdue::Leaves { count } => write!(f, "the outbox has {count} partitions, {why}"),
        }
    }
}

/// What [`retain`] did and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetentionReport {
    /// Dropped by this call, oldest first.
    pub dropped: Vec<DroppedChunk>,
    /// Settled chunks still there.
    pub settled: usize,
    /// Age in seconds of the newest event in the oldest settled chunk.
    pub oldest_settled_age_s: Option<u64>,
    /// Why less was done than there was to do.
    pub postponed: Option<Postponed>,
    /// A limit that is exceeded and stays so until events are settled.
    pub overdue: Option<Overdue>,
}

/// Drops settled chunks that are past `keep`, or in the way of `max_size` or of [`LEAVES_MAX`].
///
/// Changes the session's role and timeouts while it runs; a connection on which this future was dropped must be closed.
///
/// # Errors
///
/// See [`UpkeepError`]. A lock that is not free is no error, but [`RetentionReport::postponed`].
pub async fn retain(client: &Client, retention: &Retention) -> Result<RetentionReport, UpkeepError> {
    if !enter(client).await? {
        return Ok(RetentionReport { postponed: Some(Postponed::Elsewhere), ..RetentionReport::default() });
    }
    let done = retain_locked(client, retention).await;
    leave(client).await?;
    done
}

/// [`retain`] for a caller that holds the upkeep lock and role.
pub(super) async fn retain_locked(
    client: &Client,
    retention: &Retention,
) -> Result<RetentionReport, UpkeepError> {
    let mut report = RetentionReport::default();
    let mut state = chunks::repair(client).await?;
    report.postponed = state.postponed;
    while report.postponed.is_none() && report.dropped.len() < DROPS_PER_CALL {
        let Some(chunk) = next_to_drop(client, &state, retention).await? else {
            break;
        };
        // Before anything is begun: a detach that must wait leaves a pending one, and no chunk can be made meanwhile.
        // Once per call, since the look takes a second.
        if report.dropped.is_empty() && chunks::held_for_long(client).await? {
            report.postponed = Some(Postponed::OldTransaction);
            break;
        }
        match drop_chunk(client, &chunk).await? {
            Ok(dropped) => report.dropped.push(dropped),
            Err(postponed) => report.postponed = Some(postponed),
        }
        state = chunks::chunk_state(client).await?;
    }
    report.settled = state.settled().count();
    if let Some(oldest) = state.settled().next() {
        report.oldest_settled_age_s = newest_age_s(client, oldest).await?.map(whole_seconds);
    } else if state.chunks.len() > LEAVES_MAX {
        report.overdue = Some(Overdue::Leaves { count: state.chunks.len() });
    } else if state.bytes > retention.max_size {
        report.overdue = Some(Overdue::Size { bytes: state.bytes });
    }
    Ok(report)
}

/// The oldest settled chunk, if there is a reason to drop it.
async fn next_to_drop(
    client: &Client,
    state: &ChunkState,
    retention: &Retention,
) -> Result<Option<Chunk>, UpkeepError> {
    let Some(oldest) = state.settled().next() else {
        return Ok(None);
    };
    let in_the_way = state.chunks.len() > LEAVES_MAX || state.bytes > retention.max_size;
    if in_the_way || recorded_rows(client, oldest).await?.is_some() {
        return Ok(Some(oldest.clone()));
    }
    let keep_s = retention.keep.as_secs_f64();
    // The highest numbers are nearly always the newest rows; only when they are old is the whole chunk looked at.
    let past = match newest_age_s(client, oldest).await? {
        None => true,
        Some(age_s) if age_s <= keep_s => false,
        Some(_) => count(client, oldest).await?.1.is_none_or(|age_s| age_s > keep_s),
    };
    Ok(past.then(|| oldest.clone()))
}

/// Records, truncates, detaches, drops.
async fn drop_chunk(client: &Client, chunk: &Chunk) -> Result<Result<DroppedChunk, Postponed>, UpkeepError> {
    let (table, lo) = (&chunk.table, chunk.lo);
    let hi = chunk.hi.unwrap_or(i64::MAX);
    let rows = match recorded_rows(client, chunk).await? {
        Some(rows) => rows,
        None => {
            let rows = count(client, chunk).await?.0;
            if !empty_and_record(client, chunk, hi, rows).await? {
                return Ok(Err(Postponed::Locked));
            }
            rows
        }
    };
    if !chunks::detach(client, table).await? {
        return Ok(Err(Postponed::Detaching));
    }
    let sql = format!("DROP TABLE IF EXISTS statecast.{table}");
    patiently(client, "drop a chunk", &sql, TRIES).await?;
    tracing::info!(lo, hi, rows, "dropped a settled chunk of the outbox");
    Ok(Ok(DroppedChunk { lo, hi, rows }))
}

/// One transaction: rows are either there or recorded as dropped. TRUNCATE locks the leaf alone, and no insert goes
/// to a settled leaf. The floor is asked once more, under the same snapshot as the record.
async fn empty_and_record(client: &Client, chunk: &Chunk, hi: i64, rows: i64) -> Result<bool, UpkeepError> {
    let (table, lo) = (&chunk.table, chunk.lo);
    let sql = format!(
        "DO $$ BEGIN
             IF (SELECT coalesce(min(floor_seq), 0) FROM statecast.cursor) < {hi} THEN
                 RAISE EXCEPTION 'statecast.{table} is not settled' USING ERRCODE = 'lock_not_available';
             END IF;
             INSERT INTO statecast.chunk (lo, hi, rows) VALUES ({lo}, {hi}, {rows});
             TRUNCATE ONLY statecast.{table};
         END $$"
    );
    match client.batch_execute(&sql).await {
        Ok(()) => Ok(true),
        Err(error) if gave_up(&error) => Ok(false),
        Err(error) => Err(during("empty a settled chunk")(error)),
    }
}

async fn recorded_rows(client: &Client, chunk: &Chunk) -> Result<Option<i64>, UpkeepError> {
    let doing = "read the record of dropped chunks";
    let row = client
        .query_opt("SELECT rows FROM statecast.chunk WHERE lo = $1", &[&chunk.lo])
        .await
        .map_err(during(doing))?;
    row.map(|row| row.try_get(0).map_err(during(doing))).transpose()
}

/// Seconds since the newest of the chunk's last rows by number; `None` without rows.
async fn newest_age_s(client: &Client, chunk: &Chunk) -> Result<Option<f64>, UpkeepError> {
    let sql = format!(
        "SELECT extract(epoch FROM clock_timestamp() - max(recorded_at))::float8
         FROM (SELECT recorded_at FROM ONLY statecast.{} ORDER BY seq DESC LIMIT 100) newest",
        chunk.table
    );
    client
        .query_one(&sql, &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during("read the age of a chunk"))
}

/// Rows, and seconds since the newest of them. Reads the whole chunk, once in its life.
async fn count(client: &Client, chunk: &Chunk) -> Result<(i64, Option<f64>), UpkeepError> {
    let doing = "count the rows of a chunk";
    let sql = format!(
        "SELECT count(*), extract(epoch FROM clock_timestamp() - max(recorded_at))::float8
         FROM ONLY statecast.{}",
        chunk.table
    );
    client.batch_execute("SET statement_timeout = '5min'").await.map_err(during(doing))?;
    let row = client.query_one(&sql, &[]).await.map_err(during(doing))?;
    client.batch_execute("SET statement_timeout = '10s'").await.map_err(during(doing))?;
    Ok((row.try_get(0).map_err(during(doing))?, row.try_get(1).map_err(during(doing))?))
}

fn whole_seconds(age_s: f64) -> u64 {
    // A clock that was set back gives a negative age; the cast saturates.
    age_s.max(0.0) as u64
}
