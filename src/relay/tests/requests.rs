//! What people ask for, whatever the key does.

use super::bench::{Bench, Row, Table, WELL, first_window};
use super::*;
use crate::contract::{Act, Asked, Became, Head, HeadState, ParkedRows, Reason};

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn key() -> u64 {
    crate::event::assemble::key_hash("order", "a")
}

fn a(seq: Seq) -> Event {
    event(seq, "a", 10)
}

const PARKED: Row = Row::Parked(Reason::TooLarge);
const WAITING: Row = Row::Waiting(Reason::Nack);

/// Key "a" has these rows in the table, and everything before them has been passed.
fn bench<'a>(ledger: &'a mut Ledger, assembler: &'a Assembler, rows: &[(Seq, Row)]) -> Bench<'a> {
    let mut table = Table::default();
    table.rows.extend(rows.iter().map(|(seq, row)| (*seq, (key(), *row))));
    let mut aside = table.aside(seconds(1));
    aside.unpassed.clear();
    let settings = Settings { aside, ..settings(1_000_000) };
    let mut bench = Bench::with(ledger, assembler, settings, table);
    bench.knows(rows.iter().map(|(seq, _)| a(*seq)));
    bench
}

fn became(bench: &Bench<'_>, seq: Seq) -> Vec<Became> {
    let changes = bench.commits.iter().flat_map(|commit| &commit.changes);
    changes.filter(|change| change.seq == seq).map(|change| change.to.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_parked_row_is_retried_or_discarded_and_the_rest_follows() {
    let assembler = assembler();
    for (act, tried) in [(Act::Retry, vec![1, 2, 3]), (Act::Discard, vec![2, 3])] {
        let mut ledger = Ledger::default();
        let rows = [(1, PARKED), (2, Row::Queued), (3, Row::Queued)];
        let mut bench = bench(&mut ledger, &assembler, &rows);
        bench.pass(seconds(70)).await;
        assert!(bench.tried().is_empty(), "nobody has asked");
        bench.ask(1, act);
        bench.ask(1, act);
        bench.pass(seconds(1)).await;
        assert_eq!((bench.tried(), bench.state.aside.is_empty()), (tried, true));
        let answer = if act == Act::Retry { Became::Retry } else { Became::Discarded };
        assert_eq!(became(&bench, 1)[0], answer);
        bench.ask(1, Act::Discard);
        bench.pass(seconds(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_refused_again_waits_again() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = bench(&mut ledger, &assembler, &[(1, PARKED), (2, Row::Queued)]);
    bench.broker = |message| match message.seq {
        1 => Published::TooLarge { reason: "5 over 4".into() },
        _ => Published::Confirmed,
    };
    bench.ask(1, Act::Retry);
    bench.pass(seconds(1)).await;
    assert_eq!((bench.tried(), bench.table.states()), (vec![1], vec![(1, PARKED), (2, Row::Queued)]));
    bench.broker = |_| Published::Nacked;
    bench.ask(1, Act::Retry);
    bench.pass(Duration::from_millis(500)).await;
    assert_eq!((bench.tried(), bench.table.states()), (vec![1], vec![(1, WAITING), (2, Row::Queued)]));
    // Before its back-off is over.
    bench.broker = WELL;
    bench.ask(1, Act::Retry);
    bench.pass(Duration::from_millis(300)).await;
    assert_eq!(bench.tried(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_tried_whatever_its_routing_key_is_known_for() {
    let assembler = assembler();
    for healed in [false, true] {
        let mut ledger = Ledger::default();
        let mut table = Table::default();
        table.rows.insert(1, (key(), Row::Waiting(Reason::Unroutable)));
        table.rows.insert(2, (7, Row::Waiting(Reason::Unroutable)));
        let head = |key, seq| Head {
            key,
            seq,
            state: HeadState::Waiting,
            reason: Some(Reason::Unroutable),
            routing_key: Some("order.changed".into()),
            waited: seconds(1),
        };
        let aside = AsideState { heads: vec![head(7, 2), head(key(), 1)], unpassed: Vec::new() };
        let mut bench =
            Bench::with(&mut ledger, &assembler, Settings { aside, ..settings(1_000_000) }, table);
        let mut other = a(2);
        other.aggregate_id = "b".into();
        bench.knows([a(1), other]);
        bench.broker = |_| Published::Returned { code: 312, text: "NO_ROUTE".into() };
        bench.pass(Duration::from_millis(500)).await;
        assert_eq!(bench.tried(), [2]);
        if healed {
            bench.broker = WELL;
        }
        bench.ask(1, Act::Retry);
        bench.pass(Duration::from_millis(200)).await;
        assert_eq!(bench.tried(), if healed { vec![1, 2] } else { vec![1] });
        assert_eq!(bench.state.routes.is_empty(), healed);
    }
}

#[tokio::test(start_paused = true)]
async fn a_row_in_flight_is_decided_by_its_answer() {
    let assembler = assembler();
    for answer in [Published::Confirmed, Published::Nacked] {
        let mut ledger = Ledger::default();
        let mut bench = bench(&mut ledger, &assembler, &[(1, WAITING), (2, Row::Queued)]);
        bench.state.on_wake();
        bench.state.dispatch().unwrap();
        bench.serve_keeper();
        let sent = bench.sent();
        assert_eq!(sent.len(), 1);
        bench.ask(1, Act::Discard);
        bench.answer(sent[0].clone(), answer.clone());
        // It was asked before the answer was written.
        bench.ask(1, Act::Discard);
        assert!(bench.commits.is_empty());
        bench.state.commit();
        bench.serve_keeper();
        match answer {
            Published::Confirmed => {
                assert_eq!(bench.table.rows[&1].1, Row::Confirmed);
                assert_eq!(bench.sent_seqs(), [2]);
            }
            _ => {
                assert_eq!(bench.table.rows[&1].1, WAITING);
                bench.ask(1, Act::Discard);
                bench.pass(seconds(1)).await;
                assert_eq!((bench.table.rows[&1].1, bench.tried()), (Row::Discarded, vec![2]));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_past_a_discard_that_is_not_written() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let rows = [(1, WAITING), (2, Row::Queued), (3, Row::Queued)];
    let mut bench = bench(&mut ledger, &assembler, &rows);
    bench.state.on_wake();
    bench.state.dispatch().unwrap();
    // The recall is on its way when the head is discarded.
    bench.ask(1, Act::Discard);
    bench.serve_keeper();
    assert!(bench.sent().is_empty(), "the keeper may die before it writes that");
    bench.state.commit();
    bench.serve_keeper();
    let sent = bench.sent();
    assert_eq!(sent.iter().map(|message| message.seq).collect::<Vec<_>>(), [2]);
    // A recalled row behind the one in flight.
    bench.ask(3, Act::Discard);
    bench.answer(sent[0].clone(), Published::Confirmed);
    assert!(bench.sent().is_empty());
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(1, Row::Discarded), (2, Row::Confirmed), (3, Row::Discarded)]);
    assert!(bench.state.aside.is_empty() && bench.tried().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_given_up_stops_a_recall_which_names_it() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let queued = |seq| (seq, Row::Queued);
    let rows = [(1, WAITING), queued(2), queued(3), queued(4), queued(5), (6, PARKED), queued(7)];
    let mut bench = bench(&mut ledger, &assembler, &rows);
    // So many are that the keeper has not told of these yet.
    bench.table.given_up.extend([2, 4, 5, 6]);
    bench.state.on_wake();
    bench.state.dispatch().unwrap();
    bench.serve_keeper();
    let sent = bench.sent();
    assert_eq!(sent.iter().map(|message| message.seq).collect::<Vec<_>>(), [1]);
    bench.answer(sent[0].clone(), Published::Confirmed);
    assert!(bench.sent().is_empty(), "2 is not written as discarded");
    // It comes up in the keeper's list meanwhile.
    bench.ask(2, Act::Discard);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.tried(), [3, 7]);
    for seq in [2, 4, 5, 6] {
        assert_eq!(became(&bench, seq), [Became::Discarded], "{seq}");
    }
    assert!(bench.state.aside.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_queued_row_is_discarded_where_it_stands() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let rows = [(1, PARKED), (2, Row::Queued), (3, Row::Queued)];
    let mut bench = bench(&mut ledger, &assembler, &rows);
    bench.ask(2, Act::Discard);
    bench.ask(3, Act::Retry);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(1, PARKED), (2, Row::Discarded), (3, Row::Queued)]);
    assert_eq!(became(&bench, 3), [Became::Unchanged], "it waits for those before it");
    assert!(bench.tried().is_empty());
    bench.ask(1, Act::Discard);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.tried(), [3]);
}

#[tokio::test(start_paused = true)]
async fn a_parked_row_in_the_middle_stops_its_key() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let rows = [(1, Row::Queued), (2, PARKED), (3, Row::Queued)];
    let mut bench = bench(&mut ledger, &assembler, &rows);
    bench.poll(&first_window(1), vec![a(4)]);
    bench.pass(seconds(5)).await;
    let states = [(1, Row::Confirmed), (2, PARKED), (3, Row::Queued), (4, Row::Queued)];
    assert_eq!((bench.tried(), bench.table.states()), (vec![1], states.into()));
    bench.ask(2, Act::Retry);
    bench.pass(seconds(5)).await;
    assert_eq!((bench.tried(), bench.state.aside.is_empty()), (vec![2, 3, 4], true));
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_row_that_is_final_is_refused_and_counts_for_no_key() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    let asked = vec![Asked { seq: 90, key: key(), act: Act::Discard }];
    bench.table.rows.insert(90, (key(), Row::Confirmed));
    bench.state.on_keeper(FromKeeper::Asked(asked.clone()));
    bench.state.on_keeper(FromKeeper::Asked(asked));
    // Its key is set aside while the answer is on its way.
    let mut invalid = a(1);
    invalid.recorded_at_us = i64::MAX;
    bench.poll(&first_window(1), vec![invalid]);
    bench.pass(seconds(1)).await;
    assert_eq!(became(&bench, 90), [Became::Unchanged]);
    assert_eq!(bench.table.rows[&1].1, Row::Parked(Reason::Invalid));
    bench.ask(1, Act::Discard);
    bench.pass(seconds(1)).await;
    assert!(bench.state.aside.is_empty());
}

#[tokio::test(start_paused = true)]
async fn parked_rows_are_told_as_the_keeper_counts_them() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = bench(&mut ledger, &assembler, &[(1, PARKED)]);
    let told = |bench: &mut Bench<'_>| {
        bench.state.report();
        (bench.metrics.parked_events.get(), bench.metrics.oldest_parked_age_seconds.get().round())
    };
    assert_eq!(told(&mut bench), (1, 1.0), "the head of each key, from the start");
    let parked = |rows, s| FromKeeper::Parked(ParkedRows { rows, oldest: seconds(s) });
    bench.state.on_keeper(parked(7, 100));
    tokio::time::advance(seconds(3)).await;
    assert_eq!(told(&mut bench), (7, 103.0));
    bench.state.on_keeper(parked(0, 0));
    assert_eq!(told(&mut bench), (1, 4.0));
}
