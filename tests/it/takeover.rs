//! The fence: while the broker still works for a dead predecessor its exclusive queues are taken, and until they are
//! ours nothing is published.

use std::time::Duration;

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection};
use statecast::sink::fence::queue_name;

use crate::relay::{ARRIVAL_LIMIT, Bench};
use crate::servers::{self, Topology, unique};

/// Takes a lane's fence, as a relay does; `None` while somebody else has it.
async fn take(topology: &Topology, pipeline: &str, lane: usize) -> Option<(Connection, Channel)> {
    let (connection, channel) = topology.channel().await;
    let name = queue_name(pipeline, lane);
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let declared = channel.queue_declare(name.as_str().into(), exclusive, FieldTable::default()).await;
    declared.ok().map(|_| (connection, channel))
}

async fn bench() -> (Bench, String) {
    let mut bench = Bench::new(servers::fresh_database().await, servers::rabbitmq().await).await;
    let pipeline = unique("fenced");
    bench.invocation = bench.invocation.with("STATECAST_NAME", &pipeline);
    (bench, pipeline)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_published_while_a_predecessor_has_the_fence() {
    // The second lane is one that only the predecessor had: the cursor row says so.
    for lane in [0, 1] {
        let (bench, pipeline) = bench().await;
        let consumer = bench.consumer();
        let mut first = bench.invocation.clone().with("STATECAST_RABBITMQ__LANES", "2").start();
        first.wait_ready(ARRIVAL_LIMIT).await.unwrap();
        let before = bench.publish("order", "k", 1).await;
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [before]).await, 0);
        first.kill9();
        let mut predecessor = None;
        while predecessor.is_none() {
            predecessor = take(&bench.topology, &pipeline, lane).await;
        }
        let event = bench.publish("order", "k", 2).await;
        let mut second = bench.invocation.start();
        assert!(
            second.wait_for_log("RESOURCE_LOCKED", ARRIVAL_LIMIT).await,
            "it does not try to take the fence"
        );
        // A relay without the fence would have published long since.
        let early = consumer.wait_for_ids(Duration::from_secs(2), [event]).await == 0;
        assert!(!early && second.metric("statecast_events_read_total").await == 0.0, "lane {lane}");
        assert!(second.running());
        let (connection, _channel) = predecessor.unwrap();
        connection.close(200, "".into()).await.unwrap();
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [event]).await, 0);
        bench.finish(&mut [second], &consumer).await.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_holds_its_fence_for_as_long_as_it_publishes() {
    let (bench, pipeline) = bench().await;
    let consumer = bench.consumer();
    let relay = bench.relay().await;
    for n in 1..=3 {
        let event = bench.publish("order", "k", n).await;
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [event]).await, 0);
        assert!(take(&bench.topology, &pipeline, 0).await.is_none(), "the fence is free");
    }
    bench.finish(&mut [relay], &consumer).await.assert_clean();
    assert!(take(&bench.topology, &pipeline, 0).await.is_some(), "the fence was left behind");
}
