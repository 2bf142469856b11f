//! How far the server's clock is from this machine's.

use std::time::{Duration, Instant, SystemTime};

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::ClockPostgres];

/// Questions; the quickest answer says most.
const TRIES: u32 = 3;
/// Tolerated beyond what the measurement leaves open.
const SKEW_MAX_MS: i64 = 1000;

/// One comparison of two clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew {
    /// The other clock minus ours.
    pub ms: i64,
    /// Either way: half a round trip, and the resolution of the answer.
    pub within_ms: i64,
}

impl Skew {
    /// `local`: our clock half-way between question and answer, which took `trip`; `remote`: the other's answer, which stands for
    /// up to `resolution` before it.
    pub fn new(local: SystemTime, remote: SystemTime, trip: Duration, resolution: Duration) -> Skew {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        // A clock that shows only whole seconds shows, on average, half of one too little.
        let remote = remote.checked_add(resolution / 2).unwrap_or(remote);
        let skew = match remote.duration_since(local) {
            Ok(ahead) => ms(ahead),
            Err(error) => -ms(error.duration()),
        };
        Skew { ms: skew, within_ms: ms(trip / 2).saturating_add(ms(resolution / 2)) }
    }

    /// A finding under `code`.
    pub fn judge(self, code: Code) -> Finding {
        let Skew { ms, within_ms } = self;
        let way = if ms < 0 { "behind" } else { "ahead of" };
        let text = format!("{} ms {way} this machine's clock (± {within_ms} ms)", ms.unsigned_abs());
        let beyond = ms.unsigned_abs() > within_ms.saturating_add(SKEW_MAX_MS).unsigned_abs();
        if beyond { Finding::warning(code, "", text) } else { Finding::ok_with(code, text) }
    }
}

/// Compares `clock_timestamp()`, which is not the time of the transaction's start, with ours.
///
/// # Errors
/// SQL.
pub async fn examine(client: &Client) -> Result<Vec<Finding>, Error> {
    let mut best: Option<Skew> = None;
    for _ in 0..TRIES {
        let (asked, began) = (SystemTime::now(), Instant::now());
        let row =
            client.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", &[]).await?;
        let trip = began.elapsed();
        let us = u64::try_from(row.try_get::<_, i64>(0)?).unwrap_or(0);
        let remote = SystemTime::UNIX_EPOCH + Duration::from_micros(us);
        let skew = Skew::new(asked + trip / 2, remote, trip, Duration::ZERO);
        if best.is_none_or(|best| skew.within_ms < best.within_ms) {
            best = Some(skew);
        }
    }
    Ok(best.map(|skew| skew.judge(Code::ClockPostgres)).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    const S: Duration = Duration::from_secs(1);

    fn severity(remote: SystemTime, trip: Duration, resolution: Duration) -> (i64, Severity) {
        let local = SystemTime::UNIX_EPOCH + 1000 * S;
        let skew = Skew::new(local, remote, trip, resolution);
        (skew.ms, skew.judge(Code::ClockPostgres).severity)
    }

    #[test]
    fn a_skew_counts_beyond_what_the_measurement_leaves_open() {
        let at = |s: u32| SystemTime::UNIX_EPOCH + s * S;
        assert_eq!(severity(at(1000), S, Duration::ZERO), (0, Severity::Ok));
        assert_eq!(severity(at(1002), Duration::ZERO, Duration::ZERO), (2000, Severity::Warning));
        assert_eq!(severity(at(998), Duration::ZERO, Duration::ZERO), (-2000, Severity::Warning));
        assert_eq!(severity(at(1002), 2 * S, Duration::ZERO), (2000, Severity::Ok), "half a trip");
        assert_eq!(severity(at(999), Duration::ZERO, S), (-500, Severity::Ok), "a Date of whole seconds");
        assert_eq!(severity(SystemTime::UNIX_EPOCH, S, S).1, Severity::Warning);
    }
}
