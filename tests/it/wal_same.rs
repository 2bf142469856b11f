//! Polling and streaming are two ways to the same messages: same ids, same bytes, same properties, for rows that are odd
//! in every way the outbox allows. And what each costs in time, printed.
//!
//! Knob: `STATECAST_TEST_LATENCY_SECONDS` (4): of writing, per mode.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::ShortString;
use tokio_postgres::Client;
use uuid::Uuid;

use crate::process::{Invocation, Relay};
use crate::relay::{ARRIVAL_LIMIT, Bench, READY_LIMIT, STOP_LIMIT, knob};
use crate::servers::{self, Topology, unique};
use crate::wal_bench::{LIMIT, WalBench, reads, wait_streaming};

/// A message as the broker has it, without what differs between any two pipelines.
#[derive(Debug, PartialEq)]
struct Stored {
    routing_key: ShortString,
    properties: BasicProperties,
    body: Vec<u8>,
}

/// A pipeline of its own over the outbox of a bench.
struct Pipeline {
    topology: Topology,
    invocation: Invocation,
}

impl Pipeline {
    async fn new(bench: &Bench, mode: &str, format: &str) -> Pipeline {
        let topology = Topology::new(servers::rabbitmq().await.url());
        topology.declare().await;
        let invocation = bench
            .invocation
            .replica()
            .with("STATECAST_NAME", &unique(mode))
            .with("STATECAST_EVENT__SOURCE", "/same")
            .with("STATECAST_EVENT__FORMAT", format)
            .with("STATECAST_RABBITMQ__EXCHANGE", &topology.exchange)
            .with("STATECAST_SOURCE__MODE", mode);
        Pipeline { topology, invocation }
    }

    async fn start(&self) -> Relay {
        let relay = self.invocation.start();
        relay.wait_ready(READY_LIMIT).await.unwrap();
        relay
    }

    /// Everything in the queue, by event.
    async fn take(&self, count: usize) -> BTreeMap<Uuid, Stored> {
        let (_connection, channel) = self.topology.channel().await;
        let (begun, mut taken) = (Instant::now(), BTreeMap::new());
        while taken.len() < count {
            assert!(begun.elapsed() < ARRIVAL_LIMIT, "{} of {count} messages", taken.len());
            let options = BasicGetOptions { no_ack: true };
            let Some(got) = channel.basic_get(self.topology.queue.as_str().into(), options).await.unwrap()
            else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let delivery = got.delivery;
            let properties = delivery.properties.clone();
            assert!(properties.app_id().is_some());
            let id = Uuid::parse_str(properties.message_id().as_ref().unwrap().as_str()).unwrap();
            let stored = Stored {
                routing_key: delivery.routing_key.clone(),
                properties: properties.with_app_id("".into()),
                body: delivery.data.clone(),
            };
            assert!(taken.insert(id, stored).is_none(), "{id} twice");
        }
        taken
    }
}

