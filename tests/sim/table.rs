//! The table of what is set aside, as the keeper keeps it: what a write does to it, what is recalled from it, what a leader
//! finds in it.

use std::collections::BTreeMap;
use std::time::Duration;

use statecast::contract::{
    Act, Aside, AsideState, Asked, Became, Change, Head, HeadState, Reason, Recall, Recalled, RecalledKey,
    SetAside, Then,
};
use statecast::event::Seq;

use crate::outbox::{covers, event, hash};
use crate::world::World;

/// Requests told at once: so few that recalls come upon others.
const ASKED_MAX: usize = 2;

/// State of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting(Reason),
    Parked(Reason),
    Queued,
    Retry,
    Confirmed,
    Discarded,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) key: u8,
    pub(crate) state: State,
    pub(crate) routing_key: Option<String>,
    /// In this state since then, as the server's clock has it.
    pub(crate) since: Duration,
    pub(crate) request: Option<Act>,
    /// A cursor write has passed it.
    pub(crate) passed: bool,
}

impl Row {
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, State::Confirmed | State::Discarded)
    }

    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked(_))
    }
}

/// By seq.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table(pub(crate) BTreeMap<Seq, Row>);

impl Table {
    pub(crate) fn get(&self, seq: Seq) -> Option<&Row> {
        self.0.get(&seq)
    }

    /// Open rows of a key, in order.
    pub(crate) fn open(&self, key: u8) -> impl Iterator<Item = (Seq, &Row)> {
        self.0.iter().filter(move |(_, row)| row.key == key && row.is_open()).map(|(seq, row)| (*seq, row))
    }

    fn set_aside(&mut self, row: &SetAside, key: u8, now: Duration) {
        let state = match &row.state {
            Aside::Queued => State::Queued,
            Aside::Waiting(refusal) => State::Waiting(refusal.reason),
            Aside::Parked(refusal) => State::Parked(refusal.reason),
        };
        let routing_key = row.routing_key.clone();
        self.0.entry(row.seq).or_insert(Row {
            key,
            state,
            routing_key,
            since: now,
            request: None,
            passed: false,
        });
    }

    fn change(&mut self, change: &Change, routing_key: String, now: Duration) {
        let Some(row) = self.0.get_mut(&change.seq) else { return };
        let before = row.state;
        if row.is_open() {
            row.state = match &change.to {
                Became::Confirmed => State::Confirmed,
                Became::Discarded => State::Discarded,
                Became::Retry => State::Retry,
                Became::Waiting { refusal, .. } => State::Waiting(refusal.reason),
                Became::Parked(refusal) => State::Parked(refusal.reason),
                Became::Unchanged => before,
            };
            if matches!(change.to, Became::Waiting { .. } | Became::Parked(_)) {
                row.routing_key = Some(routing_key);
            }
            let waits_on = matches!((before, row.state), (State::Waiting(_), State::Waiting(_)));
            if before != row.state && !waits_on {
                row.since = now;
            }
        }
        if matches!(change.to, Became::Retry | Became::Discarded | Became::Unchanged) {
            row.request = None;
        }
    }
}

impl World {
    /// The rest of a keeper's transaction: the table, and the books. Returns the rows that it passed.
    pub(crate) fn write_table(&mut self, commit: &statecast::contract::Commit) -> Vec<Seq> {
        let now = self.began.elapsed();
        for row in &commit.set_aside {
            let key = self.outbox.rows[row.seq as usize - 1].key;
            self.note(row.seq, || format!("set aside: {:?}", row.state));
            self.count_set_aside(row);
            self.table.set_aside(row, key, now);
        }
        let mut discarded = 0;
        for change in &commit.changes {
            self.note(change.seq, || format!("became {:?}", change.to));
            self.count_change(change);
            let passed = self.table.get(change.seq).is_some_and(|row| row.passed);
            let routing_key = crate::outbox::routing_key(&self.outbox.rows[change.seq as usize - 1]);
            self.table.change(change, routing_key, now);
            if change.to == Became::Discarded {
                discarded += i64::from(passed);
                self.fate(change.seq).discarded = true;
            }
        }
        let mut passed = Vec::new();
        for (seq, row) in self.table.0.iter_mut().filter(|(_, row)| !row.passed) {
            let xid = self.outbox.rows[*seq as usize - 1].xid;
            if covers(&commit.position, xid, *seq) {
                row.passed = true;
                passed.push(*seq);
                discarded += i64::from(row.state == State::Discarded);
            }
        }
        if !commit.unpassed && !passed.is_empty() {
            let seq = passed[0];
            self.fail(seq, "set aside, and passed by a write that says that it passes none".into());
        }
        self.tally.count("rows passed in the table", passed.len());
        self.table.0.retain(|_, row| !row.passed || row.is_open());
        let cursor = &mut self.outbox.cursor;
        cursor.discarded += discarded;
        cursor.parked = self.table.0.values().filter(|row| row.passed).count() as i64;
        passed
    }

