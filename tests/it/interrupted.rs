//! Upkeep that was cut off, at every step: the next call repairs it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use statecast::config::Retention;
use statecast::store::chunks::{Alarm, Postponed, ensure_chunks, list_chunks};
use statecast::store::retention::retain;

use crate::chunks::{CHUNK_ROWS, fill, no_gap, retention, rows, settle};
use crate::pg::{Session, installed, number, open};

async fn tables(session: &Session) -> i64 {
    number(
        session,
        "SELECT count(*) FROM pg_class WHERE relnamespace = 'statecast'::regnamespace AND relkind = 'r'
         AND relname ~ '^outbox_'",
    )
    .await
}

/// Leaves the detach of `table` pending: another session's lock holds up its second step.
async fn pending_detach(url: &str, admin: &Session, table: &str) {
    let reader = open(url).await;
    reader.batch_execute("BEGIN; SELECT 1 FROM statecast.outbox LIMIT 1").await.unwrap();
    admin.batch_execute("SET lock_timeout = '50ms'").await.unwrap();
    let sql = format!("ALTER TABLE statecast.outbox DETACH PARTITION statecast.{table} CONCURRENTLY");
    let error = admin.batch_execute(&sql).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "55P03");
    admin.batch_execute("RESET lock_timeout").await.unwrap();
    assert!(list_chunks(admin).await.unwrap().iter().any(|chunk| chunk.detaching && chunk.table == table));
}

pub(crate) async fn interrupted_detach_is_finalised(url: &str) {
    let url = installed(url, "it_pending", CHUNK_ROWS).await;
    let admin = open(&url).await;
    pending_detach(&url, &admin, "outbox_tail_16001").await;
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!((state.postponed, state.alarms.len()), (None, 0));
    no_gap(&admin).await;
    // Retention: emptied, recorded, and stopped in the detach.
    fill(&admin, 2 * CHUNK_ROWS).await;
    settle(&admin, "orders", 2 * CHUNK_ROWS).await;
    admin
        .batch_execute(
            "INSERT INTO statecast.chunk (lo, hi, rows) VALUES (1, 1001, 1000); TRUNCATE statecast.outbox_1",
        )
        .await
        .unwrap();
    pending_detach(&url, &admin, "outbox_1").await;
    let report = retain(&admin, &retention(Duration::from_secs(3600), u64::MAX)).await.unwrap();
    assert_eq!(report.postponed, None);
    no_gap(&admin).await;
    assert_eq!(list_chunks(&admin).await.unwrap()[0].lo, 1001);
    assert_eq!(tables(&admin).await as usize, list_chunks(&admin).await.unwrap().len());
    // An old snapshot holds FINALIZE up: that is reported, inserts go on, and the next call ends it.
    let reader = open(&url).await;
    reader
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM statecast.outbox LIMIT 1")
        .await
        .unwrap();
    let tail = list_chunks(&admin).await.unwrap().pop().unwrap().table;
    pending_detach(&url, &admin, &tail).await;
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!(state.postponed, Some(Postponed::Detaching));
    fill(&admin, 10).await;
    reader.batch_execute("COMMIT").await.unwrap();
    assert_eq!(ensure_chunks(&admin, CHUNK_ROWS).await.unwrap().postponed, None);
    no_gap(&admin).await;
}

/// The tail's detach is pending, an old snapshot elsewhere in the database keeps it so, and the writers come near.
pub(crate) async fn pending_tail_never_fails_an_insert(url: &str) {
    let url = installed(url, "it_near", CHUNK_ROWS).await;
    let (admin, report) = (open(&url).await, open(&url).await);
    report
        .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM pg_class LIMIT 1")
        .await
        .unwrap();
    pending_detach(&url, &admin, "outbox_tail_16001").await;
    fill(&admin, 15 * CHUNK_ROWS + 10).await;
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!((state.postponed, state.alarms, state.created), (None, Vec::new(), 16));
    no_gap(&admin).await;
    fill(&admin, 2 * CHUNK_ROWS).await;
    assert_eq!(rows(&admin).await, 17 * CHUNK_ROWS + 10);
    report.batch_execute("COMMIT").await.unwrap();
}

