//! Transactions of every shape through the stream: late, large, spilled, interleaved, copied; the outbox changes under it.
//!
//! Knobs: `STATECAST_TEST_BIG_ROWS` (events of one transaction, 100,000; the full figure is 2,000,000),
//! `STATECAST_TEST_BULK_ROWS` (rows of one transaction elsewhere, 1,500,000).

use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::checker::{Verdict, read_committed};
use crate::consumer::Consumer;
use crate::process::Relay;
use crate::relay::knob;
use crate::schedules::Writer;
use crate::wal_bench::{
    Reads, WalBench, arrived, endless, reads, wait_for_key, wait_streamed, wait_streaming, wait_until,
};

/// What the relay may have resident beside its read-ahead: program, connections, allocator. Idle it has 19.5 MiB, of
/// which the program's pages are a part: an unoptimised one has 6 MiB more of them.
const MEMORY_BASE: u64 = if cfg!(debug_assertions) { 32 << 20 } else { 24 << 20 };
/// `relay.read_ahead`.
const READ_AHEAD: u64 = 8 << 20;
/// For a large transaction, per event; and the start.
const ARRIVAL_BASE: Duration = Duration::from_secs(60);
const ARRIVAL_PER_EVENT: Duration = Duration::from_millis(1);

/// A bench, its relay and its consumer, from the moment it streams.
struct Streaming {
    bench: WalBench,
    sql: Client,
    consumer: Consumer,
    relay: Relay,
    before: Reads,
}

impl Streaming {
    async fn start(bench: WalBench) -> Streaming {
        let (sql, consumer) = (bench.client().await, bench.consumer());
        let relay = bench.streaming().await;
        let before = reads(&relay).await;
        Streaming { bench, sql, consumer, relay, before }
    }

    /// Waits for everything, proves that the stream alone brought it, and judges.
    async fn all_was_streamed(self) -> Verdict {
        let committed = read_committed(&self.sql).await.unwrap();
        let limit = ARRIVAL_BASE + ARRIVAL_PER_EVENT * u32::try_from(committed.len()).unwrap();
        let missing = self.consumer.wait_for_ids(limit, committed.iter().map(|row| row.event_id)).await;
        assert_eq!(missing, 0, "of {}", committed.len());
        let after = reads(&self.relay).await;
        let streamed = Reads { wal: committed.len() as f64, poll: 0.0 };
        assert_eq!(Reads { wal: after.wal, poll: after.poll - self.before.poll }, streamed);
        assert_eq!(self.relay.metric("statecast_wal_missed_total").await, 0.0);
        assert_eq!(self.relay.metric("statecast_wal_streaming").await, 1.0);
        let verdict = self.bench.finish(&mut [self.relay], &self.consumer).await;
        verdict.assert_clean();
        assert_eq!(verdict.duplicates, 0);
        verdict
    }
}

