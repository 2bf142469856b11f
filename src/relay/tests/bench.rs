//! The relay's state with the other ends of its channels, step by step: what the loop does, called by hand.
//!
//! The keeper is scripted: it keeps a table of what is set aside, as the real one does. So is the broker, for `pass`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;
use crate::contract::{
    Act, Aside, Asked, Became, Commit, Committed, Head, HeadState, Position, Reason, Recall, Recalled,
    RecalledKey, Streamed, Then,
};

/// A server.
pub(super) const HERE: (i64, i32) = (7, 1);
/// Between two steps of `pass`.
const STEP: Duration = Duration::from_millis(100);

/// What the scripted broker says.
pub(super) type Broker = fn(&Message) -> Published;

pub(super) const WELL: Broker = |_| Published::Confirmed;
pub(super) const NO_ROUTE: Published = Published::Returned { code: 312, text: String::new() };

/// State of a row in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Waiting(Reason),
    Parked(Reason),
    Queued,
    Retry,
    Confirmed,
    Discarded,
}

impl Row {
    fn is_open(self) -> bool {
        !matches!(self, Row::Confirmed | Row::Discarded)
    }
}

/// What the keeper has written. Outlives a session.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    pub(super) rows: BTreeMap<Seq, (u64, Row)>,
    pub(super) unpassed: Vec<Seq>,
    /// A person has asked to discard these, and nobody has told the relay.
    pub(super) given_up: BTreeSet<Seq>,
    pub(super) routing_keys: HashMap<Seq, String>,
    pub(super) position: Option<(Position, i64)>,
    /// The outbox.
    pub(super) events: HashMap<Seq, Event>,
}

impl Table {
    pub(super) fn states(&self) -> Vec<(Seq, Row)> {
        self.rows.iter().map(|(seq, (_, row))| (*seq, *row)).collect()
    }

    pub(super) fn write(&mut self, commit: &Commit) -> Vec<Seq> {
        for row in &commit.set_aside {
            let state = match &row.state {
                Aside::Queued => Row::Queued,
                Aside::Waiting(refusal) => Row::Waiting(refusal.reason),
                Aside::Parked(refusal) => Row::Parked(refusal.reason),
            };
            self.rows.entry(row.seq).or_insert((row.key, state));
            self.unpassed.push(row.seq);
            self.routing_keys.extend(row.routing_key.clone().map(|name| (row.seq, name)));
        }
        for change in &commit.changes {
            let (_, row) = self.rows.get_mut(&change.seq).expect("a change of a row that is not there");
            assert!(row.is_open() || change.to == Became::Unchanged, "{change:?} of a final row");
            *row = match &change.to {
                Became::Confirmed => Row::Confirmed,
                Became::Discarded => Row::Discarded,
                Became::Retry => Row::Retry,
                Became::Waiting { refusal, .. } => Row::Waiting(refusal.reason),
                Became::Parked(refusal) => Row::Parked(refusal.reason),
                Became::Unchanged => *row,
            };
        }
        self.position = Some((commit.position.clone(), commit.passed));
        if !commit.unpassed {
            return Vec::new();
        }
        // All rows of these tests belong to transaction 3.
        let position = &commit.position;
        let upto = position.window.as_ref().map_or(0, |window| window.seq);
        let passed = |seq: &Seq| position.snapshot.sees(3) || *seq <= upto;
        let (passed, unpassed) = self.unpassed.iter().partition(|seq| passed(seq));
        self.unpassed = unpassed;
        passed
    }

    /// What a leader finds; everything has waited for so long.
    pub(super) fn aside(&self, waited: Duration) -> AsideState {
        let mut heads: BTreeMap<u64, Head> = BTreeMap::new();
        for (seq, (key, row)) in self.rows.iter().filter(|(_, (_, row))| row.is_open()) {
            let (state, reason) = match *row {
                Row::Waiting(reason) => (HeadState::Waiting, Some(reason)),
                Row::Parked(reason) => (HeadState::Parked, Some(reason)),
                Row::Retry => (HeadState::Retry, None),
                _ => (HeadState::Queued, None),
            };
            let routing_key = self.routing_keys.get(seq).cloned();
            heads.entry(*key).or_insert(Head { key: *key, seq: *seq, state, reason, routing_key, waited });
        }
        AsideState { heads: heads.into_values().collect(), unpassed: self.unpassed.clone() }
    }

