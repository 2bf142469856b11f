//! The relay's own writes fail, wait, or pile up row versions.

use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions};

use crate::chaos::trouble::{LIMIT, Trouble};
use crate::pg_proxy::{Failure, PgProxy, Rule};
use crate::relay::Bench;
use crate::servers::{self, connect};

/// How long the cursor row is locked.
const LOCKED: Duration = Duration::from_secs(10);
/// How long the old snapshot is held.
const HELD: Duration = Duration::from_secs(10);
/// From commit to delivery, for one of a few events that are timed while a load runs.
const LATENCY_MAX: Duration = Duration::from_secs(2);

/// The disk is full for some of the keeper's writes; the application's own still fit.
async fn disk_full(failure: Failure) {
    let mut bench = Bench::shared().await;
    let proxy = PgProxy::start(format!("127.0.0.1:{}", servers::postgres().await.port())).await;
    bench.invocation = bench.invocation.with("STATECAST_POSTGRES__URL", &proxy.url(&bench.url));
    let trouble = Trouble::begin(bench).await;
    for fails in [1, 3] {
        let (before, goal) = (trouble.failures().await, proxy.failed() + fails);
        proxy.fail(Rule {
            words: vec!["UPDATE statecast.cursor", "prune_seq = $"],
            passes: 3,
            fails,
            failure,
            sqlstate: "53100",
            message: "could not extend file \"base/5/2619\": No space left on device",
        });
        let begun = Instant::now();
        while proxy.failed() < goal {
            assert!(begun.elapsed() < LIMIT, "only {} writes failed", proxy.failed());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        trouble.flows(200).await;
        assert!(trouble.failures().await > before, "a write that failed ends the session");
    }
    let log = trouble.relay.log();
    assert!(log.contains("No space left on device") && log.contains("53100"), "{log}");
    trouble.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_has_no_space_for_the_cursor() {
    disk_full(Failure::Refused).await;
}

/// Written, and reported as not written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_answers_a_cursor_write_with_the_wrong_answer() {
    disk_full(Failure::AnswerLost).await;
}

/// Somebody holds a lock on the cursor row. Events cannot be ticked off meanwhile, and the application does not notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_cursor_row_is_locked_for_a_while() {
    let trouble = Trouble::begin(Bench::shared().await).await;
    let client = trouble.bench.client().await;
    client.batch_execute("BEGIN; SELECT FROM statecast.cursor FOR UPDATE").await.unwrap();
    let begun = Instant::now();
    while begun.elapsed() < LOCKED {
        trouble.written(50).await;
    }
    client.batch_execute("ROLLBACK").await.unwrap();
    let released = Instant::now();
    trouble.flows(200).await;
    trouble.relay.wait_ready(LIMIT).await.unwrap();
    println!("ready {:?} after the lock was released", released.elapsed());
    trouble.end().await;
}

/// How long a few events take from their commit to the consumer: the longest, and the median.
async fn latency(trouble: &Trouble) -> (Duration, Duration) {
    let client = trouble.bench.client().await;
    let mut took = Vec::new();
    for n in 0..30 {
        let sql = "SELECT statecast.publish('timed', $1, 'changed', '{}')";
        let key = format!("{n}");
        let id: uuid::Uuid = client.query_one(sql, &[&key]).await.unwrap().get(0);
        let begun = Instant::now();
        assert_eq!(trouble.consumer.wait_for_ids(LIMIT, [id]).await, 0);
        took.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    took.sort_unstable();
    (took[took.len() - 1], took[took.len() / 2])
}

/// A report runs for long. None of the cursor row's versions can be cleared away until it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_old_snapshot_keeps_every_version_of_the_cursor_row() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    let trouble = Trouble::begin(Bench::new(url.clone(), servers::rabbitmq().await).await).await;
    let (report, client) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let pages = async || -> i64 {
        let sql = "SELECT pg_relation_size('statecast.cursor') / current_setting('block_size')::int";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let (before, pages_before) = (latency(&trouble).await, pages().await);
    report
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM statecast.outbox")
        .await
        .unwrap();
    let held = Instant::now();
    while held.elapsed() < HELD {
        trouble.written(50).await;
    }
    let (during, pages_during) = (latency(&trouble).await, pages().await);
    report.batch_execute("COMMIT").await.unwrap();
    let (after, pages_after) = (latency(&trouble).await, pages().await);
    println!("cursor row: {pages_before} pages, {pages_during} with the snapshot, {pages_after} after it");
    println!("latency (longest, median): {before:?}, {during:?} with the snapshot, {after:?} after it");
    assert!(pages_during > pages_before, "the snapshot held nothing back: the test did not do its work");
    assert!(during.0 < LATENCY_MAX, "{during:?}");
    trouble.end().await;
}
