//! Live figures: what the metrics say, once a second, for the last five minutes. Asks nobody, so they move whatever is away.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::Histogram;
use prometheus::core::Collector;
use serde::Serialize;
use tokio::time::MissedTickBehavior;

use crate::health::{Health, Report, Severity};
use crate::metrics::Metrics;

/// Between two samples.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);
/// Samples that are kept: five minutes.
pub(super) const KEPT: usize = 300;

/// One second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Rises by one with each.
    pub(super) n: u64,
    /// Events confirmed per second.
    pub(super) confirmed: f64,
    /// Events read per second.
    pub(super) read: f64,
    /// Milliseconds from writing to confirm within which half of the events of this second were; `None`: there were none.
    pub(super) p50_ms: Option<f64>,
    /// The same for 99 of 100.
    pub(super) p99_ms: Option<f64>,
    /// Not settled, estimated.
    pub(super) pending: i64,
}

/// Everything that changes without a question to PostgreSQL, as the page's script reads it.
#[derive(Debug, Serialize)]
pub(super) struct Now {
    pub(super) at_ms: u64,
    /// Which run of which process: samples of two do not belong into one plot.
    pub(super) run: String,
    /// It leads, so that its figures of what is pending, parked and in flight mean something.
    pub(super) leads: bool,
    pub(super) role: &'static str,
    pub(super) ready: bool,
    pub(super) reasons: Vec<Reason>,
    pub(super) mode: &'static str,
    pub(super) mode_reason: String,
    pub(super) confirmed_total: u64,
    pub(super) pending: i64,
    pub(super) oldest_pending_s: f64,
    pub(super) parked: i64,
    pub(super) keys_paused: i64,
    pub(super) window_in_use: i64,
    pub(super) blocked: bool,
    /// Latencies from here on are not measured: there it was longer.
    pub(super) latency_max_ms: f64,
    pub(super) samples: Vec<Sample>,
}

/// A line of `/ready`.
#[derive(Debug, Serialize)]
pub(super) struct Reason {
    pub(super) component: &'static str,
    pub(super) warning: bool,
    pub(super) text: String,
}

/// The samples and where they come from.
#[derive(Debug)]
pub(super) struct Live {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    /// `source.mode = "poll"`.
    polls_only: bool,
    samples: Mutex<VecDeque<Sample>>,
    run: String,
}

/// Counters as they were at the last sample.
#[derive(Debug)]
struct Before {
    confirmed: u64,
    read: u64,
    latency: Vec<(f64, u64)>,
}

impl Live {
    pub(super) fn new(metrics: Arc<Metrics>, health: Arc<Health>, polls_only: bool) -> Live {
        let run = format!("{:016x}", fastrand::u64(..));
        Live { metrics, health, polls_only, samples: Mutex::default(), run }
    }

    /// Takes a sample each second, for ever.
    pub(super) async fn run(&self) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = self.counters();
        let mut last = ticks.tick().await;
        for n in 1.. {
            let now = ticks.tick().await;
            let counters = self.counters();
            let passed_s = (now - last).as_secs_f64().max(0.001);
            self.keep(self.sample(n, &before, &counters, passed_s));
            (before, last) = (counters, now);
        }
    }

    fn counters(&self) -> Before {
        let metrics = &self.metrics;
        Before {
            confirmed: metrics.events_confirmed.get(),
            read: metrics.events_read.poll.get() + metrics.events_read.wal.get(),
            latency: buckets(&metrics.recorded_to_confirm_seconds),
        }
    }

    fn sample(&self, n: u64, before: &Before, now: &Before, passed_s: f64) -> Sample {
        let rate = |before: u64, now: u64| (now.saturating_sub(before)) as f64 / passed_s;
        let latency: Vec<(f64, u64)> = now
            .latency
            .iter()
            .zip(&before.latency)
            .map(|((bound, now), (_, before))| (*bound, now.saturating_sub(*before)))
            .collect();
        Sample {
            n,
            confirmed: rate(before.confirmed, now.confirmed),
            read: rate(before.read, now.read),
            p50_ms: quantile_ms(&latency, 0.5),
            p99_ms: quantile_ms(&latency, 0.99),
            pending: self.metrics.events_pending.get(),
        }
    }

    fn keep(&self, sample: Sample) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        if samples.len() >= KEPT {
            samples.pop_front();
        }
        samples.push_back(sample);
    }

    /// The state now, with the samples after `since` of that `run`: all of them, if it is another.
    pub(super) fn now(&self, since: u64, run: &str) -> Now {
        let Report { ready, role, reasons } = self.health.report();
        let metrics = &self.metrics;
        let (mode, mode_reason) = self.mode(&reasons);
        let reasons = reasons.into_iter().map(|reason| Reason {
            component: reason.component,
            warning: reason.severity == Severity::Warning,
            text: reason.text,
        });
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers of another run, or of another replica behind the same name: all are new.
        let since = if run == self.run { since } else { 0 };
        Now {
            at_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as u64),
            run: self.run.clone(),
            leads: metrics.leader.get() != 0,
            role: role.as_str(),
            ready,
            reasons: reasons.collect(),
            mode,
            mode_reason,
            confirmed_total: metrics.events_confirmed.get(),
            pending: metrics.events_pending.get(),
            oldest_pending_s: metrics.oldest_pending_age_seconds.get(),
            parked: metrics.parked_events.get(),
            keys_paused: metrics.keys_paused.nack.get() + metrics.keys_paused.returned.get(),
            window_in_use: metrics.window_in_use.get(),
            blocked: metrics.broker_blocked.get() != 0,
            latency_max_ms: latency_max_ms(&metrics.recorded_to_confirm_seconds),
            samples: samples.iter().filter(|sample| sample.n > since).cloned().collect(),
        }
    }

    /// How events are read, and why so.
    fn mode(&self, reasons: &[crate::health::Reason]) -> (&'static str, String) {
        if self.metrics.leader.get() == 0 {
            return ("not reading", "this process does not lead".to_owned());
        }
        if self.metrics.wal_streaming.get() != 0 {
            return ("streaming", "logical replication, checked by polling".to_owned());
        }
        let why = reasons.iter().find(|reason| reason.text.starts_with("not streaming"));
        let why = match why {
            Some(reason) => reason.text.clone(),
            None if self.polls_only => "source.mode = \"poll\"".to_owned(),
            None => {
                "no stream: the server does not allow one, or it is being started (see the log)".to_owned()
            }
        };
        ("polling", why)
    }
}

