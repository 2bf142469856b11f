//! Events that cannot go, end to end: they are set aside with a reason, their key queues behind them, everything else flows,
//! and a person decides.
//!
//! Knobs: `STATECAST_TEST_POISON_EVENTS` (5,000; the full figure is 100,000): events of the comparison.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::consumer::Consumer;
use crate::process::Relay;
use crate::relay::{ARRIVAL_LIMIT, Bench, STOP_LIMIT, knob};
use crate::servers;

impl Bench {
    /// Publishes in one transaction: (aggregate type, key, bytes of padding). The counter is the place in its key.
    async fn publish_all(&self, events: &[(&str, &str, usize)]) -> Vec<Uuid> {
        let mut client = self.client().await;
        let transaction = client.transaction().await.unwrap();
        let mut ids = Vec::new();
        for (place, (kind, key, pad)) in events.iter().enumerate() {
            let payload =
                serde_json::json!({ "key": key, "n": place + 1, "pad": "x".repeat(*pad) }).to_string();
            let sql = "SELECT statecast.publish($1, $2, 'changed', $3::text::json)";
            ids.push(transaction.query_one(sql, &[kind, key, &payload]).await.unwrap().get(0));
        }
        transaction.commit().await.unwrap();
        ids
    }

    /// `statecast parked …`, which must succeed.
    async fn parked(&self, arguments: &str) -> String {
        let words: Vec<&str> = std::iter::once("parked").chain(arguments.split(' ')).collect();
        self.invocation.arguments(&words).succeed().await
    }

    async fn verify(&self) {
        println!("{}", self.invocation.arguments(&["status", "--verify"]).succeed().await);
    }
}

/// Waits until so many rows are in this state.
async fn wait_for_state(client: &Client, state: &str, count: i64) {
    let deadline = Instant::now() + ARRIVAL_LIMIT;
    let sql = "SELECT count(*) FROM statecast.parked WHERE state = $1";
    loop {
        let found: i64 = client.query_one(sql, &[&state]).await.unwrap().get(0);
        if found == count {
            return;
        }
        assert!(Instant::now() < deadline, "{found} of {count} rows are {state}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn delivered(consumer: &Consumer) -> HashSet<Uuid> {
    consumer.seen().iter().map(|seen| seen.event_id).collect()
}

async fn stop(relay: &mut Relay) {
    relay.sigterm();
    assert!(relay.wait(STOP_LIMIT).await.is_some_and(|status| status.success()), "{}", relay.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_parked_and_its_key_queues_behind_it() {
    let mut bench = Bench::shared().await;
    let limit = bench.invocation.clone();
    bench.invocation = bench.invocation.with("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "4KiB");
    let consumer = bench.consumer();
    let events = [
        ("order", "a", 1),
        ("order", "big", 1),
        ("order", "big", 5000),
        ("order", "big", 1),
        ("order", "b", 1),
    ];
    let ids = bench.publish_all(&events).await;
    let mut relay = bench.relay().await;
    let client = bench.client().await;
    wait_for_state(&client, "parked", 1).await;
    wait_for_state(&client, "queued", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [ids[0], ids[1], ids[4]]).await, 0, "the rest flows");
    let shown = bench.parked(&format!("show {}", ids[2])).await;
    println!("{shown}");
    assert!(shown.contains("too_large") && shown.contains("max_message_size"), "{shown}");
    assert!(!relay.log().contains("xxxxxxxxxx"), "a payload is in the log");
    // What comes later queues as well, and a retry without the remedy parks it again.
    let later = bench.publish("order", "big", 6).await;
    wait_for_state(&client, "queued", 2).await;
    bench.parked(&format!("retry --id {}", ids[2])).await;
    assert!(
        relay.wait_for_metric("statecast_events_parked_total", 1.5, ARRIVAL_LIMIT).await,
        "{}",
        relay.log()
    );
    wait_for_state(&client, "parked", 1).await;
    assert_eq!(delivered(&consumer), HashSet::from([ids[0], ids[1], ids[4]]));
    bench.verify().await;
    stop(&mut relay).await;
    // With the remedy, and a request that was made while nobody led.
    bench.parked("retry --reason too_large").await;
    bench.invocation = limit;
    let relay = bench.relay().await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [later]).await, 0);
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    bench.verify().await;
    let left: i64 = client.query_one("SELECT count(*) FROM statecast.parked", &[]).await.unwrap().get(0);
    assert_eq!(left, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_over_the_brokers_frame_are_parked_and_everything_else_flows() {
    let config = vec!["frame_max = 8192".to_owned()];
    let broker = Rabbitmq::start(RabbitmqOptions { config, ..Default::default() }).await.unwrap();
    let bench = Bench::new(servers::fresh_database().await, &broker).await;
    let consumer = bench.consumer();
    let first = bench.publish("order", "a", 1).await;
    let client = bench.client().await;
    let headers = serde_json::json!({ "wide": "y".repeat(9000) }).to_string();
    let sql = "SELECT statecast.publish('order', 'b', 'changed', '{\"n\": 2}', headers => $1::text::json)";
    let wide: Uuid = client.query_one(sql, &[&headers]).await.unwrap().get(0);
    let last = bench.publish("order", "c", 3).await;
    bench.invocation.arguments(&["run", "--until-idle"]).succeed().await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first, last]).await, 0);
    let shown = bench.parked(&format!("show {wide}")).await;
    for word in ["too_large", "headers", "frame_max is 8192"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    // A person gives it up.
    bench.parked(&format!("discard --id {wide} --why unwanted")).await;
    bench.invocation.arguments(&["run", "--until-idle"]).succeed().await;
    let relay = bench.relay().await;
    wait_for_state(&client, "parked", 0).await;
    let mut relays = [relay];
    stop(&mut relays[0]).await;
    assert_eq!(delivered(&consumer), HashSet::from([first, last]));
    let sql = "SELECT confirmed, parked, discarded FROM statecast.cursor";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, i64>(2)), (2, 0, 1));
    bench.verify().await;
}

