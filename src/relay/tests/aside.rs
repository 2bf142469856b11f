//! Keys that leave, wait in the table, and come back.

use super::bench::{Bench, Broker, NO_ROUTE, Row, Table, WELL, ev, events, first_window, of};
use super::*;
use crate::contract::{Aside, Became, HeadState, Reason};

/// Nacks the events of key "a".
const NACKS_A: Broker = |message| if is_a(message) { Published::Nacked } else { Published::Confirmed };

fn is_a(message: &Message) -> bool {
    message.key_hash == crate::event::assemble::key_hash("order", "a")
}

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn a(seq: Seq) -> Event {
    event(seq, "a", 10)
}

fn waiting(reason: Reason) -> Row {
    Row::Waiting(reason)
}

/// Key "a" is set aside with events 1 and 3, and 2 was confirmed.
async fn set_a_aside(bench: &mut Bench<'_>) {
    bench.broker = NACKS_A;
    bench.poll_more(&first_window(1), vec![a(1), a(3)], false);
    bench.pass(seconds(2)).await;
    bench.poll_more(&first_window(1), vec![ev(4)], false);
    bench.pass(seconds(4)).await;
    assert_eq!(bench.table.states(), [(1, waiting(Reason::Nack)), (3, Row::Queued)]);
    bench.tried();
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_refused_for_long_leaves_and_the_cursor_passes_it() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    set_a_aside(&mut bench).await;
    assert_eq!(bench.position(), (3, Some(4)));
    // One write carries the rows, the next one passes them.
    let carries = bench.commits.iter().position(|commit| !commit.set_aside.is_empty()).unwrap();
    assert_eq!(bench.commits[carries].passed, 0);
    let row = &bench.commits[carries].set_aside[0];
    assert!(matches!(&row.state, Aside::Waiting(refusal) if refusal.detail.contains("nack")), "{row:?}");
    assert_eq!((row.seq, row.routing_key.as_deref()), (1, Some("order.changed")));
    assert_eq!((bench.commits[carries + 1].passed, bench.commits[carries + 1].unpassed), (3, true));
    assert!(bench.state.aside.unpassed.is_empty());
    // What follows goes there as soon as it is listed, without a try.
    bench.input(Input::Rows(Batch { events: vec![a(5)], late: None }));
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.rows.len(), 2);
    bench.poll_more(&first_window(1), vec![a(5)], false);
    bench.turn();
    assert_eq!((bench.table.rows[&5].1, bench.position()), (Row::Queued, (4, Some(5))));
    assert!(!bench.tried().contains(&5));
    bench.state.report();
    assert_eq!((bench.metrics.events_pending.get(), bench.metrics.keys_paused.nack.get()), (98, 1));
}

#[tokio::test(start_paused = true)]
async fn it_comes_back_in_order_and_is_live_again() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    set_a_aside(&mut bench).await;
    bench.poll_more(&first_window(1), vec![a(5), a(6), a(7)], false);
    bench.pass(seconds(1)).await;
    bench.broker = WELL;
    bench.tried();
    while bench.state.aside.draining(is_a_key()).is_none() {
        bench.state.on_wake();
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    // What comes while it drains waits until it is live again.
    bench.poll_more(&first_window(1), vec![a(8), a(9)], false);
    bench.pass(seconds(2)).await;
    assert_eq!(bench.tried(), [1, 3, 5, 6, 7, 8, 9]);
    assert!(bench.table.rows.values().all(|(_, row)| *row == Row::Confirmed));
    assert_eq!((bench.table.rows.len(), bench.position()), (5, (8, Some(9))));
    assert!(bench.state.aside.is_empty() && bench.state.aside.bytes() == 0);
    assert_eq!(bench.metrics.events_confirmed.get(), 8);
}

fn is_a_key() -> u64 {
    crate::event::assemble::key_hash("order", "a")
}

