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
    let mut ids: Vec<Uuid> = Vec::new();
    for n in 0..30 {
        let bytes = if n == 17 { 30_000 } else { 100 };
        let sql =
            "SELECT statecast.publish('order', $1, 'changed', json_build_object('pad', repeat('x', $2)))";
        ids.push(client.query_one(sql, &[&format!("k{n}"), &bytes]).await.unwrap().get(0));
    }
    let culprit = ids.remove(17);
    let (code, _, log) = run.arguments(&["run", "--until-idle"]).output(Duration::from_secs(60)).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains(&culprit.to_string()) && log.contains("too_large"), "{log}");
    assert_eq!(
        consumer.wait_for_ids(Duration::from_secs(10), ids).await,
        0,
        "all others are delivered\n{log}"
    );
    let sql = "SELECT c.confirmed, c.parked, p.event_id, p.state, p.reason, p.detail
                 FROM statecast.cursor c JOIN statecast.parked p USING (pipeline)";
    let row = client.query_one(sql, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (29, 1));
    assert_eq!(
        (row.get::<_, Uuid>(2), row.get::<_, &str>(3), row.get::<_, &str>(4)),
        (culprit, "parked", "too_large")
    );
    println!("{}", row.get::<_, &str>(5));
    run.arguments(&["status", "--verify"]).succeed().await;
}
