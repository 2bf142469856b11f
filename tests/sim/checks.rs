//! The promises and bounds, judged at each step.

use std::sync::Arc;
use std::time::Duration;

use statecast::config::Ordering;
use statecast::contract::{Commit, Position};
use statecast::event::{Message, Seq};
use statecast::relay::Unpublishable;
use tokio::time::Instant;

use crate::outbox::{covers, payload};
use crate::world::World;

/// Commits are this far apart, except the last of a session.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);

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
        } else if !fate.handed {
            self.fail(seq, "sent and not read in this session".into());
        } else if fate.known[self.session.process] {
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
        }
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
            if fate.accepted > 0 {
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
            if !fate.handed || fate.known[self.session.process] || fate.at_lane || fate.wanted {
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
        } else if self.session.hurried {
            self.fail(
                0,
                format!("commit {} follows one that came too early to be any but the last", commit.id),
            );
        } else if commit.max_seq < self.outbox.cursor.max_seq || commit.max_seq > self.outbox.last_seq() {
            self.fail(0, format!("commit {}: max_seq {}", commit.id, commit.max_seq));
        } else if commit.closes != (commit.position.snapshot != self.outbox.cursor.position.snapshot) {
            self.fail(0, format!("commit {}: closes = {}", commit.id, commit.closes));
        }
        self.session.hurried = now.duration_since(at) < COMMIT_INTERVAL;
        self.session.last_commit = Some((commit.id, now));
        self.session.unanswered = true;
        self.check_position(&commit.position, commit.confirmed);
        self.check_forward(&commit.position);
    }

    /// What lies before a position was confirmed to a relay, and is counted.
    pub(crate) fn check_position(&mut self, position: &Position, confirmed: i64) {
        let rows = self.outbox.committed();
        let before: Vec<Seq> =
            rows.filter(|(seq, row)| covers(position, row.xid, *seq)).map(|(seq, _)| seq).collect();
        if let Some(seq) = before.iter().find(|seq| !self.fates[**seq as usize].confirmed) {
            self.fail(*seq, format!("not confirmed, and the cursor passes it: {position:?}"));
        } else if before.len() as i64 != confirmed {
            let last = before.iter().copied().max().unwrap_or(0);
            self.fail(last, format!("{} before {position:?}, {confirmed} counted", before.len()));
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

    /// A relay ended because of an event: it is hopeless indeed, and a person mends it.
    pub(crate) fn check_unpublishable(&mut self, unpublishable: &Unpublishable) {
        let seq = unpublishable.seq;
        let fate = self.fate(seq).clone();
        let hopeless = self.outbox.rows[seq as usize - 1].hopeless.take();
        if hopeless.is_none() || fate.confirmed {
            self.fail(seq, format!("said to be unpublishable: {unpublishable}"));
        }
        self.tally.count("hopeless events", 1);
        self.note(seq, || "mended".to_owned());
    }

    /// Keys that are not refused flow, whatever others wait for.
    pub(crate) fn check_flow(&mut self, committed_before: Duration, refused: &[u8]) {
        let old = self.committed_at.iter().filter(|(_, at)| *at < committed_before).map(|(seq, _)| *seq);
        let mut free = old.filter(|seq| !refused.contains(&self.outbox.rows[*seq as usize - 1].key));
        let stuck = free.find(|seq| !self.fates[*seq as usize].confirmed);
        if let Some(seq) = stuck {
            self.fail(seq, "waits for other keys".into());
        }
    }

    /// The end of everything: nothing lost, all of it counted.
    pub(crate) fn check_end(&mut self) {
        let lost = self.outbox.committed().find(|(seq, _)| !self.fates[*seq as usize].confirmed);
        if let Some(seq) = lost.map(|(seq, _)| seq) {
            self.fail(seq, "not confirmed at the end".into());
        }
        let position = self.outbox.cursor.position.clone();
        let confirmed = self.outbox.cursor.confirmed;
        self.check_position(&position, confirmed);
        let all = self.outbox.committed().count() as i64;
        if all != confirmed {
            self.fail(0, format!("{all} committed, {confirmed} counted"));
        }
    }
}
