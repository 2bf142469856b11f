//! A relay at work, and trouble for it: load on the database, a consumer, and an application that must not notice.
//!
//! Each test begins with everything well, makes trouble, ends it, and [`Trouble::end`]s with everything well again: events
//! flow, the relay is ready, nothing is lost, invented or out of order, and nothing needs a person.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::checker::Verdict;
use crate::consumer::Consumer;
use crate::load::{self, Load, Written};
use crate::process::Relay;
use crate::relay::{ARRIVAL_LIMIT, Bench, progress};
use crate::servers::connect;

/// For anything that must happen.
pub const LIMIT: Duration = Duration::from_secs(60);
/// What a write of the application may take where the database itself is well. Without trouble it takes about a
/// millisecond; the rest is for a busy machine.
const WRITE_MAX: Duration = Duration::from_secs(2);
/// Between two writes of the application that are timed.
const PROBE_INTERVAL: Duration = Duration::from_millis(20);
/// For confirms of what is on its way.
const CONFIRM_WAIT: Duration = Duration::from_millis(500);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// See the module head.
pub struct Trouble {
    pub bench: Bench,
    pub consumer: Consumer,
    pub relay: Relay,
    writing: JoinHandle<Written>,
    probing: JoinHandle<Duration>,
    stop: CancellationToken,
}

impl Trouble {
    /// Starts a relay and a load, and waits until events flow.
    pub async fn begin(bench: Bench) -> Trouble {
        let consumer = bench.consumer();
        Trouble::begin_with(bench, consumer).await
    }

    /// The same with a consumer that is there already.
    pub async fn begin_with(bench: Bench, consumer: Consumer) -> Trouble {
        let relay = bench.relay().await;
        let load = Load {
            transactions: load::UNTIL_STOPPED,
            writers: 4,
            pause_max: Duration::from_millis(10),
            prepared: 5,
            ..Load::default()
        };
        let stop = load.stop.clone();
        let probing = tokio::spawn(probe(bench.url.clone(), stop.clone()));
        let writing = bench.load(load);
        let trouble = Trouble { bench, consumer, relay, writing, probing, stop };
        trouble.flows(100).await;
        trouble
    }

    /// Waits until all that was confirmed has arrived, where nothing more is.
    pub async fn drained(&self) {
        let confirmed = async || self.relay.metric("statecast_events_confirmed_total").await as usize;
        let mut before = 0;
        // Confirms of what was on its way may be late.
        while before != confirmed().await {
            before = confirmed().await;
            let arrived = self.consumer.wait_for(ARRIVAL_LIMIT, |deliveries| {
                let ids = deliveries.iter().map(|delivery| delivery.message_id.as_deref());
                ids.collect::<HashSet<_>>().len() >= before
            });
            assert!(arrived.await, "{before} confirmed events did not arrive");
            tokio::time::sleep(CONFIRM_WAIT).await;
        }
    }

    /// Waits for so many more deliveries.
    pub async fn flows(&self, count: usize) {
        progress(&self.consumer, count).await;
    }

    /// Waits until `/ready` is not 200 and says `text`; its body.
    pub async fn says(&self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            match self.relay.get("/ready").await {
                Some((status, body)) if status != 200 && body.contains(text) => return body,
                answer => {
                    let log = self.relay.log();
                    assert!(begun.elapsed() < LIMIT, "{text:?} is not in {answer:?}\n{log}");
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the application has committed so many more events, whatever the relay does.
    pub async fn written(&self, more: i64) {
        let client = self.bench.client().await;
        let sql = "SELECT coalesce(max(seq), 0) FROM statecast.outbox";
        let count = async || client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
        let (begun, target) = (Instant::now(), count().await + more);
        while count().await < target {
            assert!(begun.elapsed() < LIMIT, "the application does not write any more");
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sessions of the relay that failed.
    pub async fn failures(&self) -> f64 {
        let name = "statecast_sessions_total";
        self.relay.metric_where(name, "transient").await + self.relay.metric_where(name, "permanent").await
    }

    /// Ends the load. Events flow until then, and the relay is ready; what comes of it is clean.
    pub async fn end(self) -> Verdict {
        let (verdict, slowest) = self.end_with(|_| {}).await;
        assert!(slowest < WRITE_MAX, "a write of the application took {slowest:?}");
        verdict
    }

    /// The same for trouble in the database itself, where writes wait. Returns how long the longest did. `excused` takes
    /// out of the verdict what the test expects.
    pub async fn end_with(self, excused: impl FnOnce(&mut Verdict)) -> (Verdict, Duration) {
        self.end_without(&[], excused).await
    }

    /// The same without waiting for events that were given up.
    pub async fn end_without(
        mut self,
        given_up: &[Uuid],
        excused: impl FnOnce(&mut Verdict),
    ) -> (Verdict, Duration) {
        assert!(self.relay.running(), "the relay gave up\n{}", self.relay.log());
        self.flows(100).await;
        self.stop.cancel();
        self.writing.await.unwrap();
        let slowest = self.probing.await.unwrap();
        if let Err(answer) = self.relay.wait_ready(ARRIVAL_LIMIT).await {
            panic!("not ready: {answer}\n{}", self.relay.log());
        }
        let parked = parked(&self.bench).await;
        let relays = std::slice::from_mut(&mut self.relay);
        let mut verdict = self.bench.finish_without(relays, &self.consumer, given_up).await;
        excused(&mut verdict);
        println!("slowest write {slowest:?} · parked {parked}");
        verdict.assert_clean();
        assert_eq!(parked, 0, "an event needs a person\n{}", self.relay.log());
        (verdict, slowest)
    }
}

/// Events that need a person.
pub async fn parked(bench: &Bench) -> i64 {
    let client = bench.client().await;
    let there = client.query_one("SELECT to_regclass('statecast.parked') IS NOT NULL", &[]).await.unwrap();
    if !there.get::<_, bool>(0) {
        return 0;
    }
    let sql = "SELECT count(*) FROM statecast.parked WHERE state = 'parked'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// An application that writes one event after another, each in a transaction of its own: the longest that one took.
/// While the server is away it tries again, which does not count.
async fn probe(url: String, stop: CancellationToken) -> Duration {
    let (mut slowest, mut client, mut n) = (Duration::ZERO, None, 0_i64);
    while !stop.is_cancelled() {
        if client.is_none() {
            client = connect(&url).await.ok();
        }
        if let Some(connected) = &client {
            n += 1;
            let payload = serde_json::json!({ "n": n }).to_string();
            let sql = "SELECT statecast.publish('probe', 'p', 'changed', $1::text::json)";
            let begun = Instant::now();
            match connected.execute(sql, &[&payload]).await {
                Ok(_) => slowest = slowest.max(begun.elapsed()),
                Err(_) => client = None,
            }
        }
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
    slowest
}
