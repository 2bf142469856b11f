//! The events between source and confirm: their bodies, and how many bytes they hold.
//!
//! Bodies are what costs memory, so they are what is bounded: by `read_ahead` in all, by a quarter of it for one key,
//! and by nothing at all for a key that waits after a refusal. Where a body is let go the event keeps its place, and the
//! body is fetched again by `seq` when its turn comes. Of a key that is set aside no body is held.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use uuid::Uuid;

use super::keys::Keys;
use super::streamed::BatchNumber;
use crate::contract::Refusal;
use crate::event::{Message, Seq};

/// Events whose place is kept, at most: what bounds memory while keys wait.
pub const SLOTS_MAX: usize = 100_000;
/// The same in an outage.
pub const OUTAGE_SLOTS_MAX: usize = 10_000;
/// Of these, live events of one key that drains, at most: it may have a long way to go, and all others need room.
pub const DRAINING_SLOTS_MAX: usize = SLOTS_MAX / 4;
/// The same where many keys drain, and half of all places are taken.
const DRAINING_SLOTS_CROWDED: usize = SLOTS_MAX / 100;
/// Rows of one fetch, at most.
const FETCH_ROWS: usize = 256;

/// Where the body of an event is.
#[derive(Debug)]
enum Body {
    /// Here, waiting for its turn or in flight.
    Held(Arc<Message>),
    /// Let go.
    Dropped,
    /// Let go and asked for.
    Requested,
    /// It can never go: its key waits behind it until it is set aside.
    Hopeless(Box<Doom>),
    /// On its way to the table of what is set aside.
    Leaving,
}

/// Why an event can never go.
#[derive(Debug)]
pub struct Doom {
    /// The reason.
    pub refusal: Refusal,
    /// Its routing key, if it could be assembled.
    pub routing_key: Option<String>,
}

/// An event that is read and not settled.
#[derive(Debug)]
pub struct Slot {
    /// Hash of its partition key.
    pub key: u64,
    /// Its idempotency key.
    pub event_id: Uuid,
    /// The window whose page listed it.
    pub window: Option<u64>,
    /// The batch of a stream that brought it.
    pub batch: Option<BatchNumber>,
    /// When it was written, microseconds since the epoch.
    pub recorded_at_us: i64,
    /// Bytes of its row, about.
    pub row_bytes: usize,
    /// Bytes of its body, held or let go.
    bytes: usize,
    body: Body,
}

/// See the module head.
#[derive(Debug)]
pub struct Held {
    slots: HashMap<Seq, Slot>,
    read_ahead: usize,
    bytes: usize,
    requested_bytes: usize,
    /// Of all events, bodies that were let go included.
    full_bytes: usize,
    /// Slots and `full_bytes` when the outage began.
    at_outage: Option<(usize, usize)>,
    /// Keys whose next event must be fetched.
    hungry: VecDeque<u64>,
}

impl Held {
    /// `read_ahead` in bytes.
    pub fn new(read_ahead: usize) -> Self {
        let slots = HashMap::new();
        let hungry = VecDeque::new();
        Held { slots, read_ahead, bytes: 0, requested_bytes: 0, full_bytes: 0, at_outage: None, hungry }
    }

    /// May the relay take more from the source, while so many bytes are held besides?
    ///
    /// In an outage nothing may be set aside, and what waits must not grow with what is written. But however much waits
    /// when it begins, some more is read: only another routing key can prove that the broker is well.
    pub fn has_room(&self, besides: usize) -> bool {
        let fits = match self.at_outage {
            None => self.slots.len() < SLOTS_MAX,
            Some((slots, bytes)) => {
                self.full_bytes < bytes + self.read_ahead && self.slots.len() < slots + OUTAGE_SLOTS_MAX
            }
        };
        fits && self.bytes + besides < self.read_ahead
    }

    /// An outage begins, or is over.
    pub fn outage(&mut self, begins: bool) {
        self.at_outage = begins.then_some((self.slots.len(), self.full_bytes));
    }

