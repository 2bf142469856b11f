//! What the relay's loop owns: how it starts, and what it hands to the lanes.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use super::aside::{AsideKeys, Key, Since, Standing};
use super::keys::Keys;
use super::outage::Outage;
use super::outgoing::Outgoing;
use super::reports::Stuck;
use super::routes::{Routes, Waiter, route_id};
use super::streamed::Stream;
use super::window::Held;
use super::{Ledger, Peers, Settings};
use crate::contract::{AsideState, Fetch, Head, HeadState, KEYS_MAX, ParkedRows, Position, Reason};
use crate::event::assemble::Assembler;
use crate::event::{Message, Seq};
use crate::health::Health;
use crate::metrics::Metrics;

/// See the module head.
pub(super) struct State<'a> {
    pub(super) peers: Peers,
    pub(super) ledger: &'a mut Ledger,
    pub(super) assembler: &'a Assembler,
    pub(super) settings: Settings,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) keys: Keys,
    pub(super) held: Held,
    pub(super) stream: Stream,
    pub(super) routes: Routes,
    pub(super) outage: Outage,
    pub(super) aside: AsideKeys,
    pub(super) outgoing: Outgoing,
    /// Keys whose next event can never go, until they are set aside.
    pub(super) hopeless: HashSet<u64>,
    /// The recall on its way, and the number of the next.
    pub(super) recalling: Option<u64>,
    pub(super) next_recall: u64,
    /// Messages in flight, per lane.
    pub(super) in_flight: Vec<usize>,
    /// So many confirms are awaited one by one per lane: see [`Settings::careful`].
    pub(super) careful: usize,
    pub(super) last_outcome: Instant,
    /// The last commit sent, and whether it is still on its way.
    pub(super) sent: (Position, i64),
    pub(super) sent_at: Instant,
    pub(super) sent_max_seq: Seq,
    pub(super) next_commit: u64,
    pub(super) on_its_way: Option<u64>,
    /// The commit on its way (or the last one) covers a window of this process.
    pub(super) sent_fresh: bool,
    pub(super) idle: bool,
    pub(super) floor_seq: Seq,
    pub(super) stuck: Option<Stuck>,
    /// What the keeper has counted last, and when.
    pub(super) parked: Option<(ParkedRows, Instant)>,
}

impl<'a> State<'a> {
    pub(super) fn new(
        peers: Peers,
        ledger: &'a mut Ledger,
        assembler: &'a Assembler,
        mut settings: Settings,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        let lanes = peers.lanes.len();
        let now = Instant::now();
        ledger.floor(settings.floor_seq);
        let aside = std::mem::take(&mut settings.aside);
        let mut state = State {
            keys: Keys::new(settings.ordering, lanes),
            held: Held::new(settings.read_ahead),
            stream: Stream::default(),
            routes: Routes::default(),
            outage: Outage::new(now),
            aside: AsideKeys::new(lanes),
            outgoing: Outgoing::default(),
            hopeless: HashSet::new(),
            recalling: None,
            next_recall: 1,
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
            parked: None,
            peers,
            ledger,
            assembler,
            settings,
            metrics,
            health,
        };
        state.find_aside(aside, now);
        state
    }

    /// Takes up what an earlier leader has set aside.
    fn find_aside(&mut self, found: AsideState, now: Instant) {
        self.aside.unpassed.find(&found.unpassed);
        if found.heads.len() > KEYS_MAX {
            self.aside.overflows();
        }
        self.aside.closed(-(found.heads.len() as i64));
        for head in found.heads {
            self.find_head(head, now);
        }
    }

