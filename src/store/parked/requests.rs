//! What people ask for, as the keeper tells the relay: rows whose `request` is set.

use tokio_postgres::{Client, Error, Statement};

use crate::contract::{Act, Asked};

/// Requests told at once, at most; the others when these are answered.
pub const ASKED_MAX: i64 = 1_000;

/// `$1` pipeline, `$2` rows at most. The index holds open requests only.
const ASKED: &str = "
SELECT seq, key_hash, request = 'discard'
  FROM statecast.parked
 WHERE pipeline = $1 AND request IS NOT NULL AND state NOT IN ('confirmed', 'discarded')
 ORDER BY seq
 LIMIT $2";

/// The statement, prepared once per session.
#[derive(Debug, Clone)]
pub struct Asking(Statement);

impl Asking {
    /// Prepares the statement.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        client.prepare(ASKED).await.map(Asking)
    }

    /// What is asked for and not answered.
    ///
    /// # Errors
    /// SQL.
    pub async fn asked(&self, client: &Client, pipeline: &str) -> Result<Vec<Asked>, Error> {
        let rows = client.query(&self.0, &[&pipeline, &ASKED_MAX]).await?;
        rows.iter()
            .map(|row| {
                let act = if row.try_get(2)? { Act::Discard } else { Act::Retry };
                let key: i64 = row.try_get(1)?;
                Ok(Asked { seq: row.try_get(0)?, key: key.cast_unsigned(), act })
            })
            .collect()
    }
}
