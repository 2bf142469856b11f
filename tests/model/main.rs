//! A model of polling by snapshot difference: PostgreSQL's transaction ids, snapshots and sequence, a source, its cursor
//! row and its restarts, explored through every interleaving of small cases.
//!
//! The decisions (what a snapshot sees, what a window holds, which bounds go with P) are those of the production code.
//! What the model adds is PostgreSQL: `xmin` is the oldest running transaction, `xmax` is one past the *latest
//! completed* id, `xip` lists the running ones between; a transaction takes its id before its first sequence value; a
//! lock on the key is held to the end of the transaction. And the keeper: a cursor write is a transaction with its own
//! id, its `max_seq` was known before it began, it stores some position that the source has already read beyond.
//!
//! Checked in every state: nothing is hidden by P, by `prune_seq` or by `floor_seq`; nothing is delivered twice within a
//! session or again once the cursor row covers it; first deliveries keep the order of their key. In every state without a
//! running writer: reading on delivers what is left, and so does a restart.
//!
//! The same exploration with a wrong reader in place of the right one must find its fault, and prints the schedule.

#![cfg(test)]

mod checks;
mod explore;
mod source;
mod world;

use explore::{Search, explore};
use world::{Case, Fault, Op, Reader, Step, World};

const A: u8 = 1;
const B: u8 = 2;

/// Takes an id early, writes these keys, ends with `last`.
fn tx(keys: &[u8], last: Op) -> Vec<Op> {
    let writes = keys.iter().map(|key| Op::Write(*key));
    std::iter::once(Op::Xid).chain(writes).chain([last]).collect()
}

/// Rows per page and moves: polls, cursor writes, restarts.
fn case(scripts: &[Vec<Op>], page: usize, [polls, writes, restarts]: [u8; 3]) -> Case {
    Case { scripts: scripts.to_vec(), page, polls, writes, restarts }
}

fn holds(name: &str, case: &Case) {
    let started = std::time::Instant::now();
    match explore(Reader::SnapshotDifference, case, Search::Depth) {
        Ok(states) => println!("{name}: {states} states, no fault, {:?}", started.elapsed()),
        Err(found) => panic!("{name}: {}\n{}", found.fault, found.schedule),
    }
}

fn two_of_one_key_and_another() -> [Vec<Op>; 3] {
    [tx(&[A], Op::Commit), tx(&[A], Op::Commit), tx(&[B], Op::Commit)]
}

#[test]
fn three_writers_read_far_ahead_of_the_cursor() {
    holds("three polls, a write, a restart", &case(&two_of_one_key_and_another(), 1, [3, 1, 1]));
}

#[test]
fn three_writers_and_two_cursor_writes() {
    holds("two polls, two writes, a restart", &case(&two_of_one_key_and_another(), 1, [2, 2, 1]));
}

#[test]
fn three_writers_of_one_key() {
    let scripts = [tx(&[A], Op::Commit), tx(&[A], Op::Commit), tx(&[A], Op::Commit)];
    holds("one key", &case(&scripts, 1, [3, 1, 1]));
}

#[test]
fn two_writers_of_two_keys() {
    let scripts = [tx(&[A, B], Op::Commit), tx(&[A, B], Op::Commit)];
    holds("pages of one", &case(&scripts, 1, [4, 2, 1]));
    holds("pages of two", &case(&scripts, 2, [4, 2, 1]));
}

#[test]
fn rolled_back_writers_leave_gaps() {
    let scripts = [tx(&[A], Op::End), tx(&[A], Op::End)];
    holds("roll-backs", &case(&scripts, 1, [4, 2, 1]));
}

#[test]
#[ignore = "20 s; the largest case that is worth its time"]
fn three_writers_with_all_moves() {
    holds("three polls, two writes, a restart", &case(&two_of_one_key_and_another(), 1, [3, 2, 1]));
}

/// The shortest schedule on which a wrong reader fails; it is printed.
fn finds(reader: Reader, case: &Case) -> Fault {
    match explore(reader, case, Search::Breadth) {
        Ok(states) => panic!("{reader:?}: no fault in {states} states"),
        Err(found) => {
            println!("{reader:?}: {}\n{}", found.fault, found.schedule);
            found.fault
        }
    }
}

#[test]
fn wrong_bounds_lose_rows() {
    let scripts = two_of_one_key_and_another();
    let case = case(&scripts, 2, [2, 1, 0]);
    for reader in [
        Reader::PruneByMaxSeqAtP,
        Reader::PruneByMaxSeqAtClose,
        Reader::MaxSeqInsideWrite,
        Reader::FloorAtOnce,
        Reader::IdCursor,
    ] {
        let fault = finds(reader, &case);
        assert!(matches!(fault, Fault::Lost { .. }), "{reader:?}: {fault}");
    }
}

#[test]
fn wrong_orders_let_a_row_overtake() {
    let scripts = two_of_one_key_and_another();
    let case = case(&scripts, 5, [2, 0, 0]);
    for reader in [Reader::OrderByXid, Reader::XminHorizon] {
        let fault = finds(reader, &case);
        assert!(matches!(fault, Fault::Overtaken { .. }), "{reader:?}: {fault}");
    }
}

/// Plays one schedule, then lets the reader read on.
fn replay(reader: Reader, case: &Case, schedule: &[Step]) -> Result<(), Fault> {
    let mut world = World::new(reader, case);
    for step in schedule {
        assert!(world.steps(case).contains(step), "{step:?} is not possible here");
        world.take(*step, case)?;
    }
    world.check_end()
}

/// T0 has the older id and writes later; it commits first. `xmax` is then T1's own id: T1 is running, not in `xip`, and
/// owns the smaller seq.
#[test]
fn an_id_at_xmax_with_a_small_seq() {
    let case = case(&[tx(&[A], Op::Commit), tx(&[B], Op::Commit)], 5, [1, 0, 0]);
    let schedule = [
        Step::Next(0), // xid 10
        Step::Next(1), // xid 11
        Step::Next(1), // seq 1
        Step::Next(0), // seq 2
        Step::Next(0), // commits
        Step::Poll,    // P = 11:11:
        Step::Next(1), // commits
    ];
    assert_eq!(replay(Reader::SnapshotDifference, &case, &schedule), Ok(()));
    assert_eq!(replay(Reader::PruneByMaxSeqAtP, &case, &schedule), Err(Fault::Lost { seq: 1 }));
    assert_eq!(replay(Reader::IdCursor, &case, &schedule), Err(Fault::Lost { seq: 1 }));
}

#[test]
fn the_older_transaction_commits_last() {
    let case = case(&[tx(&[A], Op::Commit), tx(&[B], Op::Commit)], 5, [1, 0, 0]);
    let schedule = [
        Step::Next(0), // xid 10
        Step::Next(0), // seq 1
        Step::Next(1), // xid 11
        Step::Next(1), // seq 2
        Step::Next(1), // commits
        Step::Poll,    // P = 10:12:10
        Step::Next(0), // commits
    ];
    assert_eq!(replay(Reader::SnapshotDifference, &case, &schedule), Ok(()));
    assert_eq!(replay(Reader::IdCursor, &case, &schedule), Err(Fault::Lost { seq: 1 }));
}
