//! What can happen to a relay that streams: it loses nothing, lets nothing overtake its key, and invents nothing.
//!
//! Every run proves that the relay did stream: between two faults its own count of streamed events has to grow. Every
//! other fault comes after a short random time instead, so that it also meets slots in the making and the barrier.
//!
//! Knobs: `STATECAST_TEST_WAL_FAULTS` (4 of each kind), `STATECAST_TEST_SEED`.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::checker::Verdict;
use crate::consumer::Consumer;
use crate::process::Relay;
use crate::relay::{READY_LIMIT, STOP_LIMIT, knob};
use crate::schedules::Writer;
use crate::wal_bench::{
    WalBench, arrived, endless, moment, reads, wait_for_key, wait_streamed, wait_streaming, wait_until,
};

/// Long enough for a relay to get from its start into its stream, sometimes.
const EARLY: Duration = Duration::from_millis(1500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillRelay,
    TerminateWalsender,
    RestartPostgres,
    /// Stopped or killed, and started in the other mode.
    SwitchMode,
}

const ALL: [Fault; 4] =
    [Fault::KillRelay, Fault::TerminateWalsender, Fault::RestartPostgres, Fault::SwitchMode];

/// A relay under load, and what happened to it.
struct Run {
    bench: WalBench,
    consumer: Consumer,
    relay: Relay,
    moments: fastrand::Rng,
    streams: bool,
    /// Events that the relays say they have streamed, before each fault.
    streamed: f64,
    /// Relays that took over from another one, at most.
    takeovers: usize,
}

impl Run {
    /// The `number`th fault, at a random moment.
    async fn suffer(&mut self, fault: Fault, number: usize) {
        if number % 2 == 1 {
            moment(&mut self.moments, EARLY).await;
        } else if self.streams {
            let more = self.moments.usize(1..200);
            wait_streamed(&self.relay, more).await;
            moment(&mut self.moments, Duration::from_millis(20)).await;
        } else {
            crate::relay::progress(&self.consumer, self.moments.usize(1..200)).await;
        }
        self.streamed += reads(&self.relay).await.wal;
        match fault {
            Fault::KillRelay => {
                self.relay.kill9();
                self.start().await;
            }
            Fault::TerminateWalsender => self.terminate_walsender().await,
            Fault::RestartPostgres => {
                self.bench.server.stop_immediate().await.unwrap();
                self.bench.server.start_again().await.unwrap();
                assert!(self.relay.running(), "the relay gave up\n{}", self.relay.log());
            }
            Fault::SwitchMode => {
                self.streams = !self.streams;
                if self.moments.bool() {
                    self.relay.kill9();
                } else {
                    self.relay.sigterm();
                    let status = self.relay.wait(STOP_LIMIT).await;
                    assert!(
                        status.is_some_and(|status| status.success()),
                        "{status:?}\n{}",
                        self.relay.log()
                    );
                }
                self.start().await;
            }
        }
    }

    /// The next relay's life.
    async fn start(&mut self) {
        let mode = if self.streams { "wal" } else { "poll" };
        self.takeovers += 1;
        self.relay = self.bench.invocation.clone().with("STATECAST_SOURCE__MODE", mode).start();
        self.relay.wait_ready(READY_LIMIT).await.unwrap();
    }

