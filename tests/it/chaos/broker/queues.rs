//! Queues, exchanges and permissions that somebody changes while the relay runs.

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};

use super::private;
use crate::chaos::trouble::Trouble;
use crate::checker::{check, read_committed};
use crate::consumer::Consumer;
use crate::relay::{ARRIVAL_LIMIT, Bench};
use crate::servers::{self, Topology, unique};

/// A queue that takes so many messages and no more.
fn full(length: i32) -> [(&'static str, AMQPValue); 2] {
    [
        ("x-max-length", AMQPValue::LongInt(length)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ]
}

/// What a full queue of a fanout refuses, the healthy one may see more than once. Neither loses anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_full_queue_in_a_fanout_with_a_healthy_one() {
    let bench = Bench::shared().await;
    let other = Topology { queue: unique("full"), ..bench.topology.clone() };
    other.declare_queue("#", &full(50)).await;
    let drained = Consumer::start(&other.url, &other.queue);
    let trouble = Trouble::begin(bench).await;
    drop(drained);
    assert!(trouble.relay.wait_for_metric("statecast_broker_nacks_total", 0.0, ARRIVAL_LIMIT).await);
    trouble.written(200).await;
    // More than once: paused keys come back, and fill it again.
    let drained = Consumer::start(&other.url, &other.queue);
    trouble.flows(200).await;
    let (bench_url, failures) = (trouble.bench.url.clone(), trouble.failures().await);
    assert_eq!(failures, 0.0, "a nack ends no session");
    trouble.end().await;
    // The first consumer of the full queue has acknowledged what it saw; the second has seen the rest.
    let committed = read_committed(&servers::connect(&bench_url).await.unwrap()).await.unwrap();
    let last = committed.last().unwrap().event_id;
    assert_eq!(drained.wait_for_ids(ARRIVAL_LIMIT, [last]).await, 0);
    let mut verdict = check(&committed, &drained.seen());
    verdict.lost.clear();
    println!("the full queue: {}", verdict.summary());
    verdict.assert_clean();
}

/// The exchange goes, and comes back with its bindings.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_exchange_is_deleted_and_made_again() {
    let trouble = Trouble::begin(Bench::shared().await).await;
    let topology = trouble.bench.topology.clone();
    let (_connection, channel) = topology.channel().await;
    let exchange = topology.exchange.as_str();
    channel.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await.unwrap();
    let body = trouble.says("exchange").await;
    assert!(body.contains(exchange), "{body}");
    trouble.written(100).await;
    topology.declare_exchange().await;
    // Without a binding everything comes back as unroutable.
    assert!(trouble.relay.wait_for_metric("statecast_broker_returns_total", 0.0, ARRIVAL_LIMIT).await);
    topology.bind("#").await;
    trouble.flows(200).await;
    trouble.end().await;
}

/// The queue goes, and a new one takes its place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_only_queue_is_deleted_and_made_again() {
    let trouble = Trouble::begin(Bench::shared().await).await;
    let topology = trouble.bench.topology.clone();
    // What is in it is gone with it, which is for whoever deletes it: so nothing is.
    let (_connection, channel) = topology.channel().await;
    let (queue, exchange) = (topology.queue.as_str(), topology.exchange.as_str().into());
    channel.queue_unbind(queue.into(), exchange, "#".into(), FieldTable::default()).await.unwrap();
    assert!(trouble.relay.wait_for_metric("statecast_broker_returns_total", 0.0, ARRIVAL_LIMIT).await);
    trouble.drained().await;
    channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    topology.declare_queue("#", &[]).await;
    trouble.flows(200).await;
    trouble.end().await;
}

/// Rights are checked when a connection uses them first, so the connections are closed as well.
async fn permission(revoked: [&str; 3], says: &str) {
    let (broker, trouble) = private().await;
    let set = async |rights: [&str; 3]| {
        broker.ctl(&["set_permissions", "guest", rights[0], rights[1], rights[2]]).await.unwrap();
    };
    set(revoked).await;
    broker.ctl(&["close_all_connections", "rights have changed"]).await.unwrap();
    let body = trouble.says(says).await;
    println!("{body}");
    trouble.written(100).await;
    set([".*", ".*", ".*"]).await;
    trouble.flows(200).await;
    trouble.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_permission_to_write_is_revoked_and_given_back() {
    permission([".*", "", ".*"], "ACCESS_REFUSED").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_permission_for_everything_is_revoked_and_given_back() {
    permission(["", "", ""], "configure permission").await;
}
