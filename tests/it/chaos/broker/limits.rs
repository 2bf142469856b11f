//! Events that the broker cannot take as they are. Each is parked by itself; everything else flows.

use std::time::{Duration, Instant};

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};
use uuid::Uuid;

use crate::chaos::trouble::{LIMIT, Trouble};
use crate::relay::Bench;
use crate::servers;

/// An event of a key, `payload` and `headers` bytes long.
async fn large(trouble: &Trouble, key: &str, n: i64, payload: i32, headers: i32) -> Uuid {
    let client = trouble.bench.client().await;
    let sql = "SELECT statecast.publish('big', $1, 'changed',
                 json_build_object('n', $2::bigint, 'pad', repeat('x', $3)),
                 headers => CASE WHEN $4 > 0 THEN json_build_object('pad', repeat('y', $4)) END)";
    client.query_one(sql, &[&key, &n, &payload, &headers]).await.unwrap().get(0)
}

/// Waits until the table holds the event in a state, and why.
async fn wait_set_aside(trouble: &Trouble, event: Uuid, state: &str) -> Option<String> {
    let client = trouble.bench.client().await;
    let begun = Instant::now();
    loop {
        let sql = "SELECT state, reason FROM statecast.parked WHERE event_id = $1";
        match client.query_opt(sql, &[&event]).await.unwrap() {
            Some(row) if row.get::<_, &str>(0) == state => return row.get(1),
            row => {
                let found = row.map(|row| row.get::<_, String>(0));
                assert!(begun.elapsed() < LIMIT, "{event} is {found:?}\n{}", trouble.relay.log());
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Under load an event comes that is too large, and one more of its key. They wait for a person, all else arrives.
async fn too_large(config: &str, payload: i32, headers: i32) {
    let options = RabbitmqOptions { config: vec![config.to_owned()], ..Default::default() };
    let broker = Rabbitmq::start(options).await.unwrap();
    let trouble = Trouble::begin(Bench::new(servers::fresh_database().await, &broker).await).await;
    let culprit = large(&trouble, "b", 1, payload, headers).await;
    let behind = large(&trouble, "b", 2, 10, 0).await;
    let other = large(&trouble, "c", 1, 10, 0).await;
    assert_eq!(wait_set_aside(&trouble, culprit, "parked").await.as_deref(), Some("too_large"));
    wait_set_aside(&trouble, behind, "queued").await;
    assert_eq!(trouble.consumer.wait_for_ids(LIMIT, [other]).await, 0, "other keys flow");
    trouble.flows(200).await;
    let seen = trouble.consumer.seen();
    assert!(!seen.iter().any(|seen| [culprit, behind].contains(&seen.event_id)));
    let client = trouble.bench.client().await;
    let discard = ["parked", "discard", "--key", "big:b", "--why", "nobody can take it"];
    trouble.bench.invocation.arguments(&discard).succeed().await;
    wait_gone(&client, culprit).await;
    trouble
        .end_without(&[culprit, behind], |verdict| {
            assert_eq!(verdict.lost, [culprit, behind], "discarded, and nothing else");
            verdict.lost.clear();
        })
        .await;
}

/// Waits until a person's decision is done.
async fn wait_gone(client: &tokio_postgres::Client, event: Uuid) {
    let begun = Instant::now();
    let sql = "SELECT count(*) FROM statecast.parked WHERE event_id = $1 AND state <> 'discarded'";
    while client.query_one(sql, &[&event]).await.unwrap().get::<_, i64>(0) > 0 {
        assert!(begun.elapsed() < LIMIT, "it is not discarded");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_limit_of_its_own_parks_the_message_over_it() {
    too_large("max_message_size = 20000", 30_000, 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_frame_size_parks_the_headers_over_it() {
    too_large("frame_max = 8192", 10, 9_000).await;
}
