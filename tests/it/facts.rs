//! What `install`, `check` and `status` say about streaming, as the real binary runs them.

use std::time::Duration;

use serde_json::Value;
use statecast::sandbox::{Postgres, PostgresOptions};
use statecast::source::replication::{Stream, connect as replicate};
use statecast::source::wal::facts::{Obstacle, look, stream_state};
use statecast::source::wal::names::{application_name, slot};
use tokio_postgres::types::PgLsn;

use crate::pg::{self, Session};
use crate::process::Invocation;
use crate::servers::{self, Topology, unique};

const LIMIT: Duration = Duration::from_secs(60);

/// An installed database, an exchange, and `statecast` aimed at them.
struct Site {
    url: String,
    session: Session,
    pipeline: String,
    statecast: Invocation,
}

impl Site {
    async fn new(url: &str, mode: &str) -> Site {
        let topology = Topology::new(servers::rabbitmq().await.url());
        topology.declare().await;
        let pipeline = unique("facts");
        let statecast = Invocation::run(url, &topology, &pipeline).with("STATECAST_SOURCE__MODE", mode);
        Site { url: url.to_owned(), session: pg::open(url).await, pipeline, statecast }
    }

    async fn shared(mode: &str) -> Site {
        Site::new(&servers::fresh_database().await, mode).await
    }

    async fn install(&self) -> String {
        self.statecast.arguments(&["install"]).succeed().await
    }

    /// Exit code and findings of `check`.
    async fn check(&self) -> (i32, String) {
        let (code, stdout, _) = self.statecast.arguments(&["check"]).output(LIMIT).await;
        println!("{stdout}");
        (code.unwrap(), stdout)
    }

    /// The same where it must say all of `lines`, each at the beginning of one.
    async fn check_says(&self, code: i32, lines: &[&str]) {
        let found = self.check().await;
        assert_eq!(found.0, code, "{}", found.1);
        for line in lines {
            assert!(found.1.lines().any(|said| said.starts_with(line)), "{line}\n{}", found.1);
        }
        let last = lines.last().unwrap();
        assert!(found.1.lines().last().unwrap().starts_with(last), "{last}\n{}", found.1);
    }

    async fn status(&self) -> Value {
        let printed = self.statecast.arguments(&["status", "--json"]).succeed().await;
        serde_json::from_str(&printed).unwrap()
    }

    fn with_mode(&self, mode: &str) -> Invocation {
        self.statecast.clone().with("STATECAST_SOURCE__MODE", mode)
    }
}

async fn server(settings: &[(&str, &str)]) -> Postgres {
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap()
}

const STREAMS: &str = "ok      source: `run` streams (source.mode = \"auto\")";

#[tokio::test]
async fn install_and_check_agree_about_the_publication() {
    let mut site = Site::shared("auto").await;
    // Without a schema: both are said.
    site.check_says(
        1,
        &[
            "failed  postgres: database",
            "note    streaming: publication \"statecast\" does not exist",
            "note    source: `run` polls",
        ],
    )
    .await;
    assert!(site.install().await.ends_with("created publication \"statecast\" for statecast.outbox\n"));
    let again = site.install().await;
    assert_eq!(again, "the schema is up to date\npublication \"statecast\" is right\n");
    let found = [
        "ok      postgres: ",
        "ok      streaming: wal_level is logical",
        "ok      streaming: login statecast may stream",
        "ok      streaming: publication \"statecast\" brings every event",
        "ok      streaming: no commit waits for the stream",
        "ok      streaming: a replication connection can be opened",
        "ok      rabbitmq: ",
        STREAMS,
    ];
    site.check_says(0, &found).await;

    site.session.batch_execute("ALTER PUBLICATION statecast SET (publish = 'update')").await.unwrap();
    let wrong = "streaming: publication \"statecast\" is not fit to stream from (it does not publish inserts): `statecast install`";
    let why = "note    source: `run` polls (source.mode = \"auto\"), because of the publication";
    site.check_says(0, &[&format!("note    {wrong}"), why]).await;
    let reason = site.status().await["mode_reason"].as_str().unwrap().to_owned();
    assert!(reason.contains("not fit to stream from"), "{reason}");
    site.statecast = site.with_mode("wal");
    let why =
        "note    source: `run` polls until it can stream (source.mode = \"wal\"), because of the publication";
    site.check_says(1, &[&format!("failed  {wrong}"), why]).await;
    let mended = site.install().await;
    assert!(
        mended
            .contains("mended publication \"statecast\": it does not publish inserts, it publishes update\n"),
        "{mended}"
    );
    site.check_says(0, &["ok      source: `run` streams (source.mode = \"wal\")"]).await;

    // One that somebody else uses as well: fit, so it is left as it is.
    site.session
        .batch_execute("CREATE TABLE public.t (id int); ALTER PUBLICATION statecast ADD TABLE public.t")
        .await
        .unwrap();
    assert!(site.install().await.ends_with("publication \"statecast\" is right\n"));
    let extra = "note    streaming: publication \"statecast\" also publishes public.t: ";
    site.check_says(0, &[extra, "ok      source: `run` streams"]).await;
    site.session.batch_execute("ALTER PUBLICATION statecast DROP TABLE statecast.outbox").await.unwrap();
    for mode in ["auto", "wal"] {
        let (code, stdout, stderr) = site.with_mode(mode).arguments(&["install"]).output(LIMIT).await;
        assert_eq!((code, stdout.as_str()), (Some(1), "the schema is up to date\n"), "{stderr}");
        for part in ["public.t", "source.wal.publication", "ADD TABLE statecast.outbox"] {
            assert!(stderr.contains(part), "{stderr}");
        }
        assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    }
    site.statecast = site.with_mode("auto").with("STATECAST_SOURCE__WAL__PUBLICATION", "an \"other\" one");
    assert!(
        site.install().await.ends_with("created publication \"an \\\"other\\\" one\" for statecast.outbox\n")
    );
    site.check_says(0, &[STREAMS]).await;
}

