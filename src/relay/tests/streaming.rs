//! A stream ahead of its pages, step by step: what the loop does, called by hand.

use tokio::sync::mpsc::error::TryRecvError;

use super::super::seqs::BLOCKS_MAX;
use super::bench::{Bench, ev, events, first_window};
use super::*;
use crate::contract::Committed;

#[test]
fn a_streamed_row_counts_once_when_its_page_lists_it() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let window = first_window(1);
    bench.stream(1, events([1, 3]), 100);
    assert_eq!(bench.confirm_all(), [1, 3]);
    bench.stream(1, events([2]), 200);
    assert_eq!(bench.sent_seqs(), [2]);
    assert_eq!(bench.position(), (0, None), "nothing is listed");
    assert!(bench.list(&window, &[1, 2], false).is_empty());
    assert_eq!(bench.position(), (1, Some(1)), "2 is in flight");
    assert!(bench.list(&window, &[3], true).is_empty());
    bench.answer(Arc::new(assembler.assemble(ev(2)).unwrap()), Published::Confirmed);
    assert_eq!(bench.position(), (3, None));
    assert_eq!((bench.state.ledger.ahead(), bench.sent_seqs()), (0, vec![]));
    assert_eq!((bench.metrics.events_read.wal.get(), bench.metrics.wal_missed.get()), (3, 0));
}

#[test]
fn a_listed_page_with_a_miss_leaves_no_trace_and_ends_the_stream() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let window = first_window(1);
    bench.stream(1, events([1, 2]), 100);
    assert_eq!(bench.confirm_all(), [1, 2]);
    bench.stream(1, events([4]), 200);
    assert!(bench.list(&window, &[1], false).is_empty());
    let before = bench.state.ledger.position();
    assert_eq!(bench.list(&window, &[2, 3, 4, 5], true), [3, 5]);
    assert_eq!((bench.state.ledger.position(), bench.state.ledger.ahead()), (before, 1));
    assert_eq!(bench.state.held.get(4).unwrap().window, None);
    // The rest of the stream is dropped, and counts for nothing.
    bench.stream(1, events([5, 6]), 300);
    assert_eq!((bench.sent_seqs(), bench.settled()), (vec![4], 100));
    // The rest of the window is polled: what is here already is published once.
    bench.input(Input::Rows(Batch { events: events(2..=5), late: Some(i64::MAX) }));
    bench.input(Input::Page(Page { window, seqs: vec![2, 3, 4, 5], last: true }));
    assert_eq!((bench.sent_seqs(), bench.metrics.wal_missed.get()), (vec![3, 5], 2));
    for seq in 3..=5 {
        let message = assembler.assemble(ev(seq)).unwrap();
        bench.answer(Arc::new(message), Published::Confirmed);
    }
    assert_eq!((bench.position(), bench.state.ledger.ahead()), ((5, None), 0));
    assert_eq!(bench.settled(), 200, "4 was the stream's last");
    // The next stream is taken in.
    bench.stream(2, events([7]), 250);
    assert_eq!((bench.sent_seqs(), bench.settled()), (vec![7], 0));
}

#[test]
fn a_stream_that_misses_all_is_refused_before_it_brings_anything() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    assert_eq!(bench.list(&first_window(1), &[1], true), [1]);
    bench.stream(1, events([2]), 100);
    assert!(bench.sent().is_empty());
    bench.poll(&first_window(1), events([1]));
    bench.stream(1, events([3]), 200);
    assert_eq!(bench.confirm_all(), [1]);
    bench.stream(2, events([4]), 100);
    assert_eq!(bench.sent_seqs(), [4]);
}

#[test]
fn what_a_stream_has_brought_is_not_published_again_by_polling() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, events([1, 2]), 100);
    let sent = bench.sent();
    bench.answer(sent[0].clone(), Published::Confirmed);
    // The stream is gone.
    bench.poll(&first_window(1), events(1..=3));
    assert_eq!((bench.confirm_all(), bench.position()), (vec![3], (1, Some(1))));
    bench.answer(sent[1].clone(), Published::Confirmed);
    assert_eq!((bench.position(), bench.metrics.wal_missed.get()), ((3, None), 0));
}

#[test]
fn what_the_next_stream_brings_again_is_published_once_and_holds_that_stream_back() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, events([1, 2]), 900);
    let sent = bench.sent();
    bench.answer(sent[0].clone(), Published::Confirmed);
    bench.stream(2, vec![], 400);
    assert_eq!(bench.settled(), 400, "its WAL begins before what the first has brought");
    bench.stream(2, events([1, 2]), 500);
    assert!(bench.sent().is_empty());
    assert_eq!(bench.settled(), 400, "2 is in flight");
    bench.stream(1, events([8]), 1000);
    assert!(bench.sent().is_empty(), "the first stream is over");
    bench.answer(sent[1].clone(), Published::Confirmed);
    assert_eq!(bench.settled(), 500);
    assert!(bench.list(&first_window(1), &[1, 2], true).is_empty());
    assert_eq!(bench.position(), (2, None));
}

#[test]
fn a_refused_row_that_no_page_has_listed_waits_for_the_next_session() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, events([1, 2]), 100);
    let sent = bench.sent();
    bench.answer(sent[0].clone(), Published::Nacked);
    bench.answer(sent[1].clone(), Published::Confirmed);
    assert_eq!(bench.settled(), 0);
    drop(bench);
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.poll(&first_window(1), events(1..=2));
    assert_eq!(bench.confirm_all(), [1], "2 is remembered");
    assert_eq!(bench.position(), (2, None));
}

