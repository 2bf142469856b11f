//! The source while it streams: rows in commit order, and windows that are listed when the stream has passed their snapshot.

use std::sync::Arc;
use std::time::Duration;

use statecast::contract::{Input, Lsn, Missing, Page, Streamed, Window};
use statecast::event::Seq;
use statecast::snapshot::Snapshot;
use tokio::time::Instant;

use crate::outbox::event;
use crate::source::{Over, Poller, page};
use crate::world::World;

/// Streams of a session, less than.
const STREAMS_MAX: u64 = 10_000;
/// Bytes of WAL of one stream, less than.
const SPAN: Lsn = 1_000_000_000;
/// Between two listings, at most.
const RECONCILE_MAX: Duration = Duration::from_secs(2);
/// A page of a listing takes this long, microseconds, at most.
const LIST_US_MAX: u64 = 300_000;
/// Batches in a row without a look at anything else.
const BURST: usize = 5;

/// Where the WAL of a stream stands after so many transactions. A stream begins before the end of the one before it.
pub(crate) fn lsn(stream: u64, transactions: usize) -> Lsn {
    (STREAMS_MAX - stream) * SPAN + 10 * transactions as Lsn
}

/// Whose WAL it is, if any's.
pub(crate) fn stream_of(lsn: Lsn) -> Option<u64> {
    (lsn > 0).then(|| STREAMS_MAX - lsn / SPAN)
}

pub(crate) struct Stream {
    number: u64,
    /// P when it began: what is visible in it was polled.
    seen: Arc<Snapshot>,
    /// Transactions of the WAL that are brought whole, and rows of the next.
    transactions: usize,
    rows: usize,
    /// Highest row brought.
    max_seq: Seq,
    /// Brought since the last listing.
    recent: Vec<Seq>,
}

/// A window that is being listed.
struct Listing {
    window: Arc<Window>,
    /// The stream must have brought so many transactions.
    transactions: usize,
    /// Rows taken so far lie at or below this.
    after: Seq,
}

impl Stream {
    /// The next batch, if there is anything new: rows, or only the end of a transaction.
    fn next(&mut self, world: &mut World) -> Option<Streamed> {
        let before = (self.transactions, self.rows);
        let streaming = world.plan.streaming;
        let rows_max = world.rng.usize(1..=world.plan.batch);
        let mut seqs = Vec::new();
        if world.rng.f64() < streaming.repeats {
            seqs.extend(self.recent.iter().rev().take(rows_max / 2).rev());
        }
        let (mut bytes, mut new) = (0, Vec::new());
        while seqs.len() + new.len() < rows_max {
            let Some(&xid) = world.outbox.wal.get(self.transactions) else { break };
            let row = world.outbox.written_by(xid).nth(self.rows).map(|(seq, row)| (seq, row.size));
            let Some((seq, size)) = row else {
                (self.transactions, self.rows) = (self.transactions + 1, 0);
                continue;
            };
            let skipped = self.seen.sees(xid);
            if !skipped && bytes > 0 && bytes + size + 400 > world.plan.read_ahead / 8 {
                break;
            }
            self.rows += 1;
            if !skipped && world.rng.f64() < streaming.drops {
                world.tally.count("events left out by a stream", 1);
                world.note(seq, || "left out by the stream".to_owned());
                world.fate(seq).left_out_by = Some(world.streams);
            } else if !skipped {
                bytes += size + 400;
                new.push(seq);
            }
        }
        if before == (self.transactions, self.rows) {
            return None;
        }
        self.recent.extend(&new);
        self.max_seq = new.iter().copied().fold(self.max_seq, Seq::max);
        seqs.extend(new);
        let event = |seq: Seq| Some(event(seq, world.outbox.row(seq)?));
        let events = seqs.into_iter().filter_map(event).collect();
        Some(Streamed { stream: self.number, events, upto: lsn(self.number, self.transactions) })
    }
}

impl Poller {
    /// Streams from a slot that was made after so many transactions; a window has been handed over whole since. Then the
    /// stream is gone, and what it was about to list is polled.
    pub(crate) async fn stream(&mut self, from: usize) -> Result<(), Over> {
        self.streams += 1;
        let seen = Arc::clone(&self.frontier.snapshot);
        let mut stream = Stream {
            number: self.streams,
            seen,
            transactions: from,
            rows: 0,
            max_seq: 0,
            recent: Vec::new(),
        };
        let speaks_at_once = {
            let mut world = self.world.lock();
            world.stream_begins(stream.number);
            world.rng.bool()
        };
        if speaks_at_once {
            let upto = lsn(stream.number, from);
            self.send(Input::Streamed(Streamed { stream: stream.number, events: Vec::new(), upto })).await?;
        }
        let (listing, late) = self.live(&mut stream).await?;
        {
            let mut world = self.world.lock();
            world.tally.count("streams that end within a transaction", usize::from(stream.rows > 0));
            world.note(0, || format!("stream {} ends, late = {late:?}", stream.number));
        }
        if let Some(listing) = listing {
            // A missed row may lie anywhere in this window; in the next only where a later one was brought.
            let all = late.map(|_| Seq::MAX);
            self.read_pages(listing.window, listing.after, None, all).await?;
        }
        self.late = late;
        Ok(())
    }

