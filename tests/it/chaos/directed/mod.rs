//! For each guarantee that can be switched off (`statecast::switches`) one schedule against real servers. It passes, and
//! with the guarantee off it fails, each time: a step waits for what it needs, never for time.
//!
//! The test prints the table. Knob: `STATECAST_TEST_SWITCH` (one name: only that row).

mod database;
mod delivery;
mod epoch;

use std::time::Duration;

use futures_util::future::join_all;
use statecast::sandbox::Rabbitmq;
use statecast::switches::Guarantee;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::checker::{Verdict, check, read_committed};
use crate::consumer::Consumer;
use crate::process::{Invocation, Relay};
use crate::relay::{ARRIVAL_LIMIT, Bench, READY_LIMIT, STOP_LIMIT};
use crate::servers::{self, unique};

/// For one step; only a fault lasts so long.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks.
const POLL: Duration = Duration::from_millis(10);
/// What a relay says that keeps not all of its promises.
const LOUD: &str = "BROKEN ON PURPOSE";

/// What a schedule came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Harm {
    lost: usize,
    invented: usize,
    inversions: usize,
    renamed: usize,
    /// Older events behind newer ones of their key, repeats included. No schedule has a reason for one: whatever was
    /// confirmed was also written to the cursor before its relay ended.
    descents: usize,
}

impl Harm {
    fn of(verdict: &Verdict) -> Harm {
        assert!(verdict.altered.is_empty(), "{verdict:#?}");
        Harm {
            lost: verdict.lost.len(),
            invented: verdict.invented.len(),
            inversions: verdict.inversion_count(),
            renamed: verdict.renamed.len(),
            descents: verdict.descents_max,
        }
    }

    fn text(self) -> String {
        let Harm { lost, invented, inversions, renamed, descents } = self;
        format!("{lost:>5} {invented:>9} {inversions:>11} {renamed:>8} {descents:>9}")
    }
}

/// What must happen without a guarantee, exactly.
fn expected(guarantee: Guarantee) -> Harm {
    match guarantee {
        Guarantee::Mandatory | Guarantee::Prefix | Guarantee::Reconcile | Guarantee::Prune => {
            Harm { lost: 1, ..Harm::default() }
        }
        Guarantee::KeyOrder => Harm { inversions: 1, descents: 1, ..Harm::default() },
        Guarantee::Fence | Guarantee::Epoch => Harm { descents: 1, ..Harm::default() },
    }
}

async fn schedule(guarantee: Guarantee, off: bool) -> Harm {
    let how = Switch { guarantee, off };
    match guarantee {
        Guarantee::Mandatory => delivery::unroutable(how).await,
        Guarantee::Prefix => delivery::refused_before_confirmed(how).await,
        Guarantee::KeyOrder => delivery::refused_in_its_key(how).await,
        Guarantee::Fence => delivery::held_up_on_the_way(how).await,
        Guarantee::Epoch => epoch::superseded(how).await,
        Guarantee::Reconcile => database::unpublished(how).await,
        Guarantee::Prune => database::running_at_xmax(how).await,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_guarantee_is_missed_when_it_is_switched_off() {
    let only = std::env::var("STATECAST_TEST_SWITCH").ok();
    let wanted = |guarantee: &Guarantee| only.as_deref().is_none_or(|name| name == guarantee.name());
    let rows = join_all(Guarantee::ALL.into_iter().filter(wanted).map(async |guarantee| {
        (guarantee, schedule(guarantee, false).await, schedule(guarantee, true).await)
    }));
    let rows = rows.await;
    assert!(!rows.is_empty(), "STATECAST_TEST_SWITCH={only:?} is no guarantee");
    let columns = " lost  invented  inversions  renamed  descents";
    println!("\n{:<18}| kept: {columns} | off: {columns}", "guarantee");
    for (guarantee, kept, off) in &rows {
        println!("{:<18}|       {} |      {}", guarantee.name(), kept.text(), off.text());
    }
    for (guarantee, kept, off) in rows {
        assert_eq!(kept, Harm::default(), "{guarantee:?} is kept");
        assert_eq!(off, expected(guarantee), "{guarantee:?} is switched off");
    }
}

/// Which guarantee a schedule is about, and whether it is off.
#[derive(Clone, Copy, Debug)]
struct Switch {
    guarantee: Guarantee,
    off: bool,
}

/// A pipeline whose relays go without a guarantee, or do not.
struct Site {
    bench: Bench,
    client: Client,
}

impl Site {
    /// Its queue takes the routing keys of `binding` only.
    async fn new(how: Switch, url: String, broker: &Rabbitmq, binding: &str) -> Site {
        let mut bench = Bench::without_queue(url, broker).await;
        bench.topology.declare_queue(binding, &[]).await;
        bench.invocation = bench.invocation.with("STATECAST_NAME", &unique("directed"));
        if how.off {
            bench.invocation = bench.invocation.with("STATECAST_BREAK", how.guarantee.name());
        }
        let client = bench.client().await;
        Site { bench, client }
    }

    async fn shared(how: Switch, binding: &str) -> Site {
        Site::new(how, servers::fresh_database().await, servers::rabbitmq().await, binding).await
    }

    async fn relay(&self, how: Switch, invocation: &Invocation) -> Relay {
        let relay = invocation.start();
        relay.wait_ready(READY_LIMIT).await.unwrap();
        assert_eq!(relay.log().contains(LOUD), how.off, "{}", relay.log());
        relay
    }

    /// The `n`th event of an order.
    async fn publish(&self, key: &str, event_type: &str, n: i64) -> Uuid {
        publish(&self.client, "order", key, event_type, n).await
    }

    /// Waits until an SQL condition holds.
    #[track_caller]
    fn until<'a>(&'a self, condition: &'a str) -> impl Future<Output = ()> + 'a {
        let (at, begun) = (std::panic::Location::caller(), std::time::Instant::now());
        let sql = format!("SELECT coalesce(({condition}), false)");
        async move {
            while !self.client.query_one(&sql, &[]).await.unwrap().get::<_, bool>(0) {
                assert!(begun.elapsed() < STEP_LIMIT, "{at}: never: {condition}");
                tokio::time::sleep(POLL).await;
            }
        }
    }

    /// Waits until everything that has committed is before the cursor: settled, or taken for it.
    async fn until_settled(&self) {
        self.until(
            "SELECT c.window_seq IS NULL AND bool_and(pg_visible_in_snapshot(o.xid, c.snapshot))
               FROM statecast.cursor c, statecast.outbox o GROUP BY c.pipeline, c.window_seq",
        )
        .await;
    }

    /// Ends the relay, has what may be left published, and judges when the last message of the queue is here.
    async fn judge(&self, mut relay: Relay, consumer: &Consumer) -> Harm {
        relay.sigterm();
        let status = relay.wait(STOP_LIMIT).await;
        assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", relay.log());
        let last = self.publish("last", "changed", 1).await;
        self.bench.invocation.arguments(&["run", "--until-idle"]).succeed().await;
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [last]).await, 0, "the last event did not arrive");
        let verdict = check(&read_committed(&self.client).await.unwrap(), &consumer.seen());
        println!("{}", verdict.summary());
        Harm::of(&verdict)
    }
}

async fn publish(client: &Client, kind: &str, key: &str, event_type: &str, n: i64) -> Uuid {
    let payload = serde_json::json!({ "key": key, "n": n }).to_string();
    let sql = "SELECT statecast.publish($1, $2, $3, $4::text::json)";
    client.query_one(sql, &[&kind, &key, &event_type, &payload]).await.unwrap().get(0)
}
