//! What a stream should have brought, against what it did.
//!
//! One statement takes a snapshot S, the end L of the WAL, and the rows of [P, S). Everything that S sees committed
//! before L; so once the stream has passed L, in the same queue as its rows, each of those rows stands in the relay's books.
//! The relay is asked page by page. One missing row ends the stream: the order of a key rests on the stream being whole.
//! The rest of the window is then read by polling, and so is a window that the stream does not reach in time. In every
//! case the window closes as a polled one does.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::ended::Ended;
use super::running::Running;
use super::stages::{Live, Stage};
use super::{QUIET, Source};
use crate::contract::{Input, Lsn, Page};
use crate::event::Seq;
use crate::source::poll::reader::{Halt, Step};

/// How often the server is asked how far it is.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Between two flushes of ours, while nothing moves.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

impl Source {
    /// Lists a window and has the relay compare. The stream goes on, or the window was read by polling.
    pub(super) async fn reconcile(&mut self, live: Live) -> Step<()> {
        let mut listing = self.reader.list(None, 0).await?;
        let window = self.reader.open(&listing.head);
        if let Some(ended) = self.until_passed(&live.running, listing.head.insert_lsn).await? {
            let late = self.end(live.running, live.watchdog, ended).await?;
            return self.reader.read_pages(&window, 0, late).await;
        }
        let mut after_seq = 0;
        loop {
            let (seqs, last) = (std::mem::take(&mut listing.seqs), !listing.full);
            let to_seq = seqs.last().copied().unwrap_or(after_seq);
            self.reader.send(Input::Listed(Page { window: window.clone(), seqs, last })).await?;
            let missing = self.reader.serving(self.ends.missing.recv()).await?.ok_or(Halt::Over)?;
            if !missing.seqs.is_empty() {
                tracing::warn!(
                    first = missing.seqs.first(),
                    "the stream did not bring what is in the outbox"
                );
                self.end(live.running, live.watchdog, Ended::Missed(missing.seqs.len())).await?;
                return self.reader.read_pages(&window, after_seq, Some(Seq::MAX)).await;
            }
            if last {
                break;
            }
            after_seq = to_seq;
            listing = self.reader.list(Some(&window), after_seq).await?;
        }
        self.reader.close(&window);
        self.stage = Stage::Live(live);
        Ok(())
    }

    /// Waits until the stream has passed `lsn`; what ends it instead, if something does.
    async fn until_passed(&mut self, running: &Running, lsn: Lsn) -> Step<Option<Ended>> {
        let lag_max = self.settings.source.wal.lag_max;
        let mut progress = running.watch();
        let (mut lag, mut last) = (Duration::ZERO, Instant::now());
        let (mut reached, mut moved_at) = (0, last);
        let mut flush_at = last;
        loop {
            let now = Instant::now();
            let found = *progress.borrow_and_update();
            if found.passed >= lsn {
                self.metrics.wal_lag_seconds.set(0.0);
                return Ok(None);
            }
            if running.over().is_cancelled() {
                return Ok(Some(Ended::Stopped));
            }
            // While the relay has no room the stream cannot be faster.
            if !found.blocked {
                lag += now - last;
            }
            last = now;
            self.metrics.wal_lag_seconds.set(lag.as_secs_f64());
            if lag > lag_max {
                return Ok(Some(Ended::Lagging(lag_max)));
            }
            if found.passed != reached {
                (reached, moved_at) = (found.passed, now);
            }
            // WAL that nobody flushes is not sent: rows of `synchronous_commit = off`, or none at all.
            if now - moved_at >= QUIET && now >= flush_at {
                self.reader.flush().await?;
                flush_at = now + FLUSH_INTERVAL;
            }
            running.ask();
            let passed = async {
                let _ = progress.wait_for(|p| p.passed >= lsn).await;
            };
            let over = running.over().clone();
            let waiting = async {
                tokio::select! {
                    () = passed => {}
                    () = over.cancelled() => {}
                }
            };
            // Elapsed or not: the loop looks again.
            let _ = self.reader.serving(timeout(ASK_INTERVAL, waiting)).await?;
        }
    }
}
