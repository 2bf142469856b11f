//! The way to the broker: one direction lost, slow, or without answers.

use std::time::{Duration, Instant};

use crate::amqp_proxy::AmqpProxy;
use crate::chaos::trouble::{LIMIT, Trouble};
use crate::proxy::{Mode, Proxy};
use crate::relay::Bench;
use crate::servers;

/// Heartbeats, both ways: a silent peer is gone in about ten seconds.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

async fn proxied() -> (Proxy, Trouble) {
    let mut bench = Bench::shared().await;
    let proxy = Proxy::start(format!("127.0.0.1:{}", servers::rabbitmq().await.port())).await;
    let url = proxy.url(&bench.topology.url);
    bench.invocation = bench.invocation.with("STATECAST_RABBITMQ__URLS", &url);
    (proxy, Trouble::begin(bench).await)
}

/// One direction is lost. The relay notices, and goes on by another connection.
async fn half_open(mode: Mode) {
    let (proxy, trouble) = proxied().await;
    proxy.set(mode);
    let begun = Instant::now();
    while trouble.failures().await == 0.0 {
        assert!(begun.elapsed() < NOTICED_WITHIN, "{mode:?} is not noticed\n{}", trouble.relay.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{mode:?}: noticed after {:?}", begun.elapsed());
    trouble.written(50).await;
    // What was lost in the middle of a frame never comes: only new connections are of use.
    proxy.cut();
    proxy.set(Mode::Pass);
    trouble.flows(200).await;
    trouble.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_hears_nothing() {
    half_open(Mode::DropUp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_is_not_heard() {
    half_open(Mode::DropDown).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_connection_is_half_open() {
    half_open(Mode::HalfOpen).await;
}

/// Slow is not broken: less flows, nothing else happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_is_slow() {
    let (proxy, trouble) = proxied().await;
    proxy.set(Mode::Slow(30_000));
    trouble.flows(100).await;
    trouble.written(200).await;
    trouble.flows(50).await;
    assert_eq!(trouble.failures().await, 0.0, "{}", trouble.relay.log());
    proxy.set(Mode::Pass);
    trouble.flows(200).await;
    let verdict = trouble.end().await;
    assert_eq!(verdict.duplicates, 0, "{}", verdict.summary());
}

/// The broker takes everything, answers heartbeats and confirms nothing: said by name, and no reason to reconnect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_confirms_nothing_for_a_while() {
    let mut bench = Bench::shared().await;
    let proxy = AmqpProxy::start(format!("127.0.0.1:{}", servers::rabbitmq().await.port())).await;
    let url = proxy.url(&bench.topology.url);
    let invocation = bench.invocation.with("STATECAST_RABBITMQ__URLS", &url);
    bench.invocation = invocation.with("STATECAST_RABBITMQ__CONFIRM_TIMEOUT", "2s");
    let trouble = Trouble::begin(bench).await;
    proxy.hold(true);
    let begun = Instant::now();
    trouble.says("no confirm for").await;
    println!("said after {:?}", begun.elapsed());
    trouble.written(200).await;
    // Longer than heartbeats would wait.
    while begun.elapsed() < Duration::from_secs(12) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() < LIMIT && proxy.held() > 0, "nothing was held back");
    assert_eq!(trouble.failures().await, 0.0, "{}", trouble.relay.log());
    proxy.hold(false);
    trouble.flows(200).await;
    let verdict = trouble.end().await;
    assert_eq!(verdict.duplicates, 0, "{}", verdict.summary());
}
