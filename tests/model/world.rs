//! The world of the model: transactions, sequence, snapshots, the source's memory and its cursor row.

use std::fmt;
use std::sync::Arc;

use statecast::contract::{Position, Window};
use statecast::event::{Seq, Xid};
use statecast::snapshot::Snapshot;
use statecast::source::poll::window::Frontier;

/// How the source reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// As built.
    SnapshotDifference,
    /// Wrong: prunes by the highest seq at P.
    PruneByMaxSeqAtP,
    /// Wrong: closing a window stores the newest committed `max_seq`, not the one that its snapshot saw.
    PruneByMaxSeqAtClose,
    /// Wrong: the cursor transaction has its id before `max_seq` is read.
    MaxSeqInsideWrite,
    /// Wrong: raises the floor to `max_seq` at once.
    FloorAtOnce,
    /// Wrong: rows of a window in the order of (xid, seq).
    OrderByXid,
    /// Wrong: rows above the last id.
    IdCursor,
    /// Wrong: rows of transactions below the oldest running one, after the last (xid, seq).
    XminHorizon,
}

impl Reader {
    pub(crate) fn has_windows(self) -> bool {
        !matches!(self, Reader::IdCursor | Reader::XminHorizon)
    }
}

/// What a writing transaction does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Takes its transaction id (a write elsewhere).
    Xid,
    /// Locks the key, allocates a seq, inserts the row.
    Write(u8),
    /// Commits.
    Commit,
    /// Commits or rolls back.
    End,
}

/// One case to explore.
pub(crate) struct Case {
    pub(crate) scripts: Vec<Vec<Op>>,
    /// Rows per page.
    pub(crate) page: usize,
    pub(crate) polls: u8,
    pub(crate) writes: u8,
    pub(crate) restarts: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Committed,
    Aborted,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Tx {
    pub(crate) xid: Xid,
    pub(crate) done: u8,
    pub(crate) state: State,
}

/// The row with seq i + 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) tx: u8,
    pub(crate) key: u8,
}

/// The cursor row. `settled` is what it claims: a set of rows, for the checks only.
#[derive(Clone, Debug)]
pub(crate) struct Cursor {
    pub(crate) position: Position,
    pub(crate) floor_seq: Seq,
    pub(crate) candidate: (Xid, Seq),
    pub(crate) max_seq: Seq,
    pub(crate) settled: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Next(u8),
    Abort(u8),
    Poll,
    /// Takes an id and stores the reached position with this index.
    WriteBegin(u8),
    WriteCommit,
    Restart,
}

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) reader: Reader,
    pub(crate) txs: Vec<Tx>,
    pub(crate) rows: Vec<Row>,
    pub(crate) next_xid: Xid,
    pub(crate) completed: Xid,
    pub(crate) cursor: Cursor,
    pub(crate) writing: Option<(Xid, Cursor)>,
    // The source's memory.
    pub(crate) frontier: Frontier,
    pub(crate) window: Option<Arc<Window>>,
    pub(crate) last: (Xid, Seq),
    pub(crate) max_seq: Seq,
    pub(crate) reached: Vec<(Position, u16)>,
    /// Rows settled when the session began, and delivered since.
    pub(crate) settled: u16,
    pub(crate) delivered_ever: u16,
    // Moves left.
    pub(crate) polls: u8,
    pub(crate) writes: u8,
    pub(crate) restarts: u8,
    pub(crate) page: usize,
}

/// What went wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Lost { seq: Seq },
    Hidden { seq: Seq, by: &'static str },
    Twice { seq: Seq },
    Overtaken { seq: Seq, by: Seq },
    Invented { seq: Seq },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Lost { seq } => write!(f, "seq {seq} is never delivered"),
            Fault::Hidden { seq, by } => write!(f, "seq {seq} is unsettled, yet hidden by {by}"),
            Fault::Twice { seq } => write!(f, "seq {seq} is delivered again"),
            Fault::Overtaken { seq, by } => write!(f, "seq {seq} is delivered after seq {by} of its key"),
            Fault::Invented { seq } => write!(f, "seq {seq} is delivered and did not commit"),
        }
    }
}

const FIRST_XID: Xid = 10;

