//! What the relay's loop owns, and what each arm of it does.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::intake::REMEDY_INVALID;
use super::keys::{Keys, PauseReason};
use super::streamed::Stream;
use super::window::{Held, Slot};
use super::{COMMIT_INTERVAL, FLOOR_INTERVAL, Ledger, Peers, Settings, Unpublishable};
use crate::contract::{Commit, Committed, Fetch, Outcome, Position, Published};
use crate::event::Seq;
use crate::event::assemble::Assembler;
use crate::health::Health;
use crate::metrics::Metrics;

/// A refusal that lasts longer than this is reported.
const STUCK_AFTER: Duration = Duration::from_secs(5);

const WHY_NACK: &str = "the broker answered with a nack: a queue is full (x-overflow = reject-publish) or has no quorum; \
     make room in it or restore its nodes";
const REMEDY_TOO_LARGE: &str = "raise that limit (and the broker's own, if it is lower)";

/// The first event that is being refused, for `/ready` and the log.
#[derive(Debug)]
struct Stuck {
    seq: Seq,
    since: Instant,
    text: String,
    logged: bool,
}

/// See the module head.
pub(super) struct State<'a> {
    pub(super) peers: Peers,
    pub(super) ledger: &'a mut Ledger,
    pub(super) assembler: &'a Assembler,
    settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    health: Arc<Health>,
    pub(super) keys: Keys,
    pub(super) held: Held,
    pub(super) stream: Stream,
    /// Messages in flight, per lane.
    in_flight: Vec<usize>,
    /// So many confirms are awaited one by one per lane: see [`Settings::careful`].
    careful: usize,
    last_outcome: Instant,
    /// The last commit sent, and whether it is still on its way.
    sent: (Position, i64),
    sent_at: Instant,
    sent_max_seq: Seq,
    next_commit: u64,
    on_its_way: Option<u64>,
    /// The commit on its way (or the last one) covers a window of this process.
    sent_fresh: bool,
    idle: bool,
    floor_seq: Seq,
    stuck: Option<Stuck>,
    /// An event that can never go: nothing more is read, what is in hand goes out, then the session ends.
    pub(super) hopeless: Option<Unpublishable>,
    /// The page that lists it has arrived, so that the prefix ends right before it; or a stream brought it.
    pub(super) hopeless_listed: bool,
}

impl<'a> State<'a> {
    pub(super) fn new(
        peers: Peers,
        ledger: &'a mut Ledger,
        assembler: &'a Assembler,
        settings: Settings,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let lanes = peers.lanes.len();
        let now = Instant::now();
        ledger.floor(settings.floor_seq);
        State {
            keys: Keys::new(settings.ordering, lanes),
            held: Held::new(settings.read_ahead),
            stream: Stream::default(),
            in_flight: vec![0; lanes],
            careful: settings.careful,
            last_outcome: now,
            sent: ledger.position(),
            sent_at: now,
            sent_max_seq: ledger.max_seq(),
            next_commit: 1,
            on_its_way: None,
            sent_fresh: false,
            idle: false,
            floor_seq: settings.floor_seq,
            stuck: None,
            hopeless: None,
            hopeless_listed: false,
            peers,
            ledger,
            assembler,
            settings,
            metrics,
            health,
        }
    }

    /// May more be taken from the source? With a polled event that can never go only until its page has come, which is the
    /// next input: the event itself may be what fills the room.
    pub(super) fn has_room(&self) -> bool {
        if self.hopeless.is_some() { !self.hopeless_listed } else { self.held.has_room() }
    }

    /// The event that can never go, if there is one.
    pub(super) fn hopeless(&self) -> Option<Unpublishable> {
        self.hopeless.clone()
    }

    /// There is one, and everything else that was in hand is out.
    pub(super) fn is_hopeless(&self) -> bool {
        self.hopeless.is_some() && self.hopeless_listed && self.in_flight.iter().all(|n| *n == 0)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.keys.next_wake()
    }

    pub(super) fn give_up(&mut self, seq: Seq, event_id: Uuid, kind: &str, why: &str, remedy: &'static str) {
        let reason = format!("{kind}: {why}");
        self.hopeless.get_or_insert(Unpublishable { event_id, seq, reason, remedy });
        // The page of a streamed event is not the next input, and without it there would be no bound to what is taken.
        let listed = |slot: &Slot| slot.window.is_some() || slot.batch.is_some();
        self.hopeless_listed |= self.held.get(seq).is_some_and(listed);
    }

