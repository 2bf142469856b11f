//! The log of refused requests: who, where and why, never the token. Whoever guesses fast does not fill the log, and whoever
//! asks without a token does not keep wrong ones out of it.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::auth::Access;

/// Lines are at least this far apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// Bytes of a path in a line, at most.
const PATH_MAX: usize = 100;

/// Counts what it does not log.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    wrong: Lines,
    other: Lines,
}

/// When the last line was written, and how many were not since.
#[derive(Debug, Default)]
struct Lines(Mutex<(Option<Instant>, u64)>);

impl Refusals {
    /// A request of `peer` for `path` (without its query) was refused.
    pub(super) fn note(&self, access: Access, peer: SocketAddr, path: &str, now: Instant) {
        let lines = if access == Access::WrongToken { &self.wrong } else { &self.other };
        let Some(unlogged) = lines.due(now) else { return };
        let path: String =
            path.chars().take(PATH_MAX).map(|c| if c.is_control() { '?' } else { c }).collect();
        match access {
            Access::Granted => {}
            Access::WrongToken => {
                tracing::warn!(%peer, path, unlogged, "console: a request with a wrong token was refused (401)");
            }
            // Who opens the page for the first time has none: no reason to warn.
            Access::TokenNeeded => {
                tracing::info!(%peer, path, unlogged, "console: a request without a token was refused (401)");
            }
            Access::ForeignName | Access::ThroughProxy | Access::ForeignPage | Access::NoTokenConfigured => {
                let why = access.why();
                tracing::warn!(%peer, path, unlogged, why, "console: a request was refused (403)");
            }
        }
    }
}

impl Lines {
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
        let (refusals, now) = (Lines::default(), Instant::now());
        assert_eq!(refusals.due(now), Some(0));
        assert_eq!((refusals.due(now), refusals.due(now + INTERVAL / 2)), (None, None));
        assert_eq!(refusals.due(now + INTERVAL), Some(2));
        assert_eq!(refusals.due(now + INTERVAL * 3), Some(0));
    }
}
