//! Order within a key, and keys that wait.
//!
//! A key is *idle* (nothing queued), *ready* (listed for its lane), *busy* (a message in flight, strict order),
//! *paused* (its event was refused: it is tried again after a back-off) or *hungry* (the body of its next event was let
//! go and must be fetched). Keys are 64-bit hashes: a collision only serialises two keys.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Ordering;
use crate::event::Seq;

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

#[derive(Debug)]
struct Pause {
    until: Instant,
    reason: PauseReason,
}

#[derive(Debug, Default)]
struct Key {
    /// Waiting events in order.
    queue: VecDeque<Seq>,
    in_flight: u32,
    pause: Option<Pause>,
    /// Refusals in a row.
    refusals: u32,
    /// Stands in its lane's ready list.
    listed: bool,
    /// Bytes of the bodies held for this key.
    held_bytes: usize,
}

impl Key {
    /// Writers of one key take turns, so that `seq` is the order in which they wrote.
    fn queue_in_order(&mut self, seq: Seq) {
        let place = self.queue.partition_point(|waiting| *waiting < seq);
        self.queue.insert(place, seq);
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
    paused: [usize; 2],
}

impl Keys {
    /// No keys yet.
    pub fn new(ordering: Ordering, lanes: usize) -> Self {
        Keys {
            ordering,
            keys: HashMap::new(),
            ready: vec![VecDeque::new(); lanes.max(1)],
            wakes: BinaryHeap::new(),
            paused: [0; 2],
        }
    }

    /// The lane of a key: fixed for a session.
    pub fn lane(&self, key: u64) -> usize {
        (key % self.ready.len() as u64) as usize
    }

    /// Queues an event in its key: behind all, unless a stream has left it out and brought later ones.
    pub fn push(&mut self, key: u64, seq: Seq) {
        self.keys.entry(key).or_default().queue_in_order(seq);
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

    /// Is the key waiting after a refusal?
    pub fn is_paused(&self, key: u64) -> bool {
        self.keys.get(&key).is_some_and(|k| k.pause.is_some())
    }

    /// The next event of a key, without taking it.
    pub fn front(&self, key: u64) -> Option<Seq> {
        self.keys.get(&key)?.queue.front().copied()
    }

    /// The events of a key that wait, in order.
    pub fn waiting(&self, key: u64) -> impl Iterator<Item = Seq> + '_ {
        self.keys.get(&key).into_iter().flat_map(|k| k.queue.iter().copied())
    }

    /// Lists a key for its lane if it may send.
    pub fn list(&mut self, key: u64) {
        let lane = self.lane(key);
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        let free = self.ordering == Ordering::Pipelined || entry.in_flight == 0;
        if free && !entry.listed && entry.pause.is_none() && !entry.queue.is_empty() {
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
            if entry.pause.is_none() && !entry.queue.is_empty() {
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

    /// An event in flight was confirmed.
    pub fn confirmed(&mut self, key: u64) {
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        entry.refusals = 0;
        if entry.in_flight == 0 && entry.queue.is_empty() {
            self.keys.remove(&key);
        } else {
            self.list(key);
        }
    }

    /// An event in flight was refused: it goes back to its place, and the key waits. Returns how long.
    pub fn refused(&mut self, key: u64, seq: Seq, reason: PauseReason, now: Instant) -> Duration {
        let Some(entry) = self.keys.get_mut(&key) else {
            return Duration::ZERO;
        };
        entry.in_flight = entry.in_flight.saturating_sub(1);
        entry.queue_in_order(seq);
        if let Some(pause) = &entry.pause {
            return pause.until.saturating_duration_since(now);
        }
        let wait = back_off(entry.refusals);
        entry.refusals += 1;
        entry.pause = Some(Pause { until: now + wait, reason });
        self.paused[reason as usize] += 1;
        self.wakes.push(Reverse((now + wait, key)));
        wait
    }

    /// When the next paused key is due.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wakes.peek().map(|Reverse((at, _))| *at)
    }

    /// Lists the keys whose pause is over.
    pub fn wake(&mut self, now: Instant) {
        while let Some(&Reverse((at, key))) = self.wakes.peek() {
            if at > now {
                return;
            }
            self.wakes.pop();
            if let Some(pause) = self.keys.get_mut(&key).and_then(|k| k.pause.take()) {
                self.paused[pause.reason as usize] -= 1;
            }
            self.list(key);
        }
    }

    /// How many keys wait for this reason.
    pub fn paused(&self, reason: PauseReason) -> usize {
        self.paused[reason as usize]
    }
}

/// 1, 2, 4 … 60 s, with jitter of a quarter downwards so that keys do not return in step.
fn back_off(refusals: u32) -> Duration {
    let full = PAUSE_MIN.saturating_mul(1 << refusals.min(6)).min(PAUSE_MAX);
    if refusals == 0 { full } else { full.mul_f64(0.75 + 0.25 * fastrand::f64()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(keys: &mut Keys, lane: usize) -> Vec<Seq> {
        let mut sent = Vec::new();
        while let Some(key) = keys.next_ready(lane) {
            sent.extend(keys.take(key));
        }
        sent
    }

    #[test]
    fn strict_order_sends_one_event_of_a_key() {
        let mut keys = Keys::new(Ordering::Strict, 1);
        for (key, seq) in [(1, 10), (1, 11), (2, 12), (1, 13)] {
            keys.push(key, seq);
        }
        assert_eq!(drain(&mut keys, 0), [10, 12]);
        keys.confirmed(1);
        assert_eq!(drain(&mut keys, 0), [11]);
        keys.confirmed(2);
        keys.confirmed(1);
        assert_eq!(drain(&mut keys, 0), [13]);
        keys.confirmed(1);
        assert!(keys.keys.is_empty());
    }

    #[test]
    fn pipelined_sends_all() {
        let mut keys = Keys::new(Ordering::Pipelined, 1);
        for seq in 1..=3 {
            keys.push(7, seq);
        }
        assert_eq!(drain(&mut keys, 0), [1, 2, 3]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_event_returns_to_its_place_and_its_key_waits() {
        let mut keys = Keys::new(Ordering::Pipelined, 1);
        for seq in 1..=4 {
            keys.push(7, seq);
        }
        keys.push(8, 5);
        assert_eq!(drain(&mut keys, 0).len(), 5);
        let now = Instant::now();
        let wait = keys.refused(7, 3, PauseReason::Nack, now);
        keys.refused(7, 2, PauseReason::Nack, now);
        assert_eq!(wait, PAUSE_MIN);
        assert_eq!(keys.paused(PauseReason::Nack), 1);
        keys.push(7, 6);
        assert!(drain(&mut keys, 0).is_empty());
        keys.wake(now + wait);
        assert_eq!(drain(&mut keys, 0), [2, 3, 6]);
        assert_eq!(keys.paused(PauseReason::Nack), 0);
    }

    #[test]
    fn what_comes_late_goes_to_its_place() {
        let mut keys = Keys::new(Ordering::Strict, 1);
        for seq in [3, 6, 9, 5] {
            keys.push(7, seq);
        }
        assert_eq!(keys.waiting(7).collect::<Vec<_>>(), [3, 5, 6, 9]);
    }

    #[test]
    fn back_off_is_bounded() {
        for refusals in 0..100 {
            let wait = back_off(refusals);
            assert!(wait >= PAUSE_MIN && wait <= PAUSE_MAX, "{refusals}: {wait:?}");
        }
    }
}
