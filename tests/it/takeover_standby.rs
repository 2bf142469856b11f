//! What a standby needs to follow its leader, and what it says where that is missing; orderly handovers; errors of a
//! server by their codes.

use std::time::{Duration, Instant};

use crate::pg;
use crate::proxy::{Mode, Proxy};
use crate::relay::{ARRIVAL_LIMIT, READY_LIMIT, STOP_LIMIT};
use crate::servers::{self, connect};
use crate::takeover_bench::{Ha, Reads, SILENCE_LIMIT, wait_ready_body, wait_standby};

/// A standby asks its broker every 30 s, for 10 s at most.
const BROKER_NOTICED: Duration = Duration::from_secs(50);
/// More than a standby waits before it takes a lease that is over.
const LEASE_WAITED: Duration = Duration::from_secs(8);

impl Ha {
    /// Nobody takes the row for a while.
    async fn stays(&self, limit: Duration) {
        let sql = "SELECT epoch FROM statecast.cursor";
        let before = pg::number(&self.sql, sql).await;
        let begun = Instant::now();
        while begun.elapsed() < limit {
            assert_eq!(pg::number(&self.sql, sql).await, before, "somebody has taken the row");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_with_another_login_says_what_it_lacks() {
    let ha = Ha::start(Reads::Poll).await;
    let mut relays = Vec::new();
    for login in ["first", "second"] {
        let url = pg::login(&ha.bench.url, login, "", &format!("GRANT statecast_relay TO {login}")).await;
        let relay = ha.named(login).with("STATECAST_POSTGRES__URL", &url).start();
        relay.wait_ready(READY_LIMIT).await.unwrap();
        relays.push(relay);
    }
    let [leader, standby] = &relays[..] else { unreachable!() };
    ha.leads(leader, READY_LIMIT).await;
    // While all is well: a warning.
    let lacks = "takeover: login second may not end backend";
    let body = wait_ready_body(standby, READY_LIMIT, 200, &format!("warning: {lacks}")).await;
    assert!(body.contains("role: standby") && body.contains("GRANT first TO second"), "{body}");
    leader.pause();
    let body = wait_ready_body(standby, SILENCE_LIMIT, 503, lacks).await;
    println!("{body}");
    ha.stays(LEASE_WAITED).await;
    ha.sql.batch_execute("GRANT first TO second").await.unwrap();
    let granted = Instant::now();
    ha.arrival(1).await;
    println!("published {:?} after the grant", granted.elapsed());
    let body = wait_ready_body(standby, READY_LIMIT, 200, "role: leader").await;
    assert!(!body.contains("takeover"), "{body}");
    leader.resume();
    wait_standby(leader, ARRIVAL_LIMIT).await;
    assert_eq!(ha.stragglers("first"), 0);
    ha.finish(&mut relays).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_without_its_broker_leaves_the_lead_to_others() {
    let ha = Ha::start(Reads::Poll).await;
    let mut leader = ha.leader().await;
    let broker = Proxy::start(format!("127.0.0.1:{}", servers::rabbitmq().await.port())).await;
    let url = broker.url(&ha.bench.topology.url);
    let standby = ha.named("standby").with("STATECAST_RABBITMQ__URLS", &url).start();
    wait_standby(&standby, READY_LIMIT).await;
    broker.refuse(true);
    broker.cut();
    let body = wait_ready_body(&standby, BROKER_NOTICED, 503, "broker: cannot connect to RabbitMQ").await;
    assert!(body.contains("role: standby"), "{body}");
    leader.kill9();
    ha.stays(LEASE_WAITED).await;
    // Somebody who reaches both takes over at once.
    let other = ha.named("other").start();
    ha.leads(&other, READY_LIMIT).await;
    ha.arrival(1).await;
    broker.refuse(false);
    wait_standby(&standby, BROKER_NOTICED).await;
    ha.finish(&mut [other, standby]).await;
}

/// SIGTERM gives the lease back: the next one leads at once. Nobody is named when nobody is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_hands_over_at_once() {
    let ha = Ha::start(Reads::Wal).await;
    let mut leader = ha.leader().await;
    let mut standby = ha.standby("standby").await;
    let shown = async || {
        let cursor = ha.bench.invocation.arguments(&["cursor", "show"]).succeed().await;
        let status = ha.bench.invocation.arguments(&["status", "--json"]).succeed().await;
        (cursor, serde_json::from_str::<serde_json::Value>(&status).unwrap())
    };
    let (cursor, status) = shown().await;
    assert!(
        cursor.contains("lease              for ") && !cursor.contains("holder             -"),
        "{cursor}"
    );
    assert!((0..4001).contains(&status["lease_ms"].as_i64().unwrap()) && status["ready"] == true, "{status}");
    leader.sigterm();
    assert!(leader.wait(STOP_LIMIT).await.is_some_and(|status| status.success()));
    let stopped = Instant::now();
    ha.arrival(1).await;
    println!("published {:?} after the end of the leader", stopped.elapsed());
    assert!(stopped.elapsed() < Duration::from_secs(3));
    standby.pause();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (cursor, status) = shown().await;
    assert!(cursor.contains("lease              over for ") && status["ready"] == false, "{cursor}{status}");
    assert!(
        status["reasons"][0].as_str().unwrap().contains("does not renew its lease (over for"),
        "{status}"
    );
    standby.resume();
    // By itself: nobody else wants to lead.
    ha.leads(&standby, READY_LIMIT).await;
    ha.arrival(2).await;
    ha.finish(std::slice::from_mut(&mut standby)).await;
    let (cursor, status) = shown().await;
    for nobody in ["holder             -", "pids\n", "lease              -"] {
        assert!(cursor.contains(nobody), "{cursor}");
    }
    assert!(status["leader"].is_null() && status["lease_ms"].is_null(), "{status}");
}

/// Somebody keeps the cursor row locked: the leader stops in time, no standby is confused, and all goes on afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_cursor_row_stops_everybody_for_as_long() {
    let ha = Ha::start(Reads::Poll).await;
    let leader = ha.leader().await;
    let standby = ha.standby("standby").await;
    ha.arrival(1).await;
    let person = connect(&ha.bench.url).await.unwrap();
    person.batch_execute("BEGIN; SELECT FROM statecast.cursor FOR UPDATE").await.unwrap();
    let begun = Instant::now();
    assert!(leader.wait_for_sample("statecast_leader", "", READY_LIMIT, |leads| leads == 0.0).await);
    println!("the leader stops after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5));
    tokio::time::sleep(Duration::from_secs(8)).await;
    person.batch_execute("ROLLBACK").await.unwrap();
    let took = ha.arrival(2).await;
    println!("goes on {took:?} after the lock is gone");
    assert!(took < SILENCE_LIMIT);
    ha.finish(&mut [leader, standby]).await;
}

/// A renewal counts from when it was sent: renewals that take 1.8 s each, one after another, are too slow for a leader that
/// publishes for 3 s after each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_counts_from_when_it_was_sent() {
    let ha = Ha::start(Reads::Poll).await;
    let leader = ha.leader().await;
    ha.arrival(1).await;
    ha.sql
        .batch_execute(
            "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(1.8); RETURN NEW; END $$;
             CREATE TRIGGER slow BEFORE UPDATE OF lease_until ON statecast.cursor
             FOR EACH ROW EXECUTE FUNCTION public.slow()",
        )
        .await
        .unwrap();
    let begun = Instant::now();
    let gives_up = Duration::from_secs(10);
    assert!(leader.wait_for_sample("statecast_leader", "", gives_up, |leads| leads == 0.0).await);
    println!("the leader stops after {:?}", begun.elapsed());
    ha.sql.batch_execute("DROP TRIGGER slow ON statecast.cursor").await.unwrap();
    ha.leads(&leader, READY_LIMIT).await;
    ha.arrival(2).await;
    ha.finish(&mut [leader]).await;
}

/// What PostgreSQL says to a statement, wherever in the session, is told apart by its code, and is survived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_a_server_are_told_apart_and_survived() {
    let ha = Ha::start(Reads::Poll).await;
    let mut relay = ha.leader().await;
    ha.sql
        .batch_execute(
            "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'no' USING ERRCODE = TG_ARGV[0]; END $$",
        )
        .await
        .unwrap();
    let codes = [
        ("53100", "postgres-disk"),
        ("53200", "postgres-resources"),
        ("42501", "postgres-privilege"),
        ("55P03", "postgres-contention"),
        ("57P03", "postgres-down"),
        ("25006", "postgres-read-only"),
        ("XX001", "postgres-other"),
    ];
    for (n, (code, kind)) in codes.into_iter().enumerate() {
        let sql = format!(
            "CREATE OR REPLACE TRIGGER fail BEFORE UPDATE ON statecast.cursor
             FOR EACH ROW EXECUTE FUNCTION public.fail('{code}')"
        );
        ha.sql.batch_execute(&sql).await.unwrap();
        assert!(
            relay.wait_for_log(&format!("kind=\"{kind}\""), READY_LIMIT).await,
            "{code}: {}",
            relay.log()
        );
        wait_ready_body(&relay, READY_LIMIT, 503, &format!("(SQLSTATE {code})")).await;
        ha.sql.batch_execute("DROP TRIGGER fail ON statecast.cursor").await.unwrap();
        ha.arrival(n as i64).await;
    }
    ha.finish(&mut [relay]).await;
}

/// A server that takes no writes, as a former primary or a standby does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_server_is_waited_for() {
    let ha = Ha::start(Reads::Poll).await;
    ha.sql.batch_execute("ALTER DATABASE shop SET default_transaction_read_only = on").await.unwrap();
    let mut relay = ha.named("leader").start();
    assert!(relay.wait_for_log("kind=\"postgres-read-only\"", READY_LIMIT).await, "{}", relay.log());
    wait_ready_body(&relay, READY_LIMIT, 503, "takes no writes").await;
    let writable =
        "SET default_transaction_read_only = off; ALTER DATABASE shop RESET default_transaction_read_only";
    ha.sql.batch_execute(writable).await.unwrap();
    ha.leads(&relay, READY_LIMIT).await;
    ha.arrival(1).await;
    ha.finish(&mut [relay]).await;
}

/// The leader is cut off from its broker only: it gives the lead up, and does not take it back before it reaches it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_from_its_broker_gives_the_lead_up() {
    let ha = Ha::start(Reads::Poll).await;
    let leader = ha.leader().await;
    let standby = ha.standby("standby").await;
    ha.arrival(1).await;
    let begun = Instant::now();
    ha.broker.set(Mode::HalfOpen);
    ha.arrival(2).await;
    println!("the standby publishes after {:?}", begun.elapsed());
    ha.leads(&standby, READY_LIMIT).await;
    wait_ready_body(&leader, READY_LIMIT, 503, "RabbitMQ").await;
    ha.heal();
    wait_standby(&leader, READY_LIMIT * 2).await;
    assert_eq!(ha.stragglers("leader"), 0);
    ha.finish(&mut [leader, standby]).await;
}
