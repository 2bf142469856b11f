//! The task that reads a stream: frames in, events to the relay, feedback out.
//!
//! It goes on reading while the relay has room. While it waits, for room, for the barrier or for a standby, it stops
//! reading and keeps answering, so the server neither gives it up nor is held up by it. Its queue is the relay's input
//! itself: once it says that it *passed* a WAL position, everything that committed before it stands in that queue.
//!
//! It fails with anything that the server or its bytes do; the poller carries on.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::ended::Ended;
use crate::contract::{Input, Lsn, Streamed};
use crate::event::{Event, Seq, Xid};
use crate::snapshot::Snapshot;
use crate::source::pgoutput::{self, Message, Relations, Tuple};
use crate::source::replication::{Feedback, Frame, Stream};

/// The server hears from us at least this often; [`crate::source::replication::WAL_SENDER_TIMEOUT`] is five times that.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// And at most this often, unless it asks.
const STATUS_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// For a feedback to be written. One that a stalled connection does not take is written later.
const STATUS_TIMEOUT: Duration = Duration::from_millis(200);
/// Events of a batch, at most.
const BATCH_EVENTS_MAX: usize = 1_000;
/// Between two looks whether a transaction is visible.
const VISIBLE_INTERVAL_MIN: Duration = Duration::from_millis(1);
/// The same, after a while.
const VISIBLE_INTERVAL_MAX: Duration = Duration::from_millis(20);
/// What an event costs besides its payload and headers, about.
const EVENT_BYTES: usize = 400;

/// What the stream may hand over. Set by the source.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    /// The barrier is passed.
    pub(super) open: bool,
    /// P: the events of transactions that it sees were polled.
    pub(super) polled: Arc<Snapshot>,
}

/// How far the stream is. Heard by the source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Every event that committed before this position was handed to the relay, or need not be.
    pub(super) passed: Lsn,
    /// It waits because the relay has no room.
    pub(super) blocked: bool,
    /// It waits at an event that was not polled yet, for the gate to open.
    pub(super) held: bool,
    /// Highest event handed over.
    pub(super) max_seq: Seq,
}

/// The task's ends.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) input: Sender<Input>,
    pub(super) gate: watch::Receiver<Gate>,
    pub(super) progress: watch::Sender<Progress>,
    /// Up to where everything streamed is settled.
    pub(super) settled: watch::Receiver<Lsn>,
    /// There are synchronous standbys: what one of them has not acknowledged is not visible yet, and may still be undone
    /// by a failover.
    pub(super) standbys: watch::Receiver<bool>,
    /// The source wants to know how far we are: ask the server for a keepalive.
    pub(super) ask: Arc<Notify>,
    pub(super) stop: CancellationToken,
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Reading {
    stream: Stream,
    ends: Ends,
    /// For snapshots; the source's.
    client: Arc<Client>,
    number: u64,
    batch_bytes_max: usize,
    relations: Relations,
    transaction: Option<Transaction>,
    batch: Vec<Event>,
    batch_bytes: usize,
    /// Everything that committed before this was decoded.
    reached: Lsn,
    /// End of the last complete transaction of which events were handed over, or wait in `batch`.
    complete: Lsn,
    /// The same, as the relay knows it.
    sent_complete: Lsn,
    /// The last snapshot that was asked for.
    seen: Snapshot,
    status_at: Instant,
    status_sent_at: Instant,
}

/// The transaction whose changes arrive.
#[derive(Debug)]
struct Transaction {
    /// Without its epoch.
    xid: u32,
    /// Its events go to the relay; decided at the first one.
    wanted: Option<bool>,
}

/// What the task wakes up for.
enum Wake {
    Status,
    Frame(Frame),
    Room,
    Ask,
    Settled,
}

impl Reading {
    /// The stream `number` of this session. A batch holds `batch_bytes_max`; one larger event passes alone.
    pub(super) fn new(
        stream: Stream,
        ends: Ends,
        client: Arc<Client>,
        number: u64,
        batch_bytes_max: usize,
    ) -> Self {
        let now = Instant::now();
        Reading {
            stream,
            ends,
            client,
            number,
            batch_bytes_max,
            relations: Relations::default(),
            transaction: None,
            batch: Vec::new(),
            batch_bytes: 0,
            reached: 0,
            complete: 0,
            sent_complete: 0,
            seen: Snapshot::NOTHING,
            status_at: now,
            status_sent_at: now,
        }
    }

