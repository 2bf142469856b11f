//! `statecast doctor`, as the real binary runs it: what the tests of its findings share, and what it says of an installation
//! that is as it should be.

use std::time::{Duration, Instant};

use lapin::types::AMQPValue;
use serde_json::Value;
use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions, ServerTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, RwLock};
use tokio_postgres::Client;

use crate::consumer::Consumer;
use crate::process::Invocation;
use crate::servers::{self, Topology, connect, unique};
use crate::tls::Authority;

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// A broker's figures are up to five seconds old.
const FIGURES_LIMIT: Duration = Duration::from_secs(30);

/// One line of the report.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) code: String,
    pub(crate) severity: String,
    pub(crate) place: String,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Found {
    pub(crate) fn holds(&self, words: &[&str]) -> bool {
        let text = format!("{} {} {}", self.place, self.what, self.remedy);
        words.iter().all(|word| text.contains(word))
    }
}

/// What `doctor --json` said.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) exit: i32,
    pub(crate) findings: Vec<Found>,
}

impl Report {
    /// Runs it with further arguments.
    pub(crate) async fn of(statecast: &Invocation, arguments: &[&str]) -> Report {
        let arguments = [&["doctor", "--json"], arguments].concat();
        let (code, stdout, stderr) = statecast.arguments(&arguments).output(LIMIT).await;
        assert!(!stderr.contains("panicked"), "{stderr}");
        let document: Value = serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}"));
        assert_eq!(document["schema"], 1);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let found = |value: &Value| Found {
            code: text(&value["code"]),
            severity: text(&value["severity"]),
            place: text(&value["where"]),
            what: text(&value["what"]),
            remedy: text(&value["remedy"]),
        };
        let findings = document["findings"].as_array().unwrap().iter().map(found).collect();
        Report { exit: code.unwrap(), findings }
    }

    /// Every finding with this code.
    pub(crate) fn with<'a>(&'a self, code: &'a str) -> impl Iterator<Item = &'a Found> {
        self.findings.iter().filter(move |found| found.code == code)
    }

    /// One with code and severity, and these words in it.
    #[track_caller]
    pub(crate) fn must_say(&self, code: &str, severity: &str, words: &[&str]) {
        let found = self.with(code).any(|found| found.severity == severity && found.holds(words));
        assert!(found, "{code} {severity} {words:?} is not among {:#?}", self.with(code).collect::<Vec<_>>());
    }

    /// Nothing with this code but "ok".
    #[track_caller]
    pub(crate) fn must_be_ok(&self, code: &str) {
        let found: Vec<_> = self.with(code).collect();
        assert!(!found.is_empty() && found.iter().all(|found| found.severity == "ok"), "{code}: {found:#?}");
    }

    pub(crate) fn worse_than_info(&self) -> Vec<&Found> {
        self.findings
            .iter()
            .filter(|found| found.severity == "error" || found.severity == "warning")
            .collect()
    }
}

/// The broker with a management API and TLS that these tests share, with the authority of its certificate, which ends in 20
/// days.
pub(crate) struct Shared {
    pub(crate) authority: Authority,
    pub(crate) tls: ServerTls,
    pub(crate) broker: Rabbitmq,
    /// Held for writing by who makes an alarm, and for reading by who could not bear one.
    pub(crate) calm: RwLock<()>,
}

pub(crate) async fn shared() -> &'static Shared {
    static SHARED: OnceCell<Shared> = OnceCell::const_new();
    let start = async || {
        let authority = Authority::new();
        let (cert, key) = authority.issue_for("localhost", &["localhost"], 20);
        let tls = ServerTls { cert, key, ca: authority.ca(), client_cert_required: false };
        let options = RabbitmqOptions { management: true, tls: Some(tls.clone()), ..Default::default() };
        let broker = Rabbitmq::start(options).await.unwrap();
        Shared { authority, tls, broker, calm: RwLock::new(()) }
    };
    SHARED.get_or_init(start).await
}

pub(crate) async fn broker() -> &'static Rabbitmq {
    &shared().await.broker
}

