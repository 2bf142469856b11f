//! Chunk upkeep and `maintain`, under load and after interruptions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use statecast::config::Retention;
use statecast::postgres::describe;
use statecast::store::chunks::{Alarm, Postponed, UpkeepError, chunk_state, ensure_chunks, list_chunks};
use statecast::store::maintain::{Patience, maintain, maintain_with};
use statecast::store::retention::retain;
use tokio::task::JoinHandle;

use crate::pg::{Session, installed, login, number, open};

pub(crate) const CHUNK_ROWS: i64 = 1000;

pub(crate) fn retention(keep: Duration, max_size: u64) -> Retention {
    Retention { keep, max_size, chunk_rows: CHUNK_ROWS }
}

pub(crate) async fn fill(session: &Session, rows: i64) {
    let sql = format!(
        "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
         SELECT 'order', (i % 20)::text, 'order.changed', '{{\"state\": \"full\"}}' FROM generate_series(1, {rows}) i"
    );
    session.batch_execute(&sql).await.unwrap();
}

/// A pipeline that has settled everything up to `floor`.
pub(crate) async fn settle(session: &Session, pipeline: &str, floor: i64) {
    let sql = format!(
        "INSERT INTO statecast.cursor (pipeline, system_identifier, timeline, snapshot, floor_seq)
         VALUES ('{pipeline}', 1, 1, '1:1:', {floor})
         ON CONFLICT (pipeline) DO UPDATE SET floor_seq = excluded.floor_seq"
    );
    session.batch_execute(&sql).await.unwrap();
}

pub(crate) async fn rows(session: &Session) -> i64 {
    number(session, "SELECT count(*) FROM statecast.outbox").await
}

/// Attached ranges follow each other without a gap, and the last one has no end.
pub(crate) async fn no_gap(session: &Session) {
    let chunks = list_chunks(session).await.unwrap();
    for pair in chunks.windows(2) {
        assert_eq!(pair[0].hi, Some(pair[1].lo), "{} and {}", pair[0].table, pair[1].table);
    }
    assert_eq!(chunks.last().unwrap().hi, None);
    assert!(chunks.iter().all(|chunk| !chunk.detaching));
}

/// Inserts single rows, each in its own transaction, until told to stop. Any failed insert ends the test.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<i64>>,
}

impl Load {
    /// `quick` writers commit at once; `slow` ones keep their transaction, and its lock on the outbox, for longer
    /// than any lock timeout of upkeep.
    async fn start(url: &str, quick: usize, slow: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for writer in 0..quick + slow {
            let (session, stop) = (open(url).await, stop.clone());
            let held_ms = if writer < quick { 0 } else { 120 };
            let sql = format!(
                "BEGIN; SELECT statecast.publish('order', '{writer}', 'order.changed', '{{\"state\": \"full\"}}');
                 SELECT pg_sleep({held_ms} / 1000.0); COMMIT"
            );
            tasks.push(tokio::spawn(async move {
                let mut rows = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = session.batch_execute(&sql).await {
                        panic!("an insert failed: {}", describe(&error));
                    }
                    rows += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                rows
            }));
        }
        Load { stop, tasks }
    }

    async fn stop(self) -> i64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut rows = 0;
        for task in self.tasks {
            rows += task.await.unwrap();
        }
        rows
    }
}

/// Lines of the server's log, written since `from`, that tell of a lock wait on a relation of this database.
async fn lock_waits(session: &Session, log: &Path, from: u64) -> Vec<String> {
    let oid = number(session, "SELECT oid::bigint FROM pg_database WHERE datname = current_database()").await;
    let bytes = std::fs::read(log).unwrap();
    let new = String::from_utf8_lossy(bytes.get(from as usize..).unwrap_or_default()).into_owned();
    let ours = format!("of database {oid} after");
    new.lines().filter(|l| l.contains("still waiting for") && l.contains(&ours)).map(str::to_owned).collect()
}

async fn log_end(session: &Session, log: &Path) -> u64 {
    let setting = session.query_one("SELECT current_setting('log_lock_waits')", &[]).await.unwrap();
    assert_eq!(setting.get::<_, String>(0), "on", "the sandbox must log lock waits");
    std::fs::metadata(log).unwrap().len()
}

