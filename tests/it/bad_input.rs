//! What an operator does wrong, and what breaks around the relay: for each, one line that says what, where and what to
//! do; whether the relay waits for it to heal or ends; and the application's inserts succeed meanwhile.

use std::time::Duration;

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions, free_port};
use tokio_postgres::Client;
use uuid::Uuid;

use crate::consumer::Consumer;
use crate::pg::{login, with_user};
use crate::process::{Invocation, Relay};
use crate::servers::{self, Topology, connect, unique};

const LIMIT: Duration = Duration::from_secs(60);
/// In every password of these tests; must never be printed.
const SECRET: &str = "hunter2secret";

/// What a relay does about a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Retry,
    Exit,
}

/// A database with the schema, a topology, and `statecast` set up for them.
struct Site {
    url: String,
    client: Client,
    topology: Topology,
    statecast: Invocation,
}

impl Site {
    async fn new() -> Site {
        let site = Site::on(servers::fresh_database().await, servers::rabbitmq().await.url()).await;
        site.topology.declare().await;
        site
    }

    /// Neither exchange nor queue.
    async fn on(url: String, broker: String) -> Site {
        let topology = Topology::new(broker);
        let statecast = Invocation::run(&url, &topology, &unique("bad"));
        statecast.arguments(&["install"]).succeed().await;
        let client = connect(&url).await.unwrap();
        Site { url, client, topology, statecast }
    }

    /// An application's insert: it must succeed whatever state the relay is in.
    async fn insert(&self) -> Uuid {
        let sql = "SELECT statecast.publish('order', '1', 'placed', '{\"n\": 1}')";
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// Runs once, so that there is a cursor.
    async fn drain(&self) {
        self.statecast.arguments(&["run", "--until-idle"]).succeed().await;
    }

    /// After the mend everything arrives, without a restart if the relay still runs.
    async fn arrives(&self, relay: &Relay, events: &[Uuid]) {
        let consumer = Consumer::start(&self.topology.url, &self.topology.queue);
        let missing = consumer.wait_for_ids(LIMIT, events.iter().copied()).await;
        assert_eq!(missing, 0, "{}", relay.log());
        assert_quiet(&relay.log());
    }
}

/// Neither a password nor a backtrace.
fn assert_quiet(output: &str) {
    assert!(!output.contains(SECRET), "a password was printed: {output}");
    for trace in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!output.contains(trace), "{output}");
    }
}

fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
}

/// `check` ends with 1 and says so in one line of its own.
async fn checked(statecast: &Invocation, words: &[&str]) {
    let (code, stdout, stderr) = statecast.arguments(&["check"]).output(LIMIT).await;
    assert_quiet(&(stdout.clone() + &stderr));
    let found: Vec<&str> = stdout.lines().filter(|line| line.starts_with("failed")).collect();
    assert_eq!((code, found.len()), (Some(1), 1), "{stdout}{stderr}");
    println!("check: {}", found[0]);
    assert_says(found[0], words);
    assert_eq!(stderr.trim_end(), "statecast: 1 of the checks failed");
}

