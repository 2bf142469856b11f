//! Reading rows that are set aside, to publish them.

use tokio_postgres::{Client, Error, Statement};

use super::key_column;
use crate::contract::{RECALL_KEYS_MAX, Recall, Recalled, RecalledKey, Then};
use crate::event::{Event, Seq};
use crate::event_row;

/// The first rows of some keys, and a line per key that says what there is.
///
/// `$1` pipeline, `$2` keys, `$3` rows per key, `$4` bytes.
///
/// - Each key is read in order of its index from its first row, one row further than asked for, which shows what follows.
///   Nothing depends on how many rows a key has.
/// - `stopped`: the row is parked, or a person has given it up, or it is behind such a row. Requests reach the relay some at a
///   time: without this a row could go that was given up long ago, or one behind it before that is written.
/// - All rows given up that are seen on the way are named.
/// - The bytes are counted across the keys, first rows first, so that no key waits for another's queue; by `octet_length`,
///   which needs no detoasting, so that no payload is fetched for nothing. The very first row always passes.
pub const RECALL: &str = "
WITH asked AS MATERIALIZED (
    SELECT key, ord
      FROM unnest($2::bigint[]) WITH ORDINALITY AS k (key, ord)
), found AS MATERIALIZED (
    SELECT a.ord, p.*,
           row_number() OVER of_key AS nth,
           bool_or(p.given_up OR p.state = 'parked') OVER of_key AS stopped,
           coalesce(octet_length(p.payload::text), 0) + coalesce(octet_length(p.headers::text), 0) + 400 AS bytes
      FROM asked a
     CROSS JOIN LATERAL (
            SELECT *, coalesce(p.request = 'discard', false) AS given_up
              FROM statecast.parked p
             WHERE p.pipeline = $1 AND p.key_hash = a.key
               AND p.state IN ('waiting', 'parked', 'queued', 'retry')
             ORDER BY p.key_hash, p.seq
             LIMIT $3::bigint + 1) p
    WINDOW of_key AS (PARTITION BY a.ord ORDER BY p.seq)
), cut AS (
    SELECT f.*, sum(f.bytes) OVER (ORDER BY f.nth, f.ord ROWS UNBOUNDED PRECEDING) - f.bytes AS bytes_before
      FROM found f
     WHERE NOT f.stopped AND f.nth <= $3::bigint
)
SELECT NULL::bigint AS seq, NULL::xid8 AS xid, NULL::uuid AS event_id, NULL::text AS aggregate_type,
       NULL::text AS aggregate_id, NULL::text AS event_type, NULL::text AS schema_version,
       NULL::bigint AS entity_version, NULL::json AS payload, NULL::json AS headers,
       NULL::text AS correlation_id, NULL::text AS causation_id, NULL::text AS traceparent,
       NULL::text AS tracestate, NULL::timestamptz AS recorded_at,
       ord, count(*) AS rows, min(nth) FILTER (WHERE state = 'parked' AND NOT given_up) AS parked_at,
       array_agg(seq ORDER BY nth) FILTER (WHERE given_up) AS given_up
  FROM found
 GROUP BY ord
UNION ALL
SELECT seq, xid, event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
       payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at,
       ord, NULL, NULL, NULL
  FROM cut
 WHERE bytes_before < $4::bigint";

/// The statement, prepared once per session.
#[derive(Debug, Clone)]
pub struct Reading(Statement);

/// What the statement says about one key.
#[derive(Debug, Default)]
struct Found {
    events: Vec<Event>,
    rows: i64,
    parked_at: Option<i64>,
    given_up: Vec<Seq>,
}

impl Found {
    fn then(&self) -> Then {
        let next = self.events.len() as i64 + 1;
        if self.parked_at == Some(next) {
            Then::Parked
        } else if self.rows >= next {
            Then::More
        } else {
            Then::Empty
        }
    }
}

impl Reading {
    /// Prepares the statement.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        client.prepare(RECALL).await.map(Reading)
    }

    /// Answers a [`Recall`]. Rows are dealt out evenly, at least one a key.
    ///
    /// # Errors
    /// SQL.
    pub async fn recall(&self, client: &Client, pipeline: &str, recall: &Recall) -> Result<Recalled, Error> {
        // More keys than allowed are answered unread.
        let read = &recall.keys[..recall.keys.len().min(RECALL_KEYS_MAX)];
        let keys: Vec<i64> = read.iter().map(|key| key_column(*key)).collect();
        let rows_per_key = share(recall.rows_max, keys.len());
        let bytes_max = i64::try_from(recall.bytes_max.max(1)).unwrap_or(i64::MAX);
        let rows = client.query(&self.0, &[&pipeline, &keys, &rows_per_key, &bytes_max]).await?;
        let mut found: Vec<Found> = keys.iter().map(|_| Found::default()).collect();
        for row in rows {
            let ord: i64 = row.try_get(15)?;
            let Some(found) = usize::try_from(ord - 1).ok().and_then(|at| found.get_mut(at)) else {
                continue;
            };
            match row.try_get(16)? {
                Some(rows) => {
                    (found.rows, found.parked_at) = (rows, row.try_get(17)?);
                    found.given_up = row.try_get::<_, Option<Vec<Seq>>>(18)?.unwrap_or_default();
                }
                None => found.events.push(event_row::event(row)?),
            }
        }
        let mut keys: Vec<RecalledKey> = Vec::with_capacity(recall.keys.len());
        for (key, mut found) in read.iter().zip(found) {
            // Nothing but convention keeps the order of the statement's parts.
            found.events.sort_unstable_by_key(|event| event.seq);
            let then = found.then();
            keys.push(RecalledKey { key: *key, events: found.events, given_up: found.given_up, then });
        }
        let unread = recall.keys.iter().skip(read.len());
        keys.extend(unread.map(|key| RecalledKey {
            key: *key,
            events: Vec::new(),
            given_up: Vec::new(),
            then: Then::More,
        }));
        Ok(Recalled { id: recall.id, keys })
    }
}

/// Rows for each of `keys` out of `rows_max`.
fn share(rows_max: usize, keys: usize) -> i64 {
    i64::try_from((rows_max / keys.max(1)).max(1)).unwrap_or(i64::MAX - 1).min(i64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_shared_and_each_key_gets_one() {
        assert_eq!((share(256, 64), share(256, 1), share(10, 3)), (4, 256, 3));
        assert_eq!((share(3, 10), share(0, 1), share(5, 0)), (1, 1, 5));
        assert_eq!(share(usize::MAX, 1), i64::MAX - 1, "one more is still a number");
    }

    #[test]
    fn what_follows_is_told() {
        let found = |rows, parked_at| Found { rows, parked_at, ..Found::default() }.then();
        assert_eq!(found(0, None), Then::Empty);
        assert_eq!(found(1, None), Then::More, "cut before its first row");
        assert_eq!(found(3, Some(1)), Then::Parked);
        assert_eq!(found(3, Some(2)), Then::More);
    }
}
