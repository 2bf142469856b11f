//! Builds the parts and runs sessions, one after another, until it is stopped or cannot go on.
//!
//! A *session* is one run over its connections ([`session`]). When one fails, [`classify`] says whether trying again can
//! help; if so the next one starts from the cursor after a back-off. There is no other recovery path.

pub mod classify;
pub mod kinds;
mod lead;
pub mod session;
mod standby;
pub mod upkeep;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::{Health, Role};
use crate::metrics::Metrics;
use crate::relay::{Ended, Ledger};
use crate::store::cursor::Start;
use crate::tls;
use classify::{Class, SessionError, kind};

/// First pause between sessions.
const BACK_OFF_MIN: Duration = Duration::from_millis(200);
/// Longest pause between sessions.
const BACK_OFF_MAX: Duration = Duration::from_secs(15);
/// A session that lived this long was a good one: the back-off starts anew.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// What `run` is asked for besides the configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// End when everything that was there at the start is settled.
    pub until_idle: bool,
    /// Where a new pipeline starts.
    pub start: Start,
}

/// What every session shares.
#[derive(Clone)]
pub struct Context {
    /// Configuration.
    pub config: Arc<Config>,
    /// Options.
    pub options: Options,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Readiness.
    pub health: Arc<Health>,
}

/// Runs the relay until `stop`, until `until_idle` is reached, or until an error that cannot heal.
///
/// # Errors
/// An error of class [`Class::Permanent`].
pub async fn run(context: Context, stop: CancellationToken) -> Result<(), SessionError> {
    let mut ledger = Ledger::default();
    let mut pauses = back_off();
    let mut careful = false;
    set_tls_expiry(&context);
    set_limits(&context);
    loop {
        let began = Instant::now();
        let ended = session::run(&context, &mut ledger, careful, &stop).await;
        context.metrics.leader.set(0);
        let error = match ended {
            Ok(Ended::Stopped | Ended::Idle) => {
                context.metrics.sessions.stopped.inc();
                return Ok(());
            }
            Ok(Ended::PeerGone(peer)) => SessionError::PeerGone(peer),
            Err(error) => error,
        };
        careful = matches!(&error, SessionError::Sink(sink) if sink.is_about_a_message());
        let text = crate::postgres::describe(&error);
        context.health.set_role(Role::Starting);
        context.health.set_reason("session", &text);
        if stop.is_cancelled() {
            context.metrics.sessions.stopped.inc();
            return Ok(());
        }
        let kind = kind(&error).row();
        match kind.class {
            Class::Permanent => {
                context.metrics.sessions.permanent.inc();
                return Err(error);
            }
            Class::LeaseLost => context.metrics.sessions.lease_lost.inc(),
            Class::Transient => context.metrics.sessions.transient.inc(),
        }
        if began.elapsed() > GOOD_SESSION {
            pauses = back_off();
        }
        let pause = pauses.next().unwrap_or(BACK_OFF_MAX);
        tracing::warn!(kind = kind.name, retry_in_ms = pause.as_millis() as u64, "session ended: {text}");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

fn set_tls_expiry(context: &Context) {
    let config = &context.config;
    let expiries = [tls::not_after_s(&config.postgres.tls), tls::not_after_s(&config.rabbitmq.tls)];
    if let Some(first_s) = expiries.into_iter().flatten().min() {
        context.metrics.tls_not_after_seconds.set(first_s as f64);
    }
}

/// Alerts compare sizes with what is configured.
fn set_limits(context: &Context) {
    let (config, metrics) = (&context.config, &context.metrics);
    let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
    metrics.wal_retain_max_bytes.set(gauge(config.source.wal.retain_max));
    metrics.outbox_max_size_bytes.set(gauge(config.retention.max_size));
}

fn back_off() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(BACK_OFF_MIN)
        // Jitter adds up to as much again.
        .with_max_delay(BACK_OFF_MAX / 2)
        .without_max_times()
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_are_bounded() {
        assert!(back_off().take(100).all(|pause| pause >= BACK_OFF_MIN && pause <= BACK_OFF_MAX));
    }

    #[test]
    fn limits_are_exported_as_configured() {
        let variables = [
            ("STATECAST_POSTGRES__URL", "postgres://relay@db:5432/app"),
            ("STATECAST_RABBITMQ__URLS", "amqp://relay@mq"),
            ("STATECAST_SOURCE__WAL__RETAIN_MAX", "64MiB"),
            ("STATECAST_RETENTION__MAX_SIZE", "3MiB"),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Arc::new(crate::config::load(None, variables).unwrap());
        let (metrics, health) = (Metrics::new("test"), Health::new());
        let context = Context { config, options: Options::default(), metrics, health };
        set_limits(&context);
        let text = context.metrics.encode();
        assert!(text.contains("statecast_wal_retain_max_bytes{pipeline=\"test\"} 67108864"), "{text}");
        assert!(text.contains("statecast_outbox_max_size_bytes{pipeline=\"test\"} 3145728"), "{text}");
    }
}