/// `run` says the same in one line, and goes on or ends. A relay that goes on has tried twice.
async fn ran(statecast: &Invocation, words: &[&str], does: Does) -> Relay {
    let mut relay = statecast.start();
    let says = |line: &str| words.iter().all(|word| line.contains(word));
    match does {
        Does::Exit => {
            let status = relay.wait(LIMIT).await.unwrap_or_else(|| panic!("still runs\n{}", relay.log()));
            assert_eq!(status.code(), Some(1), "{}", relay.log());
            let log = relay.log();
            let last = log.trim_end().lines().last().unwrap();
            println!("run:   {last}");
            assert!(last.starts_with("statecast: ") && says(last), "{words:?} in {last}");
        }
        Does::Retry => {
            let deadline = tokio::time::Instant::now() + LIMIT;
            let told =
                |log: &str| log.lines().filter(|line| line.contains("session ended") && says(line)).count();
            while told(&relay.log()) < 2 {
                assert!(relay.running(), "it ended\n{}", relay.log());
                assert!(tokio::time::Instant::now() < deadline, "{words:?} in\n{}", relay.log());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let (status, body) = relay.get("/ready").await.unwrap();
            assert!(status == 503 && says(&body), "{status} {body}");
            assert_quiet(&body);
            assert_eq!(relay.get("/live").await.unwrap().0, 200);
        }
    }
    assert_quiet(&relay.log());
    relay
}

/// Both.
async fn told(statecast: &Invocation, words: &[&str], does: Does) -> Relay {
    checked(statecast, words).await;
    ran(statecast, words, does).await
}

#[tokio::test]
async fn every_mistake_in_the_configuration_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("statecast.toml");
    std::fs::write(
        &file,
        format!(
            "name = \"Not A Name\"\nnmae = \"x\"\n\
             [postgres]\nurl = \"postgres://u:{SECRET}@h:port/d\"\n\
             [rabbitmq]\nurls = [\"http://u:{SECRET}@h\"]\nwindow = \"many\"\nlanes = 0\nordering = \"strickt\"\n\
             [relay]\nread_ahead = \"lots\"\n[shutdown]\ngrace = 5\n[no_such]\nkey = 1\n"
        ),
    )
    .unwrap();
    let none = Topology::new("amqp://unused");
    let statecast = Invocation::run("unused", &none, "unused");
    let statecast = ["NAME", "POSTGRES__URL", "RABBITMQ__URLS", "RABBITMQ__EXCHANGE"]
        .iter()
        .fold(statecast, |statecast, name| statecast.without(&format!("STATECAST_{name}")));
    let statecast = statecast.with("STATECAST_RABBITMQ__CONFRIM_TIMEOUT", "1s");
    for command in ["run", "check", "install", "status", "maintain"] {
        let invocation = statecast.arguments(&["--config", file.to_str().unwrap(), command]);
        let (code, stdout, stderr) = invocation.output(LIMIT).await;
        assert_eq!((code, stdout.as_str()), (Some(78), ""), "{command}: {stderr}");
        assert_quiet(&stderr);
        for wrong in [
            "`name`",
            "`nmae`",
            "`postgres.url`",
            "`rabbitmq.urls`",
            "`rabbitmq.window`",
            "`rabbitmq.lanes`",
            "`rabbitmq.ordering`",
            "`relay.read_ahead`",
            "`shutdown.grace`",
            "`no_such",
            "STATECAST_RABBITMQ__CONFRIM_TIMEOUT",
        ] {
            let lines = stderr.lines().filter(|line| line.contains(wrong)).count();
            assert_eq!(lines, 1, "{wrong}:\n{stderr}");
        }
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_waited_for() {
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let site = Site::on(server.create_database("shop").await.unwrap(), broker.url()).await;
    site.topology.declare().await;
    let first = site.insert().await;

    server.stop_fast().await.unwrap();
    let at = format!("127.0.0.1:{}", server.port());
    let mut relay =
        told(&site.statecast, &["PostgreSQL", &at, "onnection refused", "does it run"], Does::Retry).await;
    server.start_again().await.unwrap();
    relay.wait_ready(LIMIT).await.unwrap();
    let site = Site { client: connect(&site.url).await.unwrap(), ..site };
    site.arrives(&relay, &[first]).await;
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());

    broker.stop().await.unwrap();
    let at = format!("127.0.0.1:{}", broker.port());
    let mut relay =
        told(&site.statecast, &["RabbitMQ", &at, "onnection refused", "does it run"], Does::Retry).await;
    let second = site.insert().await;
    broker.start_again().await.unwrap();
    relay.wait_ready(LIMIT).await.unwrap();
    site.arrives(&relay, &[second]).await;
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());
}

#[tokio::test]
async fn wrong_passwords_are_said_and_never_shown() {
    let password = format!("right{SECRET}");
    let server = Postgres::start(PostgresOptions { password: Some(password.clone()), ..Default::default() });
    let server = server.await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    let site = Site::on(url.clone(), servers::rabbitmq().await.url()).await;
    site.topology.declare().await;
    let at = format!("127.0.0.1:{}", server.port());
    let wrong = site.statecast.clone().with("STATECAST_POSTGRES__URL", &url.replace("right", "wrong"));
    // A password may be rotated while we wait.
    told(&wrong.clone().with("STATECAST_LOG__LEVEL", "trace"), &["PostgreSQL", &at, "password"], Does::Retry)
        .await;
    site.insert().await;
    let nobody = url.replace("/shop", "/nowhere");
    let nowhere = site.statecast.clone().with("STATECAST_POSTGRES__URL", &nobody);
    told(&nowhere, &["PostgreSQL", &at, "nowhere", "does not exist"], Does::Retry).await;

    let broker = servers::rabbitmq().await;
    let at = format!("127.0.0.1:{}", broker.port());
    let to = |url: String| site.statecast.clone().with("STATECAST_RABBITMQ__URLS", &url);
    let stranger = to(format!("amqp://guest:{SECRET}@{at}/%2f")).with("STATECAST_LOG__LEVEL", "trace");
    told(&stranger, &["RabbitMQ", &at, "wrong user name or password"], Does::Retry).await;
    told(&to(format!("amqp://guest:guest@{at}/elsewhere")), &["RabbitMQ", &at, "vhost"], Does::Retry).await;
    let broken = to(format!("amqp://guest:{SECRET}@127.0.0.1:{}/%2f", free_port().unwrap()));
    told(
        &broken.with("STATECAST_LOG__LEVEL", "trace"),
        &["RabbitMQ", "onnection refused", "does it run"],
        Does::Retry,
    )
    .await;
    site.insert().await;
}

