//! Order within a key, and keys that wait.
//!
//! A key is *idle* (nothing queued), *ready* (listed for its lane), *busy* (a message in flight, strict order),
//! *paused* (its event was refused: it is tried again after a back-off, or when its routing key is), *hungry* (the body of
//! its next event was let go and must be fetched), or *set aside* (its events go to a table: see `aside`). Keys are 64-bit
//! hashes: a collision only serialises two keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ordering;
use crate::event::Seq;
use crate::switches::{Guarantee, holds};

/// First pause of a refused key.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause of a refused key.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Why a key waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// The broker said no: back-pressure.
    Nack,
    /// No queue took it.
    Returned,
}

/// Until when a key waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Its own back-off.
    At(Instant),
    /// Its routing key is tried, by it or by another.
    Route,
}

/// A key whose event was refused, until that event is confirmed.
#[derive(Debug)]
pub struct Refused {
    /// The first event that was.
    pub seq: Seq,
    /// Since when.
    pub since: Instant,
    /// When it was last.
    pub at: Instant,
    /// Why.
    pub reason: PauseReason,
    /// The event's routing key.
    pub routing_key: Box<str>,
    /// In a row.
    pub refusals: u32,
    /// None: it is being tried again.
    pub pause: Option<Until>,
}

#[derive(Debug, Default)]
struct Key {
    /// Waiting events in order.
    queue: VecDeque<Seq>,
    in_flight: u32,
    refused: Option<Box<Refused>>,
    /// Stands in its lane's ready list.
    listed: bool,
    /// Is set aside: nothing of it is sent.
    aside: bool,
    /// Its next event can never go.
    barred: bool,
    /// Bytes of the bodies held for this key.
    held_bytes: usize,
}

impl Key {
    /// Writers of one key take turns, so that `seq` is the order in which they wrote.
    fn queue_in_order(&mut self, seq: Seq) {
        let place = self.queue.partition_point(|waiting| *waiting < seq);
        self.queue.insert(place, seq);
        self.barred &= place > 0;
    }

    fn waits(&self) -> bool {
        self.aside || self.barred || self.refused.as_ref().is_some_and(|refused| refused.pause.is_some())
    }
}

/// All keys with something queued or in flight.
#[derive(Debug)]
pub struct Keys {
    ordering: Ordering,
    keys: HashMap<u64, Key>,
    /// Per lane.
    ready: Vec<VecDeque<u64>>,
    wakes: BinaryHeap<Reverse<(Instant, u64)>>,
    /// Keys with a refused event.
    refused: HashSet<u64>,
    /// Those that wait for their own back-off.
    backing_off: usize,
}

impl Keys {
    /// No keys yet.
    pub fn new(ordering: Ordering, lanes: usize) -> Self {
        Keys {
            ordering,
            keys: HashMap::new(),
            ready: vec![VecDeque::new(); lanes.max(1)],
            wakes: BinaryHeap::new(),
            refused: HashSet::new(),
            backing_off: 0,
        }
    }

    /// The lane of a key: fixed for a session.
    pub fn lane(&self, key: u64) -> usize {
        (key % self.ready.len() as u64) as usize
    }

    /// Queues an event in its key: behind all, unless a stream has left it out and brought later ones. `aside`: the key is
    /// set aside.
    pub fn push(&mut self, key: u64, seq: Seq, aside: bool) {
        let entry = self.keys.entry(key).or_default();
        entry.aside = aside;
        entry.queue_in_order(seq);
        self.list(key);
    }

