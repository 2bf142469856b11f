//! Visits every state that a case can reach, and tells how a fault was reached.

use std::collections::{HashSet, VecDeque};

use statecast::event::Seq;

use crate::world::{Case, Fault, Op, Reader, Step, World, has};

/// A fault, and how to get there.
pub(crate) struct Found {
    pub(crate) fault: Fault,
    pub(crate) schedule: String,
}

/// Which state to continue with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// The newest: little memory.
    Depth,
    /// The oldest: the shortest schedule.
    Breadth,
}

/// Visits every reachable state once. Returns their number, or the first fault. A wrong reader is judged by what it
/// delivers, the right one by its bounds as well.
pub(crate) fn explore(reader: Reader, case: &Case, search: Search) -> Result<usize, Found> {
    let bounds = reader == Reader::SnapshotDifference;
    let mut seen = HashSet::new();
    let mut bytes = Vec::new();
    let mut path: Vec<(usize, Step)> = vec![(0, Step::Poll)];
    let mut open = VecDeque::from([(World::new(reader, case), 0)]);
    loop {
        let next = if search == Search::Depth { open.pop_back() } else { open.pop_front() };
        let Some((world, at)) = next else {
            return Ok(seen.len());
        };
        for step in world.steps(case) {
            let mut world = world.clone();
            let outcome =
                world.take(step, case).and_then(|()| if bounds { world.check_bounds() } else { Ok(()) });
            let fresh = seen.insert(world.fingerprint(&mut bytes));
            let outcome = outcome.and_then(|()| if fresh { world.check_end() } else { Ok(()) });
            if fresh || outcome.is_err() {
                path.push((at, step));
            }
            if let Err(fault) = outcome {
                return Err(Found { fault, schedule: schedule(reader, case, &path) });
            }
            if fresh {
                open.push_back((world, path.len() - 1));
            }
        }
    }
}

/// The steps that led to the last entry, in words.
fn schedule(reader: Reader, case: &Case, path: &[(usize, Step)]) -> String {
    let mut steps = Vec::new();
    let mut at = path.len() - 1;
    while at != 0 {
        steps.push(path[at].1);
        at = path[at].0;
    }
    steps.reverse();
    let mut world = World::new(reader, case);
    let mut lines = Vec::new();
    for step in steps {
        let before = world.delivered_ever;
        let failed = world.take(step, case).err();
        let what = match step {
            Step::Next(i) => {
                let tx = world.txs[usize::from(i)];
                let op = case.scripts[usize::from(i)][usize::from(tx.done) - 1];
                let seq = world.rows.len();
                match op {
                    Op::Xid => format!("T{i} takes xid {}", tx.xid),
                    Op::Write(key) => format!("T{i} (xid {}) writes key {key}, seq {seq}", tx.xid),
                    Op::Commit | Op::End => format!("T{i} (xid {}) commits", tx.xid),
                }
            }
            Step::Abort(i) => format!("T{i} rolls back"),
            Step::Poll => {
                let new: Vec<Seq> =
                    (1..=16).filter(|seq| has(world.delivered_ever & !before, *seq)).collect();
                let p = &world.frontier;
                format!(
                    "poll at {}: delivers {new:?}; P = {}, prune_seq {}",
                    world.snapshot(),
                    p.snapshot,
                    p.prune_seq
                )
            }
            Step::WriteBegin(_) => match &world.writing {
                Some((w, new)) => format!("cursor write takes xid {w}, P = {}", new.position.snapshot),
                None => String::new(),
            },
            Step::WriteCommit => format!("cursor write commits, max_seq {}", world.cursor.max_seq),
            Step::Restart => "restart from the cursor row".to_owned(),
        };
        lines.push(format!("  {what}"));
        lines.extend(failed.map(|fault| format!("  → {fault}")));
    }
    lines.join("\n")
}
