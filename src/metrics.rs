//! Every metric: name, labels and help text, once.
//!
//! Labelled children are fields, because looking one up hashes its labels and takes a lock. All carry the label
//! `pipeline`. `docs/metrics.md` holds [`reference()`].

use std::collections::HashMap;
use std::sync::Arc;

use prometheus::core::Collector;
#[cfg(target_os = "linux")]
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::confirmed::Confirmed;
use crate::spans::Spans;

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds in seconds. With the last, unbounded one: 16 buckets, since each observation scans them.
const SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// Upper bounds in bytes, 256 B to 16 MiB.
const BYTES: [f64; 9] =
    [256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0];

/// Every metric of one pipeline.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// `events_read_total{via}`.
    pub events_read: EventsRead,
    /// `events_confirmed_total`.
    pub events_confirmed: IntCounter,
    /// `events_parked_total{reason}`.
    pub events_parked: EventsParked,
    /// `events_pending`.
    pub events_pending: IntGauge,
    /// `parked_events`.
    pub parked_events: IntGauge,
    /// `oldest_parked_age_seconds`.
    pub oldest_parked_age_seconds: Gauge,
    /// `keys_paused{reason}`.
    pub keys_paused: KeysPaused,
    /// `oldest_pending_age_seconds`.
    pub oldest_pending_age_seconds: Gauge,
    /// `recorded_to_confirm_seconds`.
    pub recorded_to_confirm_seconds: Histogram,
    /// `publish_confirm_seconds`.
    pub publish_confirm_seconds: Histogram,
    /// `event_size_bytes`.
    pub event_size_bytes: Histogram,
    /// `broker_returns_total`.
    pub broker_returns: IntCounter,
    /// `broker_nacks_total`.
    pub broker_nacks: IntCounter,
    /// `broker_blocked`: 0 or 1.
    pub broker_blocked: IntGauge,
    /// `window_in_use`.
    pub window_in_use: IntGauge,
    /// `sessions_total{outcome}`.
    pub sessions: Sessions,
    /// `leader`: 0 or 1.
    pub leader: IntGauge,
    /// `wal_streaming`: 0 or 1.
    pub wal_streaming: IntGauge,
    /// `wal_lag_seconds`.
    pub wal_lag_seconds: Gauge,
    /// `wal_retained_bytes`.
    pub wal_retained_bytes: IntGauge,
    /// `wal_retain_max_bytes`: the limit of `wal_retained_bytes`, as configured.
    pub wal_retain_max_bytes: IntGauge,
    /// `wal_missed_total`.
    pub wal_missed: IntCounter,
    /// `wal_spill_bytes_total`.
    pub wal_spill_bytes: IntCounter,
    /// `outbox_chunks`.
    pub outbox_chunks: IntGauge,
    /// `outbox_bytes`.
    pub outbox_bytes: IntGauge,
    /// `outbox_max_size_bytes`: what retention keeps `outbox_bytes` under, as configured.
    pub outbox_max_size_bytes: IntGauge,
    /// `tls_not_after_seconds`.
    pub tls_not_after_seconds: Gauge,
    /// `spans_exported_total`.
    pub spans_exported: IntCounter,
    /// The last confirmed events, one by one: for the console, not for Prometheus.
    pub confirmed: Confirmed,
    /// Events one by one, for tracing; with `spans_dropped_total`.
    pub spans: Spans,
}

/// `events_read_total{via}`.
#[derive(Debug)]
pub struct EventsRead {
    /// By a poll page.
    pub poll: IntCounter,
    /// By the stream.
    pub wal: IntCounter,
}

/// `events_parked_total{reason}`.
#[derive(Debug)]
pub struct EventsParked {
    /// No queue took it for too long.
    pub unroutable: IntCounter,
    /// Over a size limit.
    pub too_large: IntCounter,
    /// Cannot be encoded.
    pub invalid: IntCounter,
}

/// `keys_paused{reason}`.
#[derive(Debug)]
pub struct KeysPaused {
    /// The broker refused it.
    pub nack: IntGauge,
    /// No queue took it.
    pub returned: IntGauge,
}

/// `sessions_total{outcome}`.
#[derive(Debug)]
pub struct Sessions {
    /// Asked to stop, or idle under `--until-idle`.
    pub stopped: IntCounter,
    /// A failure that may heal: starts again.
    pub transient: IntCounter,
    /// A failure that cannot heal: the process ends.
    pub permanent: IntCounter,
    /// The lease was lost, or another relay leads.
    pub lease_lost: IntCounter,
}

impl Metrics {
    /// Registers everything, all zero.
    pub fn new(pipeline: &str) -> Arc<Metrics> {
        match Metrics::build(pipeline) {
            Ok(metrics) => Arc::new(metrics),
            // A test builds them all.
            Err(error) => unreachable!("names and labels are constants: {error}"),
        }
    }

