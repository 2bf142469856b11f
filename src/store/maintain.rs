//! `statecast maintain`: upkeep and retention once, and the way out of a tail that holds rows.
//!
//! A tail is reached when no relay (and no cron job) made chunks for several millions of events. Its rows are in the
//! way of new chunks, so the tail itself becomes a chunk with a far upper bound, and everything goes on behind it:
//!
//! ```text
//! outbox_tail_N  N…MAXVALUE   →   outbox_N  N…m │ outbox_m │ … │ outbox_tail_…        m = last number + 10^12
//! ```
//!
//! 1. `CHECK (seq >= N AND seq < m) NOT VALID` on the tail (ACCESS EXCLUSIVE on the tail for an instant),
//! 2. VALIDATE (SHARE UPDATE EXCLUSIVE; reads the tail, however long that takes),
//! 3. one transaction that detaches and attaches it with the new bound; the check proves the bound, so nothing is read,
//! 4. chunks and a tail behind it, 5. the sequence moves to m.
//!
//! Steps 1 and 3 need an instant without any writer: they give up after a few milliseconds rather than let an insert
//! wait for 50, and try again every 10 s. Every step finds what an earlier run has done.

use std::time::Duration;

use tokio_postgres::Client;

use super::chunks::{self, ChunkState, Postponed, SWAP_GAP};
use super::retention::{self, RetentionReport};
use super::upkeep::{UpkeepError, during, enter, gave_up, leave};
use crate::config::Retention;
use crate::postgres::describe;

/// Begins a transaction whose locks inserts meet. It stands in a queue for 20 ms at most, and a statement that takes
/// longer than it should (a scan where none was expected) is given up instead of being waited for by writers.
const BRIEFLY: &str = "BEGIN; SET LOCAL lock_timeout = '20ms'; SET LOCAL statement_timeout = '40ms';";

/// How often steps that need an instant without writers are tried.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Tries of each step.
    pub tries: u32,
    /// Between two tries.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { tries: 60, pause: Duration::from_secs(10) }
    }
}

/// What [`maintain_told`] begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Chunks before the tail.
    Chunks,
    /// A check that gives a filled tail an upper bound: this try of it.
    Bound(u32),
    /// Reads the whole tail.
    Validate(u32),
    /// The tail becomes a chunk: this try of it.
    Swap(u32),
    /// Chunks that are settled and old.
    Retention,
}

/// Who is told.
pub type Told<'a> = &'a (dyn Fn(Step) + Send + Sync);

/// What [`maintain`] did and found.
#[derive(Clone, Debug)]
pub struct MaintainReport {
    /// The outbox afterwards.
    pub chunks: ChunkState,
    /// Retention.
    pub retention: RetentionReport,
    /// Bounds of the tail that was swapped, if it held rows.
    pub swapped: Option<(i64, i64)>,
}

/// Upkeep and retention once; swaps the tail if it holds rows. May take minutes then; inserts go on.
///
/// # Errors
///
/// See [`UpkeepError`]; [`UpkeepError::NeverFree`] when the writers left no instant for the swap. Run it again.
pub async fn maintain(client: &Client, retention: &Retention) -> Result<MaintainReport, UpkeepError> {
    maintain_with(client, retention, Patience::default()).await
}

/// [`maintain`] with another patience.
///
/// # Errors
///
/// As [`maintain`].
pub async fn maintain_with(
    client: &Client,
    retention: &Retention,
    patience: Patience,
) -> Result<MaintainReport, UpkeepError> {
    maintain_told(client, retention, patience, &|_| ()).await
}

/// [`maintain_with`], which tells each step as it begins.
///
/// # Errors
///
/// As [`maintain`].
pub async fn maintain_told(
    client: &Client,
    retention: &Retention,
    patience: Patience,
    told: Told<'_>,
) -> Result<MaintainReport, UpkeepError> {
    if !enter(client).await? {
        let mut chunks = chunks::chunk_state(client).await?;
        chunks.postponed = Some(Postponed::Elsewhere);
        let retention = RetentionReport { postponed: chunks.postponed, ..RetentionReport::default() };
        return Ok(MaintainReport { chunks, retention, swapped: None });
    }
    let done = maintain_locked(client, retention, patience, told).await;
    leave(client).await?;
    done
}

