//! What the broker, or a limit, refuses: told apart event by event, and never overtaken by its own key.

use std::collections::HashSet;
use std::time::Duration;

use tokio_postgres::Client;
use uuid::Uuid;

use crate::relay::{ARRIVAL_LIMIT, Bench, wait_for_reason};
use crate::servers;

async fn publish(client: &Client, kind: &str, key: &str, event: &str, payload: &str) -> Uuid {
    let sql = "SELECT statecast.publish($1, $2, $3, $4::text::json)";
    client.query_one(sql, &[&kind, &key, &event, &payload]).await.unwrap().get(0)
}

async fn bench(binding: &str) -> Bench {
    let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
    bench.topology.declare_queue(binding, &[]).await;
    bench
}

/// Routable and unroutable events alternate in one burst, so that returns and confirms of many messages come together.
/// Each answer must find its own event: none confirmed that was returned, none repeated that was confirmed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returns_in_a_burst_find_their_own_events() {
    const PAIRS: i64 = 500;
    let bench = bench("order.#").await;
    let consumer = bench.consumer();
    let mut client = bench.client().await;
    let mut relay = bench.relay().await;
    let burst = client.transaction().await.unwrap();
    let sql = "SELECT statecast.publish(kind, kind || i, 'changed', json_build_object('n', 1)::text::json)
                 FROM generate_series(1, $1::bigint) i, unnest(ARRAY['ghost', 'order']) kind ORDER BY i, kind";
    burst.execute(sql, &[&PAIRS]).await.unwrap();
    burst.commit().await.unwrap();
    let orders = |seen: &[crate::consumer::Delivery]| {
        seen.iter().filter(|delivery| delivery.routing_key.starts_with("order.")).count() as i64
    };
    assert!(consumer.wait_for(ARRIVAL_LIMIT, |seen| orders(seen) >= PAIRS).await);
    // Every ghost was returned, and is tried again until it has a queue.
    let returns = "statecast_broker_returns_total";
    assert!(relay.wait_for_metric(returns, PAIRS as f64 - 0.5, ARRIVAL_LIMIT).await);
    assert_eq!(relay.metric("statecast_events_confirmed_total").await, PAIRS as f64);
    relay.kill9();
    // What the cursor has passed is not read again: every ghost must be.
    bench.topology.bind("ghost.#").await;
    let relay = bench.relay().await;
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.committed as i64, 2 * PAIRS);
}

/// The same without the restart: what was confirmed in the burst is not sent a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returns_in_a_burst_repeat_nothing_that_was_confirmed() {
    const PAIRS: i64 = 300;
    let bench = bench("order.#").await;
    let consumer = bench.consumer();
    let client = bench.client().await;
    let sql = "SELECT statecast.publish(kind, kind || i, 'changed', json_build_object('n', 1)::text::json)
                 FROM generate_series(1, $1::bigint) i, unnest(ARRAY['ghost', 'order']) kind ORDER BY i, kind";
    client.execute(sql, &[&PAIRS]).await.unwrap();
    let relay = bench.relay().await;
    let returns = "statecast_broker_returns_total";
    assert!(relay.wait_for_metric(returns, PAIRS as f64 - 0.5, ARRIVAL_LIMIT).await);
    bench.topology.bind("ghost.#").await;
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.duplicates, 0, "{}", verdict.summary());
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

/// An event over the limit ends the session before the broker sees it: it is named with both numbers, the cursor stays
/// before it, and what came before it has been sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_too_large_event_is_named_and_held() {
    let bench = bench("order.#").await;
    let consumer = bench.consumer();
    let client = bench.client().await;
    let before = publish(&client, "order", "a", "changed", r#"{"n": 1}"#).await;
    let text = "x".repeat(5000);
    let large =
        publish(&client, "order", "a", "changed", &format!("{{\"n\": 2, \"text\": \"{text}\"}}")).await;
    publish(&client, "order", "a", "changed", r#"{"n": 3}"#).await;
    let mut relay = bench.invocation.clone().with("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "4KiB").start();
    let status = relay.wait(ARRIVAL_LIMIT).await.expect("the relay goes on");
    let log = relay.log();
    assert_eq!(status.code(), Some(1), "{log}");
    for part in [&large.to_string(), "too_large", "max_message_size = 4096"] {
        assert!(log.contains(part), "{part:?} is not said\n{log}");
    }
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [before]).await, 0);
    let seen: HashSet<Uuid> = consumer.seen().iter().map(|seen| seen.event_id).collect();
    assert_eq!(seen, HashSet::from([before]));
    // With the remedy everything arrives.
    let relay = bench.relay().await;
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.duplicates, 0, "the cursor stood right before it");
}

/// Everything after the event that the cursor waits for may be confirmed, the cursor stays.
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
    wait_for_reason(&relay, &HashSet::from([first])).await;
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
