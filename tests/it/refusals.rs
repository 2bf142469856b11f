//! What the broker, or a limit, refuses: told apart event by event, and never overtaken by its own key.

use std::collections::HashSet;
use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::process::Invocation;
use crate::relay::{ARRIVAL_LIMIT, Bench};
use crate::scripted::Scripted;
use crate::servers::{self, Topology};

/// Returned events are tried again after 1 s, 2 s, 4 s.
const RETURNS_LIMIT: Duration = Duration::from_secs(20);

async fn publish(client: &Client, kind: &str, key: &str, event: &str, payload: &str) -> Uuid {
    let sql = "SELECT statecast.publish($1, $2, $3, $4::text::json)";
    client.query_one(sql, &[&kind, &key, &event, &payload]).await.unwrap().get(0)
}

async fn bench(binding: &str) -> Bench {
    let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    bench.topology.declare_queue(binding, &[]).await;
    bench
}

/// Orders have a queue in memory: its confirms are as quick as those of messages that no queue takes, so the broker
/// acknowledges both with one frame, and the client library hands the returns to whichever confirms it resolves first.
async fn quick_bench() -> Bench {
    let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    let (_connection, channel) = bench.topology.channel().await;
    let (queue, none) = (bench.topology.queue.as_str(), FieldTable::default());
    channel.queue_declare(queue.into(), QueueDeclareOptions::default(), none).await.unwrap();
    bench.topology.bind("order.#").await;
    bench
}

/// Returns and confirms of hundreds of messages come together, and each must find its own event: what was returned is
/// not taken for confirmed, what was confirmed is not sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returns_in_a_burst_find_their_own_events() {
    // First only what no queue takes, then that and orders in turn.
    const GHOSTS: i64 = 300;
    const PAIRS: i64 = 300;
    let bench = quick_bench().await;
    let consumer = bench.consumer();
    let client = bench.client().await;
    // Each has a routing key of its own: those that share one wait for each other when it is returned.
    let sql =
        "SELECT statecast.publish(kind, kind || i, 'changed' || i, json_build_object('n', 1)::text::json)
                 FROM generate_series(1, $1::bigint) i, unnest(ARRAY['ghost', 'order']) kind
                WHERE kind = 'ghost' OR i > $2 ORDER BY i, kind";
    client.execute(sql, &[&(GHOSTS + PAIRS), &GHOSTS]).await.unwrap();
    let relay = bench.relay().await;
    let returned = (GHOSTS + PAIRS) as f64;
    assert!(relay.wait_for_metric("statecast_broker_returns_total", returned - 0.5, RETURNS_LIMIT).await);
    assert!(
        relay.wait_for_metric("statecast_events_confirmed_total", PAIRS as f64 - 0.5, RETURNS_LIMIT).await
    );
    assert_eq!(relay.metric("statecast_events_confirmed_total").await, PAIRS as f64);
    bench.topology.bind("ghost.#").await;
    let all = (GHOSTS + 2 * PAIRS) as usize;
    consumer.wait_for(RETURNS_LIMIT, |seen| seen.len() >= all).await;
    let ids: HashSet<Uuid> = consumer.seen().iter().map(|seen| seen.event_id).collect();
    assert_eq!(ids.len(), all, "a returned event was taken for confirmed");
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.duplicates, 0, "{}", verdict.summary());
}

