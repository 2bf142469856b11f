//! Installation, and the checks before a session.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use statecast::config::TlsMode;
use statecast::postgres::{connect, describe};
use statecast::store::install::{InstallError, InstallReport, install, print_sql};
use statecast::store::preflight::{LastCursor, PreflightError, preflight};
use statecast::store::schema::{SchemaError, require_schema, schema_version};

use crate::pg::{config, database, database_with, installed, login, number, open, with_database};

const SHAPE: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'statecast.outbox'::regclass";

pub(crate) async fn install_twice_does_nothing_the_second_time(url: &str) {
    let url = database(url, "it_twice").await;
    let mut session = open(&url).await;
    let first = install(&mut session.client, 1000).await.unwrap();
    assert_eq!(first.applied, ["V1__outbox", "V2__cursor", "V3__parked", "V4__lease", "V5__parked_since"]);
    assert_eq!(first.chunks, 16);
    assert_eq!(number(&session, SHAPE).await, 17);
    let nothing = InstallReport { applied: Vec::new(), chunks: 0 };
    assert_eq!(install(&mut session.client, 1000).await.unwrap(), nothing);
    assert_eq!(number(&session, SHAPE).await, 17);
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(number(&session, left).await, 0);
    // Nothing belongs to the installer, nothing is open to everybody.
    let foreign = "SELECT count(*) FROM pg_class WHERE relnamespace = 'statecast'::regnamespace
                   AND relkind IN ('r', 'p', 'S') AND pg_get_userbyid(relowner) <> 'statecast_owner'";
    assert_eq!(number(&session, foreign).await, 0);
    let public = "SELECT (SELECT count(*) FROM pg_class, aclexplode(relacl) a
                          WHERE relnamespace = 'statecast'::regnamespace AND a.grantee = 0)
                       + (SELECT count(*) FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner))) a
                          WHERE pronamespace = 'statecast'::regnamespace AND a.grantee = 0)";
    assert_eq!(number(&session, public).await, 0);
    // The defaults are evaluated in column order: the id of the transaction comes before its seq.
    let first = "SELECT (attname = 'xid')::int::bigint FROM pg_attribute
                 WHERE attrelid = 'statecast.outbox'::regclass AND attnum = 1";
    assert_eq!(number(&session, first).await, 1);
}

pub(crate) async fn concurrent_installs(url: &str) {
    // In one database, and in another one at the same time: roles belong to the cluster.
    let (one, two) = (database(url, "it_race_1").await, database(url, "it_race_2").await);
    let mut tasks = Vec::new();
    for url in [&one, &one, &one, &one, &two, &two] {
        let url = url.clone();
        tasks.push(tokio::spawn(async move {
            let mut session = open(&url).await;
            install(&mut session.client, 1000).await.unwrap()
        }));
    }
    let mut applied = 0;
    for task in tasks {
        applied += task.await.unwrap().applied.len();
    }
    assert_eq!(applied, 10, "each of five migrations once per database");
    for url in [&one, &two] {
        assert_eq!(number(&open(url).await.client, SHAPE).await, 17);
    }
}

pub(crate) async fn printed_sql_leaves_nothing_to_install(url: &str) {
    let url = database(url, "it_print").await;
    let file = std::env::temp_dir().join(format!("statecast-print-{}.sql", std::process::id()));
    std::fs::write(&file, print_sql(1000)).unwrap();
    let psql = || {
        std::process::Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
            .args([file.as_os_str(), "-d".as_ref(), url.as_ref()])
            .output()
            .unwrap()
    };
    let first = psql();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let again = psql();
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("installed in this database already"));
    std::fs::remove_file(&file).unwrap();
    let mut session = open(&url).await;
    let nothing = InstallReport { applied: Vec::new(), chunks: 0 };
    assert_eq!(install(&mut session.client, 1000).await.unwrap(), nothing);
    assert_eq!(number(&session, SHAPE).await, 17);
    require_schema(&session).await.unwrap();
}

pub(crate) async fn installer_without_superuser(url: &str) {
    let url = database(url, "it_plain").await;
    let admin = open(&url).await;
    let installer =
        login(&url, "it_installer", "CREATEROLE", "GRANT CREATE ON DATABASE it_plain TO it_installer").await;
    let mut session = open(&installer).await;
    install(&mut session.client, 1000).await.unwrap();
    drop(session);
    // Without either right the message says which one is missing.
    let url = database(&url, "it_plain_2").await;
    let nobody = login(&url, "it_nobody", "", "").await;
    let mut session = open(&nobody).await;
    let error = install(&mut session.client, 1000).await.unwrap_err();
    let line = describe(&error);
    assert!(line.contains("hint: Run the installation as a superuser"), "{line}");
    let after = "SELECT count(*) FROM pg_namespace WHERE nspname = 'statecast'";
    assert_eq!(number(&session, after).await, 0);
    drop(session);
    let creator = login(&url, "it_nobody", "CREATEROLE", "").await;
    let mut session = open(&creator).await;
    let line = describe(&install(&mut session.client, 1000).await.unwrap_err());
    assert!(line.contains("GRANT CREATE ON DATABASE it_plain_2 TO it_nobody"), "{line}");
    drop(admin);
}

