//! Leaders that are stopped, slow or cut off, step by step: what they still have in hand when another leads is published
//! and written by nobody but that other.

use std::time::{Duration, Instant};

use crate::load::Load;
use crate::proxy::Mode;
use crate::relay::{ARRIVAL_LIMIT, progress};
use crate::takeover_bench::{Ha, Reads, SILENCE_LIMIT, wait_standby};
use crate::wal_bench::endless;

/// The broker has closed the connection of a client that says nothing by then, at the latest…
const BROKER_LIMIT: Duration = Duration::from_secs(14);
/// … and not before that.
const BROKER_PATIENCE: Duration = Duration::from_secs(8);
const KEYS: usize = 50;

impl Ha {
    /// The next `rounds` events of each key, in one transaction.
    async fn burst(&self, first: i64, rounds: i64) {
        let sql = "SELECT count(statecast.publish('order', 'k' || k, 'changed', json_build_object('n', n)))
                     FROM generate_series($1::bigint, $2) n, generate_series(1, $3::bigint) k";
        let keys = i64::try_from(KEYS).unwrap();
        self.sql.query_one(sql, &[&first, &(first + rounds - 1), &keys]).await.unwrap();
    }

    /// Waits until the cursor row is another leader's than `epoch`'s.
    async fn superseded(&self, epoch: i64) {
        let begun = Instant::now();
        while self.epoch().await == epoch {
            assert!(begun.elapsed() < SILENCE_LIMIT, "nobody takes over");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn epoch(&self) -> i64 {
        self.sql.query_one("SELECT epoch FROM statecast.cursor", &[]).await.unwrap().get(0)
    }

    /// Waits until everything has arrived that is committed.
    async fn all_arrived(&self) {
        let committed = crate::checker::read_committed(&self.sql).await.unwrap();
        let ids = committed.iter().map(|row| row.event_id);
        assert_eq!(self.consumer.wait_for_ids(ARRIVAL_LIMIT, ids).await, 0, "lost");
    }
}

/// A leader is stopped with events read and not sent. Its successor publishes them and later ones of the same keys. Then it
/// wakes up. Without the fence its connection to the broker is still alive, and nothing but the gate stands between what it
/// has in hand and the queue; with the fence the successor has waited until the broker had closed that connection.
///
/// `false`: it took so long that the broker may have closed that connection anyway, which proves nothing.
async fn wakes_up(reads: Reads, fence: bool) -> bool {
    let mut ha = Ha::start(reads).await;
    ha.set("STATECAST_RABBITMQ__FENCE", if fence { "true" } else { "false" });
    ha.set("STATECAST_RABBITMQ__WINDOW", "1");
    let mut leader = ha.leader().await;
    ha.set("STATECAST_RABBITMQ__WINDOW", "2000");
    let standby = ha.standby("standby").await;
    let epoch = ha.epoch().await;
    ha.burst(1, 10).await;
    progress(&ha.consumer, 20).await;
    leader.pause();
    let stopped = Instant::now();
    let by_leader = ha.published().len();
    assert!(by_leader < 8 * KEYS, "too late: it has sent {by_leader} already");
    ha.burst(11, 1).await;
    ha.superseded(epoch).await;
    ha.all_arrived().await;
    println!("{reads:?}, fence {fence}: all is published {:?} after the stop", stopped.elapsed());
    let arrived = ha.published();
    let written = ha.writers().await;
    if !fence && stopped.elapsed() >= BROKER_PATIENCE {
        println!("too slow");
        return false;
    }

    leader.resume();
    wait_standby(&leader, ARRIVAL_LIMIT).await;
    assert!(leader.running());
    // What it had sent would arrive before this.
    ha.arrival(1).await;
    let since: Vec<String> = ha.published().drain(arrived.len()..).map(|(who, _)| who).collect();
    assert_eq!(since, ["standby"], "the old leader has published");
    assert_eq!(ha.writers().await, written, "the old leader has written");
    let lost = leader.metric_where("statecast_sessions_total", "lease_lost").await;
    assert_eq!(lost, 1.0, "{}", leader.log());
    ha.finish(&mut [leader, standby]).await;
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_publishes_nothing_when_it_wakes_up() {
    assert!(wakes_up(Reads::Poll, true).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_publishes_nothing_when_it_wakes_up_wal() {
    assert!(wakes_up(Reads::Wal, true).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_publishes_nothing_even_without_a_fence() {
    for _ in 0..3 {
        if wakes_up(Reads::Poll, false).await {
            return;
        }
    }
    panic!("too slow three times");
}

/// What a leader has handed to its socket cannot be taken back. It waits in the network while the leader is stopped, and
/// comes on when all is over: the broker is done with that connection by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_waited_in_the_network_land_nowhere() {
    let ha = Ha::start(Reads::Poll).await;
    let leader = ha.leader().await;
    let standby = ha.standby("standby").await;
    let epoch = ha.epoch().await;
    ha.burst(1, 1).await;
    ha.all_arrived().await;
    ha.broker.set(Mode::Stall);
    ha.database.set(Mode::Stall);
    // Whatever of these it has read by now waits in its client library, in sockets, in the proxy.
    ha.broker.set(Mode::Stall);
    ha.database.set(Mode::Pass);
    ha.burst(2, 20).await;
    assert!(leader.wait_for_metric("statecast_window_in_use", KEYS as f64 - 1.0, ARRIVAL_LIMIT).await);
    ha.database.set(Mode::Stall);
    leader.pause();
    let stopped = Instant::now();
    ha.superseded(epoch).await;
    println!("superseded after {:?}", stopped.elapsed());
    ha.burst(22, 1).await;
    ha.all_arrived().await;
    println!("all is published {:?} after the stop", stopped.elapsed());
    let (arrived, written) = (ha.published().len(), ha.writers().await);
    // First the bytes, while nobody reads the answers; then the process.
    ha.broker.set(Mode::Pass);
    ha.database.set(Mode::Pass);
    ha.arrival(1).await;
    leader.resume();
    wait_standby(&leader, ARRIVAL_LIMIT).await;
    ha.arrival(2).await;
    let since: Vec<String> = ha.published().drain(arrived..).map(|(who, _)| who).collect();
    assert_eq!(since, ["standby", "standby"], "old bytes have arrived");
    assert_eq!(ha.writers().await, written, "the old leader has written");
    assert!(stopped.elapsed() < BROKER_LIMIT + ARRIVAL_LIMIT);
    ha.finish(&mut [leader, standby]).await;
}

/// PostgreSQL does not answer the leader for a while: shorter than the lease, about as long, longer. Whoever leads
/// afterwards, nothing is lost and nothing overtakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_database_loses_nothing_and_reorders_nothing() {
    for with_standby in [false, true] {
        let ha = Ha::start(Reads::Poll).await;
        let leader = ha.leader().await;
        let mut relays = vec![leader];
        if with_standby {
            relays.push(ha.standby("standby").await);
        }
        let (load, stop, _) = endless();
        let writing = ha.bench.load(Load { writers: 3, pause_max: Duration::from_millis(20), ..load });
        for stall_ms in [1000, 2900, 3500, 5000] {
            progress(&ha.consumer, 100).await;
            ha.database.set(Mode::Stall);
            tokio::time::sleep(Duration::from_millis(stall_ms)).await;
            ha.database.set(Mode::Pass);
            progress(&ha.consumer, 100).await;
            println!("standby {with_standby}, {stall_ms} ms: epoch {}", ha.epoch().await);
        }
        stop.cancel();
        writing.await.unwrap();
        let verdict = ha.finish(&mut relays).await;
        assert!(verdict.descents_max <= 8, "{}", verdict.summary());
    }
}

/// The server's clock is an hour ahead of what the leader's renewals were given, at every look: the lease is past, and
/// renewed. Only who does not renew loses it, also where the clock was set back by an hour.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_takes_the_lease_from_nobody_who_renews() {
    let ha = Ha::start(Reads::Poll).await;
    let mut leader = ha.leader().await;
    let mut standby = ha.standby("standby").await;
    ha.sql
        .batch_execute(
            "CREATE FUNCTION public.jump() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN NEW.lease_until := NEW.lease_until + TG_ARGV[0]::interval; RETURN NEW; END $$",
        )
        .await
        .unwrap();
    for (round, jump) in ["-1 hour", "1 hour"].into_iter().enumerate() {
        let trigger = format!(
            "CREATE OR REPLACE TRIGGER jump BEFORE UPDATE OF lease_until ON statecast.cursor
             FOR EACH ROW EXECUTE FUNCTION public.jump('{jump}')"
        );
        ha.sql.batch_execute(&trigger).await.unwrap();
        let epoch = ha.epoch().await;
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(ha.epoch().await, epoch, "{jump}: taken from a leader that renews");
        ha.arrival(round as i64 * 2 + 1).await;
        let begun = Instant::now();
        leader.pause();
        ha.superseded(epoch).await;
        ha.arrival(round as i64 * 2 + 2).await;
        println!("{jump}: the standby publishes after {:?}", begun.elapsed());
        assert!(begun.elapsed() < SILENCE_LIMIT);
        leader.resume();
        wait_standby(&leader, ARRIVAL_LIMIT).await;
        std::mem::swap(&mut leader, &mut standby);
    }
    ha.finish(&mut [leader, standby]).await;
}

/// Several standbys, and leaders that are stopped one after another: each time exactly one takes over, and the others go on
/// standing by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_standbys_exactly_one_takes_over() {
    let ha = Ha::start(Reads::Poll).await;
    let mut relays = vec![ha.leader().await, ha.standby("a").await, ha.standby("b").await];
    for round in 0..3 {
        let before = ha.writers().await;
        relays[0].pause();
        let begun = Instant::now();
        ha.arrival(round).await;
        println!("round {round}: taken over after {:?}", begun.elapsed());
        let leading =
            [relays[1].metric("statecast_leader").await, relays[2].metric("statecast_leader").await];
        assert_eq!(leading.iter().sum::<f64>(), 1.0, "{leading:?}");
        let mut writers: Vec<i32> = ha.writers().await[before.len()..].iter().map(|(_, pid)| *pid).collect();
        writers.dedup();
        assert_eq!(writers.len(), 1, "more than one has taken the row");
        relays[0].resume();
        wait_standby(&relays[0], ARRIVAL_LIMIT).await;
        let new = if leading[0] > 0.0 { 1 } else { 2 };
        let other = &relays[3 - new];
        wait_standby(other, ARRIVAL_LIMIT).await;
        let failed = other.metric_where("statecast_sessions_total", "transient").await;
        assert_eq!(failed, 0.0, "the standby that lost has failed: {}", other.log());
        relays.swap(0, new);
    }
    ha.finish(&mut relays).await;
}
