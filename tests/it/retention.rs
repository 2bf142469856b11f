//! Retention: what is dropped, and what never is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use statecast::config::Retention;
use statecast::postgres::describe;
use statecast::store::chunks::{chunk_state, ensure_chunks, list_chunks};
use statecast::store::retention::{Overdue, retain};

use crate::chunks::{CHUNK_ROWS, fill, no_gap, retention, rows, settle};
use crate::pg::{Session, installed, open};

/// Makes an insert that takes its number and then sleeps before it writes its row: payload stands behind seq.
async fn make_slow(admin: &Session, seconds: f64) {
    let sql = format!(
        "CREATE FUNCTION slow() RETURNS json LANGUAGE plpgsql VOLATILE AS
         $$ BEGIN PERFORM pg_sleep({seconds}); RETURN '{{}}'; END $$"
    );
    admin.batch_execute(&sql).await.unwrap();
}

async fn insert_slowly(session: &Session) {
    let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
               VALUES ('order', 'held', 'order.changed', slow())";
    session.batch_execute(sql).await.map_err(|error| describe(&error)).unwrap();
}

/// Lines of the server's log about anybody who waited for a lock, of whatever kind.
fn lock_waits(log: &Path) -> Vec<String> {
    let log = String::from_utf8_lossy(&std::fs::read(log).unwrap()).into_owned();
    log.lines().filter(|line| line.contains("still waiting for")).map(str::to_owned).collect()
}

pub(crate) async fn retention_keeps_an_insert_between_seq_and_heap(url: &str, log: &Path) {
    let url = installed(url, "it_held", CHUNK_ROWS).await;
    let admin = open(&url).await;
    let holder = open(&url).await;
    make_slow(&admin, 3.0).await;
    let held = tokio::spawn(async move { insert_slowly(&holder).await });
    while chunk_state(&admin).await.unwrap().last_seq < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fill(&admin, 3 * CHUNK_ROWS).await;
    // The relay's floor stays below a transaction that runs; other pipelines may be further.
    settle(&admin, "behind", 0).await;
    settle(&admin, "ahead", 3 * CHUNK_ROWS).await;
    let keep = retention(Duration::ZERO, 0);
    let report = retain(&admin, &keep).await.unwrap();
    assert_eq!((report.dropped.len(), report.settled), (0, 0));
    assert!(matches!(report.overdue, Some(Overdue::Size { .. })), "{report:?}");
    assert!(!held.is_finished(), "the insert was not held long enough for this test");
    held.await.unwrap();
    assert_eq!(rows(&admin).await, 3 * CHUNK_ROWS + 1);
    settle(&admin, "behind", 3 * CHUNK_ROWS).await;
    let report = retain(&admin, &keep).await.unwrap();
    // Bounds are 1, 1001, 2001, 3001: a floor of 3000 settles two chunks.
    let bounds: Vec<_> = report.dropped.iter().map(|c| (c.lo, c.hi, c.rows)).collect();
    assert_eq!(bounds, [(1, 1001, 1000), (1001, 2001, 1000)]);
    admin.batch_execute("DELETE FROM statecast.cursor; DROP FUNCTION slow").await.unwrap();
    assert_eq!(retain(&admin, &keep).await.unwrap().settled, 0, "without a pipeline nothing is settled");
    assert_eq!(lock_waits(log), Vec::<String>::new());
}

