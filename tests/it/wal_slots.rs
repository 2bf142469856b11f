//! What a stream leaves behind on the server: nothing, however the relay ends. And what it needs there: where that is
//! missing the relay polls, or says what to do.
//!
//! Knob: `STATECAST_TEST_OUTAGE_SECONDS` (3): how long the broker is away before it starts again, which takes it as long.

use std::time::{Duration, Instant};

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};
use statecast::source::replication;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::load::Load;
use crate::pg;
use crate::process::{Invocation, Relay};
use crate::relay::{Bench, READY_LIMIT, STOP_LIMIT, knob};
use crate::schedules::Writer;
use crate::servers::connect;
use crate::wal_bench::{
    LIMIT, WalBench, endless, reads, wait_for_key, wait_streamed, wait_streaming, wait_until,
};

/// For the server to clear away what a connection leaves when it ends.
const CLEARED_WITHIN: Duration = Duration::from_secs(5);

impl WalBench {
    /// Neither slot nor walsender of the pipeline is left.
    async fn assert_cleared(&self, sql: &Client) {
        let begun = Instant::now();
        loop {
            let (slots, walsenders) = (self.slots(sql).await, self.walsenders(sql).await);
            if slots.is_empty() && walsenders.is_empty() {
                println!("cleared after {:?}", begun.elapsed());
                return;
            }
            assert!(begun.elapsed() < CLEARED_WITHIN, "left behind: {slots:?}, {walsenders:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A relay whose slot is being created, held up by a transaction that stays open.
    async fn creating(&self, sql: &Client) -> (Relay, Writer, u64) {
        let holder = Writer::new(&self.url).await;
        let xid = holder.begin().await;
        holder.write("held", 1).await;
        let relay = self.relay().await;
        self.wait_for_creation(sql, &[xid]).await;
        (relay, holder, xid)
    }
}

async fn stop(relay: &mut Relay) -> Duration {
    let begun = Instant::now();
    relay.sigterm();
    let status = relay.wait(STOP_LIMIT).await;
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", relay.log());
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_slot_is_gone_when_a_streaming_relay_stops_or_dies() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (load, stopped, _) = endless();
    let writing = bench.load(load);
    let mut relay = bench.streaming().await;
    for kill in [false, true] {
        wait_streamed(&relay, 100).await;
        assert_eq!(bench.slots(&sql).await.len(), 1);
        let sql_text = "SELECT count(*) FROM pg_replication_slots WHERE NOT temporary";
        assert_eq!(pg::number(&sql, sql_text).await, 0, "a slot that would stay");
        if kill {
            relay.kill9();
        } else {
            println!("stopped after {:?}", stop(&mut relay).await);
        }
        bench.assert_cleared(&sql).await;
        relay = bench.streaming().await;
    }
    stopped.cancel();
    writing.await.unwrap();
    bench.finish(&mut [relay], &consumer).await.assert_clean();
    bench.assert_cleared(&sql).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_slot_in_the_making_is_gone_when_the_relay_stops() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (mut relay, holder, _) = bench.creating(&sql).await;
    println!("stopped after {:?}", stop(&mut relay).await);
    // The transaction is still open: nobody but the relay can have ended the walsender.
    bench.assert_cleared(&sql).await;
    holder.commit().await;
    let relay = bench.streaming().await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// A walsender that waits for a transaction does not notice that its client is dead: the successor ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_slot_in_the_making_of_a_dead_relay_is_cleared_by_its_successor() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (mut relay, holder, xid) = bench.creating(&sql).await;
    let [dead] = bench.walsenders(&sql).await[..] else { panic!("one walsender") };
    relay.kill9();
    assert_eq!(bench.walsenders(&sql).await, [dead], "it went by itself: this test proves nothing");
    let relay = bench.relay().await;
    let gone = format!(
        "NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {dead})
           AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE active_pid = {dead})"
    );
    wait_until(&sql, &gone).await;
    bench.wait_for_creation(&sql, &[xid]).await;
    // The keeper and the source of the dead one went with it; the successor polls.
    bench.publish("order", "other", 1).await;
    wait_for_key(&consumer, "other", &[1]).await;
    holder.commit().await;
    wait_streaming(&relay).await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
    bench.assert_cleared(&sql).await;
}

/// Times single inserts of an application until told to stop.
fn probe(bench: &Bench, stop: &CancellationToken) -> JoinHandle<Vec<(Instant, Duration)>> {
    let (url, stop) = (bench.url.clone(), stop.clone());
    tokio::spawn(async move {
        let client = connect(&url).await.unwrap();
        let sql = "SELECT statecast.publish('order', 'probe', 'changed', json_build_object('n', $1::bigint))";
        let statement = client.prepare(sql).await.unwrap();
        let mut took = Vec::new();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            client.query(&statement, &[&(took.len() as i64 + 1)]).await.unwrap();
            took.push((begun, begun.elapsed()));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        took
    })
}

/// The slowest of a hundred.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_broker_that_is_away_retains_nothing_and_delays_no_insert() {
    let outage = Duration::from_secs(knob("STATECAST_TEST_OUTAGE_SECONDS", 3) as u64);
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let bench = WalBench::with_broker(&[], &broker).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (load, stopped, _) = endless();
    // What is written meanwhile has to arrive within the test.
    let load = Load { writers: 2, pause_max: Duration::from_millis(20), ..load };
    let relay = bench.streaming().await;
    let probing = probe(&bench, &stopped);
    let writing = bench.load(load);
    wait_streamed(&relay, 200).await;
    let down = Instant::now();
    broker.stop().await.unwrap();
    bench.assert_cleared(&sql).await;
    while down.elapsed() < outage {
        let slots = bench.slots(&sql).await;
        assert!(slots.is_empty(), "without a broker WAL is retained by {slots:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let up = Instant::now();
    broker.start_again().await.unwrap();
    wait_streamed(&relay, 100).await;
    stopped.cancel();
    writing.await.unwrap();
    let times = probing.await.unwrap();
    let during = |from: Instant, to: Instant| {
        p99(times.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, took)| *took).collect())
    };
    let (before, without) = (during(times[0].0, down), during(down, up));
    println!("p99 of an insert: {before:?} with a broker, {without:?} without");
    assert!(without < before * 5 + Duration::from_millis(100), "{before:?}, {without:?}");
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// A transaction stays open while much is written: the slot would retain all of it. The stream ends at `retain_max`, and
/// so does every later attempt; events arrive by polling.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_retained_wal_is_bounded_while_a_transaction_is_open() {
    const RETAIN_MAX: i64 = 8 << 20;
    let mut bench = WalBench::start(&[]).await;
    bench.set("STATECAST_SOURCE__WAL__RETAIN_MAX", "8MiB");
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let mut relay = bench.streaming().await;
    let open = Writer::new(&bench.url).await;
    open.begin().await;
    open.write("open", 1).await;
    sql.batch_execute("CREATE TABLE filler (text text)").await.unwrap();
    let retained =
        "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)), 0)::bigint
                      FROM pg_replication_slots";
    let mut most = 0;
    for n in 1..=100 {
        // Half a megabyte at a time, faster than the relay looks.
        let fill = "INSERT INTO filler SELECT repeat(md5(i::text), 30) FROM generate_series(1, 500) i";
        sql.batch_execute(fill).await.unwrap();
        bench.publish("order", "k", n).await;
        most = most.max(pg::number(&sql, retained).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    wait_for_key(&consumer, "k", &(1..=100).collect::<Vec<_>>()).await;
    wait_until_said(&mut relay, "retain_max").await;
    println!("retained at most {} KiB of 50 MiB", most >> 10);
    // A look a second, at 10 MiB a second.
    assert!(most < 4 * RETAIN_MAX, "{most} bytes retained");
    wait_until(&sql, &format!("({retained}) < {RETAIN_MAX}")).await;
    open.commit().await;
    wait_for_key(&consumer, "open", &[1]).await;
    wait_streaming(&relay).await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// Waits until the relay says `what`, in its log or in `/ready`.
async fn wait_until_said(relay: &mut Relay, what: &str) {
    let begun = Instant::now();
    loop {
        let (_, ready) = relay.get("/ready").await.unwrap_or_default();
        if ready.contains(what) || relay.log().contains(what) {
            return;
        }
        assert!(begun.elapsed() < LIMIT && relay.running(), "it never says {what}: {ready}\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// It polls, says why, and streams once `freed` has made room.
async fn without_room(bench: &WalBench, said: &str, freed: impl AsyncFnOnce(&Client)) {
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let mut relay = bench.relay().await;
    bench.publish("order", "k", 1).await;
    wait_for_key(&consumer, "k", &[1]).await;
    wait_until_said(&mut relay, said).await;
    bench.publish("order", "k", 2).await;
    wait_for_key(&consumer, "k", &[2]).await;
    assert_eq!(reads(&relay).await.wal, 0.0);
    freed(&sql).await;
    let begun = Instant::now();
    wait_streaming(&relay).await;
    println!("streams {:?} after there was room", begun.elapsed());
    bench.publish("order", "k", 3).await;
    wait_for_key(&consumer, "k", &[3]).await;
    assert_eq!(reads(&relay).await.wal, 1.0);
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_without_a_free_slot_it_polls_until_there_is_one() {
    let bench = WalBench::start(&[("max_replication_slots", "1")]).await;
    let sql = bench.client().await;
    sql.query("SELECT pg_create_physical_replication_slot('foreign')", &[]).await.unwrap();
    let free = async |sql: &Client| {
        sql.query("SELECT pg_drop_replication_slot('foreign')", &[]).await.unwrap();
    };
    without_room(&bench, "max_replication_slots", free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_without_a_free_walsender_it_polls_until_there_is_one() {
    let bench = WalBench::start(&[("max_wal_senders", "1")]).await;
    let foreign = replication::connect(&pg::config(&bench.url), "foreign").await.unwrap();
    without_room(&bench, "max_wal_senders", async |_: &Client| drop(foreign)).await;
}

/// `wal`: it ends and says what to do. `auto`: it polls and says why.
async fn refused(bench: &WalBench, invocation: Invocation, why: &str) {
    let consumer = bench.consumer();
    let (code, stdout, stderr) = invocation.output(READY_LIMIT).await;
    println!("{code:?} {}", stderr.lines().chain(stdout.lines()).last().unwrap_or_default());
    assert!(matches!(code, Some(1 | 78)), "{code:?}\n{stdout}\n{stderr}");
    assert!(format!("{stdout}{stderr}").contains(why), "{stdout}\n{stderr}");
    let mut relay = invocation.with("STATECAST_SOURCE__MODE", "auto").start();
    relay.wait_ready(READY_LIMIT).await.unwrap();
    wait_until_said(&mut relay, why).await;
    bench.publish("order", "k", 1).await;
    wait_for_key(&consumer, "k", &[1]).await;
    assert_eq!(relay.metric("statecast_wal_streaming").await, 0.0);
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_role_without_replication_is_refused_or_polls() {
    let bench = WalBench::start(&[]).await;
    let url = pg::login(&bench.url, "plain", "", "GRANT statecast_relay TO plain").await;
    let invocation = bench.invocation.clone().with("STATECAST_POSTGRES__URL", &url);
    refused(&bench, invocation, "REPLICATION").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_replica_is_refused_or_polls() {
    let bench = WalBench::start(&[("wal_level", "replica")]).await;
    refused(&bench, bench.invocation.clone(), "wal_level").await;
}

/// `auto` streams where everything is there, with a role that has no more than it needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_auto_streams_with_the_least_privileged_role() {
    let mut bench = WalBench::start(&[]).await;
    let grants = "GRANT statecast_relay TO streamer";
    let url = pg::login(&bench.url, "streamer", "REPLICATION", grants).await;
    bench.set("STATECAST_POSTGRES__URL", &url);
    bench.set("STATECAST_SOURCE__MODE", "auto");
    let consumer = bench.consumer();
    let relay = bench.streaming().await;
    for n in 1..=10 {
        bench.publish("order", "k", n).await;
    }
    wait_for_key(&consumer, "k", &[10]).await;
    assert_eq!(reads(&relay).await.wal, 10.0);
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}
