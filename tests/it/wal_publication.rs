//! Somebody edits the publication while it streams. Promise 1 holds: nothing is lost, nothing is invented. Promise 2 is
//! broken at most by the events that the stream did not bring, each of which is counted, and the first of which ends the
//! stream.
//!
//! Knobs: `STATECAST_TEST_WAL_EDITS` (3 of each kind: long, short, long, …), `STATECAST_TEST_SEED`.

use std::time::Duration;

use tokio_postgres::Client;

use crate::relay::knob;
use crate::wal_bench::{
    WalBench, endless, moment, wait_not_streaming, wait_polled, wait_streamed, wait_streaming,
};

const MISSED: &str = "statecast_wal_missed_total";
/// `source.wal.reconcile_interval` of the bench.
const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
/// Two intervals, and what a busy machine needs on top.
const STOPS_WITHIN: Duration = Duration::from_secs(2 * RECONCILE_INTERVAL.as_secs() + 3);
/// Ends, sometimes, before a reconcile has seen it.
const SHORT: Duration = Duration::from_millis(400);

/// What somebody does, and how it is undone.
#[derive(Clone, Copy, Debug)]
struct Edit {
    breaks: &'static str,
    mends: &'static str,
}

const DROPPED: Edit = Edit {
    breaks: "DROP PUBLICATION statecast",
    mends: "CREATE PUBLICATION statecast FOR TABLE statecast.outbox
              WITH (publish = 'insert', publish_via_partition_root = true)",
};
const NOTHING_PUBLISHED: Edit = Edit {
    breaks: "ALTER PUBLICATION statecast SET (publish = 'update')",
    mends: "ALTER PUBLICATION statecast SET (publish = 'insert')",
};
const OUTBOX_REMOVED: Edit = Edit {
    breaks: "ALTER PUBLICATION statecast DROP TABLE statecast.outbox",
    mends: "ALTER PUBLICATION statecast ADD TABLE statecast.outbox",
};
/// Rows of chunks appear under the chunks' own names.
const NOT_VIA_ROOT: Edit = Edit {
    breaks: "ALTER PUBLICATION statecast SET (publish_via_partition_root = false)",
    mends: "ALTER PUBLICATION statecast SET (publish_via_partition_root = true)",
};

impl Edit {
    async fn breaks(self, client: &Client) {
        client.batch_execute(self.breaks).await.unwrap();
    }

    async fn mends(self, client: &Client) {
        client.batch_execute(self.mends).await.unwrap();
    }
}

/// Under load: breaks and mends, with short gaps and with long ones that `statecast install` ends.
async fn edits(edit: Edit) {
    let bench = WalBench::start(&[]).await;
    let (load, stop, mut moments) = endless();
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let relay = bench.streaming().await;
    let writing = bench.load(load);
    for number in 0..knob("STATECAST_TEST_WAL_EDITS", 3) {
        wait_streamed(&relay, moments.usize(1..200)).await;
        moment(&mut moments, Duration::from_millis(20)).await;
        edit.breaks(&sql).await;
        if number % 2 == 1 {
            moment(&mut moments, SHORT).await;
            edit.mends(&sql).await;
        } else {
            let took = wait_not_streaming(&relay, STOPS_WITHIN).await;
            println!("{}: the stream ended after {took:?}", edit.breaks);
            wait_polled(&relay, 200).await;
            assert_eq!(
                relay.metric("statecast_wal_streaming").await,
                0.0,
                "it streams what is not published"
            );
            bench.install().await;
            wait_streaming(&relay).await;
        }
    }
    wait_streamed(&relay, 100).await;
    stop.cancel();
    writing.await.unwrap();
    let committed = crate::checker::read_committed(&sql).await.unwrap();
    consumer.wait_for_ids(crate::relay::ARRIVAL_LIMIT, committed.iter().map(|row| row.event_id)).await;
    // Everything has arrived: whatever was missed is counted.
    let missed = relay.metric(MISSED).await;
    assert_eq!(relay.metric("statecast_sessions_total").await, 0.0, "only the stream ends");
    let verdict = bench.finish(&mut [relay], &consumer).await;
    println!("missed {missed}");
    let unhurt = [&verdict.lost, &verdict.invented, &verdict.altered].map(|ids| ids.len());
    assert_eq!((unhurt, verdict.renamed.len()), ([0; 3], 0), "{}", verdict.summary());
    assert!(verdict.inversion_count() as f64 <= missed, "missed {missed}: {}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_publication_dropped_and_made_again() {
    edits(DROPPED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_publication_that_publishes_nothing_for_a_while() {
    edits(NOTHING_PUBLISHED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_publication_without_the_outbox_for_a_while() {
    edits(OUTBOX_REMOVED).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_publication_of_chunks_instead_of_the_outbox_for_a_while() {
    edits(NOT_VIA_ROOT).await;
}

/// The shortest schedule: one event is not published, the next of its key is. The stream brings the second, the
/// reconcile finds the first: one inversion, one event counted, and no stream until it has started afresh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_publication_one_missed_event_is_counted_once_and_ends_the_stream() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let mut relay = bench.streaming().await;
    bench.publish("order", "k", 1).await;
    let stream = bench.slots(&sql).await;
    // In one transaction with the event, so that no reconcile falls between.
    sql.batch_execute(&format!(
        "BEGIN; {}; SELECT statecast.publish('order', 'k', 'changed', '{{\"n\": 2}}'); COMMIT;
         BEGIN; {}; SELECT statecast.publish('order', 'k', 'changed', '{{\"n\": 3}}'); COMMIT",
        NOTHING_PUBLISHED.breaks, NOTHING_PUBLISHED.mends
    ))
    .await
    .unwrap();
    assert!(relay.wait_for_metric(MISSED, 0.0, STOPS_WITHIN).await, "nothing was missed");
    let committed = crate::checker::read_committed(&sql).await.unwrap();
    let missing = consumer.wait_for_ids(STOPS_WITHIN, committed.iter().map(|row| row.event_id)).await;
    assert_eq!(missing, 0);
    assert!(relay.wait_for_log("did not bring", STOPS_WITHIN).await, "a miss ends the stream");
    wait_streaming(&relay).await;
    assert_ne!(bench.slots(&sql).await, stream, "another stream");
    bench.publish("order", "k", 4).await;
    let missed = relay.metric(MISSED).await;
    assert!(relay.running());
    let verdict = bench.finish(&mut [relay], &consumer).await;
    assert!(verdict.lost.is_empty() && verdict.invented.is_empty(), "{}", verdict.summary());
    assert!(verdict.inversion_count() as f64 <= missed && missed <= 2.0, "{missed}: {}", verdict.summary());
}