#[tokio::test(start_paused = true)]
async fn a_refusal_while_it_drains_makes_it_wait_again_longer() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    set_a_aside(&mut bench).await;
    bench.broker = |message| if message.seq == 3 { Published::Nacked } else { Published::Confirmed };
    bench.poll_more(&first_window(1), vec![a(5)], false);
    bench.pass(seconds(30)).await;
    assert_eq!(bench.table.states()[..2], [(1, Row::Confirmed), (3, waiting(Reason::Nack))]);
    assert_eq!(bench.table.rows[&5].1, Row::Queued);
    let tries = bench.tried().iter().filter(|seq| **seq == 3).count();
    assert!((3..=7).contains(&tries), "{tries} tries in 30 s");
    assert_eq!(bench.state.aside.bytes(), 0, "no body waits");
    bench.broker = WELL;
    bench.pass(seconds(60)).await;
    assert_eq!(bench.tried().iter().filter(|seq| [3, 5].contains(seq)).copied().collect::<Vec<_>>(), [3, 5]);
    assert!(bench.state.aside.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_long_drain_leaves_room_for_other_keys() {
    use crate::relay::window::{DRAINING_SLOTS_MAX, SLOTS_MAX};
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut table = Table::default();
    table.rows.extend([(1, (is_a_key(), waiting(Reason::Nack))), (2, (is_a_key(), Row::Queued))]);
    let settings = Settings {
        aside: AsideState { unpassed: Vec::new(), ..table.aside(seconds(1)) },
        ..settings(1 << 30)
    };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, table);
    bench.knows([a(1), a(2)]);
    bench.state.on_wake();
    bench.state.dispatch().unwrap();
    bench.serve_keeper();
    // The end of the table is recalled, and the broker takes its time.
    let slow = bench.sent();
    assert_eq!((slow.len(), slow[0].seq), (1, 1));
    let (first, most) = (10, DRAINING_SLOTS_MAX as Seq);
    bench.poll_more(&first_window(1), (first..first + most).map(a).collect(), false);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.rows.len(), 2, "they wait until it is live again");
    let more = (first + most)..(first + SLOTS_MAX as Seq);
    bench.poll_more(&first_window(1), more.map(a).collect(), false);
    assert!(!bench.state.has_room());
    bench.pass(seconds(12)).await;
    assert_eq!(bench.table.rows.len(), 2 + SLOTS_MAX);
    assert!(bench.state.has_room() && bench.state.held.is_empty());
    bench.tried();
    bench.answer(slow[0].clone(), Published::Confirmed);
    let mut tried = Vec::new();
    for _ in 0..40 {
        tokio::time::advance(Duration::from_millis(100)).await;
        bench.state.commit();
        bench.serve_keeper();
        for message in bench.sent() {
            tried.push(message.seq);
            bench.answer(message, Published::Confirmed);
        }
    }
    assert_eq!(tried[..8], [2, 10, 11, 12, 13, 14, 15, 16]);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_event_waits_for_its_page() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NACKS_A;
    bench.stream(1, vec![a(1), a(2), ev(3)], 100);
    bench.pass(seconds(2)).await;
    bench.stream(1, vec![ev(4)], 200);
    bench.pass(seconds(2)).await;
    bench.stream(1, vec![ev(5)], 300);
    bench.pass(seconds(2)).await;
    assert!(bench.table.rows.is_empty() && bench.state.keys.waits(is_a_key()), "not listed, and paused");
    assert!(bench.list(&first_window(1), &[1], false).is_empty());
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(1, waiting(Reason::Nack))]);
    assert_eq!((bench.position(), bench.settled()), ((1, Some(1)), 0), "2 is not settled");
    assert!(bench.list(&first_window(1), &[2, 3, 4, 5], true).is_empty());
    bench.pass(seconds(1)).await;
    assert_eq!((bench.position(), bench.settled()), ((5, None), 300));
}

