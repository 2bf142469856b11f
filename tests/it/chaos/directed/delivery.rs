//! The guarantees between relay and broker.

use std::time::Instant;

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeleteOptions};
use lapin::types::AMQPValue;

use super::{Harm, POLL, STEP_LIMIT, Site, Switch, publish};
use crate::consumer::Delivery;
use crate::proxy::{Mode, Proxy};
use crate::relay::ARRIVAL_LIMIT;
use crate::servers::{self, Topology, unique};

/// `mandatory`: an event whose routing key nobody has bound.
pub(super) async fn unroutable(how: Switch) -> Harm {
    let site = Site::shared(how, "order.#").await;
    let consumer = site.bench.consumer();
    let relay = site.relay(how, &site.bench.invocation).await;
    publish(&site.client, "ghost", "g", "changed", 1).await;
    let order = site.publish("k", "changed", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [order]).await, 0);
    // Refused, or taken for confirmed.
    let (begun, mut decided) = (Instant::now(), false);
    while !decided {
        let returned = relay.metric("statecast_broker_returns_total").await;
        decided = returned > 0.0 || relay.metric("statecast_events_confirmed_total").await >= 2.0;
        assert!(begun.elapsed() < STEP_LIMIT, "neither returned nor confirmed\n{}", relay.log());
    }
    site.bench.topology.bind("ghost.#").await;
    let later = publish(&site.client, "ghost", "g", "changed", 2).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [later]).await, 0);
    site.judge(relay, &consumer).await
}

/// A queue that takes nothing more: one message is in it, which is no event.
async fn full_queue(site: &Site, binding: &str) -> Topology {
    let full = Topology { queue: unique("full"), ..site.bench.topology.clone() };
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(1)),
        ("x-overflow", AMQPValue::LongString("reject-publish".into())),
    ];
    full.declare_queue(binding, &arguments).await;
    let (_connection, channel) = full.channel().await;
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let (queue, options) = (full.queue.as_str().into(), BasicPublishOptions::default());
    let publish = channel.basic_publish("".into(), queue, options, b"filler", BasicProperties::default());
    assert!(publish.await.unwrap().await.unwrap().is_ack());
    full
}

/// What was refused goes to the queue that the consumer reads.
async fn make_room(site: &Site, full: &Topology, binding: &str) {
    site.bench.topology.bind(binding).await;
    let (_connection, channel) = full.channel().await;
    channel.queue_delete(full.queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
}

/// `prefix`: an event is refused while a later one, of another key, is confirmed. Then the relay is killed.
pub(super) async fn refused_before_confirmed(how: Switch) -> Harm {
    let site = Site::shared(how, "order.changed").await;
    let (consumer, full) = (site.bench.consumer(), full_queue(&site, "order.full").await);
    let mut relay = site.relay(how, &site.bench.invocation).await;
    let first = site.publish("k1", "changed", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first]).await, 0);
    site.until_settled().await;
    // One window, so that the cursor tells them apart by its prefix alone.
    site.client.batch_execute("BEGIN").await.unwrap();
    site.publish("k2", "full", 1).await;
    let later = site.publish("k3", "changed", 1).await;
    site.client.batch_execute("COMMIT").await.unwrap();
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [later]).await, 0);
    assert!(relay.wait_for_metric("statecast_broker_nacks_total", 0.0, STEP_LIMIT).await);
    if how.off {
        site.until_settled().await;
    }
    relay.kill9();
    make_room(&site, &full, "order.full").await;
    let relay = site.relay(how, &site.bench.invocation).await;
    site.judge(relay, &consumer).await
}

/// `key_order`: the first event of a key is refused, the second is not.
pub(super) async fn refused_in_its_key(how: Switch) -> Harm {
    let site = Site::shared(how, "order.changed").await;
    let (consumer, full) = (site.bench.consumer(), full_queue(&site, "order.full").await);
    let relay = site.relay(how, &site.bench.invocation).await;
    site.client.batch_execute("BEGIN").await.unwrap();
    let first = site.publish("k", "full", 1).await;
    let second = site.publish("k", "changed", 2).await;
    site.client.batch_execute("COMMIT").await.unwrap();
    assert!(relay.wait_for_metric("statecast_broker_nacks_total", 0.0, STEP_LIMIT).await);
    make_room(&site, &full, "order.full").await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first, second]).await, 0);
    site.judge(relay, &consumer).await
}

/// `fence`: a relay is killed while a message of its is still on its way; that arrives when the successor is at work.
pub(super) async fn held_up_on_the_way(how: Switch) -> Harm {
    let site = Site::shared(how, "order.#").await;
    let consumer = site.bench.consumer();
    let proxy = Proxy::start(format!("127.0.0.1:{}", servers::rabbitmq().await.port())).await;
    let through = site.bench.invocation.replica();
    let through = through.with("STATECAST_RABBITMQ__URLS", &proxy.url(&site.bench.topology.url));
    let mut dead = site.relay(how, &through).await;
    let first = site.publish("k", "changed", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first]).await, 0);
    site.until_settled().await;
    let taken = proxy.up_bytes();
    proxy.set(Mode::StallUp);
    let second = site.publish("k", "changed", 2).await;
    let begun = Instant::now();
    // More than a heartbeat: the message has left the process.
    while proxy.up_bytes() < taken + 300 {
        assert!(begun.elapsed() < STEP_LIMIT, "nothing was sent\n{}", dead.log());
        tokio::time::sleep(POLL).await;
    }
    dead.kill9();
    let mut relay = site.bench.invocation.start();
    let text = second.to_string();
    let arrivals = |deliveries: &[Delivery]| {
        deliveries.iter().filter(|delivery| delivery.message_id.as_deref() == Some(&text)).count()
    };
    let came = || arrivals(&consumer.deliveries()) > 0;
    while !relay.log().contains("waiting until the broker is done") && !came() {
        assert!(begun.elapsed() < STEP_LIMIT && relay.running(), "{}", relay.log());
        tokio::time::sleep(POLL).await;
    }
    let early = came();
    if early {
        let third = site.publish("k", "changed", 3).await;
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [third]).await, 0);
    }
    // First what was held up, then the end of the connection, which may overtake it inside the broker.
    proxy.set(Mode::Linger);
    let late = consumer.wait_for(STEP_LIMIT, |deliveries| arrivals(deliveries) > usize::from(early)).await;
    assert!(late, "what was held up for {:?} did not arrive", begun.elapsed());
    proxy.set(Mode::Pass);
    if !early {
        let third = site.publish("k", "changed", 3).await;
        assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [third]).await, 0);
    }
    assert_eq!(early, how.off, "the successor waits for the fence, unless it is off\n{}", relay.log());
    relay.wait_ready(STEP_LIMIT).await.unwrap();
    site.judge(relay, &consumer).await
}
