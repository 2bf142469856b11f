//! Reads windows of the outbox and hands them to the relay, which it serves meanwhile.
//!
//! A page is handed over only when its WAL is on disk: under `synchronous_commit = off` a row is visible before. Whatever
//! waits here ends when the session does, when the relay is gone, and when the connection is.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::page::{Head, Listing, PageError, PageRows, Request, Statements, answered};
use super::window::{Frontier, Opening};
use crate::contract::{Batch, Fetch, Input, Lsn, Page, Position, Window};
use crate::event::Seq;
use crate::postgres;

/// How often the flush position is asked for before it is pushed: commits of the application usually move it.
const FLUSH_LOOKS: u32 = 3;
/// Between two looks.
const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// A row that a stream brought may not be visible to SQL yet; for so long it is not taken for gone.
const VISIBLE_LIMIT: Duration = Duration::from_secs(5);
/// Between two looks for it.
const VISIBLE_LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// Rows of a page to ask for, at least.
const PAGE_ROWS_MIN: i64 = 16;
/// Rows of a listed page: a few bytes each.
const LISTED_ROWS_MAX: i64 = 10_000;

/// The source's ends of its channels.
#[derive(Debug)]
pub struct Ends {
    /// To the relay; it takes from here while it has room.
    pub input: Sender<Input>,
    /// Which rows the relay wants again.
    pub fetch: Receiver<Fetch>,
    /// Those rows. The relay takes from here always: it may have no room *because* it waits for them.
    pub refetched: Sender<Batch>,
    /// Ends the source.
    pub stop: CancellationToken,
}

/// Why a source does not go on.
#[derive(Debug)]
pub enum Halt {
    /// The relay or the session has ended.
    Over,
    /// Reading failed.
    Failed(PageError),
}

impl From<PageError> for Halt {
    fn from(error: PageError) -> Self {
        Halt::Failed(error)
    }
}

impl From<tokio_postgres::Error> for Halt {
    fn from(error: tokio_postgres::Error) -> Self {
        Halt::Failed(error.into())
    }
}

/// What a step of a source comes to.
pub type Step<T> = Result<T, Halt>;

/// A window that was read and handed over whole.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// It held rows.
    pub found: bool,
    /// WAL position behind the commits of everything that its upper snapshot sees.
    pub insert_lsn: Lsn,
}

/// See the module head.
#[derive(Debug)]
pub struct Reader {
    client: Arc<Client>,
    guard: postgres::Guard,
    statements: Statements,
    settings: Settings,
    ends: Ends,
    /// P in memory: all that is visible in it was handed to the relay.
    frontier: Frontier,
    next_window: u64,
    /// Rows to ask for.
    page_rows: i64,
}

impl Reader {
    /// Sets the session up on `client` and starts from `position`, which is the cursor row's.
    ///
    /// # Errors
    /// SQL.
    pub async fn new(
        (client, guard): (Client, postgres::Guard),
        settings: Settings,
        position: &Position,
        floor_seq: Seq,
        ends: Ends,
    ) -> Result<Self, PageError> {
        // A generic plan is planned once and prunes chunks at run time; the planner's guesses about a snapshot
        // difference are poor, and the only good plans walk an index. Nothing that we write waits for a standby.
        client
            .batch_execute(
                "SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off;
                 SET enable_bitmapscan = off; SET synchronous_commit = local; SET statement_timeout = '60s'",
            )
            .await?;
        let statements = Statements::prepare(&client).await?;
        Ok(Reader {
            client: Arc::new(client),
            guard,
            statements,
            page_rows: i64::from(settings.poll.batch),
            settings,
            ends,
            frontier: Frontier::stored(position, floor_seq),
            next_window: 1,
        })
    }

    /// The way to the relay, for a stream besides.
    pub(in crate::source) fn input(&self) -> &Sender<Input> {
        &self.ends.input
    }

    /// The connection, for questions besides.
    pub(in crate::source) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// P in memory.
    pub(in crate::source) fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// Reads the rest of the window that the cursor row has in progress, if there is one.
    ///
    /// # Errors
    /// SQL, or the end.
    pub(in crate::source) async fn resume(&mut self, position: &Position) -> Step<()> {
        let Some(stored) = &position.window else {
            return Ok(());
        };
        let window = Arc::new(self.frontier.resume(self.next_window, stored));
        self.next_window += 1;
        self.read_pages(&window, window.after_seq, None).await
    }

