//! What the server says about streaming, and the publication that `install` keeps: found, reported, repaired, left alone.

use statecast::postgres::describe;
use statecast::publication::Fault;
use statecast::source::wal::facts::{Facts, Obstacle, Publication, look, stream_state};
use statecast::store::publication::{Done, PublicationError, ensure, print_sql};
use tokio_postgres::Client;

use crate::pg;
use crate::servers::{self, unique};

const APPLICATION: &str = "statecast test stream";
const RIGHT: &str = "publish = 'insert', publish_via_partition_root = true";

async fn facts(client: &Client, publication: &str) -> Facts {
    look(client, publication, APPLICATION).await.unwrap()
}

/// An installed database of the shared server; nothing is published.
async fn site() -> pg::Session {
    let mut session = pg::open(&servers::fresh_database().await).await;
    statecast::store::install::install(&mut session.client, 1000).await.unwrap();
    session
}

async fn version(client: &Client) -> i32 {
    client.query_one("SELECT current_setting('server_version_num')::int", &[]).await.unwrap().get(0)
}

/// `CREATE PUBLICATION p …`, what is wrong with it, what a warning says (empty: none), and whether `install` mends it.
fn cases() -> Vec<(String, Vec<Fault>, &'static str, bool)> {
    let right = |what: &str| format!("FOR {what} WITH ({RIGHT})");
    let (outbox, chunk) = ("TABLE statecast.outbox", "TABLE statecast.outbox_1");
    vec![
        (right(outbox), vec![], "", false),
        (right(&format!("{outbox}, statecast.outbox_1")), vec![], "", false),
        (right("ALL TABLES"), vec![], "all tables of the database", false),
        (right("TABLES IN SCHEMA statecast"), vec![], "all tables of schema statecast", false),
        (right(&format!("{outbox}, TABLES IN SCHEMA other")), vec![], "all tables of schema other", false),
        (right("TABLE statecast.outbox, other.t"), vec![], "other.t", false),
        (
            format!("FOR {outbox} WITH (publish_via_partition_root = true)"),
            vec![],
            "also publishes update, delete, truncate:",
            true,
        ),
        (
            format!("FOR {outbox} WITH (publish = 'delete')"),
            vec![Fault::NoInserts, Fault::NotViaRoot],
            "also publishes delete:",
            true,
        ),
        (format!("FOR {outbox} WITH (publish = 'insert')"), vec![Fault::NotViaRoot], "", true),
        (format!("WITH ({RIGHT})"), vec![Fault::NoOutbox], "", true),
        (right(chunk), vec![Fault::NoOutbox], "", true),
        (right("TABLE statecast.outbox WHERE (seq > 0)"), vec![Fault::RowFilter], "", true),
        (right("TABLE statecast.outbox (xid, seq)"), vec![Fault::ColumnList], "", true),
        (right("TABLE other.t"), vec![Fault::NoOutbox], "other.t", false),
        (right("TABLES IN SCHEMA other"), vec![Fault::NoOutbox], "all tables of schema other", false),
        ("FOR ALL TABLES WITH (publish = 'insert')".to_owned(), vec![Fault::NotViaRoot], "all tables", false),
    ]
}

