//! The WAL stream, as the relay sees it: which stream is taken in, and up to where everything that it brought is settled.
//!
//! Batches are numbered over all streams of a session. Only those with unsettled events are kept, so memory is bounded by
//! these events and not by the batches behind one that waits. A stream is *refused* from the first row that it should have
//! brought and has not: what it brings after that would overtake the row. The rest comes by polling. A listed page does not
//! name its stream, which may have brought nothing yet; so after a miss no stream is taken in until polling goes on.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use crate::contract::Lsn;

/// Number of a batch.
pub type BatchNumber = NonZeroU64;

/// A batch with events that are not settled.
#[derive(Debug)]
struct Open {
    /// Everything up to here was complete before this batch.
    before: Lsn,
    /// Its events that are not settled.
    events: u32,
}

/// See the module head.
#[derive(Debug)]
pub struct Stream {
    /// The latest stream; 0 = none yet.
    current: u64,
    /// This stream and all before it are refused.
    refused: u64,
    /// A row was missed, and the polled pages that follow have yet to begin.
    barred: bool,
    next: BatchNumber,
    open: BTreeMap<BatchNumber, Open>,
    /// Everything up to here is complete with the batches so far.
    upto: Lsn,
}

impl Default for Stream {
    fn default() -> Self {
        Stream {
            current: 0,
            refused: 0,
            barred: false,
            next: BatchNumber::MIN,
            open: BTreeMap::new(),
            upto: 0,
        }
    }
}

impl Stream {
    /// A batch of `stream` arrives: its number, or none if the stream is refused. A new stream starts anew, since its WAL
    /// may begin before what the last one has settled.
    pub fn arrives(&mut self, stream: u64) -> Option<BatchNumber> {
        if self.barred {
            self.refused = self.refused.max(stream);
        }
        if stream <= self.refused || stream < self.current {
            return None;
        }
        if stream > self.current {
            self.current = stream;
            self.open.clear();
            self.upto = 0;
        }
        let number = self.next;
        self.next = self.next.saturating_add(1);
        Some(number)
    }

    /// An event of the latest batch is not settled.
    pub fn opens(&mut self, batch: BatchNumber) {
        let before = self.upto;
        self.open.entry(batch).or_insert(Open { before, events: 0 }).events += 1;
    }

    /// All events of the latest batch are taken in.
    pub fn ends(&mut self, upto: Lsn) {
        self.upto = self.upto.max(upto);
    }

    /// Does the current stream wait for an event of this batch?
    pub fn waits_for(&self, batch: Option<BatchNumber>) -> bool {
        batch.is_some_and(|batch| self.open.contains_key(&batch))
    }

    /// An event of this batch is settled. Batches of earlier streams do not count any more.
    pub fn settles(&mut self, batch: BatchNumber) {
        if let Some(open) = self.open.get_mut(&batch) {
            open.events -= 1;
            if open.events == 0 {
                self.open.remove(&batch);
            }
        }
    }

    /// Up to where everything that the current stream brought is settled; 0 = not known yet.
    pub fn settled(&self) -> Lsn {
        self.open.first_key_value().map_or(self.upto, |(_, open)| open.before)
    }

    /// Nothing more of the current stream is taken in. True if that is new.
    pub fn refuse(&mut self) -> bool {
        let new = self.refused < self.current;
        self.refused = self.refused.max(self.current);
        new
    }

    /// A stream has missed a row: the current one, or one that has brought nothing yet.
    pub fn misses(&mut self) {
        self.refuse();
        self.barred = true;
    }