pub(crate) async fn upkeep_under_load(url: &str, log: &Path) {
    let url = installed(url, "it_upkeep", CHUNK_ROWS).await;
    let relay =
        open(&login(&url, "it_upkeep_relay", "", "GRANT statecast_relay TO it_upkeep_relay").await).await;
    let admin = open(&url).await;
    let from = log_end(&admin, log).await;
    let load = Load::start(&url, 3, 2).await;
    let mut moves = 0;
    while moves < 2 {
        let state = ensure_chunks(&relay, CHUNK_ROWS).await.unwrap();
        // Chunks are small here and writers are not slowed down: they may come near the tail, and never into it.
        let near = |alarm: &Alarm| matches!(alarm, Alarm::TailNear { .. });
        assert!(state.alarms.iter().all(near), "{:?} at {}", state.alarms, state.last_seq);
        moves += usize::from(state.created > 0);
        settle(&admin, "orders", state.last_seq - 100).await;
        let report = retain(&relay, &retention(Duration::ZERO, u64::MAX)).await.unwrap();
        assert!(report.dropped.iter().all(|chunk| chunk.hi <= state.last_seq));
        // The load alone would take minutes for two moves.
        if state.empty_ahead > 8 {
            fill(&admin, CHUNK_ROWS / 2).await;
        }
    }
    let _ = load.stop().await;
    assert_eq!(lock_waits(&admin, log, from).await, Vec::<String>::new());
    no_gap(&admin).await;
    // The books balance: what was dropped is recorded, and no number beyond was lost.
    let lo = list_chunks(&admin).await.unwrap()[0].lo;
    let gone = number(&admin, "SELECT coalesce(sum(rows), 0)::bigint FROM statecast.chunk").await;
    assert_eq!(gone, lo - 1, "every number was used");
    assert_eq!(gone + rows(&admin).await, chunk_state(&admin).await.unwrap().last_seq);
}

pub(crate) async fn filled_tail_is_swapped_under_load(url: &str, log: &Path) {
    let total: i64 = std::env::var("STATECAST_TEST_TAIL_ROWS").map_or(30_000, |rows| rows.parse().unwrap());
    let url = installed(url, "it_tail", CHUNK_ROWS).await;
    let admin = open(&url).await;
    fill(&admin, total).await;
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert!(state.tail_rows && state.created == 0);
    assert_eq!(state.alarms, [Alarm::TailReached { lo: 16_001 }]);
    let from = log_end(&admin, log).await;
    let load = Load::start(&url, 4, 0).await;
    let patience = Patience { tries: 50, pause: Duration::from_millis(200) };
    let keep = retention(Duration::from_secs(3600), u64::MAX);
    let report = maintain_with(&admin, &keep, patience).await.unwrap();
    let (lo, m) = report.swapped.unwrap();
    assert_eq!(lo, 16_001);
    assert!(m > 1_000_000_000_000);
    assert_eq!(report.chunks.alarms, []);
    assert!(report.chunks.empty_ahead >= 8 && report.chunks.last_seq >= m - 1, "{report:?}");
    let after = rows(&admin).await;
    while rows(&admin).await < after + 100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let written = load.stop().await;
    assert_eq!(lock_waits(&admin, log, from).await, Vec::<String>::new());
    assert_eq!(rows(&admin).await, total + written);
    no_gap(&admin).await;
    let beyond = format!("SELECT count(*) FROM statecast.outbox WHERE seq >= {m}");
    assert!(number(&admin, &beyond).await > 0);
    // A second run finds nothing to do.
    assert_eq!(maintain(&admin, &keep).await.unwrap().swapped, None);
    // An interrupted swap is taken up where it stopped.
    let tail = list_chunks(&admin).await.unwrap().pop().unwrap();
    let set = format!("SELECT setval('statecast.outbox_seq_seq', {})", tail.lo + 5);
    admin.batch_execute(&set).await.unwrap();
    fill(&admin, 10).await;
    let hi = tail.lo + 2_000_000_000_000;
    let check = format!(
        "ALTER TABLE statecast.{} ADD CONSTRAINT statecast_swap_{hi} CHECK (seq >= {} AND seq < {hi}) NOT VALID",
        tail.table, tail.lo
    );
    admin.batch_execute(&check).await.unwrap();
    assert_eq!(maintain(&admin, &keep).await.unwrap().swapped, Some((tail.lo, hi)));
    no_gap(&admin).await;
}

