//! What a leader finds set aside when its session starts.

use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use super::super::cursor::{CursorError, sql};
use super::super::lease;
use super::reason_of;
use crate::contract::{AsideState, Head, HeadState, KEYS_MAX, UNPASSED_MAX};
use crate::event::Seq;

/// Keys, or rows, of a page: far from the lease's length, also from a cold disk.
const PAGE_ROWS: i64 = 4_000;

/// Every step takes the next key from its index, however stale the statistics are and however long the keys' queues: a leader
/// that cannot start for a bad plan is a relay that stands still.
pub const SETTINGS: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;
     SET LOCAL jit = off; SET LOCAL statement_timeout = '60s'";

/// The first open row of each key: one probe of the index on (pipeline, key_hash, seq) each, not a look at all rows.
/// `$1` pipeline, `$2` keys at most, `$3` the first key that may be the next.
pub const HEADS: &str = "
WITH RECURSIVE head AS (
    (SELECT p.key_hash, p.seq, p.state, p.reason, p.routing_key, p.since
       FROM statecast.parked p
      WHERE p.pipeline = $1 AND p.key_hash >= $3
        AND p.state IN ('waiting', 'parked', 'queued', 'retry')
      ORDER BY p.key_hash, p.seq
      LIMIT 1)
    UNION ALL
    SELECT following.*
      FROM head
     CROSS JOIN LATERAL (
            SELECT p.key_hash, p.seq, p.state, p.reason, p.routing_key, p.since
              FROM statecast.parked p
             WHERE p.pipeline = $1 AND p.key_hash > head.key_hash
               AND p.state IN ('waiting', 'parked', 'queued', 'retry')
             ORDER BY p.key_hash, p.seq
             LIMIT 1) following
)
SELECT key_hash, seq, state, reason, routing_key,
       extract(epoch FROM clock_timestamp() - since)::float8
  FROM head
 LIMIT $2";

/// Rows that no cursor write has passed: a few, unless a `cursor rebase` went back a long way. `$1` pipeline, `$2` rows at
/// most, `$3` the first row that may be the next.
const UNPASSED: &str = "
SELECT seq
  FROM statecast.parked
 WHERE pipeline = $1 AND NOT passed AND seq >= $3
 ORDER BY seq
 LIMIT $2";

/// Reads what is set aside, for the leader of `epoch`: nobody else writes it meanwhile. It may be much, so it is read by
/// pages and the lease renewed between them, or a standby would take it over and begin to read in its turn.
///
/// # Errors
/// SQL, or another relay has taken over.
pub async fn aside_state(client: &mut Client, pipeline: &str, epoch: i64) -> Result<AsideState, CursorError> {
    let mut heads = Vec::new();
    let mut from = Some(i64::MIN);
    while let Some(first) = from.filter(|_| heads.len() <= KEYS_MAX) {
        let rows = page(client, pipeline, HEADS, first).await.map_err(sql(pipeline))?;
        from = next(&rows).map_err(sql(pipeline))?;
        heads.extend(rows.iter().map(head).collect::<Result<Vec<_>, _>>().map_err(sql(pipeline))?);
        if from.is_some() {
            lease::renew(client, None, pipeline, epoch).await?;
        }
    }
    // One more than the relay takes, here as below: it must know that there are more.
    heads.truncate(KEYS_MAX + 1);
    let mut unpassed = Vec::new();
    from = Some(i64::MIN);
    while let Some(first) = from.filter(|_| unpassed.len() <= UNPASSED_MAX) {
        let rows = page(client, pipeline, UNPASSED, first).await.map_err(sql(pipeline))?;
        from = next(&rows).map_err(sql(pipeline))?;
        let seqs = rows.iter().map(|row| row.try_get(0));
        unpassed.extend(seqs.collect::<Result<Vec<Seq>, _>>().map_err(sql(pipeline))?);
        if from.is_some() {
            lease::renew(client, None, pipeline, epoch).await?;
        }
    }
    unpassed.truncate(UNPASSED_MAX + 1);
    Ok(AsideState { heads, unpassed })
}

/// Where the page after this one begins, if there may be one. By the first column.
fn next(rows: &[Row]) -> Result<Option<i64>, Error> {
    match rows.last().filter(|_| rows.len() as i64 == PAGE_ROWS) {
        Some(last) => Ok(last.try_get::<_, i64>(0)?.checked_add(1)),
        None => Ok(None),
    }
}

async fn page(client: &mut Client, pipeline: &str, query: &str, after: i64) -> Result<Vec<Row>, Error> {
    let transaction = client.build_transaction().read_only(true).start().await?;
    transaction.batch_execute(SETTINGS).await?;
    let rows = transaction.query(query, &[&pipeline, &PAGE_ROWS, &after]).await?;
    transaction.commit().await?;
    Ok(rows)
}

fn head(row: &Row) -> Result<Head, Error> {
    let state = match row.try_get(2)? {
        "waiting" => HeadState::Waiting,
        "parked" => HeadState::Parked,
        "queued" => HeadState::Queued,
        _ => HeadState::Retry,
    };
    let reason: Option<&str> = row.try_get(3)?;
    // A clock that was set back gives a negative wait.
    let waited_s: f64 = row.try_get(5)?;
    Ok(Head {
        key: row.try_get::<_, i64>(0)?.cast_unsigned(),
        seq: row.try_get(1)?,
        state,
        reason: reason.and_then(reason_of),
        routing_key: row.try_get(4)?,
        waited: Duration::try_from_secs_f64(waited_s.clamp(0.0, 1e12)).unwrap_or_default(),
    })
}
