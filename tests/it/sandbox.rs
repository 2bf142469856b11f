//! The sandbox itself: what it starts, it ends.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions, ServerTls};
use tokio::net::TcpStream;

use crate::consumer::{Consumer, Delivery};
use crate::servers::{self, Topology, connect};

/// Asks [`owner`] to start servers and wait to be killed.
const OWNER: &str = "STATECAST_TEST_SANDBOX_OWNER";
const GONE_LIMIT: Duration = Duration::from_secs(20);

/// Live processes that work in `dir`, name it or were given it.
fn users_of(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let contains =
        |path: PathBuf| fs::read(path).is_ok_and(|b| String::from_utf8_lossy(&b).contains(&needle));
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| {
            let proc = entry.ok()?.path();
            proc.file_name()?.to_str()?.parse::<u32>().ok()?;
            let stat = fs::read_to_string(proc.join("stat")).ok()?;
            let inside = fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
            let uses = inside || contains(proc.join("cmdline")) || contains(proc.join("environ"));
            (uses && !stat.contains(") Z ")).then_some(stat)
        })
        .collect()
}

#[track_caller]
fn assert_gone(dir: &Path) {
    let deadline = Instant::now() + GONE_LIMIT;
    loop {
        let users = users_of(dir);
        if users.is_empty() && !dir.exists() {
            return;
        }
        assert!(Instant::now() < deadline, "{} exists: {}; users: {users:#?}", dir.display(), dir.exists());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn postgres_keeps_committed_data_over_every_kind_of_stop() {
    let settings = vec![("statement_timeout".to_owned(), "59s".to_owned())];
    let mut server = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
    let url = server.create_database("o'\"dd").await.unwrap().replace("o'\"dd", "o%27%22dd");
    let client = connect(&url).await.unwrap();
    client.batch_execute("CREATE TABLE t (n int)").await.unwrap();
    for (name, expected) in [("statement_timeout", "59s"), ("wal_level", "logical"), ("fsync", "off")] {
        let row = client.query_one("SELECT current_setting($1)", &[&name]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), expected);
    }
    for n in 0..4_i32 {
        let client = connect(&url).await.unwrap();
        client.execute("INSERT INTO t VALUES ($1)", &[&n]).await.unwrap();
        match n {
            0 => server.kill9(),
            1 => server.stop_immediate().await.unwrap(),
            2 => server.stop_fast().await.unwrap(),
            _ => server.restart().await.unwrap(),
        }
        if n < 3 {
            assert!(connect(&url).await.is_err());
            server.start_again().await.unwrap();
        }
        let row = connect(&url).await.unwrap().query_one("SELECT count(*) FROM t", &[]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), i64::from(n) + 1);
    }
    assert!(server.read_log().contains("database system was not properly shut down"));
    let dir = server.directory().to_owned();
    assert!(!users_of(&dir).is_empty());
    drop(server);
    assert_gone(&dir);
}

#[tokio::test]
async fn a_killed_postgres_takes_busy_backends_with_it() {
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let busy = connect(&server.url("postgres")).await.unwrap();
    // Never waits, so it would not notice a dead postmaster by itself for a long time.
    let query =
        tokio::spawn(async move { busy.batch_execute("SELECT count(*) FROM generate_series(1, 9e9)").await });
    let watch = connect(&server.url("postgres")).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%9e9%' AND pid <> pg_backend_pid()";
    while watch.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
    server.kill9();
    assert!(query.await.unwrap().is_err());
    assert_eq!(users_of(server.directory()).len(), 0);
    server.start_again().await.unwrap();
}

#[tokio::test]
async fn a_paused_postgres_answers_after_resume() {
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let client = connect(&server.url("postgres")).await.unwrap();
    client.simple_query("SELECT 1").await.unwrap();
    server.pause();
    let asked = client.simple_query("SELECT 2");
    let mut asked = std::pin::pin!(asked);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut asked).await.is_err());
    server.resume();
    tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap().unwrap();
    server.pause();
    let dir = server.directory().to_owned();
    drop(server);
    assert_gone(&dir);
}

/// The timeline that a primary writes.
async fn timeline(client: &tokio_postgres::Client) -> String {
    let sql = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_standby_follows_its_primary_and_takes_over() {
    let options = PostgresOptions { password: Some("s3cret".to_owned()), ..Default::default() };
    let mut primary = Postgres::start(options).await.unwrap();
    let old = connect(&primary.url("postgres")).await.unwrap();
    old.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await.unwrap();
    let standby = primary.standby("sb it's").await.unwrap();
    old.batch_execute("INSERT INTO t VALUES (2)").await.unwrap();
    let new = connect(&standby.url("postgres")).await.unwrap();
    let count = "SELECT count(*) FROM t";
    while new.query_one(count, &[]).await.unwrap().get::<_, i64>(0) < 2 {}
    let refused = new.batch_execute("INSERT INTO t VALUES (3)").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "25006", "a standby takes no writes");
    assert!(primary.promote().await.is_err(), "a primary cannot be promoted");
    primary.kill9();
    standby.promote().await.unwrap();
    new.batch_execute("INSERT INTO t VALUES (3)").await.unwrap();
    assert_eq!(timeline(&new).await, "00000002");
    // The old one comes back where it was, and they know nothing of each other.
    primary.start_again().await.unwrap();
    let old = connect(&primary.url("postgres")).await.unwrap();
    assert_eq!(timeline(&old).await, "00000001");
    assert_eq!(old.query_one(count, &[]).await.unwrap().get::<_, i64>(0), 2);
    let dirs = [primary.directory().to_owned(), standby.directory().to_owned()];
    drop((primary, standby));
    dirs.iter().for_each(|dir| assert_gone(dir));
}

