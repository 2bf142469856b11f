//! How many events are set aside, by state and reason, and for how many people wait.

use tokio_postgres::{Client, Error};

use crate::contract::Act;

/// Rows counted, at most: whoever has more has no use for the exact number.
pub const COUNT_MAX: i64 = 100_000;

/// Events in one state for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// `waiting`, `queued`, `retry` or `parked`.
    pub state: String,
    /// `None`: queued behind another event.
    pub reason: Option<String>,
    /// Rows, [`COUNT_MAX`] at most.
    pub events: i64,
}

/// `$1` pipeline, `$2` rows at most. Rows in a final state stay only until the cursor has passed them.
const COUNTS: &str = "
SELECT state, reason, count(*)
  FROM (SELECT state, reason
          FROM statecast.parked
         WHERE pipeline = $1 AND state NOT IN ('confirmed', 'discarded')
         LIMIT $2) open
 GROUP BY state, reason
 ORDER BY state, reason NULLS LAST";

/// Counts the events of `pipeline` that are set aside.
///
/// # Errors
/// SQL.
pub async fn counts(client: &Client, pipeline: &str) -> Result<Vec<Count>, Error> {
    let rows = client.query(COUNTS, &[&pipeline, &COUNT_MAX]).await?;
    rows.iter()
        .map(|row| Ok(Count { state: row.try_get(0)?, reason: row.try_get(1)?, events: row.try_get(2)? }))
        .collect()
}

/// `$1` pipeline, `$2` what was asked for. A retry is over when it is no longer on its way.
const OPEN: &str = "
SELECT count(*)
  FROM statecast.parked
 WHERE pipeline = $1
   AND (request = $2 AND state NOT IN ('confirmed', 'discarded') OR $2 = 'retry' AND state = 'retry')";

/// Events for which `act` was asked and which the leader has not done with.
///
/// # Errors
/// SQL.
pub async fn open(client: &Client, pipeline: &str, act: Act) -> Result<i64, Error> {
    let act = match act {
        Act::Retry => "retry",
        Act::Discard => "discard",
    };
    client.query_one(OPEN, &[&pipeline, &act]).await?.try_get(0)
}
