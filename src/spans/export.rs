//! The exporter: gathers records, sends them in requests, tries again for a while, and gives up what nobody takes.
//!
//! States: *gathering* (looks into the queue every [`GATHER`]); *sending* one request; *backing off* after a failure that may
//! heal, for at most [`RETRY_FOR`] per request, while the queue fills and the relay's newest records are dropped and counted.
//! At the end of the process what is in the queue has [`FLUSH`]. It fails by counting: `spans_dropped_total`, and one line in
//! the log a minute.

use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use prometheus::IntCounter;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Failure, Taken};
use super::context::Share;
use super::record::{Record, Spans};
use super::shape::Shape;
use crate::config::{Config, Otel};

/// How long records gather: the relay wakes nobody.
const GATHER: Duration = Duration::from_millis(100);
/// Records of one request, at most: two spans of about half a kilobyte each.
const BATCH: usize = 512;
/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(15);
/// A request that nobody has taken for so long is given up.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// For what is left at the end.
const FLUSH: Duration = Duration::from_secs(2);
/// Between two lines in the log about failures.
const COMPLAIN: Duration = Duration::from_secs(60);

/// The exporter's thread.
#[derive(Debug)]
pub struct Exporter {
    thread: JoinHandle<()>,
}

impl Exporter {
    /// Waits until it has ended: 2 seconds at most after its token was cancelled.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread that exports spans panicked");
        }
    }
}

/// Starts to export what is left in `spans` until `stop`, if `otel.endpoint` says where to, and counts in `exported` what a
/// collector took. A relay goes on without, and the log says why.
pub fn start(
    config: &Config,
    spans: &Spans,
    exported: &IntCounter,
    stop: CancellationToken,
) -> Option<Exporter> {
    let otel = config.otel.as_ref()?;
    match try_start(config, otel, spans, exported, stop) {
        Ok(exporter) => Some(exporter),
        Err(why) => {
            tracing::warn!("the relay goes on without tracing: {why}");
            None
        }
    }
}

fn try_start(
    config: &Config,
    otel: &Otel,
    spans: &Spans,
    exported: &IntCounter,
    stop: CancellationToken,
) -> Result<Exporter, String> {
    let client = Client::new(otel).map_err(|error| crate::postgres::describe(&error))?;
    let at = client.at();
    let queue = spans.enable(Share::new(otel.sample)).ok_or("spans are exported already")?;
    let export = Export {
        queue,
        shape: Shape::new(config, otel),
        client,
        exported: exported.clone(),
        dropped: spans.dropped.clone(),
        failing: false,
        complained_at: None,
        rest_until: None,
    };
    let thread = std::thread::Builder::new()
        .name("statecast-spans".into())
        .spawn(move || run(export, stop))
        .map_err(|error| error.to_string())?;
    tracing::info!(%at, sample = otel.sample, "spans of events are exported");
    Ok(Exporter { thread })
}

/// The thread.
fn run(export: Export, stop: CancellationToken) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    match runtime {
        Ok(runtime) => {
            runtime.block_on(export.run(stop));
            // A lookup of the collector's name may take longer than anybody waits.
            runtime.shutdown_background();
        }
        Err(error) => tracing::warn!("the relay goes on without tracing: {error}"),
    }
}

struct Export {
    queue: Receiver<Record>,
    shape: Shape,
    client: Client,
    exported: IntCounter,
    dropped: IntCounter,
    /// It was said that requests fail, and not yet that they do not.
    failing: bool,
    complained_at: Option<Instant>,
    /// A request was given up: nothing more is sent before.
    rest_until: Option<Instant>,
}

impl Export {
    async fn run(mut self, stop: CancellationToken) {
        let late = async {
            stop.cancelled().await;
            sleep(FLUSH).await;
        };
        tokio::select! {
            () = late => {}
            () = self.work(&stop) => {}
        }
        let left: u64 = self.queue.try_iter().map(|record| record.spans()).sum();
        self.dropped.inc_by(left);
        let dropped = self.dropped.get();
        if dropped > 0 {
            tracing::warn!(dropped, "spans were not exported");
        }
    }

    /// Until nothing is left after `stop`.
    async fn work(&mut self, stop: &CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(GATHER) => {}
            }
            while self.send_batch(stop).await {}
        }
    }

    /// Sends what the queue holds, one request at most; `false`: it held nothing.
    async fn send_batch(&mut self, stop: &CancellationToken) -> bool {
        let records: Vec<Record> = self.queue.try_iter().take(BATCH).collect();
        if records.is_empty() {
            return false;
        }
        let (request, spans) = self.shape.request(&records);
        drop(records);
        // Counted when it is dropped, so that what the end cuts off is not forgotten.
        let pending = Pending { spans, dropped: self.dropped.clone() };
        if let Some(taken) = self.send(request.into(), stop).await {
            let rejected = taken.rejected.min(spans);
            pending.decided(rejected);
            self.exported.inc_by(spans - rejected);
            if rejected > 0 {
                self.complain(&format!("it refused {rejected} of {spans} spans: {}", taken.why));
            }
        }
        true
    }

    /// Sends a request until it is taken; `None`: it is given up.
    async fn send(&mut self, request: Bytes, stop: &CancellationToken) -> Option<Taken> {
        if let Some(at) = self.rest_until.take() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(at.saturating_duration_since(Instant::now())) => {}
            }
        }
        let began = Instant::now();
        let mut pauses = pauses();
        loop {
            let Failure { text, again, after } = match self.client.post(request.clone()).await {
                Ok(taken) => {
                    self.recovered();
                    return Some(taken);
                }
                Err(failure) => failure,
            };
            self.complain(&text);
            let pause = after.unwrap_or_default().max(pauses.next().unwrap_or(PAUSE_MAX));
            if !again || began.elapsed() + pause > RETRY_FOR || stop.is_cancelled() {
                // The next one is not asked of a collector that just said no, or not yet.
                self.rest_until = Some(Instant::now() + pause);
                return None;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn complain(&mut self, why: &str) {
        if self.complained_at.is_some_and(|at| at.elapsed() < COMPLAIN) {
            return;
        }
        self.complained_at = Some(Instant::now());
        self.failing = true;
        let (at, dropped) = (self.client.at(), self.dropped.get());
        tracing::warn!(
            dropped,
            "spans cannot be exported to {at}: {why}; events flow on, look at otel.endpoint"
        );
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(dropped = self.dropped.get(), "spans are exported again");
        }
    }
}

/// Spans on their way. Whatever becomes of the request, what was not taken is counted once.
struct Pending {
    spans: u64,
    dropped: IntCounter,
}

impl Pending {
    /// The collector has taken all but `rejected`.
    fn decided(mut self, rejected: u64) {
        self.spans = rejected;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.dropped.inc_by(self.spans);
    }
}

fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(PAUSE_MIN)
        // Jitter adds up to as much again.
        .with_max_delay(PAUSE_MAX / 2)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded() {
        assert!(pauses().take(100).all(|pause| pause >= PAUSE_MIN && pause <= PAUSE_MAX));
    }

    #[test]
    fn what_was_not_taken_is_counted_once() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let pending = || Pending { spans: 10, dropped: dropped.clone() };
        drop(pending());
        assert_eq!(dropped.get(), 10);
        pending().decided(0);
        assert_eq!(dropped.get(), 10);
        pending().decided(3);
        assert_eq!(dropped.get(), 13);
    }
}
