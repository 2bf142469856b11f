//! An open-loop load: so many events per second are due, whatever became of those before, and a consumer that sees
//! when each arrives. The payload carries the moment at which its write was due, in microseconds since 1970.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::{Client, Statement};

use crate::histogram::{Latencies, Summary};
use crate::relay::{Relay, Setup};
use crate::schedule::{self, now_us};
use crate::servers::{Database, Place, Servers, connect};

/// Connections that write. Enough for group commits, few enough for two cores.
const WRITERS: usize = 16;
/// Transactions per second, at most; above that each holds several events.
const TRANSACTIONS: u64 = 1_000;
/// For what is still on its way when the load ends.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
const KEYS: i64 = 10_000;
/// Before the moment in a payload.
const DUE: &[u8] = b"\"due\":";

/// How much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) rate: u64,
    pub(crate) time: Duration,
    pub(crate) bytes: usize,
}

/// What came of it, each counted from the moment at which the write was due unless said otherwise.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Committed, as the writer knows.
    pub(crate) write: Summary,
    /// Confirmed by the broker, as the relay knows.
    pub(crate) confirm: Summary,
    /// The same, counted from the moment at which the writer knew of its commit: what the relay and the broker add.
    pub(crate) after_commit: Summary,
    pub(crate) consumer: Summary,
    /// Events per second that really were written.
    pub(crate) rate: f64,
}

impl Load {
    /// Events of one transaction.
    pub(crate) fn batch(&self) -> u64 {
        self.rate.div_ceil(TRANSACTIONS).max(1)
    }

    fn transactions(&self) -> u64 {
        let events = self.rate as f64 * self.time.as_secs_f64();
        ((events / self.batch() as f64).round() as u64).max(1)
    }

    /// Runs it through a relay that is started for it. What the pipeline has to do from before is done first.
    pub(crate) async fn run(
        &self,
        servers: &Servers,
        database: &Database,
        place: &Place,
        setup: &Setup,
    ) -> Result<Seen> {
        let relay = setup.clone().with_confirm_lines().ready().await?;
        // What an earlier load left behind, or is repeated of it, is not of this one.
        let consumer = Consumer::start(servers, place, now_us()).await?;
        let written = self.write(database).await?;
        let expected = written.committed_us.len() as u64 * self.batch();
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        while consumer.count() < expected {
            let so_far = consumer.count();
            ensure!(Instant::now() < deadline, "{so_far} of {expected} events arrived");
            tokio::time::sleep(LOOK).await;
        }
        let (confirm, after_commit) = confirms(&relay, &database.client, &written, expected).await?;
        relay.stop().await?;
        Ok(Seen {
            write: written.latencies()?.summary(),
            confirm: confirm.summary(),
            after_commit: after_commit.summary(),
            consumer: consumer.summary(),
            rate: expected as f64 / written.seconds.max(self.time.as_secs_f64()),
        })
    }

    async fn write(&self, database: &Database) -> Result<Written> {
        let (batch, count) = (self.batch(), self.transactions());
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            writers.push(Arc::new(Writer::new(&database.url, self.bytes, batch).await?));
        }
        let first_seq = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM statecast.outbox_seq_seq";
        let first_seq: i64 = database.client.query_one(first_seq, &[]).await?.get(0);
        let apart = Duration::from_secs_f64(batch as f64 / self.rate.max(1) as f64);
        let mut committed_us = HashMap::new();
        let mut running = JoinSet::new();
        let began = Instant::now();
        let mut due = schedule::start(apart, count);
        let mut writer = writers.iter().cycle();
        while let Some(due_us) = due.recv().await {
            let writer = Arc::clone(writer.next().context("no writers")?);
            running.spawn(async move { writer.write(due_us).await });
            while let Some(done) = running.try_join_next() {
                committed_us.extend([done??]);
            }
        }
        while let Some(done) = running.join_next().await {
            committed_us.extend([done??]);
        }
        ensure!(committed_us.len() as u64 == count, "two writes were due in the same microsecond");
        Ok(Written { committed_us, first_seq, seconds: began.elapsed().as_secs_f64() })
    }
}