    /// A polled page: the source has ended the stream that missed a row, and what it brought came before.
    pub fn is_polled(&mut self) {
        self.barred = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A batch of `events` that ends at `upto`.
    fn bring(stream: &mut Stream, number: u64, events: usize, upto: Lsn) -> Option<BatchNumber> {
        let batch = stream.arrives(number)?;
        (0..events).for_each(|_| stream.opens(batch));
        stream.ends(upto);
        Some(batch)
    }

    #[test]
    fn the_first_open_batch_holds_it_back() {
        let mut stream = Stream::default();
        assert_eq!(stream.settled(), 0);
        bring(&mut stream, 1, 0, 100);
        assert_eq!(stream.settled(), 100, "a keepalive");
        let first = bring(&mut stream, 1, 2, 200).unwrap();
        let second = bring(&mut stream, 1, 1, 300).unwrap();
        bring(&mut stream, 1, 0, 400);
        assert_eq!(stream.settled(), 100);
        stream.settles(second);
        stream.settles(first);
        assert_eq!(stream.settled(), 100);
        stream.settles(first);
        assert_eq!(stream.settled(), 400);
        assert!(stream.open.is_empty());
    }

    #[test]
    fn a_transaction_over_several_batches_counts_with_its_end() {
        let mut stream = Stream::default();
        bring(&mut stream, 1, 0, 100);
        let begins = bring(&mut stream, 1, 1, 100).unwrap();
        let ends = bring(&mut stream, 1, 1, 250).unwrap();
        stream.settles(begins);
        assert_eq!(stream.settled(), 100);
        stream.settles(ends);
        assert_eq!(stream.settled(), 250);
    }

    #[test]
    fn a_new_stream_starts_anew() {
        let mut stream = Stream::default();
        let old = bring(&mut stream, 1, 1, 900).unwrap();
        let new = bring(&mut stream, 2, 1, 500).unwrap();
        assert_eq!(stream.settled(), 0, "nothing is known of the new stream");
        assert!(stream.waits_for(Some(new)) && !stream.waits_for(Some(old)) && !stream.waits_for(None));
        stream.settles(old);
        assert_eq!(stream.settled(), 0);
        stream.settles(new);
        assert_eq!(stream.settled(), 500);
        assert_eq!(bring(&mut stream, 1, 1, 901), None, "the old one is over");
    }

    #[test]
    fn a_refused_stream_is_refused_until_the_next() {
        let mut stream = Stream::default();
        assert!(!stream.refuse(), "there is none");
        bring(&mut stream, 1, 1, 100);
        assert!(stream.refuse() && !stream.refuse());
        assert_eq!(bring(&mut stream, 1, 1, 200), None);
        assert!(bring(&mut stream, 2, 0, 200).is_some());
        assert_eq!(stream.settled(), 200);
    }

    #[test]
    fn a_stream_that_has_brought_nothing_yet_is_refused_too() {
        let mut stream = Stream::default();
        bring(&mut stream, 1, 0, 100);
        stream.misses();
        assert_eq!(bring(&mut stream, 2, 1, 200), None);
        stream.is_polled();
        assert_eq!(bring(&mut stream, 2, 1, 300), None);
        assert!(!stream.refuse(), "it is already");
        assert_eq!(bring(&mut stream, 2, 1, 400), None);
        assert!(bring(&mut stream, 3, 1, 400).is_some());
    }

    #[test]
    fn batches_behind_one_that_waits_cost_nothing() {
        let mut stream = Stream::default();
        bring(&mut stream, 1, 1, 1);
        for upto in 2..100_000 {
            let batch = bring(&mut stream, 1, 1, upto).unwrap();
            stream.settles(batch);
        }
        assert_eq!((stream.open.len(), stream.settled()), (1, 0));
    }

    proptest! {
        /// Beside the rule itself: the greatest `upto` such that no batch up to it has an open event.
        #[test]
        fn it_follows_the_rule(
            batches in prop::collection::vec((0..4u64, 0..3u32, 0..50u64, prop::collection::vec(0..40usize, 0..4)), 1..40),
        ) {
            let mut stream = Stream::default();
            let (mut number, mut lsn) = (1, 1000);
            // Of the current stream: batch, open events, upto.
            let mut model: Vec<(BatchNumber, u32, Lsn)> = Vec::new();
            let mut last = 0;
            for (new, events, more, settles) in batches {
                if new == 0 {
                    (number, lsn, last) = (number + 1, 500 + more, 0);
                    model.clear();
                }
                lsn += more;
                let batch = bring(&mut stream, number, events as usize, lsn).unwrap();
                model.push((batch, events, lsn));
                for index in settles {
                    if let Some((batch, open, _)) = model.get_mut(index).filter(|(_, open, _)| *open > 0) {
                        *open -= 1;
                        stream.settles(*batch);
                    }
                }
                let settled = model.iter().take_while(|(_, open, _)| *open == 0).last();
                let expected = settled.map_or(0, |(_, _, upto)| *upto);
                prop_assert_eq!(stream.settled(), expected);
                prop_assert!(stream.settled() >= last, "back within a stream");
                last = stream.settled();
                prop_assert!(stream.open.len() <= model.iter().filter(|(_, open, _)| *open > 0).count());
            }
        }
    }
}