/// Writes counters `from ..= to` in one statement, over keys `<prefix>00` to `<prefix>96`: in order per key.
fn rows(prefix: &str, from: u32, to: u32, bytes: usize) -> String {
    format!(
        "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
           SELECT 'order', '{prefix}' || i % 97, 'changed',
                  json_build_object('n', i, 'text', repeat('x', {bytes}))
             FROM generate_series({from}, {to}) i;"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_transaction_that_began_first_and_commits_last() {
    let run = Streaming::start(WalBench::start(&[]).await).await;
    let (oldest, other) = (Writer::new(&run.bench.url).await, Writer::new(&run.bench.url).await);
    oldest.begin().await;
    oldest.write("oldest", 1).await;
    for n in 1..=50 {
        other.write("other", n).await;
    }
    wait_for_key(&run.consumer, "other", &(1..=50).collect::<Vec<_>>()).await;
    // Some reconciles later, too.
    wait_until(
        &run.sql,
        &format!(
            "EXISTS (SELECT FROM statecast.cursor WHERE pipeline = '{}' AND pg_snapshot_xmax(snapshot) >
               (SELECT xid FROM statecast.outbox WHERE aggregate_id = 'other' ORDER BY seq DESC LIMIT 1))",
            run.bench.pipeline
        ),
    )
    .await;
    assert!(!arrived(&run.consumer, "oldest"));
    oldest.write("oldest", 2).await;
    oldest.commit().await;
    other.write("oldest", 3).await;
    run.all_was_streamed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_savepoints_rolled_back_inside_a_large_transaction() {
    let run = Streaming::start(WalBench::start(&[]).await).await;
    let undone = rows("undone", 1, 2_000, 100);
    let nested =
        format!("SAVEPOINT b; {} SAVEPOINT c; {undone} ROLLBACK TO b; {undone}", rows("no", 1, 500, 0));
    run.sql
        .batch_execute(&format!(
            "BEGIN; {} SAVEPOINT a; {undone} ROLLBACK TO a; {} {nested} ROLLBACK TO a; RELEASE a; {} COMMIT",
            rows("k", 1, 4_000, 100),
            rows("k", 4_001, 6_000, 100),
            rows("k", 6_001, 12_000, 100),
        ))
        .await
        .unwrap();
    // The second part was written after savepoint a, too: rolled back with it.
    let verdict = run.all_was_streamed().await;
    assert_eq!(verdict.committed, 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_interleaved_transactions_that_are_spilled() {
    let run = Streaming::start(WalBench::start(&[("logical_decoding_work_mem", "64kB")]).await).await;
    let (one, two) = (Writer::new(&run.bench.url).await, Writer::new(&run.bench.url).await);
    one.begin().await;
    two.begin().await;
    for part in 0..8 {
        one.run(&rows("one", part * 250 + 1, part * 250 + 250, 500)).await;
        two.run(&rows("two", part * 250 + 1, part * 250 + 250, 500)).await;
    }
    two.commit().await;
    two.run(&rows("two", 2_001, 2_050, 500)).await;
    one.commit().await;
    let spilled = format!(
        "(SELECT sum(spill_txns) >= 2 AND sum(spill_bytes) > 1000000 FROM pg_stat_replication_slots
           WHERE starts_with(slot_name, '{}'))",
        run.bench.slot_prefix()
    );
    wait_until(&run.sql, &spilled).await;
    let counted = run.relay.wait_for_metric("statecast_wal_spill_bytes_total", 1e6, ARRIVAL_BASE).await;
    assert!(counted, "statecast_wal_spill_bytes_total");
    run.all_was_streamed().await;
}

/// A COPY that evaluates no volatile default writes many rows with one WAL record: they share an LSN.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_copy_of_many_rows_that_share_lsns() {
    const ROWS: usize = 5_000;
    let run = Streaming::start(WalBench::start(&[]).await).await;
    let wal = "SELECT pg_current_wal_insert_lsn()::text";
    let from: String = run.sql.query_one(wal, &[]).await.unwrap().get(0);
    let sink = run.sql.copy_in(
        "COPY statecast.outbox (event_id, aggregate_type, aggregate_id, event_type, payload, recorded_at) FROM STDIN",
    );
    let sink = sink.await.unwrap();
    let mut sink = pin!(sink);
    for n in 1..=ROWS {
        let (id, key) = (Uuid::now_v7(), n % 97);
        let line = format!("{id}\torder\tk{key}\tchanged\t{{\"n\": {n}}}\t2026-01-01 00:00:00+00\n");
        sink.send(Bytes::from(line)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), ROWS as u64);
    // Fewer records than rows: they really share them.
    if run.sql.batch_execute("CREATE EXTENSION pg_walinspect").await.is_ok() {
        let sql = "SELECT count(*) FROM pg_get_wal_records_info($1::text::pg_lsn, pg_current_wal_flush_lsn())
                    WHERE resource_manager = 'Heap2' AND record_type LIKE 'MULTI_INSERT%'";
        let records: i64 = run.sql.query_one(sql, &[&from]).await.unwrap().get(0);
        assert!(records > 0 && records < ROWS as i64 / 10, "{records} records of {ROWS} rows");
    }
    run.all_was_streamed().await;
}

/// Somebody adds columns to the outbox, and takes them away, under load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_columns_of_the_outbox_change_in_mid_stream() {
    let run = Streaming::start(WalBench::start(&[]).await).await;
    let (load, stop, _) = endless();
    let writing = run.bench.load(load);
    for change in [
        "ALTER TABLE statecast.outbox ADD COLUMN extra text",
        "ALTER TABLE statecast.outbox ADD COLUMN filled jsonb NOT NULL DEFAULT '{\"a\": [1, 2]}'",
        "ALTER TABLE statecast.outbox ALTER COLUMN extra SET DEFAULT 'not null any more'",
        "ALTER TABLE statecast.outbox DROP COLUMN filled",
    ] {
        wait_streamed(&run.relay, 50).await;
        run.sql.batch_execute(change).await.unwrap();
    }
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload, extra)
               VALUES ('order', 'extra', 'changed', '{\"n\": 1}', 'of a person')";
    run.sql.batch_execute(sql).await.unwrap();
    wait_streamed(&run.relay, 50).await;
    stop.cancel();
    writing.await.unwrap();
    run.all_was_streamed().await;
}

fn big_rows() -> u32 {
    u32::try_from(knob("STATECAST_TEST_BIG_ROWS", 100_000)).unwrap()
}

async fn write_big(client: &Client) {
    let begun = Instant::now();
    client.batch_execute(&rows("k", 1, big_rows(), 100)).await.unwrap();
    println!("{} events in one transaction, written in {:?}", big_rows(), begun.elapsed());
}

#[track_caller]
fn assert_bounded(relay: &Relay) {
    let (peak, bound) = (relay.memory_peak(), MEMORY_BASE + 3 * READ_AHEAD);
    println!("resident at most {} KiB of {} KiB", peak >> 10, bound >> 10);
    assert!(peak < bound, "{peak} bytes resident");
}

