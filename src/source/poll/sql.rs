//! The statements of reading, each one MVCC snapshot.

/// What both ways of reading a window share: its head, and the rows of a page with all their columns.
///
/// `$1` pipeline, `$2` P, `$3` the stored upper snapshot (NULL on the first page of a window), `$4` xmax(P),
/// `$5` seq: rows above it, `$6` prune_seq, `$7` floor_seq, `$8` ceil (NULL on the first page), `$9` rows.
///
/// The first row is the head; rows with a seq follow. Why it reads as it does:
/// - The sub-selects on `head` are evaluated once, after the snapshot was taken: so `last_seq` bounds every row that the
///   snapshot can see, and the cursor row's `max_seq` is that of a write which committed before the snapshot. So is
///   `insert_lsn` behind the commit of every row of the page.
/// - `late`: `xid >= id AND xid <= id` keeps `xid` a sort key, so that each chunk's `(xid, seq)` index is read in order from
///   where the last page ended, instead of sorting all rows of a large transaction for each page.
/// - `seq >= x + 1`, not `seq > x`: a chunk that ends at x is pruned only so; to the planner a number could lie between.
/// - `new`: walks `(seq)` above `prune_seq`. Only there is it certain that nothing unread lies below.
macro_rules! window_sql {
    ($rest:literal) => {
        concat!(
            "
WITH head AS MATERIALIZED (
    SELECT coalesce($3::text::pg_snapshot, pg_current_snapshot()) AS upper,
           $2::text::pg_snapshot AS p,
           $4::text::xid8 AS p_xmax,
           c.max_seq, c.floor_seq,
           (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END
              FROM statecast.outbox_seq_seq) AS last_seq
      FROM statecast.cursor c
     WHERE c.pipeline = $1
), late AS (
    SELECT o.*
      FROM pg_snapshot_xip((SELECT p FROM head)) AS x(id)
     CROSS JOIN LATERAL (
            SELECT o.*
              FROM statecast.outbox o
             WHERE o.xid >= x.id AND o.xid <= x.id
               AND (o.xid, o.seq) > (x.id, $5::bigint)
               AND o.seq >= $7::bigint + 1
               AND o.seq <= coalesce($8::bigint, (SELECT last_seq FROM head))
               AND pg_visible_in_snapshot(o.xid, (SELECT upper FROM head))
             ORDER BY o.xid, o.seq
             LIMIT $9::bigint) o
), new AS (
    SELECT o.*
      FROM statecast.outbox o
     WHERE o.seq >= greatest($6::bigint, $5::bigint) + 1
       AND o.seq <= coalesce($8::bigint, (SELECT last_seq FROM head))
       AND o.xid >= (SELECT p_xmax FROM head)
       AND pg_visible_in_snapshot(o.xid, (SELECT upper FROM head))
     ORDER BY o.seq
     LIMIT $9::bigint
), page AS (
    SELECT * FROM late UNION ALL SELECT * FROM new ORDER BY seq LIMIT $9::bigint",
            $rest
        )
    };
}

/// Reads a page of events.
///
/// `$10` bytes: `octet_length` of a text needs no detoasting, so a page is cut by its real bytes before a payload is
/// fetched; the first row always passes.
pub const PAGE: &str = window_sql!(
    "
), cut AS (
    SELECT p.*,
           sum(coalesce(octet_length(p.payload::text), 0) + coalesce(octet_length(p.headers::text), 0) + 400)
               OVER (ORDER BY p.seq ROWS UNBOUNDED PRECEDING)
             - coalesce(octet_length(p.payload::text), 0) - coalesce(octet_length(p.headers::text), 0) - 400
               AS bytes_before,
           count(*) OVER () AS found
      FROM page p
)
SELECT NULL::bigint AS seq, NULL::xid8 AS xid, NULL::uuid AS event_id, NULL::text AS aggregate_type,
       NULL::text AS aggregate_id, NULL::text AS event_type, NULL::text AS schema_version,
       NULL::bigint AS entity_version, NULL::json AS payload, NULL::json AS headers,
       NULL::text AS correlation_id, NULL::text AS causation_id, NULL::text AS traceparent,
       NULL::text AS tracestate, NULL::timestamptz AS recorded_at, 0::bigint AS found,
       upper::text AS upper, max_seq, floor_seq, last_seq,
       pg_current_wal_insert_lsn() AS insert_lsn, pg_current_wal_flush_lsn() AS flush_lsn
  FROM head
UNION ALL
SELECT seq, xid, event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
       payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at, found,
       NULL, NULL, NULL, NULL, NULL, NULL
  FROM cut
 WHERE bytes_before < $10::bigint"
);

/// Lists the rows of a page without their events: what a stream should have brought.
pub const LIST: &str = window_sql!(
    "
)
SELECT NULL::bigint AS seq, upper::text AS upper, max_seq, floor_seq, last_seq,
       pg_current_wal_insert_lsn() AS insert_lsn, pg_current_wal_flush_lsn() AS flush_lsn
  FROM head
UNION ALL
SELECT seq, NULL, NULL, NULL, NULL, NULL, NULL
  FROM page"
);

/// Unsettled rows by their seq, for bodies that the relay let go.
pub const FETCH: &str = "
SELECT seq, xid, event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
       payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at
  FROM statecast.outbox
 WHERE seq = ANY ($1::bigint[]) AND seq >= $2::bigint AND seq <= $3::bigint
 ORDER BY seq";
