//! The decisions of polling, without SQL: what opens a window, which rows it holds, what closing it means.
//!
//! P is the frontier's snapshot: every transaction visible in it is settled (or on its way, in order, before everything
//! that follows). A window holds the rows of the transactions that completed between P and the snapshot `upper`.
//! A transaction is in exactly one window: the first whose `upper` sees it.
//!
//! Two bounds keep the scan away from the archive:
//!
//! - `prune_seq`, for transactions with `xid >= xmax(P)`: the `max_seq` of the cursor row version visible in P. The
//!   transaction that wrote it took its own id w after its `max_seq` had been read, and w < xmax(P); so such a row's
//!   transaction began after w, and its seq was allocated above that `max_seq`. (The highest seq *at* P would not do:
//!   `xmax(P)` is one past the latest completed id, so a running transaction may be at or above it and own a small seq.)
//! - `floor_seq`, for the transactions that P lists as running: every unsettled row lies above it, from the moment it
//!   stood in a committed cursor row.
//!
//! The model in `tests/model` runs these functions through every interleaving of small cases.

use std::sync::Arc;

use crate::contract::{Position, Window, WindowPosition};
use crate::event::{Seq, Xid};
use crate::snapshot::Snapshot;
use crate::switches::{Guarantee, holds};

/// The source's P, with the bounds that belong to it. It may be ahead of the cursor row by several windows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontier {
    /// P.
    pub snapshot: Arc<Snapshot>,
    /// Rows of transactions with `xid >= xmax(P)` lie above this.
    pub prune_seq: Seq,
    /// Every unsettled row lies above this.
    pub floor_seq: Seq,
}

/// What the statement that reads a window's first page tells about it. All but `ceil` from its one MVCC snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// `pg_current_snapshot()`.
    pub upper: Arc<Snapshot>,
    /// `max_seq` of the cursor row, in the version that `upper` sees.
    pub max_seq: Seq,
    /// `floor_seq` of the same version.
    pub floor_seq: Seq,
    /// The sequence's last value, read after the snapshot was taken.
    pub ceil: Seq,
}

impl Frontier {
    /// Where a session starts: the cursor row.
    pub fn stored(position: &Position, floor_seq: Seq) -> Self {
        Frontier { snapshot: Arc::clone(&position.snapshot), prune_seq: position.prune_seq, floor_seq }
    }

    /// Opens the next window, `[P, upper)`.
    pub fn open(&mut self, id: u64, opening: Opening) -> Window {
        // A floor that was once committed holds for ever.
        self.floor_seq = self.floor_seq.max(opening.floor_seq);
        Window {
            id,
            from: Arc::clone(&self.snapshot),
            upper: opening.upper,
            prune_seq: if holds(Guarantee::Prune) { opening.max_seq } else { opening.ceil },
            ceil: opening.ceil,
            after_seq: 0,
            fresh: true,
        }
    }

    /// Takes up the window that the cursor row has in progress.
    pub fn resume(&self, id: u64, position: &WindowPosition) -> Window {
        Window {
            id,
            from: Arc::clone(&self.snapshot),
            upper: Arc::clone(&position.upper),
            prune_seq: position.prune_seq,
            ceil: position.ceil,
            after_seq: position.seq,
            fresh: false,
        }
    }

    /// The window's last page has been read: its upper snapshot becomes P. Snapshot and prune bound move together.
    pub fn close(&mut self, window: &Window) {
        debug_assert_eq!(self.snapshot, window.from, "windows close in the order they open");
        self.snapshot = Arc::clone(&window.upper);
        self.prune_seq = window.prune_seq;
    }

    /// Does a committed row belong to the window's rows above `after`? The WHERE clause of the page's statement.
    pub fn belongs(&self, window: &Window, after: Seq, xid: Xid, seq: Seq) -> bool {
        let above = if xid >= window.from.xmax { self.prune_seq } else { self.floor_seq };
        !window.from.sees(xid) && window.upper.sees(xid) && seq > after.max(above) && seq <= window.ceil
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Arc<Snapshot> {
        Arc::new(text.parse().unwrap())
    }

    fn frontier() -> Frontier {
        Frontier { snapshot: snapshot("10:20:10,15"), prune_seq: 100, floor_seq: 50 }
    }

    fn opening(upper: &str) -> Opening {
        Opening { upper: snapshot(upper), max_seq: 180, floor_seq: 60, ceil: 200 }
    }

    #[test]
    fn a_window_holds_what_completed_between_its_snapshots() {
        let mut frontier = frontier();
        let window = frontier.open(1, opening("15:25:15,22"));
        let belongs = |xid, seq| frontier.belongs(&window, 0, xid, seq);
        assert!(belongs(10, 61) && belongs(20, 101) && belongs(24, 200));
        assert!(!belongs(10, 60), "at the floor");
        assert!(!belongs(20, 100), "at the prune bound");
        assert!(!belongs(24, 201), "above the ceiling");
        assert!(!belongs(9, 150) && !belongs(12, 150), "settled in P");
        assert!(!belongs(15, 150) && !belongs(22, 150) && !belongs(25, 150), "still running");
        assert!(
            !frontier.belongs(&window, 150, 20, 150) && frontier.belongs(&window, 150, 20, 151),
            "next page"
        );
    }

    #[test]
    fn closing_moves_snapshot_and_prune_bound_together() {
        let mut frontier = frontier();
        let window = frontier.open(1, opening("15:25:15,22"));
        assert_eq!((frontier.prune_seq, frontier.floor_seq), (100, 60));
        frontier.close(&window);
        let expected = Frontier { snapshot: snapshot("15:25:15,22"), prune_seq: 180, floor_seq: 60 };
        assert_eq!(frontier, expected);
    }

    #[test]
    fn a_stored_window_is_taken_up_after_its_settled_prefix() {
        let stored = WindowPosition { upper: snapshot("15:25:15"), prune_seq: 120, ceil: 140, seq: 110 };
        let position = Position { snapshot: snapshot("10:20:10,15"), prune_seq: 100, window: None };
        let frontier = Frontier::stored(&position, 50);
        let window = frontier.resume(7, &stored);
        assert!(!window.fresh && window.id == 7);
        assert!(!frontier.belongs(&window, window.after_seq, 20, 110));
        assert!(frontier.belongs(&window, window.after_seq, 20, 111));
        assert!(!frontier.belongs(&window, window.after_seq, 20, 141));
    }
}
