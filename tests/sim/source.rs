//! The source: what the poller does, with the production decisions about windows, on the outbox of the model.

use std::sync::Arc;

use statecast::contract::{Batch, Fetch, Input, Lsn, Missing, Page, Position, Window};
use statecast::event::{Event, Seq};
use statecast::source::poll::window::{Frontier, Opening};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::outbox::event;
use crate::world::{Shared, World};

/// The relay or the session has ended, or the source has died.
pub(crate) struct Over;

/// The source's ends of its channels.
pub(crate) struct Ends {
    pub(crate) input: Sender<Input>,
    pub(crate) fetch: Receiver<Fetch>,
    pub(crate) refetched: Sender<Batch>,
    pub(crate) missing: Receiver<Missing>,
    pub(crate) settled: watch::Receiver<Lsn>,
    pub(crate) stop: CancellationToken,
}

pub(crate) struct Poller {
    pub(crate) world: Shared,
    pub(crate) ends: Ends,
    pub(crate) frontier: Frontier,
    next_window: u64,
    /// Streams so far.
    pub(crate) streams: u64,
    /// Transactions before the slot that is ready.
    slot: Option<usize>,
    /// What the next window should hold no more: see [`Batch::late`].
    pub(crate) late: Option<Seq>,
    /// Inputs left to send before it dies.
    left: Option<u32>,
}

pub(crate) struct PageRows {
    pub(crate) events: Vec<Event>,
    pub(crate) full: bool,
}

impl Poller {
    pub(crate) fn new(world: Shared, ends: Ends, dies_after: Option<u32>) -> Self {
        let cursor = world.lock().outbox.cursor.clone();
        let frontier = Frontier::stored(&cursor.position, cursor.floor_seq);
        Poller { world, ends, frontier, next_window: 1, streams: 0, slot: None, late: None, left: dies_after }
    }

    pub(crate) async fn run(mut self, position: Position) {
        let _ = self.poll(&position).await;
    }

    async fn poll(&mut self, position: &Position) -> Result<(), Over> {
        if let Some(stored) = &position.window {
            let window = Arc::new(self.frontier.resume(self.next_window, stored));
            self.next_window += 1;
            self.read_pages(window, position.window.as_ref().map_or(0, |w| w.seq), None, None).await?;
        }
        let (busy, idle) = {
            let world = self.world.lock();
            (world.plan.busy, world.plan.idle)
        };
        let mut interval = busy;
        loop {
            self.query().await;
            let (window, rows) = self.open();
            let found = !rows.events.is_empty();
            let late = self.late.take();
            self.read_pages(window, 0, Some(rows), late).await?;
            self.may_stream().await?;
            interval = if found { busy } else { (interval * 2).min(idle) };
            self.pause(interval).await?;
        }
    }

    /// After a window: a slot may be made, and the window after it is the barrier of the stream.
    async fn may_stream(&mut self) -> Result<(), Over> {
        let begins = {
            let mut world = self.world.lock();
            let begins = world.plan.streaming.begins;
            world.rng.f64() < begins
        };
        match self.slot {
            None if begins => self.slot = Some(self.world.lock().outbox.wal.len()),
            Some(from) if begins => {
                self.slot = None;
                return self.stream(from).await;
            }
            _ => {}
        }
        Ok(())
    }

    pub(crate) async fn query(&self) {
        let delay = {
            let mut world = self.world.lock();
            let max = world.plan.pace.query;
            world.delay(max)
        };
        sleep(delay).await;
    }

    /// The statement that opens a window: one snapshot, and the first page.
    pub(crate) fn open(&mut self) -> (Arc<Window>, PageRows) {
        let mut world = self.world.lock();
        world.advance();
        let opening = Opening {
            upper: Arc::new(world.outbox.snapshot()),
            max_seq: world.outbox.cursor.max_seq,
            floor_seq: world.outbox.cursor.floor_seq,
            ceil: world.outbox.last_seq(),
        };
        let window = Arc::new(self.frontier.open(self.next_window, opening));
        self.next_window += 1;
        let rows = page(&world, &self.frontier, &window, 0);
        (window, rows)
    }

    pub(crate) async fn read_pages(
        &mut self,
        window: Arc<Window>,
        mut after: Seq,
        mut first: Option<PageRows>,
        late: Option<Seq>,
    ) -> Result<(), Over> {
        loop {
            let rows = match first.take() {
                Some(rows) => rows,
                None => {
                    self.query().await;
                    page(&self.world.lock(), &self.frontier, &window, after)
                }
            };
            after = rows.events.last().map_or(after, |e| e.seq);
            let full = rows.full;
            self.hand_over(rows, &window, late).await?;
            if !full {
                self.frontier.close(&window);
                return Ok(());
            }
        }
    }

    async fn hand_over(
        &mut self,
        rows: PageRows,
        window: &Arc<Window>,
        late: Option<Seq>,
    ) -> Result<(), Over> {
        let seqs: Vec<Seq> = rows.events.iter().map(|e| e.seq).collect();
        if !rows.events.is_empty() {
            self.send(Input::Rows(Batch { events: rows.events, late })).await?;
            if self.world.lock().rng.f64() < 0.1 {
                self.query().await;
            }
        }
        self.send(Input::Page(Page { window: Arc::clone(window), seqs, last: !rows.full })).await
    }

    pub(crate) async fn send(&mut self, input: Input) -> Result<(), Over> {
        if let Some(left) = &mut self.left {
            *left = left.checked_sub(1).ok_or(Over)?;
        }
        let sender = self.ends.input.clone();
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Over),
                Some(fetch) = self.ends.fetch.recv() => self.serve(fetch).await?,
                permit = sender.reserve() => {
                    let permit = permit.map_err(|_| Over)?;
                    self.world.lock().handed(&input);
                    permit.send(input);
                    return Ok(());
                }
            }
        }
    }

    pub(crate) async fn serve(&mut self, fetch: Fetch) -> Result<(), Over> {
        let delay = {
            let mut world = self.world.lock();
            world.check_fetch(&fetch.seqs);
            let max = world.plan.pace.fetch;
            world.delay(max)
        };
        sleep(delay).await;
        let events = self.world.lock().refetch(fetch.seqs);
        self.ends.refetched.send(Batch { events, late: None }).await.map_err(|_| Over)
    }

    pub(crate) async fn pause(&mut self, interval: std::time::Duration) -> Result<(), Over> {
        let until = Instant::now() + interval;
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Over),
                fetch = self.ends.fetch.recv() => match fetch {
                    Some(fetch) => self.serve(fetch).await?,
                    None => return Err(Over),
                },
                () = sleep_until(until) => return Ok(()),
            }
        }
    }
}

/// The page's statement: rows of the window above `after`, by number and by bytes.
pub(crate) fn page(world: &World, frontier: &Frontier, window: &Window, after: Seq) -> PageRows {
    let committed = world.outbox.committed();
    let rows = committed.filter(|(seq, row)| frontier.belongs(window, after, row.xid, *seq));
    let found: Vec<_> = rows.take(world.plan.batch).collect();
    let mut bytes = 0;
    let fits = |size: usize| {
        let before = bytes;
        bytes += size + 400;
        before < world.plan.read_ahead / 8
    };
    let mut fits = fits;
    let events: Vec<Event> =
        found.iter().take_while(|(_, row)| fits(row.size)).map(|(seq, row)| event(*seq, row)).collect();
    let full = found.len() >= world.plan.batch || events.len() < found.len();
    PageRows { events, full }
}
