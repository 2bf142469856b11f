//! `statecast doctor` on relays: a leader with its standby, a lease that nobody renews, nobody at all; what waits for people;
//! several hosts.

use crate::doctor::{LIMIT, Report, Site, wait_to_say};
use crate::pg;
use crate::servers::unique;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leader_standby_and_lease() {
    let site = Site::shared(false).await;
    let report = site.report().await;
    report.must_say("leader-none", "info", &["has not run here yet"]);
    report.must_be_ok("standby-none");

    let mut leader = site.statecast.start();
    leader.wait_ready(LIMIT).await.unwrap();
    let report = site.report().await;
    report.must_say("leader-none", "ok", &["leads, epoch 1"]);
    report.must_say("standby-none", "info", &["no other relay is connected"]);
    let mut standby = site.statecast.replica().start();
    standby.wait_ready(LIMIT).await.unwrap();
    let report = wait_to_say(&site.statecast, "standby-none", "ok", &["1 standby connected"]).await;
    for code in ["leader-none", "lease-stale", "takeover-rights", "cursor-stuck", "walsender-left"] {
        report.must_be_ok(code);
    }

    // One with a login that could not end the leader's connections.
    let login = unique("relay").replace('-', "_");
    let url = pg::login(&site.url, &login, "", &format!("GRANT statecast_relay TO {login}")).await;
    let mut unable = site.statecast.replica().with("STATECAST_POSTGRES__URL", &url).start();
    unable.wait_ready(LIMIT).await.unwrap();
    let words = [&login, "may not end", &format!("TO {login}")];
    wait_to_say(&site.statecast, "takeover-rights", "warning", &words).await;
    unable.kill9();

    // Stopped, both hold their connections.
    leader.pause();
    standby.pause();
    wait_to_say(&site.statecast, "lease-stale", "warning", &["has not renewed", "1 standby connected"]).await;
    standby.kill9();
    let report = wait_to_say(&site.statecast, "lease-stale", "error", &["no standby is connected"]).await;
    assert_eq!(report.exit, 1);
    leader.kill9();
    let report = wait_to_say(&site.statecast, "leader-none", "error", &["no relay is connected"]).await;
    report.must_be_ok("lease-stale");
    assert_eq!(report.exit, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_for_people_or_the_broker() {
    let site = Site::shared(false).await;
    for _ in 0..5 {
        site.publish("placed").await;
    }
    let report = site.report().await;
    for code in ["events-parked", "events-waiting", "requests-unanswered"] {
        report.must_be_ok(code);
    }
    let set_aside = |pipeline: &str| {
        format!(
            "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                                           schema_version, payload, recorded_at, state, reason, since, request, requested_at)
             SELECT '{pipeline}', o.seq, o.xid, 1, o.event_id, o.aggregate_type, o.aggregate_id, o.event_type,
                    o.schema_version, o.payload, o.recorded_at, s.state, s.reason, now() - interval '2 hours', s.request,
                    now() - s.asked::interval
               FROM (VALUES (1, 'parked', 'unroutable', NULL, NULL), (2, 'parked', 'too_large', 'retry', '2 minutes'),
                            (3, 'waiting', 'nack', 'discard', '1 second'), (4, 'queued', NULL, NULL, NULL),
                            (5, 'confirmed', NULL, NULL, NULL)) AS s (place, state, reason, request, asked)
               JOIN (SELECT row_number() OVER (ORDER BY seq) AS place, * FROM statecast.outbox) o USING (place)"
        )
    };
    site.sql(&set_aside("another")).await;
    site.report().await.must_be_ok("events-parked");
    site.sql(&set_aside(&site.pipeline)).await;
    let report = site.report().await;
    let words = ["2 events (1 too_large, 1 unroutable)", "2h 0m", "statecast parked list"];
    report.must_say("events-parked", "warning", &words);
    report.must_say("events-waiting", "warning", &["2 events", "1 nack", "1 behind others of their key"]);
    report.must_say("requests-unanswered", "warning", &["1 event (1 retry)", "2m"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_hosts() {
    let site = Site::new(&[], false).await;
    let copy = site.server.standby("copy").await.unwrap();
    let port = |url: &str| url.parse::<tokio_postgres::Config>().unwrap().get_ports()[0];
    let (before, _) = site.url.split_once("127.0.0.1").unwrap();
    let at = |ports: &[u16]| {
        let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        site.statecast.clone().with("STATECAST_POSTGRES__URL", &format!("{before}{}/shop", hosts.join(",")))
    };
    let (primary, copied) = (port(&site.url), port(&copy.url("shop")));
    let report = Report::of(&at(&[copied, primary]), &[]).await;
    report.must_say("hosts-differ", "ok", &["2 hosts, 1 of them standbys"]);
    report.must_be_ok("postgres-unreachable");
    let report = Report::of(&at(&[1, primary]), &[]).await;
    report.must_say("postgres-unreachable", "warning", &["127.0.0.1:1", "one of several hosts"]);
    assert_eq!(report.exit, 0);
    copy.promote().await.unwrap();
    let report = Report::of(&at(&[primary, copied]), &[]).await;
    report.must_say("hosts-differ", "error", &[&copied.to_string(), &primary.to_string(), "accept writes"]);
    site.report().await.must_say("hosts-differ", "ok", &["one host"]);
}
