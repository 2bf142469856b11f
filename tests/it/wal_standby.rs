//! Streaming beside a physical standby: failover, commits that wait for a synchronous standby, and settings that would
//! make the application wait for the relay.
//!
//! A relay streams when its metric says so and the server shows its walsender (`statecast <pipeline> stream`).

mod everyone;
mod failover;
mod waiting;

use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq};
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use crate::process::Relay;
use crate::relay::{ARRIVAL_LIMIT, Bench};
use crate::servers::{connect, unique};

/// For one step; only a fault lasts so long.
pub const STEP_LIMIT: Duration = Duration::from_secs(30);
/// How long nothing may happen where nothing must. A relay without the rule would have published long since.
pub const SILENCE: Duration = Duration::from_millis(2500);
/// `application_name` of the standby.
const STANDBY: &str = "sb";

/// A primary and its standby.
pub struct Pair {
    pub primary: Postgres,
    pub standby: Postgres,
}

impl Pair {
    pub async fn start() -> Pair {
        let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
        let standby = primary.standby(STANDBY).await.unwrap();
        Pair { primary, standby }
    }

    /// One URL for both: whichever takes writes.
    pub fn url(&self, database: &str) -> String {
        let hosts = [&self.primary, &self.standby].map(|server| format!("127.0.0.1:{}", server.port()));
        format!("postgres://statecast@{}/{database}?target_session_attrs=read-write", hosts.join(","))
    }

    /// Waits until the standby has replayed what the primary has written.
    pub async fn level(&self) {
        let client = connect(&self.primary.url("postgres")).await.unwrap();
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
        let (client, written) =
            (connect(&self.standby.url("postgres")).await.unwrap(), row.get::<_, &str>(0));
        until(&client, &format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")).await;
    }

    /// A database on the primary, ready for a load, and a relay's name; the relay is to stream.
    pub async fn bench(&self, broker: &Rabbitmq) -> Shop {
        self.primary.create_database("shop").await.unwrap();
        Shop::new(self.url("shop"), broker).await
    }
}

/// A [`Bench`] whose relay streams.
pub struct Shop {
    pub bench: Bench,
    /// `application_name` of the relay's walsender.
    pub stream: String,
}

impl Shop {
    pub async fn new(url: String, broker: &Rabbitmq) -> Shop {
        let pipeline = unique("standby");
        let mut bench = Bench::new(url, broker).await;
        bench.invocation = bench.invocation.with("STATECAST_NAME", &pipeline);
        bench.invocation = bench.invocation.with("STATECAST_SOURCE__MODE", "wal");
        // In this mode it also makes the publication.
        bench.invocation.arguments(&["install"]).succeed().await;
        Shop { bench, stream: format!("statecast {pipeline} stream") }
    }

    /// A relay that streams.
    pub async fn streaming_relay(&self) -> Relay {
        let relay = self.bench.relay().await;
        self.wait_until_streaming(&relay).await;
        relay
    }

    /// Waits until the relay streams from the server that takes writes now.
    pub async fn wait_until_streaming(&self, relay: &Relay) {
        let client = self.bench.client().await;
        until(
            &client,
            &format!(
                "SELECT EXISTS (SELECT FROM pg_stat_replication
                 WHERE application_name = '{}' AND state = 'streaming')",
                self.stream
            ),
        )
        .await;
        assert!(
            relay.wait_for_metric("statecast_wal_streaming", 0.0, ARRIVAL_LIMIT).await,
            "it does not stream"
        );
    }

    /// Waits until the relay's walsender has sent what is written now.
    pub async fn wait_until_sent(&self) {
        let client = self.bench.client().await;
        let row = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await.unwrap();
        let (written, stream): (&str, _) = (row.get(0), &self.stream);
        until(
            &client,
            &format!(
                "SELECT EXISTS (SELECT FROM pg_stat_replication
                 WHERE application_name = '{stream}' AND sent_lsn >= '{written}')"
            ),
        )
        .await;
    }
}

/// It streams now.
pub async fn assert_streaming(relay: &Relay) {
    assert_eq!(relay.metric("statecast_wal_streaming").await, 1.0, "it does not stream\n{}", relay.log());
}

/// Changes a setting of a running server; it takes effect soon.
pub async fn set(client: &Client, name: &str, value: &str) {
    client.batch_execute(&format!("ALTER SYSTEM SET {name} = '{value}'")).await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// Sets `synchronous_standby_names` and waits until commits wait for the standby, which must be among them.
pub async fn synchronous(client: &Client, names: &str) {
    set(client, "synchronous_standby_names", names).await;
    until(
        client,
        &format!(
            "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = '{STANDBY}'
             AND sync_state IN ('sync', 'quorum')) AND current_setting('synchronous_standby_names') = '{names}'"
        ),
    )
    .await;
    // The checkpointer turns waiting on, when it reads the settings; it does that before it works.
    client.batch_execute("CHECKPOINT").await.unwrap();
}

/// Asks until the answer is true.
#[track_caller]
pub fn until<'a>(client: &'a Client, sql: &'a str) -> impl Future<Output = ()> + 'a {
    let (asked_at, begun) = (std::panic::Location::caller(), Instant::now());
    async move {
        while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
            assert!(begun.elapsed() < STEP_LIMIT, "{asked_at}: never true: {sql}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A transaction that changes an entity under its row lock and says so, as far as before its COMMIT.
pub async fn change(client: &Client, key: &str) -> Result<Uuid, Error> {
    client.batch_execute("BEGIN").await?;
    let update = "UPDATE shop_order SET version = version + 1 WHERE id = $1 RETURNING version";
    let n: i64 = client.query_one(update, &[&key]).await?.get(0);
    let payload = serde_json::json!({ "key": key, "n": n }).to_string();
    let insert = "SELECT statecast.publish('order', $1, 'changed', $2::text::json)";
    Ok(client.query_one(insert, &[&key, &payload]).await?.get(0))
}