    pub(super) fn on_outcomes(&mut self, outcomes: Vec<Outcome>) {
        self.last_outcome = Instant::now();
        let now_us = unix_us();
        for outcome in outcomes {
            let Some(slot) = self.held.get(outcome.message.seq) else {
                continue;
            };
            let key = slot.key;
            let lane = self.keys.lane(key);
            self.in_flight[lane] = self.in_flight[lane].saturating_sub(1);
            match &outcome.result {
                Published::Confirmed => self.on_confirmed(&outcome, now_us),
                Published::Nacked => {
                    self.metrics.broker_nacks.inc();
                    self.on_refused(key, &outcome, PauseReason::Nack, WHY_NACK);
                }
                Published::Returned { code, text } => {
                    self.metrics.broker_returns.inc();
                    let exchange = &self.settings.exchange;
                    let why = format!(
                        "returned as unroutable ({code} {text}); bind a queue to exchange {exchange:?} for its routing key, or start the node that holds the queue"
                    );
                    self.on_refused(key, &outcome, PauseReason::Returned, &why);
                }
                Published::TooLarge { reason } => {
                    let message = &outcome.message;
                    self.give_up(message.seq, message.event_id, "too_large", reason, REMEDY_TOO_LARGE);
                }
                Published::Invalid { reason } => {
                    let message = &outcome.message;
                    self.give_up(message.seq, message.event_id, "invalid", reason, REMEDY_INVALID);
                }
            }
        }
        self.tell_settled();
    }

    fn on_confirmed(&mut self, outcome: &Outcome, now_us: i64) {
        if let Some(slot) = self.held.settle(outcome.message.seq, &mut self.keys) {
            slot.batch.into_iter().for_each(|batch| self.stream.settles(batch));
            if !self.ledger.settle(slot.window, outcome.message.seq) {
                self.refuse_stream();
            }
        }
        self.careful = self.careful.saturating_sub(1);
        self.metrics.events_confirmed.inc();
        self.metrics.publish_confirm_seconds.observe(outcome.took.as_secs_f64());
        let age_us = now_us.saturating_sub(outcome.message.recorded_at_us).max(0);
        self.metrics.recorded_to_confirm_seconds.observe(age_us as f64 / 1e6);
        if self.stuck.as_ref().is_some_and(|s| s.seq == outcome.message.seq) {
            self.stuck = None;
            self.health.clear_reason("stuck");
        }
    }

    fn on_refused(&mut self, key: u64, outcome: &Outcome, reason: PauseReason, why: &str) {
        let now = Instant::now();
        let wait = self.keys.refused(key, outcome.message.seq, reason, now);
        self.held.let_go(key, &mut self.keys);
        tracing::debug!(event_id = %outcome.message.event_id, seq = outcome.message.seq, ?wait, "{why}");
        let routing_key = &outcome.message.routing_key;
        let text = format!(
            "event {} (seq {}, routing key {routing_key:?}): {why}",
            outcome.message.event_id, outcome.message.seq
        );
        match &mut self.stuck {
            Some(stuck) if stuck.seq == outcome.message.seq => stuck.text = text,
            Some(_) => {}
            None => self.stuck = Some(Stuck { seq: outcome.message.seq, since: now, text, logged: false }),
        }
    }

    pub(super) fn on_wake(&mut self) {
        self.keys.wake(Instant::now());
    }