    /// Reads until it is stopped or something fails; then the connection is closed, and with it the slot.
    pub(super) async fn run(mut self) -> Ended {
        match self.read_on().await {
            Ok(never) => match never {},
            Err(ended) => ended,
        }
    }

    async fn read_on(&mut self) -> Result<Infallible, Ended> {
        loop {
            let full = self.batch.len() >= BATCH_EVENTS_MAX || self.batch_bytes >= self.batch_bytes_max;
            let due = !self.batch.is_empty() || self.complete != self.sent_complete;
            self.note_blocked(due);
            let wake = tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Ended::Stopped),
                // 1. Before frames, of which there may be no end.
                () = sleep_until(self.status_at) => Wake::Status,
                // 2. Frames that are there already make batches; with none there, what we have goes out at once.
                frame = self.stream.next(), if !full => Wake::Frame(frame?),
                // 3. The relay has room.
                room = self.ends.input.reserve(), if due => match room {
                    Ok(_) => Wake::Room,
                    Err(_) => return Err(Ended::Stopped),
                },
                // 4. Questions and answers of the others, which only matter while little happens.
                () = self.ends.ask.notified() => Wake::Ask,
                changed = self.ends.settled.changed() => match changed {
                    Ok(()) => Wake::Settled,
                    Err(_) => return Err(Ended::Stopped),
                },
            };
            match wake {
                Wake::Status => self.status(false).await?,
                Wake::Frame(frame) => self.on_frame(frame).await?,
                Wake::Room => self.hand_over(),
                Wake::Ask => self.status(true).await?,
                Wake::Settled => {
                    self.status_at = self.status_at.min(self.status_sent_at + STATUS_INTERVAL_MIN)
                }
            }
        }
    }

    async fn on_frame(&mut self, frame: Frame) -> Result<(), Ended> {
        match frame {
            Frame::End => return Err(Ended::ByServer),
            Frame::Keepalive { wal_end, reply_requested, .. } => {
                self.reach(wal_end.into());
                if reply_requested {
                    self.status(false).await?;
                }
            }
            Frame::XLogData { wal_start, data, .. } => {
                let at = wal_start.into();
                let message = pgoutput::decode(&data).map_err(|e| Ended::Malformed { at, source: e })?;
                self.on_message(message, at).await?;
            }
        }
        Ok(())
    }

    async fn on_message(&mut self, message: Message<'_>, at: Lsn) -> Result<(), Ended> {
        match message {
            Message::Begin { xid, .. } => self.transaction = Some(Transaction { xid, wanted: None }),
            Message::Commit { end_lsn, .. } => {
                if self.transaction.take().is_some_and(|t| t.wanted == Some(true)) {
                    self.complete = end_lsn.into();
                }
                self.reach(end_lsn.into());
            }
            Message::Relation(relation) => {
                self.relations.apply(&relation).map_err(|e| Ended::Relation { at, source: e })?;
            }
            Message::Insert { relation, new } => self.on_insert(relation, &new, at).await?,
            // The publication may hold more than the outbox, and publish more than inserts: not our rows.
            _ => {}
        }
        Ok(())
    }

    async fn on_insert(&mut self, relation: u32, new: &Tuple<'_>, at: Lsn) -> Result<(), Ended> {
        let relation = self.relations.get(relation).map_err(|e| Ended::Relation { at, source: e })?;
        if !relation.is_outbox() {
            return Ok(());
        }
        let Some(transaction) = &self.transaction else {
            return Err(Ended::OutsideTransaction { at });
        };
        if transaction.wanted == Some(false) {
            return Ok(());
        }
        let event = pgoutput::event(relation, new).map_err(|e| Ended::Event { at, source: e })?;
        // Somebody wrote the column `xid` by hand: polling decides about such rows.
        if event.xid & 0xffff_ffff != u64::from(transaction.xid) {
            return Ok(());
        }
        if transaction.wanted.is_none() {
            let wanted = self.admit(event.xid).await?;
            if let Some(transaction) = &mut self.transaction {
                transaction.wanted = Some(wanted);
            }
            if !wanted {
                return Ok(());
            }
        }
        self.batch_bytes += EVENT_BYTES + event.json_bytes();
        self.batch.push(event);
        Ok(())
    }

    /// Do a transaction's events go to the relay? Waits until that can be said, and until they may.
    async fn admit(&mut self, xid: Xid) -> Result<bool, Ended> {
        loop {
            let gate = self.ends.gate.borrow_and_update().clone();
            if gate.polled.sees(xid) {
                return Ok(false);
            }
            if gate.open {
                if *self.ends.standbys.borrow() {
                    self.until_visible(xid).await?;
                }
                return Ok(true);
            }
            self.ends.progress.send_modify(|p| p.held = true);
            let mut gate = self.ends.gate.clone();
            let changed = self.answering(async move { gate.changed().await }).await?;
            self.ends.progress.send_modify(|p| p.held = false);
            changed.map_err(|_| Ended::Stopped)?;
        }
    }

    /// Waits until a snapshot sees the transaction: the walsender sends what a synchronous standby has not acknowledged.
    async fn until_visible(&mut self, xid: Xid) -> Result<(), Ended> {
        let mut interval = VISIBLE_INTERVAL_MIN;
        while !self.seen.sees(xid) {
            // What committed before need not wait for a stranger's standby. And whoever waits for that lags.
            self.hand_all_over().await?;
            let client = Arc::clone(&self.client);
            let ask = async move {
                let row = client.query_one("SELECT pg_current_snapshot()::text", &[]).await?;
                row.try_get::<_, String>(0)
            };
            let text = self.answering(ask).await?.map_err(Ended::Sql)?;
            self.seen = text.parse().map_err(Ended::Snapshot)?;
            if !self.seen.sees(xid) {
                self.answering(sleep(interval)).await?;
                interval = (interval * 2).min(VISIBLE_INTERVAL_MAX);
            }
        }
        Ok(())
    }

    /// Hands over what is in hand, when the relay has room.
    async fn hand_all_over(&mut self) -> Result<(), Ended> {
        while !self.batch.is_empty() {
            self.note_blocked(true);
            let input = self.ends.input.clone();
            let room = self.answering(async move { input.reserve().await.map(drop) }).await?;
            room.map_err(|_| Ended::Stopped)?;
            self.hand_over();
        }
        self.note_blocked(false);
        Ok(())
    }

    /// Waits without reading, and keeps answering the server meanwhile.
    async fn answering<T>(&mut self, waiting: impl Future<Output = T>) -> Result<T, Ended> {
        let mut waiting = pin!(waiting);
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Ended::Stopped),
                value = &mut waiting => return Ok(value),
                () = sleep_until(self.status_at) => {}
            }
            self.status(false).await?;
        }
    }

    /// Everything that committed before `lsn` was decoded.
    fn reach(&mut self, lsn: Lsn) {
        self.reached = self.reached.max(lsn);
        if self.batch.is_empty() {
            self.pass();
        }
    }

    /// Everything that was decoded is in the relay's queue.
    fn pass(&self) {
        let passed = self.reached;
        self.ends.progress.send_if_modified(|p| std::mem::replace(&mut p.passed, passed) != passed);
    }

    fn hand_over(&mut self) {
        let max_seq = self.batch.iter().map(|e| e.seq).max().unwrap_or(0);
        let events = std::mem::take(&mut self.batch);
        let streamed = Streamed { stream: self.number, events, upto: self.complete };
        match self.ends.input.try_send(Input::Streamed(streamed)) {
            Ok(()) => {
                self.batch_bytes = 0;
                self.sent_complete = self.complete;
                self.ends.progress.send_modify(|p| p.max_seq = p.max_seq.max(max_seq));
                self.pass();
            }
            // The poller took the room: the next one is ours.
            Err(error) => {
                if let Input::Streamed(streamed) = error.into_inner() {
                    self.batch = streamed.events;
                }
            }
        }
    }

    fn note_blocked(&self, due: bool) {
        let blocked = due && self.ends.input.capacity() == 0;
        self.ends.progress.send_if_modified(|p| std::mem::replace(&mut p.blocked, blocked) != blocked);
    }

    /// Tells the server how far we are. It may forget the WAL of what is settled, and nothing more.
    async fn status(&mut self, reply: bool) -> Result<(), Ended> {
        let settled = *self.ends.settled.borrow_and_update();
        let none_open = self.batch.is_empty()
            && self.complete == self.sent_complete
            && settled >= self.sent_complete
            && self.transaction.as_ref().is_none_or(|t| t.wanted != Some(true));
        let flushed = if none_open { self.reached } else { settled };
        let feedback =
            Feedback { written: self.reached.into(), flushed: flushed.into(), applied: flushed.into() };
        self.status_sent_at = Instant::now();
        self.status_at = self.status_sent_at + STATUS_INTERVAL;
        match timeout(STATUS_TIMEOUT, self.stream.send_status(feedback, reply)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => Ok(()),
        }
    }
}
