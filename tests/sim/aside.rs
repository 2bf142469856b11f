//! What is set aside, judged: when a row may be, what may become of it, and what of its key may be published meanwhile.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use statecast::contract::{
    Act, Aside, Became, Change, Commit, Published, RECALL_KEYS_MAX, Reason, Recall, Refusal, SetAside,
};
use statecast::event::Seq;
use tokio::time::Instant;

use crate::outbox::{covers, hash, routing_key};
use crate::plan::Hopeless;
use crate::table::State;
use crate::world::World;

/// Rows of a commit, at most.
const ROWS_MAX: usize = 1_000;
/// A key is refused for longer than this before it is set aside.
const SET_ASIDE_AFTER: Duration = Duration::from_secs(5);

/// The relay counts from its decision, the table from its write.
const LATE_MAX: Duration = Duration::from_secs(2);

/// What the broker has refused in this session, and since when.
#[derive(Default)]
pub(crate) struct Refusals {
    keys: HashMap<u8, Instant>,
    routes: HashMap<u8, Instant>,
}

impl World {
    pub(crate) fn note_refusal(&mut self, key: u8, route: u8, refusal: &Published) {
        let refusals = &mut self.session.refusals;
        match refusal {
            Published::Nacked => drop(refusals.keys.entry(key).or_insert_with(Instant::now)),
            Published::Returned { .. } => drop(refusals.routes.entry(route).or_insert_with(Instant::now)),
            _ => {}
        }
    }

    /// Is the event settled, as far as the database and the relays know?
    pub(crate) fn is_settled(&self, seq: Seq) -> bool {
        let fate = &self.fates[seq as usize];
        fate.confirmed || fate.discarded || self.table.get(seq).is_some()
    }

    /// The part of a commit that is about what is set aside.
    pub(crate) fn check_aside(&mut self, commit: &Commit) {
        if commit.set_aside.len() + commit.changes.len() > ROWS_MAX {
            self.fail(0, format!("commit {} has too many rows", commit.id));
        }
        let mut named = HashSet::new();
        let seqs = commit.set_aside.iter().map(|row| row.seq).chain(commit.changes.iter().map(|c| c.seq));
        if let Some(twice) = seqs.into_iter().find(|seq| !named.insert(*seq)) {
            self.fail(twice, format!("twice in commit {}", commit.id));
        }
        for change in &commit.changes {
            if let Some(fault) = self.fault_of_change(change) {
                self.fail(change.seq, format!("{:?}: {fault}", change.to));
            }
        }
        for row in &commit.set_aside {
            if let Some(fault) = self.fault_of_row(row, commit) {
                self.fail(row.seq, format!("set aside as {:?}: {fault}", row.state));
            }
        }
    }

