//! Which types of events the outbox has lately seen: what the broker must have a binding for.

use tokio_postgres::{Client, Error};

/// Types, at most; the commonest first.
const TYPES_MAX: i64 = 500;

/// A type of event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenType {
    /// `aggregate_type`.
    pub aggregate_type: String,
    /// `event_type`.
    pub event_type: String,
    /// One of its entities, for a routing key that holds the id.
    pub aggregate_id: String,
}

/// The newest rows by the primary key, however large the outbox is.
const TYPES: &str = "
SELECT aggregate_type, event_type, max(aggregate_id)
  FROM (SELECT o.aggregate_type, o.event_type, o.aggregate_id
          FROM statecast.outbox o
         ORDER BY o.seq DESC
         LIMIT $1) latest
 GROUP BY aggregate_type, event_type
 ORDER BY count(*) DESC, aggregate_type, event_type
 LIMIT $2";

/// Types of the newest `rows` events.
///
/// # Errors
/// SQL.
pub async fn seen(client: &Client, rows: i64) -> Result<Vec<SeenType>, Error> {
    let rows = client.query(TYPES, &[&rows, &TYPES_MAX]).await?;
    let decode = |row: &tokio_postgres::Row| {
        Ok(SeenType {
            aggregate_type: row.try_get(0)?,
            event_type: row.try_get(1)?,
            aggregate_id: row.try_get(2)?,
        })
    };
    rows.iter().map(decode).collect()
}
