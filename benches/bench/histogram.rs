//! Latencies in microseconds, counted from the moment at which something was *due*.
//!
//! A load that waits for its answers before it goes on leaves out exactly the moments that were slow (coordinated
//! omission). Here what is due is due: the schedule does not know of answers, and what started late is late.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart: ten minutes.
const MAX_US: u64 = 600_000_000;
/// Three significant digits.
const DIGITS: u8 = 3;
/// Points of a curve, from the lowest to the highest percentile.
const CURVE: [f64; 15] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99, 100.0];

/// How long things took, with three significant digits.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// What is reported of it, in milliseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Summary {
    pub(crate) count: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    /// Percentile, milliseconds.
    pub(crate) curve: Vec<(f64, f64)>,
}

impl Latencies {
    pub(crate) fn new() -> anyhow::Result<Latencies> {
        Ok(Latencies(Histogram::new_with_bounds(1, MAX_US, DIGITS)?))
    }

    /// Both in microseconds since the same beginning. What is done before it was due took no time.
    pub(crate) fn record(&mut self, due_us: i64, done_us: i64) {
        let took = u64::try_from(done_us.saturating_sub(due_us)).unwrap_or(0);
        self.0.saturating_record(took.clamp(1, MAX_US));
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    pub(crate) fn summary(&self) -> Summary {
        let at = |percentile: f64| self.0.value_at_percentile(percentile) as f64 / 1e3;
        if self.0.is_empty() {
            return Summary::default();
        }
        Summary {
            count: self.0.len(),
            p50_ms: at(50.0),
            p99_ms: at(99.0),
            p999_ms: at(99.9),
            max_ms: self.0.max() as f64 / 1e3,
            curve: CURVE.iter().map(|percentile| (*percentile, at(*percentile))).collect(),
        }
    }
}