    /// Are there so many events that a stream must give way to polling? A stream's events cannot be set aside before a page
    /// lists them, and that page comes behind the whole transaction.
    pub fn is_crowded(&self) -> bool {
        self.slots.len() >= SLOTS_MAX / 2
    }

    /// Must a key that drains, and has so many live events, give up their places?
    pub fn is_too_long(&self, live: usize) -> bool {
        live > if self.is_crowded() { DRAINING_SLOTS_CROWDED } else { DRAINING_SLOTS_MAX }
    }

    /// Is nothing unsettled?
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The event, if it is read and not settled.
    pub fn get(&self, seq: Seq) -> Option<&Slot> {
        self.slots.get(&seq)
    }

    /// Notes which window a row belongs to; its key, if it is held.
    pub fn place(&mut self, seq: Seq, window: u64) -> Option<u64> {
        let slot = self.slots.get_mut(&seq)?;
        slot.window = Some(window);
        Some(slot.key)
    }

    /// A stream brings an event that is held: notes the batch that waits for it.
    pub fn join(&mut self, seq: Seq, batch: BatchNumber) {
        if let Some(slot) = self.slots.get_mut(&seq) {
            slot.batch = Some(batch);
        }
    }

    /// Takes in an event that is not held. It goes to its place in its key, which may be set aside.
    pub fn insert(&mut self, message: Message, batch: Option<BatchNumber>, aside: bool, keys: &mut Keys) {
        let (seq, key, bytes) = (message.seq, message.key_hash, message.bytes());
        let greedy = keys.held_bytes(key) > 0 && keys.held_bytes(key) + bytes > self.read_ahead / 4;
        let (event_id, recorded_at_us) = (message.event_id, message.recorded_at_us);
        keys.push(key, seq, aside);
        self.full_bytes += bytes;
        let body = if greedy || keys.waits(key) {
            Body::Dropped
        } else {
            self.bytes += bytes;
            keys.hold(key, bytes as isize);
            Body::Held(Arc::new(message))
        };
        let row_bytes = bytes;
        let slot = Slot { key, event_id, window: None, batch, recorded_at_us, row_bytes, bytes, body };
        self.slots.insert(seq, slot);
    }

    /// A body that was asked for comes back. Any other is not wanted: its event may have been sent and settled since.
    pub fn restore(&mut self, message: Message, keys: &mut Keys) {
        let (key, bytes) = (message.key_hash, message.bytes());
        let Some(slot) = self.slots.get_mut(&message.seq) else { return };
        if !matches!(slot.body, Body::Requested) {
            return;
        }
        self.requested_bytes -= bytes.min(self.requested_bytes);
        if keys.waits(key) {
            // An earlier event of the key was refused meanwhile.
            slot.body = Body::Dropped;
            return;
        }
        slot.body = Body::Held(Arc::new(message));
        self.bytes += bytes;
        keys.hold(key, bytes as isize);
        keys.list(key);
    }

    /// Takes in an event that cannot be encoded.
    pub fn insert_hopeless(
        &mut self,
        (seq, event_id, recorded_at_us, row_bytes): (Seq, Uuid, i64, usize),
        doom: Doom,
        (key, aside): (u64, bool),
        batch: Option<BatchNumber>,
        keys: &mut Keys,
    ) {
        keys.push(key, seq, aside);
        let body = Body::Hopeless(Box::new(doom));
        let slot = Slot { key, event_id, window: None, batch, recorded_at_us, row_bytes, bytes: 0, body };
        self.slots.insert(seq, slot);
    }

    /// An event in flight can never go, as its lane says. It goes back to its place.
    pub fn doom(&mut self, seq: Seq, doom: Doom, keys: &mut Keys) {
        let Some(slot) = self.slots.get_mut(&seq) else { return };
        let key = slot.key;
        if matches!(std::mem::replace(&mut slot.body, Body::Hopeless(Box::new(doom))), Body::Held(_)) {
            self.bytes -= slot.bytes.min(self.bytes);
            keys.hold(key, -(slot.bytes as isize));
        }
        // It may be larger than all that may wait in an outage, and its body is of no use.
        self.full_bytes -= std::mem::take(&mut slot.bytes).min(self.full_bytes);
        keys.put_back(key, seq);
    }