    /// The text format of Prometheus, version 0.0.4.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics cannot be written");
        }
        text
    }

    fn build(pipeline: &str) -> prometheus::Result<Metrics> {
        let labels = HashMap::from([("pipeline".to_owned(), pipeline.to_owned())]);
        let registry = Registry::new_custom(None, Some(labels))?;
        let r = &registry;
        about_the_process(r)?;
        Ok(Metrics {
            events_read: EventsRead::register(r)?,
            events_confirmed: counter(r, "events_confirmed_total", "Events that the broker confirmed.")?,
            events_parked: EventsParked::register(r)?,
            events_pending: gauge(r, "events_pending", "Committed events that are not settled, estimated.")?,
            parked_events: gauge(r, "parked_events", "Events that are parked now, 10,000 at most.")?,
            oldest_parked_age_seconds: seconds(
                r,
                "oldest_parked_age_seconds",
                "Age of the oldest parked event.",
            )?,
            keys_paused: KeysPaused::register(r)?,
            oldest_pending_age_seconds: seconds(
                r,
                "oldest_pending_age_seconds",
                "Age of the oldest event read and not settled.",
            )?,
            recorded_to_confirm_seconds: histogram(
                r,
                "recorded_to_confirm_seconds",
                "From writing an event to its confirm.",
                &SECONDS,
            )?,
            publish_confirm_seconds: histogram(
                r,
                "publish_confirm_seconds",
                "From sending a message to its confirm.",
                &SECONDS,
            )?,
            event_size_bytes: histogram(r, "event_size_bytes", "Size of message bodies.", &BYTES)?,
            broker_returns: counter(r, "broker_returns_total", "Messages that no queue took.")?,
            broker_nacks: counter(r, "broker_nacks_total", "Messages that the broker refused.")?,
            broker_blocked: gauge(r, "broker_blocked", "1 while the broker has a memory or disk alarm.")?,
            window_in_use: gauge(r, "window_in_use", "Messages that wait for their confirm.")?,
            sessions: Sessions::register(r)?,
            leader: gauge(r, "leader", "1 while this process leads its pipeline.")?,
            wal_streaming: gauge(r, "wal_streaming", "1 while events are streamed.")?,
            wal_lag_seconds: seconds(
                r,
                "wal_lag_seconds",
                "How long the stream has been behind what was committed.",
            )?,
            wal_retained_bytes: gauge(r, "wal_retained_bytes", "WAL that the stream's slot retains.")?,
            wal_retain_max_bytes: gauge(
                r,
                "wal_retain_max_bytes",
                "`source.wal.retain_max`: with more, the stream is dropped.",
            )?,
            wal_missed: counter(
                r,
                "wal_missed_total",
                "Events that the stream should have brought and did not.",
            )?,
            wal_spill_bytes: counter(r, "wal_spill_bytes_total", "Bytes that decoding wrote to disk.")?,
            outbox_chunks: gauge(r, "outbox_chunks", "Chunks of the outbox that are attached.")?,
            outbox_bytes: gauge(r, "outbox_bytes", "Size of the outbox with its indexes.")?,
            outbox_max_size_bytes: gauge(
                r,
                "outbox_max_size_bytes",
                "`retention.max_size`: above it, settled chunks are dropped.",
            )?,
            tls_not_after_seconds: seconds(
                r,
                "tls_not_after_seconds",
                "Unix time at which the first of the certificates in postgres.tls and rabbitmq.tls ends; 0 without one.",
            )?,
            spans_exported: counter(r, "spans_exported_total", "Spans that a collector took.")?,
            spans: Spans::new(&counter(
                r,
                "spans_dropped_total",
                "Spans that were not exported: there was no room for them, or no collector took them.",
            )?),
            confirmed: Confirmed::default(),
            registry,
        })
    }
}

impl EventsRead {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        let help = "Events read from the outbox.";
        let [poll, wal] = counters(r, "events_read_total", help, "via", ["poll", "wal"])?;
        Ok(EventsRead { poll, wal })
    }
}

impl EventsParked {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        let help = "Events that were parked: they can never be published as they are, or no queue took them for too long.";
        let reasons = ["unroutable", "too_large", "invalid"];
        let [unroutable, too_large, invalid] = counters(r, "events_parked_total", help, "reason", reasons)?;
        Ok(EventsParked { unroutable, too_large, invalid })
    }
}

impl KeysPaused {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        let help =
            "Entities (nack) and routing keys (returned) that wait before the next try, set aside or not.";
        let [nack, returned] = gauges(r, "keys_paused", help, "reason", ["nack", "returned"])?;
        Ok(KeysPaused { nack, returned })
    }
}

