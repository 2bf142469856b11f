//! Commits that wait for their synchronous standby: the WAL holds them, nobody may see them yet. The server sends them
//! to the relay all the same, and leaves them out where a slot's stream begins behind them.

use std::time::Duration;

use statecast::sandbox::{Rabbitmq, RabbitmqOptions};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use uuid::Uuid;

use super::{Pair, SILENCE, STEP_LIMIT, Shop, assert_streaming, change, synchronous, until};
use crate::consumer::Consumer;
use crate::relay::ARRIVAL_LIMIT;
use crate::servers::{self, connect};

/// Commits that wait at the same time.
const WRITERS: usize = 6;
/// Changes that each writer makes as soon as its commit has returned.
const FOLLOWING: usize = 20;
/// By now a changed setting was seen; twice the interval, for a busy machine.
const NOTICED: Duration = Duration::from_secs(2);

struct Waiting {
    events: Vec<Uuid>,
    /// Ends when the commit has returned, and what follows it.
    writers: Vec<JoinHandle<()>>,
}

/// A synchronous pair with a shop.
async fn synchronous_shop() -> (Pair, Shop, Consumer, Client) {
    let pair = Pair::start().await;
    let admin = connect(&pair.primary.url("postgres")).await.unwrap();
    synchronous(&admin, "sb").await;
    let shop = pair.bench(servers::rabbitmq().await).await;
    let consumer = shop.bench.consumer();
    (pair, shop, consumer, admin)
}

/// Starts commits that wait for the standby, which is paused; returns when all of them do.
async fn wait_for_standby(shop: &Shop, admin: &Client, following: usize) -> Waiting {
    let mut waiting = Waiting { events: Vec::new(), writers: Vec::new() };
    for number in 1..=WRITERS {
        let (client, key) = (shop.bench.client().await, format!("k{number:02}"));
        waiting.events.push(change(&client, &key).await.unwrap());
        waiting.writers.push(tokio::spawn(async move {
            client.batch_execute("COMMIT").await.unwrap();
            for _ in 0..following {
                change(&client, &key).await.unwrap();
                client.batch_execute("COMMIT").await.unwrap();
            }
        }));
    }
    let sql = format!("SELECT count(*) = {WRITERS} FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    until(admin, &sql).await;
    waiting
}

async fn all_return(waiting: Waiting) {
    for writer in waiting.writers {
        tokio::time::timeout(STEP_LIMIT, writer).await.expect("a commit hangs").unwrap();
    }
}

/// Nothing of `events` comes for a while.
async fn assert_silence(consumer: &Consumer, events: &[Uuid]) {
    let missing = consumer.wait_for(SILENCE, |deliveries| {
        deliveries.iter().any(|delivery| events.contains(&delivery.seen().event_id))
    });
    assert!(!missing.await, "published before the standby has it");
}

/// A transaction with an id, open until it is rolled back (which waits for nobody).
async fn open_transaction(pair: &Pair) -> (Client, String) {
    let client = connect(&pair.primary.url("postgres")).await.unwrap();
    client.batch_execute("BEGIN").await.unwrap();
    let row = client.query_one("SELECT pg_current_xact_id()::xid::text", &[]).await.unwrap();
    (client, row.get(0))
}

/// Waits until the relay's walsender waits for a transaction, as it does inside the creation of a slot.
async fn creation_waits_for(admin: &Client, shop: &Shop, xid: &str) {
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
         WHERE NOT granted AND transactionid = '{xid}' AND application_name = '{}')",
        shop.stream
    );
    until(admin, &sql).await;
}

