//! What people are told: gauges, and reasons why the process is not ready.

use std::time::Duration;

use tokio::time::Instant;

use super::outage::SET_ASIDE_AFTER;
use super::state::{State, unix_us};
use crate::contract::UNPASSED_MAX;
use crate::event::Seq;

/// A refusal that lasts longer than this is told.
const STUCK_AFTER: Duration = SET_ASIDE_AFTER;
/// Routing keys that a reason names.
const NAMES_MAX: usize = 5;

/// An event that is being refused, the first of them: what people are told.
#[derive(Debug)]
pub(super) struct Stuck {
    seq: Seq,
    since: Instant,
    text: String,
    logged: bool,
}

impl State<'_> {
    /// An event was refused.
    pub(super) fn is_stuck(&mut self, seq: Seq, text: String, now: Instant) {
        match &mut self.stuck {
            Some(stuck) if stuck.seq == seq => stuck.text = text,
            Some(_) => {}
            None => self.stuck = Some(Stuck { seq, since: now, text, logged: false }),
        }
    }

    /// An event was confirmed, or is a person's business now.
    pub(super) fn no_longer_stuck(&mut self, seq: Seq) {
        if self.stuck.as_ref().is_some_and(|stuck| stuck.seq == seq) {
            self.stuck = None;
            self.health.clear_reason("refused");
        }
    }

    /// Brings gauges and reasons up to date.
    pub(super) fn report(&mut self) {
        let now = Instant::now();
        let metrics = &self.metrics;
        metrics.window_in_use.set(self.in_flight.iter().sum::<usize>() as i64);
        let ahead = self.held.unlisted().filter(|seq| !self.ledger.expects(*seq)).count();
        metrics.events_pending.set(self.ledger.pending() + ahead as i64 + self.aside.pending());
        let oldest_age_us = self.held.oldest_us().map_or(0, |us| unix_us().saturating_sub(us).max(0));
        metrics.oldest_pending_age_seconds.set(oldest_age_us as f64 / 1e6);
        metrics.keys_paused.nack.set((self.keys.backing_off() + self.aside.backing_off()) as i64);
        metrics.keys_paused.returned.set(self.routes.len() as i64);
        // The keeper counts all rows, some seconds apart; of the keys it is known at once.
        let counted = self.parked.filter(|(parked, _)| parked.rows > 0);
        let (rows, oldest) = counted.map_or((0, Duration::ZERO), |(p, at)| (p.rows, p.oldest + at.elapsed()));
        metrics.parked_events.set(rows.max(self.aside.parked() as i64));
        metrics.oldest_parked_age_seconds.set(oldest.max(self.aside.oldest_parked(now)).as_secs_f64());
        self.report_refused(now);
        self.report_outage(now);
        self.report_parked();
        self.report_silence(now);
    }

    fn report_refused(&mut self, now: Instant) {
        let Some(stuck) = &mut self.stuck else { return };
        if now.duration_since(stuck.since) < STUCK_AFTER {
            return;
        }
        let waiting = self.aside.waiting();
        let text = format!("{}; {waiting} keys are set aside and tried again", stuck.text);
        self.health.set_warning("refused", &text);
        if !std::mem::replace(&mut stuck.logged, true) {
            tracing::warn!("an event is refused for long: {}", stuck.text);
        }
    }

    fn report_outage(&self, now: Instant) {
        let lasts = |since: Instant| now.duration_since(since) >= STUCK_AFTER;
        if !self.outage.since().is_some_and(lasts) {
            return self.health.clear_reason("outage");
        }
        let names: Vec<&str> = self.routes.iter().take(NAMES_MAX).map(|(_, route)| &*route.name).collect();
        let mut text = "the broker refuses most of what it is sent; nothing is set aside".to_owned();
        if !names.is_empty() {
            let more = if self.routes.len() > names.len() { " and more" } else { "" };
            text.push_str(&format!("; no queue takes the routing keys {}{more}", names.join(", ")));
        }
        if let Some(stuck) = &self.stuck {
            text.push_str(&format!("; {}", stuck.text));
        }
        self.health.set_reason("outage", &text);
    }

    fn report_parked(&self) {
        let (keys, parked) = (self.aside.len(), self.aside.parked());
        if self.aside.unpassed.is_partial() {
            let text = format!(
                "more than {UNPASSED_MAX} rows that are set aside lie behind the cursor's position, and nothing is read: let \
                 them go out, or discard some (`statecast parked`); then stop all relays and run `statecast cursor rebase`, \
                 which forgets those that are done"
            );
            self.health.set_reason("parked", &text);
        } else if self.aside.is_full() || self.aside.is_partial() {
            let text = format!(
                "{keys} keys are set aside, and no more can be: events that are refused hold all others up; bind the \
                 missing queues, or see `statecast parked list` and retry or discard"
            );
            self.health.set_reason("parked", &text);
        } else if parked > 0 {
            let text = format!(
                "events of {parked} keys are parked, and what follows them waits: see `statecast parked list`"
            );
            self.health.set_warning("parked", &text);
        } else {
            self.health.clear_reason("parked");
        }
    }

    fn report_silence(&self, now: Instant) {
        let silent = self.in_flight.iter().any(|n| *n > 0)
            && now.duration_since(self.last_outcome) > self.settings.confirm_timeout;
        if !silent {
            return self.health.clear_reason("confirms");
        }
        let text = format!(
            "no confirm for {:.0?}: the broker answers heartbeats but not publishes; look at its alarms and queues",
            self.settings.confirm_timeout
        );
        self.health.set_reason("confirms", &text);
    }

    /// What a standby shows of these would be the past.
    pub(super) fn report_end(&self) {
        let metrics = &self.metrics;
        for gauge in [
            &metrics.events_pending,
            &metrics.window_in_use,
            &metrics.parked_events,
            &metrics.keys_paused.nack,
            &metrics.keys_paused.returned,
        ] {
            gauge.set(0);
        }
        metrics.oldest_pending_age_seconds.set(0.0);
        metrics.oldest_parked_age_seconds.set(0.0);
        for reason in ["refused", "outage", "parked", "confirms"] {
            self.health.clear_reason(reason);
        }
    }
}