#[tokio::test]
async fn a_missing_exchange_or_queue_is_waited_for() {
    let site = Site::on(servers::fresh_database().await, servers::rabbitmq().await.url()).await;
    let exchange = site.topology.exchange.clone();
    let relay = told(&site.statecast, &["exchange", &exchange, "rabbitmq.declare"], Does::Retry).await;
    let event = site.insert().await;
    site.topology.declare().await;
    relay.wait_ready(LIMIT).await.unwrap();
    site.arrives(&relay, &[event]).await;
    let listed = site.statecast.clone().with("STATECAST_RABBITMQ__QUEUES", "not-there");
    drop(relay);
    told(&listed, &["queue", "not-there", "rabbitmq.declare"], Does::Retry).await;
}

#[tokio::test]
async fn a_missing_schema_is_waited_for() {
    let url = servers::fresh_database().await;
    let topology = Topology::new(servers::rabbitmq().await.url());
    topology.declare().await;
    let statecast = Invocation::run(&url, &topology, &unique("bad"));
    let relay = told(&statecast, &["no Statecast schema", "statecast install"], Does::Retry).await;
    statecast.arguments(&["install"]).succeed().await;
    let client = connect(&url).await.unwrap();
    relay.wait_ready(LIMIT).await.unwrap();
    let site = Site { url, client, topology, statecast };
    let event = site.insert().await;
    site.arrives(&relay, &[event]).await;
}

#[tokio::test]
async fn an_older_schema_is_waited_for_and_a_newer_one_is_not() {
    let site = Site::new().await;
    site.sql("UPDATE statecast.meta SET schema_major = 0, schema_minor = 9").await;
    let relay = told(&site.statecast, &["version 0.9", "needs 1.", "statecast install"], Does::Retry).await;
    let event = site.insert().await;
    site.sql("UPDATE statecast.meta SET schema_major = 1, schema_minor = 99").await;
    relay.wait_ready(LIMIT).await.unwrap();
    site.arrives(&relay, &[event]).await;
    drop(relay);
    // A newer minor version only adds: it is worked with.
    site.sql("UPDATE statecast.meta SET schema_minor = 7").await;
    site.statecast.arguments(&["check"]).succeed().await;
    site.drain().await;
    site.sql("UPDATE statecast.meta SET schema_major = 2").await;
    told(&site.statecast, &["version 2.7", "knows 1.x", "newer statecast"], Does::Exit).await;
    site.insert().await;
}

#[tokio::test]
async fn a_missing_privilege_is_waited_for() {
    let site = Site::new().await;
    let name = unique("login").replace('-', "_");
    drop(login(&site.url, &name, "", "").await);
    let url = with_user(&site.url, &name).replace(":x@", &format!(":{SECRET}@"));
    let statecast = site.statecast.clone().with("STATECAST_POSTGRES__URL", &url);
    let grant = format!("GRANT statecast_relay TO {name}");
    let relay = told(&statecast, &[&name, &grant], Does::Retry).await;
    let event = site.insert().await;
    site.sql(&grant).await;
    relay.wait_ready(LIMIT).await.unwrap();
    site.arrives(&relay, &[event]).await;
    drop(relay);
    site.sql("REVOKE UPDATE ON statecast.cursor FROM statecast_relay").await;
    told(&statecast, &[&name, "lacks UPDATE on statecast.cursor", &grant], Does::Retry).await;
    site.insert().await;
}

#[tokio::test]
async fn a_cursor_of_another_server_ends_the_relay() {
    let site = Site::new().await;
    site.insert().await;
    site.drain().await;
    site.sql("UPDATE statecast.cursor SET system_identifier = 42").await;
    told(
        &site.statecast,
        &["system identifier", "(42)", "statecast cursor rebase", "postgres.url"],
        Does::Exit,
    )
    .await;
    site.insert().await;
}

