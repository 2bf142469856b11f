//! Routing keys that no queue takes.

use super::bench::{Bench, Broker, NO_ROUTE, Row, WELL, ev, first_window, of};
use super::*;
use crate::contract::{Became, Reason};

const UNROUTABLE: Row = Row::Waiting(Reason::Unroutable);
/// No queue takes `order.ghost`.
const NO_GHOSTS: Broker =
    |message| if message.routing_key.ends_with("ghost") { NO_ROUTE } else { Published::Confirmed };

fn seconds(s: u64) -> Duration {
    Duration::from_secs(s)
}

fn ghost(seq: Seq) -> Event {
    of(seq, &format!("g{seq}"), "ghost")
}

/// Confirms something with another routing key.
fn pulse(bench: &mut Bench<'_>, seq: Seq) {
    bench.stream(1, vec![of(seq, &format!("p{seq}"), "pulse")], seq as u64);
}

#[tokio::test(start_paused = true)]
async fn others_wait_without_being_tried_and_go_when_one_is_taken() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NO_GHOSTS;
    bench.stream(1, vec![ghost(1), ev(2)], 10);
    bench.turn();
    bench.stream(1, vec![ghost(3), ghost(4), ev(5)], 20);
    bench.pass(seconds(4)).await;
    let tried = bench.tried();
    assert!(tried.iter().filter(|seq| **seq == 1).count() >= 2, "{tried:?}");
    assert_eq!(
        tried.iter().filter(|seq| [3, 4].contains(seq)).count(),
        1,
        "the next one is the next probe: {tried:?}"
    );
    assert_eq!(bench.metrics.keys_paused.returned.get(), 1);
    bench.broker = WELL;
    bench.pass(seconds(8)).await;
    let mut tried = bench.tried();
    tried.sort_unstable();
    assert_eq!(tried, [1, 3, 4]);
    assert!(bench.state.routes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_routing_key_is_probed_for_what_is_set_aside_alone_and_all_come_back() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NO_GHOSTS;
    bench.poll_more(&first_window(1), vec![ghost(1), ghost(2), ghost(3), ev(4)], false);
    pulse(&mut bench, 50);
    bench.pass(seconds(3)).await;
    pulse(&mut bench, 51);
    bench.pass(seconds(3)).await;
    assert_eq!(bench.table.states(), [(1, UNROUTABLE), (2, UNROUTABLE), (3, UNROUTABLE)]);
    assert_eq!(bench.position(), (4, Some(4)));
    // Another key with that routing key is not tried either; it follows into the table.
    bench.tried();
    bench.poll_more(&first_window(1), vec![ghost(5)], false);
    pulse(&mut bench, 52);
    bench.pass(seconds(4)).await;
    pulse(&mut bench, 53);
    bench.pass(seconds(4)).await;
    assert!(!bench.tried().contains(&5));
    assert_eq!(bench.table.rows[&5].1, UNROUTABLE);
    // One at a time, further and further apart.
    bench.pass(seconds(240)).await;
    let probes = bench.tried().len();
    assert!((4..=8).contains(&probes), "{probes}");
    assert!(bench.reason("outage").is_none(), "what is only probed for what is set aside does not count");
    bench.broker = WELL;
    bench.pass(seconds(70)).await;
    assert!(bench.state.aside.is_empty() && bench.state.routes.is_empty());
    assert!(bench.table.states().iter().all(|(_, row)| *row == Row::Confirmed));
}

