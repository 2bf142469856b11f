//! TLS to both servers with a private CA and client certificates, and what is said when it does not fit.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions, ServerTls};

use crate::consumer::Consumer;
use crate::process::Invocation;
use crate::servers::{self, Topology, unique};

const LIMIT: Duration = Duration::from_secs(60);

/// A CA in a directory of its own.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, unique("authority"));
        fs::write(dir.path().join("ca.pem"), ca.self_signed(&key).unwrap().pem()).unwrap();
        Authority { dir, issuer: rcgen::Issuer::new(ca, key) }
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Certificate and key files.
    pub(crate) fn issue(&self, common_name: &str, hosts: &[&str]) -> (PathBuf, PathBuf) {
        self.issue_for(common_name, hosts, 3650)
    }

    /// The same, valid for so many days and a half.
    pub(crate) fn issue_for(&self, common_name: &str, hosts: &[&str], days: i64) -> (PathBuf, PathBuf) {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(hosts).unwrap();
        params.not_after = time::OffsetDateTime::now_utc() + time::Duration::hours(days * 24 + 12);
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let file = |end: &str| self.dir.path().join(format!("{common_name}.{end}"));
        fs::write(file("pem"), cert.pem()).unwrap();
        fs::write(file("key"), key.serialize_pem()).unwrap();
        (file("pem"), file("key"))
    }
}

/// Servers that insist on a client certificate of `authority`, and `statecast` set up for them.
struct Site {
    authority: Authority,
    postgres: Postgres,
    broker: Rabbitmq,
    topology: Topology,
    statecast: Invocation,
}

impl Site {
    async fn new() -> Site {
        let authority = Authority::new();
        let (cert, key) = authority.issue("localhost", &["localhost"]);
        let tls = ServerTls { cert, key, ca: authority.ca(), client_cert_required: true };
        let broker = Rabbitmq::start(RabbitmqOptions { tls: Some(tls.clone()), ..Default::default() });
        let postgres = Postgres::start(PostgresOptions { tls: Some(tls), ..Default::default() });
        let (broker, postgres) = tokio::join!(broker, postgres);
        let (broker, postgres) = (broker.unwrap(), postgres.unwrap());
        let url = postgres.create_database("shop").await.unwrap();
        // Declared over the plain listener; the relay has the other one.
        let topology = Topology::new(broker.url());
        topology.declare().await;
        let (cert, key) = authority.issue("statecast", &[]);
        let statecast = Invocation::run(&url, &topology, &unique("tls"))
            .with("STATECAST_RABBITMQ__URLS", &broker.amqps_url().unwrap());
        let statecast = with_files(statecast, &authority.ca(), Some((&cert, &key)));
        Site { authority, postgres, broker, topology, statecast }
    }

    /// What `check` finds wrong: exactly one line.
    async fn finding(statecast: &Invocation) -> String {
        let (code, stdout, stderr) = statecast.arguments(&["check"]).output(LIMIT).await;
        let found: Vec<&str> = stdout.lines().filter(|line| line.starts_with("failed")).collect();
        assert_eq!((code, found.len()), (Some(1), 1), "{stdout}{stderr}");
        assert!(!(stdout.contains("panicked") || stderr.contains("panicked")), "{stdout}{stderr}");
        println!("{}", found[0]);
        found[0].to_owned()
    }
}

fn with_files(statecast: Invocation, ca: &Path, identity: Option<(&Path, &Path)>) -> Invocation {
    ["POSTGRES", "RABBITMQ"]
        .iter()
        .fold(statecast, |statecast, server| tls_files(statecast, server, ca, identity))
}

/// The TLS files for one server.
fn tls_files(statecast: Invocation, server: &str, ca: &Path, identity: Option<(&Path, &Path)>) -> Invocation {
    let name = |key: &str| format!("STATECAST_{server}__TLS__{key}");
    let statecast = statecast.with(&name("CA_FILE"), ca.to_str().unwrap());
    match identity {
        Some((cert, key)) => statecast
            .with(&name("CERT_FILE"), cert.to_str().unwrap())
            .with(&name("KEY_FILE"), key.to_str().unwrap()),
        None => statecast.without(&name("CERT_FILE")).without(&name("KEY_FILE")),
    }
}

fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} is missing in: {line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_arrive_over_tls_and_every_mismatch_is_one_line() {
    let site = Site::new().await;
    site.statecast.arguments(&["install"]).succeed().await;
    site.statecast.arguments(&["check"]).succeed().await;
    let mut relay = site.statecast.start();
    relay.wait_ready(LIMIT).await.unwrap();
    let consumer = Consumer::start(&site.topology.url, &site.topology.queue);
    let id = site.statecast.arguments(&["publish", "order", "1", "placed", "{}"]).succeed().await;
    let id = id.trim().parse().unwrap();
    assert_eq!(consumer.wait_for_ids(LIMIT, [id]).await, 0, "{}", relay.log());
    relay.sigterm();
    assert!(relay.wait(LIMIT).await.unwrap().success(), "{}", relay.log());

    postgres_mismatches(&site).await;
    broker_mismatches(&site).await;
    unusable_files(&site).await;
}

async fn postgres_mismatches(site: &Site) {
    let port = site.postgres.port();
    let at = format!("localhost:{port}");
    let own = site.authority.ca();
    let stranger = Authority::new();
    let with = |ca: &Path, identity: Option<(PathBuf, PathBuf)>| {
        let identity = identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        tls_files(site.statecast.clone(), "POSTGRES", ca, identity)
    };
    let own_identity = || Some(site.authority.issue("statecast", &[]));

    let line = Site::finding(&with(&stranger.ca(), own_identity())).await;
    assert_says(&line, &["postgres", &at, "UnknownIssuer", "postgres.tls.ca_file"]);
    // The server's certificate may be replaced while we wait.
    let mut relay = with(&stranger.ca(), own_identity()).start();
    assert!(relay.wait_for_log("session ended: no TLS with PostgreSQL", LIMIT).await, "{}", relay.log());
    assert!(relay.running(), "{}", relay.log());
    drop(relay);
    let line = Site::finding(&with(&own, None)).await;
    assert_says(&line, &["postgres", &at, "certificate", "postgres.tls.cert_file"]);
    let line = Site::finding(&with(&own, Some(stranger.issue("statecast", &[])))).await;
    assert_says(&line, &["postgres", &at, "certificate", "postgres.tls.cert_file"]);
    let line = Site::finding(&with(&own, Some(site.authority.issue("somebody", &[])))).await;
    assert_says(&line, &["postgres", &at, "refuses this login", "client certificate"]);
    let url = site.postgres.url("shop");
    let by_address =
        site.statecast.clone().with("STATECAST_POSTGRES__URL", &url.replace("localhost", "127.0.0.1"));
    let line = Site::finding(&by_address).await;
    assert_says(&line, &["postgres", &format!("127.0.0.1:{port}"), "not valid for name", "host name"]);
    let plain = site.statecast.clone().with("STATECAST_POSTGRES__URL", &url.replace("?sslmode=require", ""));
    let line = Site::finding(&plain).await;
    assert_says(&line, &["postgres", &at, "without TLS", "postgres.tls.mode = \"verify\""]);
    let shared = servers::postgres().await;
    let url = format!("{}?sslmode=require", shared.url("postgres"));
    let line = Site::finding(&site.statecast.clone().with("STATECAST_POSTGRES__URL", &url)).await;
    assert_says(&line, &["postgres", &shared.port().to_string(), "does not offer TLS", "postgres.tls.mode"]);
}

async fn broker_mismatches(site: &Site) {
    let (tls_port, plain_port) = (site.broker.tls_port().unwrap(), site.broker.port());
    let at = format!("localhost:{tls_port}");
    let own = site.authority.ca();
    let stranger = Authority::new();
    let with = |ca: &Path, identity: Option<(PathBuf, PathBuf)>| {
        let identity = identity.as_ref().map(|(cert, key)| (cert.as_path(), key.as_path()));
        tls_files(site.statecast.clone(), "RABBITMQ", ca, identity)
    };
    let to = |url: &str| site.statecast.clone().with("STATECAST_RABBITMQ__URLS", url);

    let line = Site::finding(&with(&stranger.ca(), Some(site.authority.issue("statecast", &[])))).await;
    assert_says(&line, &["rabbitmq", &at, "UnknownIssuer", "rabbitmq.tls", "ca_file"]);
    let line = Site::finding(&with(&own, None)).await;
    assert_says(&line, &["rabbitmq", &at, "certificate", "rabbitmq.tls", "cert_file"]);
    let line = Site::finding(&with(&own, Some(stranger.issue("statecast", &[])))).await;
    assert_says(&line, &["rabbitmq", &at, "certificate", "rabbitmq.tls", "cert_file"]);
    let line = Site::finding(&to(&format!("amqps://guest:guest@127.0.0.1:{tls_port}/%2f"))).await;
    assert_says(
        &line,
        &["rabbitmq", &format!("127.0.0.1:{tls_port}"), "not valid for name", "by a host name"],
    );
    let line = Site::finding(&to(&format!("amqps://guest:guest@localhost:{plain_port}/%2f"))).await;
    assert_says(&line, &["rabbitmq", &format!("localhost:{plain_port}"), "TLS", "amqps://"]);
    let line = Site::finding(&to(&format!("amqp://guest:guest@localhost:{tls_port}/%2f"))).await;
    assert_says(&line, &["rabbitmq", &at, "TLS", "amqps://"]);
}

/// Files that cannot be used: nothing is retried, the process says which and ends.
async fn unusable_files(site: &Site) {
    let empty = site.authority.dir.path().join("empty.pem");
    fs::write(&empty, "nothing\n").unwrap();
    for (server, key) in [("POSTGRES", "postgres.tls"), ("RABBITMQ", "rabbitmq.tls")] {
        let missing = Path::new("/nonexistent/ca.pem");
        for (file, expected) in [(missing, 78), (empty.as_path(), 1)] {
            let broken = tls_files(site.statecast.clone(), server, file, None);
            let (code, stdout, stderr) = broken.output(LIMIT).await;
            assert_eq!(code, Some(expected), "{stdout}{stderr}");
            let last = stderr.trim_end().lines().last().unwrap();
            println!("{last}");
            assert_says(last, &[file.to_str().unwrap(), key]);
        }
    }
}