/// Values of one column, each in a row of its own.
const ODD: [(&str, &[&str]); 7] = [
    (
        "payload",
        &[
            "NULL",
            r#"'"text"'"#,
            "'5'",
            "'true'",
            "'[]'",
            "'{}'",
            // What JSON allows and few parsers keep: digits, order, repeats, white space, escapes.
            "'{\"n\":123456789012345678901234567890.12345678901234567890,\"e\":1E+0400,\"z\":-0,\"t\":1.0}'",
            "E'{ \"b\" : 1,\\n\\t\"a\":2 , \"a\" :3 }  '",
            r#"'{"nul":"\u0000","lone":"\ud800","pair":"\ud83d\ude00","slash":"\/","back":"\\\\ \\t \\N"}'"#,
            r#"'{"quotes":"it''s \"so\"","controls":"\b\f\n\r\t\u001f\u007f"}'"#,
            "'{\"text\":\"Grüße, 日本語, 😀, e\u{301}, \u{2028}\u{2029}\u{feff}, \u{7f}\u{9f}\"}'",
            "json_build_object('large', repeat('Zoë\\', 180000))",
            "('[' || repeat('[', 500) || repeat(']', 500) || ']')::json",
        ],
    ),
    (
        "headers",
        &[
            "'{}'",
            r#"'{"a":"b","big":9007199254740993,"neg":-2147483649,"int":-2147483648,"f":1.50,"e":1e3}'"#,
            r#"'{"yes":true,"no":false,"none":null,"empty":"","esc":"\u00fc\\\"\/"}'"#,
            "json_build_object('long', repeat('ü', 8000))",
        ],
    ),
    (
        "recorded_at",
        &[
            "'0001-01-01 00:00:00+00'",
            "'9999-12-31 23:59:59.999999+00'",
            "'1969-12-31 23:59:59.999999+00'",
            "'2000-01-01 00:00:00+00'",
            "'2026-07-01 12:34:56.1+00'",
            "'2026-07-01 12:34:56.123450+05:45'",
            "'1883-11-18 12:03:57.000001+00'",
        ],
    ),
    ("aggregate_id", &[r"E'\\N'", "' '", "'it''s \"k\" \\ 😀'", "repeat('x', 200)", "'{1,2}'"]),
    ("entity_version", &["0", "-1", "9223372036854775807", "-9223372036854775808"]),
    ("schema_version", &["'10.20.30-rc.1+build.5'"]),
    ("correlation_id", &["repeat('c', 255)", "'ü \\ '''", "' '"]),
];

/// Writes them; how many.
async fn write_odd_rows(client: &Client) -> usize {
    let mut count = 0;
    for (column, values) in ODD {
        for value in values {
            let mut row: BTreeMap<&str, &str> = [
                ("aggregate_type", "'order'"),
                ("aggregate_id", "'k'"),
                ("event_type", "'changed'"),
                ("payload", "'{\"n\":1}'"),
            ]
            .into();
            row.insert(column, value);
            let columns: Vec<&str> = row.keys().copied().collect();
            let values: Vec<&str> = row.values().copied().collect();
            let sql = format!(
                "INSERT INTO statecast.outbox ({}) VALUES ({})",
                columns.join(", "),
                values.join(", ")
            );
            client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql:.300}: {error:?}"));
            count += 1;
        }
    }
    let all = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, schema_version, entity_version,
                 payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at)
               VALUES ('An_order-1', 'k:1', 'a.b-c_d', '1.2.3', 7, '{}', '{\"tenant\": \"t\"}', 'c', 'ü', '00-a-b-01',
                 'x=' || repeat('y', 510), '2026-02-28 23:59:59.9999+00')";
    client.batch_execute(all).await.unwrap();
    count + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_and_polling_publish_the_same_bytes() {
    let bench = WalBench::start(&[]).await;
    let sql = bench.client().await;
    // What text looks like on the server by default must not matter.
    sql.batch_execute(
        "ALTER DATABASE shop SET TimeZone = 'Asia/Kathmandu'; ALTER DATABASE shop SET DateStyle = 'German, DMY';
         ALTER DATABASE shop SET bytea_output = 'escape'; ALTER DATABASE shop SET xmloption = 'document'",
    )
    .await
    .unwrap();
    for format in ["structured", "binary"] {
        let modes = [Pipeline::new(&bench, "wal", format).await, Pipeline::new(&bench, "poll", format).await];
        let [wal, poll] = &modes;
        let mut relays = [wal.start().await, poll.start().await];
        wait_streaming(&relays[0]).await;
        let before = reads(&relays[0]).await;
        // A new pipeline polls what is there first.
        let old = pg_count(&sql).await;
        let (old_wal, old_poll) = (wal.take(old).await, poll.take(old).await);
        assert_same(&old_wal, &old_poll);
        let count = write_odd_rows(&sql).await;
        let (streamed, polled) = (wal.take(count).await, poll.take(count).await);
        assert_same(&streamed, &polled);
        let (of_wal, of_poll) = (reads(&relays[0]).await, reads(&relays[1]).await);
        assert_eq!((of_wal.wal - before.wal, of_wal.poll), (count as f64, before.poll), "all was streamed");
        assert_eq!((of_poll.wal, of_poll.poll), (0.0, (old + count) as f64), "all was polled");
        println!("{format}: {count} messages, the same");
        for relay in &mut relays {
            relay.sigterm();
            assert!(relay.wait(STOP_LIMIT).await.is_some_and(|status| status.success()));
        }
    }
}