#[tokio::test]
async fn an_altered_sequence_ends_the_relay() {
    let site = Site::new().await;
    site.insert().await;
    site.insert().await;
    site.drain().await;
    for (alter, words, mend) in [
        ("CACHE 50", ["its cache is 50", "SET CACHE 1"], "CACHE 1"),
        ("CYCLE", ["it cycles", "SET NO CYCLE"], "NO CYCLE"),
        ("INCREMENT 2", ["its increment is 2", "SET INCREMENT 1"], "INCREMENT 1"),
    ] {
        site.sql(&format!("ALTER TABLE statecast.outbox ALTER COLUMN seq SET {alter}")).await;
        told(&site.statecast, &words, Does::Exit).await;
        site.insert().await;
        site.sql(&format!("ALTER TABLE statecast.outbox ALTER COLUMN seq SET {mend}")).await;
        site.drain().await;
    }
    // Behind what was read: an insert would take a number that was already used, so the table refuses it itself.
    site.sql("SELECT setval('statecast.outbox_seq_seq', 1)").await;
    let words = ["statecast.outbox stands at 1", "cursor rebase", "setval('statecast.outbox_seq_seq'"];
    told(&site.statecast, &words, Does::Exit).await;
}

#[tokio::test]
async fn an_sql_ascii_database_ends_the_relay() {
    let server = servers::postgres().await;
    let name = unique("ascii").replace('-', "_");
    let url = crate::pg::database_with(&server.url("postgres"), &name, "ENCODING 'SQL_ASCII'").await;
    let topology = Topology::new(servers::rabbitmq().await.url());
    topology.declare().await;
    let statecast = Invocation::run(&url, &topology, &unique("bad"));
    told(&statecast, &[&name, "SQL_ASCII", "UTF8"], Does::Exit).await;
    let (code, _, stderr) = statecast.arguments(&["install"]).output(LIMIT).await;
    assert!(code == Some(1) && stderr.contains("SQL_ASCII"), "{stderr}");
}

/// The table's checks are at least as strict as the relay: no row that a writer can make ends it.
#[tokio::test]
async fn whatever_the_table_takes_can_be_published() {
    let site = Site::new().await;
    let extremes = [
        ("recorded_at", "'0001-01-01 00:00:00+00'"),
        ("recorded_at", "'9999-12-31 23:59:59.999999+00'"),
        ("recorded_at", "'1969-12-31 23:59:59.5+00'"),
        ("headers", r#"'{"a": 1e999999, "b": -2147483649, "c": null, "d": true}'"#),
        ("headers", "json_build_object('x', repeat('x', 32700))"),
        ("headers", "(SELECT json_object_agg('n' || n, n) FROM generate_series(1, 1500) n)"),
        ("payload", r#"'{"a": "\u0000"}'"#),
        ("payload", r#"'{"a": "\ud800"}'"#),
        ("payload", "'5'"),
        ("payload", "NULL"),
        ("payload", "to_json(repeat('x', 1000000))"),
        ("entity_version", "-9223372036854775808"),
        ("correlation_id", "repeat('ä', 127)"),
        ("causation_id", "repeat('ä', 127)"),
        ("traceparent", "repeat('ä', 127)"),
        ("tracestate", "repeat('ä', 256)"),
        ("aggregate_id", "repeat('ä', 100)"),
        ("aggregate_id", "'a\"b\\c#*.:'"),
        ("aggregate_type", "repeat('x', 64)"),
        ("event_type", "repeat('x', 128)"),
        ("event_type", "'...'"),
        ("schema_version", "'1.0.0-' || repeat('x', 58)"),
        ("event_id", "'00000000-0000-0000-0000-000000000000'"),
    ];
    for (column, value) in extremes {
        let mut columns =
            vec![("aggregate_type", "'order'"), ("aggregate_id", "'1'"), ("event_type", "'placed'")];
        columns.retain(|(name, _)| *name != column);
        columns.push((column, value));
        let (names, values): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
        let (names, values) = (names.join(", "), values.join(", "));
        site.sql(&format!("INSERT INTO statecast.outbox ({names}) VALUES ({values})")).await;
    }
    let prefix = "p".repeat(127);
    for format in ["structured", "binary"] {
        let statecast = site
            .statecast
            .clone()
            .with("STATECAST_NAME", &unique(format))
            .with("STATECAST_EVENT__FORMAT", format)
            .with("STATECAST_EVENT__TYPE_PREFIX", &prefix);
        statecast.arguments(&["run", "--until-idle"]).succeed().await;
    }
    let consumer = Consumer::start(&site.topology.url, &site.topology.queue);
    let expected = 2 * extremes.len();
    assert!(consumer.wait_for(LIMIT, |deliveries| deliveries.len() == expected).await);
    for delivery in consumer.deliveries() {
        delivery.seen();
        if delivery.content_type.as_deref() == Some("application/cloudevents+json") {
            serde_json::from_slice::<&serde_json::value::RawValue>(&delivery.body).unwrap();
        }
    }
}
