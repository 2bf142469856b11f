//! The promises, against the real binary, real servers and what can happen to them.
//!
//! Knobs: `STATECAST_TEST_KILLS` (10), `STATECAST_TEST_POSTGRES_CRASHES` (3), `STATECAST_TEST_BROKER_CRASHES` (1),
//! `STATECAST_TEST_SEED`.

use std::collections::HashSet;
use std::time::Duration;

use lapin::types::AMQPValue;
use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::checker::{Verdict, check, read_committed};
use crate::consumer::Consumer;
use crate::load::{self, Load, Written};
use crate::process::{Invocation, Relay};
use crate::proxy::{Mode, Proxy};
use crate::servers::{self, Topology, connect, unique};

/// For everything to arrive once nothing fails any more.
pub const ARRIVAL_LIMIT: Duration = Duration::from_secs(90);
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// More than `shutdown.grace`.
pub const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How much of something: a variable, or the default.
pub fn knob(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A database with the schema and the shop's tables, an exchange with a queue, and how to run the relay between them.
pub struct Bench {
    pub url: String,
    pub topology: Topology,
    pub invocation: Invocation,
}

impl Bench {
    pub async fn new(url: String, broker: &Rabbitmq) -> Bench {
        let bench = Bench::without_queue(url, broker).await;
        bench.topology.declare_queue("#", &[]).await;
        bench
    }

    pub async fn without_queue(url: String, broker: &Rabbitmq) -> Bench {
        let topology = Topology::new(broker.url());
        topology.declare_exchange().await;
        let invocation = Invocation::run(&url, &topology, &unique("pipeline"));
        invocation.arguments(&["install"]).succeed().await;
        let bench = Bench { url, topology, invocation };
        load::prepare(&bench.client().await).await.unwrap();
        bench
    }

    pub async fn shared() -> Bench {
        Bench::new(servers::fresh_database().await, servers::rabbitmq().await).await
    }

    pub async fn client(&self) -> Client {
        connect(&self.url).await.unwrap()
    }

    pub async fn relay(&self) -> Relay {
        let relay = self.invocation.start();
        relay.wait_ready(READY_LIMIT).await.unwrap();
        relay
    }

    pub fn consumer(&self) -> Consumer {
        Consumer::start(&self.topology.url, &self.topology.queue)
    }

    pub fn load(&self, load: Load) -> JoinHandle<Written> {
        let url = self.url.clone();
        tokio::spawn(async move { load.run(&url).await })
    }

    pub async fn publish(&self, kind: &str, key: &str, n: i64) -> Uuid {
        publish(&self.client().await, kind, key, n).await
    }

    /// Waits for everything committed, stops the relays in good order, and judges.
    pub async fn finish(&self, relays: &mut [Relay], consumer: &Consumer) -> Verdict {
        self.finish_without(relays, consumer, &[]).await
    }

    /// The same without waiting for events that were given up.
    pub async fn finish_without(
        &self,
        relays: &mut [Relay],
        consumer: &Consumer,
        given_up: &[Uuid],
    ) -> Verdict {
        let committed = read_committed(&self.client().await).await.unwrap();
        let expected = committed.iter().map(|row| row.event_id).filter(|id| !given_up.contains(id));
        consumer.wait_for_ids(ARRIVAL_LIMIT, expected).await;
        for relay in relays {
            relay.sigterm();
            let status = relay.wait(STOP_LIMIT).await;
            assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", relay.log());
        }
        let verdict = check(&committed, &consumer.seen());
        println!("{}", verdict.summary());
        verdict
    }
}

async fn publish(client: &Client, kind: &str, key: &str, n: i64) -> Uuid {
    let payload = serde_json::json!({ "key": key, "n": n }).to_string();
    let sql = "SELECT statecast.publish($1, $2, 'changed', $3::text::json)";
    client.query_one(sql, &[&kind, &key, &payload]).await.unwrap().get(0)
}

/// Waits until the consumer has `count` more deliveries than now.
pub async fn progress(consumer: &Consumer, count: usize) {
    let target = consumer.deliveries().len() + count;
    let grew = consumer.wait_for(ARRIVAL_LIMIT, |deliveries| deliveries.len() >= target).await;
    assert!(grew, "no progress: {} of {target} deliveries", consumer.deliveries().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_through_two_relays_arrives_whole_and_in_order() {
    let bench = Bench::shared().await;
    let consumer = bench.consumer();
    let mut relays = [bench.relay().await, bench.invocation.replica().start()];
    let written = bench.load(Load { transactions: 400, ..Load::default() }).await.unwrap();
    assert_eq!(written.in_doubt, 0);
    let verdict = bench.finish(&mut relays, &consumer).await;
    verdict.assert_clean();
    assert_eq!((verdict.committed, verdict.duplicates), (written.acknowledged.len(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_relays_lose_nothing_and_their_last_messages_overtake_nothing() {
    let kills = knob("STATECAST_TEST_KILLS", 10);
    let bench = Bench::shared().await;
    let consumer = bench.consumer();
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let mut moments = fastrand::Rng::with_seed(load.seed);
    let mut relay = bench.relay().await;
    let writing = bench.load(load);
    for _ in 0..kills {
        progress(&consumer, moments.usize(1..200)).await;
        tokio::time::sleep(Duration::from_micros(moments.u64(..20_000))).await;
        relay.kill9();
        relay = bench.relay().await;
    }
    stop.cancel();
    writing.await.unwrap();
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    // Each successor may repeat a key once from the cursor; a straggler of a dead relay would make it more.
    assert!(verdict.descents_max <= kills, "{}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_postgres_lose_nothing_and_invent_nothing() {
    let crashes = knob("STATECAST_TEST_POSTGRES_CRASHES", 3);
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let bench = Bench::new(server.create_database("shop").await.unwrap(), servers::rabbitmq().await).await;
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let writing = bench.load(load);
    for _ in 0..crashes {
        progress(&consumer, 200).await;
        server.kill9();
        server.start_again().await.unwrap();
        assert!(relay.running(), "the relay gave up\n{}", relay.log());
    }
    stop.cancel();
    let written = writing.await.unwrap();
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert!(verdict.committed >= written.acknowledged.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_of_the_broker_lose_nothing() {
    let crashes = knob("STATECAST_TEST_BROKER_CRASHES", 1);
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let bench = Bench::new(servers::fresh_database().await, &broker).await;
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let writing = bench.load(load);
    for _ in 0..crashes {
        progress(&consumer, 200).await;
        broker.kill9();
        broker.start_again().await.unwrap();
        assert!(relay.running(), "the relay gave up\n{}", relay.log());
    }
    stop.cancel();
    writing.await.unwrap();
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test]
async fn a_full_queue_holds_the_cursor_and_names_its_event() {
    let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    let full = [
        ("x-max-length", AMQPValue::LongInt(5)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    bench.topology.declare_queue("#", &full).await;
    let mut relay = bench.relay().await;
    let mut all = HashSet::new();
    for n in 1..=10 {
        all.insert(bench.publish("order", &format!("k{n:02}"), 1).await);
    }
    assert!(relay.wait_for_metric("statecast_broker_nacks_total", 0.0, ARRIVAL_LIMIT).await);
    let body = wait_for_reason(&relay, &all).await;
    // What the cursor had passed would be missing from now on.
    relay.kill9();
    let consumer = bench.consumer();
    assert!(consumer.wait_for(ARRIVAL_LIMIT, |deliveries| deliveries.len() >= 5).await);
    let taken: HashSet<Uuid> = consumer.seen().iter().map(|seen| seen.event_id).collect();
    let named = all.iter().filter(|id| body.contains(&id.to_string()));
    assert!(named.clone().all(|id| !taken.contains(id)), "a confirmed event is named: {body}");
    let relay = bench.relay().await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test]
async fn an_unroutable_event_waits_over_a_kill_and_other_keys_pass() {
    let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    bench.topology.declare_queue("order.#", &[]).await;
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    bench.publish("ghost", "g1", 1).await;
    let mut orders = Vec::new();
    for n in 1..=20 {
        orders.push(bench.publish("order", "k01", n).await);
    }
    assert!(relay.wait_for_metric("statecast_broker_returns_total", 0.0, ARRIVAL_LIMIT).await);
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, orders.iter().copied()).await, 0, "other keys must pass");
    relay.kill9();
    bench.topology.bind("ghost.#").await;
    let relay = bench.relay().await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// Waits until `/ready` is not 200 and names one of `events`; its body.
pub async fn wait_for_reason(relay: &Relay, events: &HashSet<Uuid>) -> String {
    let wait = async {
        loop {
            if let Some((status, body)) = relay.get("/ready").await
                && status != 200
                && events.iter().any(|id| body.contains(&id.to_string()))
            {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    match tokio::time::timeout(ARRIVAL_LIMIT, wait).await {
        Ok(body) => body,
        Err(_) => panic!("/ready names no stuck event: {:?}", relay.get("/ready").await),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_published_that_an_immediate_stop_takes_back() {
    // Commits are visible long before they are flushed: every row waits for the relay's own flush.
    let settings =
        [("synchronous_commit", "off"), ("wal_writer_delay", "10s"), ("bgwriter_lru_maxpages", "0")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = PostgresOptions { settings: settings.into(), ..Default::default() };
    let mut server = Postgres::start(options).await.unwrap();
    let bench = Bench::new(server.create_database("shop").await.unwrap(), servers::rabbitmq().await).await;
    let consumer = bench.consumer();
    let relay = bench.relay().await;
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let writing = bench.load(load);
    for _ in 0..3 {
        progress(&consumer, 150).await;
        server.stop_immediate().await.unwrap();
        server.start_again().await.unwrap();
    }
    stop.cancel();
    let written = writing.await.unwrap();
    assert!(written.disconnects > 0);
    let verdict = bench.finish(&mut [relay], &consumer).await;
    println!("commits taken back: {}", written.acknowledged.len().saturating_sub(verdict.committed));
    verdict.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_transactions_here_and_elsewhere_delay_only_themselves() {
    let bench = Bench::shared().await;
    let elsewhere = connect(&servers::fresh_database().await).await.unwrap();
    elsewhere.batch_execute("CREATE TABLE t (n int); BEGIN; INSERT INTO t VALUES (1)").await.unwrap();
    let here = bench.client().await;
    here.batch_execute(
        "INSERT INTO shop_order (id) VALUES ('held'); BEGIN; INSERT INTO shop_visit DEFAULT VALUES",
    )
    .await
    .unwrap();
    let held = publish(&here, "order", "held", 1).await;
    let consumer = bench.consumer();
    let relay = bench.relay().await;
    let written = bench.load(Load { transactions: 100, ..Load::default() }).await.unwrap();
    let missing = consumer.wait_for_ids(ARRIVAL_LIMIT, written.acknowledged.iter().copied()).await;
    assert_eq!(missing, 0, "other events must flow while transactions are open");
    assert!(!consumer.seen().iter().any(|seen| seen.event_id == held));
    let last = publish(&here, "order", "held", 2).await;
    here.batch_execute("COMMIT").await.unwrap();
    assert_eq!(
        consumer.wait_for_ids(ARRIVAL_LIMIT, [held, last]).await,
        0,
        "an open transaction elsewhere delays"
    );
    elsewhere.batch_execute("COMMIT").await.unwrap();
    bench.publish("order", "held", 3).await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_relay_notices_that_the_broker_has_gone() {
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let bench = Bench::new(servers::fresh_database().await, &broker).await;
    let relay = bench.relay().await;
    broker.stop().await.unwrap();
    let noticed = tokio::time::timeout(Duration::from_secs(20), async {
        while relay.get("/ready").await.is_none_or(|(status, _)| status == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(noticed.await.is_ok(), "still ready without a broker");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_whose_server_is_silent_is_not_ready_and_stops_when_told() {
    let bench = Bench::shared().await;
    let leader = bench.relay().await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", servers::postgres().await.port())).await;
    let mut standby =
        bench.invocation.replica().with("STATECAST_POSTGRES__URL", &proxy.url(&bench.url)).start();
    standby.wait_ready(READY_LIMIT).await.unwrap();
    // Accepted and acknowledged by the kernel, never answered.
    proxy.set(Mode::Stall);
    let noticed = tokio::time::timeout(Duration::from_secs(40), async {
        while standby.get("/ready").await.is_none_or(|(status, _)| status == 200) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(noticed.await.is_ok(), "still ready without a server");
    standby.sigterm();
    assert!(standby.wait(STOP_LIMIT).await.is_some_and(|status| status.success()));
    proxy.set(Mode::Pass);
    drop(leader);
}