    /// Until the stream stops or misses a row. Returns the listing that was under way, and the bound of what was missed.
    async fn live(&mut self, stream: &mut Stream) -> Result<(Option<Listing>, Option<Seq>), Over> {
        let streaming = self.world.lock().plan.streaming;
        let mut listing: Option<Listing> = None;
        let mut interval = streaming.reconcile;
        let mut next_listing = Instant::now();
        loop {
            let (burst, stops) = {
                let mut world = self.world.lock();
                world.advance();
                (world.rng.usize(0..BURST), world.rng.f64() < streaming.stops)
            };
            for _ in 0..burst {
                let batch = stream.next(&mut self.world.lock());
                let Some(batch) = batch else { break };
                self.send(Input::Streamed(batch)).await?;
            }
            if stops {
                return Ok((listing, None));
            }
            if listing.is_none() && Instant::now() >= next_listing {
                self.query().await;
                let (window, _) = self.open();
                let transactions = self.world.lock().outbox.wal.len();
                listing = Some(Listing { window, transactions, after: 0 });
            }
            if let Some(open) = listing.take_if(|open| stream.transactions >= open.transactions) {
                let idle = open.window.from == open.window.upper;
                let bound = self.list(open, stream).await?;
                if let Err((open, bound)) = bound {
                    return Ok((Some(open), Some(bound)));
                }
                interval = if idle { interval * 2 } else { streaming.reconcile }.min(RECONCILE_MAX);
                next_listing = Instant::now() + interval;
            }
            self.rest(stream, next_listing, listing.is_some()).await?;
        }
    }

    /// Until there may be something to do.
    async fn rest(&mut self, stream: &Stream, next_listing: Instant, listing: bool) -> Result<(), Over> {
        let until = {
            let mut world = self.world.lock();
            let behind = stream.transactions < world.outbox.wal.len();
            let lag = world.plan.streaming.lag;
            let lag = world.delay(lag).max(Duration::from_micros(50));
            let write = world.outbox.next_ms().map(|ms| world.began + Duration::from_millis(ms));
            let next = write.map_or(next_listing, |write| write.min(next_listing));
            let now = Instant::now();
            if behind || listing { now + lag } else { next.max(now) + lag }
        };
        self.pause(until.saturating_duration_since(Instant::now())).await
    }

    /// Lists a window that the stream has passed. If rows are missing: the pages that are left, and the highest row that
    /// the relay took from the stream before.
    async fn list(
        &mut self,
        mut listing: Listing,
        stream: &mut Stream,
    ) -> Result<Result<(), (Listing, Seq)>, Over> {
        stream.recent.clear();
        loop {
            // More is committed meanwhile, and brought behind the page.
            let wait = self.world.lock().delay(LIST_US_MAX);
            self.pause(wait).await?;
            let rows = page(&self.world.lock(), &self.frontier, &listing.window, listing.after);
            let seqs: Vec<Seq> = rows.events.iter().map(|event| event.seq).collect();
            let page = || Page { window: listing.window.clone(), seqs: seqs.clone(), last: !rows.full };
            let bound = stream.max_seq + 1;
            let before = {
                let streamed = &self.world.lock().session.stream;
                (streamed.brought.len(), streamed.upto)
            };
            self.send(Input::Listed(page())).await?;
            let missing = self.answer(stream).await?;
            let settled = *self.ends.settled.borrow();
            let mut world = self.world.lock();
            if missing.window != listing.window.id {
                world.fail(0, format!("{missing:?} answers window {}", listing.window.id));
            }
            world.answered(&page(), &missing.seqs, settled, before);
            if !missing.seqs.is_empty() {
                return Ok(Err((listing, bound)));
            }
            drop(world);
            listing.after = seqs.last().copied().unwrap_or(listing.after);
            if !rows.full {
                self.frontier.close(&listing.window);
                stream.recent.clear();
                return Ok(Ok(()));
            }
        }
    }

    /// The relay's answer to a listed page; the stream and the fetches go on.
    async fn answer(&mut self, stream: &mut Stream) -> Result<Missing, Over> {
        let mut burst = self.world.lock().rng.usize(0..2 * BURST);
        let sender = self.ends.input.clone();
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Over),
                Some(fetch) = self.ends.fetch.recv() => self.serve(fetch).await?,
                missing = self.ends.missing.recv() => return missing.ok_or(Over),
                permit = sender.reserve(), if burst > 0 => {
                    let permit = permit.map_err(|_| Over)?;
                    let mut world = self.world.lock();
                    world.advance();
                    burst -= 1;
                    if let Some(batch) = stream.next(&mut world).map(Input::Streamed) {
                        world.handed(&batch);
                        permit.send(batch);
                    }
                }
            }
        }
    }
}
