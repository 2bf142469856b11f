//! Chunks: the outbox's partitions, and the empty ones ahead of the writers.
//!
//! ```text
//! outbox_1 │ outbox_1000001 │ … │ outbox_15000001 │ outbox_tail_16000001  FROM (16000001) TO (MAXVALUE)
//! ```
//!
//! An insert always finds a home, because the last partition has no upper bound. Before the writers come near it,
//! [`ensure_chunks`] takes the empty tail off, attaches new chunks and a new tail. All of it works under locks that
//! inserts do not meet (SHARE UPDATE EXCLUSIVE on the parent).
//!
//! While the tail is off, numbers beyond the last chunk have no home: so it starts only with whole empty chunks left
//! and with no transaction that would hold DETACH CONCURRENTLY up. Whatever an interruption leaves behind (a pending
//! detach, tables that are not attached, no tail) the next call repairs before anything else.

use tokio_postgres::Client;

use super::layout::Plan;
pub use super::layout::{Alarm, Chunk, ChunkState, Postponed, chunk_state, list_chunks};
pub use super::upkeep::UpkeepError;
use super::upkeep::{LOCK_TIMEOUT, LOCK_TIMEOUT_LONG, during, enter, gave_up, leave, patiently};

/// Empty chunks after an installation, and the number that [`ensure_chunks`] fills up to.
pub const CHUNKS_AT_ONCE: usize = 16;
/// With fewer empty chunks than this, new ones are made.
pub const EMPTY_MIN: usize = 8;
/// With fewer than this the tail stays where it is: the writers could reach its range while it is off.
pub(crate) const EMPTY_TO_START: usize = 2;
/// Tries of a statement that must go through while the tail is off.
const TRIES_TAIL_OFF: u32 = 60;
/// Tries where the next call may go on as well.
const TRIES: u32 = 5;
/// Tries of a FINALIZE that give up after 50 ms, before those that wait longer.
const TRIES_SHORT: u32 = 20;
/// Tries of a FINALIZE that wait longer.
const TRIES_LONG: u32 = 10;
/// A transaction that holds a lock on the outbox for longer delays all upkeep.
const OLD: std::time::Duration = std::time::Duration::from_secs(1);
/// Width of the range that `maintain` gives a tail it has swapped.
pub(super) const SWAP_GAP: i64 = 1_000_000_000_000;

/// Keeps at least [`EMPTY_MIN`] empty chunks before the tail, and repairs what an interruption left.
///
/// Changes the session's role and timeouts while it runs; a connection on which this future was dropped must be closed.
///
/// # Errors
///
/// See [`UpkeepError`]. A lock that is not free is no error, but [`ChunkState::postponed`].
pub async fn ensure_chunks(client: &Client, chunk_rows: i64) -> Result<ChunkState, UpkeepError> {
    if !enter(client).await? {
        let mut state = chunk_state(client).await?;
        state.postponed = Some(Postponed::Elsewhere);
        return Ok(state);
    }
    let done = ensure_locked(client, chunk_rows).await;
    leave(client).await?;
    done
}

/// [`ensure_chunks`] for a caller that holds the upkeep lock and role.
pub(super) async fn ensure_locked(client: &Client, chunk_rows: i64) -> Result<ChunkState, UpkeepError> {
    let mut state = repair(client).await?;
    if state.postponed.is_some() {
        return Ok(state);
    }
    let strays = std::mem::take(&mut state.alarms);
    let (created, postponed) = match state.tail() {
        None => (grow(client, &state, chunk_rows).await?, None),
        Some(_) if state.tail_rows || state.empty_ahead >= EMPTY_MIN => (0, None),
        Some(_) if state.empty_ahead < EMPTY_TO_START => (0, None),
        Some(_) => move_tail(client, chunk_rows).await?,
    };
    follow_swap(client).await?;
    let mut state = chunk_state(client).await?;
    state.created = created;
    state.postponed = postponed;
    let stray = |alarm: &Alarm| matches!(alarm, Alarm::Stray { .. });
    state.alarms.extend(strays.into_iter().filter(stray));
    if let Some(lo) =
        state.tail().filter(|_| !state.tail_rows && state.empty_ahead < EMPTY_TO_START).map(|t| t.lo)
    {
        state.alarms.push(Alarm::TailNear { lo });
    }
    Ok(state)
}

