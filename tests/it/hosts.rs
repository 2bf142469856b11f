//! Several hosts in `postgres.url`, several in `rabbitmq.urls`: those that say nothing do not keep us from those that do.

use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::pg;
use crate::servers;

/// For three connections where one host is found to be silent: 3 s once, and the rest.
const LIMIT: Duration = Duration::from_secs(8);

/// A host whose kernel accepts and whose server is frozen: its address.
async fn frozen() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut accepted = Vec::new();
        while let Ok(connection) = listener.accept().await {
            accepted.push(connection);
        }
    });
    address
}

#[tokio::test]
async fn a_frozen_host_that_is_listed_first_keeps_nobody_out() {
    let url = servers::fresh_database().await;
    let (before, after) = url.split_once('@').unwrap();
    let url = format!("{before}@{},{after}", frozen().await);
    let config = pg::config(&url);
    let begun = Instant::now();
    for _ in 0..3 {
        let (client, _guard) = statecast::postgres::connect(&config, "test").await.unwrap();
        assert_eq!(pg::number(&client, "SELECT 1::bigint").await, 1);
    }
    println!("three connections took {:?}", begun.elapsed());
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let pool = statecast::postgres::pool(&config, "test", 1).unwrap();
    assert_eq!(pg::number(&pool.get().await.unwrap(), "SELECT 1::bigint").await, 1);
    // Nobody is there: said, and not for ever.
    let alone = pg::config(&format!("{before}@{}/d", frozen().await));
    let error = statecast::postgres::connect(&alone, "test").await.err().unwrap().to_string();
    assert!(error.starts_with("no answer from PostgreSQL at 127.0.0.1:"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_broker_is_waited_for_once() {
    let url = servers::rabbitmq().await.url();
    let env = [
        ("STATECAST_POSTGRES__URL".to_owned(), "postgres://u@h/d".to_owned()),
        ("STATECAST_RABBITMQ__URLS".to_owned(), format!("amqp://{} {url}", frozen().await)),
    ];
    let config = statecast::config::load(None, env.into_iter()).unwrap();
    let begun = Instant::now();
    // In random order: of so many attempts one begins with the wrong one.
    for _ in 0..12 {
        let connection = statecast::sink::connect::connect(&config.rabbitmq, "test").await.unwrap();
        statecast::sink::connect::close(&connection).await;
    }
    println!("twelve connections took {:?}", begun.elapsed());
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}