#[tokio::test]
async fn a_commit_waits_for_a_paused_synchronous_standby() {
    let primary = Postgres::start(PostgresOptions::default()).await.unwrap();
    let mut standby = primary.standby("sb").await.unwrap();
    let client = connect(&primary.url("postgres")).await.unwrap();
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'sb'").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let sql =
        "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND application_name = 'sb'";
    while client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
    // The checkpointer turns waiting on, when it reads the settings; it does that before it works.
    client.batch_execute("CHECKPOINT; CREATE TABLE t (n int)").await.unwrap();
    standby.pause();
    let mut commit = std::pin::pin!(client.batch_execute("INSERT INTO t VALUES (1)"));
    assert!(tokio::time::timeout(Duration::from_millis(500), &mut commit).await.is_err());
    standby.resume();
    tokio::time::timeout(Duration::from_secs(10), commit).await.unwrap().unwrap();
}

#[tokio::test]
async fn postgres_asks_for_the_password_it_was_given() {
    let options = PostgresOptions { password: Some("s3cret".to_owned()), fsync: true, ..Default::default() };
    let server = Postgres::start(options).await.unwrap();
    connect(&server.url("postgres")).await.unwrap();
    let wrong = server.url("postgres").replace("s3cret", "wrong");
    assert!(connect(&wrong).await.is_err());
}

#[tokio::test]
async fn rabbitmq_keeps_messages_over_kill_and_stop_and_answers_after_pause() {
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let topology = Topology::new(broker.url());
    topology.declare().await;
    let consumer = Consumer::start(&topology.url, &topology.queue);
    for round in 0..3 {
        publish(&topology, round).await;
        let body = round.to_string().into_bytes();
        let arrived = |seen: &[Delivery]| seen.iter().any(|delivery| delivery.body == body);
        assert!(consumer.wait_for(Duration::from_secs(30), arrived).await, "round {round}");
        match round {
            0 => broker.kill9(),
            1 => broker.stop().await.unwrap(),
            _ => break,
        }
        assert!(TcpStream::connect(("127.0.0.1", broker.port())).await.is_err());
        broker.start_again().await.unwrap();
    }
    // A delivery whose acknowledgement died with the broker comes again.
    let fresh = consumer.deliveries().into_iter().filter(|delivery| !delivery.redelivered);
    let bodies: Vec<Vec<u8>> = fresh.map(|delivery| delivery.body).collect();
    assert_eq!(bodies, [b"0", b"1", b"2"]);
    assert!(broker.ctl(&["list_queues", "name", "type"]).await.unwrap().contains(&topology.queue));
    assert!(broker.ctl(&["no_such_command"]).await.is_err());

    broker.pause();
    let publish = publish(&topology, 3);
    let mut publish = std::pin::pin!(publish);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut publish).await.is_err());
    broker.resume();
    tokio::time::timeout(Duration::from_secs(20), publish).await.unwrap();

    let dir = broker.directory().to_owned();
    drop(broker);
    assert_gone(&dir);
}

async fn publish(topology: &Topology, n: usize) {
    let (_connection, channel) = topology.channel().await;
    channel.confirm_select(Default::default()).await.unwrap();
    let properties = lapin::BasicProperties::default().with_delivery_mode(2);
    let body = n.to_string();
    let (exchange, key) = (topology.exchange.as_str().into(), "k".into());
    let confirm = channel.basic_publish(exchange, key, Default::default(), body.as_bytes(), properties);
    assert!(confirm.await.unwrap().await.unwrap().is_ack());
}