/// No limit is near: the whole transaction is streamed, and never held as a whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_one_huge_transaction_is_streamed_in_bounded_memory() {
    let mut bench = WalBench::start(&[]).await;
    bench.set("STATECAST_SOURCE__WAL__LAG_MAX", "1h");
    bench.set("STATECAST_SOURCE__WAL__RETAIN_MAX", "1000GiB");
    let run = Streaming::start(bench).await;
    println!("idle: {} KiB", run.relay.memory_peak() >> 10);
    let begun = Instant::now();
    write_big(&run.sql).await;
    wait_read(&run.relay, f64::from(big_rows())).await;
    println!("all of it was read after {:?}", begun.elapsed());
    assert_bounded(&run.relay);
    run.all_was_streamed().await;
}

/// At the defaults a transaction that takes longer than `lag_max` is polled; a smaller one is streamed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_one_huge_transaction_at_the_default_limits() {
    let run = Streaming::start(WalBench::start(&[]).await).await;
    let begun = Instant::now();
    write_big(&run.sql).await;
    wait_read(&run.relay, f64::from(big_rows())).await;
    let after = reads(&run.relay).await;
    println!("all of it was read after {:?}: {after:?}", begun.elapsed());
    assert_bounded(&run.relay);
    assert_eq!(run.relay.metric("statecast_wal_missed_total").await, 0.0);
    let committed = read_committed(&run.sql).await.unwrap();
    let limit = ARRIVAL_BASE + ARRIVAL_PER_EVENT * big_rows();
    assert_eq!(run.consumer.wait_for_ids(limit, committed.iter().map(|row| row.event_id)).await, 0);
    wait_streaming(&run.relay).await;
    run.bench.finish(&mut [run.relay], &run.consumer).await.assert_clean();
}

/// Waits until the relay has read so many events, either way.
async fn wait_read(relay: &Relay, events: f64) {
    let limit = ARRIVAL_BASE + ARRIVAL_PER_EVENT * big_rows();
    let read = relay.wait_for_sample("statecast_events_read_total", "", limit, |value| value >= events);
    assert!(read.await, "{:?} of {events}", reads(relay).await);
}

/// The decoder of the stream has to work through a transaction that is none of its business. Events written meanwhile
/// wait for `lag_max`, then they are polled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_stream_stalled_by_a_huge_transaction_elsewhere_gives_way_to_polling() {
    const LAG_MAX: Duration = Duration::from_secs(1);
    const RECONCILE_INTERVAL: Duration = Duration::from_secs(1);
    const SLACK: Duration = Duration::from_secs(5);
    let bulk = knob("STATECAST_TEST_BULK_ROWS", 1_500_000);
    // Decoding from disk takes longer.
    let mut bench = WalBench::start(&[("logical_decoding_work_mem", "64kB")]).await;
    bench.set("STATECAST_SOURCE__WAL__LAG_MAX", "1s");
    let run = Streaming::start(bench).await;
    run.sql.batch_execute("CREATE TABLE bulk (n int)").await.unwrap();
    let elsewhere = run.bench.client().await;
    let sql = format!("INSERT INTO bulk SELECT generate_series(1, {bulk})");
    let filling = tokio::spawn(async move { elsewhere.batch_execute(&sql).await });
    let (mut slowest, mut n, mut silent, mut left) = (Duration::ZERO, 0, 0, 200);
    // To the end of the bulk transaction, and for a while after it.
    while left > 0 {
        left -= usize::from(filling.is_finished());
        n += 1;
        slowest = slowest.max(confirmed(&run, n).await);
        silent += usize::from(run.relay.metric("statecast_wal_streaming").await == 0.0);
    }
    filling.await.unwrap().unwrap();
    println!("{n} events, the slowest after {slowest:?}; no stream at {silent} of them");
    assert!(slowest < LAG_MAX + SLACK, "{slowest:?}");
    // Otherwise nothing was stalled for so long.
    assert!(silent > 0 || slowest < LAG_MAX + RECONCILE_INTERVAL, "it lagged for {slowest:?} and went on");
    wait_streaming(&run.relay).await;
    run.bench.publish("order", "last", 1).await;
    wait_for_key(&run.consumer, "last", &[1]).await;
    run.bench.finish(&mut [run.relay], &run.consumer).await.assert_clean();
}

/// Writes an event and waits for it: how long that took.
async fn confirmed(run: &Streaming, n: i64) -> Duration {
    let begun = Instant::now();
    let payload = format!("{{\"n\": {n}}}");
    let sql = "SELECT statecast.publish('order', 'probe', 'changed', $1::text::json)";
    let id = run.sql.query_one(sql, &[&payload]).await.unwrap().get(0);
    assert_eq!(run.consumer.wait_for_ids(ARRIVAL_BASE, [id]).await, 0, "event {n}");
    begun.elapsed()
}
