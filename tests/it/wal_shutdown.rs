//! PostgreSQL's fast shutdown waits for its walsenders until they have sent everything and their clients have
//! confirmed it. A relay that streams and cannot confirm must not hold it up.

use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio_postgres::Client;

use crate::consumer::Consumer;
use crate::process::Relay;
use crate::relay::ARRIVAL_LIMIT;
use crate::wal_standby::{STEP_LIMIT, Shop, until};

/// How much longer a shutdown may take with a relay than without.
const LONGER_MAX: Duration = Duration::from_secs(2);
/// `wal_sender_timeout` of a stream: how long the server waits for a relay that does not answer at all.
const SENDER_TIMEOUT: Duration = Duration::from_secs(5);
/// What is unconfirmed when the server is stopped.
const EVENTS: i32 = 1_000;
/// More than fits in the relay's read-ahead and in every buffer between it and the walsender.
const FLOOD: i32 = 2_500;
/// Bytes of padding in each event of a flood.
const PADDING: i32 = 8_000;

struct Bed {
    server: Postgres,
    broker: Rabbitmq,
    shop: Shop,
    consumer: Consumer,
    next: i32,
}

impl Bed {
    async fn new() -> Bed {
        let postgres = Postgres::start(PostgresOptions::default());
        let (server, broker) = tokio::join!(postgres, Rabbitmq::start(RabbitmqOptions::default()));
        let (server, broker) = (server.unwrap(), broker.unwrap());
        let shop = Shop::new(server.create_database("shop").await.unwrap(), &broker).await;
        let consumer = shop.bench.consumer();
        Bed { server, broker, shop, consumer, next: 1 }
    }

    /// Writes `count` events, each to a key of its own, in one transaction.
    async fn write(&mut self, count: i32, padding: i32) {
        let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                   SELECT 'order', 'n' || i, 'changed', json_build_object('n', 1, 'pad', repeat('x', $3))
                   FROM generate_series($1::int, $2::int) i";
        let client = self.shop.bench.client().await;
        client.execute(sql, &[&self.next, &(self.next + count - 1), &padding]).await.unwrap();
        self.next += count;
    }

    /// A fast shutdown; how long it took.
    async fn shutdown(&mut self) -> Duration {
        let begun = Instant::now();
        self.server.stop_fast().await.unwrap();
        begun.elapsed()
    }

    /// The same load and no relay.
    async fn baseline(&mut self, count: i32, padding: i32) -> Duration {
        self.write(count, padding).await;
        let took = self.shutdown().await;
        self.server.start_again().await.unwrap();
        took
    }

    /// The server stops with what the relay could not confirm, and both come back.
    async fn shutdown_with(
        &mut self,
        name: &str,
        relay: &mut Relay,
        baseline: Duration,
        longer_max: Duration,
    ) {
        let took = self.shutdown().await;
        println!("{name}: the shutdown took {took:?}, without a relay {baseline:?}");
        assert!(took < baseline + longer_max, "{name}: {took:?}, without a relay {baseline:?}");
        assert!(relay.running(), "{name}: the relay gave up\n{}", relay.log());
        self.server.start_again().await.unwrap();
    }

    async fn all_arrives(&self) {
        let client = self.shop.bench.client().await;
        let ids = client.query("SELECT event_id FROM statecast.outbox", &[]).await.unwrap();
        let missing = self.consumer.wait_for_ids(ARRIVAL_LIMIT, ids.iter().map(|row| row.get(0))).await;
        assert_eq!(missing, 0, "after the server has come back");
    }

    async fn client(&self) -> Client {
        self.shop.bench.client().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_does_not_wait_for_a_relay_whose_broker_does_not_confirm() {
    let mut bed = Bed::new().await;
    let baseline = bed.baseline(EVENTS, 0).await;
    let mut relay = bed.shop.streaming_relay().await;
    bed.all_arrives().await;

    // The relay holds its session: it waits for confirms.
    bed.broker.pause();
    bed.write(EVENTS, 0).await;
    bed.shop.wait_until_sent().await;
    bed.shutdown_with("broker paused", &mut relay, baseline, LONGER_MAX).await;
    bed.broker.resume();
    bed.all_arrives().await;

    // The session ends with its broker, and others are tried.
    bed.shop.wait_until_streaming(&relay).await;
    bed.broker.stop().await.unwrap();
    bed.write(EVENTS, 0).await;
    bed.shutdown_with("broker stopped", &mut relay, baseline, LONGER_MAX).await;
    bed.broker.start_again().await.unwrap();
    bed.all_arrives().await;

    let verdict = bed.shop.bench.finish(&mut [relay], &bed.consumer).await;
    verdict.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_does_not_wait_for_a_relay_under_back_pressure() {
    let mut bed = Bed::new().await;
    bed.shop.bench.invocation = bed.shop.bench.invocation.clone().with("STATECAST_RELAY__READ_AHEAD", "2MiB");
    let baseline = bed.baseline(FLOOD, PADDING).await;
    let mut relay = bed.shop.bench.relay().await;
    bed.all_arrives().await;
    bed.shop.wait_until_streaming(&relay).await;

    bed.broker.pause();
    bed.write(FLOOD, PADDING).await;
    // It reads no more: the walsender cannot get rid of what it has.
    let stuck = format!(
        "SELECT EXISTS (SELECT FROM pg_stat_replication JOIN pg_stat_activity USING (pid)
         WHERE pg_stat_replication.application_name = '{}' AND wait_event = 'WalSenderWriteData')",
        bed.shop.stream
    );
    until(&bed.client().await, &stuck).await;
    bed.shutdown_with("back-pressure", &mut relay, baseline, LONGER_MAX).await;
    bed.broker.resume();
    bed.all_arrives().await;
    bed.shop.bench.finish(&mut [relay], &bed.consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_waits_for_a_frozen_relay_no_longer_than_for_its_walsender() {
    let mut bed = Bed::new().await;
    let baseline = bed.baseline(EVENTS, 0).await;
    let mut relay = bed.shop.streaming_relay().await;
    bed.all_arrives().await;
    relay.pause();
    bed.write(EVENTS, 0).await;
    bed.shutdown_with("relay frozen", &mut relay, baseline, SENDER_TIMEOUT + LONGER_MAX).await;
    relay.resume();
    bed.all_arrives().await;
    assert!(relay.wait_ready(STEP_LIMIT).await.is_ok());
    bed.shop.bench.finish(&mut [relay], &bed.consumer).await.assert_clean();
}
