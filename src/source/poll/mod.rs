//! Polling by snapshot difference: the truth in every mode.
//!
//! P is a snapshot of which every visible transaction is settled (for the database) or handed to the relay (in this
//! task's memory). A *window* is everything that completed between P and the snapshot of its first page; its pages are
//! read under that stored snapshot, and its last page makes it the new P. The relay moves the database's P behind.
//!
//! A page is handed over only when its WAL is on disk: under `synchronous_commit = off` a row is visible before. Fails with
//! SQL errors only; the session then starts again from the cursor row.

pub mod page;
pub mod window;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep_until};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::contract::{Batch, Fetch, Input, Page, Position, Via, Window};
use crate::event::Seq;
use crate::snapshot::Snapshot;
use page::{Head, PageError, PageRows, Request, Statements, answered};
use window::{Frontier, Opening};

/// How often the flush position is asked for before it is pushed: commits of the application usually move it.
const FLUSH_LOOKS: u32 = 3;
/// Between two looks.
const FLUSH_LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// What a poller is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Pipeline.
    pub pipeline: String,
    /// Intervals and rows per page.
    pub poll: config::Poll,
    /// Bytes per page, at most; one larger row passes alone.
    pub page_bytes: i64,
}

/// The poller's ends of its channels.
#[derive(Debug)]
pub struct Ends {
    /// To the relay; it takes from here while it has room.
    pub input: Sender<Input>,
    /// Which rows the relay wants again.
    pub fetch: Receiver<Fetch>,
    /// Those rows. The relay takes from here always: it may have no room *because* it waits for them.
    pub refetched: Sender<Batch>,
    /// Ends the poller.
    pub stop: CancellationToken,
}

/// A poller over its own connection.
#[derive(Debug)]
pub struct Poller {
    client: Client,
    statements: Statements,
    settings: Settings,
    ends: Ends,
    /// P in memory: all that is visible in it was handed to the relay.
    frontier: Frontier,
    next_window: u64,
}

/// The relay or the session has ended.
struct Over;

impl Poller {
    /// Sets the session up on `client` and starts from `position`, which is the cursor row's.
    ///
    /// # Errors
    /// SQL.
    pub async fn new(
        client: Client,
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
        Ok(Poller {
            client,
            statements,
            settings,
            ends,
            frontier: Frontier::stored(position, floor_seq),
            next_window: 1,
        })
    }

    /// Polls until it is stopped or the relay is gone.
    ///
    /// # Errors
    /// SQL.
    pub async fn run(mut self, position: &Position) -> Result<(), PageError> {
        if let Some(stored) = &position.window {
            let window = Arc::new(self.frontier.resume(self.next_window, stored));
            self.next_window += 1;
            if self.read_pages(&window, window.after_seq).await?.is_err() {
                return Ok(());
            }
        }
        let poll = self.settings.poll.clone();
        let mut interval = poll.busy_interval;
        loop {
            let found = match self.read_window().await? {
                Ok(found) => found,
                Err(Over) => return Ok(()),
            };
            interval = if found { poll.busy_interval } else { (interval * 2).min(poll.idle_interval) };
            if self.pause(interval).await?.is_err() {
                return Ok(());
            }
        }
    }

    /// Opens a window and reads it whole. Did it hold rows?
    async fn read_window(&mut self) -> Result<Result<bool, Over>, PageError> {
        let rows = self.page(None, 0).await?;
        let opening = Opening {
            upper: Arc::new(rows.head.upper.clone()),
            max_seq: rows.head.max_seq,
            floor_seq: rows.head.floor_seq,
            ceil: rows.head.last_seq,
        };
        let window = Arc::new(self.frontier.open(self.next_window, opening));
        self.next_window += 1;
        let found = !rows.events.is_empty();
        let after_seq = rows.events.last().map(|e| e.seq);
        let full = rows.full;
        if self.hand_over(rows, &window).await?.is_err() {
            return Ok(Err(Over));
        }
        match (full, after_seq) {
            (true, Some(after_seq)) => {
                if self.read_pages(&window, after_seq).await?.is_err() {
                    return Ok(Err(Over));
                }
            }
            _ => self.frontier.close(&window),
        }
        Ok(Ok(found))
    }

