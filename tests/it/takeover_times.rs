//! How soon a standby leads when its leader dies, stops or is cut off; and that nothing of the old leader lands among what
//! the new one publishes.
//!
//! Knobs: `STATECAST_TEST_TAKEOVERS` (3): faults in a row, of any kind, among three replicas. `STATECAST_TEST_SEED`.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::process::Relay;
use crate::proxy::{Mode, Proxy};
use crate::relay::{knob, progress};
use crate::takeover_bench::{Ha, KILL_LIMIT, Reads, SILENCE_LIMIT, proxies, wait_standby};
use crate::wal_bench::endless;

/// For an old leader to notice that it is none any more.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    /// From both servers.
    CutOff,
    /// From PostgreSQL only: its connection to the broker stays alive, and with it the fence.
    CutOffDatabase,
}

async fn takeover(reads: Reads, fault: Fault, limit: Duration) {
    let ha = Ha::start(reads).await;
    let mut leader = ha.leader().await;
    let standby = ha.standby("standby").await;
    let (load, stop, _) = endless();
    let writing = ha.bench.load(Load { writers: 3, pause_max: Duration::from_millis(20), ..load });
    progress(&ha.consumer, 200).await;
    let begun = Instant::now();
    match fault {
        Fault::Kill => leader.kill9(),
        Fault::Pause => leader.pause(),
        Fault::CutOff => ha.cut_off(),
        Fault::CutOffDatabase => ha.database.set(Mode::HalfOpen),
    }
    ha.arrival(1).await;
    let took = begun.elapsed();
    println!("{reads:?}, {fault:?}: the standby publishes after {took:?}");
    assert!(took < limit, "{took:?}");
    ha.leads(&standby, NOTICE_LIMIT).await;
    progress(&ha.consumer, 100).await;

    if fault != Fault::Kill {
        match fault {
            Fault::Pause => leader.resume(),
            _ => ha.heal(),
        }
        wait_standby(&leader, NOTICE_LIMIT).await;
        assert!(leader.running() && leader.metric("statecast_leader").await == 0.0);
        let lost = leader.metric_where("statecast_sessions_total", "lease_lost").await;
        println!("sessions that lost their lease: {lost}");
    }
    progress(&ha.consumer, 100).await;
    stop.cancel();
    writing.await.unwrap();
    ha.arrival(2).await;
    assert_eq!(ha.stragglers("leader"), 0, "the old leader has published behind the new one");
    let mut relays = vec![standby];
    if fault != Fault::Kill {
        relays.push(leader);
    }
    let verdict = ha.finish(&mut relays).await;
    assert!(verdict.descents_max <= 1, "{}", verdict.summary());
    let epochs = ha.writers().await;
    println!("epochs and their writers: {epochs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_killed_leader_poll() {
    takeover(Reads::Poll, Fault::Kill, KILL_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_killed_leader_wal() {
    takeover(Reads::Wal, Fault::Kill, KILL_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_stopped_leader_poll() {
    takeover(Reads::Poll, Fault::Pause, SILENCE_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_stopped_leader_wal() {
    takeover(Reads::Wal, Fault::Pause, SILENCE_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_leader_that_is_cut_off_poll() {
    takeover(Reads::Poll, Fault::CutOff, SILENCE_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_leader_that_is_cut_off_wal() {
    takeover(Reads::Wal, Fault::CutOff, SILENCE_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_leader_that_is_cut_off_from_postgres_poll() {
    takeover(Reads::Poll, Fault::CutOffDatabase, SILENCE_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeover_from_a_leader_that_is_cut_off_from_postgres_wal() {
    takeover(Reads::Wal, Fault::CutOffDatabase, SILENCE_LIMIT).await;
}

/// A relay with a network of its own.
struct Replica {
    name: &'static str,
    relay: Relay,
    database: Proxy,
    broker: Proxy,
}

impl Replica {
    async fn start(ha: &Ha, name: &'static str) -> Replica {
        let (database, broker) = proxies(&ha.bench).await;
        Replica { name, relay: ha.behind(name, &database, &broker), database, broker }
    }

    fn suffer(&mut self, fault: Fault, later: bool) {
        // What is held up passes later, or is lost.
        let mode = if later { Mode::Stall } else { Mode::HalfOpen };
        match fault {
            Fault::Kill => self.relay.kill9(),
            Fault::Pause => self.relay.pause(),
            Fault::CutOff => {
                self.database.set(mode);
                self.broker.set(mode);
            }
            Fault::CutOffDatabase => self.database.set(mode),
        }
    }

    fn recover(&mut self, ha: &Ha, fault: Fault) {
        for proxy in [&self.database, &self.broker] {
            proxy.set(Mode::Pass);
        }
        match fault {
            Fault::Kill => self.relay = ha.behind(self.name, &self.database, &self.broker),
            Fault::Pause => self.relay.resume(),
            // What was lost in between leaves connections that make no sense to either end.
            Fault::CutOff | Fault::CutOffDatabase => {
                self.database.cut();
                self.broker.cut();
            }
        }
    }
}

/// One fault after another, each for whoever leads then: no two relays' messages are ever mixed.
async fn takeovers(reads: Reads) {
    let rounds = knob("STATECAST_TEST_TAKEOVERS", 3);
    let ha = Ha::start(reads).await;
    let mut replicas = Vec::new();
    for name in ["a", "b", "c"] {
        let replica = Replica::start(&ha, name).await;
        replica.relay.wait_ready(NOTICE_LIMIT).await.unwrap();
        replicas.push(replica);
    }
    let (load, stop, mut moments) = endless();
    let writing = ha.bench.load(Load { writers: 3, pause_max: Duration::from_millis(20), ..load });
    for round in 0..rounds {
        progress(&ha.consumer, moments.usize(50..300)).await;
        let last = ha.turns().pop().unwrap();
        let leader = replicas.iter().position(|replica| replica.name == last).unwrap();
        let faults = [Fault::Kill, Fault::Pause, Fault::CutOff, Fault::CutOffDatabase];
        let (fault, later) = (moments.choice(faults).unwrap(), moments.bool());
        let begun = Instant::now();
        replicas[leader].suffer(fault, later);
        ha.arrival(i64::try_from(round).unwrap()).await;
        println!(
            "{reads:?}, {round}: {last} suffers {fault:?} ({later}); an event arrives {:?} later",
            begun.elapsed()
        );
        assert!(begun.elapsed() < SILENCE_LIMIT, "{fault:?}");
        progress(&ha.consumer, moments.usize(1..100)).await;
        replicas[leader].recover(&ha, fault);
        wait_standby(&replicas[leader].relay, NOTICE_LIMIT).await;
    }
    stop.cancel();
    writing.await.unwrap();
    ha.arrival(i64::try_from(rounds).unwrap()).await;
    let turns = ha.turns();
    println!("{turns:?}");
    assert_eq!(turns.len(), rounds + 1, "messages of two relays are mixed");
    let (mut relays, _networks): (Vec<Relay>, Vec<_>) =
        replicas.into_iter().map(|replica| (replica.relay, (replica.database, replica.broker))).unzip();
    let verdict = ha.finish(&mut relays).await;
    assert!(verdict.descents_max <= rounds, "{}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeovers_of_all_kinds_mix_nothing_poll() {
    takeovers(Reads::Poll).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn takeovers_of_all_kinds_mix_nothing_wal() {
    takeovers(Reads::Wal).await;
}