    fn fault_of_row(&self, row: &SetAside, commit: &Commit) -> Option<&'static str> {
        let (fate, outbox) = (&self.fates[row.seq as usize], &self.outbox.rows[row.seq as usize - 1]);
        if !self.outbox.is_committed(row.seq) || row.key != hash(outbox.key) {
            return Some("no such row");
        } else if !fate.listed {
            return Some("no page has listed it");
        } else if fate.at_lane {
            return Some("in flight");
        } else if fate.known[self.session.process] {
            return Some("confirmed");
        } else if self.table.get(row.seq).is_some() {
            return Some("it is already");
        } else if fate.discarded {
            return Some("discarded");
        }
        let refusals = &self.session.refusals;
        let refused = match &row.state {
            Aside::Waiting(Refusal { reason: Reason::Nack, .. }) => refusals.keys.contains_key(&outbox.key),
            _ => refusals.routes.contains_key(&outbox.route),
        };
        // It may have been refused otherwise before, or another of its key.
        let long = |since: Option<&Instant>| since.is_some_and(|since| since.elapsed() > SET_ASIDE_AFTER);
        let mut of_key = self.outbox.rows.iter().filter(|other| other.key == outbox.key);
        let long = long(refusals.keys.get(&outbox.key))
            || of_key.any(|other| long(refusals.routes.get(&other.route)));
        match &row.state {
            Aside::Waiting(refusal) if self.session.confirms.is_empty() => {
                let _ = refusal;
                Some("nothing was confirmed")
            }
            Aside::Waiting(Refusal { reason: Reason::Nack, .. }) => {
                (!refused || !long).then_some("not refused for long")
            }
            Aside::Waiting(Refusal { reason: Reason::Unroutable, detail }) => {
                let named = row.routing_key.as_deref() == Some(&*routing_key(outbox));
                let sound = refused && long && named && detail.contains("312");
                (!sound).then_some("its routing key was not refused for long")
            }
            Aside::Waiting(_) => Some("it can never go"),
            Aside::Parked(refusal) => self.fault_of_parked(row.seq, refusal),
            Aside::Queued => {
                let of_key = |other: &SetAside| other.key == row.key && other.state != Aside::Queued;
                let behind = commit.set_aside.iter().any(of_key);
                let stays = |seq: Seq| {
                    let is_final = |to: &Became| matches!(to, Became::Confirmed | Became::Discarded);
                    !commit.changes.iter().any(|change| change.seq == seq && is_final(&change.to))
                };
                let waits = self.table.open(outbox.key).any(|(seq, _)| stays(seq));
                (!behind && !waits).then_some("its key is not set aside")
            }
        }
    }

    /// It can never go, by what the relay was told: it may have been mended since.
    fn fault_of_parked(&self, seq: Seq, refusal: &Refusal) -> Option<&'static str> {
        let was = self.fates[seq as usize].hopeless;
        let fits = match refusal.reason {
            Reason::TooLarge => matches!(was, Some(Hopeless::Lane | Hopeless::Fatal)),
            Reason::Invalid => was == Some(Hopeless::Row),
            Reason::Nack | Reason::Unroutable => false,
        };
        (!fits).then_some("it could go")
    }

    fn fault_of_change(&self, change: &Change) -> Option<&'static str> {
        let fate = &self.fates[change.seq as usize];
        let Some(row) = self.table.get(change.seq) else {
            // Answered when it was final already.
            return (change.to != Became::Unchanged).then_some("it is not set aside");
        };
        let recalled = fate.recalled;
        let confirmed = self.session.confirms.contains(&change.seq);
        let refused = |reason: Reason| match reason {
            Reason::Nack => self.session.refusals.keys.contains_key(&row.key),
            Reason::Unroutable => {
                let route = self.outbox.rows[change.seq as usize - 1].route;
                self.session.refusals.routes.contains_key(&route)
            }
            Reason::TooLarge | Reason::Invalid => false,
        };
        if fate.at_lane {
            return Some("in flight");
        }
        if !row.is_open() {
            return (change.to != Became::Unchanged).then_some("it is final");
        }
        let sound = match &change.to {
            Became::Confirmed => confirmed,
            Became::Discarded => row.request == Some(Act::Discard) && !confirmed,
            Became::Retry => row.request == Some(Act::Retry) && !confirmed,
            Became::Unchanged => row.request.is_some(),
            Became::Waiting { refusal, routing_key: named, .. } => {
                let named = *named == routing_key(&self.outbox.rows[change.seq as usize - 1]);
                recalled && !confirmed && named && refused(refusal.reason)
            }
            Became::Parked(Refusal { reason: Reason::Unroutable, .. }) => {
                let waited = self.began.elapsed() - row.since;
                let in_table = row.state == State::Waiting(Reason::Unroutable);
                let waits = in_table && waited + LATE_MAX >= self.plan.park_after;
                waits && refused(Reason::Unroutable)
            }
            Became::Parked(refusal) => {
                return self.fault_of_parked(change.seq, refusal).filter(|_| !recalled || confirmed);
            }
        };
        (!sound).then_some("without a reason")
    }

    pub(crate) fn check_recall(&mut self, recall: &Recall) {
        let mut keys = HashSet::new();
        let all = recall.keys.iter().all(|key| keys.insert(*key)) && !recall.keys.is_empty();
        if !all || recall.keys.len() > RECALL_KEYS_MAX || recall.rows_max > 2_048 {
            self.fail(0, format!("{recall:?}"));
        }
        if recall.bytes_max > self.plan.read_ahead / 8 {
            self.fail(0, format!("recalls {} bytes", recall.bytes_max));
        }
    }

    /// A message of a row in the table, or of a key with rows there, goes to a lane.
    pub(crate) fn check_sent_aside(&mut self, seq: Seq) {
        let key = self.outbox.rows[seq as usize - 1].key;
        let busy = self.session.key_in_flight.get(&key).copied().unwrap_or(0);
        if self.fates[seq as usize].discarded {
            return self.fail(seq, "sent, though it was discarded".into());
        }
        let writing = self.session.writing.as_ref();
        let leaves = |row: &SetAside| row.seq == seq || row.key == hash(key);
        if writing.is_some_and(|(_, commit)| commit.set_aside.iter().any(leaves)) {
            return self.fail(seq, "sent, while rows of its key are being set aside".into());
        }
        let Some(row) = self.table.get(seq) else {
            let open = self.table.open(key).next().map(|(seq, _)| seq);
            if let Some(open) = open {
                self.fail(seq, format!("sent, and {open} of its key is set aside"));
            }
            return;
        };
        let fault = if !row.is_open() || row.is_parked() {
            Some(format!("sent, and in the table it is {:?}", row.state))
        } else if !self.fates[seq as usize].recalled {
            Some("set aside, and sent without being recalled".into())
        } else if busy > 0 {
            Some("recalled, and not sent alone".into())
        } else {
            let before: Vec<Seq> =
                self.table.open(key).map(|(seq, _)| seq).take_while(|other| *other < seq).collect();
            let process = self.session.process;
            let waits = before.into_iter().find(|seq| !self.fates[*seq as usize].known[process]);
            waits.map(|other| format!("sent, and {other} of its key is before it in the table"))
        };
        if let Some(fault) = fault {
            self.fail(seq, fault);
        }
    }

    pub(crate) fn count_set_aside(&mut self, row: &SetAside) {
        let what = match &row.state {
            Aside::Queued => "rows queued",
            Aside::Waiting(_) => "keys set aside",
            Aside::Parked(_) => "rows parked at once",
        };
        self.tally.count(what, 1);
    }

    pub(crate) fn count_change(&mut self, change: &Change) {
        let what = match &change.to {
            Became::Confirmed => "rows confirmed in the table",
            Became::Discarded => "rows discarded",
            Became::Retry => "rows retried",
            Became::Unchanged => "requests refused",
            Became::Waiting { .. } => "rows refused again",
            Became::Parked(refusal) if refusal.reason == Reason::Unroutable => "unroutable rows parked",
            Became::Parked(_) => "rows parked when they were tried",
        };
        self.tally.count(what, 1);
    }

    /// The books of the cursor row, beside what is known of each row.
    pub(crate) fn check_books(&mut self) {
        let cursor = self.outbox.cursor.clone();
        let (mut parked, mut discarded, mut confirmed) = (0, 0, 0);
        let mut unknown = None;
        for (seq, row) in self.outbox.committed() {
            if !covers(&cursor.position, row.xid, seq) {
                continue;
            }
            let fate = &self.fates[seq as usize];
            if fate.discarded {
                discarded += 1;
            } else if self.table.get(seq).is_some_and(|row| row.is_open()) {
                parked += 1;
            } else if fate.confirmed {
                confirmed += 1;
            } else {
                unknown = Some(seq);
            }
        }
        let told = (cursor.parked, cursor.discarded, cursor.passed - cursor.parked - cursor.discarded);
        if let Some(seq) = unknown {
            self.fail(seq, "passed, and neither confirmed nor set aside nor discarded".into());
        } else if told != (parked, discarded, confirmed) {
            let counted = (parked, discarded, confirmed);
            self.fail(0, format!("(parked, discarded, confirmed) are {counted:?}, the books say {told:?}"));
        }
    }

    /// After a session that was stopped in time: what became of recalled rows is in the table.
    pub(crate) fn check_nothing_unwritten(&mut self) {
        let open = |seq: &&Seq| self.table.get(**seq).is_some_and(|row| row.is_open());
        if let Some(seq) = self.session.confirms[..self.session.taken].iter().find(open).copied() {
            self.fail(seq, "stopped in time, confirmed, and open in the table".into());
        }
    }

    /// A calm session is over. What is refused has left by now, and the cursor has passed it.
    pub(crate) fn check_passed(&mut self, committed_before: Duration) {
        let position = self.outbox.cursor.position.clone();
        let old = self.committed_at.iter().filter(|(_, at)| *at < committed_before).map(|(seq, _)| *seq);
        let mut held = old.filter(|seq| !covers(&position, self.outbox.rows[*seq as usize - 1].xid, *seq));
        if let Some(seq) = held.next() {
            self.fail(seq, "the cursor waits for it, while others pass".into());
        }
        self.tally.count("calm sessions that the cursor was judged in", 1);
    }
}
