//! What is settled, window by window.

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
    assert!(rows > 0 && rows <= crate::relay::memory::ROWS_MAX, "{rows}");
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
