//! The outbox's chunks: a filled tail, too few empty ones ahead of the writers, and tables that are left over.

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding, complete, listed, unexamined};
use crate::postgres::describe;
use crate::store::chunks::{ChunkState, EMPTY_TO_START, chunk_state};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::TailFilled, Code::ChunksShort, Code::ChunkStray];

/// Tables that are named like a chunk and are not attached. Whether they hold rows only their owner may see, so the
/// planner's estimate must do.
const STRAYS: &str = "
SELECT c.relname::text
  FROM pg_class c
 WHERE c.relnamespace = 'statecast'::regnamespace AND c.relkind = 'r'
   AND c.relname ~ '^outbox_(tail_)?[0-9]{1,19}$'
   AND NOT EXISTS (SELECT FROM pg_inherits i WHERE i.inhrelid = c.oid)
   AND pg_relation_size(c.oid) > 0
 ORDER BY c.relname
 LIMIT $1";

/// How the outbox is divided, now.
pub async fn examine(client: &Client) -> (Option<ChunkState>, Vec<Finding>) {
    let state = match chunk_state(client).await {
        Ok(state) => state,
        Err(error) => return (None, unexamined(CODES, &describe(&error))),
    };
    let mut findings = judge(&state);
    match strays(client).await {
        Ok(tables) => findings.extend(stray(&tables)),
        Err(error) => findings.push(Finding::not_examined(Code::ChunkStray, describe(&error))),
    }
    (Some(state), complete(CODES, findings))
}

async fn strays(client: &Client) -> Result<Vec<String>, Error> {
    let rows = client.query(STRAYS, &[&super::ROWS_MAX]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Facts to findings.
pub fn judge(state: &ChunkState) -> Vec<Finding> {
    let mut findings = Vec::new();
    let empty = state.empty_ahead;
    match state.tail() {
        None => findings.push(Finding::error(
            Code::ChunksShort,
            "statecast.outbox",
            format!("it has no tail, and {empty} empty chunks: inserts beyond them will fail"),
        )),
        Some(tail) if state.tail_rows => findings.push(Finding::error(
            Code::TailFilled,
            format!("statecast.{}", tail.table),
            format!("it begins at {}, and the sequence stands at {}", tail.lo, state.last_seq),
        )),
        // Upkeep does not touch the tail any more.
        Some(tail) if empty < EMPTY_TO_START => findings.push(Finding::warning(
            Code::ChunksShort,
            "statecast.outbox",
            format!("{empty} empty chunks are left before its tail, which begins at {}", tail.lo),
        )),
        Some(_) => findings.push(Finding::ok_with(Code::ChunksShort, format!("{empty} empty chunks ahead"))),
    }
    for chunk in state.chunks.iter().filter(|chunk| chunk.detaching) {
        let text = "its detach has begun and is not finished: it waits for transactions that saw it";
        let remedy = "upkeep finishes it; see `transaction-long`";
        let place = format!("statecast.{}", chunk.table);
        findings.push(Finding::info(Code::ChunkStray, place, text).with_remedy(remedy));
    }
    findings
}

fn stray(tables: &[String]) -> Option<Finding> {
    let text = "not attached, and not empty: its events are no part of the outbox";
    (!tables.is_empty()).then(|| {
        Finding::warning(Code::ChunkStray, format!("statecast.{}", listed(tables, super::NAMES_MAX)), text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::store::chunks::Chunk;

    fn state() -> ChunkState {
        let chunk = |lo, hi| Chunk { table: format!("outbox_{lo}"), lo, hi, detaching: false, bytes: 0 };
        ChunkState {
            chunks: vec![chunk(1, Some(10)), chunk(10, None)],
            empty_ahead: 2,
            bytes: 0,
            last_seq: 3,
            floor_seq: None,
            tail_rows: false,
            created: 0,
            postponed: None,
            alarms: Vec::new(),
        }
    }

    fn found(state: &ChunkState) -> Vec<(Code, Severity)> {
        judge(state).into_iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn the_tail_is_there_and_empty_and_not_near() {
        assert_eq!(found(&state()), [(Code::ChunksShort, Severity::Ok)]);
        let filled = ChunkState { tail_rows: true, empty_ahead: 0, ..state() };
        assert_eq!(found(&filled), [(Code::TailFilled, Severity::Error)]);
        assert_eq!(
            found(&ChunkState { empty_ahead: 1, ..state() }),
            [(Code::ChunksShort, Severity::Warning)]
        );
        let mut without = state();
        without.chunks.pop();
        assert_eq!(found(&without), [(Code::ChunksShort, Severity::Error)]);
    }

    #[test]
    fn what_is_left_over_is_named() {
        let mut detaching = state();
        detaching.chunks[0].detaching = true;
        assert!(found(&detaching).contains(&(Code::ChunkStray, Severity::Info)));
        assert_eq!(stray(&[]), None);
        assert!(stray(&["outbox_7".into()]).unwrap().place.ends_with("statecast.outbox_7"));
    }
}