#[tokio::test]
async fn every_fault_of_a_publication_is_found_and_ours_is_mended() {
    let mut session = site().await;
    assert_eq!(facts(&session, "p").await.publication, Publication::Missing);
    session.batch_execute("CREATE SCHEMA other; CREATE TABLE other.t (id int)").await.unwrap();
    let old = version(&session).await < 150_000;
    for (sql, faults, warning, mended) in cases() {
        if old && ["IN SCHEMA", "WHERE", "(xid"].iter().any(|new| sql.contains(new)) {
            continue;
        }
        session.batch_execute(&format!("CREATE PUBLICATION p {sql}")).await.unwrap();
        let before = facts(&session, "p").await;
        let expected =
            if faults.is_empty() { Publication::Right } else { Publication::Wrong(faults.clone()) };
        assert_eq!(before.publication, expected, "{sql}");
        let obstacles = before.obstacles(APPLICATION);
        assert_eq!(obstacles.is_empty(), faults.is_empty(), "{sql}: {obstacles:?}");
        for (fault, obstacle) in faults.iter().zip(obstacles.iter().cycle()) {
            assert!(obstacle.to_string().contains(&fault.to_string()), "{obstacle}");
        }
        let warnings = before.warnings().join("\n");
        assert!(warnings.contains(warning) && warnings.is_empty() == warning.is_empty(), "{sql}: {warnings}");

        let done = ensure(&mut session.client, "p").await;
        let after = facts(&session, "p").await;
        match done.map(|report| report.done) {
            Ok(Done::Mended(wrong)) if mended => {
                assert!(faults.iter().all(|fault| wrong.contains(&fault.to_string())), "{sql}: {wrong:?}");
                assert_eq!((after.publication, after.extras), (Publication::Right, vec![]), "{sql}");
            }
            Ok(Done::Nothing) if !mended && faults.is_empty() => assert_eq!(after, before, "{sql}"),
            Err(error @ PublicationError::Foreign { .. }) if !mended && !faults.is_empty() => {
                let text = error.to_string();
                assert!(text.contains(warning) && text.contains(&faults[0].to_string()), "{text}");
                assert_eq!(after, before, "{sql}");
                // What it says is what helps.
                let by_hand = text.rsplit_once("run: ").unwrap().1;
                session.batch_execute(by_hand).await.unwrap();
                assert_eq!(facts(&session, "p").await.publication, Publication::Right, "{text}");
            }
            other => panic!("{sql}: {other:?}"),
        }
        session.batch_execute("DROP PUBLICATION p").await.unwrap();
    }
}

#[tokio::test]
async fn a_long_list_of_tables_is_cut() {
    let session = site().await;
    for table in ["a", "b", "c", "d"] {
        session.batch_execute(&format!("CREATE TABLE public.{table} (id int)")).await.unwrap();
    }
    let sql = format!(
        "CREATE PUBLICATION p FOR TABLE statecast.outbox, public.a, public.b, public.c, public.d WITH ({RIGHT})"
    );
    session.batch_execute(&sql).await.unwrap();
    let warnings = facts(&session, "p").await.warnings();
    assert!(warnings[0].contains("public.a, public.b, public.c and others"), "{warnings:?}");
}

#[tokio::test]
async fn a_login_without_the_right_sees_all_but_may_not() {
    let session = site().await;
    let role = unique("plain").replace('-', "_");
    let url = pg::login(&servers::postgres().await.url("postgres"), &role, "", "").await;
    let database: String = session.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    session
        .batch_execute(&format!("CREATE PUBLICATION p FOR TABLE statecast.outbox WITH ({RIGHT})"))
        .await
        .unwrap();
    // Not even USAGE on the schema is needed to look.
    let plain = pg::open(&pg::with_database(&url, &database)).await;
    let seen = facts(&plain, "p").await;
    assert_eq!(seen.obstacles(APPLICATION), [Obstacle::NoReplicationRight { role: role.clone() }]);
    assert!(seen.obstacles(APPLICATION)[0].is_permanent());
    session.batch_execute(&format!("ALTER ROLE {role} REPLICATION")).await.unwrap();
    assert_eq!(facts(&plain, "p").await.obstacles(APPLICATION), []);
    assert_eq!(stream_state(&plain, APPLICATION).await.unwrap(), None);
}

const OWNER: &str = "SELECT pg_get_userbyid(pubowner)::text FROM pg_publication WHERE pubname = $1";

async fn owner(client: &Client, publication: &str) -> String {
    client.query_one(OWNER, &[&publication]).await.unwrap().get(0)
}

#[tokio::test]
async fn hostile_names_stay_names() {
    let mut session = site().await;
    let longest = "\u{e9}".repeat(31) + "x";
    assert_eq!(longest.len(), 63);
    for name in ["statecast", "a \"b\" 'c' \\d; $owner$ --", "line\nbreak", ":name", longest.as_str()] {
        assert_eq!(ensure(&mut session.client, name).await.unwrap().done, Done::Created, "{name}");
        assert_eq!(ensure(&mut session.client, name).await.unwrap().done, Done::Nothing, "{name}");
        assert_eq!(facts(&session, name).await.obstacles(APPLICATION), [], "{name}");
        assert_eq!(owner(&session, name).await, "statecast_owner", "{name}");
    }
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(pg::number(&session, left).await, 0);
}

