//! When to try to stream again.

use std::time::Duration;

use tokio::time::Instant;

/// First pause after a stream ended, or could not be had.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A stream that lived so long was a good one: the pauses start anew.
pub(super) const GOOD_STREAM: Duration = Duration::from_secs(60);

/// Pauses of 1, 2, 4 … 60 s, with jitter of a quarter downwards.
#[derive(Debug)]
pub(super) struct Attempts {
    at: Instant,
    failures: u32,
    /// What was said last, so that it is said once.
    said: String,
}

impl Attempts {
    /// The first may begin at once.
    pub(super) fn new() -> Self {
        Attempts { at: Instant::now(), failures: 0, said: String::new() }
    }

    /// May one begin?
    pub(super) fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// There is no stream: returns how long until the next attempt.
    pub(super) fn failed(&mut self) -> Duration {
        let full = PAUSE_MIN.saturating_mul(1 << self.failures.min(6)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        let pause = full.mul_f64(0.75 + 0.25 * fastrand::f64());
        self.at = Instant::now() + pause;
        pause
    }

    /// Only what an earlier stream left is in the way.
    pub(super) fn soon(&mut self) {
        self.at = Instant::now() + PAUSE_MIN;
    }

    /// A good stream.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.said.clear();
    }

    /// Is this another reason than the last?
    pub(super) fn is_new(&mut self, text: &str) -> bool {
        let new = self.said != text;
        if new {
            text.clone_into(&mut self.said);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_and_are_bounded() {
        let mut attempts = Attempts::new();
        assert!(attempts.is_due());
        let pauses: Vec<Duration> = (0..20).map(|_| attempts.failed()).collect();
        assert!(pauses[0] <= PAUSE_MIN && pauses[3] > pauses[0]);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX) && !attempts.is_due());
        attempts.reset();
        assert!(attempts.failed() <= PAUSE_MIN);
    }
}