impl Sessions {
    fn register(r: &Registry) -> prometheus::Result<Self> {
        let help = "Sessions that ended, by what ended them.";
        let outcomes = ["stopped", "transient", "permanent", "lease_lost"];
        let [stopped, transient, permanent, lease_lost] =
            counters(r, "sessions_total", help, "outcome", outcomes)?;
        Ok(Sessions { stopped, transient, permanent, lease_lost })
    }
}

/// Version, and what the system says about this process.
fn about_the_process(registry: &Registry) -> prometheus::Result<()> {
    let version = GaugeVec::new(opts("build_info", "Always 1; the label holds the version."), &["version"])?;
    register(registry, &version)?.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1.0);
    #[cfg(target_os = "linux")]
    registry.register(Box::new(ProcessCollector::for_self()))?;
    Ok(())
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("statecast")
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, metric: &C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric.clone())
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, &IntCounter::with_opts(opts(name, help))?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, &IntGauge::with_opts(opts(name, help))?)
}

fn seconds(registry: &Registry, name: &str, help: &str) -> prometheus::Result<Gauge> {
    register(registry, &Gauge::with_opts(opts(name, help))?)
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> prometheus::Result<Histogram> {
    let opts = HistogramOpts::from(opts(name, help)).buckets(buckets.to_vec());
    register(registry, &Histogram::with_opts(opts)?)
}

fn counters<const N: usize>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: [&str; N],
) -> prometheus::Result<[IntCounter; N]> {
    let family = register(registry, &IntCounterVec::new(opts(name, help), &[label])?)?;
    Ok(values.map(|value| family.with_label_values(&[value])))
}

fn gauges<const N: usize>(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    values: [&str; N],
) -> prometheus::Result<[IntGauge; N]> {
    let family = register(registry, &IntGaugeVec::new(opts(name, help), &[label])?)?;
    Ok(values.map(|value| family.with_label_values(&[value])))
}

/// All metrics as a markdown table: what `docs/metrics.md` holds.
pub fn reference() -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for family in Metrics::new("reference").registry.gather() {
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        let mut labels: Vec<String> = Vec::new();
        for metric in family.get_metric() {
            for pair in metric.get_label().iter().filter(|pair| pair.name() != "pipeline") {
                let value = match pair.name() {
                    "version" => "version".to_owned(),
                    name => format!("{name}=\"{}\"", pair.value()),
                };
                labels.push(format!("`{value}`"));
            }
        }
        let labels = labels.join(" ");
        table.push_str(&format!("| `{}` | {kind} | {labels} | {} |\n", family.name(), family.help()));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_there_from_the_start_and_carry_the_pipeline() {
        let metrics = Metrics::new("orders");
        let text = metrics.encode();
        for line in [
            "statecast_events_read_total{via=\"wal\",pipeline=\"orders\"} 0",
            "statecast_keys_paused{reason=\"returned\",pipeline=\"orders\"} 0",
            "statecast_leader{pipeline=\"orders\"} 0",
            "# TYPE statecast_recorded_to_confirm_seconds histogram",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains(&format!("version=\"{}\",pipeline=\"orders\"}} 1", env!("CARGO_PKG_VERSION"))));
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        assert!(samples.clone().all(|line| line.contains("pipeline=\"orders\"")), "{text}");
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes{pipeline=\"orders\"}"));
        for name in ["recorded_to_confirm_seconds", "publish_confirm_seconds", "event_size_bytes"] {
            let buckets =
                samples.clone().filter(|line| line.starts_with(&format!("statecast_{name}_bucket")));
            assert!((8..=16).contains(&buckets.count()), "{name}");
        }
    }

    #[test]
    fn fields_count() {
        let metrics = Metrics::new("orders");
        metrics.events_confirmed.inc_by(7);
        metrics.events_read.poll.inc();
        metrics.recorded_to_confirm_seconds.observe(0.02);
        metrics.oldest_pending_age_seconds.set(1.5);
        let text = metrics.encode();
        assert!(text.contains("statecast_events_confirmed_total{pipeline=\"orders\"} 7"));
        assert!(text.contains("statecast_events_read_total{via=\"poll\",pipeline=\"orders\"} 1"));
        assert!(
            text.contains("statecast_recorded_to_confirm_seconds_bucket{pipeline=\"orders\",le=\"0.025\"} 1")
        );
        assert!(text.contains("statecast_oldest_pending_age_seconds{pipeline=\"orders\"} 1.5"));
        assert!(!Metrics::new("other").encode().contains("orders"), "nothing is shared");
    }

    /// `UPDATE_DOCS=1 cargo test the_reference` writes the table.
    #[test]
    #[cfg(target_os = "linux")]
    fn the_reference_holds_all_names() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let start = text.find("| metric |").unwrap();
        let end = text[start..].find("\n\n").map_or(text.len(), |at| start + at + 1);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, format!("{}{}{}", &text[..start], reference(), &text[end..])).unwrap();
        } else {
            assert_eq!(text[start..end], reference(), "run this test with UPDATE_DOCS=1");
        }
    }
}