struct Written {
    /// By the moment at which a transaction was due, when its commit was known.
    committed_us: HashMap<i64, i64>,
    first_seq: i64,
    seconds: f64,
}

impl Written {
    fn latencies(&self) -> Result<Latencies> {
        let mut latencies = Latencies::new()?;
        for (due_us, committed_us) in &self.committed_us {
            latencies.record(*due_us, *committed_us);
        }
        Ok(latencies)
    }
}

struct Writer {
    client: Client,
    statement: Statement,
    batch: i64,
    padding: String,
}

impl Writer {
    async fn new(url: &str, bytes: usize, batch: u64) -> Result<Writer> {
        let client = connect(url).await?;
        let sql = format!(
            "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', 'k' || (($1::bigint / 1000 + i * 7919) % {KEYS}), 'changed', $2::text::json
             FROM generate_series(1, $3::bigint) AS i"
        );
        let statement = client.prepare(&sql).await?;
        let padding = "x".repeat(bytes.saturating_sub(40));
        Ok(Writer { client, statement, batch: i64::try_from(batch)?, padding })
    }

    async fn write(&self, due_us: i64) -> Result<(i64, i64)> {
        let payload = format!("{{\"due\":{due_us},\"pad\":\"{}\"}}", self.padding);
        self.client
            .execute(&self.statement, &[&due_us, &payload, &self.batch])
            .await
            .context("write an event")?;
        Ok((due_us, now_us()))
    }
}

/// To the confirm that the relay noted: from the moment in the payload, and from the commit.
async fn confirms(
    relay: &Relay,
    client: &Client,
    written: &Written,
    expected: u64,
) -> Result<(Latencies, Latencies)> {
    let sql = "SELECT seq, (payload ->> 'due')::bigint FROM statecast.outbox WHERE seq > $1";
    let rows = client.query(sql, &[&written.first_seq]).await?;
    let due: HashMap<i64, i64> =
        rows.iter().filter_map(|row| Some((row.get(0), row.get::<_, Option<i64>>(1)?))).collect();
    let deadline = Instant::now() + ARRIVAL_LIMIT;
    loop {
        let (mut since_due, mut since_commit) = (Latencies::new()?, Latencies::new()?);
        for (seq, at_us) in relay.confirm_times() {
            let Some(due_us) = due.get(&seq) else { continue };
            let Some(committed_us) = written.committed_us.get(due_us) else { continue };
            since_due.record(*due_us, at_us);
            since_commit.record(*committed_us, at_us);
        }
        if since_due.count() >= expected {
            return Ok((since_due, since_commit));
        }
        ensure!(Instant::now() < deadline, "{} of {expected} confirms were noted", since_due.count());
        tokio::time::sleep(LOOK * 5).await;
    }
}

/// Takes everything from a queue, with automatic acknowledgement.
struct Consumer {
    latencies: Arc<Mutex<Latencies>>,
    task: JoinHandle<()>,
    _connection: Connection,
}

impl Consumer {
    async fn start(servers: &Servers, place: &Place, since_us: i64) -> Result<Consumer> {
        let url = servers.rabbitmq.url();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let queue = place.queue.as_str().into();
        let mut deliveries = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
        let latencies = Arc::new(Mutex::new(Latencies::new()?));
        let log = Arc::clone(&latencies);
        let task = tokio::spawn(async move {
            while let Some(Ok(delivery)) = deliveries.next().await {
                let Some(due_us) = due(&delivery.data).filter(|due_us| *due_us >= since_us) else { continue };
                log.lock().unwrap_or_else(PoisonError::into_inner).record(due_us, now_us());
            }
        });
        Ok(Consumer { latencies, task, _connection: connection })
    }

    fn count(&self) -> u64 {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).count()
    }

    fn summary(&self) -> Summary {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).summary()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The moment in a payload, wherever the event holds it.
fn due(body: &[u8]) -> Option<i64> {
    let at = body.windows(DUE.len()).position(|window| window == DUE)?;
    let rest = body.get(at + DUE.len()..)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}
