//! Reads the outbox for people, without a cursor row: the last rows, then what commits.
//!
//! Which rows are new is decided as in polling: they are visible now and were not in the snapshot before. There is no
//! cursor row to take a prune bound from; the index on (xid, seq) finds both branches.

use futures_util::{Stream, StreamExt as _};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, IsolationLevel, Row};

/// One row, as much of it as a line needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TailRow {
    /// Place in write order.
    pub seq: i64,
    /// Kind of the entity.
    pub aggregate_type: String,
    /// Its id.
    pub aggregate_id: String,
    /// What happened.
    pub event_type: String,
    /// Microseconds since 1970-01-01 UTC.
    pub recorded_at_us: i64,
    /// Size of the payload; `None` = deleted.
    pub payload_bytes: Option<i32>,
    /// The payload, where it was asked for.
    pub payload: Option<String>,
}

/// A reader of the outbox.
#[derive(Clone, Debug)]
pub struct Tail {
    /// All that is visible in it has been read, as `pg_snapshot` text.
    seen: String,
    payload: bool,
}

/// The columns of a [`TailRow`]; `$1` says whether the payload is wanted.
const COLUMNS: &str = "o.seq, o.aggregate_type, o.aggregate_id, o.event_type,
    (extract(epoch FROM o.recorded_at) * 1000000)::bigint, octet_length(o.payload::text),
    CASE WHEN $1::boolean THEN o.payload::text END";

impl Tail {
    /// The last `last` rows, oldest first, and a reader for what follows them.
    ///
    /// # Errors
    /// SQL.
    pub async fn start(client: &mut Client, last: u32, payload: bool) -> Result<(Tail, Vec<TailRow>), Error> {
        // One snapshot for both questions.
        let transaction = client
            .build_transaction()
            .isolation_level(IsolationLevel::RepeatableRead)
            .read_only(true)
            .start()
            .await?;
        let seen = transaction.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
        let sql = format!("SELECT {COLUMNS} FROM statecast.outbox o ORDER BY o.seq DESC LIMIT $2");
        let rows = transaction.query(&sql, &[&payload, &i64::from(last)]).await?;
        transaction.commit().await?;
        let rows: Result<Vec<TailRow>, Error> = rows.iter().rev().map(decode).collect();
        Ok((Tail { seen, payload }, rows?))
    }

    /// What has committed since the last call. The stream must be read to its end.
    ///
    /// # Errors
    /// SQL.
    pub async fn more(
        &mut self,
        client: &Client,
    ) -> Result<impl Stream<Item = Result<TailRow, Error>> + use<>, Error> {
        let now: String = client.query_one("SELECT pg_current_snapshot()::text", &[]).await?.try_get(0)?;
        let sql = format!(
            "SELECT {COLUMNS}
               FROM (SELECT late.* FROM pg_snapshot_xip($2::text::pg_snapshot) x(id)
                       JOIN statecast.outbox late ON late.xid = x.id
                     UNION ALL
                     SELECT new.* FROM statecast.outbox new
                      WHERE new.xid >= pg_snapshot_xmax($2::text::pg_snapshot)) o
              WHERE pg_visible_in_snapshot(o.xid, $3::text::pg_snapshot)
              ORDER BY o.seq"
        );
        let parameters: [&(dyn ToSql + Sync); 3] = [&self.payload, &self.seen, &now];
        let rows = client.query_raw(&sql, parameters).await?;
        self.seen = now;
        Ok(rows.map(|row| decode(&row?)))
    }
}

fn decode(row: &Row) -> Result<TailRow, Error> {
    Ok(TailRow {
        seq: row.try_get(0)?,
        aggregate_type: row.try_get(1)?,
        aggregate_id: row.try_get(2)?,
        event_type: row.try_get(3)?,
        recorded_at_us: row.try_get(4)?,
        payload_bytes: row.try_get(5)?,
        payload: row.try_get(6)?,
    })
}
