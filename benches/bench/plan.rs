//! How much of everything: the full benchmark, sized for a little more than an hour on two cores, and the quick one.

use std::time::Duration;

/// Which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    Full,
    Quick,
}

/// The sizes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Events of a run on which a goal rests.
    pub(crate) events: u64,
    /// Pairs of such runs.
    pub(crate) pairs: usize,
    /// Events and pairs where one thing is varied.
    pub(crate) variant_events: u64,
    pub(crate) variant_pairs: usize,
    /// Or only some of those that stream.
    pub(crate) all_variants: bool,
    /// Events of 8 kB: the same bytes as ten of 800 B.
    pub(crate) large_events: u64,
    /// Runs of a limit on its own.
    pub(crate) limit_runs: usize,
    /// How long each strict run with few keys may take.
    pub(crate) few_keys: Duration,
    /// How long each rate is offered, and one event per second.
    pub(crate) latency: Duration,
    pub(crate) latency_slow: Duration,
    pub(crate) idle: Duration,
    pub(crate) tax: Duration,
    pub(crate) tax_rounds: usize,
    pub(crate) starts: usize,
    /// Settled events in the outbox.
    pub(crate) settled: &'static [u64],
    /// Chunks that the largest number of them lies in.
    pub(crate) settled_chunks: u64,
    pub(crate) open: &'static [usize],
    pub(crate) keys: &'static [u64],
    pub(crate) parked: &'static [u64],
    pub(crate) growth_events: u64,
    pub(crate) growth_rounds: usize,
    pub(crate) growth_latency: Duration,
    /// No section takes longer than this.
    pub(crate) section_limit: Duration,
    /// And all of them together not longer than this.
    pub(crate) limit: Duration,
}

impl Plan {
    pub(crate) fn new(scale: Scale) -> Plan {
        match scale {
            Scale::Full => Plan::full(),
            Scale::Quick => Plan::quick(),
        }
    }

    fn full() -> Plan {
        Plan {
            events: 300_000,
            pairs: 7,
            variant_events: 60_000,
            variant_pairs: 2,
            all_variants: true,
            large_events: 30_000,
            limit_runs: 3,
            few_keys: Duration::from_secs(8),
            latency: Duration::from_secs(15),
            latency_slow: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            tax: Duration::from_secs(10),
            tax_rounds: 3,
            starts: 10,
            settled: &[0, 1_000_000, 10_000_000],
            settled_chunks: 44,
            open: &[0, 1, 100, 1_000],
            keys: &[10_000, 10, 1_000_000],
            parked: &[0, 1, 10, 100],
            growth_events: 60_000,
            growth_rounds: 3,
            growth_latency: Duration::from_secs(8),
            section_limit: Duration::from_secs(30 * 60),
            limit: Duration::from_secs(75 * 60),
        }
    }

    fn quick() -> Plan {
        Plan {
            events: 20_000,
            pairs: 2,
            variant_events: 6_000,
            variant_pairs: 1,
            all_variants: false,
            large_events: 3_000,
            limit_runs: 1,
            few_keys: Duration::from_secs(1),
            latency: Duration::from_secs(2),
            latency_slow: Duration::from_secs(2),
            idle: Duration::from_secs(4),
            tax: Duration::from_secs(1),
            tax_rounds: 1,
            starts: 2,
            settled: &[0, 30_000],
            settled_chunks: 6,
            open: &[0, 50],
            keys: &[10_000, 10],
            parked: &[0, 10],
            growth_events: 5_000,
            growth_rounds: 1,
            growth_latency: Duration::from_secs(1),
            section_limit: Duration::from_secs(90),
            limit: Duration::from_secs(300),
        }
    }
}