    async fn terminate_walsender(&self) {
        let client = self.bench.client().await;
        let found = self.bench.walsenders(&client).await;
        for pid in found {
            client.query("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
        }
    }
}

/// Runs the load, `count` faults of `kinds` chosen at random, and the checker.
async fn faults(kinds: &[Fault], count: usize, settings: &[(&str, &str)]) -> (Run, Verdict) {
    let bench = WalBench::start(settings).await;
    let (load, stop, moments) = endless();
    let (consumer, relay) = (bench.consumer(), bench.streaming().await);
    let writing = bench.load(load);
    let mut run = Run { bench, consumer, relay, moments, streams: true, streamed: 0.0, takeovers: 0 };
    for number in 0..count {
        let fault = run.moments.choice(kinds).copied().unwrap();
        println!("{number}: {fault:?}");
        run.suffer(fault, number).await;
    }
    if !run.streams {
        run.suffer(Fault::SwitchMode, 0).await;
    }
    // It streams again, whatever happened.
    wait_streamed(&run.relay, 100).await;
    stop.cancel();
    writing.await.unwrap();
    run.streamed += reads(&run.relay).await.wal;
    let sessions = run.relay.metric("statecast_sessions_total").await;
    let verdict = run.bench.finish(std::slice::from_mut(&mut run.relay), &run.consumer).await;
    println!("streamed {} · sessions that failed in the last life {sessions}", run.streamed);
    verdict.assert_clean();
    if kinds == [Fault::TerminateWalsender] {
        // The stream is over, nothing else is.
        assert_eq!((sessions, verdict.duplicates), (0.0, 0), "{}", run.relay.log());
    }
    (run, verdict)
}

fn count() -> usize {
    knob("STATECAST_TEST_WAL_FAULTS", 4)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_killed_relays_lose_nothing_and_overtake_nothing() {
    let (run, verdict) = faults(&[Fault::KillRelay], count(), &[]).await;
    // Each successor may repeat a key once from the cursor; a straggler of a dead relay would make it more.
    assert!(verdict.descents_max <= run.takeovers, "{}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_terminated_walsenders_end_only_their_stream() {
    faults(&[Fault::TerminateWalsender], count(), &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_immediate_restarts_of_postgres_lose_nothing() {
    faults(&[Fault::RestartPostgres], count().min(3), &[]).await;
}

/// Commits are visible long before they are flushed, and an immediate stop takes them back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_nothing_is_published_that_an_immediate_stop_takes_back() {
    let lazy = [("synchronous_commit", "off"), ("wal_writer_delay", "10s"), ("bgwriter_lru_maxpages", "0")];
    faults(&[Fault::RestartPostgres], count().min(3), &lazy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_switches_between_polling_and_streaming_lose_nothing() {
    let (run, verdict) = faults(&[Fault::SwitchMode], count(), &[]).await;
    assert!(verdict.descents_max <= run.takeovers, "{}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_faults_of_all_kinds_lose_nothing() {
    faults(&ALL, count(), &[]).await;
}

/// Transactions that are open while the slot is made: the first two hold it up, the third is older than the stream and
/// the slot does not wait for it. The barrier does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_transactions_that_are_older_than_the_stream() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (first, second) = (Writer::new(&bench.url).await, Writer::new(&bench.url).await);
    let (third, other) = (Writer::new(&bench.url).await, Writer::new(&bench.url).await);
    let x1 = first.begin().await;
    first.write("first", 1).await;
    let relay = bench.relay().await;
    bench.wait_for_creation(&sql, &[x1]).await;
    other.write("other", 1).await;
    wait_for_key(&consumer, "other", &[1]).await;
    let x2 = second.begin().await;
    second.write("second", 1).await;
    first.commit().await;
    wait_for_key(&consumer, "first", &[1]).await;
    bench.wait_for_creation(&sql, &[x2]).await;
    // The slot waits for those that were open when it began to wait for the second: not for this one.
    third.begin().await;
    third.write("third", 1).await;
    second.write("second", 2).await;
    second.commit().await;
    wait_for_key(&consumer, "second", &[1, 2]).await;
    let made = format!(
        "EXISTS (SELECT FROM pg_replication_slots WHERE starts_with(slot_name, '{}')
           AND confirmed_flush_lsn IS NOT NULL)",
        bench.slot_prefix()
    );
    wait_until(&sql, &made).await;
    for n in 2..=20 {
        other.write("other", n).await;
    }
    wait_for_key(&consumer, "other", &(2..=20).collect::<Vec<_>>()).await;
    assert!(!arrived(&consumer, "third"));
    third.write("third", 2).await;
    third.commit().await;
    wait_for_key(&consumer, "third", &[1, 2]).await;
    wait_streaming(&relay).await;
    let before = reads(&relay).await;
    // Open while it streams, and committed after much else.
    third.begin().await;
    third.write("third", 3).await;
    for n in 21..=40 {
        other.write("other", n).await;
    }
    wait_for_key(&consumer, "other", &[40]).await;
    third.commit().await;
    wait_for_key(&consumer, "third", &[3]).await;
    let after = reads(&relay).await;
    assert_eq!((after.wal - before.wal, after.poll), (21.0, before.poll), "all of it was streamed");
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.duplicates, 0);
}

/// A transaction prepared before the relay started holds up the slot, not the events. Prepared while it streams, ended
/// by nobody when the relay is killed, it is ended in the next relay's life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_prepared_transactions_over_the_lives_of_streams() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let (writer, other) = (Writer::new(&bench.url).await, Writer::new(&bench.url).await);
    let prepare = async |name: &str| {
        let xid = writer.begin().await;
        writer.write(name, 1).await;
        writer.run(&format!("PREPARE TRANSACTION '{name}'")).await;
        xid
    };
    let end = async |how: &str, name: &str| other.run(&format!("{how} PREPARED '{name}'")).await;
    let before = [prepare("kept-1").await, prepare("undone-1").await];
    let mut relay = bench.relay().await;
    bench.wait_for_creation(&sql, &before).await;
    other.write("other", 1).await;
    wait_for_key(&consumer, "other", &[1]).await;
    end("COMMIT", "kept-1").await;
    wait_for_key(&consumer, "kept-1", &[1]).await;
    end("ROLLBACK", "undone-1").await;
    wait_streaming(&relay).await;

    let streamed = reads(&relay).await;
    for name in ["kept-2", "undone-2"] {
        prepare(name).await;
    }
    let over = [prepare("kept-3").await, prepare("undone-3").await];
    other.write("other", 2).await;
    wait_for_key(&consumer, "other", &[2]).await;
    end("COMMIT", "kept-2").await;
    end("ROLLBACK", "undone-2").await;
    wait_for_key(&consumer, "kept-2", &[1]).await;
    assert_eq!(reads(&relay).await.wal - streamed.wal, 2.0, "both were streamed");

    relay.kill9();
    relay = bench.relay().await;
    bench.wait_for_creation(&sql, &over).await;
    other.write("other", 3).await;
    wait_for_key(&consumer, "other", &[3]).await;
    end("COMMIT", "kept-3").await;
    end("ROLLBACK", "undone-3").await;
    wait_for_key(&consumer, "kept-3", &[1]).await;
    wait_streaming(&relay).await;
    other.write("other", 4).await;
    wait_streamed(&relay, 0).await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// A walsender that is there and does nothing: events are polled after `lag_max`, the relay stops in good time, and
/// streams again when the walsender goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_frozen_walsender_gives_way_to_polling() {
    let mut bench = WalBench::start(&[]).await;
    bench.set("STATECAST_SOURCE__WAL__LAG_MAX", "1s");
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let mut relay = bench.streaming().await;
    bench.publish("order", "k", 1).await;
    wait_for_key(&consumer, "k", &[1]).await;
    let [walsender] = bench.walsenders(&sql).await[..] else { panic!("one walsender") };
    let walsender = Pid::from_raw(walsender).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    let begun = Instant::now();
    for n in 2..=20 {
        bench.publish("order", "k", n).await;
    }
    wait_for_key(&consumer, "k", &(2..=20).collect::<Vec<_>>()).await;
    println!("frozen: polled after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    kill_process(walsender, Signal::CONT).unwrap();
    wait_streaming(&relay).await;
    bench.publish("order", "k", 21).await;
    wait_for_key(&consumer, "k", &[21]).await;

    let [walsender] = bench.walsenders(&sql).await[..] else { panic!("one walsender") };
    let walsender = Pid::from_raw(walsender).unwrap();
    kill_process(walsender, Signal::STOP).unwrap();
    let begun = Instant::now();
    relay.sigterm();
    let status = relay.wait(STOP_LIMIT).await;
    println!("frozen: stopped after {:?}", begun.elapsed());
    kill_process(walsender, Signal::CONT).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", relay.log());
    let relay = bench.streaming().await;
    bench.publish("order", "k", 22).await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// A source connection that says nothing more, while all others work: the session ends, and the next one reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "waits for the longest answer that a page may take, more than a minute; `make chaos` runs it"]
async fn wal_silent_source_connection_ends_the_session() {
    let bench = WalBench::start(&[]).await;
    let (sql, consumer) = (bench.client().await, bench.consumer());
    let mut relay = bench.streaming().await;
    bench.publish("order", "k", 1).await;
    wait_for_key(&consumer, "k", &[1]).await;
    let source = format!("statecast {} source", bench.pipeline);
    let find = "SELECT pid FROM pg_stat_activity WHERE application_name = $1";
    let pid: i32 = sql.query_one(find, &[&source]).await.unwrap().get(0);
    let backend = Pid::from_raw(pid).unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    let begun = Instant::now();
    let event = bench.publish("order", "k", 2).await;
    let ended = relay.wait_for_log("PostgreSQL has not answered", Duration::from_secs(120)).await;
    println!("silent: the session ended after {:?}", begun.elapsed());
    let arrived = consumer.wait_for_ids(Duration::from_secs(60), [event]).await;
    kill_process(backend, Signal::CONT).unwrap();
    assert!(ended && arrived == 0, "{}", relay.log());
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}
