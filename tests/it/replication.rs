//! The replication client on real servers: logins, refusals, and streams that end in every way.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use statecast::config::{Postgres as Settings, SecretString, Tls, TlsMode};
use statecast::sandbox::{Postgres, PostgresOptions, ServerTls};
use statecast::source::replication::{Client, Feedback, Frame, ReplicationError, Stream, connect};
use tokio::time::{sleep, timeout};
use tokio_postgres::types::PgLsn;

use crate::pg::{self, Session, with_user};
use crate::servers::{self, unique};
use crate::tls::Authority;

const LIMIT: Duration = Duration::from_secs(30);

async fn open(url: &str) -> Result<Client, ReplicationError> {
    connect(&pg::config(url), "statecast/test/replication").await
}

fn slot_name() -> String {
    unique("slot").replace('-', "_")
}

fn start() -> PgLsn {
    PgLsn::from(0)
}

/// What the server refused with.
fn code(error: &ReplicationError) -> &str {
    error.code().unwrap_or_else(|| panic!("{error:?}")).code()
}

/// A database of the shared server with a published table.
async fn published(publication: &str) -> (String, Session) {
    let url = servers::fresh_database().await;
    let client = publish(&url, publication).await;
    (url, client)
}

async fn publish(url: &str, publication: &str) -> Session {
    let client = pg::open(url).await;
    let name = publication.replace('"', "\"\"");
    let sql = format!("CREATE TABLE t (id bigint, body text); CREATE PUBLICATION \"{name}\" FOR TABLE t");
    client.batch_execute(&sql).await.unwrap();
    client
}

async fn stream(url: &str, publication: &str) -> Stream {
    let mut client = open(url).await.unwrap();
    let slot = slot_name();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    client.start_replication(&slot, start(), publication).await.unwrap()
}

/// The plugin's next message of kind `tag`; feedback is sent as the server asks for it.
async fn data(stream: &mut Stream, tag: u8) -> Bytes {
    let found = async {
        loop {
            match stream.next().await.unwrap() {
                Frame::XLogData { data, .. } if data.first() == Some(&tag) => return data,
                Frame::XLogData { .. } => {}
                Frame::Keepalive { reply_requested, .. } => {
                    if reply_requested {
                        stream.send_status(Feedback::all(start()), false).await.unwrap();
                    }
                }
                Frame::End => panic!("the stream ended"),
            }
        }
    };
    timeout(LIMIT, found).await.unwrap()
}

