//! Three nodes: one after another restarts, one is lost, and one has the only replica of a queue.
//!
//! Expensive (three Erlang VMs, minutes on two cores), so these run in `make chaos`.
//!
//! Who consumes from a node that dies may get what it was sent last again, after newer ones: the broker's redelivery, which
//! says nothing about the relay. So the judge is a second queue that nobody reads before the end: there each message stands
//! where the broker took it in.

use std::collections::HashSet;
use std::time::Duration;

use lapin::types::AMQPValue;
use statecast::sandbox::{RabbitmqCluster, RabbitmqOptions};
use uuid::Uuid;

use crate::chaos::trouble::{Trouble, parked};
use crate::checker::{check, read_committed};
use crate::consumer::Consumer;
use crate::relay::{ARRIVAL_LIMIT, Bench};
use crate::servers::{self, Topology, unique};

const NODES: usize = 3;

/// A cluster and a relay at work that knows all of its nodes.
struct Site {
    cluster: RabbitmqCluster,
    trouble: Trouble,
    archive: String,
}

impl Site {
    async fn start(queue_type: &str) -> Site {
        let options = RabbitmqOptions { memory_watermark: "400MiB".to_owned(), ..Default::default() };
        let cluster = RabbitmqCluster::start(NODES, options).await.unwrap();
        let mut bench = Bench::without_queue(servers::fresh_database().await, &cluster.nodes[0]).await;
        // A classic queue lives where it was declared: on the last node. A quorum queue lives on all.
        let home = Topology { url: cluster.nodes[NODES - 1].url(), ..bench.topology.clone() };
        let kind = [("x-queue-type", AMQPValue::LongString(queue_type.into()))];
        home.declare_queue("#", &kind).await;
        let archive = unique("archive");
        Topology { queue: archive.clone(), ..home }.declare_queue("#", &kind).await;
        let urls = cluster.urls();
        bench.invocation = bench.invocation.with("STATECAST_RABBITMQ__URLS", &urls.join(" "));
        // Returns because of a node that is away must not park: not even when nobody has patience.
        bench.invocation = bench.invocation.with("STATECAST_UNROUTABLE__PARK_AFTER", "5s");
        let consumer = Consumer::start_any(&urls, &bench.topology.queue);
        Site { cluster, trouble: Trouble::begin_with(bench, consumer).await, archive }
    }

    async fn back(&mut self, number: usize) {
        self.cluster.nodes[number].start_again().await.unwrap();
        self.cluster.joined().await.unwrap();
    }

    async fn end(self) {
        let client = self.trouble.bench.client().await;
        let seen_twice: HashSet<Uuid> = {
            let deliveries = self.trouble.consumer.seen();
            deliveries.iter().filter(|seen| seen.redelivered).map(|seen| seen.event_id).collect()
        };
        self.trouble
            .end_with(|verdict| {
                verdict.inversions.retain(|_, late| late.iter().any(|late| !seen_twice.contains(&late.late)));
            })
            .await;
        let committed = read_committed(&client).await.unwrap();
        let archive = Consumer::start_any(&self.cluster.urls(), &self.archive);
        archive.wait_for_ids(ARRIVAL_LIMIT, committed.iter().map(|row| row.event_id)).await;
        let verdict = check(&committed, &archive.seen());
        println!("archive: {}", verdict.summary());
        verdict.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three nodes: in make chaos"]
async fn cluster_rolling_restart_parks_nothing() {
    let mut site = Site::start("quorum").await;
    for number in 0..NODES {
        site.cluster.nodes[number].stop().await.unwrap();
        println!("node {number} is stopped");
        site.trouble.flows(100).await;
        site.back(number).await;
        println!("node {number} is back");
        site.trouble.flows(100).await;
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three nodes: in make chaos"]
async fn cluster_loses_a_node() {
    let mut site = Site::start("quorum").await;
    for number in 0..NODES {
        site.cluster.nodes[number].kill9();
        site.trouble.flows(300).await;
        site.back(number).await;
    }
    site.end().await;
}

/// While the only node of a queue is away, everything comes back as unroutable. That is an outage, not poison.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three nodes: in make chaos"]
async fn cluster_classic_queue_whose_node_is_away() {
    let mut site = Site::start("classic").await;
    site.cluster.nodes[NODES - 1].stop().await.unwrap();
    let relay = &site.trouble.relay;
    assert!(relay.wait_for_metric("statecast_broker_returns_total", 0.0, ARRIVAL_LIMIT).await);
    site.trouble.written(500).await;
    // Longer than `unroutable.park_after`.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(parked(&site.trouble.bench).await, 0, "{}", relay.log());
    site.back(NODES - 1).await;
    site.trouble.flows(300).await;
    site.end().await;
}
