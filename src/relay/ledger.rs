//! What is settled: the cursor's position. An event is settled when the broker has confirmed it, or when it is in the table
//! of what is set aside.
//!
//! Delivery order is window by window, and by `seq` within a window. The cursor moves over the contiguous settled
//! prefix of that order only. What is settled *above* the cursor is implied: a row of a window that was read and
//! is not among its unsettled rows is settled. So memory grows with what is unsettled, never with what is done.
//! When a session ends, what it settled above the cursor goes into the memory (`memory`) of the process.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::memory::{History, Memory, Remembered};
use crate::contract::{Page, Position, Window, WindowPosition};
use crate::event::{Seq, Xid};
use crate::snapshot::Snapshot;
use crate::switches::{Guarantee, holds};

/// The state of one window of this session.
#[derive(Debug)]
struct Progress {
    window: Arc<Window>,
    /// Rows read so far.
    delivered: i64,
    /// Highest row read.
    read_to: Seq,
    /// All pages were read.
    complete: bool,
    /// Row → how many rows of the window were delivered before it.
    unsettled: BTreeMap<Seq, i64>,
    /// The upper snapshot, once a crash of the server cannot take back what it sees.
    durable: Option<Arc<Snapshot>>,
}

impl Progress {
    fn done(&self) -> bool {
        self.complete && self.unsettled.is_empty()
    }

    /// Last row of the settled prefix, and the number of rows in it.
    fn prefix(&self) -> (Seq, i64) {
        match self.unsettled.first_key_value() {
            Some((seq, before)) => (seq - 1, *before),
            None => (self.read_to, self.delivered),
        }
    }
}

/// See the module head.
#[derive(Debug)]
pub struct Ledger {
    snapshot: Arc<Snapshot>,
    prune_seq: Seq,
    /// Events before `snapshot`, and before the window that was taken up from the cursor row.
    passed: i64,
    windows: BTreeMap<u64, Progress>,
    /// The window of the cursor row, until its first page arrives.
    stored: Option<WindowPosition>,
    memory: Memory,
    /// All that this sees is settled, written to the cursor row or not.
    durable: Option<Arc<Snapshot>>,
    max_seq: Seq,
    fresh_passed: bool,
}

impl Default for Ledger {
    fn default() -> Self {
        Ledger {
            snapshot: Arc::new(Snapshot::NOTHING),
            prune_seq: 0,
            passed: 0,
            windows: BTreeMap::new(),
            stored: None,
            memory: Memory::default(),
            durable: None,
            max_seq: 0,
            fresh_passed: false,
        }
    }
}

impl Ledger {
    /// Starts a session at the position that the cursor row holds; `history` is that of the server.
    pub fn begin(&mut self, history: History, position: &Position, passed: i64, max_seq: Seq) {
        let windows = std::mem::take(&mut self.windows);
        let durable = self.durable.take();
        if self.memory.holds_on(history, position) {
            if let Some(upper) = durable {
                self.memory.remember(Remembered::all_of(upper));
            }
            for (_, progress) in windows {
                if let Some(upper) = progress.durable {
                    self.memory.remember(Remembered {
                        from: progress.window.from.clone(),
                        upper,
                        read_to: if progress.complete { Seq::MAX } else { progress.read_to },
                        unsettled: progress.unsettled.into_keys().collect(),
                    });
                }
            }
        }
        self.fresh_passed = false;
        self.snapshot = position.snapshot.clone();
        self.prune_seq = position.prune_seq;
        self.stored = position.window.clone();
        self.passed = passed;
        self.max_seq = max_seq;
    }

    /// The cursor row holds this now.
    pub fn written(&mut self, position: Position) {
        self.memory.written(position);
    }

    /// Did an earlier session of this process settle this row?
    pub fn remembers(&self, xid: Xid, seq: Seq) -> bool {
        self.memory.holds(xid, seq)
    }

    /// Was this row settled before the page that lists it arrived?
    pub fn is_ahead(&self, seq: Seq) -> bool {
        self.memory.is_ahead(seq)
    }

    /// Notes a row that was settled before the page that lists it arrived. False if there is no room.
    pub fn settled_ahead(&mut self, seq: Seq) -> bool {
        self.memory.settled_ahead(seq)
    }

    /// How many rows were settled before the page that lists them.
    pub fn ahead(&self) -> usize {
        self.memory.ahead()
    }

    /// Every unsettled row lies above `floor_seq`, so no page lists one at or below it.
    pub fn floor(&mut self, floor_seq: Seq) {
        self.memory.forget_ahead(floor_seq);
    }