#[tokio::test(start_paused = true)]
async fn what_is_in_the_table_is_not_taken_in_again() {
    let assembler = assembler();
    let mut ledger = Ledger::default();
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NACKS_A;
    // 2 holds the cursor: it is never listed here.
    bench.poll_more(&first_window(1), vec![a(1)], false);
    bench.pass(seconds(2)).await;
    bench.stream(1, vec![ev(4)], 100);
    bench.pass(seconds(3)).await;
    bench.stream(1, vec![ev(5)], 200);
    for _ in 0..20 {
        bench.pass(Duration::from_millis(100)).await;
        if !bench.table.rows.is_empty() {
            break;
        }
    }
    assert_eq!(bench.table.states(), [(1, waiting(Reason::Nack))]);
    // The write came through, its answer did not: nothing has passed the row.
    let mut table = bench.end();
    table.position = None;
    table.unpassed = vec![1];
    let mut other = Ledger::default();
    let settings = Settings { aside: table.aside(seconds(1)), ..settings(1_000_000) };
    let mut bench = Bench::with(&mut other, &assembler, settings, table);
    bench.broker = NACKS_A;
    bench.stream(1, vec![a(1), a(2)], 100);
    bench.poll_more(&first_window(1), vec![a(1)], false);
    assert_eq!(bench.position(), (1, Some(1)), "its page finds it settled");
    assert!(bench.list(&first_window(1), &[2], true).is_empty());
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(1, waiting(Reason::Nack)), (2, Row::Queued)]);
    assert_eq!(bench.position(), (2, None));
    assert!(bench.tried().iter().all(|seq| *seq == 1), "the head is tried, once recalled");
    assert!(bench.state.aside.unpassed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_listed_row_that_is_set_aside_is_not_missed() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let settings =
        Settings { aside: AsideState { heads: Vec::new(), unpassed: vec![1, 2] }, ..settings(1_000_000) };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, Table::default());
    bench.stream(1, events([2, 3]), 100);
    assert_eq!(bench.list(&first_window(1), &[1, 2, 3, 4], true), [4]);
    assert_eq!(bench.list(&first_window(1), &[1, 2, 3], true), [] as [Seq; 0]);
    assert_eq!(bench.position(), (2, Some(2)));
    assert_eq!(bench.confirm_all(), [3]);
    assert_eq!((bench.position(), bench.settled()), ((3, None), 100));
}

#[tokio::test(start_paused = true)]
async fn a_key_leaves_when_nothing_of_it_is_in_flight() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let settings = Settings { ordering: Ordering::Pipelined, ..settings(1_000_000) };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, Table::default());
    bench.poll(&first_window(1), vec![a(1), a(2), a(3), ev(4)]);
    let mut sent = bench.sent();
    sent.sort_by_key(|message| message.seq);
    bench.answer(sent[1].clone(), Published::Nacked);
    tokio::time::advance(seconds(3)).await;
    bench.answer(sent[3].clone(), Published::Confirmed);
    tokio::time::advance(seconds(3)).await;
    bench.state.sweep();
    assert!(bench.state.aside.is_empty(), "1 and 3 are in flight");
    bench.answer(sent[2].clone(), Published::Confirmed);
    bench.answer(sent[0].clone(), Published::Confirmed);
    bench.state.sweep();
    bench.turn();
    assert_eq!(bench.table.states(), [(2, waiting(Reason::Nack))]);
    assert_eq!(bench.position(), (4, None));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_its_head_goes_first() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let key = is_a_key();
    let head = crate::contract::Head {
        key,
        seq: 6,
        state: HeadState::Parked,
        reason: Some(Reason::Invalid),
        routing_key: None,
        waited: seconds(3),
    };
    let mut table = Table::default();
    table.rows.insert(6, (key, Row::Parked(Reason::Invalid)));
    let settings =
        Settings { aside: AsideState { heads: vec![head], unpassed: vec![6] }, ..settings(1_000_000) };
    bench = Bench::with(bench.state.ledger, &assembler, settings, table);
    // Another leader confirmed 5, and died before the cursor passed it.
    bench.poll(&first_window(1), vec![a(5), a(6), a(7)]);
    bench.pass(seconds(2)).await;
    assert_eq!(bench.tried(), [5]);
    let rows = [(5, Row::Confirmed), (6, Row::Parked(Reason::Invalid)), (7, Row::Queued)];
    assert_eq!((bench.table.states(), bench.position()), (rows.into(), (3, None)));
    assert_eq!(bench.state.aside.parked(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_keeper_wrote_is_taken_up() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    set_a_aside(&mut bench).await;
    bench.broker = WELL;
    // 1 is confirmed, and the keeper dies before it can write so.
    let became_confirmed = async {
        loop {
            tokio::time::advance(Duration::from_millis(100)).await;
            bench.state.on_wake();
            bench.state.dispatch().unwrap();
            bench.serve_keeper();
            if let [message] = &bench.sent()[..] {
                bench.answer(message.clone(), Published::Confirmed);
                return;
            }
        }
    };
    became_confirmed.await;
    let mut table = bench.end();
    assert_eq!(table.rows[&1].1, waiting(Reason::Nack));
    let settings = Settings { aside: table.aside(seconds(700)), ..settings(1_000_000) };
    table.rows.insert(2, (7, Row::Confirmed));
    let mut bench = Bench::with(&mut ledger, &assembler, settings, table);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.tried(), [1, 3], "a repeat, in order");
    assert!(bench.state.aside.is_empty());
}

