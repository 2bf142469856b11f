//! What the keeper tells the relay unasked: what people ask for (rows whose `request` is set), and what waits for them.

use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Error, Statement};

use crate::contract::{Act, Asked, FromKeeper, ParkedRows};

/// Requests told at once, at most; the others when these are answered.
pub const ASKED_MAX: i64 = 1_000;

/// `$1` pipeline, `$2` rows at most. The index holds open requests only.
const ASKED: &str = "
SELECT seq, key_hash, request = 'discard'
  FROM statecast.parked
 WHERE pipeline = $1 AND request IS NOT NULL AND state NOT IN ('confirmed', 'discarded')
 ORDER BY seq
 LIMIT $2";

/// Parked rows are counted so far apart.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// Beyond this no more are counted: whoever has so many has no use for the number, and a count from a cold disk must not keep
/// the lease from being renewed.
const COUNT_MAX: i64 = 10_000;

/// `$1` pipeline, `$2` rows at most. The index holds parked rows only, the oldest first: it is all that is read.
const PARKED: &str = "
SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(since)), 0)::float8
  FROM (SELECT since
          FROM statecast.parked
         WHERE pipeline = $1 AND state = 'parked'
         ORDER BY pipeline, since
         LIMIT $2) oldest";

/// The statements, prepared once per session.
#[derive(Debug, Clone)]
pub struct Asking {
    asked: Statement,
    parked: Statement,
    counted_at: Option<Instant>,
}

impl Asking {
    /// Prepares the statements.
    ///
    /// # Errors
    /// SQL.
    pub async fn prepare(client: &Client) -> Result<Self, Error> {
        let (asked, parked) = (client.prepare(ASKED).await?, client.prepare(PARKED).await?);
        Ok(Asking { asked, parked, counted_at: None })
    }

    /// What there is to tell now.
    ///
    /// # Errors
    /// SQL.
    pub async fn tell(&mut self, client: &Client, pipeline: &str) -> Result<Vec<FromKeeper>, Error> {
        let mut told = Vec::new();
        if self.counted_at.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            self.counted_at = Some(Instant::now());
            told.push(FromKeeper::Parked(self.parked(client, pipeline).await?));
        }
        let asked = self.asked(client, pipeline).await?;
        if !asked.is_empty() {
            told.push(FromKeeper::Asked(asked));
        }
        Ok(told)
    }

    async fn parked(&self, client: &Client, pipeline: &str) -> Result<ParkedRows, Error> {
        let row = client.query_one(&self.parked, &[&pipeline, &COUNT_MAX]).await?;
        // A clock that was set back gives a negative age.
        let oldest_s: f64 = row.try_get(1)?;
        let oldest = Duration::try_from_secs_f64(oldest_s.clamp(0.0, 1e12)).unwrap_or_default();
        Ok(ParkedRows { rows: row.try_get(0)?, oldest })
    }

    /// What is asked for and not answered.
    async fn asked(&self, client: &Client, pipeline: &str) -> Result<Vec<Asked>, Error> {
        let rows = client.query(&self.asked, &[&pipeline, &ASKED_MAX]).await?;
        rows.iter()
            .map(|row| {
                let act = if row.try_get(2)? { Act::Discard } else { Act::Retry };
                let key: i64 = row.try_get(1)?;
                Ok(Asked { seq: row.try_get(0)?, key: key.cast_unsigned(), act })
            })
            .collect()
    }
}
