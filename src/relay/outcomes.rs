//! What became of what the lanes were given.

use std::time::Duration;

use tokio::time::Instant;

use super::intake::REMEDY_INVALID;
use super::keys::{PauseReason, Until};
use super::routes::{Waiter, route_id};
use super::state::{State, unix_us};
use super::window::Doom;
use crate::contract::{Outcome, Published, Reason, Refusal};

const WHY_NACK: &str = "the broker answered with a nack: a queue is full (x-overflow = reject-publish) or has no quorum; \
     make room in it or restore its nodes";
const REMEDY_TOO_LARGE: &str = "raise that limit (and the broker's own, if it is lower)";
/// What stands in the table for a nack: the broker says no more.
pub(super) const NACK: &str = "the broker answered with a nack";

impl State<'_> {
    pub(super) fn on_outcomes(&mut self, outcomes: Vec<Outcome>) {
        let now = Instant::now();
        self.last_outcome = now;
        let now_us = unix_us();
        for outcome in outcomes {
            self.metrics.spans.note(&outcome, now_us);
            let message = &outcome.message;
            let lane = self.keys.lane(message.key_hash);
            let Some(slot) = self.held.get(message.seq) else {
                if let Some(key) = self.aside.answered(message.seq) {
                    self.in_flight[lane] = self.in_flight[lane].saturating_sub(1);
                    self.on_recalled_outcome(key, &outcome, now, now_us);
                }
                continue;
            };
            let key = slot.key;
            self.in_flight[lane] = self.in_flight[lane].saturating_sub(1);
            self.outage.tried(&message.routing_key, now);
            match &outcome.result {
                Published::Confirmed => {
                    self.count_confirmed(&outcome, now, now_us);
                    self.on_confirmed(&outcome);
                }
                Published::Nacked | Published::Returned { .. } => self.on_refused(key, &outcome, now),
                Published::TooLarge { .. } | Published::Invalid { .. } => {
                    self.on_hopeless(key, &outcome, now);
                }
            }
            if self.hopeless.contains(&key) {
                self.look_at_front(key);
            }
        }
        self.tell_settled();
    }

    /// A live event is out.
    fn on_confirmed(&mut self, outcome: &Outcome) {
        let seq = outcome.message.seq;
        if let Some(slot) = self.held.settle(seq, &mut self.keys) {
            slot.batch.into_iter().for_each(|batch| self.stream.settles(batch));
            if !self.ledger.settle(slot.window, seq) {
                self.refuse_stream();
            }
        }
        self.prove(&outcome.message.routing_key);
    }

    /// A live event was refused: its key waits, for its own back-off or for its routing key.
    fn on_refused(&mut self, key: u64, outcome: &Outcome, now: Instant) {
        let message = &outcome.message;
        let refusal = self.note_refusal(outcome, now);
        let by = if refusal.reason == Reason::Nack { PauseReason::Nack } else { PauseReason::Returned };
        let decides = self.keys.refused(key, message.seq, by, &message.routing_key, now);
        self.held.let_go(key, &mut self.keys);
        if by == PauseReason::Nack {
            if decides {
                self.routes.leave(key, now);
            }
            // Only a queue says so: the event was routed.
            self.prove(&message.routing_key);
        } else if decides || self.routes.is_probe(route_id(&message.routing_key), key) {
            let waiter = Waiter { key, live: true };
            self.routes.refused(&message.routing_key, &refusal.detail, waiter, now);
        }
    }

    /// A live event can never go: its key is set aside with it, once a page has listed it.
    fn on_hopeless(&mut self, key: u64, outcome: &Outcome, now: Instant) {
        let message = &outcome.message;
        let refusal = self.note_refusal(outcome, now);
        let doom = Doom { refusal, routing_key: Some(message.routing_key.to_string()) };
        self.held.doom(message.seq, doom, &mut self.keys);
        self.routes.leave(key, now);
        // Another event of it, sent before or besides, may wait for a routing key.
        if let Some(refused) = self.keys.refusal(key).filter(|refused| refused.pause == Some(Until::Route)) {
            self.routes.join(&refused.routing_key, Waiter { key, live: true }, now);
        }
        self.look_at_front(key);
    }

    /// What every confirm counts for.
    pub(super) fn count_confirmed(&mut self, outcome: &Outcome, now: Instant, now_us: i64) {
        self.outage.confirmed(now);
        self.careful = self.careful.saturating_sub(1);
        self.metrics.events_confirmed.inc();
        self.metrics.confirmed.note(outcome.message.seq, outcome.message.event_id, now_us);
        self.metrics.publish_confirm_seconds.observe(outcome.took.as_secs_f64());
        let age_us = now_us.saturating_sub(outcome.message.recorded_at_us).max(0);
        self.metrics.recorded_to_confirm_seconds.observe(Duration::from_micros(age_us as u64).as_secs_f64());
        // For the benchmark: exact times, where the histogram has buckets.
        tracing::trace!(target: "statecast::confirmed", seq = outcome.message.seq, at_us = now_us);
        self.no_longer_stuck(outcome.message.seq);
    }

    /// Counts a refusal, notes it for people, and says what goes to the table.
    pub(super) fn note_refusal(&mut self, outcome: &Outcome, now: Instant) -> Refusal {
        let message = &outcome.message;
        let (reason, detail, why) = match &outcome.result {
            Published::Returned { code, text } => {
                self.metrics.broker_returns.inc();
                let exchange = &self.settings.exchange;
                let detail = format!("returned as unroutable ({code} {text})");
                let why = format!(
                    "{detail}; bind a queue to exchange {exchange:?} for its routing key, or start the node that holds the queue"
                );
                (Reason::Unroutable, detail, why)
            }
            Published::TooLarge { reason } => {
                let why = format!("too_large: {reason}; {REMEDY_TOO_LARGE}");
                (Reason::TooLarge, reason.clone(), why)
            }
            Published::Invalid { reason } => {
                (Reason::Invalid, reason.clone(), format!("invalid: {reason}; {REMEDY_INVALID}"))
            }
            Published::Nacked | Published::Confirmed => {
                self.metrics.broker_nacks.inc();
                (Reason::Nack, NACK.to_owned(), WHY_NACK.to_owned())
            }
        };
        let (id, seq) = (message.event_id, message.seq);
        match reason {
            Reason::Nack | Reason::Unroutable => {
                tracing::debug!(event_id = %id, seq, "{why}");
                let routing_key = &message.routing_key;
                let text = format!("event {id} (seq {seq}, routing key {routing_key:?}): {why}");
                self.is_stuck(seq, text, now);
            }
            Reason::TooLarge | Reason::Invalid => {
                tracing::error!("event {id} (seq {seq}) can never be published as things are: {why}");
                self.no_longer_stuck(seq);
            }
        }
        Refusal { reason, detail }
    }
}
