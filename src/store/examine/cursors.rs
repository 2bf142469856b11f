//! Cursors that do not move any more: retention keeps every chunk above the lowest of them.

use tokio_postgres::{Client, Error};

use super::lasting;
use crate::config::units::about_size;
use crate::finding::{Code, Finding, complete};
use crate::store::chunks::ChunkState;
use crate::store::lease::lock_sql;

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::CursorStuck];

/// A leader that has something to do writes its cursor every second.
const STUCK_MS: i64 = 3_600_000;

/// A row of `statecast.cursor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Pipeline.
    pub pipeline: String,
    /// Every unsettled event lies above.
    pub floor_seq: i64,
    /// Since it was written.
    pub age_ms: i64,
    /// Somebody holds its advisory lock.
    pub led: bool,
}

const CURSORS: &str = concat!(
    "
SELECT c.pipeline, c.floor_seq, (extract(epoch FROM clock_timestamp() - c.updated_at) * 1000)::bigint,
       EXISTS (SELECT FROM pg_locks l
         WHERE ",
    lock_sql!("c.pipeline"),
    ")
  FROM statecast.cursor c
 ORDER BY c.floor_seq
 LIMIT $1"
);

/// All pipelines of this database.
///
/// # Errors
/// SQL.
pub async fn examine(client: &Client, state: Option<&ChunkState>) -> Result<Vec<Finding>, Error> {
    let mut cursors = Vec::new();
    for row in client.query(CURSORS, &[&super::ROWS_MAX]).await? {
        cursors.push(Cursor {
            pipeline: row.try_get(0)?,
            floor_seq: row.try_get(1)?,
            age_ms: row.try_get(2)?,
            led: row.try_get(3)?,
        });
    }
    Ok(judge(&cursors, state))
}

/// Facts to findings.
pub fn judge(cursors: &[Cursor], state: Option<&ChunkState>) -> Vec<Finding> {
    let stuck = cursors.iter().filter(|cursor| cursor.age_ms >= STUCK_MS);
    complete(CODES, stuck.filter_map(|cursor| found(cursor, state)).collect())
}

fn found(cursor: &Cursor, state: Option<&ChunkState>) -> Option<Finding> {
    let Cursor { pipeline, floor_seq, age_ms, led } = cursor;
    // Whole chunks that the writers have left behind and this cursor has not.
    let waiting = state.into_iter().flat_map(|state| {
        let last_seq = state.last_seq;
        state.chunks.iter().filter(move |chunk| chunk.hi.is_some_and(|hi| hi > *floor_seq && hi <= last_seq))
    });
    let (count, bytes) = waiting.fold((0, 0), |(count, bytes), chunk| (count + 1, bytes + chunk.bytes));
    if *led && count == 0 {
        // With nothing to do a leader does not write it.
        return None;
    }
    let place = format!("cursor of pipeline {pipeline}");
    let who = if *led { "a relay leads it" } else { "nobody leads it" };
    let text = format!(
        "{who}, it was last written {} ago, and stands at seq {floor_seq}: {count} chunks ({}) wait for it",
        lasting(*age_ms),
        about_size(bytes)
    );
    let finding = if count > 0 { Finding::warning } else { Finding::info };
    let remedy = if *led {
        "see /ready of the relay that leads, and the findings on RabbitMQ".to_owned()
    } else {
        format!(
            "start its relay, or drop it if it is not needed: STATECAST_NAME={pipeline} statecast cursor drop"
        )
    };
    Some(finding(Code::CursorStuck, place, text).with_remedy(remedy))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::store::chunks::Chunk;

    fn state() -> ChunkState {
        let chunk =
            |lo: i64| Chunk { table: String::new(), lo, hi: Some(lo + 10), detaching: false, bytes: 1024 };
        ChunkState {
            chunks: vec![chunk(1), chunk(11), chunk(21)],
            empty_ahead: 0,
            bytes: 0,
            last_seq: 25,
            floor_seq: None,
            tail_rows: false,
            created: 0,
            postponed: None,
            alarms: Vec::new(),
        }
    }

    fn worst(floor_seq: i64, age_ms: i64, led: bool) -> Finding {
        let cursor = Cursor { pipeline: "old".into(), floor_seq, age_ms, led };
        judge(&[cursor], Some(&state())).pop().unwrap()
    }

    #[test]
    fn a_cursor_is_stuck_when_nobody_moves_it_and_chunks_wait() {
        assert_eq!(worst(25, STUCK_MS, true).severity, Severity::Ok, "nothing to do");
        let led = worst(1, STUCK_MS, true);
        assert!(led.severity == Severity::Warning && led.remedy.contains("/ready"), "{led:?}");
        assert_eq!(worst(1, STUCK_MS - 1, true).severity, Severity::Ok);
        assert_eq!(worst(1, STUCK_MS - 1, false).severity, Severity::Ok);
        let found = worst(1, STUCK_MS, false);
        assert_eq!(found.severity, Severity::Warning);
        assert!(
            found.what.contains("2 chunks (2.0 KiB)") && found.remedy.contains("STATECAST_NAME=old"),
            "{found:?}"
        );
        assert!(worst(11, STUCK_MS, false).what.contains("1 chunks"));
        assert_eq!(worst(25, STUCK_MS, false).severity, Severity::Info);
    }
}
