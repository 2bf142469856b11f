//! The guarantees between relay and database.

use statecast::event::Seq;

use super::{Harm, Site, Switch};
use crate::process::Relay;
use crate::relay::ARRIVAL_LIMIT;
use crate::schedules::{Writer, turn};
use crate::servers::{self, connect, unique};
use crate::wal_bench::{WalBench, wait_streaming};

const BREAKS: &str = "ALTER PUBLICATION statecast SET (publish = 'update')";
const MENDS: &str = "ALTER PUBLICATION statecast SET (publish = 'insert')";

/// `reconcile`: somebody edits the publication, and mends it before anybody looks. One event is not streamed.
pub(super) async fn unpublished(how: Switch) -> Harm {
    let bench = WalBench::start(&[]).await;
    let site = Site::new(
        how,
        bench.server.create_database(&unique("db")).await.unwrap(),
        servers::rabbitmq().await,
        "#",
    );
    let mut site = site.await;
    site.bench.invocation = site.bench.invocation.with("STATECAST_SOURCE__MODE", "wal");
    site.bench.invocation.arguments(&["install"]).succeed().await;
    let consumer = site.bench.consumer();
    let relay = site.relay(how, &site.bench.invocation).await;
    wait_streaming(&relay).await;
    let first = site.publish("a", "changed", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first]).await, 0);
    // In one transaction with the event, so that nobody looks in between. No other event of its key: with an edited
    // publication order is not promised.
    let sql = format!(
        "BEGIN; {BREAKS}; SELECT statecast.publish('order', 'b', 'changed', '{{\"n\": 1}}'); COMMIT; {MENDS}"
    );
    site.client.batch_execute(&sql).await.unwrap();
    let next = site.publish("a", "changed", 2).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [next]).await, 0);
    site.until_settled().await;
    let harm = site.judge(relay, &consumer).await;
    drop(bench);
    harm
}

/// `prune_by_max_seq`: the schedule of the design's §3. P is taken when the younger transaction runs, at `xmax(P)`, and
/// owns the smaller seq. A lock on the cursor row keeps the keeper's own transactions from completing meanwhile.
pub(super) async fn running_at_xmax(how: Switch) -> Harm {
    let server = turn().await;
    let url = server.create_database(&unique("db")).await.unwrap();
    let site = Site::new(how, url.clone(), servers::rabbitmq().await, "#").await;
    let consumer = site.bench.consumer();
    let seed = site.publish("seed", "changed", 1).await;
    let relay = site.relay(how, &site.bench.invocation).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [seed]).await, 0);
    site.until_settled().await;
    let (t0, t1) = (Writer::new(&url).await, Writer::new(&url).await);
    let lock = connect(&url).await.unwrap();
    lock.batch_execute("BEGIN; SELECT FROM statecast.cursor FOR UPDATE").await.unwrap();
    freeze(&site, &relay).await;
    let (x0, x1) = (t0.begin().await, t1.begin().await);
    assert!(x0 < x1);
    let small: Seq = t1.write("b", 1).await;
    assert!(small < t0.write("a", 1).await);
    t0.commit().await;
    relay.resume();
    // P is taken with the event that arrives, at the latest.
    let first = consumer.wait_for(ARRIVAL_LIMIT, |deliveries| deliveries.len() >= 2).await;
    assert!(first, "the event of the older transaction did not arrive");
    freeze(&site, &relay).await;
    t1.commit().await;
    let next = site.publish("c", "changed", 1).await;
    relay.resume();
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [next]).await, 0);
    lock.batch_execute("ROLLBACK").await.unwrap();
    site.until_settled().await;
    site.judge(relay, &consumer).await
}

/// Stops a relay between two questions. With the guarantee off, a row that is written while it takes a snapshot would be
/// lost as well.
async fn freeze(site: &Site, relay: &Relay) {
    relay.pause();
    site.until(
        "SELECT count(*) = 0 FROM pg_stat_activity
          WHERE application_name LIKE 'statecast %' AND datname = current_database() AND state = 'active'
            AND wait_event_type IS DISTINCT FROM 'Lock'",
    )
    .await;
}
