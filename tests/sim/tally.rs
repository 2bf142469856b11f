//! What the schedules have gone through: a simulation that no longer meets a fault would not find one.

use std::collections::BTreeMap;

/// What must have happened.
const EXPECTED: [&str; 41] = [
    "calm sessions in an outage",
    "calm sessions that the cursor was judged in",
    "cursor writes",
    "cursor writes without an answer",
    "events",
    "events brought again by a stream",
    "events brought by a refused stream",
    "events confirmed and remembered",
    "events left out by a stream",
    "events overtaken",
    "events polled and brought before",
    "events published again",
    "events read after later ones",
    "events streamed",
    "hopeless events mended",
    "keys set aside",
    "messages lost with a connection",
    "messages refused",
    "recalls",
    "recalls without an answer",
    "requests",
    "requests refused",
    "rows confirmed in the table",
    "rows discarded",
    "rows fetched again",
    "rows given up, named by a recall",
    "rows parked at once",
    "rows parked when they were tried",
    "rows passed in the table",
    "rows queued",
    "rows read again that are set aside",
    "rows recalled",
    "rows refused again",
    "rows retried",
    "sessions",
    "sessions broken off",
    "streams",
    "streams that end within a transaction",
    "streams that miss rows",
    "unroutable rows parked",
    "writes about what is set aside without an answer",
];

/// How often each of these happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str, n: usize) {
        *self.0.entry(what).or_default() += n as u64;
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        other.0.iter().for_each(|(what, n)| *self.0.entry(what).or_default() += n);
    }

    /// What should have happened and has not.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        EXPECTED.into_iter().filter(|what| self.0.get(what).is_none_or(|n| *n == 0)).collect()
    }

    pub(crate) fn lines(&self) -> String {
        self.0.iter().map(|(what, n)| format!("{n:>10} {what}\n")).collect()
    }
}
