//! `synchronous_standby_names` that would take the relay for a standby: the application's commits would wait for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Pair, STANDBY, STEP_LIMIT, Shop, change, set, synchronous, until};
use crate::process::Relay;
use crate::servers::connect;

/// Pause between two commits, and between two looks at the walsenders.
const TICK: Duration = Duration::from_millis(20);
/// How long each state of the broker is watched.
const PHASE: Duration = Duration::from_secs(2);
/// A commit that waits for a relay with a dead broker takes for ever; one on a busy machine does not take this long.
const COMMIT_MAX: Duration = Duration::from_secs(1);
/// From a setting that makes a streaming relay a standby to the end of the stream.
const LEAVE_MAX: Duration = Duration::from_secs(4);

/// Writes all the time and watches who the server takes for a synchronous standby.
struct Watch {
    stop: CancellationToken,
    commits: Arc<Mutex<Vec<Duration>>>,
    tasks: Vec<JoinHandle<()>>,
    candidates: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    async fn start(shop: &Shop) -> Watch {
        let stop = CancellationToken::new();
        let (commits, candidates) = (Arc::default(), Arc::default());
        let writing = write(shop.bench.client().await, Arc::clone(&commits), stop.clone());
        let sql = format!(
            "SELECT application_name || ' ' || state || ' ' || sync_priority || ' ' || sync_state
             FROM pg_stat_replication WHERE sync_priority > 0 AND application_name <> '{STANDBY}'"
        );
        let looking = look(shop.bench.client().await, sql, Arc::clone(&candidates), stop.clone());
        Watch { stop, commits, tasks: vec![tokio::spawn(writing), tokio::spawn(looking)], candidates }
    }

    /// Commits for a while; how long they took: (count, slowest).
    async fn phase(&self, name: &str) -> (usize, Duration) {
        let before = self.commits.lock().unwrap().len();
        tokio::time::sleep(PHASE).await;
        let commits = self.commits.lock().unwrap();
        let slowest = commits[before..].iter().max().copied().unwrap_or(Duration::MAX);
        println!("{name}: {} commits, slowest {slowest:?}", commits.len() - before);
        (commits.len() - before, slowest)
    }

    /// Waits until a commit returns that had not.
    async fn next_commit(&self) {
        let count = || self.commits.lock().unwrap().len();
        let (before, begun) = (count(), Instant::now());
        while count() == before {
            assert!(begun.elapsed() < STEP_LIMIT, "a commit hangs");
            tokio::time::sleep(TICK).await;
        }
    }

    async fn assert_phase(&self, name: &str) {
        let (count, slowest) = self.phase(name).await;
        assert!(count > 5 && slowest < COMMIT_MAX, "{name}: {count} commits, slowest {slowest:?}");
    }

    /// Ends it; what else the server took for a synchronous standby, if only once.
    async fn end(self) -> Vec<String> {
        self.stop.cancel();
        for task in self.tasks {
            tokio::time::timeout(STEP_LIMIT, task).await.expect("a commit hangs").unwrap();
        }
        let candidates = self.candidates.lock().unwrap();
        candidates.clone()
    }
}

async fn write(client: tokio_postgres::Client, commits: Arc<Mutex<Vec<Duration>>>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        change(&client, "k01").await.unwrap();
        let begun = Instant::now();
        client.batch_execute("COMMIT").await.unwrap();
        commits.lock().unwrap().push(begun.elapsed());
        tokio::time::sleep(TICK).await;
    }
}

async fn look(
    client: tokio_postgres::Client,
    sql: String,
    candidates: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        let rows = client.query(&sql, &[]).await.unwrap();
        candidates.lock().unwrap().extend(rows.iter().map(|row| row.get::<_, String>(0)));
        tokio::time::sleep(TICK).await;
    }
}

/// It polls, and says why.
async fn assert_polls(relay: &Relay) {
    assert_eq!(relay.metric("statecast_wal_streaming").await, 0.0);
    let (_, ready) = relay.get("/ready").await.unwrap();
    let said = format!("{ready}\n{}", relay.log());
    assert!(said.contains("synchronous_standby_names"), "it does not say why it polls: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_never_wait_for_a_relay_where_everyone_is_a_standby() {
    let (pair, broker) = tokio::join!(Pair::start(), Rabbitmq::start(RabbitmqOptions::default()));
    let mut broker = broker.unwrap();
    let admin = connect(&pair.primary.url("postgres")).await.unwrap();
    let shop = pair.bench(&broker).await;
    synchronous(&admin, "*").await;
    let consumer = shop.bench.consumer();
    let relay = shop.bench.relay().await;
    let watch = Watch::start(&shop).await;
    watch.assert_phase("*").await;
    assert_polls(&relay).await;
    synchronous(&admin, "ANY 1 (*)").await;
    watch.assert_phase("ANY 1 (*)").await;
    assert_polls(&relay).await;
    synchronous(&admin, "*").await;
    broker.pause();
    watch.assert_phase("*, the broker is paused").await;
    broker.resume();
    broker.stop().await.unwrap();
    watch.assert_phase("*, the broker is stopped").await;
    assert_eq!(relay.metric("statecast_wal_streaming").await, 0.0);
    let candidates = watch.end().await;
    assert!(candidates.is_empty(), "a standby: {candidates:?}");
    broker.start_again().await.unwrap();
    shop.bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_the_setting_makes_it_a_standby() {
    let (server, broker) = tokio::join!(
        Postgres::start(PostgresOptions::default()),
        Rabbitmq::start(RabbitmqOptions::default())
    );
    let (server, mut broker) = (server.unwrap(), broker.unwrap());
    let shop = Shop::new(server.create_database("shop").await.unwrap(), &broker).await;
    let consumer = shop.bench.consumer();
    let relay = shop.streaming_relay().await;
    // Of equal standbys the one that came first is waited for: the relay, were it to stay.
    let _standby = server.standby(STANDBY).await.unwrap();
    let admin = connect(&server.url("postgres")).await.unwrap();
    // Nothing is confirmed from now on, so that the stream's flush position stands still.
    broker.pause();
    let watch = Watch::start(&shop).await;
    watch.assert_phase("alone").await;
    set(&admin, "synchronous_standby_names", "*").await;
    let begun = Instant::now();
    let gone = format!(
        "SELECT NOT EXISTS (SELECT FROM pg_stat_replication WHERE application_name = '{}')",
        shop.stream
    );
    until(&admin, &gone).await;
    let left = begun.elapsed();
    watch.next_commit().await;
    let commits_go_on = begun.elapsed();
    println!("left after {left:?}, commits went on after {commits_go_on:?}");
    assert!(left < LEAVE_MAX && commits_go_on - left < COMMIT_MAX, "{left:?}, {commits_go_on:?}");
    watch.assert_phase("*").await;
    assert_polls(&relay).await;
    println!("while it left: {:?}", watch.end().await.first());
    broker.resume();
    shop.bench.finish(&mut [relay], &consumer).await.assert_clean();
}
