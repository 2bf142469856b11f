//! `run --until-idle`, `run --from now`, and the shape of `status --json`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::consumer::Consumer;
use crate::relay::Bench;

const LIMIT: Duration = Duration::from_secs(60);
/// For a run that has nothing to do, its start included.
const PROMPT: Duration = Duration::from_secs(10);

/// Runs to the end; how long it took.
async fn until_idle(bench: &Bench) -> Duration {
    let began = Instant::now();
    bench.invocation.arguments(&["run", "--until-idle"]).succeed().await;
    began.elapsed()
}

async fn status(bench: &Bench) -> Value {
    serde_json::from_str(&bench.invocation.arguments(&["status", "--json"]).succeed().await).unwrap()
}

#[tokio::test]
async fn an_empty_outbox_is_idle_at_once() {
    let bench = Bench::shared().await;
    for _ in 0..3 {
        let took = until_idle(&bench).await;
        assert!(took < PROMPT, "{took:?}");
    }
    let status = status(&bench).await;
    assert_eq!((&status["pending"], &status["confirmed"]), (&0.into(), &0.into()));
}

#[tokio::test]
async fn rows_that_were_rolled_back_are_idle_at_once() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    for _ in 0..2 {
        client
            .batch_execute(
                "BEGIN; SELECT statecast.publish('order', '1', 'placed', '{}') FROM generate_series(1, 100); ROLLBACK;
                 BEGIN; SAVEPOINT s; SELECT statecast.publish('order', '1', 'placed', '{}'); ROLLBACK TO s; COMMIT",
            )
            .await
            .unwrap();
        let took = until_idle(&bench).await;
        assert!(took < PROMPT, "{took:?}");
    }
    let consumer = bench.consumer();
    assert!(!consumer.wait_for(Duration::from_secs(1), |deliveries| !deliveries.is_empty()).await);
    let status = status(&bench).await;
    assert_eq!((&status["pending"], &status["confirmed"]), (&0.into(), &0.into()));
}

/// What a transaction that is still open has written is not waited for; what was committed before the start is.
#[tokio::test]
async fn everything_committed_before_the_start_is_settled_at_the_end() {
    let bench = Bench::shared().await;
    let open = bench.client().await;
    open.batch_execute("BEGIN; SELECT statecast.publish('order', 'open', 'placed', '{}')").await.unwrap();
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
               SELECT 'order', (n % 50)::text, 'changed', json_build_object('n', n) FROM generate_series(1, 3000) n";
    bench.client().await.batch_execute(sql).await.unwrap();
    until_idle(&bench).await;
    let settled = status(&bench).await;
    assert_eq!((&settled["pending"], &settled["confirmed"]), (&0.into(), &3000.into()));
    open.batch_execute("COMMIT").await.unwrap();
    assert_eq!(status(&bench).await["pending"], 1);
    let took = until_idle(&bench).await;
    assert!(took < PROMPT, "{took:?}");
    let consumer = bench.consumer();
    assert!(consumer.wait_for(LIMIT, |deliveries| deliveries.len() >= 3001).await);
    let ids: BTreeSet<_> = consumer.seen().iter().map(|seen| seen.event_id).collect();
    assert_eq!((ids.len(), consumer.deliveries().len()), (3001, 3001), "each once");
}

/// An event that is refused is not settled: the run does not claim to be done.
#[tokio::test]
async fn a_refused_event_is_not_idle() {
    let bench =
        Bench::without_queue(crate::servers::fresh_database().await, crate::servers::rabbitmq().await).await;
    bench.publish("ghost", "g", 1).await;
    let mut relay = bench.invocation.arguments(&["run", "--until-idle"]).start();
    assert!(relay.wait_for_metric("statecast_broker_returns_total", 1.0, LIMIT).await);
    assert!(relay.running(), "{}", relay.log());
    bench.topology.declare_queue("#", &[]).await;
    let status = relay.wait(LIMIT).await.expect("it ends once a queue is bound");
    assert!(status.success(), "{}", relay.log());
    let consumer = bench.consumer();
    assert!(consumer.wait_for(LIMIT, |deliveries| deliveries.len() == 1).await);
}

#[tokio::test]
async fn from_now_skips_what_was_committed_and_nothing_else() {
    let bench = Bench::shared().await;
    for n in 1..=5 {
        bench.publish("order", "k01", n).await;
    }
    // Older than the pipeline, committed after its start: it belongs to the pipeline.
    let open = bench.client().await;
    open.batch_execute("BEGIN").await.unwrap();
    let late =
        open.query_one("SELECT statecast.publish('order', 'late', 'changed', '{\"n\": 1}')", &[]).await;
    let late = late.unwrap().get(0);
    bench.invocation.arguments(&["run", "--from", "now", "--until-idle"]).succeed().await;
    let first = status(&bench).await;
    assert_eq!((&first["pending"], &first["confirmed"]), (&0.into(), &0.into()));
    open.batch_execute("COMMIT").await.unwrap();
    let new = bench.publish("order", "k01", 6).await;
    // An existing pipeline goes on where it is.
    bench.invocation.arguments(&["run", "--from", "now", "--until-idle"]).succeed().await;
    let consumer = Consumer::start(&bench.topology.url, &bench.topology.queue);
    assert_eq!(consumer.wait_for_ids(LIMIT, [late, new]).await, 0);
    assert_eq!(consumer.deliveries().len(), 2);
    assert_eq!(status(&bench).await["confirmed"], 2);
}

#[tokio::test]
async fn status_has_exactly_the_documented_keys() {
    const KEYS: [&str; 17] = [
        "broker",
        "chunks",
        "confirmed",
        "discarded",
        "epoch",
        "leader",
        "lease_ms",
        "mode",
        "mode_reason",
        "oldest_pending_ms",
        "parked",
        "pending",
        "pipeline",
        "ready",
        "reasons",
        "schema",
        "wal",
    ];
    let bench = Bench::shared().await;
    // Before the first run, with something pending, led, and after.
    let mut seen = vec![status(&bench).await];
    bench.publish("order", "k01", 1).await;
    seen.push(status(&bench).await);
    let relay = bench.relay().await;
    seen.push(status(&bench).await);
    drop(relay);
    until_idle(&bench).await;
    seen.push(status(&bench).await);
    for status in seen {
        let keys: Vec<&str> = status.as_object().unwrap().keys().map(String::as_str).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, KEYS, "{status}");
        assert_eq!(status["schema"], 1);
        assert!(status["wal"].is_object() && status["chunks"].is_object() && status["broker"].is_object());
        assert!(status["reasons"].is_array() && status["ready"].is_boolean());
        for number in ["epoch", "pending", "parked", "confirmed", "discarded"] {
            assert!(status[number].is_i64(), "{number}: {status}");
        }
    }
}
