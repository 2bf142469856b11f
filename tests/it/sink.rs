//! Publishing: lanes, both orderings, topology, both formats, and a broker that refuses, blocks, stalls or is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapin::options::{QueueDeclareOptions, QueuePurgeOptions};
use lapin::types::{AMQPValue, FieldTable};
use serde_json::value::RawValue;
use statecast::sandbox::{Rabbitmq, RabbitmqOptions, free_port};
use uuid::Uuid;

use crate::consumer::Delivery;
use crate::load::{self, Load};
use crate::process::Relay;
use crate::proxy::{Mode, Proxy};
use crate::relay::{Bench, progress};
use crate::servers::{self, Topology, unique};

/// For everything to arrive once nothing fails any more.
const LIMIT: Duration = Duration::from_secs(90);
/// `shutdown.grace` of the tests in which the broker does not answer.
const GRACE: Duration = Duration::from_secs(3);
/// What a stop may take beyond the grace period.
const STOP_SLACK: Duration = Duration::from_secs(3);

impl Bench {
    fn with(mut self, name: &str, value: &str) -> Bench {
        self.invocation = self.invocation.with(&format!("STATECAST_{name}"), value);
        self
    }

    /// A column of the cursor row as a number.
    async fn cursor(&self, column: &str) -> i64 {
        let sql = format!("SELECT {column}::bigint FROM statecast.cursor");
        self.client().await.query_one(&sql, &[]).await.unwrap().get(0)
    }

    /// Events of which one key each, in one transaction; their ids.
    async fn publish_together(&self, events: &[(&str, String)]) -> Vec<Uuid> {
        let mut client = self.client().await;
        let transaction = client.transaction().await.unwrap();
        let mut ids = Vec::new();
        for (n, (key, payload)) in events.iter().enumerate() {
            let payload = format!("{{\"n\": {n}, \"pad\": \"{payload}\"}}");
            let sql = "SELECT statecast.publish('order', $1, 'changed', $2::text::json)";
            ids.push(transaction.query_one(sql, &[key, &payload]).await.unwrap().get(0));
        }
        transaction.commit().await.unwrap();
        ids
    }

    async fn private() -> (Rabbitmq, Bench) {
        Bench::private_with(&[]).await
    }

    async fn private_with(config: &[&str]) -> (Rabbitmq, Bench) {
        let config = config.iter().map(|line| (*line).to_owned()).collect();
        let broker = Rabbitmq::start(RabbitmqOptions { config, ..Default::default() }).await.unwrap();
        let bench = Bench::new(servers::fresh_database().await, &broker).await;
        let grace = format!("{}s", GRACE.as_secs());
        (broker, bench.with("SHUTDOWN__GRACE", &grace))
    }
}

/// Sends SIGTERM; the process must end in time, and in good order.
async fn stops_in_time(relay: &mut Relay) {
    let began = Instant::now();
    relay.sigterm();
    let status = relay.wait(LIMIT).await.unwrap();
    let took = began.elapsed();
    println!("stopped after {took:?}");
    assert!(status.success(), "{status:?}\n{}", relay.log());
    assert!(took < GRACE + STOP_SLACK, "{took:?}\n{}", relay.log());
}