    /// Opens a window and reads it whole. `late` as in [`Batch::late`].
    ///
    /// # Errors
    /// SQL, or the end.
    pub(in crate::source) async fn read_window(&mut self, late: Option<Seq>) -> Step<Read> {
        let rows = self.page(None, 0).await?;
        let window = self.open(&rows.head);
        let read = Read { found: !rows.events.is_empty(), insert_lsn: rows.head.insert_lsn };
        let after_seq = rows.events.last().map(|e| e.seq);
        let full = rows.full;
        self.hand_over(rows, &window, late).await?;
        match (full, after_seq) {
            (true, Some(after_seq)) => self.read_pages(&window, after_seq, late).await?,
            _ => self.frontier.close(&window),
        }
        Ok(read)
    }

    /// Opens the window that a first page's head belongs to.
    pub(in crate::source) fn open(&mut self, head: &Head) -> Arc<Window> {
        let opening = Opening {
            upper: Arc::new(head.upper.clone()),
            max_seq: head.max_seq,
            floor_seq: head.floor_seq,
            ceil: head.last_seq,
        };
        let window = Arc::new(self.frontier.open(self.next_window, opening));
        self.next_window += 1;
        window
    }

    /// Reads a window from `after_seq` to its end, and closes it.
    ///
    /// # Errors
    /// SQL, or the end.
    pub(in crate::source) async fn read_pages(
        &mut self,
        window: &Arc<Window>,
        mut after_seq: Seq,
        late: Option<Seq>,
    ) -> Step<()> {
        loop {
            let rows = self.page(Some(window), after_seq).await?;
            after_seq = rows.events.last().map_or(after_seq, |e| e.seq);
            let full = rows.full;
            self.hand_over(rows, window, late).await?;
            if !full {
                self.frontier.close(window);
                return Ok(());
            }
        }
    }

    /// Lists the next rows of a window; of a new one without `window`.
    ///
    /// # Errors
    /// SQL.
    pub(in crate::source) async fn list(
        &mut self,
        window: Option<&Arc<Window>>,
        after_seq: Seq,
    ) -> Step<Listing> {
        let request = self.request(window, after_seq, LISTED_ROWS_MAX);
        Ok(self.statements.list(&self.client, &request).await?)
    }

    /// A listed page was taken, and it was the window's last.
    pub(in crate::source) fn close(&mut self, window: &Window) {
        self.frontier.close(window);
    }

    /// Makes everything that was written reach the disk, and the end of the WAL move. A transactional message is the
    /// smallest record that makes a commit flush, and leaves no row behind.
    ///
    /// # Errors
    /// SQL.
    pub(in crate::source) async fn flush(&self) -> Result<(), PageError> {
        answered(self.client.batch_execute("SELECT pg_logical_emit_message(true, 'statecast', 'flush')"))
            .await
    }

