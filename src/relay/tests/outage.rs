//! When the broker is unwell as a whole nothing is set aside.

use super::bench::{Bench, NO_ROUTE, Row, WELL, ev, events, first_window, of};
use super::*;
use crate::contract::Reason;
use crate::health::Severity;
use crate::relay::window::OUTAGE_SLOTS_MAX;

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_set_aside_and_reading_is_bounded() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let settings = Settings { window: 100, ..settings(1_000_000_000) };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, Default::default());
    bench.broker = |_| Published::Nacked;
    bench.poll_more(&first_window(1), events(1..=50), false);
    bench.pass(seconds(20)).await;
    assert!(bench.table.rows.is_empty() && bench.state.has_room());
    let reason = bench.reason("outage").unwrap();
    assert_eq!(reason.severity, Severity::NotReady);
    assert!(reason.text.contains("nack") && reason.text.contains("(seq "), "{}", reason.text);
    // Of all that is read, bodies that were let go included.
    let first = 100;
    bench.stream(1, events(first..first + OUTAGE_SLOTS_MAX as Seq), 10);
    bench.turn();
    assert!(!bench.state.has_room());
    // It heals: all are tried at once, and nothing leaves that goes now.
    bench.broker = WELL;
    bench.pass(seconds(61)).await;
    assert!(bench.table.rows.is_empty() && bench.reason("outage").is_none());
    assert_eq!(bench.position(), (50, Some(50)));
    assert!(bench.state.held.is_empty() && bench.state.has_room());
}

#[tokio::test(start_paused = true)]
async fn an_outage_names_the_routing_keys_and_ends_with_the_first_that_is_taken() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = |message| if message.routing_key == "order.a" { Published::Confirmed } else { NO_ROUTE };
    let three = vec![of(1, "a", "a"), of(2, "b", "b"), of(3, "c", "c")];
    bench.poll_more(&first_window(1), three, false);
    for n in 0..30 {
        bench.stream(1, vec![of(100 + n, "a", "a")], 100 + n as u64);
        bench.pass(seconds(1)).await;
    }
    assert!(bench.table.rows.is_empty(), "two of three are paused");
    let text = bench.reason("outage").unwrap().text;
    assert!(text.contains("order.b") && text.contains("order.c") && text.contains("312"), "{text}");
    // One is bound: the other is one event's business, once it was refused again.
    bench.broker = |message| if message.routing_key == "order.b" { NO_ROUTE } else { Published::Confirmed };
    bench.pass(seconds(70)).await;
    assert_eq!(bench.table.states(), [(2, Row::Waiting(Reason::Unroutable))]);
    assert!(bench.reason("outage").is_none());
    assert_eq!(bench.position(), (3, Some(3)));
}

#[tokio::test(start_paused = true)]
async fn what_can_never_go_leaves_in_an_outage_too_and_nothing_follows_it() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = |_| Published::Nacked;
    bench.poll_more(&first_window(1), vec![ev(1)], false);
    bench.pass(seconds(10)).await;
    let mut invalid = event(2, "a", 10);
    invalid.recorded_at_us = i64::MAX;
    bench.poll_more(&first_window(1), vec![invalid, event(3, "a", 10)], false);
    bench.pass(seconds(5)).await;
    assert_eq!(bench.table.states(), [(2, Row::Parked(Reason::Invalid))]);
    let commits = bench.commits.len();
    bench.pass(seconds(10)).await;
    assert_eq!(bench.commits.len(), commits, "nothing is written while there is nothing to write");
    bench.broker = WELL;
    bench.pass(seconds(61)).await;
    assert_eq!(bench.table.states(), [(2, Row::Parked(Reason::Invalid)), (3, Row::Queued)]);
    assert_eq!(bench.position(), (3, Some(3)));
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_too_large_leaves_room_in_an_outage() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::with(&mut ledger, &assembler, settings(10_000), Default::default());
    bench.broker = |message| match message.seq {
        1 => Published::Nacked,
        _ => Published::TooLarge { reason: "5 over 4".into() },
    };
    bench.stream(1, vec![ev(1), event(2, "b", 50_000)], 100);
    bench.pass(seconds(10)).await;
    assert!(bench.state.outage.since().is_some() && bench.state.has_room());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_parked_in_an_outage() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let settings = Settings { park_after: seconds(60), ..settings(1_000_000) };
    let mut bench = Bench::with(&mut ledger, &assembler, settings, Default::default());
    bench.broker = |message| if message.routing_key == "order.a" { NO_ROUTE } else { Published::Confirmed };
    bench.poll_more(&first_window(1), vec![of(1, "a", "a"), of(2, "b", "b")], false);
    bench.pass(seconds(2)).await;
    bench.stream(1, vec![of(50, "b", "b")], 50);
    bench.pass(seconds(5)).await;
    assert_eq!(bench.table.states(), [(1, Row::Waiting(Reason::Unroutable))]);
    // Now nothing works.
    bench.broker = |message| if message.routing_key == "order.a" { NO_ROUTE } else { Published::Nacked };
    bench.stream(1, vec![of(51, "c", "b")], 51);
    bench.pass(seconds(300)).await;
    assert_eq!(bench.table.states(), [(1, Row::Waiting(Reason::Unroutable))]);
    // All works: the routing key is tried before anything is given up.
    bench.broker = WELL;
    bench.pass(seconds(61)).await;
    assert_eq!(bench.table.states(), [(1, Row::Confirmed)]);
}

/// A batch that nobody takes may be what the outage begins with: more is read all the same, and what is taken ends it.
#[tokio::test(start_paused = true)]
async fn an_outage_that_begins_with_much_can_be_disproved() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::with(&mut ledger, &assembler, settings(1_000_000), Default::default());
    bench.broker = |message| if message.routing_key == "order.b" { Published::Confirmed } else { NO_ROUTE };
    let count = 2 * OUTAGE_SLOTS_MAX as Seq;
    let batch = (1..=count).map(|seq| of(seq, &format!("a{seq}"), "a")).collect();
    bench.poll_more(&first_window(1), batch, false);
    bench.pass(seconds(20)).await;
    assert!(bench.table.rows.is_empty() && bench.reason("outage").is_some());
    assert!(bench.state.has_room(), "for somebody who proves it");
}

/// What a stream brings for keys that wait cannot be set aside before its page; so it must not fill the room for that.
#[tokio::test(start_paused = true)]
async fn a_stream_gives_way_before_the_room_is_full() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::with(&mut ledger, &assembler, settings(1_000_000), Default::default());
    bench.broker = |_| NO_ROUTE;
    for n in 0..30 {
        let first = 1 + n * 4_000;
        bench.stream(1, (first..first + 4_000).map(|seq| of(seq, "a", "a")).collect(), 10 + n as u64);
        bench.turn();
    }
    assert!(bench.state.held.is_crowded());
    assert!(bench.state.has_room(), "for the page, and the rows that it finds missing");
}