    /// Hands every lane what it may send, one batch each, and asks for the bodies that were let go.
    pub(super) fn dispatch(&mut self) -> Result<(), &'static str> {
        for lane in 0..self.in_flight.len() {
            let window = if self.careful > 0 { 1 } else { self.settings.window };
            let room = window.saturating_sub(self.in_flight[lane]);
            let mut batch = Vec::new();
            while batch.len() < room {
                let Some(key) = self.keys.next_ready(lane) else {
                    break;
                };
                batch.extend(self.held.take(key, &mut self.keys));
            }
            if batch.is_empty() {
                continue;
            }
            if self.in_flight.iter().all(|n| *n == 0) {
                self.last_outcome = Instant::now();
            }
            self.in_flight[lane] += batch.len();
            match self.peers.lanes[lane].try_send(batch) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => return Err("sink (its queue is full: a bound is wrong)"),
                Err(TrySendError::Closed(_)) => return Err("sink"),
            }
        }
        if let Ok(permit) = self.peers.fetch.try_reserve() {
            let idle = self.in_flight.iter().all(|n| *n == 0);
            let seqs = self.held.wanted(&self.keys, idle);
            if !seqs.is_empty() {
                permit.send(Fetch { seqs });
            }
        }
        Ok(())
    }

    /// When the next cursor write is due, if one is.
    pub(super) fn commit_at(&self) -> Option<Instant> {
        if self.on_its_way.is_some() {
            return None;
        }
        let (position, confirmed) = self.ledger.position();
        let urgent = confirmed != self.sent.1
            || position.window != self.sent.0.window
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

    /// Sends the position to the keeper.
    pub(super) fn commit(&mut self) {
        let (position, confirmed) = self.ledger.position();
        let commit = Commit {
            id: self.next_commit,
            closes: position.snapshot != self.sent.0.snapshot,
            position: position.clone(),
            max_seq: self.ledger.max_seq(),
            confirmed,
        };
        self.sent_max_seq = commit.max_seq;
        if self.peers.commits.try_send(commit).is_ok() {
            self.on_its_way = Some(self.next_commit);
            self.next_commit += 1;
            self.sent = (position, confirmed);
            self.sent_at = Instant::now();
            self.sent_fresh = self.ledger.fresh_passed();
        }
    }

    pub(super) fn on_committed(&mut self, committed: Committed) {
        if self.on_its_way == Some(committed.id) {
            self.on_its_way = None;
            self.ledger.written(self.sent.0.clone());
        }
        if committed.floor_seq > self.floor_seq {
            self.ledger.floor(committed.floor_seq);
        }
        self.floor_seq = committed.floor_seq;
        self.idle = self.settings.until_idle && self.sent_fresh;
    }

    /// Brings gauges and reasons up to date.
    pub(super) fn report(&mut self) {
        self.metrics.window_in_use.set(self.in_flight.iter().sum::<usize>() as i64);
        let ahead = self.held.unlisted().filter(|seq| !self.ledger.expects(*seq)).count();
        self.metrics.events_pending.set(self.ledger.pending() + ahead as i64);
        let oldest_age_us = self.held.oldest_us().map_or(0, |us| unix_us().saturating_sub(us).max(0));
        self.metrics.oldest_pending_age_seconds.set(oldest_age_us as f64 / 1e6);
        self.metrics.keys_paused.nack.set(self.keys.paused(PauseReason::Nack) as i64);
        self.metrics.keys_paused.returned.set(self.keys.paused(PauseReason::Returned) as i64);
        let now = Instant::now();
        if let Some(stuck) = &mut self.stuck {
            let for_s = now.duration_since(stuck.since);
            if for_s >= STUCK_AFTER {
                self.health.set_reason("stuck", &stuck.text);
                if !stuck.logged {
                    stuck.logged = true;
                    tracing::warn!("the cursor waits for an event that the broker refuses: {}", stuck.text);
                }
            }
        }
        let silent = self.in_flight.iter().any(|n| *n > 0)
            && now.duration_since(self.last_outcome) > self.settings.confirm_timeout;
        if silent {
            let text = format!(
                "no confirm for {:.0?}: the broker answers heartbeats but not publishes; look at its alarms and queues",
                self.settings.confirm_timeout
            );
            self.health.set_reason("confirms", &text);
        } else {
            self.health.clear_reason("confirms");
        }
    }

    /// After the loop: waits for what is in flight and for the last cursor write, within the grace period.
    pub(super) async fn wind_down(&mut self, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.peers.input.close();
        self.peers.lanes.clear();
        while self.in_flight.iter().any(|n| *n > 0) {
            match timeout_at(deadline, self.peers.outcomes.recv()).await {
                // Refusals are not retried any more: the next session, or the next leader, reads them again.
                Ok(Some(outcomes)) => self.on_outcomes(outcomes),
                Ok(None) | Err(_) => break,
            }
        }
        self.flush_position(deadline).await;
        // What a standby shows of these would be the past.
        self.metrics.events_pending.set(0);
        self.metrics.oldest_pending_age_seconds.set(0.0);
        self.metrics.window_in_use.set(0);
        self.health.clear_reason("stuck");
        self.health.clear_reason("confirms");
    }

    async fn flush_position(&mut self, deadline: Instant) {
        loop {
            if self.on_its_way.is_none() {
                if self.ledger.position() == self.sent {
                    return;
                }
                self.commit();
            }
            match timeout_at(deadline, self.peers.committed.recv()).await {
                Ok(Some(committed)) => self.on_committed(committed),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

/// Microseconds since the epoch, for latency figures only.
fn unix_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64)
}