    fn recall(&self, recall: &Recall) -> Recalled {
        let rows = |key: u64| self.rows.iter().filter(move |(_, (of, row))| *of == key && row.is_open());
        let recalled = |&key: &u64| {
            let stops = |seq: &Seq, row: &Row| self.given_up.contains(seq) || matches!(row, Row::Parked(_));
            let before = rows(key).take_while(|(seq, (_, row))| !stops(seq, row)).count();
            let events = rows(key).take(before.min(3)).map(|(seq, _)| self.events[seq].clone()).collect();
            let next = rows(key).nth(before).map(|(seq, _)| seq);
            let then = match next {
                _ if before > 3 => Then::More,
                Some(seq) if self.given_up.contains(seq) => Then::More,
                Some(_) => Then::Parked,
                None => Then::Empty,
            };
            let given_up = rows(key).take(4).map(|(seq, _)| *seq).filter(|seq| self.given_up.contains(seq));
            RecalledKey { key, events, given_up: given_up.collect(), then }
        };
        Recalled { id: recall.id, keys: recall.keys.iter().map(recalled).collect() }
    }
}

/// See the module head.
pub(super) struct Bench<'a> {
    pub(super) state: State<'a>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    lane: Receiver<LaneBatch>,
    pub(super) fetch: Receiver<Fetch>,
    pub(super) missing: Receiver<Missing>,
    settled: watch::Receiver<Lsn>,
    keeper: Receiver<ToKeeper>,
    pub(super) table: Table,
    /// Every commit since it was last looked at.
    pub(super) commits: Vec<Commit>,
    pub(super) broker: Broker,
    /// What the broker was sent by `pass`.
    pub(super) tried: Vec<Seq>,
}

impl<'a> Bench<'a> {
    /// A session begins, at the start of everything.
    pub(super) fn new(ledger: &'a mut Ledger, assembler: &'a Assembler) -> Self {
        Bench::with(ledger, assembler, settings(1_000_000), Table::default())
    }

    /// A session begins where the table says.
    pub(super) fn with(
        ledger: &'a mut Ledger,
        assembler: &'a Assembler,
        settings: Settings,
        table: Table,
    ) -> Self {
        let start = Position { snapshot: Arc::new(Snapshot::NOTHING), prune_seq: 0, window: None };
        let (position, passed) = table.position.clone().unwrap_or((start, 0));
        ledger.begin(HERE, &position, passed, 0);
        let (lane_tx, lane) = mpsc::channel(100);
        let (fetch_tx, fetch) = mpsc::channel(1);
        let (missing_tx, missing) = mpsc::channel(1);
        let (settled_tx, settled) = watch::channel(0);
        let (commits, keeper) = mpsc::channel(2);
        let peers = Peers {
            input: mpsc::channel(1).1,
            fetch: fetch_tx,
            refetched: mpsc::channel(1).1,
            missing: missing_tx,
            settled: settled_tx,
            lanes: vec![lane_tx],
            outcomes: mpsc::channel(1).1,
            commits,
            committed: mpsc::channel(1).1,
        };
        let (metrics, health) = (Metrics::new("test"), Health::new());
        let state = State::new(peers, ledger, assembler, settings, metrics.clone(), health.clone());
        let (commits, tried) = (Vec::new(), Vec::new());
        let broker = WELL;
        Bench { state, metrics, health, lane, fetch, missing, settled, keeper, table, commits, broker, tried }
    }

    /// The keeper may be asked for these.
    pub(super) fn knows(&mut self, events: impl IntoIterator<Item = Event>) {
        self.table.events.extend(events.into_iter().map(|event| (event.seq, event)));
    }

    pub(super) fn input(&mut self, input: Input) {
        self.state.on_input(input).unwrap();
        self.state.dispatch().unwrap();
    }

    pub(super) fn stream(&mut self, stream: u64, events: Vec<Event>, upto: Lsn) {
        self.knows(events.iter().cloned());
        self.input(Input::Streamed(Streamed { stream, events, upto }));
    }

    pub(super) fn poll(&mut self, window: &Arc<Window>, events: Vec<Event>) {
        self.poll_more(window, events, true);
    }

    pub(super) fn poll_more(&mut self, window: &Arc<Window>, events: Vec<Event>, last: bool) {
        self.knows(events.iter().cloned());
        let seqs: Vec<Seq> = events.iter().map(|event| event.seq).collect();
        self.input(Input::Rows(Batch { events, late: None }));
        self.input(Input::Page(Page { window: window.clone(), seqs, last }));
    }

    /// Lists rows; what the relay misses.
    pub(super) fn list(&mut self, window: &Arc<Window>, seqs: &[Seq], last: bool) -> Vec<Seq> {
        self.input(Input::Listed(Page { window: window.clone(), seqs: seqs.to_vec(), last }));
        let missing = self.missing.try_recv().unwrap();
        assert_eq!(missing.window, window.id);
        missing.seqs
    }

    /// What the lane was given since it was last asked.
    pub(super) fn sent(&mut self) -> Vec<Arc<Message>> {
        std::iter::from_fn(|| self.lane.try_recv().ok()).flatten().collect()
    }

