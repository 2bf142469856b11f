//! How keys are set aside, and their events go to the table.
//!
//! A key leaves when it has been refused for long enough while others pass, or at once when its next event can never go. It
//! leaves as a whole: with nothing in flight, and with its first event listed by a page, since only then the event is known
//! to be visible and durable for the keeper too. Its other events follow as pages list them. Each event goes in two steps:
//! commit n carries it to the table, and when that is written it is settled, so that commit n + 1 may pass it.

use std::time::Duration;

use tokio::time::Instant;

use super::aside::{First, Key, Since, Standing};
use super::keys::{PauseReason, Refused, back_off};
use super::outage::Turn;
use super::outcomes::NACK;
use super::outgoing::ROWS_MAX;
use super::routes::{Waiter, route_id};
use super::state::State;
use crate::contract::{Aside, Became, Commit, Reason, Refusal, SetAside};
use crate::event::Seq;

/// Bytes of the rows of one commit, about: the database copies them in one statement. A larger row goes alone.
const BYTES_MAX: usize = 8 << 20;

impl State<'_> {
    /// Looks at what waits: is the broker unwell as a whole, what is to be set aside, what has waited for too long?
    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        let refused_since = self.keys.with_refusal().map(|(_, refused)| refused.since).min();
        let paused = self.routes.iter().map(|(id, route)| (id, route.live > 0));
        match self.outage.judge(now, paused, refused_since) {
            Some(Turn::Begins) => {
                tracing::warn!("the broker refuses most of what it is sent: nothing is set aside");
                self.held.outage(true);
            }
            Some(Turn::Ends) => {
                tracing::info!("the broker takes events again");
                self.held.outage(false);
                self.keys.retry();
                self.routes.retry(now);
            }
            None => {}
        }
        for key in self.hopeless.iter().copied().collect::<Vec<_>>() {
            self.look_at_front(key);
        }
        self.set_refused_aside(now);
        self.park_overdue(now);
    }

    fn set_refused_aside(&mut self, now: Instant) {
        let ripe = |key: u64, refused: &Refused| {
            let refused_at = match refused.reason {
                PauseReason::Nack => Some(refused.at),
                PauseReason::Returned => {
                    self.routes.get(route_id(&refused.routing_key)).and_then(|route| route.refused_at)
                }
            };
            self.outage.may_leave(refused.since, refused_at, now)
                && self.keys.waits(key)
                && self.may_leave(key)
        };
        let keys: Vec<u64> = self
            .keys
            .with_refusal()
            .filter(|(key, refused)| ripe(*key, refused))
            .map(|(key, _)| key)
            .collect();
        let before = self.aside.len();
        for key in keys {
            if self.aside.is_full() {
                break;
            }
            self.set_refused_key_aside(key, now);
        }
        if self.aside.len() > before {
            let keys = self.aside.len() - before;
            tracing::warn!(keys, "refused for long while others pass: set aside, see statecast.parked");
        }
    }

    /// Nothing of the key is in flight, and a page has listed its next event.
    fn may_leave(&self, key: u64) -> bool {
        let listed = |seq: Seq| self.held.get(seq).is_some_and(|slot| slot.window.is_some());
        self.keys.in_flight(key) == 0 && self.keys.front(key).is_some_and(listed)
    }

    fn set_refused_key_aside(&mut self, key: u64, now: Instant) {
        let Some(refused) = self.keys.set_aside(key) else { return };
        self.held.let_go(key, &mut self.keys);
        let since = Since::new(now, Duration::ZERO);
        let (standing, refusal) = match refused.reason {
            PauseReason::Nack => {
                self.routes.leave(key, now);
                let due = now + back_off(refused.refusals);
                (Standing::BackingOff { due }, Refusal { reason: Reason::Nack, detail: NACK.to_owned() })
            }
            PauseReason::Returned => {
                if self.routes.awaited_by(key).is_none() {
                    self.routes.join(&refused.routing_key, Waiter { key, live: false }, now);
                }
                self.routes.set_live(key, false);
                let park_at = since.reaches(self.settings.park_after);
                (Standing::Routed { park_at }, self.unroutable(route_id(&refused.routing_key)))
            }
        };
        let reason = refusal.reason;
        let routing_key = Some(refused.routing_key.into_string());
        let Some(seq) = self.keys.front(key) else { return };
        let first = First { seq, state: Aside::Waiting(refusal), routing_key };
        self.set_key_aside(key, standing, (since, reason), first, refused.refusals);
    }

    /// What stands in the table for a key that waits for this routing key.
    pub(super) fn unroutable(&self, route: u64) -> Refusal {
        let detail = self.routes.get(route).map(|route| route.answer.clone()).unwrap_or_default();
        Refusal { reason: Reason::Unroutable, detail }
    }

    /// If a key's next event can never go the key is set aside, as soon as that may be.
    pub(super) fn look_at_front(&mut self, key: u64) {
        let front = self.keys.front(key).filter(|_| !self.aside.contains(key));
        let Some((seq, doom)) = front.and_then(|seq| Some((seq, self.held.hopeless(seq)?))) else {
            self.hopeless.remove(&key);
            return;
        };
        if !self.may_leave(key) || self.aside.is_full() {
            // Its page may be behind what there is no room for: so no body waits for it.
            self.keys.bar(key);
            self.hopeless.insert(key);
            self.held.let_go(key, &mut self.keys);
            // What was to try a routing key cannot.
            if self.keys.refusal(key).is_some_and(|refused| refused.pause.is_none()) {
                self.routes.leave(key, Instant::now());
            }
            return;
        }
        let (state, routing_key) = (Aside::Parked(doom.refusal.clone()), doom.routing_key.clone());
        let first = First { seq, state, routing_key };
        let (reason, now) = (doom.refusal.reason, Instant::now());
        self.hopeless.remove(&key);
        self.keys.set_aside(key);
        self.held.let_go(key, &mut self.keys);
        self.routes.leave(key, now);
        let since = Since::new(now, Duration::ZERO);
        self.set_key_aside(key, Standing::Parked, (since, reason), first, 0);
    }

    fn set_key_aside(
        &mut self,
        key: u64,
        standing: Standing,
        since: (Since, Reason),
        first: First,
        refusals: u32,
    ) {
        let (head, since, first) = (Some(first.seq), Some(since), Some(Box::new(first)));
        let entry = Key { standing, head, since, refusals, on_way: 0, first, behind: false };
        self.aside.insert(key, entry);
        self.aside.has_work(key, false);
    }

    /// A page has listed events of a key: if it is set aside and waits, or drains for too long, they follow it.
    pub(super) fn follow(&mut self, key: u64) {
        if self.aside.contains(key) {
            let listed = |seq: Seq| self.held.get(seq).is_some_and(|slot| slot.window.is_some());
            if self.keys.front(key).is_some_and(listed) {
                let too_long = self.held.is_too_long(self.keys.queued(key));
                self.aside.has_work(key, too_long);
            }
        } else if self.hopeless.contains(&key) {
            self.look_at_front(key);
        }
    }

    /// Keys that have waited for their routing key for too long are parked.
    fn park_overdue(&mut self, now: Instant) {
        if self.outage.since().is_some() {
            return;
        }
        let overdue: Vec<u64> = self.aside.overdue(now).take(ROWS_MAX).collect();
        for key in overdue {
            let Some(route) = self.routes.awaited_by(key) else { continue };
            let tried = self.routes.get(route).and_then(|route| route.refused_at);
            // After a start, and after an outage, it is tried once more before it is given up.
            let Some(entry) = self.aside.get(key).filter(|entry| entry.first.is_none()) else { continue };
            let Some(seq) = entry.head.filter(|_| self.outage.counts(tried)) else { continue };
            if self.outgoing.has_room() && !self.outgoing.is_decided(seq) {
                let refusal = self.unroutable(route);
                self.park(key, seq, refusal, now);
            }
        }
    }

    /// A row in the table can never go, or has waited for too long: a person decides.
    pub(super) fn park(&mut self, key: u64, seq: Seq, refusal: Refusal, now: Instant) {
        let since = Since::new(now, Duration::ZERO);
        tracing::info!(seq, reason = ?refusal.reason, "parked: {}", refusal.detail);
        if let Some(entry) = self.aside.get_mut(key) {
            (entry.head, entry.since) = (Some(seq), Some((since, refusal.reason)));
        }
        self.no_longer_stuck(seq);
        self.change(key, seq, Became::Parked(refusal));
        self.aside.stand(key, Standing::Parked);
        self.routes.leave(key, now);
        self.follow(key);
    }

    /// Decides what becomes of a row that is set aside.
    pub(super) fn change(&mut self, key: u64, seq: Seq, to: Became) {
        let entry = self.aside.get_mut(key);
        let known = entry.is_some();
        if let Some(entry) = entry {
            entry.on_way += 1;
        }
        if matches!(to, Became::Confirmed | Became::Discarded) {
            self.aside.closed(1);
        }
        self.outgoing.change(known.then_some(key), seq, to);
    }

    /// Is there anything for the table?
    pub(super) fn has_writes(&self) -> bool {
        !self.outgoing.is_empty() || self.aside.next_work(self.outage.since().is_some()).is_some()
    }

    /// Puts into a commit what became of rows, and rows to set aside.
    pub(super) fn fill(&mut self, commit: &mut Commit) {
        // With the position where it was, nothing more is passed.
        commit.unpassed = !self.aside.unpassed.is_empty() && commit.position != self.sent.0;
        commit.changes = self.outgoing.take_changes();
        let room = ROWS_MAX - commit.changes.len();
        let outage = self.outage.since().is_some();
        let mut bytes = 0;
        while commit.set_aside.len() < room && bytes < BYTES_MAX {
            let Some(key) = self.aside.next_work(outage) else { return };
            let Some(row) = self.next_for_table(key) else {
                // With room for none the loop ends.
                if !self.may_leave(key) {
                    self.aside.idle(key);
                }
                continue;
            };
            bytes += self.held.get(row.seq).map_or(0, |slot| slot.row_bytes);
            self.outgoing.sends(&row);
            commit.set_aside.push(row);
        }
    }

    /// The next event of a key that is set aside, for the table.
    fn next_for_table(&mut self, key: u64) -> Option<SetAside> {
        if !self.may_leave(key) {
            return None;
        }
        let seq = self.keys.front(key)?;
        if !self.aside.goes(seq) {
            return None;
        }
        let is_first = self.aside.get(key)?.first.as_ref().is_some_and(|first| first.seq == seq);
        let first = if is_first { self.aside.take_first(key) } else { None };
        self.held.leave(seq, &mut self.keys);
        self.keys.remove_front(key);
        if !self.may_leave(key) {
            self.aside.idle(key);
        }
        let entry = self.aside.get_mut(key)?;
        entry.on_way += 1;
        entry.behind |= entry.head.is_some_and(|head| seq < head);
        self.aside.lengthens(key, seq);
        let (state, routing_key) =
            first.map_or((Aside::Queued, None), |first| (first.state, first.routing_key));
        Some(SetAside { seq, key, state, routing_key })
    }
}
