//! The lease's statements against a real server: who may take what, and what is ended and what is not.

use std::time::Duration;

use statecast::backend::Part;
use statecast::store::cursor::{self, CursorError, Start};
use statecast::store::lease::{self, Backend, Holding, Look};
use statecast::store::{predecessor, preflight};
use tokio_postgres::Client;

use crate::pg;
use crate::process::Invocation;
use crate::servers::{self, Topology, connect, unique};
use crate::wal_bench::wait_until;

const PIPELINE: &str = "leased";

/// A database with a schema.
async fn database() -> String {
    let url = servers::fresh_database().await;
    let topology = Topology::new("amqp://nobody");
    Invocation::run(&url, &topology, PIPELINE).arguments(&["install"]).succeed().await;
    url
}

/// A connection under the name of a part.
async fn part(url: &str, part: Part) -> Client {
    named(url, &part.application_name(PIPELINE)).await
}

async fn named(url: &str, name: &str) -> Client {
    let client = connect(url).await.unwrap();
    client.execute("SELECT set_config('application_name', $1, false)", &[&name]).await.unwrap();
    client
}

async fn pid(client: &Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// Leads: takes the lock and claims the row. Its epoch.
async fn lead(client: &mut Client) -> i64 {
    assert!(look(client, true).await.locked);
    let server = preflight::preflight(client, None).await.unwrap();
    let claim = cursor::claim(client, PIPELINE, &server, Start::Oldest, "test", 10_000, None).await.unwrap();
    client
        .execute(
            "SELECT set_config('application_name', $1, false)",
            &[&Part::Keeper.application_name(PIPELINE)],
        )
        .await
        .unwrap();
    claim.epoch
}

async fn look(client: &Client, may_lead: bool) -> Look {
    lease::look(client, PIPELINE, may_lead).await.unwrap()
}

async fn seen(client: &Client) -> Holding {
    look(client, false).await.row.unwrap()
}

/// As if the leader had not renewed for a while.
async fn expire(client: &Client) {
    let sql = "UPDATE statecast.cursor SET lease_until = clock_timestamp() - interval '1 s'";
    client.batch_execute(sql).await.unwrap();
}

fn superseded<T>(result: &Result<T, CursorError>) -> bool {
    matches!(result, Err(CursorError::Superseded(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_seize_at_once_one_wins() {
    let url = database().await;
    let (mut leader, sql) = (part(&url, Part::Standby).await, connect(&url).await.unwrap());
    lead(&mut leader).await;
    for _ in 0..20 {
        expire(&sql).await;
        let seen = seen(&sql).await;
        let mut racing = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (url, seen) = (url.clone(), seen.clone());
            racing.spawn(async move {
                let client = part(&url, Part::Standby).await;
                lease::seize(&client, PIPELINE, &seen, "racer").await.unwrap()
            });
        }
        let won: Vec<i64> = racing.join_all().await.into_iter().flatten().collect();
        assert_eq!(won, [seen.epoch + 1]);
    }
}

#[tokio::test]
async fn only_a_lease_that_is_over_and_unchanged_is_seized() {
    let url = database().await;
    let (mut leader, standby) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    // Text of times must not depend on how a role likes to see them.
    standby.batch_execute("SET datestyle = 'SQL, DMY'; SET timezone = 'Asia/Kathmandu'").await.unwrap();
    let epoch = lead(&mut leader).await;
    let take = async |seen: &Holding| lease::seize(&standby, PIPELINE, seen, "taker").await.unwrap();
    assert_eq!(take(&seen(&standby).await).await, None, "it is running");
    expire(&leader).await;
    let before = seen(&standby).await;
    lease::renew(&leader, None, PIPELINE, epoch).await.unwrap();
    assert_eq!(take(&before).await, None, "it was renewed");
    expire(&leader).await;
    let now = seen(&standby).await;
    assert_eq!(take(&before).await, None, "it is over, but not the one that was seen");
    assert_eq!(take(&Holding { epoch: epoch - 1, ..now.clone() }).await, None, "another epoch");
    assert_eq!(take(&now).await, Some(epoch + 1));
    assert_eq!(take(&now).await, None, "once");

    // From now on the old leader writes nothing, and its connection is alive.
    assert!(superseded(&lease::renew(&leader, None, PIPELINE, epoch).await));
    let prepared = lease::prepare_renew(&leader, PIPELINE).await.unwrap();
    assert!(superseded(&lease::renew(&leader, Some(&prepared), PIPELINE, epoch).await));
    assert!(superseded(&lease::note_source(&leader, PIPELINE, epoch, 1).await));
    assert!(superseded(&cursor::set_lanes(&leader, PIPELINE, epoch, 3).await));
    let taken = seen(&standby).await;
    lease::release(&leader, PIPELINE, epoch).await.unwrap();
    assert_eq!(seen(&standby).await, taken, "an old leader has released what is not its own");
    assert_eq!((taken.epoch, taken.holder.as_deref()), (epoch + 1, Some("taker")));
    assert_eq!(taken.backends[0].pid, pid(&standby).await);
    // Nor does it claim what it meant to claim before.
    let server = preflight::preflight(&leader, None).await.unwrap();
    let claim =
        cursor::claim(&mut leader, PIPELINE, &server, Start::Oldest, "late", 10_000, Some(epoch)).await;
    assert!(superseded(&claim));
    assert_eq!(seen(&standby).await, taken);
}

/// A clock that was set back leaves leases that never end; one that is being made says so.
#[tokio::test]
async fn leases_of_another_time() {
    let url = database().await;
    let (mut leader, standby) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    let epoch = lead(&mut leader).await;
    for until in ["clock_timestamp() + interval '1 hour'", "'infinity'", "'-infinity'", "NULL"] {
        let sql = format!("UPDATE statecast.cursor SET lease_until = {until}");
        leader.batch_execute(&sql).await.unwrap();
        let look = look(&standby, true).await;
        assert!(look.over && !look.locked, "{until}: {look:?}");
        assert!(!look.row.unwrap().creating, "somebody has led");
    }
    let now = seen(&standby).await;
    assert_eq!(lease::seize(&standby, PIPELINE, &now, "taker").await.unwrap(), Some(epoch + 1));
    leader.batch_execute("UPDATE statecast.cursor SET lease_until = 'infinity', epoch = 0").await.unwrap();
    assert!(seen(&standby).await.creating);
}

/// The lock is tried only where nobody is on the way to it.
#[tokio::test]
async fn a_lock_that_is_free_for_a_moment_is_left_to_who_has_the_row() {
    let url = database().await;
    let (mut leader, winner) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    let third = part(&url, Part::Standby).await;
    lead(&mut leader).await;
    assert!(!look(&winner, true).await.locked, "it is the leader's");
    expire(&leader).await;
    lease::seize(&winner, PIPELINE, &seen(&winner).await, "winner").await.unwrap().unwrap();
    drop(leader);
    let sql = connect(&url).await.unwrap();
    let free = "NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                 WHERE l.locktype = 'advisory' AND d.datname = current_database())";
    wait_until(&sql, free).await;
    assert!(!look(&third, true).await.locked, "the winner waits for it");
    assert!(look(&winner, true).await.locked);
    // A winner that has died is not waited for.
    drop(winner);
    wait_until(&sql, free).await;
    assert!(look(&third, true).await.locked);
}

/// A pooler in session mode keeps the backend of a client that was killed, and gives it to another.
#[tokio::test]
async fn a_backend_that_outlives_its_relay_is_no_leader() {
    let url = database().await;
    let (mut leader, standby) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    lead(&mut leader).await;
    let Holding { epoch, backends: known, .. } = seen(&standby).await;
    assert_eq!(known[0].pid, pid(&leader).await);
    // What the pooler does with it, as `server_reset_query` says.
    leader.batch_execute("DISCARD ALL").await.unwrap();
    let look = look(&standby, true).await;
    assert!(!look.over && look.locked, "the lock is free, and nobody is on the way to it");
    // Another standby has it now: it waits, and is nobody's predecessor.
    leader
        .execute(
            "SELECT set_config('application_name', $1, false)",
            &[&Part::Standby.application_name(PIPELINE)],
        )
        .await
        .unwrap();
    assert!(predecessor::end_and_wait(&standby, PIPELINE, &known, Some(epoch)).await.unwrap().is_empty());
    pid(&leader).await;
}

/// A promoted server's sequence is moved ahead by who leads, and by nobody else.
#[tokio::test]
async fn who_has_been_followed_moves_no_sequence() {
    let url = database().await;
    let (mut leader, sql) = (part(&url, Part::Standby).await, connect(&url).await.unwrap());
    let epoch = lead(&mut leader).await;
    sql.batch_execute("UPDATE statecast.cursor SET epoch = epoch + 1, timeline = timeline + 1")
        .await
        .unwrap();
    let server = preflight::preflight(&leader, None).await.unwrap();
    let last = "SELECT last_value FROM statecast.outbox_seq_seq";
    let before = pg::number(&sql, last).await;
    let claim =
        cursor::claim(&mut leader, PIPELINE, &server, Start::Oldest, "late", 10_000, Some(epoch)).await;
    assert!(superseded(&claim));
    assert_eq!(pg::number(&sql, last).await, before);
}

/// `--from now`: who makes the pipeline counts its outbox, and is cut off before it has. Whoever follows makes it anew.
#[tokio::test]
async fn a_pipeline_that_was_never_led_is_made_anew() {
    let url = database().await;
    let sql = connect(&url).await.unwrap();
    sql.batch_execute("SELECT statecast.publish('order', 'k', 'created', '{}'::json)").await.unwrap();
    let (standby, mut winner) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    let server = preflight::preflight(&winner, None).await.unwrap();
    let insert = format!(
        "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, max_seq, base, lease_until)
         VALUES ('{PIPELINE}', {}, {}, '1:1:', 1, 0, 'infinity')",
        server.system_identifier, server.timeline
    );
    sql.batch_execute(&insert).await.unwrap();
    let creating = seen(&standby).await;
    assert!(creating.creating);
    assert!(lease::discard(&winner, PIPELINE, &creating).await.unwrap());
    assert!(!lease::discard(&standby, PIPELINE, &creating).await.unwrap(), "once");
    // Who made it finds nothing to claim when it wakes up.
    assert_eq!(pg::number(&sql, "SELECT count(*) FROM statecast.cursor").await, 0);
    let now = look(&winner, true).await;
    assert!(now.locked);
    let epoch = Some(now.row.map_or(0, |row| row.epoch));
    let claim =
        cursor::claim(&mut winner, PIPELINE, &server, Start::Now, "winner", 10_000, epoch).await.unwrap();
    assert_eq!((claim.position.prune_seq, claim.passed), (1, 0), "{claim:?}");
    let base = "SELECT base FROM statecast.cursor";
    assert_eq!(pg::number(&sql, base).await, 1, "the archive is skipped");
    let led = seen(&sql).await;
    expire(&sql).await;
    assert!(
        !lease::discard(&standby, PIPELINE, &Holding { lease_until: seen(&sql).await.lease_until, ..led })
            .await
            .unwrap()
    );
}

/// What is ended: what the row names, by number, start and name; the holder of the lock; what only a leader has. What is
/// not: everything else, whatever stands in the row.
#[tokio::test]
async fn only_a_leaders_backends_are_ended() {
    let url = database().await;
    let sql = connect(&url).await.unwrap();
    let mut leader = part(&url, Part::Standby).await;
    lead(&mut leader).await;
    let source = part(&url, Part::Source).await;
    lease::note_source(&leader, PIPELINE, seen(&sql).await.epoch, pid(&source).await).await.unwrap();
    let (upkeep, stream) = (part(&url, Part::Upkeep).await, part(&url, Part::Stream).await);
    let former = seen(&sql).await;
    let (leader_pid, source_pid) = (pid(&leader).await, pid(&source).await);
    assert_eq!(former.backends.iter().map(|b| b.pid).collect::<Vec<_>>(), [leader_pid, source_pid]);

    // Others, and a row in which somebody wrote their numbers.
    let application = named(&url, "shop").await;
    let (other, recycled) = (named(&url, "statecast other keeper").await, part(&url, Part::Keeper).await);
    let standby = part(&url, Part::Standby).await;
    let winner = part(&url, Part::Standby).await;
    let started = async |client: &Client| -> String {
        let sql = "SELECT extract(epoch FROM backend_start)::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        client.query_one(sql, &[]).await.unwrap().get(0)
    };
    let mut known = former.backends.clone();
    for client in [&application, &other] {
        known.push(Backend { pid: pid(client).await, started: started(client).await });
    }
    // The same number, given to another later.
    known.push(Backend { pid: pid(&recycled).await, started: "1700000000.000001".to_owned() });
    known.push(Backend { pid: 1, started: "garbage".to_owned() });
    known.push(Backend { pid: -1, started: String::new() });

    assert_eq!(predecessor::obstacle(&winner, PIPELINE, &known).await.unwrap(), None);
    let ended = [leader_pid, source_pid, pid(&upkeep).await, pid(&stream).await];
    // Who has been followed meanwhile ends nobody.
    for epoch in [None, Some(former.epoch - 1), Some(former.epoch + 1)] {
        assert!(predecessor::end(&winner, PIPELINE, &known, epoch).await.unwrap().is_empty());
    }
    for alive in [&leader, &source, &upkeep, &stream] {
        pid(alive).await;
    }
    let ours = Some(former.epoch);
    let told = predecessor::end(&winner, PIPELINE, &known, ours).await.unwrap();
    let mut told: Vec<i32> = told.iter().map(|found| found.pid).collect();
    told.sort_unstable();
    let mut expected = ended.to_vec();
    expected.sort_unstable();
    assert_eq!(told, expected);
    assert!(predecessor::end_and_wait(&winner, PIPELINE, &known, ours).await.unwrap().is_empty());
    let gone = format!("NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = ANY (ARRAY{ended:?}))");
    wait_until(&sql, &gone).await;
    for alive in [&application, &other, &recycled, &standby, &winner] {
        pid(alive).await;
    }
    drop((source, upkeep, stream));
}

/// The holder of the lock is ended even if the row does not know it: it was stopped before it had claimed.
#[tokio::test]
async fn who_has_the_lock_and_has_not_claimed_is_ended() {
    let url = database().await;
    let (stuck, winner) = (part(&url, Part::Standby).await, part(&url, Part::Standby).await);
    assert!(look(&stuck, true).await.locked);
    let look_again = look(&winner, true).await;
    assert!(!look_again.locked && look_again.over && look_again.row.is_none(), "{look_again:?}");
    assert_eq!(predecessor::obstacle(&winner, PIPELINE, &[]).await.unwrap(), None);
    assert!(predecessor::end_and_wait(&winner, PIPELINE, &[], None).await.unwrap().is_empty());
    assert!(look(&winner, true).await.locked);
}

#[tokio::test]
async fn a_lock_that_is_no_relays_is_left_alone_and_named() {
    let url = database().await;
    let (person, winner) = (named(&url, "psql").await, part(&url, Part::Standby).await);
    assert!(look(&person, true).await.locked);
    let obstacle = predecessor::obstacle(&winner, PIPELINE, &[]).await.unwrap().unwrap().to_string();
    let expected = format!("backend {}, psql, which is no relay, holds the lock", pid(&person).await);
    assert!(obstacle.starts_with(&expected), "{obstacle}");
    assert!(predecessor::end_and_wait(&winner, PIPELINE, &[], None).await.unwrap().is_empty());
    pid(&person).await;
}

/// Another login's leader: what is missing is said, and any of three grants is enough. A stranger under one of our names is
/// no obstacle.
#[tokio::test]
async fn a_login_that_may_not_end_the_leader_is_told() {
    let url = database().await;
    let sql = connect(&url).await.unwrap();
    let role = |name: &str| unique(name).replace('-', "_");
    let (first, second, stranger) = (role("first"), role("second"), role("stranger"));
    for name in [&first, &second] {
        pg::login(&url, name, "", &format!("GRANT statecast_relay TO {name}")).await;
    }
    pg::login(&url, &stranger, "", "").await;
    let mut leader = part(&pg::with_user(&url, &first), Part::Standby).await;
    lead(&mut leader).await;
    let hostile = part(&pg::with_user(&url, &stranger), Part::Source).await;
    let standby = part(&pg::with_user(&url, &second), Part::Standby).await;
    let Holding { epoch, backends: known, .. } = seen(&standby).await;
    assert_eq!(known[0].pid, pid(&leader).await);

    let obstacle = async || predecessor::obstacle(&standby, PIPELINE, &known).await.unwrap();
    let text = obstacle().await.unwrap().to_string();
    let expected = format!(
        "login {second} may not end backend {} (statecast leased keeper, login {first}) of the relay",
        pid(&leader).await
    );
    assert!(text.starts_with(&expected) && text.contains(&format!("GRANT {first} TO {second}")), "{text}");
    let left = predecessor::end(&standby, PIPELINE, &known, Some(epoch)).await.unwrap();
    assert_eq!(left.len(), 1, "nothing is ended");
    for grant in [&first, "pg_signal_backend"] {
        sql.batch_execute(&format!("GRANT {grant} TO {second}")).await.unwrap();
        assert_eq!(obstacle().await, None, "{grant}");
        sql.batch_execute(&format!("REVOKE {grant} FROM {second}")).await.unwrap();
        assert!(obstacle().await.is_some(), "{grant}");
    }
    // A superuser's backends are a superuser's to end.
    sql.batch_execute(&format!("GRANT pg_signal_backend TO {second}; ALTER ROLE {first} SUPERUSER"))
        .await
        .unwrap();
    assert!(obstacle().await.is_some());
    let error = standby.query_one("SELECT pg_terminate_backend($1)", &[&known[0].pid]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "42501", "the server agrees");
    sql.batch_execute(&format!("ALTER ROLE {first} NOSUPERUSER")).await.unwrap();

    let left = predecessor::end_and_wait(&standby, PIPELINE, &known, Some(epoch)).await.unwrap();
    assert!(left.is_empty(), "{left:?}");
    let gone = format!("NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {})", known[0].pid);
    wait_until(&sql, &gone).await;
    tokio::time::timeout(Duration::from_secs(5), async { hostile.query_one("SELECT 1", &[]).await })
        .await
        .unwrap()
        .unwrap_err();
}

/// The server's end of a connection notices a client that has vanished as soon as the client's end would.
#[tokio::test]
async fn the_servers_end_of_a_connection_is_watched() {
    let config = pg::config(&servers::fresh_database().await);
    let settings = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings
                     WHERE name LIKE 'tcp_keepalives%' OR name = 'tcp_user_timeout'";
    let (client, _guard) = statecast::postgres::connect(&config, "test").await.unwrap();
    let pool = statecast::postgres::pool(&config, "test", 1).unwrap();
    let pooled = pool.get().await.unwrap();
    for client in [&client, &**pooled] {
        let found: String = client.query_one(settings, &[]).await.unwrap().get(0);
        assert_eq!(found, "3 5 2 10000");
    }
    // A stream's client may stop reading for longer than that: `wal_sender_timeout` watches over it.
    let stream = statecast::source::replication::connect(&config, "test stream").await.unwrap();
    let found: String = client
        .query_one("SELECT count(*)::text FROM pg_stat_replication WHERE pid = $1", &[&stream.backend_pid()])
        .await
        .unwrap()
        .get(0);
    assert_eq!(found, "1");
}