/// Waits until `/ready` is 503 and its body holds `text`.
async fn wait_for_reason(relay: &Relay, text: &str) -> String {
    let deadline = Instant::now() + LIMIT;
    loop {
        match relay.get("/ready").await {
            Some((503, body)) if body.contains(text) => return body,
            answer if Instant::now() > deadline => panic!("{text:?} is not in {answer:?}\n{}", relay.log()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

fn ids(deliveries: &[Delivery]) -> Vec<Uuid> {
    let id = |delivery: &Delivery| delivery.message_id.as_deref().unwrap().parse().unwrap();
    deliveries.iter().map(id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_lanes_keep_the_order_of_a_key_over_kills_and_fewer_lanes_take_the_old_fences() {
    let kills = 3;
    let bench = Bench::shared().await.with("RABBITMQ__LANES", "3").with("LOG__LEVEL", "statecast=debug");
    let consumer = bench.consumer();
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let mut relay = bench.relay().await;
    let writing = bench.load(load);
    for _ in 0..kills {
        progress(&consumer, 150).await;
        assert_eq!(bench.cursor("lanes").await, 3);
        relay.kill9();
        relay = bench.relay().await;
        assert_eq!(fences(&relay), [0, 1, 2]);
    }
    progress(&consumer, 150).await;
    relay.kill9();
    let one = bench.invocation.clone().with("STATECAST_RABBITMQ__LANES", "1");
    let fewer = one.start();
    fewer.wait_ready(LIMIT).await.unwrap();
    assert_eq!(fences(&fewer), [0, 1, 2], "{}", fewer.log());
    assert_eq!(bench.cursor("lanes").await, 1);
    progress(&consumer, 50).await;
    stop.cancel();
    writing.await.unwrap();
    let mut relays = [fewer];
    let verdict = bench.finish(&mut relays, &consumer).await;
    verdict.assert_clean();
    assert!(verdict.descents_max <= kills + 1, "{}", verdict.summary());
    // From now on only the fence of the one lane matters.
    let last = one.start();
    last.wait_ready(LIMIT).await.unwrap();
    assert_eq!(fences(&last), [0]);
}

/// Lanes whose fences a relay took, by its log.
fn fences(relay: &Relay) -> Vec<u32> {
    let log = relay.log();
    let taken = log.lines().filter(|line| line.contains("fence taken"));
    let lane = |line: &str| line.split("lane=").nth(1)?.split(' ').next()?.parse().ok();
    let mut lanes: Vec<u32> = taken.filter_map(lane).collect();
    lanes.sort_unstable();
    lanes
}

#[tokio::test]
async fn a_fence_that_somebody_holds_is_waited_for_also_that_of_a_lane_that_is_no_more() {
    let bench = Bench::shared().await.with("RABBITMQ__LANES", "3").with("NAME", &unique("fenced"));
    let mut relay = bench.relay().await;
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());
    let pipeline: String =
        bench.client().await.query_one("SELECT pipeline FROM statecast.cursor", &[]).await.unwrap().get(0);
    let (held, channel) = bench.topology.channel().await;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let fence = format!("statecast.fence.{pipeline}.2");
    channel.queue_declare(fence.as_str().into(), exclusive, FieldTable::default()).await.unwrap();
    let consumer = bench.consumer();
    let id = bench.publish("order", "k01", 1).await;
    let relay = bench.invocation.clone().with("STATECAST_RABBITMQ__LANES", "1").start();
    assert!(relay.wait_ready(Duration::from_secs(3)).await.is_err(), "it must wait for {fence}");
    assert!(consumer.deliveries().is_empty());
    held.close(200, "".into()).await.unwrap();
    relay.wait_ready(LIMIT).await.unwrap();
    assert_eq!(consumer.wait_for_ids(LIMIT, [id]).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_delivers_everything_over_kills() {
    let bench = Bench::shared().await.with("RABBITMQ__ORDERING", "pipelined");
    let consumer = bench.consumer();
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let mut relay = bench.relay().await;
    let writing = bench.load(load);
    for _ in 0..2 {
        progress(&consumer, 200).await;
        relay.kill9();
        relay = bench.relay().await;
    }
    progress(&consumer, 200).await;
    stop.cancel();
    writing.await.unwrap();
    let verdict = bench.finish(&mut [relay], &consumer).await;
    // Nothing was refused, so the order holds as well.
    verdict.assert_clean();
}

/// lapin puts frames on the connection in the order in which publishes were polled first: the lane rests on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pipelined_messages_of_one_key_arrive_in_order() {
    let bench = Bench::shared().await.with("RABBITMQ__ORDERING", "pipelined");
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
               SELECT 'order', 'hot', 'changed', json_build_object('n', n) FROM generate_series(1, 10000) n";
    bench.client().await.batch_execute(sql).await.unwrap();
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    assert!(consumer.wait_for(LIMIT, |deliveries| deliveries.len() >= 10_000).await);
    let seen: Vec<i64> = consumer.seen().iter().map(|seen| seen.n.unwrap()).collect();
    assert!(seen.iter().copied().eq(1..=10_000), "out of order or repeated");
    stops_in_time(&mut relay).await;
}

#[tokio::test]
async fn of_several_urls_one_that_works_is_enough() {
    let bench = Bench::shared().await;
    let dead = format!("amqp://guest:guest@127.0.0.1:{}/%2f", free_port().unwrap());
    let proxy = Proxy::start(bench.topology.url.split(['@', '/']).nth(3).unwrap()).await;
    let proxied = proxy.url(&bench.topology.url);
    let urls = format!("{dead} {proxied},{}", bench.topology.url);
    let bench = bench.with("RABBITMQ__URLS", &urls);
    let consumer = bench.consumer();
    // The order is drawn: several starts meet the dead one first.
    for n in 1..=5 {
        let mut relay = bench.relay().await;
        let id = bench.publish("order", "k01", n).await;
        assert_eq!(consumer.wait_for_ids(LIMIT, [id]).await, 0);
        stops_in_time(&mut relay).await;
    }
    // One goes away while it may be in use.
    let mut relay = bench.relay().await;
    proxy.refuse(true);
    proxy.cut();
    let id = bench.publish("order", "k01", 6).await;
    assert_eq!(consumer.wait_for_ids(LIMIT, [id]).await, 0);
    stops_in_time(&mut relay).await;
    // None works: the line names one and no password.
    let all_dead = bench.invocation.clone().with("STATECAST_RABBITMQ__URLS", &format!("{dead} {proxied}"));
    let (code, stdout, _) = all_dead.arguments(&["check"]).output(LIMIT).await;
    assert!(
        code == Some(1) && stdout.contains("cannot connect to RabbitMQ at amqp://127.0.0.1:"),
        "{stdout}"
    );
    assert!(!stdout.contains("guest"), "{stdout}");
}

#[tokio::test]
async fn declare_create_makes_the_topology_and_runs_again_unchanged() {
    let broker = servers::rabbitmq().await;
    let names: Vec<String> = ["quorum", "classic", "stream", "limited"].map(unique).into();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("statecast.toml");
    let queue = |name: &str, more: &str| format!("[[rabbitmq.queues]]\nname = \"{name}\"\n{more}\n");
    let tables = [
        queue(&names[0], "bindings = [\"order.#\"]"),
        queue(&names[1], "type = \"classic\"\nbindings = [\"order.placed\", \"order.paid\"]"),
        queue(&names[2], "type = \"stream\""),
        queue(
            &names[3],
            "type = \"classic\"\nbindings = []\narguments = { x-max-length = 5, x-overflow = \"reject-publish\" }",
        ),
    ];
    std::fs::write(&file, tables.concat()).unwrap();

    let url = servers::fresh_database().await;
    let topology = Topology::new(broker.url());
    let statecast = crate::process::Invocation::run(&url, &topology, &unique("create"))
        .with("STATECAST_CONFIG", file.to_str().unwrap())
        .with("STATECAST_RABBITMQ__DECLARE", "create");
    statecast.arguments(&["install"]).succeed().await;
    let before = statecast.arguments(&["check"]).succeed().await;
    assert!(before.contains("note") && before.contains("`run` will create it"), "{before}");
    for key in ["placed", "paid", "shipped"] {
        statecast.arguments(&["publish", "order", "1", key, "{}"]).succeed().await;
    }
    statecast.arguments(&["run", "--until-idle"]).succeed().await;
    let declared = async || {
        let queues =
            broker.ctl(&["list_queues", "--silent", "name", "type", "durable", "arguments"]).await.unwrap();
        let bindings =
            broker.ctl(&["list_bindings", "--silent", "source_name", "destination_name", "routing_key"]);
        let bindings = bindings.await.unwrap();
        let ours = |text: &str| {
            let mut lines: Vec<String> = text
                .lines()
                .filter(|line| names.iter().any(|name| line.contains(name)))
                .map(str::to_owned)
                .collect();
            lines.sort();
            lines
        };
        let bound =
            bindings.lines().filter(|line| line.contains(&topology.exchange)).collect::<Vec<_>>().join("\n");
        (ours(&queues), ours(&bound))
    };
    let made = declared().await;
    for (name, kind) in names.iter().zip(["quorum", "classic", "stream", "classic"]) {
        let line = made.0.iter().find(|line| line.starts_with(name)).unwrap();
        let words: Vec<&str> = line.split('\t').collect();
        // 3.10 calls some types by their module.
        assert!(words[1].contains(kind) && words[2] == "true", "{line}");
    }
    assert!(made.0.iter().any(|line| line.contains("reject-publish") && line.contains('5')), "{made:?}");
    assert_eq!(made.1.len(), 4, "{made:?}");
    let mut counts = BTreeMap::new();
    let (_connection, channel) = topology.channel().await;
    for name in &names {
        let passive = QueueDeclareOptions { passive: true, ..Default::default() };
        let queue =
            channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await.unwrap();
        counts.insert(name.split('-').next().unwrap(), queue.message_count());
    }
    // A stream counts late; the others are exact.
    assert_eq!((counts["quorum"], counts["classic"], counts["limited"]), (3, 2, 0), "{counts:?}");

    statecast.arguments(&["check"]).succeed().await;
    statecast.arguments(&["run", "--until-idle"]).succeed().await;
    assert_eq!(declared().await, made, "a second run changes nothing");

    // The same name with another type is an error that says so.
    std::fs::write(&file, tables.concat().replace("type = \"stream\"", "type = \"quorum\"")).unwrap();
    let mut relay = statecast.start();
    assert!(relay.wait_for_log("it exists with other properties", LIMIT).await, "{}", relay.log());
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("it exists with other properties")).unwrap();
    assert!(line.contains(&names[2]) && line.contains("quorum"), "{line}");
    for name in names {
        channel.queue_purge(name.as_str().into(), QueuePurgeOptions::default()).await.ok();
    }
}

/// Numbers that no double holds, odd white space and a name twice: nothing of it may change.
const PAYLOAD: &str =
    r#"{ "big":9007199254740993, "total" : 1.10,"e":1E400, "a":1,"a":2, "text":"\u00e4 ä" }"#;

async fn publish_odd(bench: &Bench) -> (Uuid, Uuid) {
    let client = bench.client().await;
    let sql = "SELECT statecast.publish('order', '7', 'order.paid', $1::text::json, '2.1.0', 5,
                   '{\"tenant\": \"acme\", \"count\": 3, \"test\": true}', 'corr', 'cause', '00-a-b-01', 'k=v',
                   strict => false)";
    let upsert = client.query_one(sql, &[&PAYLOAD]).await.unwrap().get(0);
    let sql = "SELECT statecast.publish('order', '7', 'order.deleted', NULL)";
    (upsert, client.query_one(sql, &[]).await.unwrap().get(0))
}

#[tokio::test]
async fn a_binary_event_is_its_payload_with_attributes_as_headers() {
    let bench = Bench::shared().await.with("EVENT__FORMAT", "binary").with("EVENT__SOURCE", "/shop");
    let consumer = bench.consumer();
    let relay = bench.relay().await;
    let (upsert, delete) = publish_odd(&bench).await;
    assert_eq!(consumer.wait_for_ids(LIMIT, [upsert, delete]).await, 0, "{}", relay.log());
    let deliveries = consumer.deliveries();
    let [first, second] = deliveries.as_slice() else { panic!("{deliveries:?}") };
    assert_eq!(String::from_utf8_lossy(&first.body), PAYLOAD);
    assert_eq!(first.content_type.as_deref(), Some("application/json"));
    assert_eq!(first.routing_key, "order.order.paid");
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", &upsert.to_string()),
        ("source", "/shop"),
        ("type", "order.paid"),
        ("subject", "7"),
        ("partitionkey", "order:7"),
        ("sequence", "00000000000000000001"),
        ("aggregatetype", "order"),
        ("operation", "upsert"),
        ("schemaversion", "2.1.0"),
        ("entityversion", "5"),
        ("correlationid", "corr"),
        ("causationid", "cause"),
        ("traceparent", "00-a-b-01"),
        ("tracestate", "k=v"),
        ("tenant", "acme"),
    ] {
        assert_eq!(first.header(&format!("cloudEvents_{name}")).as_deref(), Some(value), "{name}");
    }
    let time = first.header("cloudEvents_time").unwrap();
    assert!(time.ends_with('Z') && time.len() == "2026-11-03T12:34:56.000789Z".len(), "{time}");
    let value = |name: &str| first.headers.inner().get(name).cloned();
    assert_eq!(value("cloudEvents_count"), Some(AMQPValue::LongInt(3)));
    assert_eq!(value("cloudEvents_test"), Some(AMQPValue::Boolean(true)));
    assert_eq!(first.header("partitionkey").as_deref(), Some("order:7"));
    assert_eq!(first.header("sequence").as_deref(), Some("00000000000000000001"));

    assert!(second.body.is_empty());
    assert_eq!(second.header("cloudEvents_operation").as_deref(), Some("delete"));
    assert_eq!(second.header("cloudEvents_id"), Some(delete.to_string()));
    assert_eq!(second.header("cloudEvents_entityversion"), None);
}

#[tokio::test]
async fn a_structured_event_is_one_document_and_keeps_the_payloads_bytes() {
    let bench = Bench::shared().await.with("EVENT__TYPE_PREFIX", "com.example.");
    let consumer = bench.consumer();
    let relay = bench.relay().await;
    let (upsert, delete) = publish_odd(&bench).await;
    assert_eq!(consumer.wait_for_ids(LIMIT, [upsert, delete]).await, 0, "{}", relay.log());
    let deliveries = consumer.deliveries();
    let [first, second] = deliveries.as_slice() else { panic!("{deliveries:?}") };
    assert_eq!(first.content_type.as_deref(), Some("application/cloudevents+json"));
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&first.body).unwrap();
    assert_eq!(members["data"].get(), PAYLOAD);
    let text = |name: &str| serde_json::from_str::<serde_json::Value>(members[name].get()).unwrap();
    for (name, value) in [
        ("specversion", "1.0"),
        ("id", upsert.to_string().as_str()),
        ("type", "com.example.order.paid"),
        ("subject", "7"),
        ("datacontenttype", "application/json"),
        ("partitionkey", "order:7"),
        ("sequence", "00000000000000000001"),
        ("aggregatetype", "order"),
        ("operation", "upsert"),
        ("schemaversion", "2.1.0"),
        ("entityversion", "5"),
        ("correlationid", "corr"),
        ("causationid", "cause"),
        ("traceparent", "00-a-b-01"),
        ("tracestate", "k=v"),
        ("tenant", "acme"),
    ] {
        assert_eq!(text(name), value, "{name}");
    }
    assert_eq!((text("count"), text("test")), (3.into(), true.into()));

    let deleted: serde_json::Value = serde_json::from_slice(&second.body).unwrap();
    assert_eq!((&deleted["operation"], &deleted["id"]), (&"delete".into(), &delete.to_string().into()));
    assert!(deleted.as_object().unwrap().get("data").is_some_and(serde_json::Value::is_null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_broker_is_named_and_delays_a_stop_by_the_grace_period_only() {
    let (broker, bench) = Bench::private().await;
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    let mut all = vec![bench.publish("order", "k01", 1).await];
    assert_eq!(consumer.wait_for_ids(LIMIT, all.clone()).await, 0);

    let alarm = async |limit: &str| {
        broker.ctl(&["set_vm_memory_high_watermark", "absolute", limit]).await.unwrap();
    };
    alarm("1MB").await;
    // The broker blocks a connection when it publishes.
    all.push(bench.publish("order", "k01", 2).await);
    let body = wait_for_reason(&relay, "blocks publishers").await;
    assert!(body.contains("low on memory") && body.contains("free its memory"), "{body}");
    assert_eq!(relay.metric("statecast_broker_blocked").await, 1.0);
    alarm("1GB").await;
    relay.wait_ready(LIMIT).await.unwrap();
    assert_eq!(relay.metric("statecast_broker_blocked").await, 0.0);
    all.push(bench.publish("order", "k01", 3).await);
    assert_eq!(consumer.wait_for_ids(LIMIT, all.clone()).await, 0, "{}", relay.log());

    alarm("1MB").await;
    for n in 4..=50 {
        all.push(bench.publish("order", &format!("k{:02}", n % 7), n).await);
    }
    wait_for_reason(&relay, "blocks publishers").await;
    stops_in_time(&mut relay).await;
    alarm("1GB").await;
    let relay = bench.relay().await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// An event that can never go: others of its batch are delivered, it is named, and a larger limit lets it pass.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_ends_within_the_grace_period_with_a_broker_that_is_frozen_or_gone() {
    let (mut broker, bench) = Bench::private().await;
    let consumer = bench.consumer();
    let load = Load { transactions: load::UNTIL_STOPPED, ..Load::default() };
    let stop = load.stop.clone();
    let mut relay = bench.relay().await;
    let writing = bench.load(load);
    progress(&consumer, 200).await;
    broker.pause();
    // Time for the window to fill.
    tokio::time::sleep(Duration::from_millis(300)).await;
    stops_in_time(&mut relay).await;
    broker.resume();

    relay = bench.relay().await;
    progress(&consumer, 200).await;
    broker.kill9();
    stops_in_time(&mut relay).await;
    broker.start_again().await.unwrap();

    relay = bench.relay().await;
    progress(&consumer, 200).await;
    // While it tries to connect.
    broker.kill9();
    assert!(relay.wait_for_log("session ended", LIMIT).await);
    stops_in_time(&mut relay).await;
    broker.start_again().await.unwrap();
    stop.cancel();
    writing.await.unwrap();
    let relay = bench.relay().await;
    bench.finish(&mut [relay], &consumer).await.assert_clean();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_returned_or_refused_payload_is_in_no_log_at_any_level() {
    for format in ["structured", "binary"] {
        let bench = Bench::without_queue(servers::fresh_database().await, servers::rabbitmq().await).await;
        let full = [
            ("x-max-length", AMQPValue::LongInt(1)),
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ];
        bench.topology.declare_queue("full.#", &full).await;
        let bench = bench.with("EVENT__FORMAT", format).with(
            "LOG__LEVEL",
            "trace,lapin=trace,lapin::returned_messages=trace,tokio_postgres=trace,statecast=trace",
        );
        let client = bench.client().await;
        for (kind, key) in [("ghost", "g"), ("full", "f1"), ("full", "f2"), ("full", "f3")] {
            let sql = "SELECT statecast.publish($1, $2, 'changed', '{\"card\": \"PAYLOAD4711\"}',
                           headers => '{\"customer\": \"HEADER4711\"}')";
            client.execute(sql, &[&kind, &key]).await.unwrap();
        }
        let mut relay = bench.relay().await;
        assert!(relay.wait_for_metric("statecast_broker_returns_total", 1.0, LIMIT).await);
        assert!(relay.wait_for_metric("statecast_broker_nacks_total", 1.0, LIMIT).await);
        assert!(relay.wait_for_log("returned as unroutable", LIMIT).await);
        stops_in_time(&mut relay).await;
        let log = relay.log();
        assert!(!log.contains("PAYLOAD4711") && !log.contains("HEADER4711"), "{log}");
        assert!(!log.contains("guest:guest"), "a URL is in the log");
    }
}

/// Publishes go through and answers do not: said after `confirm_timeout`; the missing heartbeats end the connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_of_the_broker_is_named_and_ended_by_heartbeats() {
    let bench =
        Bench::shared().await.with("RABBITMQ__CONFIRM_TIMEOUT", "500ms").with("SHUTDOWN__GRACE", "3s");
    let proxy = Proxy::start(bench.topology.url.split(['@', '/']).nth(3).unwrap()).await;
    let bench_url = bench.topology.url.clone();
    let bench = bench.with("RABBITMQ__URLS", &proxy.url(&bench_url));
    let consumer = bench.consumer();
    let mut relay = bench.relay().await;
    let first = bench.publish("order", "k01", 1).await;
    assert_eq!(consumer.wait_for_ids(LIMIT, [first]).await, 0);
    proxy.set(Mode::DropDown);
    let began = Instant::now();
    // Of another key: the confirm of the first may be among what is dropped.
    let lost = bench.publish("order", "k02", 2).await;
    assert_eq!(consumer.wait_for_ids(LIMIT, [lost]).await, 0, "it reaches the broker");
    let body = wait_for_reason(&relay, "no confirm for").await;
    println!("named after {:?}: {body}", began.elapsed());
    assert!(relay.wait_for_log("session ended", LIMIT).await, "{}", relay.log());
    let took = began.elapsed();
    println!("ended after {took:?}\n{}", relay.log());
    assert!(took < Duration::from_secs(20), "{took:?}");
    proxy.set(Mode::Pass);
    proxy.cut();
    relay.wait_ready(LIMIT).await.unwrap();
    bench.publish("order", "k01", 3).await;
    let verdict = bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert!(verdict.duplicates >= 1, "the event whose confirm was lost is sent again under its id");
}