pub(crate) async fn upkeep_without_the_grant(url: &str) {
    let url = installed(url, "it_grant", CHUNK_ROWS).await;
    let grants = "GRANT USAGE ON SCHEMA statecast TO it_grant; GRANT SELECT ON ALL TABLES IN SCHEMA statecast TO it_grant";
    let relay = open(&login(&url, "it_grant", "", grants).await).await;
    let error = ensure_chunks(&relay, CHUNK_ROWS).await.unwrap_err();
    assert!(matches!(error, UpkeepError::NotGranted { .. }) && error.is_permanent(), "{error}");
    assert!(error.to_string().contains("GRANT statecast_owner TO it_grant"), "{error}");
    let left = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    assert_eq!(number(&relay, left).await, 0);
}

pub(crate) async fn old_transaction_postpones(url: &str) {
    let url = installed(url, "it_old", CHUNK_ROWS).await;
    let (admin, old) = (open(&url).await, open(&url).await);
    old.batch_execute("BEGIN; SELECT statecast.publish('order', '1', 'x', NULL)").await.unwrap();
    fill(&admin, 10 * CHUNK_ROWS).await;
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!((state.postponed, state.created), (Some(Postponed::OldTransaction), 0));
    no_gap(&admin).await;
    settle(&admin, "orders", 9 * CHUNK_ROWS).await;
    let report = retain(&admin, &retention(Duration::ZERO, 0)).await.unwrap();
    assert_eq!((report.postponed, report.dropped.len()), (Some(Postponed::OldTransaction), 0));
    old.batch_execute("COMMIT").await.unwrap();
    let state = ensure_chunks(&admin, CHUNK_ROWS).await.unwrap();
    assert_eq!((state.postponed, state.created, state.empty_ahead), (None, 11, 16));
    no_gap(&admin).await;
    // Role and settings are given back.
    let row = admin
        .query_one("SELECT current_setting('role'), current_setting('lock_timeout')", &[])
        .await
        .unwrap();
    assert_eq!((row.get::<_, String>(0).as_str(), row.get::<_, String>(1).as_str()), ("none", "0"));
    // Two at once: one works, the other says so.
    let held = open(&url).await;
    held.batch_execute("SELECT pg_advisory_lock(x'7374617475706b70'::bigint)").await.unwrap();
    assert_eq!(ensure_chunks(&admin, CHUNK_ROWS).await.unwrap().postponed, Some(Postponed::Elsewhere));
}

/// Writers whose transactions overlap all the time never leave upkeep a pause of 50 ms.
pub(crate) async fn overlapping_writers_do_not_starve_upkeep(url: &str) {
    let url = installed(url, "it_overlap", CHUNK_ROWS).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for writer in 0..3u64 {
        let (session, stop) = (open(&url).await, stop.clone());
        writers.push(tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100 * writer)).await;
            let mut written = 0;
            while !stop.load(Ordering::Relaxed) {
                session.batch_execute("BEGIN").await.unwrap();
                fill(&session, 120).await;
                session.batch_execute("SELECT pg_sleep(0.3); COMMIT").await.unwrap();
                written += 120;
            }
            written
        }));
    }
    let session = open(&url).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut created = 0;
    while tokio::time::Instant::now() < until {
        created += ensure_chunks(&session, CHUNK_ROWS).await.unwrap().created;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.expect("no insert fails");
    }
    println!("{written} rows, {created} chunks made beside them");
    assert!(created >= 16, "the tail moved more than once: {created} chunks");
    assert_eq!(rows(&session).await, written);
    assert!(!chunk_state(&session).await.unwrap().tail_rows);
}