#[tokio::test]
async fn the_printed_sql_is_what_install_does() {
    let url = servers::fresh_database().await;
    let mut session = pg::open(&url).await;
    let name = "a \"b\" 'c' \\d :x $owner$";
    let script = statecast::store::install::print_sql(1000) + &print_sql(name);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let psql = std::process::Command::new("psql")
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f"])
        .args([file.path().as_os_str(), "-d".as_ref(), url.as_ref()])
        .output()
        .unwrap();
    assert!(psql.status.success(), "{}", String::from_utf8_lossy(&psql.stderr));
    assert_eq!(ensure(&mut session.client, name).await.unwrap().done, Done::Nothing);
    assert_eq!(owner(&session, name).await, "statecast_owner");
}

/// Installers without superuser, each with a little less.
#[tokio::test]
async fn the_installer_needs_rights_and_is_told_which() {
    let session = site().await;
    let role = unique("installer").replace('-', "_");
    let database: String = session.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    let base = servers::postgres().await.url("postgres");
    let url = pg::login(&base, &role, "", &format!("GRANT statecast_owner TO {role}")).await;
    let mut plain = pg::open(&pg::with_database(&url, &database)).await;

    let error = ensure(&mut plain.client, "p").await.unwrap_err();
    let text = describe(&error);
    assert!(matches!(error, PublicationError::Forbidden { .. }), "{text}");
    for part in
        [role.as_str(), "to create publication \"p\"", "CREATE PUBLICATION \"p\"", "permission denied"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(facts(&session, "p").await.publication, Publication::Missing);

    // With CREATE on the database it is made, and belongs to whoever made it, who may mend it.
    session.batch_execute(&format!("GRANT CREATE ON DATABASE \"{database}\" TO {role}")).await.unwrap();
    assert_eq!(ensure(&mut plain.client, "p").await.unwrap().done, Done::Created);
    assert_eq!(owner(&session, "p").await, role);
    session.batch_execute("ALTER PUBLICATION p SET (publish = 'update')").await.unwrap();
    assert!(matches!(ensure(&mut plain.client, "p").await.unwrap().done, Done::Mended(_)));

    // Where the outbox's owner may have one, it gets it; and then every installer may mend it.
    session
        .batch_execute(&format!("GRANT CREATE ON DATABASE \"{database}\" TO statecast_owner"))
        .await
        .unwrap();
    assert_eq!(ensure(&mut plain.client, "q").await.unwrap().done, Done::Created);
    assert_eq!(owner(&session, "q").await, "statecast_owner");
    session.batch_execute("ALTER PUBLICATION q SET (publish = 'update')").await.unwrap();
    assert!(matches!(ensure(&mut plain.client, "q").await.unwrap().done, Done::Mended(_)));

    // Somebody else's: who may mend it, and how.
    session.batch_execute("CREATE PUBLICATION r").await.unwrap();
    let text = describe(&ensure(&mut plain.client, "r").await.unwrap_err());
    let names =
        ["to mend publication \"r\"", "its owner statecast or a superuser", "SET TABLE statecast.outbox"];
    assert!(names.iter().all(|part| text.contains(part)), "{text}");
}

#[tokio::test]
async fn installers_at_the_same_time_make_one() {
    let session = site().await;
    let database: String = session.query_one("SELECT current_database()::text", &[]).await.unwrap().get(0);
    let url = servers::postgres().await.url(&database);
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let url = url.clone();
        tasks.push(tokio::spawn(async move {
            let mut session = pg::open(&url).await;
            ensure(&mut session.client, "p").await.unwrap().done
        }));
    }
    let mut created = 0;
    for task in tasks {
        created += usize::from(task.await.unwrap() == Done::Created);
    }
    assert_eq!(created, 1);
}
