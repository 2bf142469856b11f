//! `statecast doctor` on the broker: each fault is made, found by its code, and taken back.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use statecast::sandbox::{RabbitmqCluster, RabbitmqOptions};

use crate::consumer::Consumer;
use crate::doctor::{Report, Site, broker, policy, put, shared, wait_to_say};
use crate::process::Invocation;
use crate::servers::{Topology, fresh_database, unique};

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

async fn exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    durable: bool,
    arguments: &[(&str, AMQPValue)],
) {
    let options = ExchangeDeclareOptions { durable, ..Default::default() };
    channel.exchange_declare(name.into(), kind, options, table(arguments)).await.unwrap();
}

async fn queue(channel: &Channel, name: &str, durable: bool, arguments: &[(&str, AMQPValue)]) {
    let options = QueueDeclareOptions { durable, ..Default::default() };
    channel.queue_declare(name.into(), options, table(arguments)).await.unwrap();
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) {
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanges_and_queues_over_amqp() {
    let topology = Topology::new(broker().await.url());
    let statecast = Invocation::run(&fresh_database().await, &topology, &unique("doctor"))
        .with("STATECAST_RABBITMQ__QUEUES", &topology.queue);
    let report = Report::of(&statecast, &[]).await;
    report.must_say("exchange-missing", "error", &[&topology.exchange, "rabbitmq.declare"]);
    report.must_say("queue-missing", "error", &[&topology.queue]);
    report.must_say("broker-alarm", "not examined", &["rabbitmq.management_url is not set"]);
    let creates = statecast.clone().with("STATECAST_RABBITMQ__DECLARE", "create");
    let report = Report::of(&creates, &[]).await;
    report.must_say("exchange-missing", "info", &["`run` will create it"]);
    report.must_say("queue-missing", "info", &["`run` will create it"]);
    topology.declare().await;
    let report = Report::of(&statecast, &[]).await;
    report.must_be_ok("exchange-missing");
    report.must_be_ok("queue-missing");
    // One of two brokers.
    let two = format!("amqp://guest:guest@127.0.0.1:1/%2f {}", topology.url);
    let report = Report::of(&statecast.clone().with("STATECAST_RABBITMQ__URLS", &two), &[]).await;
    report.must_say("rabbitmq-unreachable", "warning", &["127.0.0.1:1"]);
    report.must_be_ok("exchange-missing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bindings_that_are_missing_or_hidden() {
    let site = Site::shared(true).await;
    site.publish("placed").await;
    site.publish("paid").await;
    let (_connection, channel) = site.topology.channel().await;
    let with = |exchange: &str| site.statecast.clone().with("STATECAST_RABBITMQ__EXCHANGE", exchange);
    let (own, rest) = (unique("exchange"), unique("exchange"));
    exchange(&channel, &own, ExchangeKind::Topic, true, &[]).await;
    let report = Report::of(&with(&own), &[]).await;
    report.must_say("binding-none", "error", &[&own]);
    report.must_say("type-unbound", "error", &["order.placed", "order.paid"]);
    bind(&channel, &site.topology.queue, &own, "order.placed").await;
    let report = Report::of(&with(&own), &[]).await;
    report.must_be_ok("binding-none");
    report.must_say("type-unbound", "error", &["no queue takes order.paid"]);
    assert_eq!(report.exit, 1);

    // A catch-all beside it hides that.
    let log = unique("log");
    queue(&channel, &log, true, &[]).await;
    bind(&channel, &log, &own, "#").await;
    let report = Report::of(&with(&own), &[]).await;
    report.must_be_ok("type-unbound");
    report.must_say("catch-all", "warning", &[&log, "order.paid"]);

    // So does an alternate exchange, by argument or by policy.
    exchange(&channel, &rest, ExchangeKind::Fanout, true, &[]).await;
    bind(&channel, &log, &rest, "").await;
    let with_alternate = unique("exchange");
    exchange(&channel, &with_alternate, ExchangeKind::Topic, true, &[("alternate-exchange", text(&rest))])
        .await;
    bind(&channel, &site.topology.queue, &with_alternate, "order.placed").await;
    let report = Report::of(&with(&with_alternate), &[]).await;
    report.must_say("alternate-exchange", "warning", &[&rest, "order.paid go there"]);
    report.must_be_ok("type-unbound");
    let by_policy = unique("exchange");
    exchange(&channel, &by_policy, ExchangeKind::Topic, true, &[]).await;
    bind(&channel, &site.topology.queue, &by_policy, "order.*").await;
    let definition = format!(r#"{{"alternate-exchange":"{rest}"}}"#);
    policy(broker().await, &by_policy, "exchanges", &definition).await;
    let report =
        wait_to_say(&with(&by_policy), "alternate-exchange", "warning", &[&rest, "no type seen"]).await;
    report.must_say("policy-applies", "info", &[&by_policy]);

    // An exchange that is gone after a restart; and one behind another.
    let transient = unique("exchange");
    exchange(&channel, &transient, ExchangeKind::Topic, false, &[]).await;
    let (options, none) = (lapin::options::ExchangeBindOptions::default(), FieldTable::default());
    channel
        .exchange_bind(rest.as_str().into(), transient.as_str().into(), "order.*".into(), options, none)
        .await
        .unwrap();
    let report = Report::of(&with(&transient), &[]).await;
    report.must_say("exchange-transient", "warning", &["not durable"]);
    report.must_be_ok("type-unbound");
    report.must_say("queue-no-consumer", "warning", &[&log]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_types_are_not_known_is_said() {
    let site = Site::shared(true).await;
    site.publish("placed").await;
    site.sql("BEGIN; LOCK TABLE statecast.outbox").await;
    // lock_not_available
    site.report().await.must_say("type-unbound", "not examined", &["not known", "55P03"]);
    site.sql("ROLLBACK").await;
    site.report().await.must_be_ok("type-unbound");
    let nobody = "postgres://nobody@127.0.0.1:1/none".to_owned();
    for (url, why) in [(fresh_database().await, "no schema"), (nobody, "no connection")] {
        let statecast = site.statecast.clone().with("STATECAST_POSTGRES__URL", &url);
        Report::of(&statecast, &[]).await.must_say("type-unbound", "not examined", &["not known", why]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_that_lose_or_pile_up() {
    let site = Site::shared(true).await;
    let (_connection, channel) = site.topology.channel().await;
    let own = &site.topology.exchange;
    let [short, safe, aged, capped, flying] = ["short", "safe", "aged", "capped", "flying"].map(unique);
    queue(&channel, &short, true, &[("x-max-length", AMQPValue::LongInt(10))]).await;
    let rejects = [("x-max-length", AMQPValue::LongInt(10)), ("x-overflow", text("reject-publish"))];
    queue(&channel, &safe, true, &rejects).await;
    queue(&channel, &aged, true, &[("x-message-ttl", AMQPValue::LongInt(60_000))]).await;
    queue(&channel, &capped, true, &[]).await;
    queue(&channel, &flying, false, &[]).await;
    for name in [&short, &safe, &aged, &capped, &flying] {
        bind(&channel, name, own, "order.#").await;
    }
    policy(broker().await, &capped, "queues", r#"{"max-length-bytes":1000}"#).await;
    let _consumer = Consumer::start(&site.topology.url, &site.topology.queue);
    let report = wait_to_say(
        &site.statecast,
        "queue-drops",
        "warning",
        &[&capped, "max-length-bytes is 1000", "policy"],
    )
    .await;
    report.must_say("queue-drops", "warning", &[&short, "max-length is 10", "by argument", "for good"]);
    report.must_say("queue-drops", "warning", &[&aged, "message-ttl is 60000"]);
    assert!(report.with("queue-drops").all(|found| !found.holds(&[&safe])));
    report.must_say("queue-transient", "warning", &[&flying, "not durable"]);
    report.must_say("queue-no-consumer", "warning", &[&short]);
    report.must_say("policy-applies", "info", &[&capped]);
    report.must_be_ok("queue-not-replicated");
    let own_queue = &site.topology.queue;
    let report = wait_to_say(&site.statecast, "queue-no-consumer", "warning", &[&safe]).await;
    assert!(report.with("queue-no-consumer").all(|found| !found.holds(&[own_queue])), "it has one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_alarms() {
    let broker = broker().await;
    let topology = Topology::new(broker.url());
    topology.declare().await;
    put(broker, "users/app", r#"{"password":"x","tags":""}"#).await;
    let may_write = async |write: &str| {
        let body = format!(r#"{{"configure":"^statecast\\.fence\\.","write":"{write}","read":""}}"#);
        put(broker, "permissions/%2F/app", &body).await;
    };
    may_write("^elsewhere$").await;
    put(broker, "users/watcher", r#"{"password":"w@tch","tags":"monitoring"}"#).await;
    put(broker, "permissions/%2F/watcher", r#"{"configure":"","write":"","read":".*"}"#).await;
    let management = broker.management_url().unwrap();
    let statecast = Invocation::run(&fresh_database().await, &topology, "orders")
        .with("STATECAST_RABBITMQ__URLS", &topology.url.replace("guest:guest", "app:x"));
    let with = |management: &str| statecast.clone().with("STATECAST_RABBITMQ__MANAGEMENT_URL", management);

    let report =
        wait_to_say(&with(&management), "user-permissions", "error", &["user app", "write on"]).await;
    report.must_say("user-permissions", "error", &[&topology.exchange, "set_permissions -p / app"]);
    let creates = with(&management).with("STATECAST_RABBITMQ__DECLARE", "create");
    Report::of(&creates, &[]).await.must_say("user-permissions", "error", &["configure on"]);
    may_write(".*").await;
    Report::of(&with(&management), &[]).await.must_be_ok("user-permissions");

    // With less than an administrator some of it, with nobody none of it.
    let watcher = management.replace("guest:guest", "watcher:w%40tch");
    let report = Report::of(&with(&watcher), &[]).await;
    report.must_say("user-permissions", "not examined", &["administrator"]);
    report.must_be_ok("broker-alarm");
    report.must_be_ok("clock-rabbitmq");
    let stranger = management.replace("guest:guest", "guest:wrong");
    let report = Report::of(&with(&stranger), &[]).await;
    report.must_say("management-unreachable", "warning", &["401"]);
    report.must_say("catch-all", "not examined", &["does not answer"]);
    assert!(report.findings.iter().all(|found| !found.holds(&["wrong"])), "the password is not printed");

    let _alone = shared().await.calm.write().await;
    let limit = async |bytes: u64| {
        let erlang = format!("vm_memory_monitor:set_vm_memory_high_watermark({{absolute, {bytes}}}).");
        broker.eval(&erlang).await.unwrap();
    };
    limit(1_000_000).await;
    let report = wait_to_say(&with(&management), "broker-alarm", "error", &["memory alarm"]).await;
    assert_eq!(report.exit, 1);
    limit(1 << 30).await;
    wait_to_say(&with(&management), "broker-alarm", "ok", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "three nodes: in make chaos"]
async fn queues_of_a_cluster() {
    let options = RabbitmqOptions { management: true, ..Default::default() };
    let mut cluster = RabbitmqCluster::start(3, options).await.unwrap();
    let topology = Topology::new(cluster.nodes[0].url());
    topology.declare().await;
    let (connection, channel) = topology.channel().await;
    let replicated = unique("quorum");
    queue(&channel, &replicated, true, &[("x-queue-type", text("quorum"))]).await;
    bind(&channel, &replicated, &topology.exchange, "#").await;
    let statecast = Invocation::run(&fresh_database().await, &topology, "orders")
        .with("STATECAST_RABBITMQ__MANAGEMENT_URL", &cluster.nodes[0].management_url().unwrap());
    let report =
        wait_to_say(&statecast, "queue-not-replicated", "warning", &[&topology.queue, "3 nodes"]).await;
    assert!(report.with("queue-not-replicated").all(|found| !found.holds(&[&replicated])));
    report.must_be_ok("queue-down");
    drop((connection, channel));
    cluster.nodes[2].kill9();
    let report = wait_to_say(&statecast, "broker-alarm", "error", &["does not run"]).await;
    assert_eq!(report.exit, 1);
    wait_to_say(&statecast, "queue-down", "warning", &[&replicated, "2 of its 3 members"]).await;
}
