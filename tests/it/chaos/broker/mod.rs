//! Trouble with the broker. It is never an event's fault: nothing is parked, nothing is lost, and the application writes on.

mod alarms;
mod cluster;
mod limits;
mod network;
mod queues;

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};

use super::trouble::Trouble;
use crate::relay::Bench;
use crate::servers;

/// A broker of one's own, and a relay at work on it.
async fn private() -> (Rabbitmq, Trouble) {
    let broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let bench = Bench::new(servers::fresh_database().await, &broker).await;
    let trouble = Trouble::begin(bench).await;
    (broker, trouble)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_restarts_in_good_order() {
    let (mut broker, trouble) = private().await;
    broker.stop().await.unwrap();
    trouble.says("RabbitMQ").await;
    trouble.written(100).await;
    broker.start_again().await.unwrap();
    trouble.flows(200).await;
    trouble.end().await;
}
