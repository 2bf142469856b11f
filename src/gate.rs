//! Until when this process may hand messages to the broker.
//!
//! A leader renews its lease in the database every [`RENEW_INTERVAL`]. A successor may take it once it has not changed for
//! [`LEASE`] by the successor's own clock, and nobody can tell the leader: it may be cut off, or stopped. So the leader
//! counts for itself, from *before* it sent the last renewal that succeeded, and hands nothing over once [`HOLD`] has
//! passed. Between the two lies a second, for clocks that do not run alike.
//!
//! What was handed over before may still wait in the client library or in a socket. For that there is the broker's fence
//! ([`crate::sink::fence`]), which also covers what no clock in this process can know: a virtual machine that was stopped
//! as a whole.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a lease lasts, on the server's clock; and how long a standby must see it unchanged, on its own.
pub const LEASE: Duration = Duration::from_secs(4);
/// How long a leader publishes without a renewal.
pub const HOLD: Duration = Duration::from_secs(3);
/// How often a leader renews.
pub const RENEW_INTERVAL: Duration = Duration::from_secs(1);

/// A point in time that nobody can set.
///
/// On Linux this is `CLOCK_BOOTTIME`: it goes on while the process is stopped (SIGSTOP, a frozen cgroup) and, other than
/// [`std::time::Instant`] there, while the system sleeps. Elsewhere it is the standard library's clock, which goes on
/// while the process is stopped; whether it does in a system's sleep depends on the platform. See
/// <https://man7.org/linux/man-pages/man2/clock_gettime.2.html>.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Duration);

impl Moment {
    /// Now.
    #[cfg(target_os = "linux")]
    pub fn now() -> Moment {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let (secs, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
        Moment(Duration::new(secs.unwrap_or(0), nanos.unwrap_or(0)))
    }

    /// Now.
    #[cfg(not(target_os = "linux"))]
    pub fn now() -> Moment {
        static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
        Moment(START.get_or_init(std::time::Instant::now).elapsed())
    }

    fn nanos(self) -> u64 {
        // Enough for five centuries.
        u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Open while the lease is good. One per session: once shut it stays so.
#[derive(Debug, Default)]
pub struct Gate {
    /// Nanoseconds on [`Moment`]'s clock.
    until: AtomicU64,
    shut: AtomicBool,
}

impl Gate {
    /// Closed until the first renewal.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// The lease was renewed by a statement that was sent after `before`.
    pub fn renewed(&self, before: Moment) {
        let hold = u64::try_from(HOLD.as_nanos()).unwrap_or(u64::MAX);
        self.until.fetch_max(before.nanos().saturating_add(hold), Ordering::SeqCst);
    }

    /// The lease is lost, whatever was renewed.
    pub fn shut(&self) {
        self.shut.store(true, Ordering::SeqCst);
    }

    /// May a message be handed over now?
    pub fn is_open(&self) -> bool {
        self.left().is_some()
    }

    /// Has time run out, shut or not?
    pub fn has_run_out(&self) -> bool {
        self.until.load(Ordering::SeqCst) <= Moment::now().nanos()
    }

    /// Returns once time has run out. Never, once the gate is shut: whoever does that knows why, and ends the session.
    pub async fn run_out(&self) {
        while let Some(left) = self.left() {
            tokio::time::sleep(left).await;
        }
        if self.shut.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn left(&self) -> Option<Duration> {
        if self.shut.load(Ordering::SeqCst) {
            return None;
        }
        let left = self.until.load(Ordering::SeqCst).checked_sub(Moment::now().nanos());
        left.filter(|left| *left > 0).map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(past: Duration) -> Moment {
        Moment(Moment::now().0 - past)
    }

    #[test]
    fn a_leader_stops_before_a_successor_may_start() {
        // A renewal that is missed once, and slow, is no reason to stop.
        assert!(RENEW_INTERVAL * 2 < HOLD);
        assert!(HOLD + RENEW_INTERVAL <= LEASE);
    }

    #[test]
    fn open_for_so_long_after_a_renewal_was_sent() {
        let gate = Gate::new();
        assert!(!gate.is_open(), "nobody has renewed");
        gate.renewed(ago(HOLD));
        assert!(!gate.is_open(), "the answer came too late");
        gate.renewed(ago(HOLD - Duration::from_millis(200)));
        assert!(gate.is_open());
        gate.renewed(ago(HOLD * 2));
        assert!(gate.is_open(), "an answer that was overtaken takes nothing back");
        std::thread::sleep(Duration::from_millis(250));
        assert!(!gate.is_open());
        gate.renewed(Moment::now());
        assert!(gate.is_open());
        gate.shut();
        gate.renewed(Moment::now());
        assert!(!gate.is_open(), "what is shut stays shut");
    }

    #[tokio::test]
    async fn tells_when_time_has_run_out() {
        let gate = Gate::new();
        gate.run_out().await;
        gate.renewed(ago(HOLD - Duration::from_millis(50)));
        let begun = std::time::Instant::now();
        gate.run_out().await;
        let waited = begun.elapsed();
        assert!(waited > Duration::from_millis(30) && waited < Duration::from_secs(2), "{waited:?}");
        gate.shut();
        assert!(tokio::time::timeout(Duration::from_millis(20), gate.run_out()).await.is_err());
    }

    #[test]
    fn the_clock_goes_on() {
        let before = Moment::now();
        std::thread::sleep(Duration::from_millis(2));
        let passed = Moment::now().0 - before.0;
        assert!(passed >= Duration::from_millis(2) && passed < Duration::from_secs(10), "{passed:?}");
    }
}