/// `PUT /api/<path>` on the management API, as soon as it answers.
pub(crate) async fn put(broker: &Rabbitmq, path: &str, body: &str) {
    let url = broker.management_url().unwrap();
    let at = url.strip_prefix("http://guest:guest@").unwrap();
    // guest:guest
    let request = format!(
        "PUT /api/{path} HTTP/1.1\r\nHost: {at}\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let deadline = Instant::now() + FIGURES_LIMIT;
    let answer = loop {
        let exchange = async {
            let mut stream = TcpStream::connect(at).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        match tokio::time::timeout(LIMIT, exchange).await.unwrap() {
            Ok(answer) => break answer,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(answer.starts_with("HTTP/1.1 2"), "{path}: {answer}");
}

/// A policy of the virtual host `/`.
pub(crate) async fn policy(broker: &Rabbitmq, name: &str, kind: &str, definition: &str) {
    let body = format!(r#"{{"pattern":"^{name}$","apply-to":"{kind}","definition":{definition}}}"#);
    put(broker, &format!("policies/%2F/{name}"), &body).await;
}

/// An installed database, an exchange with a queue, and `statecast` aimed at both. `S`: what keeps the database's server.
pub(crate) struct Site<S = Postgres> {
    pub(crate) client: Client,
    pub(crate) url: String,
    pub(crate) topology: Topology,
    pub(crate) pipeline: String,
    pub(crate) statecast: Invocation,
    pub(crate) server: S,
}

impl Site {
    /// On a server of its own. `management`: with the broker of [`broker`], else with that of the other tests, which has none.
    pub(crate) async fn new(settings: &[(&str, &str)], management: bool) -> Site {
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let server = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
        let url = server.create_database("shop").await.unwrap();
        Site::of(server, url, management).await
    }
}

impl Site<()> {
    /// On the server of the other tests, which has slots and transactions of theirs.
    pub(crate) async fn shared(management: bool) -> Site<()> {
        Site::of((), servers::fresh_database().await, management).await
    }
}

impl<S> Site<S> {
    async fn of(server: S, url: String, management: bool) -> Site<S> {
        let broker = if management { broker().await } else { servers::rabbitmq().await };
        let topology = Topology::new(broker.url());
        topology.declare_exchange().await;
        topology.declare_queue("#", &[("x-queue-type", AMQPValue::LongString("quorum".into()))]).await;
        let pipeline = unique("doctor");
        let mut statecast =
            Invocation::run(&url, &topology, &pipeline).with("STATECAST_SOURCE__MODE", "auto");
        if let Some(management) = broker.management_url().filter(|_| management) {
            statecast = statecast.with("STATECAST_RABBITMQ__MANAGEMENT_URL", &management);
        }
        statecast.arguments(&["install"]).succeed().await;
        Site { client: connect(&url).await.unwrap(), url, topology, pipeline, statecast, server }
    }

    pub(crate) async fn report(&self) -> Report {
        Report::of(&self.statecast, &[]).await
    }

    pub(crate) async fn sql(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    pub(crate) async fn publish(&self, event_type: &str) {
        self.sql(&format!("SELECT statecast.publish('order', '1', '{event_type}', '{{}}')")).await;
    }
}

/// Reports until one has code, severity and words, because the broker's figures come late.
pub(crate) async fn wait_to_say(
    statecast: &Invocation,
    code: &str,
    severity: &str,
    words: &[&str],
) -> Report {
    let deadline = Instant::now() + FIGURES_LIMIT;
    loop {
        let report = Report::of(statecast, &[]).await;
        let said = report.with(code).any(|found| found.severity == severity && found.holds(words));
        if said || Instant::now() > deadline {
            report.must_say(code, severity, words);
            return report;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_healthy_installation_has_nothing_worse_than_info() {
    let _calm = shared().await.calm.read().await;
    let site = Site::new(&[], true).await;
    let _consumer = Consumer::start(&site.topology.url, &site.topology.queue);
    for event_type in ["placed", "paid"] {
        site.publish(event_type).await;
    }
    let mut relay = site.statecast.start();
    relay.wait_ready(LIMIT).await.unwrap();
    assert!(relay.wait_for_metric("statecast_wal_streaming", 0.0, LIMIT).await, "{}", relay.log());
    let report = wait_to_say(&site.statecast, "queue-no-consumer", "ok", &[]).await;
    assert!(report.worse_than_info().is_empty(), "{:#?}", report.worse_than_info());
    assert_eq!(report.exit, 0);
    let unexamined: Vec<&Found> = report.findings.iter().filter(|f| f.severity == "not examined").collect();
    assert!(unexamined.is_empty(), "{unexamined:#?}");
    for code in [
        "leader-none",
        "lease-stale",
        "events-parked",
        "slot-left",
        "walsender-left",
        "slot-foreign",
        "wal-level",
        "streaming",
        "rows-forged",
        "type-unbound",
    ] {
        report.must_be_ok(code);
    }
    report.must_say("catch-all", "info", &[&site.topology.queue]);

    // A running stream is no slot that holds vacuum back, however few transactions are allowed.
    for _ in 0..20 {
        site.sql("SELECT pg_current_xact_id()").await;
    }
    let young = Report::of(&site.statecast, &["--horizon-age", "1"]).await;
    let holders: Vec<&Found> = young.with("vacuum-horizon").collect();
    assert!(holders.iter().all(|found| !found.holds(&["catalog of slot"])), "{holders:#?}");

    // For people the same, and with the relay's own login: not a superuser, but a member of statecast_relay.
    site.sql("CREATE ROLE relay LOGIN REPLICATION; GRANT statecast_relay TO relay; GRANT pg_read_all_stats TO relay").await;
    let login =
        site.statecast.clone().with("STATECAST_POSTGRES__URL", &crate::pg::with_user(&site.url, "relay"));
    let (code, stdout, stderr) = login.arguments(&["doctor", "--strict"]).output(LIMIT).await;
    println!("{stdout}{stderr}");
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    assert!(stdout.trim_end().lines().last().unwrap().starts_with("0 errors, 0 warnings, "), "{stdout}");
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_asked_is_not_examined() {
    let topology = Topology::new("amqp://guest:guest@127.0.0.1:1/%2f");
    let statecast = Invocation::run("postgres://nobody@127.0.0.1:1/none", &topology, "none");
    let report = Report::of(&statecast, &[]).await;
    assert_eq!(report.exit, 1);
    report.must_say("postgres-unreachable", "error", &["127.0.0.1:1"]);
    report.must_say("rabbitmq-unreachable", "error", &["127.0.0.1:1"]);
    report.must_say("slot-left", "not examined", &["no connection"]);
    report.must_say("exchange-missing", "not examined", &["no connection"]);
    report.must_say("type-unbound", "not examined", &["rabbitmq.management_url is not set"]);
    let (code, stdout, stderr) = statecast.arguments(&["doctor"]).output(LIMIT).await;
    assert!(code == Some(1) && stderr.trim_end().ends_with("statecast: 2 errors"), "{stdout}{stderr}");
    assert!(stdout.contains("not examined (no connection): "), "{stdout}");
}
