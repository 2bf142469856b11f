//! `statecast run`: the relay with its probes, metrics and console, until a signal.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::app::{self, Options};
use crate::config::Config;
use crate::console::Console;
use crate::health::{Health, Role};
use crate::metrics::Metrics;
use crate::postgres::describe;
use crate::store::cursor::Start;
use crate::{console, http, logging, spans, switches};

/// How often the runtime says that it is alive.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Options of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// End when everything that was committed at the start is settled
    #[arg(long)]
    until_idle: bool,
    /// Where a new pipeline starts; an existing one goes on where it is
    #[arg(long, value_enum, default_value_t = From::Oldest, value_name = "WHERE")]
    from: From,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum From {
    /// At the oldest event that is still there
    Oldest,
    /// After everything that is committed now
    Now,
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let config = Arc::new(context.load()?);
    logging::init(&config.log).map_err(|e| anyhow::anyhow!(e))?;
    switches::announce().map_err(|e| anyhow::anyhow!(e))?;
    let stop = stop_on_signals()?;
    let start = match args.from {
        From::Oldest => Start::Oldest,
        From::Now => Start::Now,
    };
    let service = Service::start(config, Options { until_idle: args.until_idle, start })?;
    let result = app::run(service.context.clone(), stop).await;
    service.end();
    Ok(result?)
}

/// A relay's surroundings: probes, metrics, console, tracing, heartbeat.
pub(super) struct Service {
    /// What sessions share.
    pub(super) context: app::Context,
    /// Probes and metrics.
    pub(super) http: http::Server,
    /// The web console, unless it is off or its port cannot be had.
    pub(super) console: Option<Console>,
    /// Tracing, where that is configured.
    spans: Option<spans::Exporter>,
    quiet: CancellationToken,
}

impl Service {
    pub(super) fn start(config: Arc<Config>, options: Options) -> anyhow::Result<Service> {
        let (metrics, health) = (Metrics::new(&config.name), Health::new());
        let quiet = CancellationToken::new();
        let listen = config.http.listen;
        let listener = http::bind(listen).with_context(|| {
            format!("cannot listen on {listen} (http.listen): is another relay running here?")
        })?;
        let http = http::start(listener, health.clone(), metrics.clone(), quiet.clone())
            .context("cannot serve probes and metrics")?;
        // A console never keeps events from flowing.
        let console = console::start(&config, health.clone(), metrics.clone(), quiet.clone());
        let console = console.unwrap_or_else(|error| {
            tracing::warn!(
                "the relay goes on without its web console: {}; give it another port (console.listen) or say \"off\"",
                describe(&error)
            );
            None
        });
        let spans = spans::start(&config, &metrics.spans, &metrics.spans_exported, quiet.clone());
        let (beating, over) = (health.clone(), quiet.clone());
        tokio::spawn(async move {
            while !over.is_cancelled() {
                beating.beat();
                tokio::time::sleep(BEAT_INTERVAL).await;
            }
        });
        Ok(Service {
            context: app::Context { config, options, metrics, health },
            http,
            console,
            spans,
            quiet,
        })
    }

    /// Waits until the relay leads.
    pub(super) async fn wait_until_leading(&self, limit: Duration) -> anyhow::Result<()> {
        let leading = async {
            while self.context.health.role() != Role::Leader {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(limit, leading).await.is_err() {
            let reasons: Vec<String> =
                self.context.health.report().reasons.into_iter().map(|r| r.text).collect();
            bail!("the relay did not start: {}", reasons.join("; "));
        }
        Ok(())
    }

    /// Ends probes, metrics, console and tracing: last, so that they can be read while the relay drains.
    pub(super) fn end(self) {
        self.quiet.cancel();
        self.spans.into_iter().for_each(spans::Exporter::join);
        self.console.into_iter().for_each(Console::join);
        self.http.join();
    }
}

/// Cancelled by SIGINT or SIGTERM. A second signal does not hurry it: `shutdown.grace` bounds it anyway.
pub(super) fn stop_on_signals() -> std::io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let mut signals = signal(kind)?;
        let stop = stop.clone();
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                tracing::info!("stopping");
                stop.cancel();
            }
        });
    }
    Ok(stop)
}
