//! Long jobs as the real binary runs them: what they say on the way, and that they wait for what they promise.

use std::time::Duration;

use serde_json::Value;

use crate::process::Invocation;
use crate::servers::{Topology, fresh_database, rabbitmq, unique};

const LIMIT: Duration = Duration::from_secs(60);

async fn site() -> Invocation {
    let url = fresh_database().await;
    let topology = Topology::new(rabbitmq().await.url());
    topology.declare().await;
    let statecast = Invocation::run(&url, &topology, &unique("progress"));
    statecast.arguments(&["install"]).succeed().await;
    statecast
}

#[tokio::test]
async fn retry_waits_until_the_leader_has_published() {
    let statecast = site().await;
    let payload = format!("{{\"text\": \"{}\"}}", "x".repeat(4096));
    statecast.arguments(&["publish", "order", "1", "order.placed", &payload]).succeed().await;
    let small = statecast.clone().with("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "2KiB");
    small.arguments(&["run", "--until-idle"]).succeed().await;
    let status = async || -> Value {
        serde_json::from_str(&statecast.arguments(&["status", "--json"]).succeed().await).unwrap()
    };
    assert_eq!(status().await["parked"], 1);

    let leader = statecast.start();
    leader.wait_ready(LIMIT).await.unwrap();
    leader.pause();
    let mut retry = statecast.arguments(&["parked", "retry", "--all", "--wait"]).start();
    assert!(retry.wait_for_log("0/1 events done by the leader", LIMIT).await, "{}", retry.log());
    assert!(retry.running() && !retry.log().contains("is done"), "{}", retry.log());
    leader.resume();
    assert!(retry.wait(LIMIT).await.unwrap().success(), "{}", retry.log());
    assert!(retry.log().contains("the leader is done"), "{}", retry.log());
    let status = status().await;
    assert_eq!((&status["parked"], &status["confirmed"]), (&0.into(), &1.into()), "at once: {status}");
}

#[tokio::test]
async fn maintain_says_its_steps() {
    let (code, stdout, stderr) = site().await.arguments(&["maintain"]).output(LIMIT).await;
    assert_eq!((code, stderr.as_str()), (Some(0), "0/5 chunks before the tail\n4/5 retention\n"), "{stdout}");
}
