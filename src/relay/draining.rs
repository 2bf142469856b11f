//! How the events of a key that was set aside go out.
//!
//! They are recalled from the table by the keeper, some at a time, and published one by one, whatever the ordering is. A
//! recall is only sent when nothing of the key is on its way to the table: the keeper answers in order, so what it brings is
//! all that there is. It ends before a row that a person has given up, and names it: the key goes on when that is written.
//! When a recall brings nothing the key is live again: whatever goes to the table meanwhile voids the answer. A refusal drops what was recalled; the key waits again, and is recalled again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::aside::{Drained, Draining, Since, Standing};
use super::keys::back_off;
use super::routes::{Waiter, route_id};
use super::state::State;
use crate::contract::{
    Became, Outcome, Published, RECALL_KEYS_MAX, Reason, Recall, Recalled, RecalledKey, Refusal, Then,
    ToKeeper,
};
use crate::event::{Message, Seq};

/// Rows of one recall, over all keys: so many that keys which drain together go on faster than their writers. Bytes have a
/// limit of their own.
const RECALL_ROWS_MAX: usize = 2_048;

impl State<'_> {
    /// A key's events go out. `forced`: the first one is tried whatever its routing key is known for.
    pub(super) fn drain(&mut self, key: u64, forced: bool) {
        self.aside.take_first(key);
        self.aside.idle(key);
        self.aside.stand(key, Standing::Draining(Box::new(Draining::new(forced))));
        self.follow(key);
        self.go_on(key);
    }

    /// The next step of a draining key, if it may take one.
    pub(super) fn go_on(&mut self, key: u64) {
        let lane = self.keys.lane(key);
        let Some(entry) = self.aside.get_mut(key) else { return };
        let on_way = entry.on_way;
        let Standing::Draining(draining) = &mut entry.standing else { return };
        if draining.in_flight.is_some() {
            return;
        }
        match draining.events.front() {
            Some(Drained { message: Ok(_), .. }) => self.aside.list(key, lane),
            Some(Drained { message: Err(refusal), seq }) => {
                let (refusal, seq) = (refusal.clone(), *seq);
                self.park(key, seq, refusal, Instant::now());
            }
            None if draining.recalling || on_way > 0 => {}
            None => match draining.then.take() {
                Some(Then::Empty) => self.live_again(key),
                Some(Then::Parked) => self.stands_parked(key),
                Some(Then::More) | None => self.aside.hunger(key),
            },
        }
    }

    /// Nothing of the key is in the table.
    fn live_again(&mut self, key: u64) {
        self.routes.leave(key, Instant::now());
        self.aside.remove(key);
        self.keys.live_again(key);
    }

    /// What is left begins with a parked row, which the keeper has not named.
    fn stands_parked(&mut self, key: u64) {
        if let Some(entry) = self.aside.get_mut(key) {
            (entry.head, entry.since) = (None, None);
        }
        self.aside.stand(key, Standing::Parked);
        self.routes.leave(key, Instant::now());
        self.follow(key);
    }

    /// Asks for bodies of draining keys.
    pub(super) fn recall(&mut self) {
        let bytes_max = self.settings.read_ahead / 8;
        let busy = self.recalling.is_some() || self.aside.bytes() > bytes_max;
        if busy || !self.aside.is_hungry() {
            return;
        }
        let Ok(permit) = self.peers.commits.try_reserve() else { return };
        let keys = self.aside.feed(RECALL_KEYS_MAX);
        if keys.is_empty() {
            return;
        }
        let id = self.next_recall;
        self.next_recall += 1;
        self.recalling = Some(id);
        permit.send(ToKeeper::Recall(Recall { id, keys, rows_max: RECALL_ROWS_MAX, bytes_max }));
    }

    /// Bodies of draining keys.
    pub(super) fn on_recalled(&mut self, recalled: Recalled) {
        if self.recalling != Some(recalled.id) {
            return;
        }
        self.recalling = None;
        for RecalledKey { key, events, given_up, then } in recalled.keys {
            // What a person has decided meanwhile must be written before anything more goes, and the answer does not know it.
            let is_current = self.aside.get(key).is_some_and(|entry| entry.on_way == 0);
            let Some(draining) = self.aside.draining(key) else { continue };
            draining.recalling = false;
            if is_current {
                draining.then = Some(then);
                for event in events {
                    let seq = event.seq;
                    let message = self.assembler.assemble(event).map(Arc::new);
                    let message = message
                        .map_err(|invalid| Refusal { reason: Reason::Invalid, detail: invalid.to_string() });
                    self.aside.recalled(key, Drained { seq, message });
                }
                self.give_up(key, &given_up);
            }
            self.go_on(key);
        }
    }

    /// Rows that a person has given up, behind those that were recalled. Their requests may be a long way back in the list that
    /// the keeper tells: decided here, they cannot be in flight by then, and nothing overtakes them.
    fn give_up(&mut self, key: u64, rows: &[Seq]) {
        for &seq in rows {
            if self.outgoing.has_room() && !self.outgoing.is_decided(seq) {
                self.discard(key, seq);
            }
        }
    }

    /// The next recalled event for a lane, unless its routing key is paused.
    pub(super) fn next_recalled(&mut self, lane: usize) -> Option<Arc<Message>> {
        while let Some((key, message)) = self.aside.next_ready(lane) {
            if !self.routes.is_empty() && self.recalled_waits_for_route(key, &message) {
                continue;
            }
            self.aside.sends(key, message.seq);
            return Some(message);
        }
        None
    }

    fn recalled_waits_for_route(&mut self, key: u64, message: &Message) -> bool {
        let (now, id) = (Instant::now(), route_id(&message.routing_key));
        let forced = self.aside.draining(key).is_some_and(|draining| draining.forced);
        if forced || !self.routes.blocks(id, key) {
            self.routes.sends(id, key, now);
            return false;
        }
        let refusal = self.unroutable(id);
        self.routes.join(&message.routing_key, Waiter { key, live: false }, now);
        self.waits_again(key, message, refusal, false, now);
        true
    }

    /// An answer for a recalled event.
    pub(super) fn on_recalled_outcome(&mut self, key: u64, outcome: &Outcome, now: Instant, now_us: i64) {
        let (seq, routing_key) = (outcome.message.seq, &outcome.message.routing_key);
        if outcome.result == Published::Confirmed {
            self.count_confirmed(outcome, now, now_us);
            self.aside.done(key);
            self.change(key, seq, Became::Confirmed);
            self.prove(routing_key);
            self.go_on(key);
            return;
        }
        let refusal = self.note_refusal(outcome, now);
        match refusal.reason {
            Reason::Nack => {
                self.routes.leave(key, now);
                self.waits_again(key, &outcome.message, refusal, true, now);
                self.prove(routing_key);
            }
            Reason::Unroutable => {
                let waiter = Waiter { key, live: false };
                self.routes.refused(routing_key, &refusal.detail, waiter, now);
                self.waits_again(key, &outcome.message, refusal, true, now);
            }
            Reason::TooLarge | Reason::Invalid => self.park(key, seq, refusal, now),
        }
    }

    /// The first event of a draining key was refused, or (not `tried`) would be: the key waits again.
    fn waits_again(&mut self, key: u64, message: &Message, refusal: Refusal, tried: bool, now: Instant) {
        let Some(entry) = self.aside.get_mut(key) else { return };
        let (seq, reason) = (message.seq, refusal.reason);
        let before = entry.since.filter(|_| entry.head == Some(seq));
        let since = before.map_or(Since::new(now, Duration::ZERO), |(since, _)| since);
        (entry.head, entry.since) = (Some(seq), Some((since, reason)));
        let standing = if reason == Reason::Nack {
            let due = now + back_off(entry.refusals);
            entry.refusals += 1;
            Standing::BackingOff { due }
        } else {
            Standing::Routed { park_at: since.reaches(self.settings.park_after) }
        };
        // The table says so already, if nothing was tried.
        let known = before.is_some_and(|(_, before)| before == reason);
        if tried || !known {
            let routing_key = message.routing_key.to_string();
            self.change(key, seq, Became::Waiting { refusal, routing_key, tried });
        }
        self.aside.stand(key, standing);
        self.follow(key);
    }
}
