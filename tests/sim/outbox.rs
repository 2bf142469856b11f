//! PostgreSQL, as far as the relay's parts see it: transactions, the outbox, snapshots, and the cursor row.

use std::collections::BTreeMap;
use std::sync::Arc;

use statecast::contract::{Commit, Position};
use statecast::event::assemble::key_hash;
use statecast::event::{Event, Seq, Xid};
use statecast::snapshot::Snapshot;
use uuid::Uuid;

use crate::plan::{Hopeless, Step};

const FIRST_XID: Xid = 10;
/// Transactions of `pulse` have numbers above this.
const PULSES: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Committed,
    Aborted,
}

/// The row with seq i + 1.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) xid: Xid,
    pub(crate) key: u8,
    pub(crate) route: u8,
    pub(crate) size: usize,
    pub(crate) hopeless: Option<Hopeless>,
}

/// The cursor row.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    pub(crate) position: Position,
    pub(crate) passed: i64,
    /// Of those, rows that are open in the table of what is set aside, and rows that were discarded.
    pub(crate) parked: i64,
    pub(crate) discarded: i64,
    pub(crate) floor_seq: Seq,
    pub(crate) max_seq: Seq,
    candidate: Option<(Xid, Seq)>,
}

pub(crate) struct Outbox {
    steps: Vec<(u64, Step)>,
    done: usize,
    /// Transaction id of each writer.
    xids: BTreeMap<usize, Xid>,
    states: BTreeMap<Xid, State>,
    next_xid: Xid,
    completed: Xid,
    /// Transactions in the order in which they committed.
    pub(crate) wal: Vec<Xid>,
    pub(crate) rows: Vec<Row>,
    pub(crate) cursor: Cursor,
}

impl Outbox {
    pub(crate) fn new(steps: Vec<(u64, Step)>) -> Self {
        let start = Position { snapshot: Arc::new(Snapshot::NOTHING), prune_seq: 0, window: None };
        Outbox {
            steps,
            done: 0,
            xids: BTreeMap::new(),
            states: BTreeMap::new(),
            next_xid: FIRST_XID,
            completed: FIRST_XID - 1,
            wal: Vec::new(),
            rows: Vec::new(),
            cursor: Cursor {
                position: start,
                passed: 0,
                parked: 0,
                discarded: 0,
                floor_seq: 0,
                max_seq: 0,
                candidate: None,
            },
        }
    }

    /// Lets the writers act up to `now_ms`. Returns the seqs that committed.
    pub(crate) fn advance(&mut self, now_ms: u64) -> Vec<Seq> {
        let mut committed = Vec::new();
        while let Some(&(_, step)) = self.steps.get(self.done).filter(|(at, _)| *at <= now_ms) {
            self.done += 1;
            match step {
                Step::Xid { tx } => {
                    let xid = self.take_xid();
                    self.xids.insert(tx, xid);
                }
                Step::Write { tx, key, route, size, hopeless } => {
                    self.rows.push(Row { xid: self.xids[&tx], key, route, size, hopeless });
                }
                Step::End { tx, commits } => {
                    let xid = self.xids[&tx];
                    self.end(xid, if commits { State::Committed } else { State::Aborted });
                    let seqs = (1..).zip(&self.rows).filter(|(_, row)| commits && row.xid == xid);
                    committed.extend(seqs.map(|(seq, _)| seq));
                }
            }
        }
        committed
    }

    /// Another writer, with a key of its own and a transaction for each event, at these times.
    pub(crate) fn pulse(&mut self, key: u8, route: u8, at_ms: impl Iterator<Item = u64>) {
        for at in at_ms {
            let tx = PULSES + self.steps.len();
            let write = Step::Write { tx, key, route, size: 1, hopeless: None };
            for step in [Step::Xid { tx }, write, Step::End { tx, commits: true }] {
                let place = self.steps[self.done..].partition_point(|(other, _)| *other <= at);
                self.steps.insert(self.done + place, (at, step));
            }
        }
    }