pub(crate) async fn crash_states_are_repaired(url: &str) {
    let url = installed(url, "it_crash", CHUNK_ROWS).await;
    let admin = open(&url).await;
    fill(&admin, 10).await;
    let like = "(LIKE statecast.outbox INCLUDING DEFAULTS INCLUDING CONSTRAINTS)";
    // Chunks made, not attached.
    admin
        .batch_execute(&format!(
            "SET ROLE statecast_owner; CREATE TABLE statecast.outbox_16001 {like};
             CREATE TABLE statecast.outbox_tail_17001 {like}; RESET ROLE"
        ))
        .await
        .unwrap();
    ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!(tables(&admin).await, 17);
    // Tail off, nothing attached yet; then the same with new chunks attached but the old tail not dropped.
    admin
        .batch_execute(
            "ALTER TABLE statecast.outbox DETACH PARTITION statecast.outbox_tail_16001 CONCURRENTLY",
        )
        .await
        .unwrap();
    ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    no_gap(&admin).await;
    let after = tables(&admin).await;
    admin
        .batch_execute(&format!(
            "SET ROLE statecast_owner; CREATE TABLE statecast.outbox_tail_9001 {like}; RESET ROLE"
        ))
        .await
        .unwrap();
    ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!(tables(&admin).await, after);
    // A tail that came off with a row in it goes back, and its row with it.
    let tail = list_chunks(&admin).await.unwrap().pop().unwrap();
    admin
        .batch_execute(&format!("SELECT setval('statecast.outbox_seq_seq', {})", tail.lo + 5))
        .await
        .unwrap();
    fill(&admin, 1).await;
    admin
        .batch_execute(&format!("ALTER TABLE statecast.outbox DETACH PARTITION statecast.{}", tail.table))
        .await
        .unwrap();
    assert_eq!(rows(&admin).await, 10);
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!((rows(&admin).await, state.tail_rows), (11, true));
    // A chunk that somebody took off with its rows is reported, not dropped.
    admin.batch_execute("ALTER TABLE statecast.outbox DETACH PARTITION statecast.outbox_1").await.unwrap();
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert!(state.alarms.contains(&Alarm::Stray { table: "outbox_1".to_owned() }), "{:?}", state.alarms);
    assert_eq!(number(&admin, "SELECT count(*) FROM statecast.outbox_1").await, 10);
    // Emptied and recorded, not detached; detached, not dropped.
    let url = installed(
        url.rsplit_once('/').map(|(base, _)| format!("{base}/postgres")).unwrap().as_str(),
        "it_crash_2",
        10,
    )
    .await;
    let admin = open(&url).await;
    fill(&admin, 30).await;
    settle(&admin, "orders", 30).await;
    admin
        .batch_execute(
            "INSERT INTO statecast.chunk (lo, hi, rows) VALUES (1, 11, 10), (11, 21, 10);
             TRUNCATE statecast.outbox_1, statecast.outbox_11;
             ALTER TABLE statecast.outbox DETACH PARTITION statecast.outbox_1",
        )
        .await
        .unwrap();
    let keep = Retention { keep: Duration::from_secs(3600), max_size: u64::MAX, chunk_rows: 10 };
    let report = retain(&admin, &keep).await.unwrap();
    assert_eq!(report.dropped.iter().map(|c| (c.lo, c.rows)).collect::<Vec<_>>(), [(11, 10)]);
    assert_eq!(number(&admin, "SELECT sum(rows)::bigint FROM statecast.chunk").await, 20);
    assert_eq!(tables(&admin).await as usize, list_chunks(&admin).await.unwrap().len());
}
