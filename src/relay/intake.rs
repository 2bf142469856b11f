//! How events and pages come in: by polling, ahead of their page by a stream, or once more because they were let go.
//!
//! A row is unknown, held, settled ahead of its page, settled with it, or set aside (by an earlier session, say). A polled page comes after its rows, so each of
//! them is known by then. A *listed* page names rows that a stream should have brought: an unknown one was missed. Then
//! nothing of the page is taken, the stream is refused (what it goes on to bring would overtake the missed row), and the
//! source is told; it reads the rest of that window by polling.

use super::state::State;
use super::streamed::BatchNumber;
use super::window::Doom;
use crate::contract::{Batch, Input, Missing, Page, Reason, Refusal, Streamed};
use crate::event::assemble::key_hash;
use crate::event::{Event, Seq};
use crate::switches::{Guarantee, holds};

/// What to do about an event that can never be encoded.
pub(super) const REMEDY_INVALID: &str = "correct the row, or remove it, as the owner of the table";

impl State<'_> {
    /// Work from the source.
    ///
    /// # Errors
    /// The source is gone.
    pub(super) fn on_input(&mut self, input: Input) -> Result<(), &'static str> {
        match input {
            Input::Rows(batch) => self.on_rows(batch),
            Input::Streamed(streamed) => self.on_streamed(streamed),
            Input::Page(page) => {
                self.stream.is_polled();
                self.on_page(&page);
            }
            Input::Listed(page) => return self.on_listed(&page),
        }
        Ok(())
    }

    /// Events that a poll read.
    fn on_rows(&mut self, batch: Batch) {
        self.metrics.events_read.poll.inc_by(batch.events.len() as u64);
        for event in batch.events {
            // A stream, or an earlier session of this process, may have brought it, or it is set aside.
            if self.held.get(event.seq).is_some()
                || self.aside.unpassed.contains(event.seq)
                || self.ledger.remembers(event.xid, event.seq)
            {
                continue;
            }
            if batch.late.is_some_and(|bound| event.seq < bound) {
                self.metrics.wal_missed.inc();
            }
            self.take_in(event, None);
        }
    }

    /// Events that a stream brought, ahead of the page that will list them.
    fn on_streamed(&mut self, streamed: Streamed) {
        self.metrics.events_read.wal.inc_by(streamed.events.len() as u64);
        let Some(batch) = self.stream.arrives(streamed.stream) else { return };
        if self.held.is_crowded() {
            return self.refuse_stream();
        }
        for event in streamed.events {
            if !self.on_streamed_event(event, batch) {
                return self.refuse_stream();
            }
        }
        self.stream.ends(streamed.upto);
        self.tell_settled();
    }

    /// False if there is no room to note that the event is settled.
    fn on_streamed_event(&mut self, event: Event, batch: BatchNumber) -> bool {
        if let Some(slot) = self.held.get(event.seq) {
            if !self.stream.waits_for(slot.batch) {
                self.held.join(event.seq, batch);
                self.stream.opens(batch);
            }
            return true;
        }
        // Its page finds it there.
        if self.aside.unpassed.contains(event.seq) {
            return true;
        }
        if self.ledger.remembers(event.xid, event.seq) {
            return self.ledger.settled_ahead(event.seq);
        }
        self.stream.opens(batch);
        self.take_in(event, Some(batch));
        true
    }

    /// Takes in an event that is new.
    fn take_in(&mut self, event: Event, batch: Option<BatchNumber>) {
        let about = (event.seq, event.event_id, event.recorded_at_us, event.json_bytes());
        let key = key_hash(&event.aggregate_type, &event.aggregate_id);
        match self.assembler.assemble(event) {
            Ok(message) => {
                self.metrics.event_size_bytes.observe(message.body.len() as f64);
                self.held.insert(message, batch, self.aside.contains(key), &mut self.keys);
            }
            Err(invalid) => {
                let (seq, id, detail) = (about.0, about.1, invalid.to_string());
                tracing::error!(
                    "event {id} (seq {seq}) can never be published as things are: invalid: {detail}; {REMEDY_INVALID}"
                );
                let doom = Doom { refusal: Refusal { reason: Reason::Invalid, detail }, routing_key: None };
                let key = (key, self.aside.contains(key));
                self.held.insert_hopeless(about, doom, key, batch, &mut self.keys);
            }
        }
    }

    /// Bodies that were let go come back.
    pub(super) fn on_refetched(&mut self, batch: Batch) {
        for event in batch.events {
            // What was encoded once can be encoded again: a row is never changed.
            if let Ok(message) = self.assembler.assemble(event) {
                self.held.restore(message, &mut self.keys);
            }
        }
    }

    fn on_page(&mut self, page: &Page) {
        let (held, window) = (&mut self.held, page.window.id);
        let leaving = !self.aside.is_empty() || !self.hopeless.is_empty();
        let mut keys = Vec::new();
        self.ledger.page(page, |seq| {
            let key = held.place(seq, window);
            keys.extend(key.filter(|_| leaving));
            key.is_some()
        });
        keys.into_iter().for_each(|key| self.follow(key));
    }

    /// A page of rows that a stream should have brought.
    fn on_listed(&mut self, page: &Page) -> Result<(), &'static str> {
        let blind = !holds(Guarantee::Reconcile);
        let is_known = |seq: Seq| {
            blind
                || self.held.get(seq).is_some()
                || self.ledger.is_ahead(seq)
                || self.aside.unpassed.contains(seq)
        };
        let seqs: Vec<Seq> = page.seqs.iter().copied().filter(|seq| !is_known(*seq)).collect();
        if seqs.is_empty() {
            self.on_page(page);
        } else {
            self.stream.misses();
        }
        // The source waits for each answer, so there is room for it.
        self.peers.missing.try_send(Missing { window: page.window.id, seqs }).map_err(|_| "source")
    }

    /// No more rows can be remembered as settled: what the stream brings from now on comes out as missing.
    pub(super) fn refuse_stream(&mut self) {
        if self.stream.refuse() {
            let rows = self.ledger.ahead();
            tracing::warn!(rows, "the stream is too far ahead of the poller; the rest of it is polled");
        }
    }

    /// Tells the source up to where everything streamed is settled.
    pub(super) fn tell_settled(&self) {
        let settled = self.stream.settled();
        self.peers.settled.send_if_modified(|told| std::mem::replace(told, settled) != settled);
    }
}
