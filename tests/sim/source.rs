//! The source: what the poller does, with the production decisions about windows, on the outbox of the model.

use std::sync::Arc;

use statecast::contract::{Batch, Fetch, Input, Page, Position, Via, Window};
use statecast::event::{Event, Seq};
use statecast::source::poll::Ends;
use statecast::source::poll::window::{Frontier, Opening};
use tokio::time::{Instant, sleep, sleep_until};

use crate::outbox::event;
use crate::world::{Shared, World};

/// The relay or the session has ended, or the source has died.
struct Over;

pub(crate) struct Poller {
    world: Shared,
    ends: Ends,
    frontier: Frontier,
    next_window: u64,
    /// Inputs left to send before it dies.
    left: Option<u32>,
}

struct PageRows {
    events: Vec<Event>,
    full: bool,
}

impl Poller {
    pub(crate) fn new(world: Shared, ends: Ends, dies_after: Option<u32>) -> Self {
        let cursor = world.lock().outbox.cursor.clone();
        let frontier = Frontier::stored(&cursor.position, cursor.floor_seq);
        Poller { world, ends, frontier, next_window: 1, left: dies_after }
    }

    pub(crate) async fn run(mut self, position: Position) {
        let _ = self.poll(&position).await;
    }

    async fn poll(&mut self, position: &Position) -> Result<(), Over> {
        if let Some(stored) = &position.window {
            let window = Arc::new(self.frontier.resume(self.next_window, stored));
            self.next_window += 1;
            self.read_pages(window, position.window.as_ref().map_or(0, |w| w.seq), None).await?;
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
            self.read_pages(window, 0, Some(rows)).await?;
            interval = if found { busy } else { (interval * 2).min(idle) };
            self.pause(interval).await?;
        }
    }

    async fn query(&self) {
        let delay = {
            let mut world = self.world.lock();
            let max = world.plan.pace.query;
            world.delay(max)
        };
        sleep(delay).await;
    }

    /// The statement that opens a window: one snapshot, and the first page.
    fn open(&mut self) -> (Arc<Window>, PageRows) {
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

    async fn read_pages(
        &mut self,
        window: Arc<Window>,
        mut after: Seq,
        mut first: Option<PageRows>,
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
            self.hand_over(rows, &window).await?;
            if !full {
                self.frontier.close(&window);
                return Ok(());
            }
        }
    }

    async fn hand_over(&mut self, rows: PageRows, window: &Arc<Window>) -> Result<(), Over> {
        let seqs: Vec<Seq> = rows.events.iter().map(|e| e.seq).collect();
        if !rows.events.is_empty() {
            self.send(Input::Rows(Batch { via: Via::Poll, events: rows.events })).await?;
            if self.world.lock().rng.f64() < 0.1 {
                self.query().await;
            }
        }
        self.send(Input::Page(Page { window: Arc::clone(window), seqs, last: !rows.full })).await
    }

    async fn send(&mut self, input: Input) -> Result<(), Over> {
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

    async fn serve(&mut self, fetch: Fetch) -> Result<(), Over> {
        let delay = {
            let mut world = self.world.lock();
            world.check_fetch(&fetch.seqs);
            let max = world.plan.pace.fetch;
            world.delay(max)
        };
        sleep(delay).await;
        let events = self.world.lock().refetch(fetch.seqs);
        self.ends.refetched.send(Batch { via: Via::Poll, events }).await.map_err(|_| Over)
    }

    async fn pause(&mut self, interval: std::time::Duration) -> Result<(), Over> {
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
fn page(world: &World, frontier: &Frontier, window: &Window, after: Seq) -> PageRows {
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

impl World {
    /// The relay's channel has an input.
    fn handed(&mut self, input: &Input) {
        match input {
            Input::Rows(batch) => {
                let bytes = batch.events.iter().map(|e| self.row_bytes(e.seq)).sum();
                self.session.page_bytes_max = self.session.page_bytes_max.max(bytes);
                for event in &batch.events {
                    self.note(event.seq, || "read".to_owned());
                    let late = self.fates[event.seq as usize..].iter().any(|later| later.handed);
                    self.tally.count("events read after later ones", usize::from(late));
                    let remembered = self.fates[event.seq as usize].known[self.session.process];
                    self.tally.count("events confirmed and remembered", usize::from(remembered));
                    self.fate(event.seq).handed = true;
                    self.comes(event.seq, false);
                }
            }
            Input::Page(page) => {
                let text = format!(
                    "listed: window {} [{}, {}) after {}, last = {}",
                    page.window.id, page.window.from, page.window.upper, page.window.after_seq, page.last
                );
                for seq in &page.seqs {
                    self.note(*seq, || text.clone());
                }
            }
        }
    }

    fn comes(&mut self, seq: Seq, again: bool) {
        let bytes = self.row_bytes(seq);
        let came = self.session.holds.comes(seq, bytes, again);
        self.fate(seq).came = came;
    }

    fn refetch(&mut self, mut seqs: Vec<Seq>) -> Vec<Event> {
        seqs.sort_unstable();
        self.tally.count("rows fetched again", seqs.len());
        for seq in &seqs {
            self.note(*seq, || "read again".to_owned());
            self.fate(*seq).wanted = false;
            self.comes(*seq, true);
        }
        seqs.iter().filter_map(|seq| Some(event(*seq, self.outbox.row(*seq)?))).collect()
    }
}