/// Finishes a pending detach and drops or re-attaches tables that are not attached.
pub(super) async fn repair(client: &Client) -> Result<ChunkState, UpkeepError> {
    let state = chunk_state(client).await?;
    // PostgreSQL allows one pending detach per table.
    if let Some(pending) = state.chunks.iter().find(|chunk| chunk.detaching) {
        // Close to a range without a home, the tail is not waited for any longer than it takes to ask.
        let urgent = pending.hi.is_none() && state.empty_ahead < EMPTY_TO_START;
        let tries = if urgent { TRIES } else { TRIES_TAIL_OFF };
        let mut done = finalize(client, &pending.table, tries).await?;
        if urgent && !done {
            done = drop_empty_tail(client, pending).await?;
        }
        if !done {
            return Ok(ChunkState { postponed: Some(Postponed::Detaching), ..state });
        }
    }
    let state = chunk_state(client).await?;
    let mut alarms = Vec::new();
    for table in unattached(client).await? {
        if !holds_rows(client, &table).await? {
            // Made and not attached, or detached and not dropped: empty either way. The next call may do it, too.
            patiently(client, "drop a leftover chunk", &format!("DROP TABLE statecast.{table}"), TRIES)
                .await?;
            continue;
        }
        // A tail that was taken off with rows in it goes back where it was.
        let was_tail = format!("outbox_tail_{}", state.end());
        if state.tail().is_none() && table == was_tail {
            let sql = attach_tail_sql(&table, state.end());
            patiently(client, "attach the tail again", &sql, TRIES_TAIL_OFF).await?;
            continue;
        }
        alarms.push(Alarm::Stray { table });
    }
    let mut state = chunk_state(client).await?;
    state.alarms.extend(alarms);
    Ok(state)
}

fn attach_tail_sql(table: &str, lo: i64) -> String {
    format!(
        "ALTER TABLE statecast.outbox ATTACH PARTITION statecast.{table} FOR VALUES FROM ({lo}) TO (MAXVALUE)"
    )
}

async fn unattached(client: &Client) -> Result<Vec<String>, UpkeepError> {
    let doing = "look for leftover chunks";
    let rows = client
        .query(
            "SELECT c.relname::text FROM pg_class c
             WHERE c.relnamespace = 'statecast'::regnamespace AND c.relkind = 'r'
               AND c.relname ~ '^outbox_(tail_)?[0-9]{1,19}$'
               AND c.relowner = 'statecast_owner'::regrole
               AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
             ORDER BY c.relname",
            &[],
        )
        .await
        .map_err(during(doing))?;
    rows.iter().map(|row| row.try_get(0).map_err(during(doing))).collect()
}

