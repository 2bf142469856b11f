//! What the web console asks PostgreSQL for: it costs little whatever lies in the tables, and says what is so.

use statecast::contract::Act;
use statecast::store::parked::people::{COUNTED_MAX, Matching, Request, Selector, ask, brief, list};
use statecast::store::story::{HEADERS_CHARS_MAX, LOOKED_AT_MAX, find, last, of_entity};
use tokio_postgres::{Client, GenericClient};
use uuid::Uuid;

use crate::relay::Bench;

const PIPELINE: &str = "shop";

/// Sets `count` made-up events aside, numbers from 1.
async fn set_aside(client: &Client, count: i64, state: &str, payload: &str) {
    let sql = format!(
        "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                schema_version, payload, recorded_at, state, reason)
         SELECT '{PIPELINE}', n, pg_current_xact_id(), 1, gen_random_uuid(), 'order', '1', 'placed', '1.0.0', {payload},
                clock_timestamp(), '{state}', 'too_large'
           FROM generate_series(1, {count}) n"
    );
    client.batch_execute(&sql).await.unwrap();
}

/// Looks into stored payloads, of this transaction.
async fn fetched(client: &impl GenericClient) -> i64 {
    let sql = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_xact_all_tables
                WHERE relid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'statecast.parked'::regclass)";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_of_parked_events_reads_no_payload() {
    let bench = Bench::shared().await;
    let mut client = bench.client().await;
    // What does not compress lies outside of the row.
    let large = "(SELECT json_build_object('x', string_agg(md5((random() * n + i)::text), '')) FROM generate_series(1, 1000) i)";
    set_aside(&client, 20, "parked", large).await;
    let selector = Selector::default();
    let transaction = client.transaction().await.unwrap();
    // What wrote them looked into the same table.
    let before = fetched(&transaction).await;
    let (rows, matching) = brief(&transaction, PIPELINE, &selector, 100).await.unwrap();
    assert_eq!((rows.len(), matching), (20, Matching::Exactly(20)));
    assert_eq!(fetched(&transaction).await, before);
    // The list of `statecast parked` does: this would be seen.
    let (rows, _) = list(&transaction, PIPELINE, &selector, 100).await.unwrap();
    assert!(rows.iter().all(|row| row.payload_bytes > Some(32_000)));
    assert!(fetched(&transaction).await >= before + 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counting_has_an_end() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    set_aside(&client, COUNTED_MAX, "queued", "NULL").await;
    let selector = Selector::default();
    let (rows, matching) = brief(&client, PIPELINE, &selector, 100).await.unwrap();
    assert_eq!((rows.len(), matching), (100, Matching::Exactly(COUNTED_MAX)));
    let more = "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                schema_version, recorded_at, state)
         VALUES ($1, 20000, pg_current_xact_id(), 1, gen_random_uuid(), 'order', '1', 'placed', '1.0.0', clock_timestamp(), 'queued')";
    client.execute(more, &[&PIPELINE]).await.unwrap();
    assert_eq!(brief(&client, PIPELINE, &selector, 100).await.unwrap().1, Matching::More);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ticks_one_of_two_events_with_the_same_id_means_that_one() {
    let bench = Bench::shared().await;
    let mut client = bench.client().await;
    set_aside(&client, 3, "parked", "'{}'").await;
    let id = Uuid::from_u128(0x4711);
    client.execute("UPDATE statecast.parked SET event_id = $1 WHERE seq < 3", &[&id]).await.unwrap();
    let selector = Selector { event_ids: vec![id], seqs: vec![2], ..Selector::default() };
    let request =
        Request { act: Act::Discard, selector: &selector, said: "x", actor: "test", why: Some("y") };
    let requested = ask(&mut client, PIPELINE, &request).await.unwrap();
    assert_eq!((requested.asked, requested.already, requested.busy), (1, 0, 0));
    let sql = "SELECT seq FROM statecast.parked WHERE request = 'discard'";
    let asked: Vec<i64> = client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(asked, [2]);
    // A number whose row is another event's.
    let selector = Selector { event_ids: vec![id], seqs: vec![3], ..Selector::default() };
    let request = Request { selector: &selector, ..request };
    let requested = ask(&mut client, PIPELINE, &request).await.unwrap();
    assert_eq!((requested.asked, requested.not_found), (0, vec![id]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_search_among_what_is_set_aside_has_an_end() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    set_aside(&client, LOOKED_AT_MAX + 1, "queued", "NULL").await;
    let sql = "SELECT event_id FROM statecast.parked WHERE seq = $1";
    let oldest: Uuid = client.query_one(sql, &[&1_i64]).await.unwrap().get(0);
    let newest: Uuid = client.query_one(sql, &[&(LOOKED_AT_MAX + 1)]).await.unwrap().get(0);
    assert!(find(&client, PIPELINE, oldest).await.unwrap().told.is_some());
    let found = find(&client, PIPELINE, newest).await.unwrap();
    assert_eq!((found.told, found.looked_aside), (None, LOOKED_AT_MAX));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_are_told_in_part() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    let sql = "SELECT statecast.publish('order', ' A ', 'placed', '{}', headers => $1::text::json)";
    for note in ["short".to_owned(), "ä".repeat(10_000)] {
        let headers = serde_json::json!({ "note": note }).to_string();
        client.execute(sql, &[&headers]).await.unwrap();
    }
    let told = of_entity(&client, PIPELINE, "order", " A ", 10).await.unwrap();
    assert_eq!(told[0].headers.as_deref(), Some("{\"note\":\"short\"}"));
    let long = told[1].headers.as_deref().unwrap();
    assert!(long.chars().count() == HEADERS_CHARS_MAX + 1 && long.ends_with('…'), "{long}");
    assert_eq!(last(&client, PIPELINE, None, 10).await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cursor_of_another_server_says_nothing_about_events() {
    let bench = Bench::shared().await;
    let client = bench.client().await;
    client.execute("SELECT statecast.publish('order', '1', 'placed', '{}')", &[]).await.unwrap();
    let sql = format!(
        "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, epoch, snapshot, prune_seq, floor_seq, max_seq)
         SELECT '{PIPELINE}', system_identifier, 1, 1, pg_current_snapshot(), 0, 0, 0 FROM pg_control_system()"
    );
    client.batch_execute(&sql).await.unwrap();
    let passed = async || last(&client, PIPELINE, None, 1).await.unwrap()[0].passed;
    assert_eq!(passed().await, Some(true));
    client
        .execute("UPDATE statecast.cursor SET system_identifier = system_identifier + 1", &[])
        .await
        .unwrap();
    assert_eq!(passed().await, None);
}
