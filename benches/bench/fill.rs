//! Events, written by the server itself: as fast as it goes, committed before anything is measured.

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::servers::{Database, connect, unique};

/// Rows of one transaction.
const TRANSACTION_ROWS: u64 = 50_000;
/// Of prepared transactions: enough of them to be committed one after another.
const PREPARED_ROWS: u64 = 5_000;
/// Of a load: what an application with batches does.
const LOAD_ROWS: u64 = 500;
/// What a payload needs besides its padding.
const FRAME_BYTES: usize = r#"{"n":,"pad":""}"#.len() + 7;

/// What events to write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Events {
    pub(crate) count: u64,
    /// Of a payload, about.
    pub(crate) bytes: usize,
    /// Distinct keys, in turns.
    pub(crate) keys: u64,
}

impl Events {
    /// One statement that writes rows number `from + 1` to `to`. The padding differs from row to row, so that
    /// PostgreSQL cannot compress it to nothing: hexadecimal digests.
    fn insert(&self, from: u64, to: u64) -> String {
        let padding = self.bytes.saturating_sub(FRAME_BYTES);
        let digests = padding.div_ceil(32).max(1);
        format!(
            "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', 'k' || (i % {keys}), 'changed',
                    ('{{\"n\":' || i || ',\"pad\":\"' || left(p.pad, {padding}) || '\"}}')::json
             FROM generate_series({first}, {to}) AS i,
                  LATERAL (SELECT string_agg(md5((i * {digests} + d)::text), '') AS pad
                           FROM generate_series(1, {digests}) AS d) AS p",
            keys = self.keys.max(1),
            first = from + 1,
        )
    }

    /// Commits them.
    pub(crate) async fn write(&self, client: &Client) -> Result<()> {
        for (from, to) in slices(self.count, TRANSACTION_ROWS) {
            client.batch_execute(&self.insert(from, to)).await.context("write events")?;
        }
        Ok(())
    }
}

/// How events come in while something else runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Written before, in prepared transactions, and committed one right after another: the writing costs nobody
    /// anything.
    Burst,
    /// Written meanwhile, in small transactions without a pause: the writing takes its share of the machine.
    Load,
}

/// Events that have still to be committed.
pub(crate) struct Arriving {
    client: Client,
    statements: Vec<String>,
}

impl Arrival {
    pub(crate) async fn prepare(self, database: &Database, events: Events) -> Result<Arriving> {
        let client = connect(&database.url).await?;
        let rows = if self == Arrival::Burst { PREPARED_ROWS } else { LOAD_ROWS };
        let mut statements = Vec::new();
        for (from, to) in slices(events.count, rows) {
            let insert = events.insert(from, to);
            if self == Arrival::Load {
                statements.push(insert);
                continue;
            }
            let name = unique("burst");
            let sql = format!("BEGIN; {insert}; PREPARE TRANSACTION '{name}'");
            client.batch_execute(&sql).await.context("prepare events")?;
            statements.push(format!("COMMIT PREPARED '{name}'"));
        }
        Ok(Arriving { client, statements })
    }
}

impl Arriving {
    /// Commits all of them.
    pub(crate) async fn arrive(self) -> Result<()> {
        for statement in self.statements {
            self.client.batch_execute(&statement).await.context("commit events")?;
        }
        Ok(())
    }
}

fn slices(count: u64, size: u64) -> impl Iterator<Item = (u64, u64)> {
    let starts = (0..count).step_by(usize::try_from(size.max(1)).unwrap_or(usize::MAX));
    starts.map(move |from| (from, (from + size).min(count)))
}
