//! What became of rows that are set aside, on its way to the keeper.
//!
//! A decision is made once: until the keeper has written it, nothing else is decided about the row. So no row ever stands
//! in a commit twice, and a request that comes again meanwhile changes nothing.

use std::collections::{HashSet, VecDeque};

use crate::contract::{Aside, Became, Change, Reason, SetAside};
use crate::event::Seq;

/// Rows of one commit, set aside or changed, at most.
pub const ROWS_MAX: usize = 1_000;
/// Decisions that wait, at most; beyond that none is made that can be made later.
const CHANGES_MAX: usize = 4 * ROWS_MAX;

/// What the commit on its way carries.
#[derive(Debug, Default)]
pub struct Sent {
    /// Rows that are set aside, and their keys.
    pub rows: Vec<(Seq, u64)>,
    /// Rows that change, and their keys, if these were set aside then.
    pub changes: Vec<(Seq, Option<u64>)>,
    /// Why rows are parked.
    pub parked: Vec<Reason>,
}

/// See the module head.
#[derive(Debug, Default)]
pub struct Outgoing {
    changes: VecDeque<(Option<u64>, Change)>,
    decided: HashSet<Seq>,
    sent: Sent,
}

impl Outgoing {
    /// Is there nothing to write?
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// May more be decided that can wait?
    pub fn has_room(&self) -> bool {
        self.changes.len() < CHANGES_MAX
    }

    /// Has something been decided about this row that is not written yet?
    pub fn is_decided(&self, seq: Seq) -> bool {
        self.decided.contains(&seq)
    }

    /// Decides what becomes of a row. `key`: its key, if that is set aside.
    pub fn change(&mut self, key: Option<u64>, seq: Seq, to: Became) {
        let new = self.decided.insert(seq);
        debug_assert!(new, "one decision at a time");
        self.changes.push_back((key, Change { seq, to }));
    }

    /// The changes for the next commit.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let n = self.changes.len().min(ROWS_MAX);
        let mut changes = Vec::with_capacity(n);
        for (key, change) in self.changes.drain(..n) {
            self.sent.changes.push((change.seq, key));
            if let Became::Parked(refusal) = &change.to {
                self.sent.parked.push(refusal.reason);
            }
            changes.push(change);
        }
        changes
    }

    /// A row goes with the next commit.
    pub fn sends(&mut self, row: &SetAside) {
        self.sent.rows.push((row.seq, row.key));
        if let Aside::Parked(refusal) = &row.state {
            self.sent.parked.push(refusal.reason);
        }
    }

    /// The commit is written: what it carried.
    pub fn arrived(&mut self) -> Sent {
        let sent = std::mem::take(&mut self.sent);
        for (seq, _) in &sent.changes {
            self.decided.remove(seq);
        }
        sent
    }
}
