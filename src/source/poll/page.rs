//! One page of a window, read in one statement: hence one MVCC snapshot.

use std::time::Duration;

use tokio::time::timeout;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row, Statement};
use uuid::Uuid;

use crate::event::{Event, Seq, Xid};
use crate::snapshot::{BadSnapshot, Snapshot};

/// Reads a page.
///
/// `$1` pipeline, `$2` P, `$3` the stored upper snapshot (NULL on the first page of a window), `$4` xmax(P),
/// `$5` seq: rows above it, `$6` prune_seq, `$7` floor_seq, `$8` ceil (NULL on the first page), `$9` rows, `$10` bytes.
///
/// The first row is the head; rows with a seq follow. Why it reads as it does:
/// - The sub-selects on `head` are evaluated once, after the snapshot was taken: so `last_seq` bounds every row that the
///   snapshot can see, and the cursor row's `max_seq` is that of a write which committed before the snapshot.
/// - `late`: `xid >= id AND xid <= id` keeps `xid` a sort key, so that each chunk's `(xid, seq)` index is read in order from
///   where the last page ended, instead of sorting all rows of a large transaction for each page.
/// - `seq >= x + 1`, not `seq > x`: a chunk that ends at x is pruned only so; to the planner a number could lie between.
/// - `new`: walks `(seq)` above `prune_seq`. Only there is it certain that nothing unread lies below.
/// - `octet_length` of a text needs no detoasting, so a page is cut by its real bytes before a payload is fetched; the
///   first row always passes.
pub const PAGE: &str = "
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
    SELECT * FROM late UNION ALL SELECT * FROM new ORDER BY seq LIMIT $9::bigint
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
 WHERE bytes_before < $10::bigint";

/// Unsettled rows by their seq, for bodies that the relay let go.
const FETCH: &str = "
SELECT seq, xid, event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
       payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at
  FROM statecast.outbox
 WHERE seq = ANY ($1::bigint[]) AND seq >= $2::bigint AND seq <= $3::bigint
 ORDER BY seq";

/// No answer for this long: the connection is taken for dead. More than the session's `statement_timeout`, which a backend
/// that hangs, or a proxy whose server is gone, does not keep.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(75);

/// The statements of a poller, prepared once per session.
#[derive(Debug, Clone)]
pub struct Statements {
    page: Statement,
    fetch: Statement,
}

/// Where a page begins.
#[derive(Debug)]
pub struct Request<'a> {
    /// Pipeline.
    pub pipeline: &'a str,
    /// P.
    pub from: &'a Snapshot,
    /// The window's upper snapshot and ceil, after its first page.
    pub window: Option<(&'a Snapshot, Seq)>,
    /// Rows above this.
    pub after_seq: Seq,
    /// Lower bound of the `new` branch.
    pub prune_seq: Seq,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
    /// Rows, at most.
    pub rows_max: i64,
    /// Bytes, at most; one larger row passes alone.
    pub bytes_max: i64,
}

/// What a page's statement saw besides rows.
#[derive(Debug)]
pub struct Head {
    /// The window's upper snapshot.
    pub upper: Snapshot,
    /// `max_seq` of the cursor row version that the snapshot sees.
    pub max_seq: Seq,
    /// `floor_seq` of the same version.
    pub floor_seq: Seq,
    /// The sequence's last value, read after the snapshot.
    pub last_seq: Seq,
    /// WAL position that covers every row of the page.
    pub insert_lsn: u64,
    /// WAL that is on disk.
    pub flush_lsn: u64,
}

/// A page.
#[derive(Debug)]
pub struct PageRows {
    /// What else the statement saw.
    pub head: Head,
    /// Rows, ascending by seq.
    pub events: Vec<Event>,
    /// More rows may follow in this window.
    pub full: bool,
}

/// A page could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PageError {
    /// SQL.
    #[error("reading the outbox failed")]
    Sql(#[from] tokio_postgres::Error),
    /// The server sent a snapshot that is none.
    #[error(transparent)]
    Snapshot(#[from] BadSnapshot),
    /// The server does not answer.
    #[error("PostgreSQL has not answered a read of the outbox for {ANSWER_TIMEOUT:?}")]
    Silent,
    /// No cursor row.
    #[error("pipeline {0:?} has no row in statecast.cursor: it was dropped while the relay ran")]
    NoCursor(String),
    /// Rows that are not settled are not there any more.
    #[error(
        "{missing} unsettled rows are gone from statecast.outbox (the first is seq {first}): it was truncated or rows were deleted"
    )]
    RowsGone {
        /// How many.
        missing: usize,
        /// The lowest.
        first: Seq,
    },
}