    /// Why the event can never go, if it cannot.
    pub fn hopeless(&self, seq: Seq) -> Option<&Doom> {
        match &self.slots.get(&seq)?.body {
            Body::Hopeless(doom) => Some(doom),
            _ => None,
        }
    }

    /// An event whose key is set aside goes to the table: it keeps its place until it is there.
    pub fn leave(&mut self, seq: Seq, keys: &mut Keys) {
        let Some(slot) = self.slots.get_mut(&seq) else { return };
        match std::mem::replace(&mut slot.body, Body::Leaving) {
            Body::Held(_) => {
                self.bytes -= slot.bytes.min(self.bytes);
                keys.hold(slot.key, -(slot.bytes as isize));
            }
            Body::Requested => self.requested_bytes -= slot.bytes.min(self.requested_bytes),
            Body::Dropped | Body::Hopeless(_) | Body::Leaving => {}
        }
    }

    /// The event is in the table: frees it.
    pub fn left(&mut self, seq: Seq) -> Option<Slot> {
        let slot = self.slots.remove(&seq)?;
        self.full_bytes -= slot.bytes.min(self.full_bytes);
        Some(slot)
    }

    /// Rows that no page has listed yet.
    pub fn unlisted(&self) -> impl Iterator<Item = Seq> + '_ {
        self.slots.iter().filter(|(_, slot)| slot.window.is_none()).map(|(seq, _)| *seq)
    }

    /// When the oldest of all events was written.
    pub fn oldest_us(&self) -> Option<i64> {
        self.slots.values().map(|slot| slot.recorded_at_us).min()
    }

    /// The next message of a key, if its body is here.
    pub fn front(&self, key: u64, keys: &Keys) -> Option<&Arc<Message>> {
        match &self.slots.get(&keys.front(key)?)?.body {
            Body::Held(message) => Some(message),
            _ => None,
        }
    }

    /// The next message of a ready key; a key whose body was let go is fed first.
    pub fn take(&mut self, key: u64, keys: &mut Keys) -> Option<Arc<Message>> {
        let slot = self.slots.get(&keys.front(key)?)?;
        match &slot.body {
            Body::Held(message) => {
                let message = message.clone();
                keys.take(key);
                Some(message)
            }
            Body::Dropped => {
                self.hungry.push_back(key);
                None
            }
            Body::Requested | Body::Hopeless(_) | Body::Leaving => None,
        }
    }

    /// An event is settled: frees it.
    pub fn settle(&mut self, seq: Seq, keys: &mut Keys) -> Option<Slot> {
        let slot = self.slots.remove(&seq)?;
        if matches!(slot.body, Body::Held(_)) {
            self.bytes -= slot.bytes.min(self.bytes);
            keys.hold(slot.key, -(slot.bytes as isize));
        }
        self.full_bytes -= slot.bytes.min(self.full_bytes);
        keys.confirmed(slot.key, seq);
        Some(slot)
    }

    /// A key waits after a refusal: lets go of the bodies of all its waiting events.
    pub fn let_go(&mut self, key: u64, keys: &mut Keys) {
        let mut freed = 0;
        for seq in keys.waiting(key) {
            if let Some(slot) = self.slots.get_mut(&seq)
                && matches!(slot.body, Body::Held(_))
            {
                slot.body = Body::Dropped;
                freed += slot.bytes;
            }
        }
        self.bytes -= freed.min(self.bytes);
        keys.hold(key, -(freed as isize));
    }

    /// Rows to fetch now, in write order per key; empty while enough is on its way, or held.
    ///
    /// What is in flight will be confirmed, which frees it, or refused, which lets it go. With nothing in flight
    /// (`idle`) whatever fills the room may wait for a body that was let go: so then one key is fed in any case.
    pub fn wanted(&mut self, keys: &Keys, idle: bool) -> Vec<Seq> {
        let mut seqs = Vec::new();
        let may_fetch = |held: &Held, seqs: &[Seq]| {
            let room = held.bytes + held.requested_bytes < held.read_ahead;
            let alone = idle && held.requested_bytes == 0;
            seqs.len() < FETCH_ROWS && (alone || room && held.requested_bytes <= held.read_ahead / 4)
        };
        while may_fetch(self, &seqs) {
            let Some(key) = self.hungry.pop_front() else { break };
            // When it may send again it is listed, and found hungry.
            if keys.waits(key) {
                continue;
            }
            let mut budget = self.read_ahead / 8;
            for seq in keys.waiting(key) {
                let Some(slot) = self.slots.get_mut(&seq) else {
                    break;
                };
                if !matches!(slot.body, Body::Dropped) || budget == 0 || seqs.len() >= FETCH_ROWS {
                    break;
                }
                slot.body = Body::Requested;
                budget = budget.saturating_sub(slot.bytes);
                self.requested_bytes += slot.bytes;
                seqs.push(seq);
            }
        }
        seqs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Ordering;
    use crate::relay::keys::PauseReason;

    /// A first back-off.
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

    fn message(seq: Seq, key: u64, len: usize) -> Message {
        Message {
            seq,
            event_id: Uuid::from_u128(seq as u128),
            key_hash: key,
            routing_key: "a.b".into(),
            event_type: "b".into(),
            content_type: "application/json",
            timestamp_s: 0,
            recorded_at_us: 0,
            correlation_id: None,
            headers: Vec::new(),
            body: vec![0; len.saturating_sub(744)],
        }
    }

    #[test]
    fn a_hot_key_holds_a_quarter_and_is_fed_again() {
        let mut keys = Keys::new(Ordering::Strict, 1);
        let mut held = Held::new(40_000);
        for seq in 0..100 {
            held.insert(message(seq, 1, 744), None, false, &mut keys);
        }
        assert_eq!(keys.held_bytes(1), 10_000);
        held.insert(message(100, 2, 744), None, false, &mut keys);
        assert!(held.has_room(0), "the hot key leaves room for others");
        let mut sent = Vec::new();
        for _ in 0..1000 {
            while let Some(key) = keys.next_ready(0) {
                if let Some(m) = held.take(key, &mut keys) {
                    sent.push(m.seq);
                    held.settle(m.seq, &mut keys);
                }
            }
            for seq in held.wanted(&keys, true) {
                held.restore(message(seq, 1, 744), &mut keys);
            }
        }
        let hot: Vec<Seq> = sent.iter().copied().filter(|s| *s != 100).collect();
        assert_eq!(hot, (0..100).collect::<Vec<_>>());
        assert_eq!((held.bytes, held.requested_bytes, held.is_empty()), (0, 0, true));
    }

    #[test]
    fn what_is_fetched_again_stays_within_the_read_ahead() {
        let mut keys = Keys::new(Ordering::Strict, 1);
        let mut held = Held::new(40_000);
        // 200 keys whose event was refused; their pauses are over and the broker has gone silent.
        let now = tokio::time::Instant::now();
        for key in 0..200 {
            held.insert(message(key as Seq, key, 744), None, false, &mut keys);
            keys.next_ready(0).and_then(|key| held.take(key, &mut keys)).unwrap();
            keys.refused(key, key as Seq, PauseReason::Nack, "", now);
            held.let_go(key, &mut keys);
        }
        keys.wake(now + std::time::Duration::from_secs(60));
        while let Some(key) = keys.next_ready(0) {
            assert!(held.take(key, &mut keys).is_none());
        }
        let (mut sent, mut idle) = (Vec::new(), true);
        for _ in 0..1000 {
            for seq in held.wanted(&keys, idle) {
                held.restore(message(seq, seq as u64, 744), &mut keys);
            }
            while let Some(m) = keys.next_ready(0).and_then(|key| held.take(key, &mut keys)) {
                sent.push(m.seq);
                idle = false;
            }
        }
        assert!(held.bytes <= 41_000, "{} bytes held", held.bytes);
        // The broker is back.
        while let Some(seq) = sent.pop() {
            held.settle(seq, &mut keys);
            for seq in held.wanted(&keys, sent.is_empty()) {
                held.restore(message(seq, seq as u64, 744), &mut keys);
            }
            while let Some(m) = keys.next_ready(0).and_then(|key| held.take(key, &mut keys)) {
                sent.push(m.seq);
            }
        }
        assert!(held.is_empty(), "{} events are left", held.slots.len());
    }

    #[test]
    fn what_comes_back_for_a_waiting_key_is_let_go() {
        let mut keys = Keys::new(Ordering::Pipelined, 1);
        let mut held = Held::new(1000);
        let now = tokio::time::Instant::now();
        let refuse = |keys: &mut Keys, held: &mut Held, seq: Seq| {
            keys.refused(5, seq, PauseReason::Nack, "", now);
            held.let_go(5, keys);
            keys.wake(now + PAUSE);
        };
        held.insert(message(1, 5, 100), None, false, &mut keys);
        held.insert(message(2, 5, 5000), None, false, &mut keys);
        let key = keys.next_ready(0).unwrap();
        assert_eq!(held.take(key, &mut keys).unwrap().seq, 1);
        refuse(&mut keys, &mut held, 1);
        assert!(keys.next_ready(0).and_then(|key| held.take(key, &mut keys)).is_none());
        assert_eq!(held.wanted(&keys, true), [1]);
        held.restore(message(1, 5, 100), &mut keys);
        // The first goes out, the second is asked for, the first is refused, the second comes.
        assert_eq!(keys.next_ready(0).and_then(|key| held.take(key, &mut keys)).unwrap().seq, 1);
        assert!(keys.next_ready(0).and_then(|key| held.take(key, &mut keys)).is_none());
        assert_eq!(held.wanted(&keys, true), [2]);
        keys.refused(5, 1, PauseReason::Nack, "", now);
        held.let_go(5, &mut keys);
        held.restore(message(2, 5, 5000), &mut keys);
        assert_eq!((held.bytes, held.requested_bytes, keys.held_bytes(5)), (0, 0, 0));
        assert!(held.has_room(0), "other keys flow");
        keys.wake(now + std::time::Duration::from_secs(100));
        assert!(keys.next_ready(0).and_then(|key| held.take(key, &mut keys)).is_none());
        assert_eq!(held.wanted(&keys, true)[0], 1);
    }

    #[test]
    fn a_waiting_key_holds_nothing() {
        let mut keys = Keys::new(Ordering::Strict, 1);
        let mut held = Held::new(1_000_000);
        for seq in 1..=3 {
            held.insert(message(seq, 5, 100), None, false, &mut keys);
        }
        let key = keys.next_ready(0).unwrap();
        assert_eq!(held.take(key, &mut keys).unwrap().seq, 1);
        let now = tokio::time::Instant::now();
        keys.refused(5, 1, PauseReason::Nack, "", now);
        held.let_go(5, &mut keys);
        held.insert(message(4, 5, 100), None, false, &mut keys);
        assert_eq!((held.bytes, keys.held_bytes(5)), (0, 0));
        keys.wake(now + PAUSE);
        let key = keys.next_ready(0).unwrap();
        assert!(held.take(key, &mut keys).is_none());
        assert_eq!(held.wanted(&keys, true), [1, 2, 3, 4]);
        for seq in 1..=4 {
            held.restore(message(seq, 5, 100), &mut keys);
        }
        for expected in 1..=4 {
            let key = keys.next_ready(0).unwrap();
            let m = held.take(key, &mut keys).unwrap();
            assert_eq!(m.seq, expected);
            held.settle(m.seq, &mut keys);
        }
        assert!(held.is_empty() && held.bytes == 0);
    }
}
