//! Where a pipeline stands, from the database alone: cursor, leader, what is pending and what is set aside. Reads only.

use tokio_postgres::{Client, Error, IsolationLevel, Transaction};

use super::cursor_admin::{CursorRow, Leader, leader, load};
use super::verify::{Verification, verify};

/// One look, in one snapshot: the numbers belong together.
///
/// `committed = confirmed + parked + discarded + pending`, where committed is counted as [`super::verify`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The cursor row; `None` before the first run.
    pub cursor: Option<CursorRow>,
    /// Who leads.
    pub leader: Option<Leader>,
    /// Committed events that are not settled: what the cursor has not passed, and what is set aside and goes by itself.
    /// Counted, not estimated.
    pub pending: i64,
    /// Those of them that are set aside: they wait for the broker, or behind such an event.
    pub set_aside: i64,
    /// Age of the oldest pending event.
    pub oldest_pending_ms: Option<i64>,
    /// Events that a person must decide about.
    pub parked: i64,
    /// Confirmed since the pipeline began.
    pub confirmed: i64,
    /// Discarded since the pipeline began.
    pub discarded: i64,
    /// The cursor was written on this server.
    pub same_server: bool,
    /// The books, where they were to be verified.
    pub verification: Option<Verification>,
}

/// Looks at `pipeline`. Counting takes about a second per million pending events.
///
/// With `verify` every row is counted, which takes about as long per million rows of the outbox, and retention waits meanwhile.
///
/// # Errors
/// SQL, a count of more than a minute (with `verify`, of ten) included.
pub async fn status(client: &mut Client, pipeline: &str, verify_books: bool) -> Result<Status, Error> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    if verify_books {
        // Before the snapshot is taken: a TRUNCATE by retention would be seen at once, its record in statecast.chunk not. Upkeep
        // gives up its own locks after 50 ms and comes again; inserts do not meet this one.
        transaction
            .batch_execute(
                "SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '10min';
                 LOCK TABLE statecast.outbox IN ACCESS SHARE MODE",
            )
            .await?;
    } else {
        transaction.batch_execute("SET LOCAL statement_timeout = '60s'").await?;
    }
    let cursor = load(&transaction, pipeline).await?;
    let leader = leader(&transaction, pipeline).await?;
    let figures = figures(&transaction, pipeline, cursor.as_ref()).await?;
    let here: i64 =
        transaction.query_one("SELECT system_identifier FROM pg_control_system()", &[]).await?.try_get(0)?;
    let same_server = cursor.as_ref().is_none_or(|cursor| cursor.system_identifier == here);
    let mut status = Status { cursor, leader, same_server, ..figures };
    if verify_books && let Some(cursor) = status.cursor.as_ref().filter(|_| same_server) {
        status.verification = Some(verify(&transaction, cursor, &status).await?);
    }
    transaction.commit().await?;
    Ok(status)
}

/// The two branches of a poll, without an upper snapshot: what P does not see is pending, but for the settled prefix of
/// the window in progress.
///
/// `$1` P, `$2` prune_seq, `$3` floor_seq, `$4` upper snapshot and `$5` settled prefix of the window in progress.
macro_rules! not_passed_sql {
    () => {
        "SELECT o.seq, o.recorded_at
           FROM (SELECT late.xid, late.seq, late.recorded_at
                   FROM pg_snapshot_xip($1::text::pg_snapshot) x(id)
                   JOIN statecast.outbox late ON late.xid = x.id AND late.seq > $3
                 UNION ALL
                 SELECT new.xid, new.seq, new.recorded_at
                   FROM statecast.outbox new
                  WHERE new.seq > $2 AND new.xid >= pg_snapshot_xmax($1::text::pg_snapshot)) o
          WHERE NOT coalesce(o.seq <= $5::bigint AND pg_visible_in_snapshot(o.xid, $4::text::pg_snapshot), false)"
    };
}
pub(super) use not_passed_sql;

/// How many rows the cursor has not passed, with the oldest's age; and what is set aside, by state and by whether the cursor has
/// passed it. `$6` pipeline.
///
/// A row that is set aside and not passed is in both: it counts where its state says.
const FIGURES: &str = concat!(
    "
WITH not_passed AS (
    ",
    not_passed_sql!(),
    "
), aside AS (
    SELECT p.passed, p.state, p.seq, p.recorded_at
      FROM statecast.parked p
     WHERE p.pipeline = $6
), pending AS (
    SELECT n.recorded_at, false AS aside
      FROM not_passed n
     WHERE NOT EXISTS (SELECT FROM aside a WHERE a.seq = n.seq AND NOT a.passed)
    UNION ALL
    SELECT a.recorded_at, true
      FROM aside a
     WHERE a.state IN ('waiting', 'queued', 'retry')
)
SELECT (SELECT count(*) FROM pending),
       (SELECT count(*) FROM pending WHERE aside),
       (SELECT (extract(epoch FROM clock_timestamp() - min(recorded_at)) * 1000)::bigint FROM pending),
       (SELECT count(*) FROM aside WHERE state = 'parked'),
       (SELECT count(*) FROM aside WHERE state = 'confirmed'),
       (SELECT count(*) FROM aside WHERE state = 'discarded')"
);

/// The counted part of a [`Status`]; the rest of it is empty.
async fn figures(
    transaction: &Transaction<'_>,
    pipeline: &str,
    cursor: Option<&CursorRow>,
) -> Result<Status, Error> {
    // Without a cursor nothing is settled: the snapshot that sees nothing.
    let (snapshot, prune_seq, floor_seq) =
        cursor.map_or(("1:1:", 0, 0), |c| (c.snapshot.as_str(), c.prune_seq, c.floor_seq));
    let window = cursor.and_then(|cursor| cursor.window.as_ref());
    let window_snapshot = window.map(|window| window.snapshot.as_str());
    let window_seq = window.map(|window| window.seq);
    let row = transaction
        .query_one(FIGURES, &[&snapshot, &prune_seq, &floor_seq, &window_snapshot, &window_seq, &pipeline])
        .await?;
    // Final rows are there only until the cursor passes them, and are in its own numbers from then on.
    let (confirmed, discarded): (i64, i64) = (row.try_get(4)?, row.try_get(5)?);
    Ok(Status {
        cursor: None,
        leader: None,
        pending: row.try_get(0)?,
        set_aside: row.try_get(1)?,
        oldest_pending_ms: row.try_get(2)?,
        parked: row.try_get(3)?,
        confirmed: confirmed + cursor.map_or(0, |cursor| cursor.confirmed),
        discarded: discarded + cursor.map_or(0, |cursor| cursor.discarded),
        same_server: true,
        verification: None,
    })
}
