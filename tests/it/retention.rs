//! Retention: what is dropped, and what never is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::time::Duration;

use statecast::config::Retention;
use statecast::postgres::describe;
use statecast::store::chunks::{chunk_state, ensure_chunks, list_chunks};
use statecast::store::retention::{Overdue, retain};

use crate::chunks::{CHUNK_ROWS, fill, no_gap, retention, rows, settle};
use crate::pg::{installed, open};

pub(crate) async fn retention_keeps_an_insert_between_seq_and_heap(url: &str) {
    let url = installed(url, "it_held", CHUNK_ROWS).await;
    let admin = open(&url).await;
    let holder = open(&url).await;
    // payload stands behind seq: the number is taken, the row is not written while the column's expression sleeps.
    admin
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS json LANGUAGE plpgsql VOLATILE AS
             $$ BEGIN PERFORM pg_sleep(3); RETURN '{}'; END $$",
        )
        .await
        .unwrap();
    let held = tokio::spawn(async move {
        holder
            .batch_execute(
                "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                 VALUES ('order', 'held', 'order.changed', slow())",
            )
            .await
            .map_err(|error| describe(&error))
    });
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
    held.await.unwrap().unwrap();
    assert_eq!(rows(&admin).await, 3 * CHUNK_ROWS + 1);
    settle(&admin, "behind", 3 * CHUNK_ROWS).await;
    let report = retain(&admin, &keep).await.unwrap();
    // Bounds are 1, 1001, 2001, 3001: a floor of 3000 settles two chunks.
    let bounds: Vec<_> = report.dropped.iter().map(|c| (c.lo, c.hi, c.rows)).collect();
    assert_eq!(bounds, [(1, 1001, 1000), (1001, 2001, 1000)]);
    admin.batch_execute("DELETE FROM statecast.cursor; DROP FUNCTION slow").await.unwrap();
    assert_eq!(retain(&admin, &keep).await.unwrap().settled, 0, "without a pipeline nothing is settled");
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
