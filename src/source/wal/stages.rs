//! How a stream comes to be, and how it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::attempts::GOOD_STREAM;
use super::ended::Ended;
use super::facts::Obstacle;
use super::running::{Parts, Running};
use super::slot::{self, Created, Creation};
use super::stream::Gate;
use super::watchdog::{Limits, Watchdog};
use super::{HEALTH, QUIET, Settings, Source};
use crate::config;
use crate::contract::Lsn;
use crate::event::{Seq, Xid};
use crate::source::poll::page::answered;
use crate::source::poll::reader::{Read, Step};

/// From a slot to a stream, at most: the barrier waits for open write transactions.
const BARRIER_LIMIT: Duration = Duration::from_secs(60);

/// Where a stream stands; see the head of [`super`].
#[derive(Debug)]
pub(super) enum Stage {
    Off,
    Creating(Creation, Watchdog),
    Barrier(Barrier),
    Live(Live),
}

impl Stage {
    pub(super) fn into_running(self) -> Option<Running> {
        match self {
            Stage::Off | Stage::Creating(..) => None,
            Stage::Barrier(Barrier { running, .. }) | Stage::Live(Live { running, .. }) => Some(running),
        }
    }
}

#[derive(Debug)]
pub(super) struct Barrier {
    running: Running,
    watchdog: Watchdog,
    began: Instant,
    /// Assigned after the slot existed, and complete.
    x0: Xid,
    /// What the stream has to pass to be as far as the poller.
    target: Lsn,
    target_at: Instant,
}

#[derive(Debug)]
pub(super) struct Live {
    pub(super) running: Running,
    pub(super) watchdog: Watchdog,
    began: Instant,
    reconcile_at: Instant,
}

impl Source {
    /// After each polled window: brings the stream one stage further, if it can be.
    pub(super) async fn advance(&mut self, read: &Read, caught_up: bool) -> Step<()> {
        match std::mem::replace(&mut self.stage, Stage::Off) {
            Stage::Off if caught_up && self.attempts.is_due() => self.attempt().await?,
            Stage::Off => {}
            Stage::Creating(creation, mut watchdog) => {
                if let Some(ended) = watchdog.verdict() {
                    self.off(&ended).await?;
                } else if creation.is_finished() {
                    match creation.finish().await {
                        Ok(created) => self.barrier(created, watchdog, read).await?,
                        Err(ended) => self.off(&ended).await?,
                    }
                } else if creation.is_overdue() {
                    let doing = "creating the replication slot";
                    self.off(&Ended::Waiting { doing, limit: slot::CREATE_LIMIT }).await?;
                } else {
                    self.stage = Stage::Creating(creation, watchdog);
                }
            }
            Stage::Barrier(barrier) => self.pass(barrier, read).await?,
            live @ Stage::Live(_) => self.stage = live,
        }
        Ok(())
    }

    /// Looks whether the server allows a stream, and has a slot created.
    async fn attempt(&mut self) -> Step<()> {
        if let Some(holder) = self.holder.as_ref().and_then(|cell| cell.get()) {
            answered(slot::end(self.reader.client(), holder)).await?;
            if !answered(slot::is_gone(self.reader.client(), holder)).await? {
                self.attempts.soon();
                return Ok(());
            }
        }
        self.holder = None;
        let mut obstacles = self.facts().await?.obstacles(&self.application_name);
        if !obstacles.is_empty() {
            // With `auto`, a server that is not made for streaming is polled, and nothing is wrong with that.
            let is_news = self.settings.source.mode == config::Mode::Wal
                || !obstacles.iter().any(Obstacle::is_permanent);
            self.say(&Ended::Obstacle(obstacles.swap_remove(0)), is_news);
            return Ok(());
        }
        let Settings { postgres, pipeline, event_bytes_max, source, .. } = &self.settings;
        let creation = Creation::start(postgres.clone(), pipeline, *event_bytes_max);
        self.holder = Some(Arc::clone(creation.holder()));
        let limits = Limits {
            application_name: self.application_name.clone(),
            publication: source.wal.publication.clone(),
            retain_max: source.wal.retain_max,
            interval: source.wal.reconcile_interval,
        };
        let client = Arc::clone(self.reader.client());
        let holder = Arc::clone(creation.holder());
        let watchdog = Watchdog::start(client, holder, limits, Arc::clone(&self.metrics));
        self.stage = Stage::Creating(creation, watchdog);
        Ok(())
    }

    /// The slot exists: assigns x0 and starts to read, behind a closed gate.
    async fn barrier(&mut self, created: Created, watchdog: Watchdog, read: &Read) -> Step<()> {
        let client = Arc::clone(self.reader.client());
        if !answered(slot::is_here(&client, &created.holder)).await? {
            return self.off(&Ended::OtherServer).await;
        }
        let row = answered(client.query_one("SELECT pg_current_xact_id()::text", &[])).await?;
        // Of what is no number nothing is ever old enough: the barrier runs into its limit.
        let x0 = row.try_get::<_, &str>(0)?.parse().unwrap_or(Xid::MAX);
        self.streams += 1;
        let polled = Arc::clone(&self.reader.frontier().snapshot);
        let parts = Parts {
            number: self.streams,
            publication: &self.settings.source.wal.publication,
            batch_bytes_max: self.settings.batch_bytes_max,
            input: self.reader.input().clone(),
            settled: self.ends.settled.clone(),
            client,
            standbys: watchdog.standbys(),
        };
        let running = Running::start(created, Gate { open: false, polled }, parts);
        let now = Instant::now();
        let (target, target_at) = (read.insert_lsn, now);
        self.stage = Stage::Barrier(Barrier { running, watchdog, began: now, x0, target, target_at });
        Ok(())
    }