#[tokio::test]
async fn polling_asks_nothing_of_the_wal() {
    let site = Site::shared("poll").await;
    assert!(!site.install().await.contains("publication"));
    let none = "SELECT count(*) FROM pg_publication";
    assert_eq!(pg::number(&site.session, none).await, 0);
    let (code, found) = site.check().await;
    assert!(code == 0 && !found.contains("streaming"), "{found}");
    assert!(found.ends_with("ok      source: `run` polls (source.mode = \"poll\")\n"), "{found}");
    let status = site.status().await;
    assert_eq!((&status["mode"], &status["mode_reason"]), (&"poll".into(), &"configured".into()));
    let printed = site.statecast.arguments(&["install", "--print"]).succeed().await;
    assert!(!printed.contains("PUBLICATION"));
    let printed = site.with_mode("auto").arguments(&["install", "--print"]).succeed().await;
    assert!(
        printed.contains("CREATE PUBLICATION \"statecast\" FOR TABLE statecast.outbox WITH"),
        "{printed}"
    );
}

#[tokio::test]
async fn a_plain_login_is_told_what_it_lacks() {
    let mut site = Site::shared("auto").await;
    site.install().await;
    let role = unique("relay").replace('-', "_");
    pg::login(&site.url, &role, "", &format!("GRANT statecast_relay TO {role}")).await;
    site.statecast = site.statecast.with("STATECAST_POSTGRES__URL", &pg::with_user(&site.url, &role));
    let lacks = format!("streaming: login {role} may not stream: ALTER ROLE {role} REPLICATION");
    let why = "note    source: `run` polls (source.mode = \"auto\"), because of the REPLICATION right";
    site.check_says(0, &[&format!("note    {lacks}"), why]).await;
    assert!(site.status().await["mode_reason"].as_str().unwrap().contains("may not stream"));
    // It installed nothing, and may not: the schema is there, so nothing fails where the pipeline can poll.
    site.session.batch_execute("DROP PUBLICATION statecast").await.unwrap();
    let grants = format!("GRANT statecast_owner TO {role}; ALTER ROLE {role} CREATEROLE");
    site.session.batch_execute(&grants).await.unwrap();
    let printed = site.install().await;
    let note = format!(
        "note: login {role} lacks the rights to create publication \"statecast\": let a superuser run"
    );
    assert!(printed.contains(&note) && printed.ends_with("until then `run` polls\n"), "{printed}");
    site.statecast = site.with_mode("wal");
    let (code, stdout, stderr) = site.statecast.arguments(&["install"]).output(LIMIT).await;
    assert!(code == Some(1) && stdout == "the schema is up to date\n", "{stdout}{stderr}");
    assert!(
        stderr.contains("CREATE PUBLICATION \"statecast\"") && stderr.contains("permission denied"),
        "{stderr}"
    );
    let ends = "note    source: `run` ends at once (source.mode = \"wal\"), because of the REPLICATION right, the publication";
    site.check_says(1, &[&format!("failed  {lacks}"), ends]).await;
}

