//! Several hosts in `postgres.url`, several in `rabbitmq.urls`: those that say nothing do not keep us from those that do.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

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

/// A way to a server on which nothing passes for so long.
async fn slow(server: String, delay: Duration) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let mut server = TcpStream::connect(server).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    address
}

/// A server that says at once that it is not ready.
async fn starting() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut said = [0; 1024];
                // Asked for TLS: no. Then for a session.
                while let Ok(read @ 1..) = client.read(&mut said).await {
                    let answer: &[u8] =
                        if read == 8 { b"N" } else { b"E\0\0\0\x1cSFATAL\0C57P03\0Mnot yet\0\0" };
                    client.write_all(answer).await.unwrap();
                }
            });
        }
    });
    address
}

/// A server that is slow is found beside one that refuses at once: not the first time, which is for who is quick, but the next.
#[tokio::test]
async fn a_slow_host_beside_one_that_refuses_is_reached() {
    let url = servers::fresh_database().await;
    let (before, after) = url.split_once('@').unwrap();
    let (server, database) = after.split_once('/').unwrap();
    let slow = slow(server.to_owned(), Duration::from_secs(4)).await;
    let config = pg::config(&format!("{before}@{slow},{}/{database}", starting().await));
    let refused = statecast::postgres::connect(&config, "test").await.err().unwrap();
    assert!(format!("{refused:?}").contains("57P03"), "{refused:?}");
    let (client, _guard) = statecast::postgres::connect(&config, "test").await.unwrap();
    assert_eq!(pg::number(&client, "SELECT 1::bigint").await, 1);
}
