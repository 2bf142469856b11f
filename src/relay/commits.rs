//! Cursor writes: when one is due, what it carries, what its answer settles; and the last ones of a session.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::aside::Standing;
use super::outgoing::Sent;
use super::state::State;
use super::{COMMIT_INTERVAL, FLOOR_INTERVAL};
use crate::contract::{Commit, Committed, FromKeeper, Reason, ToKeeper};

/// Inputs that are taken after the end, at most: the page of an event that can never go is the one after its rows.
const LAST_INPUTS_MAX: usize = 4;

impl State<'_> {
    /// When the next cursor write is due, if one is.
    pub(super) fn commit_at(&self) -> Option<Instant> {
        if self.on_its_way.is_some() {
            return None;
        }
        let (position, passed) = self.ledger.position();
        let urgent = passed != self.sent.1
            || position.window != self.sent.0.window
            || self.has_writes()
            || (self.settings.until_idle && self.ledger.fresh_passed() && !self.sent_fresh);
        if urgent {
            return Some(self.sent_at + COMMIT_INTERVAL);
        }
        // With nothing settled a write is only worth it to bring the floor up to what is written.
        let floor_lags = self.floor_seq < self.ledger.max_seq();
        let moves =
            position.snapshot.xmin != self.sent.0.snapshot.xmin || self.ledger.max_seq() != self.sent_max_seq;
        (floor_lags && moves).then(|| self.sent_at + FLOOR_INTERVAL)
    }

    /// Sends the position to the keeper, with what is set aside and what became of it.
    pub(super) fn commit(&mut self) {
        let commits = self.peers.commits.clone();
        let Ok(permit) = commits.try_reserve() else { return };
        let (position, passed) = self.ledger.position();
        let mut commit = Commit {
            id: self.next_commit,
            closes: position.snapshot != self.sent.0.snapshot,
            position: position.clone(),
            max_seq: self.ledger.max_seq(),
            passed,
            set_aside: Vec::new(),
            changes: Vec::new(),
            unpassed: false,
        };
        self.fill(&mut commit);
        self.sent_max_seq = commit.max_seq;
        permit.send(ToKeeper::Commit(commit));
        self.on_its_way = Some(self.next_commit);
        self.next_commit += 1;
        self.sent = (position, passed);
        self.sent_at = Instant::now();
        self.sent_fresh = self.ledger.fresh_passed();
    }

    pub(super) fn on_keeper(&mut self, answer: FromKeeper) {
        match answer {
            FromKeeper::Committed(committed) => self.on_committed(&committed),
            FromKeeper::Recalled(recalled) => self.on_recalled(recalled),
            FromKeeper::Asked(asked) => self.on_asked(asked),
            FromKeeper::Parked(rows) => self.parked = Some((rows, Instant::now())),
        }
    }

    pub(super) fn on_committed(&mut self, committed: &Committed) {
        if self.on_its_way == Some(committed.id) {
            self.on_its_way = None;
            self.ledger.written(self.sent.0.clone());
            committed.passed.iter().for_each(|seq| self.aside.unpassed.remove(*seq));
            let sent = self.outgoing.arrived();
            if !sent.rows.is_empty() || !sent.changes.is_empty() {
                self.on_written(&sent);
            }
        }
        if committed.floor_seq > self.floor_seq {
            self.ledger.floor(committed.floor_seq);
        }
        self.floor_seq = committed.floor_seq;
        self.idle = self.settings.until_idle && self.sent_fresh;
    }

    /// What the keeper has written about rows that are set aside.
    fn on_written(&mut self, sent: &Sent) {
        for (seq, _) in &sent.rows {
            let Some(slot) = self.held.left(*seq) else { continue };
            slot.batch.into_iter().for_each(|batch| self.stream.settles(batch));
            // A page has listed it, so there is no need to remember it.
            self.ledger.settle(slot.window, *seq);
        }
        let rows = || sent.rows.iter().map(|(_, key)| *key);
        let keys = || rows().chain(sent.changes.iter().filter_map(|(_, key)| *key));
        for key in keys() {
            if let Some(entry) = self.aside.get_mut(key) {
                entry.on_way -= 1;
            }
        }
        for key in keys() {
            let Some(entry) = self.aside.get_mut(key) else { continue };
            // The keeper's first row is another than the one that is known.
            // (A key that drains finds it by itself, or knows it when it stands again.)
            let drains = matches!(entry.standing, Standing::Draining(_));
            if entry.on_way == 0 && !drains && std::mem::take(&mut entry.behind) {
                self.routes.leave(key, Instant::now());
                self.drain(key, false);
            } else {
                self.go_on(key);
            }
        }
        for reason in &sent.parked {
            let parked = &self.metrics.events_parked;
            match reason {
                Reason::Unroutable => parked.unroutable.inc(),
                Reason::TooLarge => parked.too_large.inc(),
                Reason::Invalid => parked.invalid.inc(),
                Reason::Nack => {}
            }
        }
        self.tell_settled();
    }

    /// After the loop: waits for what is in flight and for the last cursor write, within the grace period.
    pub(super) async fn wind_down(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.peers.lanes.clear();
        while self.in_flight.iter().any(|n| *n > 0) {
            match timeout_at(deadline, self.peers.outcomes.recv()).await {
                // Refusals are not retried any more: the next session, or the next leader, reads them again.
                Ok(Some(outcomes)) => self.on_outcomes(outcomes),
                Ok(None) | Err(_) => break,
            }
        }
        self.take_last_page(deadline).await;
        self.peers.input.close();
        self.flush_position(deadline).await;
        self.report_end();
    }

    /// An event that can never go may be what ended the session, as its lane has said: with its page it can be set aside,
    /// and the next session goes on without it.
    async fn take_last_page(&mut self, deadline: Instant) {
        for _ in 0..LAST_INPUTS_MAX {
            if self.hopeless.is_empty() {
                return;
            }
            let Ok(Some(input)) = timeout_at(deadline, self.peers.input.recv()).await else { return };
            if self.on_input(input).is_err() {
                return;
            }
        }
    }

    async fn flush_position(&mut self, deadline: Instant) {
        loop {
            if self.on_its_way.is_none() {
                if self.ledger.position() == self.sent && !self.has_writes() {
                    return;
                }
                self.commit();
            }
            match timeout_at(deadline, self.peers.committed.recv()).await {
                Ok(Some(answer)) => self.on_keeper(answer),
                Ok(None) | Err(_) => return,
            }
        }
    }
}
