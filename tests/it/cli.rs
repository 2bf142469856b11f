//! The commands for people, as the real binary runs them: exit codes, what they print, what they leave in the database.

use std::time::Duration;

use serde_json::Value;
use tokio_postgres::Client;

use crate::process::Invocation;
use crate::servers::{Topology, connect, fresh_database, rabbitmq, unique};

const LIMIT: Duration = Duration::from_secs(60);

/// An installed database, and `statecast` aimed at it.
struct Site {
    client: Client,
    topology: Topology,
    pipeline: String,
    statecast: Invocation,
}

impl Site {
    async fn new() -> Site {
        let url = fresh_database().await;
        let topology = Topology::new(rabbitmq().await.url());
        topology.declare().await;
        let pipeline = unique("cli");
        let statecast = Invocation::run(&url, &topology, &pipeline);
        statecast.arguments(&["install"]).succeed().await;
        Site { client: connect(&url).await.unwrap(), topology, pipeline, statecast }
    }

    async fn succeed(&self, arguments: &[&str]) -> String {
        self.statecast.arguments(arguments).succeed().await
    }

    /// Exit code and standard error of a command that fails.
    async fn fail(&self, arguments: &[&str]) -> (i32, String) {
        let (code, _, stderr) = self.statecast.arguments(arguments).output(LIMIT).await;
        (code.unwrap(), stderr)
    }

    async fn publish(&self, id: &str) -> String {
        let printed = self.succeed(&["publish", "order", id, "order.placed", r#"{"total": 1.10}"#]).await;
        printed.trim().to_owned()
    }

    async fn drain(&self) {
        self.succeed(&["run", "--until-idle"]).await;
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&self.succeed(&["status", "--json"]).await).unwrap()
    }

    /// `confirmed + parked + discarded + pending + base`, and what has committed.
    async fn books(&self) -> (i64, i64) {
        let status = self.status().await;
        let counted = |name: &str| status[name].as_i64().unwrap();
        let row = self
            .client
            .query_one(
                "SELECT coalesce((SELECT base FROM statecast.cursor WHERE pipeline = $1), 0),
                        (SELECT count(*) FROM statecast.outbox)",
                &[&self.pipeline],
            )
            .await
            .unwrap();
        let sum = counted("confirmed") + counted("parked") + counted("discarded") + counted("pending");
        (sum + row.get::<_, i64>(0), row.get(1))
    }

    async fn cursor(&self, column: &str) -> i64 {
        let sql = format!("SELECT {column}::bigint FROM statecast.cursor WHERE pipeline = $1");
        self.client.query_one(&sql, &[&self.pipeline]).await.unwrap().get(0)
    }
}

#[tokio::test]
async fn status_counts_what_is_pending() {
    let site = Site::new().await;
    let before = site.status().await;
    assert_eq!(
        (&before["pending"], &before["leader"], &before["ready"]),
        (&0.into(), &Value::Null, &false.into())
    );
    site.publish("1").await;
    site.publish("2").await;
    let status = site.status().await;
    assert_eq!(status["pending"], 2);
    assert!(status["oldest_pending_ms"].as_i64().unwrap() >= 0);
    site.drain().await;
    let status = site.status().await;
    assert_eq!((&status["pending"], &status["confirmed"]), (&0.into(), &2.into()));
    assert_eq!(status["oldest_pending_ms"], Value::Null);
    site.publish("3").await;
    assert_eq!(site.books().await, (3, 3));

    let mut relay = site.statecast.start();
    relay.wait_ready(LIMIT).await.unwrap();
    let status = site.status().await;
    assert!(status["leader"].is_string() && status["ready"] == true, "{status}");
    assert!(site.succeed(&["status"]).await.contains("ready      yes"));
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());
}

#[tokio::test]
async fn from_now_skips_the_archive_also_after_a_cut_off_start() {
    let site = Site::new().await;
    site.publish("1").await;
    // A start that died between the row and its position.
    site.client
        .execute(
            "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, max_seq)
             SELECT $1, system_identifier, 1, '1:1:', 1 FROM pg_control_system()",
            &[&site.pipeline],
        )
        .await
        .unwrap();
    site.succeed(&["run", "--until-idle", "--from", "now"]).await;
    let status = site.status().await;
    assert_eq!((&status["pending"], &status["confirmed"]), (&0.into(), &0.into()));
    assert_eq!((site.cursor("base").await, site.books().await), (1, (1, 1)));
    site.publish("2").await;
    // An existing pipeline goes on where it is.
    site.succeed(&["run", "--until-idle", "--from", "now"]).await;
    assert_eq!((site.status().await["confirmed"].as_i64(), site.books().await), (Some(1), (2, 2)));
}

