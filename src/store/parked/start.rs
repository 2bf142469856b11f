//! What a leader finds set aside when its session starts.

use std::time::Duration;

use tokio_postgres::{Client, Error, Row};

use super::reason_of;
use crate::contract::{AsideState, Head, HeadState, KEYS_MAX};

/// Every step takes the next key from its index, however stale the statistics are and however long the keys' queues: a leader
/// that cannot start for a bad plan is a relay that stands still.
pub const SETTINGS: &str =
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off;
     SET LOCAL jit = off; SET LOCAL statement_timeout = '60s'";

/// The first open row of each key: one probe of the index on (pipeline, key_hash, seq) each, not a look at all rows.
/// `$1` pipeline, `$2` keys at most.
pub const HEADS: &str = "
WITH RECURSIVE head AS (
    (SELECT p.key_hash, p.seq, p.state, p.reason, p.routing_key, p.since
       FROM statecast.parked p
      WHERE p.pipeline = $1 AND p.state IN ('waiting', 'parked', 'queued', 'retry')
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

/// `$1` pipeline.
const UNPASSED: &str = "SELECT seq FROM statecast.parked WHERE pipeline = $1 AND NOT passed ORDER BY seq";

/// Reads what is set aside. Nobody else may lead meanwhile.
///
/// # Errors
/// SQL.
pub async fn aside_state(client: &mut Client, pipeline: &str) -> Result<AsideState, Error> {
    let transaction = client.build_transaction().read_only(true).start().await?;
    transaction.batch_execute(SETTINGS).await?;
    // One more than the relay takes: it must know that there are more.
    let keys = KEYS_MAX as i64 + 1;
    let heads = transaction.query(HEADS, &[&pipeline, &keys]).await?;
    let unpassed = transaction.query(UNPASSED, &[&pipeline]).await?;
    transaction.commit().await?;
    Ok(AsideState {
        heads: heads.iter().map(head).collect::<Result<_, _>>()?,
        unpassed: unpassed.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?,
    })
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
