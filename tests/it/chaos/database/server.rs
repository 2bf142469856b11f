//! The server restarts, fails over, or ends the relay's connections.

use statecast::sandbox::{Postgres, PostgresOptions};

use crate::chaos::trouble::Trouble;
use crate::relay::Bench;
use crate::servers::{self, connect};
use crate::wal_bench::{WalBench, wait_streamed, wait_streaming};
use crate::wal_standby::{Pair, synchronous};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_restarts_while_it_is_polled() {
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = server.create_database("shop").await.unwrap();
    let trouble = Trouble::begin(Bench::new(url, servers::rabbitmq().await).await).await;
    for _ in 0..2 {
        server.restart().await.unwrap();
        trouble.flows(200).await;
    }
    trouble.end_with(|_| {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_restarts_while_it_streams() {
    let (bench, mut server) = WalBench::start(&[]).await.into_parts();
    let trouble = Trouble::begin(bench).await;
    for _ in 0..2 {
        wait_streaming(&trouble.relay).await;
        wait_streamed(&trouble.relay, 100).await;
        // A fast shutdown waits for walsenders: a relay that did not let go would hold it up.
        server.restart().await.unwrap();
        trouble.flows(200).await;
    }
    trouble.end_with(|_| {}).await;
}

/// Somebody ends the relay's connections, one kind after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_ends_each_of_the_relays_connections() {
    let bench = WalBench::start(&[]).await;
    let pipeline = bench.pipeline.clone();
    let (bench, server) = bench.into_parts();
    let admin = connect(&server.url("postgres")).await.unwrap();
    let trouble = Trouble::begin(bench).await;
    for part in ["keeper", "source", "stream", "upkeep", "%"] {
        wait_streaming(&trouble.relay).await;
        wait_streamed(&trouble.relay, 100).await;
        let name = format!("statecast {pipeline} {part}");
        let sql =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE $1";
        let ended: i64 = admin.query_one(sql, &[&name]).await.unwrap().get(0);
        assert!(ended > 0, "there is no {name:?}");
        println!("{name}: {ended} ended");
        trouble.flows(200).await;
    }
    trouble.end().await;
}

/// What the new primary has was published, what was published the new primary has: the standby is a synchronous one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_fails_over_to_its_standby_while_it_is_polled() {
    let mut pair = Pair::start().await;
    synchronous(&connect(&pair.primary.url("postgres")).await.unwrap(), "sb").await;
    pair.primary.create_database("shop").await.unwrap();
    let bench = Bench::new(pair.url("shop"), servers::rabbitmq().await).await;
    let trouble = Trouble::begin(bench).await;
    pair.primary.kill9();
    pair.standby.promote().await.unwrap();
    trouble.flows(200).await;
    assert!(trouble.relay.log().contains("timeline has changed"), "{}", trouble.relay.log());
    trouble.end_with(|_| {}).await;
}
