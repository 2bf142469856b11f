//! What earlier sessions of this process settled above the cursor, so that a restart repeats little.
//!
//! The next session reads other windows over the same rows. A row is known by its transaction (which window) and its `seq`
//! (read that far, not unsettled). Only the snapshot of a window with rows is remembered: its pages passed the durability gate.
//! That of an empty window may name transactions whose end was not on disk when the server crashed, and whose ids it then
//! gives to others. Forgetting costs repeats, never a loss; so everything here is bounded.
//!
//! Rows that were settled before their page arrived are known by `seq` alone, until that page arrives, in this session or a
//! later one. Of these nothing is forgotten to make room: a page may ask for each of them.

use std::collections::HashSet;
use std::sync::Arc;

use super::seqs::Seqs;
use crate::contract::Position;
use crate::event::{Seq, Xid};
use crate::snapshot::Snapshot;

/// Remembered windows, at most.
const WINDOWS_MAX: usize = 256;
/// Unsettled rows of remembered windows, at most, about: beyond this the oldest windows are forgotten.
pub(super) const ROWS_MAX: usize = 200_000;

/// System identifier and timeline: which server's transactions the snapshots speak of.
pub type History = (i64, i32);

/// A window of an earlier session.
#[derive(Debug)]
pub(super) struct Remembered {
    pub(super) from: Arc<Snapshot>,
    pub(super) upper: Arc<Snapshot>,
    /// All of its rows up to here were read.
    pub(super) read_to: Seq,
    /// Those among them that were not settled.
    pub(super) unsettled: HashSet<Seq>,
}

impl Remembered {
    /// Everything that `upper` sees is settled.
    pub(super) fn all_of(upper: Arc<Snapshot>) -> Self {
        Remembered { from: Arc::new(Snapshot::NOTHING), upper, read_to: Seq::MAX, unsettled: HashSet::new() }
    }
}

/// See the module head.
#[derive(Debug, Default)]
pub(super) struct Memory {
    history: Option<History>,
    /// What the cursor row held when it was last heard of.
    written: Option<Position>,
    windows: Vec<Remembered>,
    /// Settled before the page that lists them arrived, in this session or an earlier one.
    ahead: Seqs,
}

impl Memory {
    /// A session starts on `history` at `position`: does what was remembered still hold? If not it is forgotten.
    ///
    /// On another history what earlier sessions settled may not exist. Where the row has gone back, somebody wants it published
    /// again (rebase, drop) or the server itself went back, and numbers mean other rows now.
    pub(super) fn holds_on(&mut self, history: History, position: &Position) -> bool {
        let went_back = self.written.as_ref().is_some_and(|written| !reaches(position, written));
        let holds = self.history.replace(history) == Some(history) && !went_back;
        if !holds {
            self.windows.clear();
            self.ahead.clear();
        }
        self.written = Some(position.clone());
        holds
    }

    /// The cursor row holds this now.
    pub(super) fn written(&mut self, position: Position) {
        self.written = Some(position);
    }

    /// Remembers a window; the oldest make room for it.
    pub(super) fn remember(&mut self, window: Remembered) {
        self.windows.push(window);
        let mut rows = 0;
        let within = |w: &&Remembered| {
            rows += w.unsettled.len();
            rows <= ROWS_MAX
        };
        let keep = self.windows.iter().rev().take(WINDOWS_MAX).take_while(within).count();
        self.windows.drain(..self.windows.len() - keep);
    }

    /// Forgets the windows of which everything is settled in `snapshot`.
    pub(super) fn forget_below(&mut self, snapshot: &Snapshot) {
        self.windows.retain(|w| !snapshot.covers(&w.upper));
    }

    /// Was this row settled?
    pub(super) fn holds(&self, xid: Xid, seq: Seq) -> bool {
        let mut windows = self.windows.iter();
        self.ahead.contains(seq)
            || windows.any(|w| {
                seq <= w.read_to && w.upper.sees(xid) && !w.from.sees(xid) && !w.unsettled.contains(&seq)
            })
    }

    /// A row was settled before the page that lists it arrived. False if there is no room to note it.
    pub(super) fn settled_ahead(&mut self, seq: Seq) -> bool {
        self.ahead.insert(seq)
    }

    /// Was the row settled, and has the page that lists it yet to arrive?
    pub(super) fn is_ahead(&self, seq: Seq) -> bool {
        self.ahead.contains(seq)
    }

    /// The page that lists the row has arrived: was it settled before?
    pub(super) fn take_ahead(&mut self, seq: Seq) -> bool {
        self.ahead.remove(seq)
    }

    /// No page will list a row at or below `floor_seq` any more: somebody deleted what is still noted there.
    pub(super) fn forget_ahead(&mut self, floor_seq: Seq) {
        self.ahead.forget_below(floor_seq.saturating_add(1));
    }

    /// Unsettled rows of remembered windows.
    #[cfg(test)]
    pub(super) fn rows(&self) -> usize {
        self.windows.iter().map(|w| w.unsettled.len()).sum()
    }

    /// How many rows were settled before their page.
    pub(super) fn ahead(&self) -> usize {
        self.ahead.len()
    }
}

/// Is everything settled in `now` that was settled in `before`?
fn reaches(now: &Position, before: &Position) -> bool {
    if now.snapshot != before.snapshot {
        return now.snapshot.covers(&before.snapshot);
    }
    match (&now.window, &before.window) {
        (_, None) => true,
        (Some(now), Some(before)) => now.upper == before.upper && now.seq >= before.seq,
        (None, Some(_)) => false,
    }
}
