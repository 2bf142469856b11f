//! Where a pipeline stands, from the database alone: cursor, leader, and what is pending. Reads only.

use tokio_postgres::{Client, Error, IsolationLevel, Transaction};

use super::cursor_admin::{CursorRow, Leader, leader, load};

/// One look, in one snapshot: the numbers belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The cursor row; `None` before the first run.
    pub cursor: Option<CursorRow>,
    /// Who leads.
    pub leader: Option<Leader>,
    /// Committed events that are not settled. Counted, not estimated.
    pub pending: i64,
    /// Age of the oldest of them.
    pub oldest_pending_ms: Option<i64>,
    /// The cursor was written on this server.
    pub same_server: bool,
}

/// Looks at `pipeline`. Counting takes about a second per million pending events.
///
/// # Errors
/// SQL, a count of more than a minute included.
pub async fn status(client: &mut Client, pipeline: &str) -> Result<Status, Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    transaction.batch_execute("SET LOCAL statement_timeout = '60s'").await?;
    let cursor = load(&transaction, pipeline).await?;
    let leader = leader(&transaction, pipeline).await?;
    let (pending, oldest_pending_ms) = pending(&transaction, cursor.as_ref()).await?;
    let here: i64 =
        transaction.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await?.try_get(0)?;
    transaction.commit().await?;
    let same_server = cursor.as_ref().is_none_or(|cursor| cursor.system_identifier == here);
    Ok(Status { cursor, leader, pending, oldest_pending_ms, same_server })
}

/// The two branches of a poll, without an upper snapshot: what P does not see is pending, but for the settled prefix of
/// the window in progress.
const PENDING: &str = "
SELECT count(*), (extract(epoch FROM clock_timestamp() - min(recorded_at)) * 1000)::bigint
  FROM (SELECT late.xid, late.seq, late.recorded_at
          FROM pg_snapshot_xip($1::text::pg_snapshot) x(id)
          JOIN statecast.outbox late ON late.xid = x.id AND late.seq > $3
        UNION ALL
        SELECT new.xid, new.seq, new.recorded_at
          FROM statecast.outbox new
         WHERE new.seq > $2 AND new.xid >= pg_snapshot_xmax($1::text::pg_snapshot)) o
 WHERE NOT coalesce(o.seq <= $5::bigint AND pg_visible_in_snapshot(o.xid, $4::text::pg_snapshot), false)";

async fn pending(
    transaction: &Transaction<'_>,
    cursor: Option<&CursorRow>,
) -> Result<(i64, Option<i64>), Error> {
    // Without a cursor nothing is settled: the snapshot that sees nothing.
    let (snapshot, prune_seq, floor_seq) =
        cursor.map_or(("1:1:", 0, 0), |c| (c.snapshot.as_str(), c.prune_seq, c.floor_seq));
    let window = cursor.and_then(|cursor| cursor.window.as_ref());
    let window_snapshot = window.map(|window| window.snapshot.as_str());
    let window_seq = window.map(|window| window.seq);
    let row = transaction
        .query_one(PENDING, &[&snapshot, &prune_seq, &floor_seq, &window_snapshot, &window_seq])
        .await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}