#[tokio::test(start_paused = true)]
async fn no_more_than_a_hundred_thousand_keys_are_set_aside() {
    use crate::contract::KEYS_MAX;
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let head = |key: u64| crate::contract::Head {
        key,
        seq: 1_000_000 + key as Seq,
        state: HeadState::Parked,
        reason: Some(Reason::TooLarge),
        routing_key: None,
        waited: seconds(60),
    };
    let aside = |n: u64| AsideState { heads: (0..n).map(head).collect(), unpassed: Vec::new() };
    let all = Settings { aside: aside(KEYS_MAX as u64), ..settings(1_000_000) };
    let mut bench = Bench::with(&mut ledger, &assembler, all, Table::default());
    bench.broker = |message| if message.seq < 3 { NO_ROUTE } else { Published::Confirmed };
    bench.poll(&first_window(1), vec![of(1, "a", "x"), ev(3), of(4, "b", "y"), of(5, "c", "z")]);
    bench.pass(seconds(3)).await;
    bench.stream(1, vec![ev(6), ev(7)], 100);
    bench.pass(seconds(4)).await;
    assert_eq!(bench.position(), (0, None), "it holds the cursor");
    let reason = bench.reason("parked").unwrap();
    assert_eq!(reason.severity, crate::health::Severity::NotReady);
    assert!(reason.text.contains("statecast parked"), "{}", reason.text);
    assert_eq!(bench.metrics.parked_events.get(), KEYS_MAX as i64);
    assert!(bench.metrics.oldest_parked_age_seconds.get() >= 60.0);
    // One is live again, and there is room for one.
    bench.table.rows.insert(1_000_007, (7, Row::Parked(Reason::TooLarge)));
    bench.ask(1_000_007, crate::contract::Act::Discard);
    bench.pass(seconds(2)).await;
    assert_eq!(bench.table.rows[&1_000_007].1, Row::Discarded);
    assert_eq!((bench.state.aside.len(), bench.position()), (KEYS_MAX, (4, None)));
    drop(bench);
    // With more than are known nothing is read: their events would be overtaken.
    let more = Settings { aside: aside(KEYS_MAX as u64 + 1), ..settings(1_000_000) };
    let bench = Bench::with(&mut ledger, &assembler, more, Table::default());
    assert!(!bench.state.has_room() && !bench.state.is_relieved());
}

#[tokio::test(start_paused = true)]
async fn a_commit_carries_a_thousand_rows() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NACKS_A;
    let window = |ceil| {
        let window = Arc::into_inner(first_window(1)).unwrap();
        Arc::new(Window { ceil, ..window })
    };
    bench.poll_more(&window(5000), (1..=2500).map(a).collect(), false);
    bench.pass(seconds(2)).await;
    bench.poll_more(&window(5000), vec![ev(3000)], false);
    bench.pass(seconds(5)).await;
    assert_eq!((bench.table.rows.len(), bench.position().0), (2500, 2501));
    let sizes: Vec<usize> =
        bench.commits.iter().map(|commit| commit.set_aside.len()).filter(|n| *n > 0).collect();
    assert_eq!(sizes, [1000, 1000, 500]);
    // And they come back in order.
    bench.broker = WELL;
    bench.tried();
    bench.pass(seconds(200)).await;
    assert_eq!(bench.tried(), (1..=2500).collect::<Vec<_>>());
    assert!(bench.commits.iter().all(|commit| commit.changes.len() <= 1000));
    assert!(bench.state.aside.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_can_never_go_is_parked_at_once_and_a_person_may_retry_it() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = |message| match message.seq {
        2 => Published::TooLarge { reason: "5 over 4".into() },
        _ => Published::Confirmed,
    };
    let mut invalid = event(5, "b", 10);
    invalid.recorded_at_us = i64::MAX;
    bench.poll(&first_window(1), vec![a(1), a(2), a(3), event(4, "b", 10), invalid, event(6, "b", 10)]);
    bench.turn();
    assert_eq!(bench.tried(), [1, 4, 2]);
    bench.pass(seconds(1)).await;
    let parked = |reason| Row::Parked(reason);
    let rows =
        [(2, parked(Reason::TooLarge)), (3, Row::Queued), (5, parked(Reason::Invalid)), (6, Row::Queued)];
    assert_eq!((bench.table.states(), bench.position()), (rows.into(), (6, None)));
    let parked = &bench.metrics.events_parked;
    assert_eq!((parked.too_large.get(), parked.invalid.get(), parked.unroutable.get()), (1, 1, 0));
    assert_eq!(bench.reason("parked").unwrap().severity, crate::health::Severity::Warning);
    let mut rows = bench.commits.iter().flat_map(|commit| &commit.set_aside);
    let row = rows.find(|row| row.seq == 2).unwrap();
    assert!(matches!(&row.state, Aside::Parked(refusal) if refusal.detail == "5 over 4"));
    // Retried: 2 goes now, 5 cannot.
    bench.broker = WELL;
    bench.ask(2, crate::contract::Act::Retry);
    bench.ask(5, crate::contract::Act::Retry);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.tried(), [2, 3]);
    assert_eq!(bench.table.states()[2..], [(5, Row::Parked(Reason::Invalid)), (6, Row::Queued)]);
    let changes: Vec<_> = bench.commits.iter().flat_map(|commit| &commit.changes).collect();
    let of_5: Vec<_> = changes.iter().filter(|change| change.seq == 5).collect();
    assert!(
        matches!(of_5[..], [first, second] if first.to == Became::Retry && matches!(second.to, Became::Parked(_)))
    );
}

