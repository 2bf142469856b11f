//! The log of wrong tokens: who and where, never what. Whoever guesses fast does not fill the log.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lines are at least this far apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a path in a line, at most.
const PATH_MAX: usize = 100;

/// Counts what it does not log.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    /// A wrong token came from `peer` for `path` (without its query).
    pub(super) fn note(&self, peer: SocketAddr, path: &str, now: Instant) {
        if let Some(unlogged) = self.due(now) {
            let path: String =
                path.chars().take(PATH_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
            tracing::warn!(%peer, path, unlogged, "console: a request with a wrong token was refused (401)");
        }
    }

    /// How many were not logged since the last line, if one is due.
    fn due(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, unlogged) = &mut *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL) {
            *unlogged += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_rest_is_counted() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.due(now), Some(0));
        assert_eq!((refusals.due(now), refusals.due(now + INTERVAL / 2)), (None, None));
        assert_eq!(refusals.due(now + INTERVAL), Some(2));
        assert_eq!(refusals.due(now + INTERVAL * 3), Some(0));
    }
}