pub(crate) async fn odd_history_row_is_named(url: &str) {
    let url = installed(url, "it_history", 1000).await;
    let mut session = open(&url).await;
    for (sql, back) in [
        ("applied_on = 'yesterday'", "applied_on = '2026-01-01T00:00:00Z'"),
        ("checksum = '99999999999999999999'", "checksum = '1'"),
        ("checksum = NULL", "checksum = '1'"),
    ] {
        let update = |set| format!("UPDATE statecast.refinery_schema_history SET {set} WHERE version = 2");
        session.batch_execute(&update(sql)).await.unwrap();
        let error = install(&mut session.client, 1000).await.unwrap_err();
        assert!(matches!(error, InstallError::OddHistory(2)), "{sql}: {error}");
        session.batch_execute(&update(back)).await.unwrap();
    }
    // A checksum that can be read, of something else.
    let error = install(&mut session.client, 1000).await.unwrap_err();
    assert!(matches!(error, InstallError::OtherHistory(_)), "{error}");
}

pub(crate) async fn sql_ascii_is_refused(url: &str) {
    let url = database_with(url, "it_ascii", "ENCODING 'SQL_ASCII'").await;
    let mut session = open(&url).await;
    let error = install(&mut session.client, 1000).await.unwrap_err();
    assert!(matches!(error, InstallError::SqlAscii(_)), "{error}");
    let error = preflight(&session, None).await.unwrap_err();
    assert!(matches!(error, PreflightError::SqlAscii(_)) && error.is_permanent(), "{error}");
}

pub(crate) async fn schema_versions(url: &str) {
    let empty = database(url, "it_versions_0").await;
    let session = open(&empty).await;
    assert_eq!(schema_version(&session).await.unwrap(), None);
    let error = require_schema(&session).await.unwrap_err();
    assert!(matches!(error, SchemaError::Missing { .. }) && error.to_string().contains("statecast install"));
    let url = installed(url, "it_versions", 1000).await;
    let session = open(&url).await;
    require_schema(&session).await.unwrap();
    let set = |major: i32| format!("UPDATE statecast.meta SET schema_major = {major}");
    session.batch_execute(&set(2)).await.unwrap();
    assert!(matches!(require_schema(&session).await, Err(SchemaError::Newer { .. })));
    session.batch_execute(&set(0)).await.unwrap();
    assert!(matches!(require_schema(&session).await, Err(SchemaError::Older { .. })));
    session.batch_execute("UPDATE statecast.meta SET schema_major = 1, schema_minor = 9").await.unwrap();
    require_schema(&session).await.unwrap();
}

pub(crate) async fn preflight_names_what_is_wrong(url: &str) {
    let url = installed(url, "it_preflight", 1000).await;
    let session = open(&url).await;
    let facts = preflight(&session, None).await.unwrap();
    assert_eq!((facts.last_seq, facts.timeline, facts.timeline_changed), (0, 1, false));
    let here = LastCursor { system_identifier: facts.system_identifier, timeline: 1, max_seq: 0 };
    preflight(&session, Some(here)).await.unwrap();
    let elsewhere = LastCursor { system_identifier: 1, ..here };
    let error = preflight(&session, Some(elsewhere)).await.unwrap_err();
    assert!(matches!(error, PreflightError::OtherSystem { .. }) && error.is_permanent());
    let behind = preflight(&session, Some(LastCursor { max_seq: 1, ..here })).await.unwrap_err();
    assert!(matches!(behind, PreflightError::SequenceBehind { last_seq: 0, max_seq: 1 }), "{behind}");
    let promoted = LastCursor { timeline: 9, max_seq: 1, ..here };
    assert!(preflight(&session, Some(promoted)).await.unwrap().timeline_changed);
    session.batch_execute("SELECT statecast.publish('a', '1', 'b', NULL)").await.unwrap();
    assert_eq!(preflight(&session, Some(LastCursor { max_seq: 1, ..here })).await.unwrap().last_seq, 1);
    for (change, back) in [
        ("SET GENERATED BY DEFAULT", "SET GENERATED ALWAYS"),
        ("SET CACHE 50", "SET CACHE 1"),
        ("SET INCREMENT 2", "SET INCREMENT 1"),
        ("SET CYCLE", "SET NO CYCLE"),
    ] {
        let alter = |what| format!("ALTER TABLE statecast.outbox ALTER COLUMN seq {what}");
        session.batch_execute(&alter(change)).await.unwrap();
        let error = preflight(&session, None).await.unwrap_err();
        assert!(
            matches!(error, PreflightError::Sequence { .. }) && error.is_permanent(),
            "{change}: {error}"
        );
        assert!(error.to_string().contains(back), "{error}");
        session.batch_execute(&alter(back)).await.unwrap();
    }
    session.batch_execute("REVOKE UPDATE ON statecast.cursor FROM statecast_relay").await.unwrap();
    let relay = open(&login(&url, "it_preflight", "", "GRANT statecast_relay TO it_preflight").await).await;
    let error = preflight(&relay, None).await.unwrap_err();
    assert!(error.to_string().contains("lacks UPDATE on statecast.cursor"), "{error}");
    session.batch_execute("ALTER TABLE statecast.outbox ALTER COLUMN seq DROP IDENTITY").await.unwrap();
    let error = preflight(&session, None).await.unwrap_err();
    assert!(error.to_string().contains("no identity column any more") && error.is_permanent(), "{error}");
}

pub(crate) async fn plain_server_and_tls_mode(url: &str) {
    let mut cfg = config(url);
    cfg.tls.mode = TlsMode::Verify;
    let error = connect(&cfg, "statecast/test").await.err().unwrap();
    assert!(error.to_string().contains("does not offer TLS"), "{error}");
    assert!(error.to_string().contains("postgres.tls.mode") && !error.is_permanent(), "{error}");
    let mut wrong = config(&with_database(url, "it_not_there"));
    wrong.tls.mode = TlsMode::Disable;
    let error = connect(&wrong, "statecast/test").await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "3D000");
}