#[tokio::test(start_paused = true)]
async fn an_event_that_can_never_go_waits_for_its_turn() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NACKS_A;
    let mut invalid = a(2);
    invalid.recorded_at_us = i64::MAX;
    bench.poll_more(&first_window(1), vec![a(1), invalid, a(3)], false);
    bench.pass(seconds(2)).await;
    assert!(bench.table.rows.is_empty());
    bench.poll_more(&first_window(1), vec![ev(4)], false);
    bench.pass(seconds(4)).await;
    assert_eq!(bench.table.states(), [(1, waiting(Reason::Nack)), (2, Row::Queued), (3, Row::Queued)]);
    bench.broker = WELL;
    bench.pass(seconds(20)).await;
    let rows = [(1, Row::Confirmed), (2, Row::Parked(Reason::Invalid)), (3, Row::Queued)];
    assert_eq!(bench.table.states(), rows);
}

#[tokio::test(start_paused = true)]
async fn what_waits_behind_an_event_that_can_never_go_leaves_room_for_its_page() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let settings = Settings { window: 1, ..settings(2000) };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, Table::default());
    bench.stream(1, vec![a(2), a(3), event(4, "a", 5000)], 100);
    let sent = bench.sent();
    bench.stream(1, vec![event(5, "a", 5000)], 200);
    bench.answer(sent[0].clone(), Published::TooLarge { reason: "5 over 4".into() });
    assert!(bench.state.has_room(), "the page comes after them");
    bench.stream(1, vec![event(6, "a", 5000)], 300);
    assert!(bench.state.has_room() && bench.sent().is_empty());
    // One that was missed comes before it, and goes.
    bench.input(Input::Rows(Batch { events: vec![a(1)], late: Some(Seq::MAX) }));
    assert_eq!(bench.confirm_all(), [1]);
    bench.poll(&first_window(1), vec![a(1), a(2), a(3)]);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(2, Row::Parked(Reason::TooLarge)), (3, Row::Queued)]);
}

#[tokio::test(start_paused = true)]
async fn with_more_rows_before_the_cursor_than_can_be_known_nothing_is_read_and_the_session_goes_on() {
    use crate::contract::UNPASSED_MAX;
    let assembler = assembler();
    let many: Vec<Seq> = (1..=UNPASSED_MAX as Seq + 1).collect();
    // Far apart, fewer are too many as well.
    let sparse: Vec<Seq> = (1..=100_000).map(|n| n * 10_000).collect();
    for (unpassed, fits) in [(many[..UNPASSED_MAX].to_vec(), true), (many, false), (sparse, false)] {
        let mut ledger = Ledger::default();
        let settings = Settings { aside: AsideState { heads: Vec::new(), unpassed }, ..settings(1_000_000) };
        let mut bench = Bench::with(&mut ledger, &assembler, settings, Table::default());
        assert_eq!(bench.state.has_room(), fits);
        assert!(!bench.state.is_relieved(), "another session would find the same");
        bench.state.report();
        let told = bench.reason("parked").is_some_and(|reason| reason.text.contains("cursor rebase"));
        assert_eq!(told, !fits);
    }
}