#[tokio::test(start_paused = true)]
async fn it_is_parked_after_a_while_counted_from_its_beginning() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NO_GHOSTS;
    bench.poll_more(&first_window(1), vec![ghost(1), ev(4)], false);
    bench.pass(seconds(2)).await;
    pulse(&mut bench, 50);
    bench.pass(seconds(4)).await;
    assert_eq!(bench.table.states(), [(1, UNROUTABLE)]);
    bench.pass(seconds(100)).await;
    // Another process goes on 8 min later. What it finds is tried before it is given up.
    let table = bench.end();
    for (waited, rest) in [(590, 12), (4000, 2)] {
        let mut other = Ledger::default();
        let settings = Settings { aside: table.aside(seconds(waited)), ..settings(1_000_000) };
        let mut bench = Bench::with(&mut other, &assembler, settings, table.clone());
        bench.broker = NO_GHOSTS;
        bench.pass(Duration::from_millis(100)).await;
        assert_eq!(bench.tried(), [1], "after {waited} s");
        bench.pass(seconds(rest)).await;
        assert_eq!(bench.table.states(), [(1, Row::Parked(Reason::Unroutable))], "after {waited} s");
        assert_eq!(bench.metrics.events_parked.unroutable.get(), 1);
        assert!(bench.state.routes.is_empty(), "nobody waits for it any more");
        bench.tried();
        bench.pass(seconds(100)).await;
        assert!(bench.tried().is_empty());
    }
    // It has healed meanwhile.
    let mut other = Ledger::default();
    let settings = Settings { aside: table.aside(seconds(4000)), ..settings(1_000_000) };
    let mut bench = Bench::with(&mut other, &assembler, settings, table);
    bench.pass(seconds(1)).await;
    assert_eq!(bench.table.states(), [(1, Row::Confirmed)]);
}

#[tokio::test(start_paused = true)]
async fn a_nack_is_never_parked() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = |message| if message.seq == 1 { Published::Nacked } else { Published::Confirmed };
    bench.poll_more(&first_window(1), vec![ghost(1), ev(4)], false);
    bench.pass(seconds(2)).await;
    pulse(&mut bench, 50);
    bench.pass(seconds(3600)).await;
    assert_eq!(bench.table.states(), [(1, Row::Waiting(Reason::Nack))]);
    assert!(bench.tried().len() > 50);
}

#[tokio::test(start_paused = true)]
async fn a_nack_says_that_a_queue_is_there() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = NO_GHOSTS;
    bench.stream(1, vec![ghost(1), ghost(2)], 10);
    bench.turn();
    bench.stream(1, vec![ghost(3)], 20);
    bench.broker = |message| if message.seq == 1 { Published::Nacked } else { Published::Confirmed };
    bench.pass(seconds(1)).await;
    assert_eq!(bench.tried()[..2], [1, 2]);
    bench.pass(seconds(1)).await;
    assert!(bench.state.routes.is_empty());
    assert_eq!(bench.state.keys.backing_off(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_drains_waits_for_a_paused_routing_key_without_being_tried() {
    let (mut ledger, assembler) = (Ledger::default(), assembler());
    let mut bench = Bench::new(&mut ledger, &assembler);
    bench.broker = |message| if message.seq == 1 { Published::Nacked } else { NO_GHOSTS(message) };
    bench.poll_more(&first_window(1), vec![of(1, "a", "x"), of(2, "a", "ghost"), ev(4)], false);
    bench.pass(seconds(2)).await;
    pulse(&mut bench, 50);
    bench.pass(seconds(4)).await;
    assert_eq!(bench.table.states(), [(1, Row::Waiting(Reason::Nack)), (2, Row::Queued)]);
    bench.stream(1, vec![ghost(60)], 60);
    bench.turn();
    bench.tried();
    bench.broker = NO_GHOSTS;
    for _ in 0..200 {
        bench.pass(Duration::from_millis(100)).await;
        if bench.table.rows[&2].1 == UNROUTABLE {
            break;
        }
    }
    assert_eq!(bench.table.states(), [(1, Row::Confirmed), (2, UNROUTABLE)]);
    assert!(!bench.tried().contains(&2));
    let mut changes = bench.commits.iter().flat_map(|commit| &commit.changes);
    let became = &changes.find(|change| change.seq == 2).unwrap().to;
    assert!(
        matches!(became, Became::Waiting { routing_key, tried: false, .. } if routing_key == "order.ghost"),
        "{became:?}"
    );
    bench.broker = WELL;
    bench.pass(seconds(60)).await;
    assert!(bench.state.aside.is_empty() && bench.state.routes.is_empty());
}
