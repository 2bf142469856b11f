//! The promises and bounds, judged at each step.

use std::sync::Arc;
use std::time::Duration;

use statecast::config::Ordering;
use statecast::contract::{Commit, Position};
use statecast::event::{Message, Seq};
use tokio::time::Instant;

use crate::outbox::{covers, payload};
use crate::plan::Refuses;
use crate::world::World;

/// Commits are this far apart, except the last of a session.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// The last of a session: what is set aside goes in one, its rows are passed by the next.
const HURRIED_MAX: u32 = 4;

impl World {
    /// A lane was given a message.
    pub(crate) fn check_sent(&mut self, lane: usize, message: &Arc<Message>) {
        let seq = message.seq;
        let Some(row) = self.outbox.row(seq).filter(|_| self.outbox.is_committed(seq)).cloned() else {
            return self.fail(seq, "sent and did not commit".into());
        };
        let fate = self.fate(seq).clone();
        let busy = self.session.key_in_flight.get(&row.key).copied().unwrap_or(0);
        let window = self.session.lanes[lane].unresolved;
        let bytes = self.session.bytes_in_flight + message.bytes();
        if message.event_id.as_u128() != seq as u128 || message.body != payload(row.size) {
            self.fail(seq, "sent with another id or body".into());
        } else if !fate.handed && !fate.recalled {
            self.fail(seq, "sent and not read in this session".into());
        } else if fate.known[self.session.process] && !self.is_open_still(seq) {
            self.fail(seq, "sent again, though this process has taken its confirm".into());
        } else if fate.at_lane {
            self.fail(seq, "sent while it is in flight".into());
        } else if self.plan.ordering == Ordering::Strict && busy > 0 {
            self.fail(seq, format!("strict, and {busy} of its key are in flight"));
        } else if *self.session.key_lane.entry(message.key_hash).or_insert(lane) != lane {
            self.fail(seq, format!("its key has moved to lane {lane}"));
        } else if window >= self.plan.window {
            self.fail(seq, format!("{window} in flight on lane {lane} before it"));
        } else if bytes > self.bytes_max() {
            self.fail(seq, format!("{bytes} bytes in flight, at most {}", self.bytes_max()));
        } else {
            self.check_sent_aside(seq);
        }
    }

    /// Confirmed in an earlier session, and nobody could write that.
    fn is_open_still(&self, seq: Seq) -> bool {
        self.table.get(seq).is_some_and(|row| row.is_open()) && !self.session.confirms.contains(&seq)
    }

    /// A queue takes a message: if for the first time, all of its key that were written before it are there. Only the stream
    /// that brought it may have left one of them out.
    pub(crate) fn check_accepted(&mut self, seq: Seq) {
        self.fate(seq).accepted += 1;
        let again = self.fate(seq).accepted == 2;
        self.tally.count("events published again", usize::from(again));
        if self.fate(seq).accepted == 1 {
            self.check_counted(seq);
        }
        let key = self.outbox.rows[seq as usize - 1].key;
        let ordered = self.plan.ordering == Ordering::Strict || !self.refused[usize::from(key)];
        if self.fate(seq).accepted > 1 || !ordered {
            return;
        }
        let before = self.outbox.committed().take_while(|(other, _)| *other < seq);
        let before: Vec<Seq> = before.filter(|(_, row)| row.key == key).map(|(other, _)| other).collect();
        let brought_by = self.fate(seq).brought_by;
        for other in before {
            let fate = self.fate(other);
            if fate.accepted > 0 || fate.discarded {
                continue;
            }
            if brought_by.is_none() || fate.left_out_by != brought_by {
                return self.fail(other, format!("overtaken by seq {seq} of its key"));
            }
            fate.overtaken = true;
            self.note(other, || format!("overtaken by seq {seq} of its key"));
        }
    }

    /// The relay asks for rows again.
    pub(crate) fn check_fetch(&mut self, seqs: &[Seq]) {
        self.take_confirms();
        if seqs.is_empty() {
            self.fail(0, "an empty fetch".into());
        }
        for &seq in seqs {
            let fate = self.fate(seq).clone();
            // It may have been set aside since it was asked for.
            let gone = self.table.get(seq).is_some() || fate.discarded;
            let needless = fate.known[self.session.process] || fate.at_lane || fate.wanted;
            if !fate.handed || needless && !gone {
                self.fail(seq, format!("asked for again without a need: {fate:?}"));
            }
            self.fate(seq).wanted = true;
        }
    }