impl World {
    pub(crate) fn new(reader: Reader, case: &Case) -> Self {
        let start = Position { snapshot: Arc::new(Snapshot::NOTHING), prune_seq: 0, window: None };
        let frontier = Frontier::stored(&start, 0);
        World {
            reader,
            txs: vec![Tx { xid: 0, done: 0, state: State::Running }; case.scripts.len()],
            rows: Vec::new(),
            next_xid: FIRST_XID,
            completed: FIRST_XID - 1,
            cursor: Cursor { position: start, floor_seq: 0, candidate: (0, 0), max_seq: 0, settled: 0 },
            writing: None,
            frontier,
            window: None,
            last: (0, 0),
            max_seq: 0,
            reached: Vec::new(),
            settled: 0,
            delivered_ever: 0,
            polls: case.polls,
            writes: case.writes,
            restarts: case.restarts,
            page: case.page,
        }
    }

    pub(crate) fn take_xid(&mut self) -> Xid {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// `pg_current_snapshot()`.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let xmax = self.completed + 1;
        let writers = self.txs.iter().filter(|tx| tx.state == State::Running && tx.xid != 0).map(|tx| tx.xid);
        let keeper = self.writing.iter().map(|(w, _)| *w);
        let mut xip: Vec<Xid> = writers.chain(keeper).filter(|xid| *xid < xmax).collect();
        xip.sort_unstable();
        Snapshot { xmin: xip.first().copied().unwrap_or(xmax), xmax, xip }
    }

    pub(crate) fn xid_of(&self, row: Row) -> Xid {
        self.txs[usize::from(row.tx)].xid
    }

    pub(crate) fn state_of(&self, row: Row) -> State {
        self.txs[usize::from(row.tx)].state
    }

    /// (xid, seq) of each committed row.
    pub(crate) fn committed(&self) -> impl Iterator<Item = (Xid, Seq)> {
        let rows = (1..).zip(&self.rows);
        rows.filter(|(_, row)| self.state_of(**row) == State::Committed)
            .map(|(seq, row)| (self.xid_of(*row), seq))
    }

    /// The steps that are possible now.
    pub(crate) fn steps(&self, case: &Case) -> Vec<Step> {
        let mut steps = Vec::new();
        for (i, tx) in (0u8..).zip(&self.txs) {
            let script = &case.scripts[usize::from(i)];
            let Some(op) = script.get(usize::from(tx.done)).filter(|_| tx.state == State::Running) else {
                continue;
            };
            // Of transactions that do the same, the first begins first: the other order is the same case.
            let twin = usize::from(i).checked_sub(1).filter(|twin| case.scripts[*twin] == *script);
            if tx.done == 0 && twin.is_some_and(|twin| self.txs[twin].done == 0) {
                continue;
            }
            match op {
                Op::Write(key) if self.locked(i, *key) => steps.push(Step::Abort(i)),
                Op::End => steps.extend([Step::Next(i), Step::Abort(i)]),
                _ => steps.push(Step::Next(i)),
            }
        }
        if self.polls > 0 {
            steps.push(Step::Poll);
        }
        match &self.writing {
            Some(_) => steps.push(Step::WriteCommit),
            None if self.writes > 0 => {
                steps.extend((0u8..).zip(&self.reached).map(|(i, _)| Step::WriteBegin(i)));
            }
            None => {}
        }
        if self.restarts > 0 {
            steps.push(Step::Restart);
        }
        steps
    }

    fn locked(&self, by: u8, key: u8) -> bool {
        self.rows.iter().any(|row| row.key == key && row.tx != by && self.state_of(*row) == State::Running)
    }

    pub(crate) fn take(&mut self, step: Step, case: &Case) -> Result<(), Fault> {
        match step {
            Step::Next(i) => {
                let tx = usize::from(i);
                let op = case.scripts[tx][usize::from(self.txs[tx].done)];
                self.txs[tx].done += 1;
                match op {
                    Op::Xid | Op::Write(_) if self.txs[tx].xid == 0 => self.txs[tx].xid = self.take_xid(),
                    Op::Commit | Op::End => self.end(tx, State::Committed),
                    _ => {}
                }
                if let Op::Write(key) = op {
                    self.rows.push(Row { tx: i, key });
                }
            }
            Step::Abort(i) => self.end(usize::from(i), State::Aborted),
            Step::Poll => {
                self.polls -= 1;
                self.poll()?;
            }
            Step::WriteBegin(index) => self.write_begin(usize::from(index)),
            Step::WriteCommit => self.write_commit(),
            Step::Restart => {
                self.restarts -= 1;
                self.restart();
            }
        }
        Ok(())
    }

    fn end(&mut self, tx: usize, state: State) {
        self.txs[tx].state = state;
        self.completed = self.completed.max(self.txs[tx].xid);
    }
}

pub(crate) fn bit(seq: Seq) -> u16 {
    1 << (seq - 1)
}

pub(crate) fn has(set: u16, seq: Seq) -> bool {
    set & bit(seq) != 0
}
