//! The load: writers that do to the outbox what real applications do, and worse.
//!
//! Transaction ids are assigned early by writes elsewhere, locks are held while nothing happens, a tenth of the
//! transactions is rolled back, savepoints are released and undone. What is certain: an entity's row is locked by
//! `UPDATE … SET version = version + 1 RETURNING version` when its event is published, and the payload carries that
//! version as `n`. So `n` has no gaps and no repeats among committed events of a key, and is the order to check.

use std::time::Duration;

use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Transaction};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::servers::{connect, unique};

/// Entities whose rows are contended.
pub const KEYS: usize = 20;
const RECONNECT: Duration = Duration::from_millis(50);
/// Tries in a row before a writer gives up on its server: a minute.
const RECONNECTS: usize = 1_200;

/// One of so many events of an entity has another type, and with it another routing key.
const RENAMED_EVERY: i64 = 5;

/// Transactions of a writer that goes on until it is told to stop, at most.
pub const UNTIL_STOPPED: usize = 1_000_000;

/// How much load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Printed by [`Load::run`]; the same seed gives the same choices per writer (not the same interleaving).
    pub seed: u64,
    /// Connections that write.
    pub writers: usize,
    /// Transactions begun by each writer, at most.
    pub transactions: usize,
    /// Longest sleep inside a transaction; several may happen.
    pub pause_max: Duration,
    /// Of 100 transactions that are not rolled back, those that end in two phases.
    pub prepared: u8,
    /// Ends the writers early, between two transactions.
    pub stop: CancellationToken,
}

impl Default for Load {
    fn default() -> Self {
        let seed = std::env::var("STATECAST_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| fastrand::u64(..));
        Load {
            seed,
            writers: 8,
            transactions: 200,
            pause_max: Duration::from_millis(5),
            prepared: 0,
            stop: CancellationToken::new(),
        }
    }
}

/// What the writers know.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Events of transactions whose COMMIT was acknowledged.
    pub acknowledged: Vec<Uuid>,
    /// Events of transactions that were rolled back, wholly or to a savepoint: none of them may ever be published.
    pub undone: Vec<Uuid>,
    /// Transactions whose COMMIT got no answer. The database decides: read it.
    pub in_doubt: usize,
    /// Connections lost.
    pub disconnects: usize,
}

/// Creates the application's tables and entities.
pub async fn prepare(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(&format!(
            "CREATE TABLE shop_order (id text PRIMARY KEY, version bigint NOT NULL DEFAULT 0); \
             CREATE TABLE shop_visit (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz DEFAULT now()); \
             INSERT INTO shop_order (id) SELECT 'k' || to_char(i, 'FM00') FROM generate_series(1, {KEYS}) i;"
        ))
        .await
}

impl Load {
    /// Runs all writers to their end. Lost connections are made again; anything else panics.
    pub async fn run(self, url: &str) -> Written {
        println!("load: seed {} (STATECAST_TEST_SEED)", self.seed);
        let mut writers = JoinSet::new();
        for number in 0..self.writers {
            let rng = Rng::with_seed(self.seed.wrapping_add(number as u64));
            let (load, url) = (self.clone(), url.to_owned());
            writers.spawn(Writer { load, rng, url, written: Written::default(), prepared: None }.run());
        }
        let mut total = Written::default();
        while let Some(written) = writers.join_next().await {
            let written = written.unwrap();
            total.acknowledged.extend(written.acknowledged);
            total.undone.extend(written.undone);
            total.in_doubt += written.in_doubt;
            total.disconnects += written.disconnects;
        }
        total
    }
}

struct Writer {
    load: Load,
    rng: Rng,
    url: String,
    written: Written,
    /// Name and events of a transaction that may stand prepared.
    prepared: Option<(String, Vec<Uuid>)>,
}

impl Writer {
    async fn run(mut self) -> Written {
        let mut client = self.connect().await;
        for _ in 0..self.load.transactions {
            if self.load.stop.is_cancelled() {
                break;
            }
            if let Err(error) = self.transaction(&mut client).await {
                assert!(lost(&error), "a write failed: {error:?}");
                self.written.disconnects += 1;
                client = self.connect().await;
                while self.settle(&client).await.is_err() {
                    tokio::time::sleep(RECONNECT).await;
                    client = self.connect().await;
                }
            }
        }
        self.written
    }