    /// When a writer acts next.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.steps.get(self.done).map(|(at, _)| *at)
    }

    /// When the last writer is done.
    pub(crate) fn last_ms(&self) -> u64 {
        self.steps.last().map_or(0, |(at, _)| *at)
    }

    pub(crate) fn take_xid(&mut self) -> Xid {
        let xid = self.next_xid;
        self.next_xid += 1;
        self.states.insert(xid, State::Running);
        xid
    }

    pub(crate) fn end(&mut self, xid: Xid, state: State) {
        self.states.insert(xid, state);
        self.completed = self.completed.max(xid);
        if state == State::Committed {
            self.wal.push(xid);
        }
    }

    /// `pg_current_snapshot()`.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let xmax = self.completed + 1;
        let running = self.states.iter().filter(|(_, state)| **state == State::Running);
        let xip: Vec<Xid> = running.map(|(xid, _)| *xid).filter(|xid| *xid < xmax).collect();
        Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip }
    }

    /// The sequence's last value.
    pub(crate) fn last_seq(&self) -> Seq {
        self.rows.len() as Seq
    }

    pub(crate) fn row(&self, seq: Seq) -> Option<&Row> {
        self.rows.get(usize::try_from(seq - 1).ok()?)
    }

    pub(crate) fn is_committed(&self, seq: Seq) -> bool {
        self.row(seq).is_some_and(|row| self.states.get(&row.xid) == Some(&State::Committed))
    }

    /// The number of a transaction in the WAL.
    pub(crate) fn commit_number(&self, xid: Xid) -> Option<usize> {
        self.wal.iter().position(|committed| *committed == xid)
    }

    /// The rows of a transaction, in the order in which it wrote them.
    pub(crate) fn written_by(&self, xid: Xid) -> impl Iterator<Item = (Seq, &Row)> {
        (1..).zip(&self.rows).filter(move |(_, row)| row.xid == xid)
    }

    /// Committed rows, by seq.
    pub(crate) fn committed(&self) -> impl Iterator<Item = (Seq, &Row)> {
        (1..).zip(&self.rows).filter(|(_, row)| self.states.get(&row.xid) == Some(&State::Committed))
    }

    /// Stores a commit, as the transaction `w`. The floor rule is that of the keeper's UPDATE.
    pub(crate) fn write_cursor(&mut self, w: Xid, commit: &Commit) -> Seq {
        let cursor = &mut self.cursor;
        let xmin = commit.position.snapshot.xmin;
        match cursor.candidate {
            None => cursor.candidate = Some((w, commit.max_seq)),
            Some((xid, seq)) if commit.closes && xid <= xmin => {
                cursor.floor_seq = cursor.floor_seq.max(seq);
                cursor.candidate = Some((w, commit.max_seq));
            }
            Some(_) => {}
        }
        cursor.position = commit.position.clone();
        cursor.passed = commit.passed;
        cursor.max_seq = cursor.max_seq.max(commit.max_seq);
        self.end(w, State::Committed);
        self.cursor.floor_seq
    }
}

/// Is the row before the position?
pub(crate) fn covers(position: &Position, xid: Xid, seq: Seq) -> bool {
    position.snapshot.sees(xid) || position.window.as_ref().is_some_and(|w| w.upper.sees(xid) && seq <= w.seq)
}

/// The event type, which the routing key ends with.
fn kind(route: u8) -> String {
    format!("changed{route}")
}

/// The routing key, as the default template makes it.
pub(crate) fn routing_key(row: &Row) -> String {
    format!("thing.{}", kind(row.route))
}

/// Hash of the partition key.
pub(crate) fn hash(key: u8) -> u64 {
    key_hash("thing", &key.to_string())
}

/// JSON of exactly this many bytes.
pub(crate) fn payload(size: usize) -> Vec<u8> {
    let mut text = vec![b'1'; size];
    if size >= 2 {
        (text[0], text[size - 1]) = (b'"', b'"');
    }
    text
}

pub(crate) fn event(seq: Seq, row: &Row) -> Event {
    Event {
        xid: row.xid,
        seq,
        event_id: Uuid::from_u128(seq as u128),
        aggregate_type: "thing".into(),
        aggregate_id: row.key.to_string().into(),
        event_type: kind(row.route).into(),
        schema_version: "1.0.0".into(),
        entity_version: None,
        payload: Some(payload(row.size).into()),
        headers: None,
        correlation_id: None,
        causation_id: None,
        traceparent: None,
        tracestate: None,
        recorded_at_us: if row.hopeless == Some(Hopeless::Row) { i64::MAX } else { 0 },
    }
}
