//! What `statecast doctor` looks at in PostgreSQL, one file per concern: a statement that asks for facts, and a pure judge
//! that makes findings of them.
//!
//! Reads only, over a session that [`begin`] has made read-only and impatient. Each question stands alone: one that fails
//! (a right that is missing, a timeout) leaves the others their answers.

pub mod chunks;
pub mod clock;
pub mod cursors;
pub mod fitness;
pub mod horizon;
pub mod hosts;
pub mod leader;
pub mod parked;
pub mod slots;
pub mod transactions;
pub mod types;
pub mod writers;

use tokio_postgres::{Client, Error};

/// Names in one finding, at most.
const NAMES_MAX: usize = 10;
/// Rows of one list (slots, transactions, holders, roles), at most: the worst come first.
const ROWS_MAX: i64 = 50;

/// Makes the session of `client` one that changes nothing, waits for no lock for more than 50 ms and for no answer for more
/// than 10 s. Not behind a pooler, where the settings would stay with whoever gets the server process next.
///
/// # Errors
/// SQL.
pub async fn begin(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(
            "SET default_transaction_read_only = on; SET statement_timeout = '10s'; SET lock_timeout = '50ms';
             SET idle_in_transaction_session_timeout = '10s'; SET jit = off",
        )
        .await
}

/// Takes it back: a pool in session mode may keep the server process.
///
/// # Errors
/// SQL.
pub async fn end(client: &Client) -> Result<(), Error> {
    client
        .batch_execute(
            "RESET default_transaction_read_only; RESET statement_timeout; RESET lock_timeout;
             RESET idle_in_transaction_session_timeout; RESET jit",
        )
        .await
}

/// Milliseconds for people: `3m 20s`, and no more than two units.
fn lasting(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        let shown: Vec<String> = [-5, 999, 61_000, 3_700_000, 90_000_000].map(lasting).into();
        assert_eq!(shown, ["0s", "0s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