    /// What a leader finds.
    pub(crate) fn aside(&self) -> AsideState {
        let now = self.began.elapsed();
        let mut heads: BTreeMap<u8, Head> = BTreeMap::new();
        for (seq, row) in self.table.0.iter().filter(|(_, row)| row.is_open()) {
            let (state, reason) = match row.state {
                State::Waiting(reason) => (HeadState::Waiting, Some(reason)),
                State::Parked(reason) => (HeadState::Parked, Some(reason)),
                State::Retry => (HeadState::Retry, None),
                _ => (HeadState::Queued, None),
            };
            heads.entry(row.key).or_insert_with(|| Head {
                key: hash(row.key),
                seq: *seq,
                state,
                reason,
                routing_key: row.routing_key.clone(),
                waited: now - row.since,
            });
        }
        let unpassed = self.table.0.iter().filter(|(_, row)| !row.passed).map(|(seq, _)| *seq);
        AsideState { unpassed: unpassed.collect(), heads: heads.into_values().collect() }
    }

    /// Answers a recall.
    pub(crate) fn recall(&mut self, recall: &Recall) -> Recalled {
        self.check_recall(recall);
        self.tally.count("recalls", 1);
        let (mut rows, mut bytes) = (0, 0);
        let mut keys = Vec::new();
        for &of in &recall.keys {
            let key = (0..=self.plan.keys).find(|key| hash(*key) == of);
            let open: Vec<(Seq, bool, bool)> = key.map_or(Vec::new(), |key| {
                let row = |(seq, row): (Seq, &Row)| (seq, row.is_parked(), row.request == Some(Act::Discard));
                self.table.open(key).map(row).collect()
            });
            let before = open.iter().take_while(|(_, parked, given_up)| !parked && !given_up).count();
            let mut events = Vec::new();
            for (seq, ..) in &open[..before] {
                let size = self.row_bytes(*seq);
                let first = rows == 0;
                let fits = bytes + size <= recall.bytes_max && (events.is_empty() || rows < recall.rows_max);
                if events.len() >= self.plan.recalls || !(fits || first) {
                    break;
                }
                (rows, bytes) = (rows + 1, bytes + size);
                events.push(event(*seq, &self.outbox.rows[*seq as usize - 1]));
            }
            let then = if events.len() < before {
                Then::More
            } else {
                match open.get(before) {
                    Some((.., true)) => Then::More,
                    Some(_) => Then::Parked,
                    None => Then::Empty,
                }
            };
            events.iter().for_each(|event| self.recalled(event.seq));
            let seen = open.iter().take(self.plan.recalls + 1);
            let given_up: Vec<Seq> = seen.filter(|(.., given_up)| *given_up).map(|(seq, ..)| *seq).collect();
            self.tally.count("rows given up, named by a recall", given_up.len());
            keys.push(RecalledKey { key: of, events, given_up, then });
        }
        Recalled { id: recall.id, keys }
    }

    fn recalled(&mut self, seq: Seq) {
        self.note(seq, || "recalled".to_owned());
        self.tally.count("rows recalled", 1);
        self.comes(seq, true);
        self.fate(seq).recalled = true;
    }

    /// What people ask for.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        let open = self.table.0.iter().filter(|(_, row)| row.is_open());
        let asked =
            |(seq, row): (&Seq, &Row)| Some(Asked { seq: *seq, key: hash(row.key), act: row.request? });
        open.filter_map(asked).take(ASKED_MAX).collect()
    }

    /// A person looks at the table.
    pub(crate) fn person_looks(&mut self) {
        if self.session.attended {
            let parked = self.table.0.iter().filter(|(_, row)| row.is_parked() && row.request.is_none());
            for seq in parked.map(|(seq, _)| *seq).collect::<Vec<_>>() {
                let act = if self.rng.f64() < 0.1 { Act::Discard } else { Act::Retry };
                self.mend(seq);
                self.asks(seq, act);
            }
        } else if self.session.calm.is_none() && self.rng.f64() < self.plan.person {
            let open: Vec<Seq> =
                self.table.0.iter().filter(|(_, row)| row.is_open()).map(|(seq, _)| *seq).collect();
            if open.is_empty() {
                return;
            }
            let seq = open[self.rng.usize(0..open.len())];
            if self.rng.bool() {
                self.mend(seq);
            }
            let act = if self.rng.bool() { Act::Discard } else { Act::Retry };
            self.asks(seq, act);
            if act == Act::Discard && self.rng.bool() {
                open.into_iter().filter(|other| *other > seq).for_each(|seq| self.asks(seq, act));
            }
        }
    }

    fn asks(&mut self, seq: Seq, act: Act) {
        self.note(seq, || format!("a person asks: {act:?}"));
        if let Some(row) = self.table.0.get_mut(&seq)
            && row.request.is_none()
        {
            row.request = Some(act);
            self.tally.count("requests", 1);
        }
    }

    /// What has kept the event from going is gone.
    fn mend(&mut self, seq: Seq) {
        if self.outbox.rows[seq as usize - 1].hopeless.take().is_some() {
            self.note(seq, || "mended".to_owned());
            self.tally.count("hopeless events mended", 1);
        }
    }

    /// Is nothing left to do? What is behind a parked row waits for a person.
    pub(crate) fn is_quiet(&self) -> bool {
        let position = &self.outbox.cursor.position;
        let passed = self.outbox.committed().all(|(seq, row)| covers(position, row.xid, seq));
        passed && self.table.0.iter().all(|(seq, row)| row.passed && self.may_rest(*seq, row))
    }

    /// May this row stay in the table for ever?
    pub(crate) fn may_rest(&self, seq: Seq, row: &Row) -> bool {
        let parked_before = || self.table.open(row.key).any(|(other, row)| other < seq && row.is_parked());
        row.request.is_none() && !self.session.attended && (row.is_parked() || parked_before())
    }
}
