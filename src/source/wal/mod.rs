//! Logical replication: polling, plus a temporary slot whose stream runs ahead of it.
//!
//! The poller stays the truth: its windows move the cursor in every state, and no slot outlives its session.
//!
//! ```text
//! Off ──caught up──▶ Creating ──slot──▶ Barrier ──caught up with P──▶ Live
//!  ▲                    │                  │                           │
//!  └──── back-off ◀─────┴──────────────────┴─── ended, lagging, missed ┘
//! ```
//!
//! - *Off*: polls. *Creating*: polls while the server waits for open write transactions.
//! - *Barrier*: the slot exists, then a transaction id x0 is assigned. The stream is read, but what was not polled is held
//!   back until a window was handed over whole whose snapshot has xmin ≥ x0: only then can nothing older than a streamed
//!   event still be on its way to the same key. (A commit before the slot's start may be invisible for long, while it
//!   waits for its standby.)
//! - *Live*: streams, and lists at each `reconcile_interval` what the stream should have brought (`reconcile`).
//!
//! Whatever goes wrong with a stream ends the stream only. A failure of SQL ends the session.

mod attempts;
mod ended;
pub mod facts;
pub mod names;
mod reconcile;
mod running;
pub mod slot;
mod stages;
pub mod standby_names;
mod stream;
mod watchdog;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::config;
use crate::contract::{Lsn, Missing, Position};
use crate::event::Seq;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::poll::next_interval;
use crate::source::poll::page::{PageError, answered};
use crate::source::poll::reader::{Halt, Reader, Step};
use attempts::Attempts;
use facts::Obstacle;
use slot::HolderCell;
use stages::Stage;

/// The poller has caught up when it reads a window in less than this.
const CAUGHT_UP: Duration = Duration::from_secs(1);
/// With nothing heard for this long, WAL that nobody flushes may be what the stream waits for.
const QUIET: Duration = Duration::from_millis(200);
/// At the end of a session, for slot and walsender to be gone.
const TAKE_DOWN_LIMIT: Duration = Duration::from_secs(4);
/// Component of `/ready`.
const HEALTH: &str = "wal";

/// What the source is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Pipeline.
    pub pipeline: String,
    /// How to connect for replication.
    pub postgres: config::Postgres,
    /// Mode, intervals, limits.
    pub source: config::Source,
    /// Bytes of a batch.
    pub batch_bytes_max: usize,
    /// Bytes of an event that the broker takes, at most.
    pub event_bytes_max: u64,
}

/// The source's ends of the channels that only streaming has.
#[derive(Debug)]
pub struct Ends {
    /// The relay's answers to listed pages.
    pub missing: Receiver<Missing>,
    /// Up to where everything streamed is settled.
    pub settled: watch::Receiver<Lsn>,
}

/// Why a source ends.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// SQL.
    #[error(transparent)]
    Page(#[from] PageError),
    /// `source.mode = "wal"`, and the server does not allow it.
    #[error("source.mode = \"wal\": {0}")]
    Obstacle(Obstacle),
}

/// See the module head.
#[derive(Debug)]
pub struct Source {
    reader: Reader,
    settings: Settings,
    application_name: String,
    ends: Ends,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stage: Stage,
    attempts: Attempts,
    /// The last walsender that was started, until it is known to be gone.
    holder: Option<HolderCell>,
    /// For the next window: see [`crate::contract::Batch::late`].
    late: Option<Seq>,
    streams: u64,
}

impl Source {
    /// A source over a reader that has read nothing yet.
    pub fn new(
        reader: Reader,
        settings: Settings,
        ends: Ends,
        metrics: Arc<Metrics>,
        health: Arc<Health>,
    ) -> Self {
        Source {
            reader,
            application_name: names::application_name(&settings.pipeline),
            settings,
            ends,
            metrics,
            health,
            stage: Stage::Off,
            attempts: Attempts::new(),
            holder: None,
            late: None,
            streams: 0,
        }
    }

    /// Polls, and streams where it can, until the session is over or the relay is gone. No slot is left behind.
    ///
    /// # Errors
    /// SQL; in mode `wal` also what a person must change on the server.
    pub async fn run(mut self, position: &Position) -> Result<(), SourceError> {
        if self.settings.source.mode == config::Mode::Wal {
            let facts = self.facts().await?;
            let mut obstacles = facts.obstacles(&self.application_name).into_iter();
            if let Some(obstacle) = obstacles.find(Obstacle::is_permanent) {
                return Err(SourceError::Obstacle(obstacle));
            }
        }
        let halt = match self.go_on(position).await {
            Ok(never) => match never {},
            Err(halt) => halt,
        };
        self.take_down().await;
        match halt {
            Halt::Over => Ok(()),
            // The next session begins with polling, which reads them or finds the gap.
            Halt::Failed(PageError::RowsGone { missing, first }) if self.streams > 0 => {
                Err(PageError::StreamedRowsGone { missing, first }.into())
            }
            Halt::Failed(error) => Err(error.into()),
        }
    }

    async fn go_on(&mut self, position: &Position) -> Step<Infallible> {
        self.reader.resume(position).await?;
        let poll = self.settings.source.poll.clone();
        let mut interval = poll.busy_interval;
        loop {
            if matches!(self.stage, Stage::Live(_)) {
                self.live().await?;
                interval = poll.busy_interval;
                continue;
            }
            let began = Instant::now();
            let read = self.reader.read_window(self.late).await?;
            self.late = None;
            self.advance(&read, began.elapsed() < CAUGHT_UP).await?;
            interval = next_interval(interval, read.found, &poll);
            self.reader.serving(sleep(interval)).await?;
        }
    }

    async fn facts(&self) -> Result<facts::Facts, PageError> {
        let publication = &self.settings.source.wal.publication;
        answered(facts::look(self.reader.client(), publication, &self.application_name)).await
    }

    /// The session is over: nothing may stay on the server.
    async fn take_down(&mut self) {
        if let Some(running) = std::mem::replace(&mut self.stage, Stage::Off).into_running() {
            running.stop().await;
        }
        self.show_nothing();
        self.health.clear_reason(HEALTH);
        let Some(holder) = self.holder.as_ref().and_then(|cell| cell.get()) else {
            return;
        };
        // Where SQL fails the server is going down, or the next leader ends what is left. The silence of this connection may
        // be what ends the session.
        match timeout(TAKE_DOWN_LIMIT, slot::end_and_wait(self.reader.client(), holder)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => tracing::warn!(slot = holder.slot, "the replication slot is still there"),
            Ok(Err(error)) => {
                tracing::debug!(slot = holder.slot, "cannot see to the replication slot: {error}");
            }
            Err(_) => tracing::warn!(slot = holder.slot, "cannot see to the replication slot: no answer"),
        }
    }

    /// The gauges of a stream, without one.
    fn show_nothing(&self) {
        self.metrics.wal_streaming.set(0);
        self.metrics.wal_retained_bytes.set(0);
        self.metrics.wal_lag_seconds.set(0.0);
    }
}
