//! What the source hands to the relay, noted and judged.

use statecast::contract::{Batch, Input, Lsn, Page, Streamed};
use statecast::event::{Event, Seq};

use crate::outbox::event;
use crate::stream::{lsn, stream_of};
use crate::world::{StreamState, World};

impl World {
    /// The relay's channel has an input.
    pub(crate) fn handed(&mut self, input: &Input) {
        match input {
            Input::Rows(batch) => self.polled(batch),
            Input::Streamed(streamed) => self.streamed(streamed),
            Input::Page(page) => {
                self.paged(page, "listed");
                page.seqs.iter().for_each(|seq| self.fate(*seq).listed = true);
            }
            Input::Listed(page) => {
                self.paged(page, "listed for the stream");
                self.take_confirms();
                let process = self.session.process;
                let unknown = |seq: &Seq| {
                    let fate = &self.fates[*seq as usize];
                    !fate.handed && !fate.known[process] && self.table.get(*seq).is_none()
                };
                let misses = page.seqs.iter().any(unknown);
                self.session.stream.refused |= misses;
                page.seqs.iter().for_each(|seq| self.fate(*seq).listed |= !misses);
                self.session.stream.since_listed.clear();
            }
        }
    }

    fn polled(&mut self, batch: &Batch) {
        self.holds(&batch.events);
        for event in &batch.events {
            let seq = event.seq;
            self.note(seq, || format!("read, late = {:?}", batch.late));
            let later = self.fates[seq as usize..].iter().any(|later| later.handed);
            let fate = self.fates[seq as usize].clone();
            let remembered = fate.known[self.session.process];
            self.tally.count("events read after later ones", usize::from(later && !fate.handed));
            self.tally.count("events confirmed and remembered", usize::from(remembered));
            self.tally.count("events polled and brought before", usize::from(fate.handed));
            let aside = self.table.get(seq).is_some();
            self.tally.count("rows read again that are set aside", usize::from(aside));
            let late = !fate.handed && !remembered && !aside && batch.late.is_some_and(|bound| seq < bound);
            self.session.missed_max += u64::from(late);
            self.fate(seq).late |= late;
            self.fate(seq).handed = true;
            self.comes(seq, false);
        }
    }

    pub(crate) fn stream_begins(&mut self, number: u64) {
        self.streams += 1;
        self.tally.count("streams", 1);
        self.note(0, || format!("stream {number} begins"));
        self.session.stream = StreamState { number, ..StreamState::default() };
    }

    fn streamed(&mut self, streamed: &Streamed) {
        self.holds(&streamed.events);
        self.tally.count("events streamed", streamed.events.len());
        let (id, refused) = (self.streams, self.session.stream.refused);
        for event in &streamed.events {
            let seq = event.seq;
            self.note(seq, || format!("streamed, upto = {}, refused = {refused}", streamed.upto));
            let end = lsn(streamed.stream, self.outbox.commit_number(event.xid).map_or(0, |n| n + 1));
            self.session.stream.brought.push((end, seq));
            let again = self.fates[seq as usize].handed;
            self.tally.count("events brought by a refused stream", usize::from(refused));
            self.tally.count("events brought again by a stream", usize::from(again));
            self.comes(seq, false);
            if !refused {
                self.fate(seq).brought_by = Some(id);
                if !again {
                    self.fate(seq).handed = true;
                    self.session.stream.since_listed.push(seq);
                }
            }
        }
        self.session.stream.upto = streamed.upto;
    }

    fn paged(&mut self, page: &Page, what: &str) {
        let window = &page.window;
        let text = format!(
            "{what}: window {} [{}, {}) after {}, last = {}",
            window.id, window.from, window.upper, window.after_seq, page.last
        );
        for seq in &page.seqs {
            self.note(*seq, || text.clone());
        }
    }

    fn holds(&mut self, events: &[Event]) {
        let bytes = events.iter().map(|e| self.row_bytes(e.seq)).sum();
        self.session.page_bytes_max = self.session.page_bytes_max.max(bytes);
    }

    pub(crate) fn comes(&mut self, seq: Seq, again: bool) {
        let bytes = self.row_bytes(seq);
        let came = self.session.holds.comes(seq, bytes, again);
        self.fate(seq).came = came;
    }