    fn find_head(&mut self, head: Head, now: Instant) {
        let Head { key, seq, state, reason, routing_key, waited } = head;
        let since = Since::new(now, waited);
        let (standing, since) = match (state, reason, &routing_key) {
            (HeadState::Waiting, Some(Reason::Unroutable), Some(routing_key)) => {
                self.routes.join(routing_key, Waiter { key, live: false }, now);
                let park_at = since.reaches(self.settings.park_after);
                (Standing::Routed { park_at }, Some((since, Reason::Unroutable)))
            }
            (HeadState::Waiting, reason, _) => {
                (Standing::BackingOff { due: now }, Some((since, reason.unwrap_or(Reason::Nack))))
            }
            (HeadState::Parked, reason, _) => {
                (Standing::Parked, Some((since, reason.unwrap_or(Reason::Invalid))))
            }
            (HeadState::Queued | HeadState::Retry, ..) => (Standing::Draining(Box::default()), None),
        };
        let entry =
            Key { standing, head: Some(seq), since, refusals: 0, on_way: 0, first: None, behind: false };
        self.aside.insert(key, entry);
        self.go_on(key);
    }

    /// May more be taken from the source?
    pub(super) fn has_room(&self) -> bool {
        // Events of a key that is set aside and not known would overtake it; a row that is would be published twice.
        !self.aside.is_partial() && self.held.has_room(self.aside.bytes())
    }

    /// So many keys were set aside that they were not all told, and so many are live again that the next session is.
    pub(super) fn is_relieved(&self) -> bool {
        self.aside.is_relieved()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.idle
    }

    pub(super) fn next_wake(&self) -> Option<Instant> {
        [self.keys.next_wake(), self.routes.next_wake(), self.aside.next_wake()].into_iter().flatten().min()
    }

    /// Keys and routing keys that are due are tried again.
    pub(super) fn on_wake(&mut self) {
        let now = Instant::now();
        self.keys.wake(now);
        while let Some(key) = self.aside.wake(now) {
            self.drain(key, false);
        }
        while let Some(waiter) = self.routes.probe(now) {
            self.resume(waiter);
        }
    }

    /// Hands every lane what it may send, one batch each, and asks for the bodies that were let go or are set aside.
    pub(super) fn dispatch(&mut self) -> Result<(), &'static str> {
        for lane in 0..self.in_flight.len() {
            let window = if self.careful > 0 { 1 } else { self.settings.window };
            let room = window.saturating_sub(self.in_flight[lane]);
            let mut batch = Vec::new();
            while batch.len() < room {
                if let Some(message) = self.next_recalled(lane) {
                    batch.push(message);
                    continue;
                }
                let Some(key) = self.keys.next_ready(lane) else {
                    break;
                };
                batch.extend(self.next_live(key));
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
        self.recall();
        Ok(())
    }

    /// The next event of a key that may send, unless its routing key is paused, its body was let go, or it can never go.
    fn next_live(&mut self, key: u64) -> Option<Arc<Message>> {
        if !self.routes.is_empty() && self.waits_for_route(key) {
            return None;
        }
        let message = self.held.take(key, &mut self.keys);
        if message.is_none() {
            self.look_at_front(key);
        }
        message
    }

    fn waits_for_route(&mut self, key: u64) -> bool {
        let Some(message) = self.held.front(key, &self.keys).cloned() else { return false };
        let (now, id) = (Instant::now(), route_id(&message.routing_key));
        if !self.routes.blocks(id, key) {
            self.routes.sends(id, key, now);
            return false;
        }
        self.routes.join(&message.routing_key, Waiter { key, live: true }, now);
        self.keys.wait_for_route(key, message.seq, &message.routing_key, now);
        self.held.let_go(key, &mut self.keys);
        true
    }

    /// A key waits no longer for its routing key.
    pub(super) fn resume(&mut self, waiter: Waiter) {
        let Waiter { key, live } = waiter;
        if live {
            self.keys.resume(key);
        } else if matches!(self.aside.get(key).map(|entry| &entry.standing), Some(Standing::Routed { .. })) {
            self.drain(key, false);
        }
    }

    /// The broker takes this routing key: whoever has waited for it goes on.
    pub(super) fn prove(&mut self, routing_key: &str) {
        if self.routes.is_empty() {
            return;
        }
        for waiter in self.routes.proved(route_id(routing_key)) {
            self.resume(waiter);
        }
    }
}

/// Microseconds since the epoch, for latency figures only.
pub(super) fn unix_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as i64
}