    /// Reads a window from `after_seq` to its end.
    async fn read_pages(
        &mut self,
        window: &Arc<Window>,
        mut after_seq: Seq,
    ) -> Result<Result<(), Over>, PageError> {
        loop {
            let rows = self.page(Some((&window.upper, window.ceil)), after_seq).await?;
            after_seq = rows.events.last().map_or(after_seq, |e| e.seq);
            let full = rows.full;
            if self.hand_over(rows, window).await?.is_err() {
                return Ok(Err(Over));
            }
            if !full {
                self.frontier.close(window);
                return Ok(Ok(()));
            }
        }
    }

    async fn page(&self, window: Option<(&Snapshot, Seq)>, after_seq: Seq) -> Result<PageRows, PageError> {
        let request = Request {
            pipeline: &self.settings.pipeline,
            from: &self.frontier.snapshot,
            window,
            after_seq,
            prune_seq: self.frontier.prune_seq,
            floor_seq: self.frontier.floor_seq,
            rows_max: i64::from(self.settings.poll.batch),
            bytes_max: self.settings.page_bytes,
        };
        self.statements.page(&self.client, &request).await
    }

    /// Sends a page to the relay once it is durable. Waits while the relay has no room.
    async fn hand_over(
        &mut self,
        rows: PageRows,
        window: &Arc<Window>,
    ) -> Result<Result<(), Over>, PageError> {
        let PageRows { head, events, full } = rows;
        let seqs = events.iter().map(|e| e.seq).collect::<Vec<_>>();
        if !events.is_empty() {
            self.wait_until_durable(&head).await?;
            let batch = Batch { via: Via::Poll, events };
            if self.send(Input::Rows(batch)).await?.is_err() {
                return Ok(Err(Over));
            }
        }
        self.send(Input::Page(Page { window: window.clone(), seqs, last: !full })).await
    }

    /// Sends to the relay when it has room, and serves its fetches meanwhile.
    async fn send(&mut self, input: Input) -> Result<Result<(), Over>, PageError> {
        let sender = self.ends.input.clone();
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Ok(Err(Over)),
                Some(fetch) = self.ends.fetch.recv() => if self.serve(fetch).await?.is_err() {
                    return Ok(Err(Over));
                },
                permit = sender.reserve() => return Ok(match permit {
                    Ok(permit) => {
                        permit.send(input);
                        Ok(())
                    }
                    Err(_) => Err(Over),
                }),
            }
        }
    }

    /// Waits until all WAL that was written when the page was read is on disk: what the page saw cannot be undone by a
    /// crash then. If nobody flushes, a commit of our own does; a transactional message is the smallest record that makes
    /// a commit flush, and leaves no row behind.
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
                tokio::time::sleep(FLUSH_LOOK_INTERVAL).await;
            } else {
                let flush = "SELECT pg_logical_emit_message(true, 'statecast', 'flush')";
                answered(self.client.batch_execute(flush)).await?;
            }
        }
        Ok(())
    }

    /// Reads rows that the relay asks for again.
    async fn serve(&self, fetch: Fetch) -> Result<Result<(), Over>, PageError> {
        let events = self.statements.fetch(&self.client, &fetch.seqs).await?;
        let batch = Batch { via: Via::Poll, events };
        Ok(self.ends.refetched.send(batch).await.map_err(|_| Over))
    }

    /// Waits for the next poll and serves the relay meanwhile.
    async fn pause(&mut self, interval: Duration) -> Result<Result<(), Over>, PageError> {
        let until = Instant::now() + interval;
        loop {
            tokio::select! {
                biased;
                () = self.ends.stop.cancelled() => return Ok(Err(Over)),
                fetch = self.ends.fetch.recv() => match fetch {
                    Some(fetch) => if self.serve(fetch).await?.is_err() { return Ok(Err(Over)) },
                    None => return Ok(Err(Over)),
                },
                () = sleep_until(until) => return Ok(Ok(())),
            }
        }
    }
}
