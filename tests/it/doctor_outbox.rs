//! `statecast doctor` on what Statecast keeps in the database: each fault is made, found by its code, and taken back.

use crate::doctor::{Report, Site};
use crate::pg;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_and_rights() {
    let site = Site::new(&[], false).await;
    let empty = site.server.create_database("empty").await.unwrap();
    let report = Report::of(&site.statecast.clone().with("STATECAST_POSTGRES__URL", &empty), &[]).await;
    report.must_say("schema", "error", &["statecast install"]);
    report.must_say("tail-filled", "not examined", &["no schema"]);
    report.must_be_ok("slot-left");

    let ascii = pg::database_with(&site.url, "ascii", "ENCODING 'SQL_ASCII'").await;
    let report = Report::of(&site.statecast.clone().with("STATECAST_POSTGRES__URL", &ascii), &[]).await;
    report.must_say("server-unfit", "error", &["SQL_ASCII"]);

    site.sql("CREATE ROLE nobody LOGIN; GRANT USAGE ON SCHEMA statecast TO nobody; GRANT SELECT ON statecast.meta, statecast.cursor, statecast.outbox TO nobody").await;
    let login = site.statecast.clone().with("STATECAST_POSTGRES__URL", &pg::with_user(&site.url, "nobody"));
    let report = Report::of(&login, &[]).await;
    report.must_say("privileges", "error", &["nobody lacks", "GRANT statecast_relay TO nobody"]);
    report.must_say("sequence-altered", "not examined", &["permission denied"]);
    assert_eq!(report.exit, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sequence_and_chunks() {
    let site = Site::shared(false).await;
    site.report().await.must_be_ok("sequence-altered");
    for (alter, words) in [
        ("SET CACHE 50", ["cache is 50", "SET CACHE 1"]),
        ("SET INCREMENT 2", ["increment is 2", "SET INCREMENT 1"]),
        ("SET CYCLE", ["cycles", "SET NO CYCLE"]),
    ] {
        site.sql(&format!("ALTER TABLE statecast.outbox ALTER COLUMN seq {alter}")).await;
        site.report().await.must_say("sequence-altered", "error", &words);
        site.sql("ALTER TABLE statecast.outbox ALTER COLUMN seq SET CACHE 1 SET INCREMENT 1 SET NO CYCLE")
            .await;
    }
    site.sql("CREATE TABLE statecast.outbox_99 (i int); INSERT INTO statecast.outbox_99 VALUES (1)").await;
    site.report().await.must_say("chunk-stray", "warning", &["statecast.outbox_99"]);
    site.sql("DROP TABLE statecast.outbox_99").await;
    // 16 chunks of a million rows, then the tail.
    site.sql("SELECT setval('statecast.outbox_seq_seq', 15000001)").await;
    site.report().await.must_say("chunks-short", "warning", &["0 empty chunks", "16000001"]);
    site.sql("SELECT setval('statecast.outbox_seq_seq', 16000000)").await;
    site.publish("placed").await;
    let report = site.report().await;
    report.must_say("tail-filled", "error", &["outbox_tail_16000001", "statecast maintain"]);
    assert_eq!(report.exit, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cursors() {
    let site = Site::shared(false).await;
    let insert = |pipeline: &str, floor: i64, age: &str| {
        format!(
            "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, floor_seq, max_seq, updated_at)
             SELECT '{pipeline}', system_identifier, 1, '1:1:', {floor}, {floor}, now() - interval '{age}'
               FROM pg_control_system()"
        )
    };
    site.sql("SELECT setval('statecast.outbox_seq_seq', 2500000)").await;
    site.sql(&insert("forgotten", 5, "3 days")).await;
    site.sql(&insert("caught-up", 2_400_000, "2 hours")).await;
    site.sql(&insert("fresh", 5, "1 minute")).await;
    let report = site.report().await;
    report.must_say("cursor-stuck", "warning", &["forgotten", "3d 0h", "2 chunks", "statecast cursor drop"]);
    report.must_say("cursor-stuck", "info", &["caught-up", "0 chunks"]);
    assert!(report.with("cursor-stuck").all(|found| !found.holds(&["fresh"])));
    // With a leader the cause is elsewhere; and without work a leader does not write its cursor.
    site.sql("SELECT pg_advisory_lock(hashtextextended('statecast:' || p, 0)) FROM unnest('{forgotten,caught-up}'::text[]) p").await;
    let report = site.report().await;
    report.must_say("cursor-stuck", "warning", &["forgotten", "a relay leads it", "/ready"]);
    assert!(report.with("cursor-stuck").all(|found| !found.holds(&["caught-up"])));

    site.sql(&insert(&site.pipeline, 5, "1 minute")).await;
    site.report().await.must_be_ok("cursor-mismatch");
    for (change, severity, words) in [
        ("max_seq = 9000000", "error", ["stands at 2500000", "9000000"]),
        ("timeline = 7, max_seq = 9000000", "info", ["was promoted", "timeline 7"]),
        ("timeline = 1, system_identifier = 5", "error", ["cluster 5", "cursor rebase"]),
    ] {
        site.sql(&format!("UPDATE statecast.cursor SET {change} WHERE pipeline = '{}'", site.pipeline)).await;
        site.report().await.must_say("cursor-mismatch", severity, &words);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_write_ids() {
    let site = Site::new(&[], false).await;
    site.sql("CREATE ROLE app LOGIN; GRANT statecast_writer TO app; CREATE ROLE legacy").await;
    // Honest rows, one of them behind a savepoint: its own mark is the savepoint's, later than the transaction's.
    site.publish("placed").await;
    site.sql("BEGIN; SELECT statecast.publish('order', '1', 'paid', '{}'); SAVEPOINT s; SELECT statecast.publish('order', '1', 'sent', '{}'); COMMIT").await;
    let report = site.report().await;
    report.must_say("rows-forged", "ok", &["latest 3 rows"]);
    report.must_be_ok("writer-grants");

    site.sql("GRANT INSERT (xid, seq, aggregate_type) ON statecast.outbox TO app; GRANT DELETE ON statecast.outbox TO legacy").await;
    let report = site.report().await;
    report.must_say(
        "writer-grants",
        "warning",
        &["app", "REVOKE INSERT (seq, xid) ON statecast.outbox FROM app"],
    );
    report.must_say("writer-grants", "warning", &["REVOKE DELETE ON statecast.outbox FROM legacy"]);
    assert_eq!(report.with("writer-grants").count(), 2, "those of statecast_writer are meant");

    let insert = |columns: &str, values: &str| {
        format!(
            "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload, {columns}) OVERRIDING SYSTEM VALUE
             VALUES ('order', '1', 'placed', '{{}}', {values})"
        )
    };
    // An id that was rolled back, and one of the future.
    let row = site.client.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
    let earlier: String = row.get(0);
    site.sql(&format!("BEGIN; {}; ROLLBACK", insert("seq", "1000"))).await;
    let rolled_back = format!("({earlier}::text::bigint + 1)::text::xid8");
    site.sql(&insert("xid", &rolled_back)).await;
    site.report().await.must_say(
        "rows-forged",
        "warning",
        &["of the latest 4 rows 1 with the id of another"],
    );
    site.sql(&insert("xid", "'4000000000'")).await;
    site.report().await.must_say("rows-forged", "error", &["no transaction has yet", "seq 5"]);
    site.sql(&insert("seq", "5000")).await;
    let report = site.report().await;
    report.must_say("rows-forged", "error", &["seq 5000", "setval('statecast.outbox_seq_seq', 5000)"]);
    // A restore leaves such rows as well, until the rebase that follows it.
    site.sql("DELETE FROM statecast.outbox WHERE seq = 5000; INSERT INTO statecast.audit (actor, act) VALUES ('t', 'cursor rebase')").await;
    site.publish("placed").await;
    site.report().await.must_say("rows-forged", "ok", &["latest 1 rows"]);
    // Beyond the rows that are looked at nothing is found.
    let report = Report::of(&site.statecast, &["--rows", "0"]).await;
    report.must_be_ok("rows-forged");
}