    /// Waits for `waiting`, and serves the relay meanwhile.
    ///
    /// # Errors
    /// SQL, or the end.
    pub(in crate::source) async fn serving<T>(&mut self, waiting: impl Future<Output = T>) -> Step<T> {
        let mut waiting = pin!(waiting);
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Err(Halt::Over),
                fetch = self.ends.fetch.recv() => {
                    let fetch = fetch.ok_or(Halt::Over)?;
                    self.serve(fetch).await?;
                }
                value = &mut waiting => return Ok(value),
                // A server that shuts down waits for our stream, so this must be noticed at once.
                () = self.guard.closed() => return Err(PageError::Closed.into()),
            }
        }
    }

    fn request<'a>(&'a self, window: Option<&'a Arc<Window>>, after_seq: Seq, rows_max: i64) -> Request<'a> {
        Request {
            pipeline: &self.settings.pipeline,
            from: &self.frontier.snapshot,
            window: window.map(|w| (&*w.upper, w.ceil)),
            after_seq,
            prune_seq: self.frontier.prune_seq,
            floor_seq: self.frontier.floor_seq,
            rows_max,
            bytes_max: self.settings.page_bytes,
        }
    }

    async fn page(&mut self, window: Option<&Arc<Window>>, after_seq: Seq) -> Result<PageRows, PageError> {
        let request = self.request(window, after_seq, self.page_rows);
        let page = self.statements.page(&self.client, &request).await?;
        if page.full {
            self.page_rows = page_rows(page.events.len(), self.settings.poll.batch);
        }
        Ok(page)
    }

    /// Sends a page to the relay once it is durable. Waits while the relay has no room.
    async fn hand_over(&mut self, rows: PageRows, window: &Arc<Window>, late: Option<Seq>) -> Step<()> {
        let PageRows { head, events, full } = rows;
        let seqs = events.iter().map(|e| e.seq).collect::<Vec<_>>();
        if !events.is_empty() {
            self.wait_until_durable(&head).await?;
            self.send(Input::Rows(Batch { events, late })).await?;
        }
        self.send(Input::Page(Page { window: window.clone(), seqs, last: !full })).await
    }

    /// Sends to the relay, when it has room.
    ///
    /// # Errors
    /// SQL, or the end.
    pub(in crate::source) async fn send(&mut self, input: Input) -> Step<()> {
        let sender = self.ends.input.clone();
        let permit = self.serving(sender.reserve()).await?.map_err(|_| Halt::Over)?;
        permit.send(input);
        Ok(())
    }

    /// Waits until all WAL that was written when the page was read is on disk: what the page saw cannot be undone by a
    /// crash then. If nobody flushes, we do.
    async fn wait_until_durable(&self, head: &Head) -> Result<(), PageError> {
        if head.flush_lsn >= head.insert_lsn {
            return Ok(());
        }
        for look in 0.. {
            let row = answered(self.client.query_one("SELECT pg_current_wal_flush_lsn()", &[])).await?;
            if u64::from(row.try_get::<_, PgLsn>(0)?) >= head.insert_lsn {
                return Ok(());
            }
            if look < FLUSH_LOOKS {
                sleep(FLUSH_LOOK_INTERVAL).await;
            } else {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Reads rows that the relay asks for again.
    async fn serve(&mut self, fetch: Fetch) -> Step<()> {
        let until = Instant::now() + VISIBLE_LIMIT;
        let events = loop {
            match self.statements.fetch(&self.client, &fetch.seqs).await {
                Err(PageError::RowsGone { .. })
                    if Instant::now() < until && !self.ends.stop.is_cancelled() =>
                {
                    sleep(VISIBLE_LOOK_INTERVAL).await;
                }
                fetched => break fetched?,
            }
        };
        // A relay that winds down takes nothing more, and a server that shuts down waits for our stream.
        tokio::select! {
            sent = self.ends.refetched.send(Batch { events, late: None }) => sent.map_err(|_| Halt::Over),
            () = self.ends.stop.cancelled() => Err(Halt::Over),
            () = self.guard.closed() => Err(PageError::Closed.into()),
        }
    }
}

/// Rows to ask for after a page that was cut at `events`: no more than twice those. The server looks at each row that it is asked
/// for before it cuts the page by bytes, and of large ones it would look at many times what it sends.
fn page_rows(events: usize, batch: u32) -> i64 {
    let twice = i64::try_from(events).unwrap_or(i64::MAX).saturating_mul(2);
    twice.max(PAGE_ROWS_MIN).min(i64::from(batch))
}

#[cfg(test)]
mod tests {
    use super::page_rows;

    /// With pages that hold `fit` rows by their bytes, and nothing less than full.
    fn asked(fit: i64, batch: u32) -> Vec<i64> {
        let mut rows = i64::from(batch);
        (0..8)
            .map(|_| {
                rows = page_rows(usize::try_from(rows.min(fit)).unwrap(), batch);
                rows
            })
            .collect()
    }

    #[test]
    fn of_large_rows_no_more_is_asked_for_than_twice_what_fits() {
        assert_eq!(asked(120, 1_000), [240; 8]);
        assert_eq!(asked(1, 1_000), [16; 8], "one at a time would cost a round trip each");
        assert_eq!(asked(1, 4), [4; 8], "never more than `source.poll.batch`");
        assert_eq!(asked(i64::MAX, 1_000), [1_000; 8]);
        assert_eq!(page_rows(usize::MAX, u32::MAX), i64::from(u32::MAX));
    }

    #[test]
    fn after_large_rows_small_ones_get_whole_pages_again() {
        let (mut rows, mut pages) = (page_rows(1, 1_000), 0);
        while rows < 1_000 {
            rows = page_rows(usize::try_from(rows).unwrap(), 1_000);
            pages += 1;
        }
        assert_eq!(pages, 6);
    }
}