#[tokio::test]
async fn both_servers_insist_on_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let tls = certificates(dir.path());
    let broker = Rabbitmq::start(RabbitmqOptions { tls: Some(tls.clone()), ..Default::default() });
    let options = PostgresOptions { tls: Some(tls), ..Default::default() };
    let (broker, server) = tokio::join!(broker, Postgres::start(options));
    let (broker, server) = (broker.unwrap(), server.unwrap());
    assert!(broker.amqps_url().unwrap().ends_with(&format!("@localhost:{}/%2f", broker.tls_port().unwrap())));
    for (with_certificate, ok) in [(true, true), (false, false)] {
        let client = client_tls(dir.path(), with_certificate);
        let port = broker.tls_port().unwrap();
        let greeting = tokio::task::spawn_blocking({
            let client = client.clone();
            move || amqp_greeting(client, port)
        });
        assert_eq!(greeting.await.unwrap().is_ok(), ok, "RabbitMQ, with a certificate: {with_certificate}");
        let connector = tokio_postgres_rustls::MakeRustlsConnect::new(client);
        let answer = tokio_postgres::connect(&server.url("postgres"), connector).await;
        assert_eq!(answer.is_ok(), ok, "PostgreSQL, with a certificate: {with_certificate}");
    }
    let plain = server.url("postgres").replace("?sslmode=require", "");
    let refused = format!("{:?}", connect(&plain).await.unwrap_err());
    assert!(refused.contains("no pg_hba.conf entry") && refused.contains("no encryption"), "{refused}");
}

/// A client that trusts the CA in `dir` and, if asked to, shows the certificate of the user `statecast`.
fn client_tls(dir: &Path, with_certificate: bool) -> rustls::ClientConfig {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
    if !with_certificate {
        return builder.with_no_client_auth();
    }
    let cert = CertificateDer::from_pem_file(dir.join("client.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("client.key")).unwrap();
    builder.with_client_auth_cert(vec![cert], key).unwrap()
}

/// The first frame that a broker sends over TLS.
fn amqp_greeting(client: rustls::ClientConfig, port: u16) -> std::io::Result<[u8; 8]> {
    let name = "localhost".try_into().unwrap();
    let session = rustls::ClientConnection::new(std::sync::Arc::new(client), name).unwrap();
    let socket = std::net::TcpStream::connect(("127.0.0.1", port))?;
    let mut stream = rustls::StreamOwned::new(session, socket);
    stream.write_all(b"AMQP\x00\x00\x09\x01")?;
    let mut frame = [0; 8];
    stream.read_exact(&mut frame)?;
    Ok(frame)
}

/// A CA and certificates of it: for the server `localhost` and for the user `statecast`.
fn certificates(dir: &Path) -> ServerTls {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let write = |name: &str, pem: String| {
        fs::write(dir.join(name), pem).unwrap();
        dir.join(name)
    };
    let issue = |file: &str, params: rcgen::CertificateParams| {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        (write(&format!("{file}.pem"), cert.pem()), write(&format!("{file}.key"), key.serialize_pem()))
    };
    let mut client = rcgen::CertificateParams::new(Vec::new()).unwrap();
    client.distinguished_name.push(rcgen::DnType::CommonName, "statecast");
    issue("client", client);
    let (cert, key) = issue("server", rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap());
    ServerTls { cert, key, ca: write("ca.pem", ca_cert.pem()), client_cert_required: true }
}

#[tokio::test]
async fn shared_servers_give_every_test_a_database_of_its_own() {
    let (one, other) = (servers::fresh_database().await, servers::fresh_database().await);
    assert_ne!(one, other);
    connect(&one).await.unwrap().batch_execute("CREATE SCHEMA statecast").await.unwrap();
    connect(&other).await.unwrap().batch_execute("CREATE SCHEMA statecast").await.unwrap();
    assert!(servers::rabbitmq().await.url().starts_with("amqp://"));
}

#[test]
fn nothing_is_left_when_the_owner_is_killed_or_exits_without_dropping() {
    for kill in [true, false] {
        let mut owner = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "sandbox::owner", "--ignored", "--nocapture"])
            .env(OWNER, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
        let dirs: Vec<PathBuf> = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(|line| Some(PathBuf::from(line.split_once("directory ")?.1)))
            .take(2)
            .collect();
        assert_eq!(dirs.len(), 2);
        assert!(dirs.iter().all(|dir| dir.exists() && !users_of(dir).is_empty()));
        if kill {
            owner.kill().unwrap();
        }
        // Otherwise the end of its standard input tells it to return.
        drop(owner.stdin.take());
        owner.wait().unwrap();
        for dir in dirs {
            assert_gone(&dir);
        }
    }
}

/// Not a test: the process that the test above kills.
#[tokio::test]
#[ignore = "run by another test"]
async fn owner() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    println!("\ndirectory {}", server.directory().display());
    println!("directory {}", broker.directory().display());
    std::io::stdin().lines().for_each(drop);
    // As a static of the test binary: never dropped.
    std::mem::forget((server, broker));
}

#[tokio::test]
async fn rabbitmq_evaluates_erlang() {
    let broker = servers::rabbitmq().await;
    assert_eq!(broker.eval("length([1, 2]) + 1.").await.unwrap(), "3");
    let alarms = "rabbit_alarm:get_alarms().";
    assert_eq!(broker.eval(alarms).await.unwrap(), "[]");
    assert!(broker.eval("no_such_module:f().").await.is_err());
    assert!(broker.ctl(&["status"]).await.unwrap().contains(broker.node()));
}
