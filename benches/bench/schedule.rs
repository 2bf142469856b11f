//! When things are due, whatever becomes of them: an open loop.
//!
//! A thread of its own sleeps from one moment to the next, because the runtime's timers know milliseconds only. It
//! never waits for an answer.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Microseconds since 1970.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Yields `count` moments, `apart` from each other, each when it has come; in microseconds since 1970.
pub(crate) fn start(apart: Duration, count: u64) -> UnboundedReceiver<i64> {
    let (sender, receiver) = unbounded_channel();
    std::thread::spawn(move || {
        let (began, began_us) = (Instant::now(), now_us());
        for number in 0..count {
            let after = apart.mul_f64(number as f64);
            std::thread::sleep((began + after).saturating_duration_since(Instant::now()));
            let due_us = began_us.saturating_add(i64::try_from(after.as_micros()).unwrap_or(i64::MAX));
            if sender.send(due_us).is_err() {
                return;
            }
        }
    });
    receiver
}