/// Most of the time some insert has its number and not yet its row, while settled chunks are emptied, detached and
/// dropped: no insert fails or waits, and upkeep never waits for long itself.
pub(crate) async fn retention_and_held_inserts_do_not_wait_for_each_other(url: &str, log: &Path) {
    const HELD: Duration = Duration::from_millis(120);
    let url = installed(url, "it_watch", CHUNK_ROWS).await;
    let admin = open(&url).await;
    make_slow(&admin, HELD.as_secs_f64()).await;
    fill(&admin, 4 * CHUNK_ROWS).await;
    settle(&admin, "orders", 4 * CHUNK_ROWS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for _ in 0..2 {
        let (session, stop) = (open(&url).await, stop.clone());
        writers.push(tokio::spawn(async move {
            let (mut written, mut slowest) = (0, Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                insert_slowly(&session).await;
                (written, slowest) = (written + 1, slowest.max(began.elapsed()));
                tokio::time::sleep(HELD.mul_f64(fastrand::f64())).await;
            }
            (written, slowest)
        }));
    }
    let (mut dropped, mut postponed) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while dropped.len() < 3 {
        let report = retain(&admin, &retention(Duration::ZERO, u64::MAX)).await.unwrap();
        postponed += usize::from(report.postponed.is_some());
        dropped.extend(report.dropped.iter().map(|chunk| (chunk.lo, chunk.rows)));
        assert!(Instant::now() < deadline, "dropped {dropped:?}, postponed {postponed} times");
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        let (rows, slowest) = writer.await.unwrap();
        println!("{rows} inserts, the slowest {slowest:?}; retention was postponed {postponed} times");
        written += rows;
    }
    assert!(written > 0);
    assert_eq!(dropped, [(1, 1000), (1001, 1000), (2001, 1000)]);
    assert_eq!(rows(&admin).await, CHUNK_ROWS + written);
    assert_eq!(lock_waits(log), Vec::<String>::new());
    no_gap(&admin).await;
}

pub(crate) async fn retention_limits(url: &str) {
    let url = installed(url, "it_limits", 10).await;
    let admin = open(&url).await;
    let ten = |keep, max_size| Retention { keep, max_size, chunk_rows: 10 };
    let hour = Duration::from_secs(3600);
    // Settled, young and small enough: all stay.
    fill(&admin, 40).await;
    settle(&admin, "orders", 31).await;
    let report = retain(&admin, &ten(hour, u64::MAX)).await.unwrap();
    assert_eq!((report.dropped.len(), report.settled, report.overdue), (0, 3, None));
    assert!(report.oldest_settled_age_s.unwrap() < 3600);
    // One row of the oldest chunk is old, its newest is not.
    let age = |chunk: i64| {
        format!(
            "UPDATE statecast.outbox_{chunk} SET recorded_at = recorded_at - interval '2 h' WHERE seq < {}",
            chunk + 9
        )
    };
    admin.batch_execute(&age(1)).await.unwrap();
    assert_eq!(retain(&admin, &ten(hour, u64::MAX)).await.unwrap().dropped.len(), 0);
    admin.batch_execute("UPDATE statecast.outbox_1 SET recorded_at = now() - interval '2 h'").await.unwrap();
    let report = retain(&admin, &ten(hour, u64::MAX)).await.unwrap();
    assert_eq!(report.dropped.iter().map(|c| c.lo).collect::<Vec<_>>(), [1]);
    // Too large: settled chunks go whatever their age, pending ones never.
    let report = retain(&admin, &ten(hour, 0)).await.unwrap();
    assert_eq!(report.dropped.iter().map(|c| c.lo).collect::<Vec<_>>(), [11, 21]);
    assert_eq!(rows(&admin).await, 10);
    // More than 64 leaves.
    let mut state = ensure_chunks(&admin, 10).await.unwrap();
    while state.chunks.len() <= 66 {
        fill(&admin, 10 * (state.empty_ahead as i64 - 3)).await;
        state = ensure_chunks(&admin, 10).await.unwrap();
        assert_eq!(state.alarms, []);
    }
    let report = retain(&admin, &ten(hour, u64::MAX)).await.unwrap();
    assert_eq!(report.dropped.len(), 0);
    assert!(matches!(report.overdue, Some(Overdue::Leaves { .. })));
    settle(&admin, "orders", state.last_seq).await;
    let report = retain(&admin, &ten(hour, u64::MAX)).await.unwrap();
    assert_eq!(list_chunks(&admin).await.unwrap().len(), 64, "{report:?}");
    no_gap(&admin).await;
}