/// The broker returns half of the messages and then acknowledges all of them with one frame. The client library resolves
/// their confirms in no particular order and gives the next return to each: only when all have been looked at is it
/// known which message was returned. Those, and no others, are sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_ack_for_returned_and_routed_messages_is_taken_apart() {
    const ORDERS: usize = 100;
    let mut broker = Scripted::start().await;
    let url = servers::fresh_database().await;
    let topology = Topology::new(&broker.url);
    let invocation = Invocation::run(&url, &topology, &servers::unique("pipeline"));
    invocation.arguments(&["install"]).succeed().await;
    let client = servers::connect(&url).await.unwrap();
    // Each has a routing key of its own: those that share one wait for each other when it is returned.
    let sql = "SELECT statecast.publish(kind, kind || i, 'changed' || i, json_build_object('n', 1)::text::json)
                 FROM generate_series(1, $1::bigint) i, unnest(ARRAY['ghost', 'order']) kind ORDER BY i, kind";
    client.execute(sql, &[&(ORDERS as i64)]).await.unwrap();
    let mut relay = invocation.start();
    let mut sent = Vec::new();
    while sent.len() < 2 * ORDERS {
        let next = tokio::time::timeout(RETURNS_LIMIT, broker.published.recv()).await;
        sent.push(next.expect("a publish").unwrap());
    }
    let last = sent[2 * ORDERS - 1].clone();
    let (ghosts, orders): (Vec<_>, Vec<_>) =
        sent.into_iter().partition(|message| message.routing_key.starts_with("ghost"));
    assert_eq!((ghosts.len(), orders.len()), (ORDERS, ORDERS));
    broker.return_and_ack(&ghosts, &last).await;
    // All of them come again after their pause; one more would be an order.
    let mut again = Vec::new();
    while again.len() < ORDERS {
        let next = tokio::time::timeout(RETURNS_LIMIT, broker.published.recv()).await;
        let Ok(message) = next else {
            panic!("{} of {ORDERS} returned messages were taken for confirmed", ORDERS - again.len());
        };
        again.push(message.unwrap());
    }
    assert!(
        again.iter().all(|message| message.routing_key.starts_with("ghost")),
        "a confirmed one came again"
    );
    assert_eq!(relay.metric("statecast_events_confirmed_total").await, ORDERS as f64);
    broker.return_and_ack(&[], &again[ORDERS - 1]).await;
    let confirmed = "statecast_events_confirmed_total";
    assert!(relay.wait_for_metric(confirmed, 2.0 * ORDERS as f64 - 0.5, RETURNS_LIMIT).await);
    relay.sigterm();
    assert!(relay.wait(ARRIVAL_LIMIT).await.is_some_and(|status| status.success()), "{}", relay.log());
    assert!(broker.published.try_recv().is_err(), "nothing else is sent");
}

/// Nothing of a key is sent while its older event is refused, however long it takes and whoever sends it at last.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_event_is_not_overtaken_by_its_key() {
    let bench = bench("order.changed").await;
    let consumer = bench.consumer();
    let client = bench.client().await;
    let mut relay = bench.relay().await;
    client.batch_execute("BEGIN").await.unwrap();
    let mut waiting = vec![publish(&client, "order", "held", "refused", r#"{"n": 1}"#).await];
    for n in 2..=20 {
        let payload = format!("{{\"n\": {n}}}");
        waiting.push(publish(&client, "order", "held", "changed", &payload).await);
    }
    let mut passing = Vec::new();
    for n in 1..=20 {
        let payload = format!("{{\"n\": {n}}}");
        passing.push(publish(&client, "order", "free", "changed", &payload).await);
    }
    client.batch_execute("COMMIT").await.unwrap();
    let returns = "statecast_broker_returns_total";
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, passing).await, 0, "other keys must pass");
    // Tried, and tried again.
    assert!(relay.wait_for_metric(returns, 1.5, ARRIVAL_LIMIT).await);
    let early = |seen: Vec<crate::checker::Seen>| seen.iter().any(|s| waiting.contains(&s.event_id));
    assert!(!early(consumer.seen()), "the key's later events were sent");
    relay.kill9();
    relay = bench.relay().await;
    assert!(relay.wait_for_metric(returns, 0.5, ARRIVAL_LIMIT).await);
    assert!(!early(consumer.seen()), "the successor sent the key's later events");
    bench.topology.bind("order.refused").await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// Everything after the event that the cursor waits for may be confirmed, the cursor stays until that one is set aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cursor_stays_before_the_first_event_that_is_not_settled() {
    let bench = bench("order.#").await;
    let consumer = bench.consumer();
    let client = bench.client().await;
    let relay = bench.relay().await;
    let first = publish(&client, "ghost", "g", "changed", r#"{"n": 1}"#).await;
    let mut rest = Vec::new();
    for n in 1..=50 {
        rest.push(publish(&client, "order", &format!("k{n}"), "changed", r#"{"n": 1}"#).await);
    }
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, rest.iter().copied()).await, 0);
    let confirmed = "statecast_events_confirmed_total";
    assert!(relay.wait_for_metric(confirmed, 49.5, ARRIVAL_LIMIT).await);
    let cursor = async || {
        let sql = "SELECT confirmed, coalesce(window_seq, 0), \
                          pg_visible_in_snapshot((SELECT xid FROM statecast.outbox WHERE seq = 1), snapshot) \
                     FROM statecast.cursor";
        let row = client.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1), row.get::<_, bool>(2))
    };
    assert_eq!(cursor().await, (0, 0, false));
    bench.topology.bind("ghost.#").await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first]).await, 0);
    let deadline = tokio::time::Instant::now() + ARRIVAL_LIMIT;
    while cursor().await.0 < 51 {
        assert!(tokio::time::Instant::now() < deadline, "{:?}", cursor().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.duplicates, 0);
}