#[tokio::test]
async fn publish_prints_the_id_and_says_why_not() {
    let site = Site::new().await;
    let id = site.publish("1").await;
    let row = site
        .client
        .query_one("SELECT event_id::text, payload::text FROM statecast.outbox", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, String>(0), row.get::<_, String>(1)), (id, r#"{"total": 1.10}"#.to_owned()));
    site.succeed(&[
        "publish",
        "order",
        "1",
        "order.deleted",
        "--delete",
        "--lock",
        "--headers",
        r#"{"a":1}"#,
    ])
    .await;

    let (code, stderr) = site.fail(&["publish", "or der", "1", "order.placed", "{}"]).await;
    assert!(code == 1 && stderr.contains("aggregate_type_is_1_to_64"), "{stderr}");
    let (code, stderr) = site.fail(&["publish", "order", "1", "order.placed", "{"]).await;
    assert!(code == 1 && stderr.contains("json"), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
}

#[tokio::test]
async fn tail_prints_the_last_events_and_queues() {
    let site = Site::new().await;
    for id in ["1", "2", "3"] {
        site.publish(id).await;
    }
    let text = site.succeed(&["tail", "-n", "2", "--no-follow", "--payload"]).await;
    let keys: Vec<&str> = text.lines().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    assert_eq!(keys, ["order:2", "order:3"]);
    assert!(text.lines().all(|line| line.ends_with(r#"{"total": 1.10}"#)), "{text}");

    site.drain().await;
    let arguments = ["tail", "--queue", &site.topology.queue, "--no-follow"];
    let (_, text, stderr) = site.statecast.arguments(&arguments).output(LIMIT).await;
    let mut keys: Vec<&str> = text.lines().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["order:1", "order:2", "order:3"], "{text}");
    assert!(stderr.contains("taken out of it"), "{stderr}");
    assert_eq!(site.succeed(&arguments).await, "", "acknowledged");
}

/// A transaction that wrote before the tail began, and commits after later ones have been printed.
#[tokio::test]
async fn tail_misses_no_late_commit() {
    let mut site = Site::new().await;
    let publish = site.statecast.arguments(&["publish", "order", "early", "order.placed", "{}"]);
    let late = site.client.transaction().await.unwrap();
    late.execute("SELECT statecast.publish('order', 'late', 'order.placed', '{}')", &[]).await.unwrap();
    let mut tail = site.statecast.arguments(&["tail", "-n", "0"]).start();
    // Until one is printed, the tail may not have begun.
    let mut published = 0;
    while published < 50 && !tail.wait_for_log("order:early", Duration::from_millis(500)).await {
        publish.succeed().await;
        published += 1;
    }
    assert!(!tail.log().contains("order:late"), "{}", tail.log());
    late.commit().await.unwrap();
    assert!(tail.wait_for_log("order:late", LIMIT).await, "{}", tail.log());
    let lines: Vec<String> = tail.log().lines().map(str::to_owned).collect();
    assert_eq!(lines.iter().filter(|line| line.contains("order:late")).count(), 1, "{lines:?}");
}

#[tokio::test]
async fn cursor_is_shown_and_dropped() {
    let site = Site::new().await;
    let (code, stderr) = site.fail(&["cursor", "show"]).await;
    assert!(code == 1 && stderr.contains("never run"), "{stderr}");
    site.publish("1").await;
    site.drain().await;
    assert!(site.succeed(&["cursor", "show"]).await.contains("confirmed          1\n"));
    let (code, stderr) = site.fail(&["cursor", "drop"]).await;
    assert!(code == 64 && stderr.contains("--yes"), "{stderr}");

    let mut relay = site.statecast.start();
    relay.wait_ready(LIMIT).await.unwrap();
    for command in ["drop", "rebase"] {
        let (code, stderr) = site.fail(&["cursor", command, "--yes"]).await;
        assert!(code == 1 && stderr.contains("a relay leads") && stderr.contains("backend"), "{stderr}");
    }
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());

    site.succeed(&["cursor", "drop", "--yes", "--reason", "moved"]).await;
    let (code, _) = site.fail(&["cursor", "show"]).await;
    assert_eq!(code, 1);
    let row = site.client.query_one("SELECT act, selector, reason FROM statecast.audit", &[]).await.unwrap();
    let text = |i| row.get::<_, String>(i);
    assert_eq!((text(0), text(1), text(2)), ("cursor drop".into(), site.pipeline.clone(), "moved".into()));
}

/// The database "comes" from another server: another system identifier, and transaction ids from the future.
#[tokio::test]
async fn rebase_takes_a_restored_database_over() {
    let site = Site::new().await;
    for id in ["1", "2", "3"] {
        site.publish(id).await;
    }
    site.drain().await;
    site.publish("4").await;
    site.client
        .batch_execute(
            "UPDATE statecast.cursor SET system_identifier = 1, floor_seq = 1;
             UPDATE statecast.outbox SET xid = '4000000000'::xid8 WHERE seq = 4;",
        )
        .await
        .unwrap();
    let (code, stderr) = site.fail(&["run", "--until-idle"]).await;
    assert!(code == 1 && stderr.contains("cursor rebase"), "{stderr}");
    let status = site.status().await;
    assert!(status["reasons"].to_string().contains("another server"), "{status}");

    let epoch = site.cursor("epoch").await;
    let printed = site.succeed(&["cursor", "rebase", "--yes"]).await;
    assert!(printed.contains("above seq 1: 3 events") && printed.contains("1 restored rows"), "{printed}");
    assert_eq!(site.cursor("epoch").await, epoch + 1);
    assert_eq!(site.books().await, (4, 4), "three repeats are pending");
    site.drain().await;
    assert_eq!(site.books().await, (4, 4));
    assert_eq!(site.status().await["pending"], 0);
    site.publish("5").await;
    let seq: i64 = site.client.query_one("SELECT max(seq) FROM statecast.outbox", &[]).await.unwrap().get(0);
    assert!(seq > 4 + 10_000, "{seq}: numbers that were published elsewhere are not issued again");
    site.drain().await;
    assert_eq!(site.books().await, (5, 5));
}

#[tokio::test]
async fn wrong_configuration_is_78_with_every_mistake() {
    let site = Site::new().await;
    let wrong = site
        .statecast
        .arguments(&["status"])
        .with("STATECAST_RABBITMQ__WINDOW", "many")
        .with("STATECAST_NO__SUCH_KEY", "1");
    let (code, stdout, stderr) = wrong.output(LIMIT).await;
    assert_eq!((code, stdout.as_str()), (Some(78), ""));
    assert!(stderr.contains("rabbitmq.window") && stderr.to_lowercase().contains("no"), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 3, "{stderr}");
}