    pub(crate) fn refetch(&mut self, mut seqs: Vec<Seq>) -> Vec<Event> {
        seqs.sort_unstable();
        self.tally.count("rows fetched again", seqs.len());
        for seq in &seqs {
            self.note(*seq, || "read again".to_owned());
            self.fate(*seq).wanted = false;
            self.comes(*seq, true);
        }
        seqs.iter().filter_map(|seq| Some(event(*seq, self.outbox.row(*seq)?))).collect()
    }

    /// The relay has answered a listed page.
    ///
    /// `settled` is what it told by then, and `before` what was streamed before the page.
    pub(crate) fn answered(&mut self, page: &Page, missing: &[Seq], settled: Lsn, before: (usize, Lsn)) {
        self.take_confirms();
        let process = self.session.process;
        for &seq in &page.seqs {
            let fate = self.fate(seq).clone();
            let came = fate.handed && !self.session.stream.since_listed.contains(&seq);
            let aside = self.table.get(seq).is_some();
            if missing.contains(&seq) {
                self.note(seq, || "missing".to_owned());
                if came || aside {
                    self.fail(seq, "said to be missing, and was brought".into());
                }
            } else if !came && !fate.known[process] && !aside {
                self.fail(seq, "not missing, and was never brought".into());
            }
        }
        if !missing.iter().all(|seq| page.seqs.contains(seq)) || !missing.is_sorted() {
            self.fail(0, format!("missing: {missing:?} of {:?}", page.seqs));
        }
        if missing.is_empty() {
            return self.check_settled_follows(settled, before);
        }
        // What came after the page was dropped.
        for seq in std::mem::take(&mut self.session.stream.since_listed) {
            self.fate(seq).handed = false;
        }
        self.session.stream.refused = true;
        self.session.broken_streams.push(self.streams);
        self.tally.count("streams that miss rows", 1);
    }

    /// All that was streamed before a listed page is settled: then the relay has said so with its answer.
    fn check_settled_follows(&mut self, settled: Lsn, (events, upto): (usize, Lsn)) {
        let process = self.session.process;
        let mut brought = self.session.stream.brought[..events].iter();
        if brought.all(|(_, seq)| self.fates[*seq as usize].known[process]) && settled < upto {
            self.fail(0, format!("all is settled up to {upto}, and {settled} is told"));
        }
    }

    /// The relay says that everything that the stream brought up to here is settled.
    pub(crate) fn check_settled(&mut self, settled: Lsn) {
        self.note(0, || format!("settled up to {settled}"));
        let stream = &mut self.session.stream;
        let (of, last) = (stream_of(settled), stream.upto);
        if stream.told == 0 && of.is_none_or(|of| of < stream.number) {
            // The relay has yet to hear of the stream.
            return;
        }
        if settled < stream.told || settled > last {
            let told = stream.told;
            return self
                .fail(0, format!("settled up to {settled}: {told} was told before, {last} was streamed"));
        }
        stream.told = settled;
        let brought = self.session.stream.brought.iter().filter(|(end, _)| *end <= settled);
        let open = brought.map(|(_, seq)| *seq).find(|seq| !self.is_settled(*seq));
        if let Some(seq) = open {
            self.fail(seq, format!("open, and all up to {settled} is said to be settled"));
        }
    }

    /// An event is published for the first time: if it was overtaken because a stream left it out, that was counted.
    pub(crate) fn check_counted(&mut self, seq: Seq) {
        let fate = self.fate(seq).clone();
        if !fate.overtaken {
            return;
        }
        self.tally.count("events overtaken", 1);
        if fate.late {
            self.overtaken += 1;
            let missed = self.metrics.wal_missed.get() - self.missed_at_start;
            if missed < self.overtaken {
                self.fail(seq, format!("{} were overtaken, {missed} were counted as missed", self.overtaken));
            }
        } else if fate.left_out_by.is_some_and(|id| self.session.broken_streams.contains(&id)) {
            self.fail(seq, "overtaken because its stream left it out, and not counted as missed".into());
        }
    }

    /// At the end of a session: nothing else counts as missed.
    pub(crate) fn check_missed(&mut self) {
        let missed = self.metrics.wal_missed.get() - self.session.missed_before;
        if missed > self.session.missed_max {
            self.fail(0, format!("{missed} counted as missed, at most {} were", self.session.missed_max));
        }
    }
}
