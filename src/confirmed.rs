//! When the broker confirmed the last events: a ring that the relay writes and the console reads.
//!
//! One writer (the relay's loop) and any number of readers, without a lock: a reader that meets a slot while it is written
//! passes over it. Nothing is allocated, and a note costs one look at a pointer, until somebody wants to read
//! ([`Confirmed::enable`]).
//!
//! Events are known by number and id: a server that lost its last rows in a failover gives their numbers to others.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};

use uuid::Uuid;

/// Events that are remembered.
pub const REMEMBERED: usize = 10_000;
/// A slot that is empty, or being written.
const NONE: i64 = i64::MIN;

/// The last confirmed events.
#[derive(Debug, Default)]
pub struct Confirmed(OnceLock<Ring>);

#[derive(Debug)]
struct Ring {
    slots: Box<[Slot]>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    seq: AtomicI64,
    /// Half of the event's id: see [`half`].
    id: AtomicU64,
    at_us: AtomicI64,
}

/// The half of an id that is random in every version that events have.
fn half(id: Uuid) -> u64 {
    id.as_u64_pair().1
}

impl Confirmed {
    /// Remembers from now on.
    pub fn enable(&self) {
        self.0.get_or_init(|| Ring {
            slots: (0..REMEMBERED)
                .map(|_| Slot { seq: AtomicI64::new(NONE), id: AtomicU64::new(0), at_us: AtomicI64::new(0) })
                .collect(),
            next: AtomicUsize::new(0),
        });
    }

    /// An event was confirmed at `at_us`, microseconds since 1970. Called by one task only.
    pub fn note(&self, seq: i64, id: Uuid, at_us: i64) {
        let Some(ring) = self.0.get() else { return };
        let next = ring.next.load(Ordering::Relaxed);
        let Some(slot) = ring.slots.get(next) else { return };
        // Empty first: whoever sees the new id or time sees that, or the new number.
        slot.seq.store(NONE, Ordering::Relaxed);
        slot.id.store(half(id), Ordering::Release);
        slot.at_us.store(at_us, Ordering::Release);
        slot.seq.store(seq, Ordering::Release);
        ring.next.store((next + 1) % REMEMBERED, Ordering::Relaxed);
    }

    /// When these events were confirmed (microseconds since 1970), by number, as far as it is remembered. An event that was
    /// published twice: the last time.
    pub fn find(&self, wanted: impl IntoIterator<Item = (i64, Uuid)>) -> HashMap<i64, i64> {
        let Some(ring) = self.0.get() else { return HashMap::new() };
        let mut found: HashMap<i64, (u64, Option<i64>)> =
            wanted.into_iter().map(|(seq, id)| (seq, (half(id), None))).collect();
        for slot in &ring.slots {
            let seq = slot.seq.load(Ordering::Acquire);
            let id = slot.id.load(Ordering::Acquire);
            let at_us = slot.at_us.load(Ordering::Acquire);
            if slot.seq.load(Ordering::Relaxed) == seq
                && let Some((wanted, at)) = found.get_mut(&seq)
                && *wanted == id
            {
                *at = (*at).max(Some(at_us));
            }
        }
        found.into_iter().filter_map(|(seq, (_, at))| Some((seq, at?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn id(seq: i64) -> Uuid {
        Uuid::from_u128(seq as u128 * 7 + 1)
    }

    fn with_ids(seqs: impl IntoIterator<Item = i64>) -> impl Iterator<Item = (i64, Uuid)> {
        seqs.into_iter().map(|seq| (seq, id(seq)))
    }

    #[test]
    fn nothing_is_remembered_before_somebody_wants_to_read() {
        let confirmed = Confirmed::default();
        confirmed.note(1, id(1), 10);
        assert!(confirmed.0.get().is_none() && confirmed.find(with_ids([1])).is_empty());
        confirmed.enable();
        confirmed.note(2, id(2), 20);
        confirmed.enable();
        assert_eq!(confirmed.find(with_ids([1, 2, 3])), HashMap::from([(2, 20)]));
    }

    #[test]
    fn the_last_ones_stay_and_a_repeat_counts_last() {
        let confirmed = Confirmed::default();
        confirmed.enable();
        let count = REMEMBERED as i64 + 7;
        (0..count).for_each(|seq| confirmed.note(seq, id(seq), seq * 2));
        assert!(confirmed.find(with_ids([0, 6])).is_empty());
        assert_eq!(
            confirmed.find(with_ids([7, count - 1])),
            HashMap::from([(7, 14), (count - 1, count * 2 - 2)])
        );
        confirmed.note(100, id(100), 9_000_000);
        assert_eq!(confirmed.find(with_ids([100]))[&100], 9_000_000);
    }

    #[test]
    fn another_event_of_the_same_number_is_another_event() {
        let confirmed = Confirmed::default();
        confirmed.enable();
        confirmed.note(5, id(5), 50);
        assert!(confirmed.find([(5, id(6))]).is_empty(), "the number was given again");
        confirmed.note(5, id(6), 60);
        assert_eq!(confirmed.find([(5, id(6))])[&5], 60);
        assert_eq!(confirmed.find([(5, id(5))])[&5], 50);
    }

    #[test]
    fn a_reader_never_sees_the_time_of_another_event() {
        let confirmed = Confirmed::default();
        confirmed.enable();
        // One more than there are slots, so that each slot holds another event each time around.
        let events = REMEMBERED as i64 + 1;
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seqs = (0..events).cycle();
                while !over.load(Ordering::Relaxed) {
                    seqs.by_ref().take(1_000).for_each(|seq| confirmed.note(seq, id(seq), seq * 3));
                }
            });
            let wrong = (0..40)
                .flat_map(|_| confirmed.find(with_ids(0..events)))
                .filter(|(seq, at_us)| *at_us != seq * 3)
                .count();
            over.store(true, Ordering::Relaxed);
            assert_eq!(wrong, 0);
        });
    }
}