async fn pg_count(client: &Client) -> usize {
    let count: i64 = client.query_one("SELECT count(*) FROM statecast.outbox", &[]).await.unwrap().get(0);
    usize::try_from(count).unwrap()
}

fn assert_same(one: &BTreeMap<Uuid, Stored>, other: &BTreeMap<Uuid, Stored>) {
    assert!(one.keys().eq(other.keys()), "other ids");
    for (id, stored) in one {
        let also = &other[id];
        assert_eq!(stored.routing_key, also.routing_key, "{id}");
        assert_eq!(stored.properties, also.properties, "{id}");
        let (a, b) = (String::from_utf8_lossy(&stored.body), String::from_utf8_lossy(&also.body));
        assert!(stored.body == also.body, "{id}\n{a:.2000}\n{b:.2000}");
    }
}

/// 1,000 events a second from four writers; the time from the writer's statement to the consumer, which is a little more
/// than to the confirm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_and_polling_latency_at_1000_events_a_second() {
    let bench = WalBench::start(&[]).await;
    for mode in ["poll", "wal"] {
        let pipeline = Pipeline::new(&bench, mode, "structured").await;
        let invocation = &pipeline.invocation;
        let mut relay = pipeline.start().await;
        if mode == "wal" {
            wait_streaming(&relay).await;
        }
        let consumer = crate::consumer::Consumer::start(&pipeline.topology.url, &pipeline.topology.queue);
        let old: Vec<Uuid> = ids(&bench.client().await).await;
        assert_eq!(consumer.wait_for_ids(LIMIT, old.iter().copied()).await, 0);
        let skipped = consumer.deliveries().len();
        let written = paced(&bench).await;
        assert_eq!(
            consumer.wait_for_ids(LIMIT, written.iter().map(|(id, _)| *id)).await,
            0,
            "{invocation:?}"
        );
        let sent: BTreeMap<String, Instant> = written.iter().map(|(id, at)| (id.to_string(), *at)).collect();
        let deliveries = consumer.deliveries();
        let mut took: Vec<Duration> = deliveries[skipped..]
            .iter()
            .map(|delivery| delivery.received - sent[delivery.message_id.as_deref().unwrap()])
            .collect();
        took.sort_unstable();
        let part = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];
        println!(
            "{mode}: {} events · p50 {:?} · p99 {:?} · most {:?} · {:?}",
            took.len(),
            part(50),
            part(99),
            part(100),
            reads(&relay).await
        );
        assert!(part(50) < Duration::from_secs(5), "not a latency any more");
        relay.sigterm();
        assert!(relay.wait(STOP_LIMIT).await.is_some_and(|status| status.success()));
    }
}

async fn ids(client: &Client) -> Vec<Uuid> {
    let rows = client.query("SELECT event_id FROM statecast.outbox", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// Four writers with 250 transactions of one event a second each.
async fn paced(bench: &Bench) -> Vec<(Uuid, Instant)> {
    let seconds = knob("STATECAST_TEST_LATENCY_SECONDS", 4);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let client = bench.client().await;
        writers.spawn(async move {
            let sql = "SELECT statecast.publish('order', $1, 'changed', json_build_object('n', $2::bigint))";
            let statement = client.prepare(sql).await.unwrap();
            let (run, mut written) = (unique("paced"), Vec::new());
            let mut tick = tokio::time::interval(Duration::from_millis(4));
            for n in 0..seconds * 250 {
                tick.tick().await;
                let (key, n) = (format!("{run}-{writer}-{}", n % 50), n as i64);
                let begun = Instant::now();
                let row = client.query_one(&statement, &[&key, &n]).await.unwrap();
                written.push((row.get(0), begun));
            }
            written
        });
    }
    writers.join_all().await.into_iter().flatten().collect()
}