    /// The keeper was given a commit.
    pub(crate) fn check_commit(&mut self, commit: &Commit) {
        let now = Instant::now();
        let (id, at) = self.session.last_commit.unwrap_or((0, now - COMMIT_INTERVAL));
        if self.session.unanswered {
            self.fail(0, format!("commit {} while one is on its way", commit.id));
        } else if commit.id != id + 1 {
            self.fail(0, format!("commit {} follows {id}", commit.id));
        } else if self.session.hurried >= HURRIED_MAX {
            let hurried = self.session.hurried;
            self.fail(0, format!("commit {} follows {hurried} that came too early", commit.id));
        } else if commit.set_aside.is_empty() && commit.changes.is_empty() && self.says_nothing(commit) {
            self.fail(0, format!("commit {} says nothing new", commit.id));
        } else if commit.max_seq < self.outbox.cursor.max_seq || commit.max_seq > self.outbox.last_seq() {
            self.fail(0, format!("commit {}: max_seq {}", commit.id, commit.max_seq));
        } else if commit.closes != (commit.position.snapshot != self.outbox.cursor.position.snapshot) {
            self.fail(0, format!("commit {}: closes = {}", commit.id, commit.closes));
        }
        let hurried = now.duration_since(at) < COMMIT_INTERVAL;
        self.session.hurried = if hurried { self.session.hurried + 1 } else { 0 };
        self.session.last_commit = Some((commit.id, now));
        self.session.unanswered = true;
        self.session.last_is_aside = !commit.set_aside.is_empty() || !commit.changes.is_empty();
        self.check_position(&commit.position, commit.passed);
        self.check_forward(&commit.position);
        self.check_aside(commit);
    }

    fn says_nothing(&self, commit: &Commit) -> bool {
        let cursor = &self.outbox.cursor;
        let same = (&cursor.position, cursor.passed) == (&commit.position, commit.passed);
        same && cursor.max_seq >= commit.max_seq && self.session.last_commit.is_some()
    }

    /// What lies before a position is settled, and is counted.
    pub(crate) fn check_position(&mut self, position: &Position, passed: i64) {
        let rows = self.outbox.committed();
        let before: Vec<Seq> =
            rows.filter(|(seq, row)| covers(position, row.xid, *seq)).map(|(seq, _)| seq).collect();
        if let Some(seq) = before.iter().find(|seq| !self.is_settled(**seq)) {
            self.fail(*seq, format!("not settled, and the cursor passes it: {position:?}"));
        } else if before.len() as i64 != passed {
            let last = before.iter().copied().max().unwrap_or(0);
            self.fail(last, format!("{} before {position:?}, {passed} counted", before.len()));
        }
    }

    /// The cursor row never goes back.
    pub(crate) fn check_forward(&mut self, position: &Position) {
        let old = &self.outbox.cursor.position;
        let lost = self
            .outbox
            .committed()
            .find(|(seq, row)| covers(old, row.xid, *seq) && !covers(position, row.xid, *seq));
        if let Some(seq) = lost.map(|(seq, _)| seq) {
            self.fail(seq, format!("was before the cursor, and is not before {position:?}"));
        }
    }

    /// A calm session is over: keys that are not refused flow, whatever others wait for; and what is refused holds nothing up.
    /// In an outage both wait. There is none while one routing key at most is refused, and another one is well.
    pub(crate) fn check_flow(&mut self, refused: &[Refuses]) {
        let before = |time: Duration| self.began.elapsed().saturating_sub(time);
        let (flows, leaves) = (before(Duration::from_secs(40)), before(Duration::from_secs(50)));
        let lately = |at: Option<Instant>, time| at.is_some_and(|at: Instant| at.elapsed() < time);
        if lately(self.session.outage_at, Duration::from_secs(45)) {
            let all = self.session.calm.as_deref().unwrap_or_default();
            let routes = all.iter().filter(|refuses| matches!(refuses, Refuses::Route(_))).count();
            if routes <= 1 && !all.is_empty() {
                self.fail(0, "an outage, while most is well".into());
            }
            return self.tally.count("calm sessions in an outage", 1);
        }
        let refuses = |key: u8| {
            let mut rows = self.outbox.rows.iter().filter(|row| row.key == key);
            rows.any(|row| row.hopeless.is_some() || refused.iter().any(|r| r.hits(key, row.route)))
        };
        let refused: Vec<u8> = (0..self.plan.keys).filter(|key| refuses(*key)).collect();
        let parked = |key: u8| self.table.open(key).any(|(_, row)| row.is_parked());
        let old = self.committed_at.iter().filter(|(_, at)| *at < flows).map(|(seq, _)| *seq);
        let mut free = old.filter(|seq| {
            let key = self.outbox.rows[*seq as usize - 1].key;
            !refused.contains(&key) && !parked(key)
        });
        let stuck =
            free.find(|seq| !self.fates[*seq as usize].confirmed && !self.fates[*seq as usize].discarded);
        if let Some(seq) = stuck {
            return self.fail(seq, "waits for other keys".into());
        }
        if lately(self.session.confirmed_at, Duration::from_secs(30)) {
            self.check_passed(leaves);
        }
    }

    /// The end of everything: nothing lost, all of it counted.
    pub(crate) fn check_end(&mut self) {
        let lost = self.outbox.committed().map(|(seq, _)| seq).find(|seq| {
            let fate = &self.fates[*seq as usize];
            let rests = self.table.get(*seq).is_some_and(|row| self.may_rest(*seq, row));
            !(fate.confirmed && self.table.get(*seq).is_none() || fate.discarded || rests)
        });
        if let Some(seq) = lost {
            let row = self.table.get(seq).cloned();
            self.fail(seq, format!("neither confirmed nor parked nor discarded at the end: {row:?}"));
        }
        let position = self.outbox.cursor.position.clone();
        let passed = self.outbox.cursor.passed;
        self.check_position(&position, passed);
        self.check_books();
        let all = self.outbox.committed().count() as i64;
        if all != passed {
            self.fail(0, format!("{all} committed, {passed} counted"));
        }
    }
}