/// A routing key that no queue is bound to: its events wait, are parked after `unroutable.park_after`, and go when somebody
/// has bound a queue and asks for it. A successor takes all of that over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unroutable_event_is_parked_and_retried_in_order() {
    let mut bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    bench.invocation = bench.invocation.with("STATECAST_UNROUTABLE__PARK_AFTER", "7s");
    bench.topology.declare_queue("order.#", &[]).await;
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    let client = bench.client().await;
    // Others are taken all the while, or it would be an outage.
    let (load, stopping, _) = crate::wal_bench::endless();
    let writing = bench.load(load);
    let ghost = bench.publish("ghost", "g", 1).await;
    let behind = bench.publish("ghost", "g", 2).await;
    wait_for_state(&client, "waiting", 1).await;
    relay.kill9();
    relay = bench.relay().await;
    wait_for_state(&client, "parked", 1).await;
    wait_for_state(&client, "queued", 1).await;
    bench.topology.bind("ghost.#").await;
    bench.parked("retry --key ghost:g --why bound").await;
    let third = bench.publish("ghost", "g", 3).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [ghost, behind, third]).await, 0, "{}", relay.log());
    stopping.cancel();
    writing.await.unwrap();
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    bench.verify().await;
}

/// One poisonous event among many costs the others nothing. Prints both times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_unroutable_event_among_many() {
    let events = knob("STATECAST_TEST_POISON_EVENTS", 5_000) as i64;
    for poison in [false, true, false, true] {
        let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
        bench.topology.declare_queue("order.#", &[]).await;
        let consumer = bench.consumer();
        let client = bench.client().await;
        let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                   SELECT CASE WHEN $2 AND i = $1 / 10 THEN 'ghost' ELSE 'order' END, 'k' || i % 1000, 'changed',
                          json_build_object('n', i, 'pad', repeat('x', 700))
                     FROM generate_series(1, $1::bigint) i ORDER BY i";
        client.execute(sql, &[&events, &poison]).await.unwrap();
        let count = (events - i64::from(poison)) as usize;
        let relay = bench.invocation.start();
        let began = Instant::now();
        assert!(consumer.wait_for(ARRIVAL_LIMIT * 2, |seen| seen.len() >= count).await);
        let took = began.elapsed();
        println!(
            "{events} events, one unroutable: {poison}: {took:?}, {:.0} a second",
            events as f64 / took.as_secs_f64()
        );
        drop(relay);
        assert_eq!(delivered(&consumer).len(), count);
    }
}