#[tokio::test]
async fn a_server_whose_wal_cannot_be_decoded() {
    let server = server(&[("wal_level", "replica")]).await;
    let mut site = Site::new(&server.url("postgres"), "auto").await;
    // A new cluster, and an installer that is no superuser: it makes the roles, the schema and the publication.
    let grants = "GRANT CREATE ON DATABASE postgres TO installer";
    let installer = pg::login(&site.url, "installer", "CREATEROLE", grants).await;
    let plain = site.statecast.clone().with("STATECAST_POSTGRES__URL", &installer);
    let printed = plain.arguments(&["install"]).succeed().await;
    assert!(printed.contains("created publication \"statecast\" for statecast.outbox\n"), "{printed}");
    let printed = site.install().await;
    assert!(
        printed.ends_with("note: streaming also needs wal_level = logical, which is replica here\n"),
        "{printed}"
    );
    let level = "streaming: wal_level is replica: set wal_level = logical and restart PostgreSQL";
    let why = "note    source: `run` polls (source.mode = \"auto\"), because of wal_level";
    site.check_says(0, &[&format!("note    {level}"), why]).await;
    site.statecast = site.with_mode("wal");
    let why = "note    source: `run` ends at once (source.mode = \"wal\"), because of wal_level";
    site.check_says(1, &[&format!("failed  {level}"), why]).await;
}

/// A stream as the relay has it.
async fn stream(url: &str, pipeline: &str) -> Stream {
    let mut client = replicate(&pg::config(url), &application_name(pipeline)).await.unwrap();
    let slot = slot(pipeline, client.backend_pid());
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    client.start_replication(&slot, PgLsn::from(0), "statecast").await.unwrap()
}

/// One slot and one walsender: what a stream holds stands in the way of others, not in its own.
#[tokio::test]
async fn places_and_standby_names() {
    let settings =
        [("max_replication_slots", "1"), ("max_wal_senders", "1"), ("synchronous_commit", "local")];
    let server = server(&settings).await;
    let site = Site::new(&server.url("postgres"), "auto").await;
    site.install().await;
    let ours = application_name(&site.pipeline);
    assert_eq!(stream_state(&site.session, &ours).await.unwrap(), None);
    assert_eq!(site.status().await["mode_reason"], "no relay leads");
    let mut running = stream(&site.url, &site.pipeline).await;

    let facts = look(&site.session, "statecast", &ours).await.unwrap();
    assert_eq!(facts.obstacles(&ours), []);
    let found = facts.findings(&ours);
    assert!(found.contains(&Ok("0 of 1 walsenders are in use".to_owned())), "{found:?}");
    site.check_says(0, &["ok      streaming: this pipeline has a stream now", STREAMS]).await;
    let other = look(&site.session, "statecast", "statecast other stream").await.unwrap();
    let obstacles = other.obstacles("statecast other stream");
    assert!(matches!(obstacles[..], [Obstacle::NoSlot(_), Obstacle::NoSender(_)]), "{obstacles:?}");

    // The walsender says "streaming" once it has caught up, which takes a moment.
    let caught_up = async {
        loop {
            let _ = tokio::time::timeout(Duration::from_millis(50), running.next()).await;
            let state = stream_state(&site.session, &ours).await.unwrap().unwrap();
            if state.state.as_deref() == Some("streaming") {
                return state;
            }
        }
    };
    let state = tokio::time::timeout(LIMIT, caught_up).await.unwrap();
    assert!(state.streams() && state.sync_priority == Some(0), "{state:?}");
    assert!(state.lag_bytes.is_some() && state.retained_bytes.is_some(), "{state:?}");
    let status = site.status().await;
    assert_eq!((&status["mode"], &status["mode_reason"]), (&"wal".into(), &"streaming".into()));
    assert_eq!((&status["wal"]["streaming"], &status["wal"]["state"]), (&true.into(), &"streaming".into()));
    assert!(status["wal"]["retained_bytes"].as_i64().unwrap() > 0, "{status}");
    assert!(site.statecast.arguments(&["status"]).succeed().await.contains("\nstream     streaming, "));
    // Another login sees that there is one, and how far it is.
    let plain = pg::open(&pg::login(&site.url, "plain", "", "").await).await;
    let hidden = stream_state(&plain, &ours).await.unwrap().unwrap();
    assert_eq!((hidden.state.as_deref(), hidden.sync_priority), (None, None));
    assert!(hidden.streams() && hidden.lag_bytes.is_some() && hidden.retained_bytes.is_some(), "{hidden:?}");
    assert_eq!(look(&plain, "statecast", &ours).await.unwrap().slots, facts.slots);
    drop(running);
    while stream_state(&site.session, &ours).await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // A slot that somebody forgot, and a setting that would make commits wait: all of it at once.
    let forgotten = "SELECT pg_create_physical_replication_slot('forgotten');
                     ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'; SELECT pg_reload_conf()";
    for sql in forgotten.split(';') {
        site.session.batch_execute(sql).await.unwrap();
    }
    let asked = "SELECT (current_setting('synchronous_standby_names') <> '')::int::bigint";
    while pg::number(&site.session, asked).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let why = "note    source: `run` polls (source.mode = \"auto\"), because of synchronous_standby_names, replication slots";
    let found = [
        "note    streaming: synchronous_standby_names (\"ANY 1 (*)\") makes the stream a synchronous standby",
        "note    streaming: 1 of 1 replication slots are in use: drop what nobody needs",
        why,
    ];
    site.check_says(0, &found).await;
}
