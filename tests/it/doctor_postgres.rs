//! `statecast doctor` on the database server: each fault is made, found by its code, and taken back.

use statecast::sandbox::{Pgbouncer, PoolMode, Postgres, PostgresOptions};
use statecast::source::replication;
use statecast::source::wal::names;
use tokio_postgres::error::SqlState;

use crate::doctor::{LIMIT, Report, Shared, Site, shared};
use crate::pg;
use crate::process::Invocation;
use crate::servers::{self, Topology, connect, unique};
use crate::wal_bench::wait_until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_and_walsenders() {
    let site = Site::new(&[], false).await;
    let own = format!("{}4711", names::slot_prefix(&site.pipeline));
    site.sql(&format!("SELECT pg_create_logical_replication_slot('{own}', 'pgoutput')")).await;
    site.sql("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')").await;
    site.sql("SELECT pg_create_physical_replication_slot('standby')").await;
    let stream = names::application_name(&site.pipeline);
    let walsender = replication::connect(&pg::config(&site.url), &stream).await.unwrap();
    let report = site.report().await;
    assert_eq!(report.exit, 1);
    report.must_say("slot-left", "error", &[&own, "permanent", "pg_drop_replication_slot"]);
    report.must_say(
        "slot-foreign",
        "warning",
        &["debezium", "not in use", "retains", "max_slot_wal_keep_size"],
    );
    report.must_say("slot-foreign", "info", &["physical slot standby", "retains no WAL"]);
    report.must_say("walsender-left", "warning", &[&walsender.backend_pid().to_string()]);
    drop(walsender);
    for slot in [&own, "debezium", "standby"] {
        site.sql(&format!("SELECT pg_drop_replication_slot('{slot}')")).await;
    }
    let report = site.report().await;
    report.must_be_ok("slot-left");
    report.must_be_ok("slot-foreign");
    assert_eq!(report.exit, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_transactions_and_the_horizon() {
    let site = Site::new(&[("max_prepared_transactions", "5")], false).await;
    let (billing, _guard) = statecast::postgres::connect(&pg::config(&site.url), "billing").await.unwrap();
    billing
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")
        .await
        .unwrap();
    let pid = pg::number(&billing, "SELECT pg_backend_pid()::bigint").await.to_string();
    site.sql("CREATE TABLE t (i int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'half done'")
        .await;
    for _ in 0..120 {
        site.sql("SELECT pg_current_xact_id()").await;
    }
    let limits = ["--long-transaction", "1s", "--horizon-age", "100"];
    let deadline = std::time::Instant::now() + LIMIT;
    let report = loop {
        let report = Report::of(&site.statecast, &limits).await;
        let both = ["transaction-long", "transaction-prepared"]
            .iter()
            .all(|code| report.with(code).any(|found| found.severity == "warning"));
        if both || std::time::Instant::now() > deadline {
            break report;
        }
    };
    report.must_say("transaction-long", "warning", &[&pid, "billing", "idle in transaction", "has written"]);
    report.must_say("transaction-prepared", "warning", &["half done", "ROLLBACK PREPARED 'half done'"]);
    report.must_say("vacuum-horizon", "warning", &["backend", &pid, "billing", "pg_terminate_backend"]);
    report.must_say("vacuum-horizon", "warning", &["prepared transaction 'half done'"]);
    assert_eq!(report.exit, 0, "warnings alone");
    let strict = Report::of(&site.statecast, &[&limits[..], &["--strict"]].concat()).await;
    assert_eq!(strict.exit, 1);
    // Nobody is old by the limits of every day.
    let report = site.report().await;
    for code in ["transaction-long", "transaction-prepared", "vacuum-horizon"] {
        report.must_be_ok(code);
    }

    // A slot that nobody reads holds the catalogs; a login without rights sees no starts of others' transactions.
    site.sql("ROLLBACK PREPARED 'half done'").await;
    billing.batch_execute("COMMIT").await.unwrap();
    site.sql("SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')").await;
    for _ in 0..120 {
        site.sql("SELECT pg_current_xact_id()").await;
    }
    billing
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")
        .await
        .unwrap();
    site.sql("CREATE ROLE relay LOGIN; GRANT statecast_relay TO relay").await;
    let login = site.statecast.clone().with("STATECAST_POSTGRES__URL", &pg::with_user(&site.url, "relay"));
    let report = Report::of(&login, &limits).await;
    report.must_say("vacuum-horizon", "warning", &["catalog of slot debezium"]);
    report.must_say("transaction-long", "not examined", &["GRANT pg_read_all_stats TO relay"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vacuum_does_not_hold_the_horizon() {
    let site = Site::shared(false).await;
    // More than a thousand pages with a rest after each: nobody waits for the end.
    site.sql("CREATE TABLE t WITH (autovacuum_enabled = off) AS SELECT generate_series(1, 300000) AS i")
        .await;
    let vacuum = connect(&site.url).await.unwrap();
    let pid = pg::number(&vacuum, "SELECT pg_backend_pid()::bigint").await;
    vacuum.batch_execute("SET vacuum_cost_delay = '100ms'; SET vacuum_cost_limit = 1").await.unwrap();
    let running = tokio::spawn(async move { vacuum.batch_execute("VACUUM t").await });
    wait_until(
        &site.client,
        &format!(
            "EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE pid = {pid} AND phase = 'scanning heap')"
        ),
    )
    .await;
    for _ in 0..20 {
        site.sql("SELECT pg_current_xact_id()").await;
    }
    let report = Report::of(&site.statecast, &["--horizon-age", "10"]).await;
    let place = format!("backend {pid},");
    let holders: Vec<_> = report.with("vacuum-horizon").collect();
    assert!(holders.iter().all(|found| !found.holds(&[&place])), "{holders:#?}");
    site.sql(&format!("SELECT pg_cancel_backend({pid})")).await;
    let ended = running.await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Some(&SqlState::QUERY_CANCELED), "it was running meanwhile: {ended}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wal_level_by_mode() {
    let settings = [("wal_level", "replica"), ("max_wal_senders", "0"), ("autovacuum", "off")];
    let site = Site::new(&settings, false).await;
    let next = async || pg::number(&site.client, "SELECT pg_current_xact_id()::text::bigint").await;
    let before = next().await;
    for (mode, severity) in [("wal", "error"), ("auto", "info"), ("poll", "ok")] {
        let report = Report::of(&site.statecast.clone().with("STATECAST_SOURCE__MODE", mode), &[]).await;
        report.must_say("wal-level", severity, &[]);
        assert_eq!(report.exit, i32::from(mode == "wal"), "{mode}");
    }
    site.report().await.must_say("streaming", "info", &["walsenders", "max_wal_senders"]);
    assert_eq!(next().await, before + 1, "four examinations, and none wrote anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_is_named_and_left_as_it_was() {
    let site = Site::new(&[], false).await;
    for (mode, severity) in [(PoolMode::Transaction, "error"), (PoolMode::Session, "ok")] {
        let bouncer = Pgbouncer::start(&site.server, mode).await.unwrap();
        let statecast = site.statecast.clone().with("STATECAST_POSTGRES__URL", &bouncer.url("shop"));
        let report = Report::of(&statecast, &[]).await;
        report.must_say("pooler", severity, &[]);
        if severity == "error" {
            report.must_say("slot-left", "not examined", &["pooler"]);
        } else {
            report.must_be_ok("slot-left");
        }
        // Whoever gets the server process next may write.
        let next = connect(&bouncer.url("shop")).await.unwrap();
        next.batch_execute("CREATE TABLE IF NOT EXISTS written (i int)").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_end_soon() {
    let Shared { authority, tls, broker, .. } = shared().await;
    let options = PostgresOptions { tls: Some(tls.clone()), ..Default::default() };
    let postgres = Postgres::start(options).await.unwrap();
    let url = postgres.create_database("shop").await.unwrap();
    let topology = Topology::new(broker.url());
    topology.declare().await;
    let (own_cert, own_key) = authority.issue_for("statecast", &[], 3);
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let statecast = Invocation::run(&url, &topology, &unique("tls"))
        .with("STATECAST_RABBITMQ__URLS", &broker.amqps_url().unwrap())
        .with("STATECAST_POSTGRES__TLS__CA_FILE", &text(&authority.ca()))
        .with("STATECAST_RABBITMQ__TLS__CA_FILE", &text(&authority.ca()))
        .with("STATECAST_POSTGRES__TLS__CERT_FILE", &text(&own_cert))
        .with("STATECAST_POSTGRES__TLS__KEY_FILE", &text(&own_key));
    statecast.arguments(&["install"]).succeed().await;
    let report = Report::of(&statecast, &[]).await;
    report.must_say("tls-postgres", "warning", &["localhost", "in 20 days"]);
    report.must_say("tls-rabbitmq", "warning", &["localhost", "in 20 days"]);
    report.must_say("tls-own", "error", &["postgres.tls", "in 3 days"]);
    report.must_be_ok("postgres-unreachable");
    report.must_be_ok("rabbitmq-unreachable");
    let log = postgres.read_log();
    assert!(!log.contains("SSL error") && !log.contains("could not accept"), "{log}");
    let plain = Report::of(&Invocation::run(&servers::fresh_database().await, &topology, "plain"), &[]).await;
    plain.must_say("tls-postgres", "ok", &["does not use TLS"]);
    plain.must_say("tls-rabbitmq", "ok", &["no connection uses TLS"]);
}
