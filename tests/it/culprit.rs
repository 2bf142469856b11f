//! A broker whose own limit is lower than ours closes the channel and does not say over which message.

use std::time::Duration;

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};
use uuid::Uuid;

use crate::consumer::Consumer;
use crate::process::Invocation;
use crate::servers::{Topology, connect, fresh_database, unique};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_brokers_own_limit_is_found_among_others() {
    let options =
        RabbitmqOptions { config: vec!["max_message_size = 20000".to_owned()], ..Default::default() };
    let broker = Rabbitmq::start(options).await.unwrap();
    let url = fresh_database().await;
    let topology = Topology::new(broker.url());
    topology.declare().await;
    let consumer = Consumer::start(&topology.url, &topology.queue);
    let run = Invocation::run(&url, &topology, &unique("pipeline"));
    run.arguments(&["install"]).succeed().await;
    let client = connect(&url).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..30 {
        let bytes = if n == 17 { 30_000 } else { 100 };
        let sql =
            "SELECT statecast.publish('order', $1, 'changed', json_build_object('pad', repeat('x', $2)))";
        let id: Uuid = client.query_one(sql, &[&format!("k{n}"), &bytes]).await.unwrap().get(0);
        ids.push(id);
    }
    let culprit = ids[17];
    ids.truncate(17);
    let (code, _, log) = run.output(Duration::from_secs(30)).await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains(&culprit.to_string()) && log.contains("too_large"), "{log}");
    assert!(log.contains("raise that limit"), "the remedy: {log}");
    assert_eq!(
        consumer.wait_for_ids(Duration::from_secs(10), ids).await,
        0,
        "what stands before it was delivered\n{log}"
    );
    let row = client.query_one("SELECT window_seq, confirmed FROM statecast.cursor", &[]).await.unwrap();
    assert_eq!(
        (row.get::<_, Option<i64>>(0), row.get::<_, i64>(1)),
        (Some(17), 17),
        "the cursor stays before it"
    );
}