    pub(super) fn sent_seqs(&mut self) -> Vec<Seq> {
        self.sent().iter().map(|message| message.seq).collect()
    }

    pub(super) fn answer(&mut self, message: Arc<Message>, result: Published) {
        self.state.on_outcomes(vec![Outcome { message, result, took: Duration::ZERO }]);
        self.state.dispatch().unwrap();
    }

    /// Confirms all that is sent, and what is sent then.
    pub(super) fn confirm_all(&mut self) -> Vec<Seq> {
        let mut seqs = Vec::new();
        loop {
            let sent = self.sent();
            if sent.is_empty() {
                return seqs;
            }
            for message in sent {
                seqs.push(message.seq);
                self.answer(message, Published::Confirmed);
            }
        }
    }

    pub(super) fn settled(&self) -> Lsn {
        *self.settled.borrow()
    }

    /// Rows counted before the position, and the last row of a window in progress.
    pub(super) fn position(&self) -> (i64, Option<Seq>) {
        let (position, passed) = self.state.ledger.position();
        (passed, position.window.map(|window| window.seq))
    }

    /// The loop, the keeper and the broker go on for so long.
    pub(super) async fn pass(&mut self, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            tokio::time::advance(STEP).await;
            self.state.sweep();
            self.state.report();
            self.turn();
        }
    }

    /// The same until nothing more happens now.
    pub(super) fn turn(&mut self) {
        loop {
            let now = Instant::now();
            if self.state.next_wake().is_some_and(|at| at <= now) {
                self.state.on_wake();
            }
            if self.state.commit_at().is_some_and(|at| at <= now) {
                self.state.commit();
            }
            self.state.dispatch().unwrap();
            if !(self.serve_keeper() | self.serve_broker() | self.serve_source()) {
                return;
            }
        }
    }

    /// The keeper answers what it was asked.
    pub(super) fn serve_keeper(&mut self) -> bool {
        let mut served = false;
        while let Ok(asked) = self.keeper.try_recv() {
            served = true;
            let answer = match asked {
                ToKeeper::Commit(commit) => {
                    let passed = self.table.write(&commit);
                    let id = commit.id;
                    self.commits.push(commit);
                    FromKeeper::Committed(Committed { id, floor_seq: 0, passed })
                }
                ToKeeper::Recall(recall) => FromKeeper::Recalled(self.table.recall(&recall)),
            };
            self.state.on_keeper(answer);
            self.state.dispatch().unwrap();
        }
        served
    }

    fn serve_broker(&mut self) -> bool {
        let sent = self.sent();
        let served = !sent.is_empty();
        for message in sent {
            self.tried.push(message.seq);
            let result = (self.broker)(&message);
            self.answer(message, result);
        }
        served
    }

    fn serve_source(&mut self) -> bool {
        let Ok(Fetch { seqs }) = self.fetch.try_recv() else { return false };
        let events = seqs.iter().map(|seq| self.table.events[seq].clone()).collect();
        self.state.on_refetched(Batch { events, late: None });
        self.state.dispatch().unwrap();
        true
    }

    /// A person asks.
    pub(super) fn ask(&mut self, seq: Seq, act: Act) {
        let key = self.table.rows[&seq].0;
        self.state.on_keeper(FromKeeper::Asked(vec![Asked { seq, key, act }]));
        self.state.dispatch().unwrap();
    }

    /// What the broker was sent since it was last asked.
    pub(super) fn tried(&mut self) -> Vec<Seq> {
        std::mem::take(&mut self.tried)
    }

    /// Reasons of the health report, by component.
    pub(super) fn reason(&self, component: &str) -> Option<crate::health::Reason> {
        self.health.report().reasons.into_iter().find(|reason| reason.component == component)
    }

    /// The session is over.
    pub(super) fn end(self) -> Table {
        self.table
    }
}

pub(super) fn ev(seq: Seq) -> Event {
    event(seq, &format!("key {seq}"), 10)
}

pub(super) fn events(seqs: impl IntoIterator<Item = Seq>) -> Vec<Event> {
    seqs.into_iter().map(ev).collect()
}

/// The rows of transaction 3 and more.
pub(super) fn first_window(id: u64) -> Arc<Window> {
    let (from, upper) = (Arc::new(Snapshot::NOTHING), Arc::new("9:9:".parse().unwrap()));
    Arc::new(Window { id, from, upper, prune_seq: 0, ceil: 100, after_seq: 0, fresh: true })
}

/// An event of a key, with a routing key of its own.
pub(super) fn of(seq: Seq, key: &str, kind: &str) -> Event {
    Event { event_type: kind.into(), ..event(seq, key, 10) }
}