/// Upper bounds in seconds and how many are at or below each.
fn buckets(histogram: &Histogram) -> Vec<(f64, u64)> {
    let families = histogram.collect();
    let metric = families.first().and_then(|family| family.get_metric().first());
    let buckets = metric.map(|metric| metric.get_histogram().get_bucket().to_vec()).unwrap_or_default();
    let mut counts: Vec<(f64, u64)> =
        buckets.iter().map(|bucket| (bucket.upper_bound(), bucket.cumulative_count())).collect();
    counts.push((f64::INFINITY, histogram.get_sample_count()));
    counts
}

/// The last bound of a histogram, in milliseconds.
fn latency_max_ms(histogram: &Histogram) -> f64 {
    let bounds = buckets(histogram).into_iter().map(|(bound, _)| bound);
    bounds.filter(|bound| bound.is_finite()).fold(0.0, f64::max) * 1000.0
}

/// The quantile in milliseconds, between the bounds of its bucket as if its values lay evenly there; above the last bound,
/// that bound. `None`: there are no values.
fn quantile_ms(cumulative: &[(f64, u64)], quantile: f64) -> Option<f64> {
    let total = cumulative.last().map(|(_, count)| *count).filter(|count| *count > 0)?;
    let rank = quantile * total as f64;
    let (mut low, mut below) = (0.0, 0);
    for (bound, count) in cumulative {
        if *count as f64 >= rank && *count > below {
            let high = if bound.is_finite() { *bound } else { low };
            let share = (rank - below as f64) / (count - below) as f64;
            return Some((low + (high - low) * share.clamp(0.0, 1.0)) * 1000.0);
        }
        (low, below) = (if bound.is_finite() { *bound } else { low }, *count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Role;

    fn live() -> Live {
        Live::new(Metrics::new("test"), Health::new(), false)
    }

    #[test]
    fn two_runs_are_told_apart() {
        assert_ne!(live().now(0, "").run, live().now(0, "").run);
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let counts = [(0.01, 0), (0.1, 50), (1.0, 100), (f64::INFINITY, 100)];
        let of = |quantile| quantile_ms(&counts, quantile).unwrap();
        assert!((of(0.5) - 100.0).abs() < 0.1 && (of(0.25) - 55.0).abs() < 0.1, "{}", of(0.25));
        assert!((of(0.99) - 982.0).abs() < 0.1);
        assert_eq!(quantile_ms(&[(0.01, 0), (f64::INFINITY, 3)], 0.5), Some(10.0));
        assert_eq!(quantile_ms(&[(0.01, 0), (f64::INFINITY, 0)], 0.5), None);
        assert_eq!(quantile_ms(&[], 0.5), None);
    }

    #[test]
    fn a_sample_is_what_came_since_the_last_one() {
        let live = live();
        live.metrics.events_confirmed.inc_by(10);
        live.metrics.recorded_to_confirm_seconds.observe(60.0);
        let before = live.counters();
        live.metrics.events_confirmed.inc_by(30);
        (0..30).for_each(|_| live.metrics.recorded_to_confirm_seconds.observe(0.004));
        let sample = live.sample(1, &before, &live.counters(), 2.0);
        assert_eq!((sample.confirmed, sample.read), (15.0, 0.0));
        assert!(sample.p99_ms.is_some_and(|ms| ms > 2.5 && ms <= 5.0), "{sample:?}");
    }

    #[test]
    fn five_minutes_are_kept_and_only_news_is_sent() {
        let live = live();
        let counters = live.counters();
        for n in 1..=1000 {
            live.keep(live.sample(n, &counters, &counters, 1.0));
        }
        let all = live.now(0, "").samples;
        assert_eq!((all.len(), all[0].n), (KEPT, 701));
        let run = live.now(0, "").run;
        assert_eq!(live.now(998, &run).samples.len(), 2);
        assert!(live.now(1000, &run).samples.is_empty());
        assert_eq!(live.now(998, "another").samples.len(), KEPT, "numbers of another run");
    }

    #[test]
    fn where_latencies_are_not_measured_any_more_is_known() {
        let live = live();
        let before = live.counters();
        live.metrics.recorded_to_confirm_seconds.observe(3600.0);
        let sample = live.sample(1, &before, &live.counters(), 1.0);
        assert_eq!(sample.p99_ms, Some(live.now(0, "").latency_max_ms));
        assert!(live.now(0, "").latency_max_ms >= 1000.0);
    }

    #[test]
    fn the_mode_has_a_reason() {
        let live = live();
        assert_eq!(live.now(0, "").mode, "not reading");
        live.health.set_role(Role::Leader);
        live.metrics.leader.set(1);
        assert_eq!(live.now(0, "").mode, "polling");
        live.health.set_warning("stream", "not streaming, polling: wal_level is replica");
        let now = live.now(0, "");
        assert!(now.mode_reason.contains("wal_level") && now.reasons[0].warning, "{now:?}");
        live.metrics.wal_streaming.set(1);
        assert_eq!(live.now(0, "").mode, "streaming");
    }
}