impl Statements {
    /// Prepares the statements.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, PageError> {
        Ok(Statements { page: client.prepare(PAGE).await?, fetch: client.prepare(FETCH).await? })
    }

    /// Reads a page.
    ///
    /// # Errors
    /// SQL, or the cursor row is gone.
    pub async fn page(&self, client: &Client, request: &Request<'_>) -> Result<PageRows, PageError> {
        let (upper, ceil) = match request.window {
            Some((upper, ceil)) => (Some(upper.to_string()), Some(ceil)),
            None => (None, None),
        };
        let (from, p_xmax) = (request.from.to_string(), request.from.xmax.to_string());
        let parameters: [&(dyn ToSql + Sync); 10] = [
            &request.pipeline,
            &from,
            &upper,
            &p_xmax,
            &request.after_seq,
            &request.prune_seq,
            &request.floor_seq,
            &ceil,
            &request.rows_max,
            &request.bytes_max,
        ];
        let rows = answered(client.query(&self.page, &parameters)).await?;
        let mut head = None;
        let mut found = 0;
        let mut events = Vec::with_capacity(rows.len().saturating_sub(1));
        for row in &rows {
            if row.try_get::<_, Option<Seq>>(0)?.is_some() {
                found = row.try_get::<_, i64>(15)?;
                events.push(event(row)?);
            } else {
                head = Some(decode_head(row)?);
            }
        }
        let head = head.ok_or_else(|| PageError::NoCursor(request.pipeline.to_owned()))?;
        // An append of two plans: nothing but convention keeps its order.
        events.sort_unstable_by_key(|e| e.seq);
        let full = found >= request.rows_max || (events.len() as i64) < found;
        Ok(PageRows { head, events, full })
    }

    /// Reads unsettled rows again.
    ///
    /// # Errors
    /// SQL, or rows are gone.
    pub async fn fetch(&self, client: &Client, seqs: &[Seq]) -> Result<Vec<Event>, PageError> {
        let (Some(lo), Some(hi)) = (seqs.iter().min(), seqs.iter().max()) else {
            return Ok(Vec::new());
        };
        let rows = answered(client.query(&self.fetch, &[&seqs, lo, hi])).await?;
        let events = rows.iter().map(event).collect::<Result<Vec<_>, _>>()?;
        if events.len() < seqs.len() {
            let there: std::collections::HashSet<Seq> = events.iter().map(|e| e.seq).collect();
            let first = seqs.iter().copied().filter(|seq| !there.contains(seq)).min().unwrap_or(*lo);
            return Err(PageError::RowsGone { missing: seqs.len() - events.len(), first });
        }
        Ok(events)
    }
}

/// The answer to a query, if there is one in time.
pub(super) async fn answered<T>(
    query: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, PageError> {
    Ok(timeout(ANSWER_TIMEOUT, query).await.map_err(|_| PageError::Silent)??)
}

fn decode_head(row: &Row) -> Result<Head, PageError> {
    let lsn = |column| row.try_get::<_, tokio_postgres::types::PgLsn>(column).map(u64::from);
    Ok(Head {
        upper: row.try_get::<_, &str>(16)?.parse()?,
        max_seq: row.try_get(17)?,
        floor_seq: row.try_get(18)?,
        last_seq: row.try_get(19)?,
        insert_lsn: lsn(20)?,
        flush_lsn: lsn(21)?,
    })
}

fn event(row: &Row) -> Result<Event, tokio_postgres::Error> {
    Ok(Event {
        seq: row.try_get(0)?,
        xid: row.try_get::<_, Xid8>(1)?.0,
        event_id: row.try_get::<_, Uuid>(2)?,
        aggregate_type: row.try_get(3)?,
        aggregate_id: row.try_get(4)?,
        event_type: row.try_get(5)?,
        schema_version: row.try_get(6)?,
        entity_version: row.try_get(7)?,
        payload: row.try_get::<_, Option<JsonText>>(8)?.map(|j| j.0),
        headers: row.try_get::<_, Option<JsonText>>(9)?.map(|j| j.0),
        correlation_id: row.try_get(10)?,
        causation_id: row.try_get(11)?,
        traceparent: row.try_get(12)?,
        tracestate: row.try_get(13)?,
        recorded_at_us: row.try_get::<_, Micros>(14)?.0,
    })
}

type FromSqlError = Box<dyn std::error::Error + Sync + Send>;

/// `xid8`, which the client library does not map.
struct Xid8(Xid);

impl<'a> FromSql<'a> for Xid8 {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        Ok(Xid8(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

/// `json` as the bytes that were committed: its binary form is its text.
struct JsonText(Vec<u8>);

impl<'a> FromSql<'a> for JsonText {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        Ok(JsonText(raw.to_vec()))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

/// `timestamptz` in microseconds since 1970; infinities saturate and are refused when the event is assembled.
struct Micros(i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        const EPOCH_2000_US: i64 = 946_684_800_000_000;
        Ok(Micros(i64::from_be_bytes(raw.try_into()?).saturating_add(EPOCH_2000_US)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}
