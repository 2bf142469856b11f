//! A bench for streaming, on a PostgreSQL of its own: a slot waits for every open write transaction of its cluster, so
//! tests that shared a server would hold up each other's streams.

use std::collections::HashSet;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::consumer::Consumer;
use crate::load::{self, Load};
use crate::process::Relay;
use crate::relay::Bench;
use crate::servers::{self, unique};

/// For a stream to begin: several tries to make a slot, with their back-off.
pub const STREAM_LIMIT: Duration = Duration::from_secs(45);
/// For anything else that must happen.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// What a relay has read, by its own account.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reads {
    pub wal: f64,
    pub poll: f64,
}

/// A [`Bench`] whose relay streams.
pub struct WalBench {
    bench: Bench,
    pub server: Postgres,
    pub pipeline: String,
}

impl Deref for WalBench {
    type Target = Bench;
    fn deref(&self) -> &Bench {
        &self.bench
    }
}

impl DerefMut for WalBench {
    fn deref_mut(&mut self) -> &mut Bench {
        &mut self.bench
    }
}

impl WalBench {
    /// `settings` of the server win over the sandbox's.
    pub async fn start(settings: &[(&str, &str)]) -> WalBench {
        WalBench::with_broker(settings, servers::rabbitmq().await).await
    }

    pub async fn with_broker(settings: &[(&str, &str)], broker: &Rabbitmq) -> WalBench {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = PostgresOptions { settings: settings.collect(), ..Default::default() };
        let server = Postgres::start(options).await.unwrap();
        let url = server.create_database("shop").await.unwrap();
        let pipeline = unique("wal");
        let mut bench = Bench::new(url, broker).await;
        bench.invocation = bench
            .invocation
            .with("STATECAST_NAME", &pipeline)
            .with("STATECAST_SOURCE__MODE", "wal")
            .with("STATECAST_SOURCE__WAL__RECONCILE_INTERVAL", "1s");
        let bench = WalBench { bench, server, pipeline };
        // The first one was for a pipeline that only polls.
        bench.install().await;
        bench
    }

    /// The bench and its server, for those who keep them apart.
    pub fn into_parts(self) -> (Bench, Postgres) {
        (self.bench, self.server)
    }

    /// One more variable for relays that start from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.bench.invocation = self.bench.invocation.clone().with(name, value);
    }

    /// A relay that streams.
    pub async fn streaming(&self) -> Relay {
        let relay = self.relay().await;
        wait_streaming(&relay).await;
        relay
    }

    /// `application_name` of the pipeline's walsender.
    pub fn stream_name(&self) -> String {
        format!("statecast {} stream", self.pipeline)
    }

    /// What every slot of the pipeline begins with.
    pub fn slot_prefix(&self) -> String {
        format!("statecast_{}_", self.pipeline.replace('-', "_"))
    }

    /// Processes of the server that stream for the pipeline, or are about to.
    pub async fn walsenders(&self, client: &Client) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 ORDER BY pid";
        client.query(sql, &[&self.stream_name()]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// The pipeline's slots.
    pub async fn slots(&self, client: &Client) -> Vec<String> {
        let sql = "SELECT slot_name::text FROM pg_replication_slots WHERE starts_with(slot_name, $1)";
        client.query(sql, &[&self.slot_prefix()]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Waits until the pipeline's walsender waits for one of these transactions: its slot is being created.
    pub async fn wait_for_creation(&self, client: &Client, xids: &[u64]) {
        let waits = format!(
            "EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE a.application_name = '{}'
               AND NOT l.granted AND l.locktype = 'transactionid'
               AND l.transactionid::text::bigint = ANY (ARRAY{xids:?}))",
            self.stream_name()
        );
        wait_until(client, &waits).await;
    }

    /// `statecast install`: makes the publication, or mends it.
    pub async fn install(&self) {
        self.invocation.arguments(&["install"]).succeed().await;
    }
}

/// A load that goes on until its token is cancelled, two-phase commits included.
pub fn endless() -> (Load, CancellationToken, fastrand::Rng) {
    let load = Load { transactions: load::UNTIL_STOPPED, prepared: 10, ..Load::default() };
    let (stop, moments) = (load.stop.clone(), fastrand::Rng::with_seed(load.seed));
    (load, stop, moments)
}

/// Panics unless the relay streams in time.
pub async fn wait_streaming(relay: &Relay) {
    let begun = relay.wait_for_metric("statecast_wal_streaming", 0.0, STREAM_LIMIT).await;
    assert!(begun, "it does not stream; ready: {:?}", relay.get("/ready").await);
}

/// Waits until the relay has *said* that it does not stream (a relay that says nothing proves nothing).
pub async fn wait_not_streaming(relay: &Relay, limit: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let (_, metrics) = relay.get("/metrics").await.unwrap_or_default();
        let silent = |line: &str| line.starts_with("statecast_wal_streaming{") && line.ends_with(" 0");
        if metrics.lines().any(silent) {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "it still streams after {limit:?}");
        tokio::time::sleep(POLL).await;
    }
}

pub async fn reads(relay: &Relay) -> Reads {
    let read = "statecast_events_read_total";
    Reads {
        wal: relay.metric_where(read, "via=\"wal\"").await,
        poll: relay.metric_where(read, "via=\"poll\"").await,
    }
}

/// Waits until the relay has read `more` events by its stream: proof that it streams.
pub async fn wait_streamed(relay: &Relay, more: usize) {
    wait_read(relay, "via=\"wal\"", more).await;
}

/// The same for polling.
pub async fn wait_polled(relay: &Relay, more: usize) {
    wait_read(relay, "via=\"poll\"", more).await;
}

async fn wait_read(relay: &Relay, via: &str, more: usize) {
    let name = "statecast_events_read_total";
    let target = relay.metric_where(name, via).await + more as f64;
    let grew = relay.wait_for_sample(name, via, STREAM_LIMIT, |value| value >= target).await;
    assert!(grew, "{via}: {} of {target}; {:?}", reads_text(relay).await, relay.get("/ready").await);
}

async fn reads_text(relay: &Relay) -> String {
    format!("{:?}", reads(relay).await)
}

/// Waits until an SQL condition holds.
pub async fn wait_until(client: &Client, condition: &str) {
    let begun = Instant::now();
    let sql = format!("SELECT {condition}");
    while !client.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0) {
        assert!(begun.elapsed() < LIMIT, "never: {condition}");
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until a key's events have arrived, named by their counters.
pub async fn wait_for_key(consumer: &Consumer, key: &str, counters: &[i64]) {
    let key = format!("order:{key}");
    let mut missing: HashSet<i64> = counters.iter().copied().collect();
    let mut looked_at = 0;
    let arrived = consumer.wait_for(LIMIT, |deliveries| {
        for delivery in &deliveries[looked_at..] {
            let seen = delivery.seen();
            if seen.key == key {
                missing.remove(&seen.n.unwrap_or(0));
            }
        }
        looked_at = deliveries.len();
        missing.is_empty()
    });
    let arrived = arrived.await;
    assert!(arrived, "{key} {missing:?} did not arrive");
}

/// Whether a key has arrived at all.
pub fn arrived(consumer: &Consumer, key: &str) -> bool {
    let key = format!("order:{key}");
    consumer.seen().iter().any(|seen| seen.key == key)
}

/// A random part of `limit`.
pub async fn moment(moments: &mut fastrand::Rng, limit: Duration) {
    let micros = u64::try_from(limit.as_micros()).unwrap();
    tokio::time::sleep(Duration::from_micros(moments.u64(..micros.max(1)))).await;
}