/// How the stream ends, whatever comes before.
async fn last(stream: &mut Stream) -> Result<Frame, ReplicationError> {
    let ended = async {
        loop {
            match stream.next().await {
                Ok(Frame::XLogData { .. } | Frame::Keepalive { .. }) => {}
                other => return other,
            }
        }
    };
    timeout(LIMIT, ended).await.unwrap()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn wait_until(client: &Session, condition: &str) {
    let begun = Instant::now();
    while !client.query_one(&format!("SELECT {condition}"), &[]).await.unwrap().get::<_, bool>(0) {
        assert!(begun.elapsed() < LIMIT, "never: {condition}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_slot_and_inserts() {
    let (url, sql) = published("p").await;
    let mut client = open(&url).await.unwrap();
    let system = client.identify_system().await.unwrap();
    let query = "SELECT system_identifier, current_database()::text FROM pg_control_system()";
    let row = sql.query_one(query, &[]).await.unwrap();
    assert_eq!((system.system_identifier, system.dbname.as_str()), (row.get(0), row.get(1)));
    assert!(system.timeline >= 1 && u64::from(system.xlogpos) > 0);
    let server: i32 =
        sql.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]).await.unwrap().get(0);
    assert_eq!(client.server_version(), u32::try_from(server).unwrap());
    let rows =
        client.simple_query("SELECT 1, NULL, 'it''s'; SELECT current_setting('TimeZone')").await.unwrap();
    let text = |value: &str| Some(value.to_owned());
    assert_eq!(rows, [vec![text("1"), None, text("it's")], vec![text("UTC")]]);
    // An error of a query leaves the connection usable.
    assert_eq!(code(&client.simple_query("SELECT 1/0").await.unwrap_err()), "22012");

    let slot = slot_name();
    let made = client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    assert!(made.consistent_point >= system.xlogpos);
    let pid = client.backend_pid();
    wait_until(&sql, &format!("EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND temporary AND active_pid = {pid})")).await;
    let mut stream = client.start_replication(&slot, start(), "p").await.unwrap();
    assert_eq!(stream.backend_pid(), pid);
    for i in 0..100_i64 {
        sql.execute("INSERT INTO t VALUES ($1, $2)", &[&i, &format!("body-{i}")]).await.unwrap();
    }
    for i in 0..100 {
        assert!(holds(&data(&mut stream, b'I').await, &format!("body-{i}")), "{i}");
    }
    let done = sql.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await.unwrap().get::<_, PgLsn>(0);
    stream.send_status(Feedback::all(done), true).await.unwrap();
    wait_until(&sql, &format!("EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}' AND confirmed_flush_lsn >= '{done}')")).await;
    stream.finish(Feedback::all(done), LIMIT).await.unwrap();
    wait_until(&sql, &format!("NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_goes_with_its_connection() {
    let (url, sql) = published("p").await;
    let exists = |slot: &str| format!("EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')");
    let mut client = open(&url).await.unwrap();
    let slot = slot_name();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    wait_until(&sql, &exists(&slot)).await;
    drop(client);
    wait_until(&sql, &format!("NOT {}", exists(&slot))).await;
    // Streaming, and in the middle of a row that is larger than every buffer.
    let mut client = open(&url).await.unwrap();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    let mut stream = client.start_replication(&slot, start(), "p").await.unwrap();
    sql.batch_execute("INSERT INTO t SELECT 1, repeat('x', 50000000)").await.unwrap();
    data(&mut stream, b'B').await;
    drop(stream);
    wait_until(&sql, &format!("NOT {}", exists(&slot))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn big_rows_pass_whole_or_are_refused() {
    const BYTES: usize = 20 << 20;
    let (url, sql) = published("p").await;
    let mut wide = stream(&url, "p").await;
    let mut client = open(&url).await.unwrap();
    client.set_message_max(1 << 20);
    let slot = slot_name();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    let mut narrow = client.start_replication(&slot, start(), "p").await.unwrap();
    let inserts = async {
        for i in 0..3 {
            let insert = format!("INSERT INTO t SELECT {i}, repeat('{i}', {BYTES})");
            sql.batch_execute(&insert).await.unwrap();
        }
    };
    let whole = async {
        for i in 0..3_u8 {
            let row = data(&mut wide, b'I').await;
            assert!(row.len() > BYTES && row.ends_with(&[b'0' + i; 1000]), "{}", row.len());
            let inside = row.iter().filter(|byte| **byte == b'0' + i).count();
            assert!(inside >= BYTES);
        }
    };
    // All at once: the server gives up a stream that answers nothing for a few seconds.
    let ((), (), refused) = tokio::join!(inserts, whole, last(&mut narrow));
    let refused = refused.unwrap_err();
    let ReplicationError::TooLarge { bytes, at, .. } = &refused else { panic!("{refused}") };
    assert!(*bytes > BYTES as u64 && at.wal.is_some(), "{refused}");
}

/// Giving up `next` again and again, as `select!` does, loses nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn next_may_be_given_up_at_any_time() {
    const ROWS: usize = 20_000;
    let (url, sql) = published("p").await;
    let mut stream = stream(&url, "p").await;
    let insert = format!("INSERT INTO t SELECT i, repeat('y', i % 700) FROM generate_series(1, {ROWS}) i");
    sql.batch_execute(&insert).await.unwrap();
    let (mut inserts, mut given_up) = (0, 0);
    let begun = Instant::now();
    while inserts < ROWS {
        assert!(begun.elapsed() < LIMIT, "{inserts}");
        tokio::select! {
            biased;
            frame = stream.next() => match frame.unwrap() {
                Frame::XLogData { data, .. } if data.first() == Some(&b'I') => inserts += 1,
                Frame::End => panic!("the stream ended"),
                _ => {}
            },
            () = tokio::task::yield_now() => {
                given_up += 1;
                stream.queue_status(Feedback::all(start()), given_up % 3 == 0);
            }
        }
    }
    println!("given up {given_up} times");
    assert!(given_up > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_walsender_says_so() {
    let (url, sql) = published("p").await;
    let mut stream = stream(&url, "p").await;
    sql.execute("SELECT pg_terminate_backend($1)", &[&stream.backend_pid()]).await.unwrap();
    assert_eq!(code(&last(&mut stream).await.unwrap_err()), "57P01");
    assert!(matches!(stream.next().await, Err(ReplicationError::Unusable)));
    // And while it creates a slot: an open transaction holds it up.
    let mut holder = pg::open(&url).await;
    let open_one = holder.client.transaction().await.unwrap();
    open_one.batch_execute("INSERT INTO t VALUES (1, '')").await.unwrap();
    let mut client = open(&url).await.unwrap();
    let pid = client.backend_pid();
    let slot = slot_name();
    let creating = client.create_temporary_slot(&slot, Duration::from_millis(300)).await;
    assert!(matches!(creating, Err(ReplicationError::Timeout { .. })), "{creating:?}");
    assert!(matches!(client.simple_query("SELECT 1").await, Err(ReplicationError::Unusable)));
    drop(client);
    sql.execute("SELECT pg_terminate_backend($1)", &[&pid]).await.unwrap();
    wait_until(&sql, &format!("NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}')"))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_publication_is_named() {
    let (url, sql) = published("p").await;
    let mut stream = stream(&url, "gone").await;
    sql.batch_execute("INSERT INTO t VALUES (1, '')").await.unwrap();
    let error = last(&mut stream).await.unwrap_err();
    assert_eq!(code(&error), "42704");
    assert!(error.to_string().contains("gone"), "{error}");
    let mut client = open(&url).await.unwrap();
    let slot = slot_name();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    let taken = open(&url).await.unwrap().start_replication(&slot, start(), "p").await.unwrap_err();
    assert_eq!(code(&taken), "55006");
    let none = open(&url).await.unwrap().start_replication("no_such_slot", start(), "p").await.unwrap_err();
    assert_eq!(code(&none), "42704");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_names_are_only_names() {
    for name in
        ["o'Reilly", "a\"b", "a, b", r"back\slash'", "') ; DROP TABLE t; --", "ünï\ncode ❄", "$1 %s {}"]
    {
        let (url, sql) = published(name).await;
        let mut stream = stream(&url, name).await;
        sql.batch_execute("INSERT INTO t VALUES (1, 'here')").await.unwrap();
        assert!(holds(&data(&mut stream, b'I').await, "here"), "{name}");
    }
    let (url, sql) = published("p").await;
    for name in ["", "a\"; DROP TABLE t; --", "a b", "ä", "A", r"\", "a'b", "nul\0", &"x".repeat(64)] {
        let mut client = open(&url).await.unwrap();
        let refused = client.create_temporary_slot(name, LIMIT).await.unwrap_err();
        assert!(matches!(refused, ReplicationError::Name { .. }), "{refused}");
        // Nothing was sent.
        client.identify_system().await.unwrap();
        let refused = client.start_replication(name, start(), "p").await.unwrap_err();
        assert!(matches!(refused, ReplicationError::Name { .. }), "{refused}");
    }
    let longest = "x".repeat(63);
    open(&url).await.unwrap().create_temporary_slot(&longest, LIMIT).await.unwrap();
    for name in ["", "nul\0", &"x".repeat(64)] {
        let client = open(&url).await.unwrap();
        let refused = client.start_replication("s", start(), name).await.unwrap_err();
        assert!(matches!(refused, ReplicationError::Name { .. }), "{refused}");
    }
    assert_eq!(sql.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 0);
}

/// Roles, passwords and methods on a server with rules of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logins_and_their_refusals() {
    let options = PostgresOptions { password: Some("p@ss 'wörd'".to_owned()), ..Default::default() };
    let server = Postgres::start(options).await.unwrap();
    let good = server.url("postgres").replace("p@ss 'wörd'", "p%40ss%20%27w%C3%B6rd%27");
    let mut client = open(&good).await.unwrap();
    client.create_temporary_slot(&slot_name(), LIMIT).await.unwrap();
    let wrong = open(&with_password(&good, "statecast", "not-this-one")).await.unwrap_err();
    assert_eq!(code(&wrong), "28P01");
    assert!(!format!("{wrong} {wrong:?}").contains("not-this-one"));
    let none = open(&good.replace(":p%40ss%20%27w%C3%B6rd%27", "")).await.unwrap_err();
    assert!(none.to_string().contains("postgres.url has none"), "{none}");
    let nobody = open(&good.replace("/postgres", "/nowhere")).await.unwrap_err();
    assert_eq!(code(&nobody), "3D000");
    let unbound = open(&format!("{good}?channel_binding=require")).await.unwrap_err();
    assert!(unbound.to_string().contains("channel_binding=require"), "{unbound}");

    let sql = pg::open(&good).await;
    sql.batch_execute(
        "CREATE ROLE mere LOGIN PASSWORD 'm'; CREATE ROLE plain LOGIN REPLICATION PASSWORD 'pl';
         SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN REPLICATION PASSWORD 'ha';",
    )
    .await
    .unwrap();
    let mere = open(&with_password(&good, "mere", "m")).await.unwrap_err();
    assert_eq!(code(&mere), "42501");
    println!("{mere}");
    let hba = server.directory().join("data/pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    let own = "host all plain 127.0.0.1/32 password\nhost all hashed 127.0.0.1/32 md5\n";
    std::fs::write(&hba, format!("{own}{rules}")).unwrap();
    sql.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    for (user, password) in [("plain", "pl"), ("hashed", "ha")] {
        let begun = Instant::now();
        // The reload takes a moment; until then the MD5 hash does not fit the rule.
        while let Err(error) = open(&with_password(&good, user, password)).await {
            assert!(begun.elapsed() < LIMIT, "{error}");
            sleep(Duration::from_millis(20)).await;
        }
        let wrong = open(&with_password(&good, user, "x")).await.unwrap_err();
        assert_eq!(code(&wrong), "28P01", "{user}");
    }
    let by_socket = format!(
        "host={} port={} user=statecast dbname=postgres",
        server.directory().display(),
        server.port()
    );
    open(&by_socket).await.unwrap();
}

fn with_password(url: &str, user: &str, password: &str) -> String {
    with_user(url, user).replace(":x@", &format!(":{password}@"))
}

/// Hosts are tried in order; a standby-like server is passed over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_host_that_takes_writes_is_used() {
    let shared = servers::postgres().await;
    let settings = vec![("default_transaction_read_only".to_owned(), "on".to_owned())];
    let read_only = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
    let alone = open(&read_only.url("postgres")).await.unwrap_err();
    assert!(matches!(alone, ReplicationError::ReadOnly { .. }), "{alone}");
    let hosts = format!("127.0.0.1:1,127.0.0.1:{},127.0.0.1:{}", read_only.port(), shared.port());
    let mut client = open(&format!("postgres://statecast@{hosts}/postgres")).await.unwrap();
    let port = client.simple_query("SHOW port").await.unwrap();
    assert_eq!(port[0][0].as_deref(), Some(shared.port().to_string().as_str()));
    let nobody = open("postgres://u:hidden@127.0.0.1:1/d").await.unwrap_err();
    assert!(nobody.to_string().starts_with("cannot connect to PostgreSQL at 127.0.0.1:1 "), "{nobody}");
    assert!(!format!("{nobody:?}").contains("hidden"));
}

/// A server that accepts and says nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u@127.0.0.1:{}/d", listener.local_addr().unwrap().port());
    let begun = Instant::now();
    let silent = open(&url).await.unwrap_err();
    assert!(matches!(silent, ReplicationError::Timeout { doing: "logging in", .. }), "{silent}");
    assert!(begun.elapsed() < Duration::from_secs(13));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_without_room() {
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let settings = vec![set("wal_level", "replica")];
    let low = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
    let mut client = open(&low.url("postgres")).await.unwrap();
    let refused = client.create_temporary_slot(&slot_name(), LIMIT).await.unwrap_err();
    assert_eq!(code(&refused), "55000");
    println!("{refused}");
    drop(low);
    let settings = vec![set("max_replication_slots", "1"), set("max_wal_senders", "2")];
    let small = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
    let url = small.url("postgres");
    let (mut first, mut second) = (open(&url).await.unwrap(), open(&url).await.unwrap());
    first.create_temporary_slot(&slot_name(), LIMIT).await.unwrap();
    let refused = second.create_temporary_slot(&slot_name(), LIMIT).await.unwrap_err();
    assert_eq!(code(&refused), "53400");
    println!("{refused}");
    let third = open(&url).await.unwrap_err();
    assert_eq!(code(&third), "53300");
    println!("{third}");
}

fn with_tls(url: &str, ca: PathBuf, identity: Option<(PathBuf, PathBuf)>) -> Settings {
    let (cert_file, key_file) = identity.unzip();
    let tls = Tls { mode: TlsMode::Verify, ca_file: Some(ca), cert_file, key_file };
    Settings { url: SecretString::new(url.to_owned()), tls }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_binds_the_login_to_its_channel() {
    let authority = Authority::new();
    let (cert, key) = authority.issue("localhost", &["localhost"]);
    let tls = ServerTls { cert, key, ca: authority.ca(), client_cert_required: true };
    let options = PostgresOptions { tls: Some(tls), password: Some("pw".to_owned()), ..Default::default() };
    let server = Postgres::start(options).await.unwrap();
    let url = format!("{}&channel_binding=require", server.url("postgres"));
    let own = || Some(authority.issue("statecast", &[]));
    let log_in =
        async |url: &str, ca: PathBuf, identity| connect(&with_tls(url, ca, identity), "statecast/tls").await;

    let mut client = log_in(&url, authority.ca(), own()).await.unwrap();
    let query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    assert_eq!(client.simple_query(query).await.unwrap(), [vec![Some("t".to_owned())]]);
    let slot = slot_name();
    client.create_temporary_slot(&slot, LIMIT).await.unwrap();
    let sql = client.simple_query("CREATE TABLE t (id bigint, body text)").await;
    sql.unwrap();
    client.simple_query("CREATE PUBLICATION p FOR TABLE t").await.unwrap();
    client.simple_query("INSERT INTO t SELECT 1, repeat('z', 3000000)").await.unwrap();
    let mut stream = client.start_replication(&slot, start(), "p").await.unwrap();
    assert!(data(&mut stream, b'I').await.len() > 3_000_000);
    stream.finish(Feedback::all(start()), LIMIT).await.unwrap();
    let disabled = url.replace("channel_binding=require", "channel_binding=disable");
    log_in(&disabled, authority.ca(), own()).await.unwrap();

    let wrong = log_in(&url.replace(":pw@", ":no@"), authority.ca(), own()).await.unwrap_err();
    assert_eq!(code(&wrong), "28P01");
    let stranger = log_in(&url, Authority::new().ca(), own()).await.unwrap_err();
    assert!(stranger.to_string().contains("postgres.tls.ca_file"), "{stranger}");
    let bare = log_in(&url, authority.ca(), None).await.unwrap_err();
    assert!(format!("{bare}").contains("certificate"), "{bare}");
    let by_address = log_in(&url.replace("localhost", "127.0.0.1"), authority.ca(), own()).await.unwrap_err();
    assert!(by_address.to_string().contains("host name"), "{by_address}");
    let plain = servers::postgres().await.url("postgres");
    let not_offered = log_in(&plain, authority.ca(), None).await.unwrap_err();
    assert!(matches!(not_offered, ReplicationError::NotOffered { .. }), "{not_offered}");
    let missing = log_in(&url, "/nonexistent/ca.pem".into(), None).await.unwrap_err();
    assert!(missing.is_permanent(), "{missing}");
}

/// What a fast shutdown waits for: nobody who is gone, and nobody who has confirmed everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fast_shutdown_ends_a_stream() {
    const SHORT: Duration = Duration::from_secs(5);
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = server.url("postgres");
    let sql = publish(&url, "p").await;
    let mut confirming = stream(&url, "p").await;
    sql.batch_execute("INSERT INTO t VALUES (1, 'kept')").await.unwrap();
    drop(sql);
    assert!(holds(&data(&mut confirming, b'I').await, "kept"));
    let confirm = async {
        loop {
            match confirming.next().await.unwrap() {
                Frame::Keepalive { wal_end, .. } => {
                    confirming.send_status(Feedback::all(wal_end), false).await.unwrap();
                }
                Frame::XLogData { .. } => {}
                Frame::End => return confirming.finish(Feedback::all(start()), LIMIT).await,
            }
        }
    };
    let begun = Instant::now();
    let (ended, stopped) = tokio::join!(timeout(LIMIT, confirm), server.stop_fast());
    stopped.unwrap();
    ended.unwrap().unwrap();
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());

    server.start_again().await.unwrap();
    let holding = stream(&url, "p").await;
    let begun = Instant::now();
    let leave = async {
        // Another connection is told; this one is closed without a confirmation.
        let other = pg::open(&url).await;
        let told = other.query("SELECT pg_sleep(60)", &[]).await.unwrap_err();
        assert_eq!(told.code().unwrap().code(), "57P01");
        drop(holding);
    };
    let stop = async {
        sleep(Duration::from_millis(500)).await;
        server.stop_fast().await
    };
    let ((), stopped) = tokio::join!(leave, stop);
    stopped.unwrap();
    assert!(begun.elapsed() < SHORT, "{:?}", begun.elapsed());
    // A crash, without a word.
    server.start_again().await.unwrap();
    let mut cut = stream(&url, "p").await;
    server.kill9();
    let error = last(&mut cut).await.unwrap_err();
    assert!(
        matches!(error, ReplicationError::Closed { .. } | ReplicationError::Broken { .. })
            || error.code().is_some(),
        "{error}"
    );
}