async fn maintain_locked(
    client: &Client,
    retention: &Retention,
    patience: Patience,
    told: Told<'_>,
) -> Result<MaintainReport, UpkeepError> {
    told(Step::Chunks);
    let mut chunks = chunks::ensure_locked(client, retention.chunk_rows).await?;
    let mut swapped = None;
    let reached = chunks.tail().filter(|_| chunks.tail_rows).map(|tail| (tail.table.clone(), tail.lo));
    if let Some((table, lo)) = reached {
        swapped = Some((lo, swap(client, &table, lo, chunks.last_seq, patience, told).await?));
        chunks = chunks::ensure_locked(client, retention.chunk_rows).await?;
    }
    told(Step::Retention);
    let retention = retention::retain_locked(client, retention).await?;
    Ok(MaintainReport { chunks, retention, swapped })
}

/// Steps 1–3. Returns the new upper bound.
async fn swap(
    client: &Client,
    table: &str,
    lo: i64,
    last_seq: i64,
    patience: Patience,
    told: Told<'_>,
) -> Result<i64, UpkeepError> {
    let (hi, fresh) = match left_by_an_earlier_run(client, table).await? {
        // Far enough for the inserts that come while it is used.
        Some(hi) if hi - last_seq > SWAP_GAP / 2 => (hi, false),
        _ => (last_seq.max(lo).saturating_add(SWAP_GAP), true),
    };
    let check = format!("statecast_swap_{hi}");
    if fresh {
        tracing::info!(table, lo, hi, "the outbox's tail holds rows: giving it an upper bound");
        let sql = format!(
            "{BRIEFLY}
             ALTER TABLE statecast.{table} ADD CONSTRAINT {check} CHECK (seq >= {lo} AND seq < {hi}) NOT VALID;
             COMMIT"
        );
        exclusively(client, "bound the tail by a check", &sql, patience, &|attempt| {
            told(Step::Bound(attempt))
        })
        .await?;
    }
    let sql = format!(
        "SET statement_timeout = 0; ALTER TABLE statecast.{table} VALIDATE CONSTRAINT {check};
         SET statement_timeout = '10s'"
    );
    exclusively(client, "validate the tail's check", &sql, patience, &|attempt| {
        told(Step::Validate(attempt))
    })
    .await?;
    // Parent before leaf, as inserts do. The whole is one message, so no round trip passes under the lock.
    let sql = format!(
        "{BRIEFLY}
         LOCK TABLE ONLY statecast.outbox IN ACCESS EXCLUSIVE MODE;
         ALTER TABLE statecast.outbox DETACH PARTITION statecast.{table};
         ALTER TABLE statecast.outbox ATTACH PARTITION statecast.{table} FOR VALUES FROM ({lo}) TO ({hi});
         ALTER TABLE statecast.{table} DROP CONSTRAINT {check};
         ALTER TABLE statecast.{table} RENAME TO outbox_{lo};
         COMMIT"
    );
    exclusively(client, "swap the tail", &sql, patience, &|attempt| told(Step::Swap(attempt))).await?;
    tracing::info!(lo, hi, "the outbox's tail is a chunk now");
    Ok(hi)
}

/// The upper bound in the check that an interrupted run has added.
async fn left_by_an_earlier_run(client: &Client, table: &str) -> Result<Option<i64>, UpkeepError> {
    let doing = "look for an unfinished swap of the tail";
    let row = client
        .query_opt(
            "SELECT max(substring(conname FROM '^statecast_swap_([0-9]{1,18})$')::bigint) FROM pg_constraint
             WHERE conrelid = (SELECT oid FROM pg_class
                               WHERE relnamespace = 'statecast'::regnamespace AND relname = $1)",
            &[&table],
        )
        .await
        .map_err(during(doing))?;
    match row {
        Some(row) => row.try_get(0).map_err(during(doing)),
        None => Ok(None),
    }
}

/// Tries until there is an instant without writers.
async fn exclusively(
    client: &Client,
    doing: &'static str,
    sql: &str,
    patience: Patience,
    begins: &(dyn Fn(u32) + Send + Sync),
) -> Result<(), UpkeepError> {
    for attempt in 1..=patience.tries.max(1) {
        begins(attempt);
        let Err(error) = client.batch_execute(sql).await else {
            return Ok(());
        };
        // The failed message may have left its transaction open.
        client.batch_execute("ROLLBACK").await.map_err(during(doing))?;
        if !gave_up(&error) {
            return Err(during(doing)(error));
        }
        tracing::info!(doing, attempt, of = patience.tries, why = %describe(&error), "writers hold the lock");
        if attempt < patience.tries {
            tokio::time::sleep(patience.pause).await;
        }
    }
    Err(UpkeepError::NeverFree { doing, tries: patience.tries })
}