async fn holds_rows(client: &Client, table: &str) -> Result<bool, UpkeepError> {
    let doing = "see whether a chunk is empty";
    client
        .query_one(&format!("SELECT EXISTS (SELECT FROM ONLY statecast.{table})"), &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(during(doing))
}

/// Takes a partition off without blocking inserts. `false`: it has begun and could not be finished, or not begun.
///
/// DETACH CONCURRENTLY cannot run inside a transaction or function, so it is a statement of its own. A timeout after
/// its first step leaves a pending detach, which only FINALIZE ends.
pub(super) async fn detach(client: &Client, table: &str) -> Result<bool, UpkeepError> {
    let doing = "detach a chunk";
    let sql = format!("ALTER TABLE statecast.outbox DETACH PARTITION statecast.{table} CONCURRENTLY");
    match client.batch_execute(&sql).await {
        Ok(()) => return Ok(true),
        Err(error) if gave_up(&error) => {}
        Err(error) => return Err(during(doing)(error)),
    }
    match list_chunks(client).await?.into_iter().find(|chunk| chunk.table == table) {
        None => Ok(true),
        Some(chunk) if chunk.detaching => finalize(client, table, TRIES_TAIL_OFF).await,
        Some(_) => Ok(false),
    }
}

/// Waits by transaction id for those that saw the partition, and then takes locks that no insert stands behind: so where
/// overlapping writers never leave it 50 ms, it may wait longer. Less than `deadlock_timeout`, so that nothing is logged.
async fn finalize(client: &Client, table: &str, tries: u32) -> Result<bool, UpkeepError> {
    let doing = "finish detaching a chunk";
    let sql = format!("ALTER TABLE statecast.outbox DETACH PARTITION statecast.{table} FINALIZE");
    if patiently(client, doing, &sql, tries.min(TRIES_SHORT)).await? {
        return Ok(true);
    }
    client.batch_execute(LOCK_TIMEOUT_LONG).await.map_err(during(doing))?;
    let done = patiently(client, doing, &sql, tries.min(TRIES_LONG)).await?;
    client.batch_execute(LOCK_TIMEOUT).await.map_err(during(doing))?;
    Ok(done)
}

/// The way out when an old snapshot holds FINALIZE up while the writers come near the tail's range, which has no home
/// as long as the detach is pending: the empty tail is dropped. That takes ACCESS EXCLUSIVE on the parent for an
/// instant; an insert waits for 20 ms at most, and then succeeds instead of failing a little later.
async fn drop_empty_tail(client: &Client, tail: &Chunk) -> Result<bool, UpkeepError> {
    if holds_rows(client, &tail.table).await? {
        return Ok(false);
    }
    tracing::warn!(table = tail.table, "an old snapshot holds up the new tail: dropping the empty old one");
    let sql = format!("SET LOCAL lock_timeout = '20ms'; DROP TABLE statecast.{}", tail.table);
    patiently(client, "drop the empty tail", &sql, TRIES_TAIL_OFF).await
}

/// Is there a transaction that has held a lock on the outbox for about a second? DETACH CONCURRENTLY would wait for
/// it. Two looks, because `pg_stat_activity` hides other users' start times from the relay.
pub(super) async fn held_for_long(client: &Client) -> Result<bool, UpkeepError> {
    let first = lockers(client).await?;
    if first.is_empty() {
        return Ok(false);
    }
    tokio::time::sleep(OLD).await;
    let second = lockers(client).await?;
    Ok(first.iter().any(|transaction| second.contains(transaction)))
}

async fn lockers(client: &Client) -> Result<Vec<String>, UpkeepError> {
    let doing = "look for transactions that hold the outbox";
    let rows = client
        .query(
            "SELECT DISTINCT virtualtransaction FROM pg_locks
             WHERE locktype = 'relation' AND relation = 'statecast.outbox'::regclass
               AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
               AND pid IS DISTINCT FROM pg_backend_pid()",
            &[],
        )
        .await
        .map_err(during(doing))?;
    rows.iter().map(|row| row.try_get(0).map_err(during(doing))).collect()
}

/// Takes the empty tail off, attaches new chunks and a new tail, drops the old one.
async fn move_tail(client: &Client, chunk_rows: i64) -> Result<(usize, Option<Postponed>), UpkeepError> {
    if held_for_long(client).await? {
        return Ok((0, Some(Postponed::OldTransaction)));
    }
    // The writers may have come closer meanwhile.
    let state = chunk_state(client).await?;
    let Some(old) = state.tail().filter(|_| !state.tail_rows && state.empty_ahead >= EMPTY_TO_START) else {
        return Ok((0, None));
    };
    let plan = Plan::new(old.lo, chunk_rows, CHUNKS_AT_ONCE.saturating_sub(state.empty_ahead));
    // All tables exist before the tail goes, so that it is away for as short as can be.
    if !patiently(client, "create chunks", &plan.create_sql(), TRIES).await? {
        return Ok((0, Some(Postponed::Locked)));
    }
    if !detach(client, &old.table).await? {
        let began = list_chunks(client).await?.iter().any(|chunk| chunk.detaching);
        return Ok((0, Some(if began { Postponed::Detaching } else { Postponed::Locked })));
    }
    if holds_rows(client, &old.table).await? {
        let sql = attach_tail_sql(&old.table, old.lo);
        patiently(client, "attach the tail again", &sql, TRIES_TAIL_OFF).await?;
        return Ok((0, None));
    }
    if !patiently(client, "attach chunks", &plan.attach_sql(), TRIES_TAIL_OFF).await? {
        return Ok((0, Some(Postponed::Locked)));
    }
    let drop = format!("DROP TABLE statecast.{}", old.table);
    patiently(client, "drop the old tail", &drop, TRIES).await?;
    Ok((plan.count, None))
}

/// Chunks and a tail where none is attached: after an interruption, or behind a tail that was swapped.
async fn grow(client: &Client, state: &ChunkState, chunk_rows: i64) -> Result<usize, UpkeepError> {
    let plan = Plan::new(state.end(), chunk_rows, CHUNKS_AT_ONCE.saturating_sub(state.empty_ahead));
    let sql = format!("{}{}", plan.create_sql(), plan.attach_sql());
    let doing = "attach chunks and a tail";
    if !patiently(client, doing, &sql, TRIES_TAIL_OFF).await? {
        return Err(UpkeepError::NeverFree { doing, tries: TRIES_TAIL_OFF });
    }
    Ok(plan.count)
}

/// Moves the sequence out of a swapped tail's wide range, as soon as a chunk follows it.
async fn follow_swap(client: &Client) -> Result<(), UpkeepError> {
    let state = chunk_state(client).await?;
    let next = state.last_seq.saturating_add(1);
    let swapped = state
        .chunks
        .iter()
        .find(|chunk| chunk.lo <= next && chunk.hi.is_some_and(|hi| next < hi && hi - chunk.lo >= SWAP_GAP));
    let Some(hi) = swapped.and_then(|chunk| chunk.hi) else {
        return Ok(());
    };
    if !state.chunks.iter().any(|chunk| chunk.lo == hi && !chunk.detaching) {
        return Ok(());
    }
    tracing::info!(from = state.last_seq, to = hi, "moving the outbox's sequence to the next chunk");
    client
        .execute("SELECT setval('statecast.outbox_seq_seq', $1, false)", &[&hi])
        .await
        .map(|_| ())
        .map_err(during("move the outbox's sequence"))
}