    /// A window was handed over whole while the gate was closed.
    async fn pass(&mut self, mut barrier: Barrier, read: &Read) -> Step<()> {
        let ended = if barrier.running.over().is_cancelled() {
            Some(Ended::Stopped)
        } else if barrier.began.elapsed() > BARRIER_LIMIT {
            Some(Ended::Waiting { doing: "the barrier behind the new slot", limit: BARRIER_LIMIT })
        } else {
            None
        };
        if let Some(ended) = ended {
            return self.end(barrier.running, barrier.watchdog, ended).await.map(|_| ());
        }
        let polled = Arc::clone(&self.reader.frontier().snapshot);
        let crossed = polled.xmin >= barrier.x0;
        let progress = barrier.running.progress();
        let caught_up = progress.held || progress.passed >= barrier.target;
        let open = crossed && caught_up;
        barrier.running.set_gate(Gate { open, polled });
        if open {
            self.stage = Stage::Live(self.go_live(barrier));
            return Ok(());
        }
        if caught_up {
            (barrier.target, barrier.target_at) = (read.insert_lsn, Instant::now());
        } else {
            barrier.running.ask();
            if barrier.target_at.elapsed() > QUIET {
                self.reader.flush().await?;
                barrier.target_at = Instant::now();
            }
        }
        self.stage = Stage::Barrier(barrier);
        Ok(())
    }

    fn go_live(&self, barrier: Barrier) -> Live {
        let Barrier { running, watchdog, .. } = barrier;
        tracing::info!(slot = running.slot(), "streaming");
        self.metrics.wal_streaming.set(1);
        self.health.clear_reason(HEALTH);
        let began = Instant::now();
        Live { running, watchdog, began, reconcile_at: began + self.settings.source.wal.reconcile_interval }
    }

    /// While streaming: waits for the next reconcile, or for the stream to end.
    pub(super) async fn live(&mut self) -> Step<()> {
        let Stage::Live(live) = &self.stage else {
            return Ok(());
        };
        let (over, at) = (live.running.over().clone(), live.reconcile_at);
        let waiting = async {
            tokio::select! {
                () = over.cancelled() => {}
                () = sleep_until(at) => {}
            }
        };
        self.reader.serving(waiting).await?;
        let Stage::Live(mut live) = std::mem::replace(&mut self.stage, Stage::Off) else {
            return Ok(());
        };
        if live.running.over().is_cancelled() {
            return self.end(live.running, live.watchdog, Ended::Stopped).await.map(|_| ());
        }
        live.reconcile_at = Instant::now() + self.settings.source.wal.reconcile_interval;
        if live.began.elapsed() > GOOD_STREAM {
            self.attempts.reset();
        }
        if let Some(ended) = live.watchdog.verdict() {
            return self.end(live.running, live.watchdog, ended).await.map(|_| ());
        }
        self.reconcile(live).await
    }

    /// Ends a stream, whatever it does. Returns what [`crate::contract::Batch::late`] is for the rows that it should have
    /// brought, and keeps the same for the next window: what it left out may have committed after the last listing.
    pub(super) async fn end(
        &mut self,
        running: Running,
        mut watchdog: Watchdog,
        found: Ended,
    ) -> Step<Option<Seq>> {
        let progress = running.watch();
        let own = running.stop().await;
        // That it had ended says less than why.
        let ended = match found {
            Ended::Stopped => watchdog.verdict().or(own).unwrap_or(found),
            found => found,
        };
        let max_seq = progress.borrow().max_seq;
        self.late = ended.may_have_skipped().then_some(max_seq.saturating_add(1));
        self.off(&ended).await?;
        Ok(self.late)
    }

    /// No stream for now. The walsender is told to end: one that waits inside the creation of its slot would not notice
    /// that nobody wants it. That it has ended is seen to before the next one is started, or at the end of the session.
    async fn off(&mut self, ended: &Ended) -> Step<()> {
        self.stage = Stage::Off;
        self.say(ended, true);
        if let Some(holder) = self.holder.as_ref().and_then(|cell| cell.get()) {
            answered(slot::end(self.reader.client(), holder)).await?;
            if matches!(ended, Ended::Obstacle(Obstacle::SynchronousStandby(_))) {
                // Commits that waited for us are let go when a standby answers. One that has nothing new to answer does
                // so every 10 s (`wal_receiver_status_interval`): give it something, once we are not waited for.
                answered(slot::end_and_wait(self.reader.client(), holder)).await?;
                self.reader.flush().await?;
            }
        }
        Ok(())
    }

    /// Says why there is no stream, and when the next attempt is due. Worth a warning unless it is how things are.
    fn say(&mut self, ended: &Ended, is_news: bool) {
        self.show_nothing();
        let pause = self.attempts.failed();
        let text = crate::postgres::describe(ended);
        if self.attempts.is_new(&text) {
            if is_news {
                tracing::warn!(retry_in_ms = pause.as_millis() as u64, "not streaming, polling: {text}");
            } else {
                tracing::info!("not streaming, polling: {text}");
            }
        }
        if is_news {
            self.health.set_warning(HEALTH, format!("not streaming, polling: {text}"));
        }
    }
}