/// Decoding is consistent once two rounds of running transactions have ended (`snapbuild.c`). What commits after the
/// second round was listed is not waited for: its commit record lies before the stream's begin, and while it waits
/// for its standby no poll sees it either. Its key's next event must not overtake it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_while_the_slot_is_created_is_neither_early_nor_lost_nor_overtaken() {
    let (mut pair, shop, consumer, admin) = synchronous_shop().await;
    let (first, first_xid) = open_transaction(&pair).await;
    let relay = shop.bench.relay().await;
    creation_waits_for(&admin, &shop, &first_xid).await;
    let polled = shop.bench.publish("order", "polled", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [polled]).await, 0, "it polls meanwhile");
    let (second, second_xid) = open_transaction(&pair).await;
    first.batch_execute("ROLLBACK").await.unwrap();
    creation_waits_for(&admin, &shop, &second_xid).await;

    pair.standby.pause();
    let waiting = wait_for_standby(&shop, &admin, FOLLOWING).await;
    second.batch_execute("ROLLBACK").await.unwrap();
    let slot = "SELECT EXISTS (SELECT FROM pg_replication_slots
                WHERE slot_name LIKE 'statecast\\_%' AND temporary AND confirmed_flush_lsn IS NOT NULL)";
    until(&admin, slot).await;
    assert_silence(&consumer, &waiting.events).await;
    assert!(admin.query_one(slot, &[]).await.unwrap().get::<_, bool>(0), "it gave its slot up");

    pair.standby.resume();
    all_return(waiting).await;
    shop.wait_until_streaming(&relay).await;
    shop.bench.publish("order", "polled", 2).await;
    let verdict = shop.bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!(verdict.committed, 2 + WRITERS * (1 + FOLLOWING));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_commit_is_published_when_its_standby_has_it_or_nobody_waits_for_it_any_more() {
    let (mut pair, shop, consumer, admin) = synchronous_shop().await;
    let relay = shop.streaming_relay().await;
    for cancelled in [false, true] {
        pair.standby.pause();
        let waiting = wait_for_standby(&shop, &admin, 3).await;
        shop.wait_until_sent().await;
        assert_silence(&consumer, &waiting.events).await;
        assert_streaming(&relay).await;
        if cancelled {
            // Committed here, with a warning; the standby may or may not have it. What they write next waits again.
            let cancel =
                "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
            admin.execute(cancel, &[]).await.unwrap();
        } else {
            pair.standby.resume();
        }
        let missing = consumer.wait_for_ids(STEP_LIMIT, waiting.events.iter().copied()).await;
        assert_eq!(missing, 0, "cancelled: {cancelled}");
        pair.standby.resume();
        all_return(waiting).await;
    }
    let verdict = shop.bench.finish(&mut [relay], &consumer).await;
    verdict.assert_clean();
    assert_eq!((verdict.committed, verdict.duplicates), (2 * WRITERS * 4, 0));
}

/// The setting may come while a relay streams, which looks every second (`docs/order.md`). What commits before it has
/// looked may go out early: until then it is as if the setting were not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_waits_for_a_standby_that_became_synchronous_while_it_ran() {
    let mut pair = Pair::start().await;
    let shop = pair.bench(servers::rabbitmq().await).await;
    let consumer = shop.bench.consumer();
    let relay = shop.streaming_relay().await;
    let early = shop.bench.publish("order", "early", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [early]).await, 0);
    let admin = connect(&pair.primary.url("postgres")).await.unwrap();
    synchronous(&admin, "sb").await;
    // Nothing outside shows that it has looked.
    tokio::time::sleep(NOTICED).await;
    pair.standby.pause();
    let waiting = wait_for_standby(&shop, &admin, 3).await;
    shop.wait_until_sent().await;
    assert_silence(&consumer, &waiting.events).await;
    assert_streaming(&relay).await;
    pair.standby.resume();
    all_return(waiting).await;
    shop.bench.finish(&mut [relay], &consumer).await.assert_clean();
}

/// A stream that waits for a stranger's standby holds nothing back that has committed, and lags: polling takes over after
/// `lag_max`, also where the broker was slow when the wait began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_committed_does_not_wait_for_a_standby_of_others() {
    let mut pair = Pair::start().await;
    let admin = connect(&pair.primary.url("postgres")).await.unwrap();
    synchronous(&admin, "sb").await;
    let mut broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
    let mut shop = pair.bench(&broker).await;
    let settings = [("STATECAST_RELAY__READ_AHEAD", "1MiB"), ("STATECAST_SOURCE__WAL__LAG_MAX", "2s")];
    for (name, value) in settings {
        shop.bench.invocation = shop.bench.invocation.clone().with(name, value);
    }
    let consumer = shop.bench.consumer();
    let relay = shop.streaming_relay().await;
    let first = shop.bench.publish("order", "first", 1).await;
    assert_eq!(consumer.wait_for_ids(ARRIVAL_LIMIT, [first]).await, 0);
    // More than the relay holds, so that the stream has to wait for it.
    broker.pause();
    let writer = shop.bench.client().await;
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
               SELECT 'order', 'n' || i, 'changed', json_build_object('key', 'n' || i, 'n', 1, 'pad', repeat('x', 8000))
                 FROM generate_series(1, 130) i";
    writer.execute(sql, &[]).await.unwrap();
    let mut committed = Vec::new();
    for n in 0..8 {
        committed.push(shop.bench.publish("order", &format!("small{n}"), 1).await);
    }
    pair.standby.pause();
    let waiting = wait_for_standby(&shop, &admin, 0).await;
    shop.wait_until_sent().await;
    broker.resume();
    writer.batch_execute("SET synchronous_commit = local").await.unwrap();
    let local =
        "SELECT statecast.publish('order', 'local', 'changed', '{\"key\": \"local\", \"n\": 1}'::json)";
    committed.push(writer.query_one(local, &[]).await.unwrap().get(0));
    assert_eq!(consumer.wait_for_ids(STEP_LIMIT / 2, committed).await, 0, "{}", relay.log());
    assert_silence(&consumer, &waiting.events).await;
    pair.standby.resume();
    all_return(waiting).await;
    shop.bench.finish(&mut [relay], &consumer).await.assert_clean();
}
