//! A page must cost the same however large the archive is. Read from plans, not from a clock.

use statecast::config::SecretString;
use statecast::contract::Position;
use statecast::snapshot::Snapshot;
use statecast::source::poll::sql::PAGE;
use statecast::store::parked::write::Deltas;
use statecast::store::{cursor, install, preflight};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

use crate::keeping::plain_commit;
use crate::servers::{connect, fresh_database};

const CHUNKS: i64 = 20;
const OPEN: usize = 5;
const PAGE_ROWS: i64 = 500;

/// Rows per chunk: 250,000 makes the five million rows of the full test.
fn chunk_rows() -> i64 {
    std::env::var("STATECAST_TEST_CHUNK_ROWS").ok().map_or(3_000, |rows| rows.parse().unwrap())
}

async fn insert(client: &Client, rows: i64) {
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
               SELECT 'order', (i % 100)::text, 'changed', '{\"n\": 1}' FROM generate_series(1, $1::bigint) i";
    client.execute(sql, &[&rows]).await.unwrap();
}

async fn last_seq(client: &Client) -> i64 {
    let sql =
        "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Writes the cursor as a relay that has settled everything would, until the floor has followed to `floor_seq`:
/// transactions of other tests on the same server hold it back for a while.
async fn settle(client: &Client, epoch: i64, floor_seq: i64) -> Position {
    let statement = cursor::prepare_advance(client, "plans").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    for id in 0.. {
        let max_seq = last_seq(client).await;
        let row = client
            .query_one(
                "SELECT pg_current_snapshot()::text, max_seq FROM statecast.cursor WHERE pipeline = 'plans'",
                &[],
            )
            .await
            .unwrap();
        let snapshot: Arc<Snapshot> = Arc::new(row.get::<_, String>(0).parse().unwrap());
        let now = Position { snapshot, prune_seq: row.get(1), window: None };
        let commit = plain_commit(id, now.clone(), true, max_seq, 0);
        let floor =
            cursor::advance(client, &statement, "plans", epoch, &commit, &Deltas::default()).await.unwrap();
        if id >= 3 && floor >= floor_seq {
            return now;
        }
        assert!(Instant::now() < deadline, "the floor stays at {floor}");
    }
    unreachable!("the deadline ends it")
}

/// Buffers touched by a page of [`PAGE_ROWS`] rows behind `settled` rows, with transactions open.
async fn page_buffers(settled: i64, chunk_rows: i64) -> i64 {
    let url = fresh_database().await;
    let postgres = statecast::config::Postgres {
        url: SecretString::new(url.clone()),
        tls: statecast::config::Tls::default(),
    };
    let (mut client, _guard) = statecast::postgres::connect(&postgres, "plans").await.unwrap();
    install::install(&mut client, chunk_rows).await.unwrap();
    for _ in 0..(settled / chunk_rows) {
        insert(&client, chunk_rows).await;
        statecast::store::chunks::ensure_chunks(&client, chunk_rows).await.unwrap();
    }
    client.batch_execute("ANALYZE statecast.outbox").await.unwrap();
    let server = preflight::preflight(&client, None).await.unwrap();
    let claim = cursor::claim(&mut client, "plans", &server, cursor::Start::Oldest, "plans", 10_000, None)
        .await
        .unwrap();
    settle(&client, claim.epoch, settled / chunk_rows * chunk_rows).await;

    let mut open = Vec::new();
    for _ in 0..OPEN {
        let writer = connect(&url).await.unwrap();
        writer.batch_execute("BEGIN").await.unwrap();
        insert(&writer, 1).await;
        open.push(writer);
    }
    // Something completes after them, so that P lists them as running.
    insert(&client, 1).await;
    let position = settle(&client, claim.epoch, 0).await;
    // An autovacuum that analyses may run at that moment as well.
    assert!(position.snapshot.xip.len() >= OPEN, "{}", position.snapshot);
    insert(&client, PAGE_ROWS).await;
    for writer in &open {
        writer.batch_execute("COMMIT").await.unwrap();
    }
    let floor: i64 = client.query_one("SELECT floor_seq FROM statecast.cursor", &[]).await.unwrap().get(0);
    assert_eq!(floor, settled / chunk_rows * chunk_rows, "the floor followed the settled rows");
    let (buffers, rows, plan) = explain(&client, &position, floor).await;
    println!("{settled} settled rows: {buffers} buffers for {rows} rows\n{plan}");
    assert_eq!(rows, PAGE_ROWS + OPEN as i64 + 1, "the head and every new row");
    buffers
}

/// Shared buffers hit or read, rows, and the plan.
async fn explain(client: &Client, position: &Position, floor: i64) -> (i64, i64, String) {
    client
        .batch_execute(&format!(
            "SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off;
             SET enable_bitmapscan = off;
             PREPARE page (text, text, text, text, bigint, bigint, bigint, bigint, bigint, bigint) AS {PAGE}"
        ))
        .await
        .unwrap();
    let (p, xmax, prune) = (&position.snapshot, position.snapshot.xmax, position.prune_seq);
    let sql = format!(
        "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, FORMAT JSON)
         EXECUTE page ('plans', '{p}', NULL, '{xmax}', 0, {prune}, {floor}, NULL, 1000, 1000000)"
    );
    // The first execution also reads catalogs into caches; the page is the second one.
    client.query_one(&sql, &[]).await.unwrap();
    let text: String = client.simple_query(&sql).await.unwrap().into_iter().find_map(text_of).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let plan = &json[0]["Plan"];
    let count = |name: &str| plan[name].as_i64().unwrap();
    let buffers = count("Shared Hit Blocks") + count("Shared Read Blocks");
    (buffers, count("Actual Rows"), serde_json::to_string(plan).unwrap().chars().take(300).collect())
}

fn text_of(message: tokio_postgres::SimpleQueryMessage) -> Option<String> {
    match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_costs_the_same_behind_a_large_archive() {
    let rows = chunk_rows();
    let small = page_buffers(0, rows).await;
    let large = page_buffers(rows * CHUNKS, rows).await;
    println!(
        "buffers per page: {small} with no settled rows, {large} with {} in {CHUNKS} chunks",
        rows * CHUNKS
    );
    assert!(
        (large as f64) <= small as f64 * 1.2,
        "a page touched {large} buffers behind {} settled rows and {small} with none",
        rows * CHUNKS
    );
}
