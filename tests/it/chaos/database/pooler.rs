//! pgbouncer in front of the database. (Missing, the tests fail: `make deps` installs it.)

use std::time::{Duration, Instant};

use statecast::sandbox::{Pgbouncer, PoolMode, Postgres, PostgresOptions};

use crate::chaos::trouble::Trouble;
use crate::relay::Bench;
use crate::servers::{self, connect};

const LIMIT: Duration = Duration::from_secs(30);
/// What an operator has to read.
const REMEDY: &str = "pool_mode = session";

async fn bench(server: &Postgres, bouncer: &Pgbouncer) -> Bench {
    let url = server.create_database("shop").await.unwrap();
    let mut bench = Bench::new(url, servers::rabbitmq().await).await;
    bench.invocation = bench.invocation.with("STATECAST_POSTGRES__URL", &bouncer.url("shop"));
    bench
}

/// In transaction mode locks and settings would be somebody else's. That is said, at once, and nothing is left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_pooler_in_transaction_mode_is_refused() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let bouncer = Pgbouncer::start(&server, PoolMode::Transaction).await.unwrap();
    let bench = bench(&server, &bouncer).await;
    // Beside an idle pool and a busy one.
    for busy in [false, true] {
        let stop = tokio_util::sync::CancellationToken::new();
        let others: Vec<_> = (0..4)
            .filter(|_| busy)
            .map(|_| tokio::spawn(customer(bouncer.url("shop"), stop.clone())))
            .collect();
        let begun = Instant::now();
        let (code, _, log) = bench.invocation.output(LIMIT).await;
        println!("busy {busy}: refused after {:?}", begun.elapsed());
        assert_eq!(code, Some(1), "{log}");
        let last = log.trim_end().lines().last().unwrap();
        assert!(last.contains(REMEDY) && last.contains("pooler"), "{log}");
        let (code, report, _) = bench.invocation.arguments(&["check"]).output(LIMIT).await;
        assert!(code == Some(1) && report.contains(REMEDY), "{report}");
        stop.cancel();
        for other in others {
            other.await.unwrap();
        }
    }
    let client = connect(&server.url("shop")).await.unwrap();
    let sql = "SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')
                    + (SELECT count(*) FROM statecast.cursor)";
    assert_eq!(client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 0, "something was left behind");
}

/// Somebody else who uses the pool.
async fn customer(url: String, stop: tokio_util::sync::CancellationToken) {
    let client = connect(&url).await.unwrap();
    while !stop.is_cancelled() {
        client.simple_query("BEGIN; SELECT pg_sleep(0.002); COMMIT").await.unwrap();
    }
}

/// In session mode it is a connection like any other; streaming needs one of its own, so `auto` polls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn database_pooler_in_session_mode_works() {
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let bouncer = Pgbouncer::start(&server, PoolMode::Session).await.unwrap();
    let mut bench = bench(&server, &bouncer).await;
    bench.invocation = bench.invocation.with("STATECAST_SOURCE__MODE", "auto");
    bench.invocation.arguments(&["install"]).succeed().await;
    let trouble = Trouble::begin(bench).await;
    trouble.flows(500).await;
    assert_eq!(trouble.failures().await, 0.0, "{}", trouble.relay.log());
    println!("{:?}\n{}", trouble.relay.get("/ready").await, trouble.relay.log());
    trouble.end().await;
}
