//! What is settled: the cursor's position.
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
    /// Confirmed events before `snapshot`, and before the window that was taken up from the cursor row.
    confirmed: i64,
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
            confirmed: 0,
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
    pub fn begin(&mut self, history: History, position: &Position, confirmed: i64, max_seq: Seq) {
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
        self.confirmed = confirmed;
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

    /// Takes a page. `is_open` says whether the relay still holds a row; what it does not hold is settled.
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

    /// A row was confirmed. `window` is the one whose page listed it, if one did.
    pub fn settle(&mut self, window: Option<u64>, seq: Seq) {
        let Some(id) = window else {
            self.memory.settled_ahead(seq);
            return;
        };
        let Some(progress) = self.windows.get_mut(&id) else {
            return;
        };
        progress.unsettled.remove(&seq);
        if progress.done() {
            self.close(id);
        }
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
            self.confirmed += progress.delivered;
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

    /// The settled prefix, and how many events were confirmed before it since the pipeline began.
    pub fn position(&self) -> (Position, i64) {
        let mut position = Position {
            snapshot: self.snapshot.clone(),
            prune_seq: self.prune_seq,
            window: self.stored.clone(),
        };
        let mut confirmed = self.confirmed;
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
                confirmed += settled;
            }
        }
        (position, confirmed)
    }

    /// Highest sequence value that the source has seen.
    pub fn max_seq(&self) -> Seq {
        self.max_seq
    }

    /// A window that was opened in this session is wholly settled.
    pub fn fresh_passed(&self) -> bool {
        self.fresh_passed
    }

    /// Rows that are read and not settled: the lowest is what the cursor waits for.
    pub fn first_unsettled(&self) -> Option<Seq> {
        self.windows.values().find_map(|p| p.unsettled.first_key_value()).map(|(seq, _)| *seq)
    }

    /// Committed events that are not settled, estimated: those that were read, and the numbers of the window in progress
    /// that were not read yet (rolled back ones among them).
    pub fn pending(&self) -> i64 {
        let read = |p: &Progress| p.unsettled.len() as i64;
        let unread = |p: &Progress| if p.complete { 0 } else { (p.window.ceil - p.read_to).max(0) };
        self.windows.values().map(|p| read(p) + unread(p)).sum()
    }

    #[cfg(test)]
    fn window_count(&self) -> usize {
        self.windows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Arc<Snapshot> {
        Arc::new(text.parse().unwrap())
    }

    fn window(id: u64, from: &str, upper: &str, prune_seq: Seq, ceil: Seq) -> Arc<Window> {
        Arc::new(Window {
            id,
            from: snapshot(from),
            upper: snapshot(upper),
            prune_seq,
            ceil,
            after_seq: 0,
            fresh: true,
        })
    }

    fn page(window: &Arc<Window>, seqs: &[Seq], last: bool) -> Page {
        Page { window: window.clone(), seqs: seqs.to_vec(), last }
    }

    const HERE: History = (7, 1);

    fn start() -> Position {
        Position { snapshot: snapshot("1:1:"), prune_seq: 0, window: None }
    }

    #[test]
    fn the_position_is_the_contiguous_prefix() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        let w = window(1, "1:1:", "10:10:", 0, 5);
        ledger.page(&page(&w, &[1, 2, 4], false), |_| true);
        ledger.settle(Some(1), 2);
        assert_eq!(ledger.position(), (start(), 0), "row 1 is not settled");
        ledger.settle(Some(1), 1);
        let (position, confirmed) = ledger.position();
        assert_eq!((position.window.unwrap().seq, confirmed), (3, 2));
        ledger.page(&page(&w, &[5], true), |_| true);
        ledger.settle(Some(1), 5);
        assert_eq!(ledger.position().0.snapshot, snapshot("1:1:"));
        ledger.settle(Some(1), 4);
        let (position, confirmed) = ledger.position();
        assert_eq!((position.snapshot, position.window, confirmed), (snapshot("10:10:"), None, 4));
        assert!(ledger.fresh_passed());
    }

    #[test]
    fn a_row_settled_before_its_page_counts() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 7, 0);
        ledger.settle(None, 1);
        ledger.page(&page(&window(1, "1:1:", "9:9:", 0, 1), &[1], true), |_| true);
        assert_eq!(ledger.position().1, 8);
    }

    #[test]
    fn finished_windows_behind_a_waiting_one_merge() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        ledger.page(&page(&window(0, "1:1:", "2:2:", 0, 1), &[1], true), |_| true);
        for id in 1..1000u64 {
            let (from, upper) = (format!("{0}:{0}:", id + 1), format!("{0}:{0}:", id + 2));
            let seq = id as Seq + 1;
            ledger.page(&page(&window(id, &from, &upper, 0, seq), &[seq], true), |_| true);
            ledger.settle(Some(id), seq);
        }
        assert_eq!(ledger.window_count(), 2);
        ledger.settle(Some(0), 1);
        let (position, confirmed) = ledger.position();
        assert_eq!((position.snapshot, confirmed), (snapshot("1001:1001:"), 1000));
    }

    #[test]
    fn what_was_settled_above_the_cursor_is_remembered() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        // Transaction 5 was running; its row 3 comes with a later window and must not be taken for settled.
        ledger.page(&page(&window(1, "1:1:", "5:9:5", 0, 6), &[1, 2, 4, 6], false), |_| true);
        ledger.settle(Some(1), 2);
        ledger.settle(Some(1), 4);
        ledger.begin(HERE, &start(), 0, 0);
        assert!(!ledger.remembers(4, 1), "was not settled");
        assert!(ledger.remembers(6, 2) && ledger.remembers(8, 4));
        assert!(!ledger.remembers(5, 3), "belongs to a later window");
        assert!(!ledger.remembers(7, 7), "was not read");
        assert!(!ledger.remembers(9, 2), "a transaction of a later window");
        let w = window(1, "1:1:", "20:20:", 0, 9);
        ledger.page(&page(&w, &[1, 2, 3, 4, 6], true), |seq| seq != 2 && seq != 4);
        for seq in [1, 3, 6] {
            ledger.settle(Some(1), seq);
        }
        assert_eq!(ledger.position().1, 5);
        assert!(!ledger.remembers(6, 2), "below the position nothing needs to be remembered");
    }

    #[test]
    fn what_the_cursor_row_does_not_know_yet_is_remembered() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        ledger.page(&page(&window(1, "1:1:", "5:5:", 0, 2), &[1, 2], true), |_| true);
        ledger.settle(Some(1), 1);
        ledger.settle(Some(1), 2);
        // Empty, so not behind the durability gate: transactions 5 to 8 may have been lost in a crash.
        ledger.page(&page(&window(2, "5:5:", "9:9:", 0, 2), &[], true), |_| true);
        assert_eq!(ledger.position().0.snapshot, snapshot("9:9:"));
        ledger.begin(HERE, &start(), 0, 0);
        assert!(ledger.remembers(3, 1) && ledger.remembers(4, 2));
        assert!(!ledger.remembers(5, 3), "its number was given to another transaction");
        ledger.begin(HERE, &start(), 0, 0);
        assert!(ledger.remembers(3, 1), "also after a session that read nothing");
        ledger.begin((7, 2), &start(), 0, 0);
        assert!(!ledger.remembers(3, 1), "a promoted standby may not have it");
    }

    #[test]
    fn a_row_settled_before_its_page_is_remembered() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        // One large row: the relay had no room for its page until the confirm, and then the session was over.
        ledger.settle(None, 1);
        ledger.begin(HERE, &start(), 0, 0);
        assert!(ledger.remembers(3, 1) && !ledger.remembers(3, 2));
        ledger.page(&page(&window(1, "1:1:", "9:9:", 0, 2), &[1, 2], true), |seq| seq == 2);
        assert_eq!(ledger.position().1, 1);
        ledger.settle(Some(1), 2);
        assert_eq!((ledger.position().1, ledger.memory.ahead()), (2, 0));
        ledger.settle(None, 3);
        ledger.begin((7, 2), &start(), 0, 0);
        assert!(!ledger.remembers(9, 3), "a promoted standby may not have it");
    }

    #[test]
    fn a_cursor_row_that_went_back_is_believed() {
        let settled_and_written = || {
            let mut ledger = Ledger::default();
            ledger.begin(HERE, &start(), 0, 0);
            ledger.page(&page(&window(1, "1:1:", "9:9:", 0, 3), &[1, 2, 3], false), |_| true);
            ledger.settle(Some(1), 1);
            ledger.settle(Some(1), 2);
            ledger.written(ledger.position().0);
            ledger
        };
        let mut ledger = settled_and_written();
        let position = ledger.position().0;
        ledger.begin(HERE, &position, 2, 3);
        assert!(ledger.remembers(4, 2), "the row is where it was left");
        let mut ledger = settled_and_written();
        let further = Position { snapshot: snapshot("12:12:"), prune_seq: 3, window: None };
        ledger.begin(HERE, &further, 3, 3);
        assert!(ledger.remembers(4, 2), "another leader moved it on");
        let mut ledger = settled_and_written();
        ledger.begin(HERE, &start(), 0, 0);
        assert!(!ledger.remembers(4, 2), "rebased within the window in progress");
        let mut ledger = settled_and_written();
        ledger.begin(HERE, &further, 3, 3);
        ledger.begin(HERE, &start(), 0, 0);
        assert!(!ledger.remembers(4, 2), "rebased, dropped, or restored from a copy");
    }

    #[test]
    fn another_session_must_pass_a_window_of_its_own() {
        let mut ledger = Ledger::default();
        ledger.begin(HERE, &start(), 0, 0);
        ledger.page(&page(&window(1, "1:1:", "9:9:", 0, 1), &[1], true), |_| true);
        ledger.settle(Some(1), 1);
        assert!(ledger.fresh_passed());
        ledger.begin(HERE, &start(), 0, 0);
        assert!(!ledger.fresh_passed(), "that window was not written");
    }

    #[test]
    fn memory_is_bounded_while_nothing_is_settled() {
        let mut ledger = Ledger::default();
        let seqs: Vec<Seq> = (1..=50_000).collect();
        for _ in 0..20 {
            ledger.begin(HERE, &start(), 0, 0);
            ledger.page(&page(&window(1, "1:1:", "9:9:", 0, 50_000), &seqs, true), |_| true);
        }
        ledger.begin(HERE, &start(), 0, 0);
        let rows = ledger.memory.rows();
        assert!(rows > 0 && rows <= super::super::memory::ROWS_MAX, "{rows}");
    }

    #[test]
    fn a_window_taken_up_from_the_cursor_row_stays_stored() {
        let mut ledger = Ledger::default();
        let stored = WindowPosition { upper: snapshot("9:9:"), prune_seq: 3, ceil: 50, seq: 20 };
        let position = Position { window: Some(stored), ..start() };
        ledger.begin(HERE, &position, 20, 50);
        assert_eq!(ledger.position(), (position, 20), "nothing is known yet, so nothing changes");
        let w = Arc::new(Window {
            id: 1,
            from: snapshot("1:1:"),
            upper: snapshot("9:9:"),
            prune_seq: 3,
            ceil: 50,
            after_seq: 20,
            fresh: false,
        });
        ledger.page(&page(&w, &[25, 30], true), |_| true);
        let (position, confirmed) = ledger.position();
        assert_eq!((position.window.unwrap().seq, confirmed), (24, 20));
        ledger.settle(Some(1), 30);
        ledger.settle(Some(1), 25);
        assert_eq!(ledger.position().1, 22);
        assert!(!ledger.fresh_passed());
    }
}