    /// Takes a page. `is_open` says whether the relay still holds a row. What it does not hold is settled, since all rows of
    /// a page came before it; where a stream should have brought them the caller has made sure of that.
    pub fn page(&mut self, page: &Page, mut is_open: impl FnMut(Seq) -> bool) {
        let window = &page.window;
        self.max_seq = self.max_seq.max(window.ceil);
        self.stored = None;
        let progress = self.windows.entry(window.id).or_insert_with(|| Progress {
            window: window.clone(),
            delivered: 0,
            read_to: window.after_seq,
            complete: false,
            unsettled: BTreeMap::new(),
            durable: None,
        });
        if !page.seqs.is_empty() || !window.fresh {
            progress.durable = Some(window.upper.clone());
        }
        for &seq in &page.seqs {
            debug_assert!(seq > progress.read_to, "pages ascend");
            if !self.memory.take_ahead(seq) && is_open(seq) {
                progress.unsettled.insert(seq, progress.delivered);
            }
            progress.delivered += 1;
            progress.read_to = seq;
        }
        progress.complete = page.last;
        if progress.done() {
            self.close(window.id);
        }
    }

    /// A row was confirmed, or is set aside. `window` is the one whose page listed it, if one did. False if none did, and there is no room
    /// to remember the row until one does.
    pub fn settle(&mut self, window: Option<u64>, seq: Seq) -> bool {
        let Some(id) = window else {
            return self.memory.settled_ahead(seq);
        };
        if let Some(progress) = self.windows.get_mut(&id) {
            progress.unsettled.remove(&seq);
            if !holds(Guarantee::Prefix) {
                progress.unsettled.retain(|waiting, _| *waiting > seq);
            }
            if progress.done() {
                self.close(id);
            }
        }
        true
    }

    /// Folds a finished window into the position, or into its finished neighbour: a pipeline that waits for one
    /// event must not collect windows.
    fn close(&mut self, id: u64) {
        while let Some(entry) = self.windows.first_entry() {
            if !entry.get().done() {
                break;
            }
            let progress = entry.remove();
            self.snapshot = progress.window.upper.clone();
            self.prune_seq = progress.window.prune_seq;
            self.passed += progress.delivered;
            self.fresh_passed |= progress.window.fresh;
            self.durable = progress.durable.or(self.durable.take());
            self.memory.forget_below(&self.snapshot);
        }
        self.merge(id);
        let next = self.windows.range(id + 1..).next().map(|(id, _)| *id);
        if let Some(next) = next {
            self.merge(next);
        }
    }

    /// Merges window `id` with the one before it, when both are finished.
    fn merge(&mut self, id: u64) {
        let Some((&before, earlier)) = self.windows.range(..id).next_back() else {
            return;
        };
        if !earlier.done() || !self.windows.get(&id).is_some_and(Progress::done) {
            return;
        }
        let Some(earlier) = self.windows.remove(&before) else {
            return;
        };
        let Some(later) = self.windows.get_mut(&id) else {
            return;
        };
        later.delivered += earlier.delivered;
        later.durable = later.durable.take().or(earlier.durable);
        later.window = Arc::new(Window {
            id,
            from: earlier.window.from.clone(),
            after_seq: earlier.window.after_seq,
            fresh: earlier.window.fresh || later.window.fresh,
            upper: later.window.upper.clone(),
            prune_seq: later.window.prune_seq,
            ceil: later.window.ceil,
        });
    }

    /// The settled prefix, and how many events lie before it since the pipeline began.
    pub fn position(&self) -> (Position, i64) {
        let mut position = Position {
            snapshot: self.snapshot.clone(),
            prune_seq: self.prune_seq,
            window: self.stored.clone(),
        };
        let mut passed = self.passed;
        if let Some(progress) = self.windows.values().next() {
            let (seq, settled) = progress.prefix();
            // A fresh window without progress need not be stored: it is opened again, larger.
            if settled > 0 || !progress.window.fresh {
                position.window = Some(WindowPosition {
                    upper: progress.window.upper.clone(),
                    prune_seq: progress.window.prune_seq,
                    ceil: progress.window.ceil,
                    seq: seq.max(progress.window.after_seq),
                });
                passed += settled;
            }
        }
        (position, passed)
    }

    /// Highest sequence value that the source has seen.
    pub fn max_seq(&self) -> Seq {
        self.max_seq
    }

    /// A window that was opened in this session is wholly settled.
    pub fn fresh_passed(&self) -> bool {
        self.fresh_passed
    }

    /// Committed events that are not settled, estimated: those that were read, and the numbers of the window in progress
    /// that were not read yet (rolled back ones among them).
    pub fn pending(&self) -> i64 {
        let read = |p: &Progress| p.unsettled.len() as i64;
        let unread = |p: &Progress| if p.complete { 0 } else { (p.window.ceil - p.read_to).max(0) };
        self.windows.values().map(|p| read(p) + unread(p)).sum()
    }

    /// Does `pending` count this row among the numbers that were not read yet?
    pub fn expects(&self, seq: Seq) -> bool {
        let unread = |p: &Progress| !p.complete && seq > p.read_to && seq <= p.window.ceil;
        self.windows.values().next_back().is_some_and(unread)
    }

    #[cfg(test)]
    fn window_count(&self) -> usize {
        self.windows.len()
    }
}

#[cfg(test)]
mod tests;