    /// Bytes held for a key have changed.
    pub fn hold(&mut self, key: u64, bytes: isize) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.held_bytes = entry.held_bytes.saturating_add_signed(bytes);
        }
    }

    /// Bytes held for a key.
    pub fn held_bytes(&self, key: u64) -> usize {
        self.keys.get(&key).map_or(0, |k| k.held_bytes)
    }

    /// Is the key waiting after a refusal, behind an event that can never go, or set aside?
    pub fn waits(&self, key: u64) -> bool {
        self.keys.get(&key).is_some_and(Key::waits)
    }

    /// The next event of a key, without taking it.
    pub fn front(&self, key: u64) -> Option<Seq> {
        self.keys.get(&key)?.queue.front().copied()
    }

    /// The events of a key that wait, in order.
    pub fn waiting(&self, key: u64) -> impl Iterator<Item = Seq> + '_ {
        self.keys.get(&key).into_iter().flat_map(|k| k.queue.iter().copied())
    }

    /// How many these are.
    pub fn queued(&self, key: u64) -> usize {
        self.keys.get(&key).map_or(0, |k| k.queue.len())
    }

    /// Events of a key in flight.
    pub fn in_flight(&self, key: u64) -> u32 {
        self.keys.get(&key).map_or(0, |k| k.in_flight)
    }

    /// Lists a key for its lane if it may send.
    pub fn list(&mut self, key: u64) {
        let lane = self.lane(key);
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        let pipelined = self.ordering == Ordering::Pipelined || !holds(Guarantee::KeyOrder);
        let free = pipelined || entry.in_flight == 0;
        if free && !entry.listed && !entry.waits() && !entry.queue.is_empty() {
            entry.listed = true;
            self.ready[lane].push_back(key);
        }
    }

    /// The next key of a lane that may send. It is no longer listed: `take` or a later `list` follows.
    pub fn next_ready(&mut self, lane: usize) -> Option<u64> {
        while let Some(key) = self.ready.get_mut(lane)?.pop_front() {
            let Some(entry) = self.keys.get_mut(&key) else {
                continue;
            };
            entry.listed = false;
            if !entry.waits() && !entry.queue.is_empty() {
                return Some(key);
            }
        }
        None
    }

    /// Takes the next event of a key to send it.
    pub fn take(&mut self, key: u64) -> Option<Seq> {
        let entry = self.keys.get_mut(&key)?;
        let seq = entry.queue.pop_front()?;
        entry.in_flight += 1;
        self.list(key);
        Some(seq)
    }

    /// Takes the next event of a key that is set aside out of it.
    pub fn remove_front(&mut self, key: u64) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.queue.pop_front();
            self.forget_idle(key);
        }
    }

    /// An event in flight was confirmed.
    pub fn confirmed(&mut self, key: u64, seq: Seq) {
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        if entry.refused.as_ref().is_some_and(|refused| refused.seq == seq) {
            self.settle_refusal(key);
        }
        self.forget_idle(key);
        self.list(key);
    }

    /// An event in flight was refused: it goes back to its place, and the key waits. Only the first of several refused
    /// events decides for how long: false if this is another.
    pub fn refused(
        &mut self,
        key: u64,
        seq: Seq,
        reason: PauseReason,
        routing_key: &str,
        now: Instant,
    ) -> bool {
        let Some(entry) = self.keys.get_mut(&key) else {
            return false;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        entry.queue_in_order(seq);
        let before = entry.refused.take();
        let (since, refusals, pause) =
            before.as_ref().map_or((now, 0, None), |b| (b.since, b.refusals, b.pause));
        if before.as_ref().is_some_and(|before| before.seq < seq && pause.is_some()) {
            entry.refused = before;
            return false;
        }
        self.backing_off -= usize::from(matches!(pause, Some(Until::At(_))));
        let until = match (reason, pause) {
            (PauseReason::Returned, _) => Until::Route,
            (PauseReason::Nack, Some(Until::At(at))) => Until::At(at),
            (PauseReason::Nack, _) => Until::At(now + back_off(refusals)),
        };
        let refusals = refusals + u32::from(pause.is_none());
        let (routing_key, pause) = (routing_key.into(), Some(until));
        let refused = Refused { seq, since, at: now, reason, routing_key, refusals, pause };
        entry.refused = Some(Box::new(refused));
        self.refused.insert(key);
        if let Until::At(at) = until {
            self.backing_off += 1;
            self.wakes.push(Reverse((at, key)));
        }
        true
    }

    /// The next event of a key has a routing key that is paused: it waits, too.
    pub fn wait_for_route(&mut self, key: u64, seq: Seq, routing_key: &str, now: Instant) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let (since, refusals) = entry.refused.as_ref().map_or((now, 0), |r| (r.since, r.refusals));
        let (reason, routing_key) = (PauseReason::Returned, routing_key.into());
        let refused =
            Refused { seq, since, at: now, reason, routing_key, refusals, pause: Some(Until::Route) };
        entry.refused = Some(Box::new(refused));
        self.refused.insert(key);
    }

    /// An event in flight can never go: it goes back to its place.
    pub fn put_back(&mut self, key: u64, seq: Seq) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.in_flight = entry.in_flight.saturating_sub(1);
            entry.queue_in_order(seq);
        }
        if self.refusal(key).is_some_and(|refused| refused.seq == seq) {
            self.settle_refusal(key);
        }
    }

    /// A key is tried again.
    pub fn resume(&mut self, key: u64) {
        let refused = self.keys.get_mut(&key).and_then(|entry| entry.refused.as_mut());
        if let Some(Until::At(_)) = refused.and_then(|refused| refused.pause.take()) {
            self.backing_off -= 1;
        }
        self.list(key);
    }

    /// All keys that wait for their own back-off are tried again.
    pub fn retry(&mut self) {
        let keys: Vec<u64> = self.refused.iter().copied().collect();
        for key in keys {
            let refused = self.refusal(key);
            if refused.is_some_and(|refused| matches!(refused.pause, Some(Until::At(_)))) {
                self.resume(key);
            }
        }
    }

    /// Keys with a refused event.
    pub fn with_refusal(&self) -> impl Iterator<Item = (u64, &Refused)> {
        self.refused.iter().filter_map(|key| Some((*key, self.refusal(*key)?)))
    }

    /// What was refused of a key.
    pub fn refusal(&self, key: u64) -> Option<&Refused> {
        self.keys.get(&key)?.refused.as_deref()
    }

    /// The next event of a key can never go: it waits behind it, until that is set aside or another comes before it.
    pub fn bar(&mut self, key: u64) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.barred = true;
        }
    }

    /// The key is set aside: nothing of it is sent until `live_again`. Returns what was refused.
    pub fn set_aside(&mut self, key: u64) -> Option<Box<Refused>> {
        let entry = self.keys.get_mut(&key)?;
        (entry.aside, entry.barred) = (true, false);
        self.settle_refusal(key)
    }

    /// The key is no longer set aside.
    pub fn live_again(&mut self, key: u64) {
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.aside = false;
        }
        self.list(key);
    }

    /// When the next key's back-off is over, about.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    /// Lists the keys whose back-off is over.
    pub fn wake(&mut self, now: Instant) {
        while let Some(&Reverse((at, key))) = self.wakes.peek() {
            if at > now {
                return;
            }
            self.wakes.pop();
            // It may have been refused again meanwhile, or be set aside.
            let due = |refused: &Refused| matches!(refused.pause, Some(Until::At(until)) if until <= now);
            if self.refusal(key).is_some_and(due) {
                self.resume(key);
            }
        }
    }

    /// How many keys wait for their own back-off.
    pub fn backing_off(&self) -> usize {
        self.backing_off
    }

    fn settle_refusal(&mut self, key: u64) -> Option<Box<Refused>> {
        let refused = self.keys.get_mut(&key)?.refused.take()?;
        self.refused.remove(&key);
        self.backing_off -= usize::from(matches!(refused.pause, Some(Until::At(_))));
        Some(refused)
    }

    fn forget_idle(&mut self, key: u64) {
        if self.keys.get(&key).is_some_and(|entry| entry.in_flight == 0 && entry.queue.is_empty()) {
            self.settle_refusal(key);
            self.keys.remove(&key);
        }
    }
}

/// 1, 2, 4 … 60 s, with jitter of a quarter downwards so that keys do not return in step.
pub fn back_off(refusals: u32) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << refusals.min(6)).min(PAUSE_MAX);
    if refusals == 0 { full } else { full.mul_f64(0.75 + 0.25 * fastrand::f64()) }
}

#[cfg(test)]
mod tests;