#[test]
fn what_an_earlier_session_settled_is_brought_and_settled() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    // 1 is settled with its page, 2 ahead of it; the cursor row hears of neither.
    bench.poll(&first_window(1), events([1]));
    let mut late = ev(2);
    late.xid = 9;
    bench.stream(1, vec![late.clone()], 100);
    assert_eq!(bench.confirm_all(), [1, 2]);
    drop(bench);
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, vec![ev(1), late], 100);
    assert_eq!((bench.sent_seqs(), bench.settled()), (vec![], 100));
    let upper = Arc::new("10:10:".parse().unwrap());
    let window = Arc::new(Window { upper, ..Arc::into_inner(first_window(1)).unwrap() });
    assert!(bench.list(&window, &[1, 2], true).is_empty());
    assert_eq!((bench.position(), bench.state.ledger.ahead()), ((2, None), 0));
    drop(bench);
    // A promoted standby may not have them.
    ledger.settled_ahead(5);
    let start =
        crate::contract::Position { snapshot: Arc::new(Snapshot::NOTHING), prune_seq: 0, window: None };
    ledger.begin((7, 2), &start, 0, 0);
    assert_eq!(ledger.ahead(), 0);
}

#[test]
fn only_what_is_new_and_below_the_bound_was_missed() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, events([1]), 100);
    assert_eq!(bench.confirm_all(), [1]);
    bench.stream(1, events([2]), 200);
    bench.input(Input::Rows(Batch { events: events(1..=4), late: Some(4) }));
    assert_eq!(bench.metrics.wal_missed.get(), 1, "3: 1 is settled ahead, 2 is held, 4 lies above");
    bench.input(Input::Rows(Batch { events: events(5..=6), late: None }));
    assert_eq!(bench.metrics.wal_missed.get(), 1);
}

#[test]
fn a_missed_row_goes_before_later_ones_of_its_key_that_still_wait() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.stream(1, vec![event(1, "a", 10), event(3, "a", 10)], 100);
    assert_eq!(bench.list(&first_window(1), &[1, 2, 3], true), [2]);
    let missed = Batch { events: vec![event(2, "a", 10)], late: Some(i64::MAX) };
    bench.input(Input::Rows(missed));
    assert_eq!(bench.confirm_all(), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_row_of_a_waiting_key_is_let_go_and_fetched_before_its_page() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let of = |seq| event(seq, "a", 10);
    bench.stream(1, vec![of(1)], 100);
    let sent = bench.sent();
    bench.answer(sent[0].clone(), Published::Nacked);
    bench.stream(1, vec![of(2)], 200);
    tokio::time::advance(Duration::from_secs(2)).await;
    bench.state.on_wake();
    bench.state.dispatch().unwrap();
    assert_eq!(bench.fetch.try_recv(), Ok(Fetch { seqs: vec![1, 2] }));
    // Meanwhile the stream ends, and the window is polled: the bodies are on their way already.
    bench.poll(&first_window(1), vec![of(1), of(2)]);
    assert!(bench.sent().is_empty());
    let back = || Batch { events: vec![of(1), of(2)], late: None };
    bench.state.on_refetched(back());
    bench.state.dispatch().unwrap();
    assert_eq!(bench.confirm_all(), [1, 2]);
    assert_eq!((bench.position(), bench.settled()), ((2, None), 200));
    bench.state.on_refetched(back());
    bench.state.dispatch().unwrap();
    assert!(bench.sent().is_empty(), "what comes back unasked is no new event");
    assert_eq!(bench.fetch.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn without_room_to_remember_the_stream_is_refused_and_nothing_is_forgotten() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let row = |block: usize| block as Seq * 512 + 1000;
    assert!((0..BLOCKS_MAX).all(|block| bench.state.ledger.settled_ahead(row(block))));
    bench.stream(1, events([1, 2]), 100);
    assert_eq!(bench.confirm_all(), [1, 2]);
    assert_eq!(bench.state.ledger.ahead(), BLOCKS_MAX);
    bench.stream(1, events([3]), 200);
    assert!(bench.sent().is_empty(), "refused");
    assert_eq!(bench.list(&first_window(1), &[1, 2, 3], true), [1, 2, 3]);
    // Repeats, with the same ids, and never a loss.
    bench.poll(&first_window(1), events(1..=3));
    assert_eq!((bench.confirm_all(), bench.position()), (vec![1, 2, 3], (3, None)));
    bench.state.on_committed(&Committed { id: 1, floor_seq: row(BLOCKS_MAX), passed: Vec::new() });
    bench.stream(2, events([4]), 300);
    assert_eq!((bench.confirm_all(), bench.state.ledger.ahead()), (vec![4], 1));
}

#[test]
fn rows_that_no_page_has_listed_are_pending() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let mut old = ev(200);
    old.recorded_at_us = 1_000_000;
    let mut young = ev(1);
    young.recorded_at_us = 2_000_000_000_000_000;
    bench.stream(1, vec![old, young], 100);
    bench.state.report();
    assert_eq!(bench.metrics.events_pending.get(), 2);
    assert!(bench.metrics.oldest_pending_age_seconds.get() > 1e9);
    // 100 numbers of a window in progress, one of them held; 200 lies above.
    bench.input(Input::Page(Page { window: first_window(1), seqs: vec![], last: false }));
    bench.state.report();
    assert_eq!(bench.metrics.events_pending.get(), 101);
    assert!(bench.list(&first_window(1), &[1], true).is_empty());
    bench.state.report();
    assert_eq!(bench.metrics.events_pending.get(), 2);
    bench.confirm_all();
    bench.state.report();
    assert_eq!(bench.metrics.events_pending.get(), 0);
}