    /// What a lost connection left prepared holds its locks for ever: commits it.
    async fn settle(&mut self, client: &Client) -> Result<(), Error> {
        let Some((name, _)) = &self.prepared else { return Ok(()) };
        match client.batch_execute(&format!("COMMIT PREPARED '{name}'")).await {
            Ok(()) => self.written.acknowledged.extend(self.prepared.take().unwrap().1),
            // Never prepared, or settled already: the answer was lost.
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                self.prepared = None;
                self.written.in_doubt += 1;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn connect(&self) -> Client {
        let mut last = None;
        for _ in 0..RECONNECTS {
            match connect(&self.url).await {
                Ok(client) => return client,
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(RECONNECT).await;
        }
        panic!("the database did not come back: {last:?}");
    }

    async fn transaction(&mut self, client: &mut Client) -> Result<(), Error> {
        let mut transaction = client.transaction().await?;
        if self.rng.u8(..100) < 80 {
            transaction.batch_execute("INSERT INTO shop_visit DEFAULT VALUES").await?;
            self.pause().await;
        }
        // In one order, so that writers wait for each other and never deadlock.
        let wanted = self.rng.usize(1..=3);
        let mut keys = self.rng.choose_multiple(1..=KEYS, wanted);
        keys.sort_unstable();
        let mut events = Vec::new();
        for key in keys {
            let key = self::key(key);
            match self.rng.u8(..10) {
                0 => {
                    let savepoint = transaction.savepoint("undone").await?;
                    let event = publish(&savepoint, &key).await?;
                    self.written.undone.push(event);
                    savepoint.rollback().await?;
                }
                1 | 2 => {
                    let savepoint = transaction.savepoint("kept").await?;
                    events.push(publish(&savepoint, &key).await?);
                    self.pause().await;
                    savepoint.commit().await?;
                }
                _ => events.push(publish(&transaction, &key).await?),
            }
            self.pause().await;
        }
        if self.rng.u8(..100) < 10 {
            self.written.undone.extend(events);
            return transaction.rollback().await;
        }
        if self.load.prepared > 0 && self.rng.u8(..100) < self.load.prepared {
            return self.two_phases(transaction, events).await;
        }
        match transaction.commit().await {
            Ok(()) => self.written.acknowledged.extend(events),
            Err(error) => {
                self.written.in_doubt += 1;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Prepares the transaction, and some time later commits it or rolls it back.
    async fn two_phases(&mut self, transaction: Transaction<'_>, events: Vec<Uuid>) -> Result<(), Error> {
        let name = unique("load");
        self.prepared = Some((name.clone(), events));
        transaction.batch_execute(&format!("PREPARE TRANSACTION '{name}'")).await?;
        self.pause().await;
        let keep = self.rng.u8(..100) < 70;
        let end = if keep { "COMMIT" } else { "ROLLBACK" };
        transaction.batch_execute(&format!("{end} PREPARED '{name}'")).await?;
        let (_, events) = self.prepared.take().unwrap();
        if keep { &mut self.written.acknowledged } else { &mut self.written.undone }.extend(events);
        // Nothing is open any more: the server only warns.
        transaction.commit().await
    }

    async fn pause(&mut self) {
        if self.rng.bool() {
            let limit = self.load.pause_max.as_micros().max(1);
            let pause = self.rng.u64(..u64::try_from(limit).unwrap());
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
    }
}

/// The entity of a number from 1 to [`KEYS`].
pub fn key(number: usize) -> String {
    format!("k{number:02}")
}

/// Changes an entity under its row lock and says so.
pub async fn publish(transaction: &Transaction<'_>, key: &str) -> Result<Uuid, Error> {
    publish_padded(transaction, key, "").await
}

/// The same with as much in the payload besides.
pub async fn publish_padded(transaction: &Transaction<'_>, key: &str, padding: &str) -> Result<Uuid, Error> {
    let update = "UPDATE shop_order SET version = version + 1 WHERE id = $1 RETURNING version";
    let n: i64 = transaction.query_one(update, &[&key]).await?.get(0);
    let mut payload = serde_json::json!({ "key": key, "n": n });
    if !padding.is_empty() {
        payload["padding"] = padding.into();
    }
    let payload = payload.to_string();
    let insert = "SELECT statecast.publish('order', $1, $2, $3::text::json)";
    let event_type = if n % RENAMED_EVERY == 0 { "renamed" } else { "changed" };
    Ok(transaction.query_one(insert, &[&key, &event_type, &payload]).await?.get(0))
}

/// The server went away, as opposed to: it refused something.
fn lost(error: &Error) -> bool {
    match error.code() {
        // Class 57: operator intervention (shutdown, crash of another backend, starting up); class 08: connection.
        Some(code) => code.code().starts_with("57P") || code.code().starts_with("08"),
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::{check, read_committed};
    use crate::servers::fresh_database;
    use statecast::sandbox::{Postgres, PostgresOptions};
    use std::collections::HashSet;

    /// As little of the schema as the load needs.
    const SCHEMA: &str = "
        CREATE SCHEMA statecast;
        CREATE TABLE statecast.outbox (
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(), seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            event_id uuid NOT NULL DEFAULT gen_random_uuid(), aggregate_type text, aggregate_id text,
            event_type text, payload json);
        CREATE FUNCTION statecast.publish(text, text, text, json) RETURNS uuid LANGUAGE sql AS $$
            INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
            VALUES ($1, $2, $3, $4) RETURNING event_id $$;";

    async fn prepared(url: &str) -> Client {
        let client = connect(url).await.unwrap();
        client.batch_execute(SCHEMA).await.unwrap();
        prepare(&client).await.unwrap();
        client
    }

    async fn assert_dense(client: &Client) {
        let sql = "SELECT count(*), count(DISTINCT (aggregate_id, payload ->> 'n')), \
                          (SELECT sum(version)::bigint FROM shop_order) FROM statecast.outbox";
        let row = client.query_one(sql, &[]).await.unwrap();
        let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
        assert!(counts[0] > 0 && counts.iter().all(|count| *count == counts[0]), "{counts:?}");
    }

    #[tokio::test]
    async fn counters_are_dense_and_rise_with_seq() {
        let url = fresh_database().await;
        let client = prepared(&url).await;
        let load = Load { transactions: 40, prepared: 20, ..Load::default() };
        let written = load.run(&url).await;
        assert_dense(&client).await;
        let committed = read_committed(&client).await.unwrap();
        let ids: HashSet<Uuid> = committed.iter().map(|row| row.event_id).collect();
        assert_eq!(ids, written.acknowledged.iter().copied().collect());
        assert!(!written.undone.is_empty() && !written.undone.iter().any(|id| ids.contains(id)));
        // Delivered by seq, the load is in order per key: the checker agrees with the design.
        let seen: Vec<_> = committed
            .iter()
            .map(|row| crate::checker::Seen {
                event_id: row.event_id,
                key: row.key.clone(),
                sequence: row.seq,
                n: row.n,
                redelivered: false,
            })
            .collect();
        check(&committed, &seen).assert_clean();
    }

    #[tokio::test]
    async fn the_load_survives_crashes_of_its_server() {
        let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
        let url = server.create_database("load").await.unwrap();
        drop(prepared(&url).await);
        let load = Load { transactions: 150, prepared: 20, ..Load::default() };
        let target = url.clone();
        let running = tokio::spawn(async move { load.run(&target).await });
        for _ in 0..2 {
            let client = connect(&url).await.unwrap();
            let sql = "SELECT coalesce(max(seq), 0) FROM statecast.outbox";
            let before: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
            while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) < before + 200 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            server.kill9();
            server.start_again().await.unwrap();
        }
        let written = running.await.unwrap();
        assert!(written.disconnects > 0);
        let client = connect(&url).await.unwrap();
        assert_dense(&client).await;
        let committed = read_committed(&client).await.unwrap();
        let ids: HashSet<Uuid> = committed.iter().map(|row| row.event_id).collect();
        assert!(written.acknowledged.iter().all(|id| ids.contains(id)), "an acknowledged commit is gone");
        assert!(!written.undone.iter().any(|id| ids.contains(id)));
    }
}
