//! Events that are set aside: `statecast.parked`.
//!
//! ```text
//!                        ┌───────────── a person: retry ─────────────┐
//!            refused     ▼     refused       too long unroutable     │
//! set aside ─────────▶ waiting ◀──────▶ retry       ────────────▶ parked ◀── can never go
//!      └─ behind another row ─▶ queued                               │
//! any of these ── confirmed by the broker ──▶ confirmed              │
//! any of these ── a person: discard ────────▶ discarded ◀────────────┘
//! ```
//!
//! Only the keeper changes states (`write`), in the transaction of the cursor write that goes with them; people write requests
//! ([`people`]). A row is *passed* when the cursor's settled prefix covers it: final rows stay until then, so that a page that
//! lists them again neither publishes them nor sets them aside once more.
//!
//! The books: the cursor row's `parked` counts the rows here that are passed and open (not final), its `discarded` those
//! that were discarded and passed, and its `confirmed` all others that it has passed.

pub mod changes;
pub mod counts;
pub mod people;
pub mod recall;
pub mod requests;
pub mod start;
pub mod write;

use std::borrow::Cow;

use crate::contract::Reason;

/// Characters of `detail`, at most.
pub const DETAIL_MAX: usize = 500;

/// `statecast.parked.state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Refused; tried again.
    Waiting,
    /// A person decides.
    Parked,
    /// Behind another row of its key.
    Queued,
    /// A person wants it tried again.
    Retry,
    /// Final.
    Confirmed,
    /// Final.
    Discarded,
}

impl State {
    /// As it stands in the column.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Waiting => "waiting",
            State::Parked => "parked",
            State::Queued => "queued",
            State::Retry => "retry",
            State::Confirmed => "confirmed",
            State::Discarded => "discarded",
        }
    }

    /// Stays as it is for ever.
    pub fn is_final(self) -> bool {
        matches!(self, State::Confirmed | State::Discarded)
    }
}

/// As it stands in the column.
pub fn reason_str(reason: Reason) -> &'static str {
    match reason {
        Reason::Nack => "nack",
        Reason::Unroutable => "unroutable",
        Reason::TooLarge => "too_large",
        Reason::Invalid => "invalid",
    }
}

/// The column's text, if it is one of ours.
pub fn reason_of(text: &str) -> Option<Reason> {
    [Reason::Nack, Reason::Unroutable, Reason::TooLarge, Reason::Invalid]
        .into_iter()
        .find(|reason| reason_str(*reason) == text)
}

/// A hash as the column has it.
fn key_column(key: u64) -> i64 {
    key.cast_signed()
}

/// Text of a broker, as PostgreSQL can store it and a terminal can show it: no control characters (NUL would be refused),
/// and no more of it than fits.
fn storable(text: &str) -> Cow<'_, str> {
    if text.len() <= DETAIL_MAX && !text.chars().any(char::is_control) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    Cow::Owned(text.chars().take(DETAIL_MAX).map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_read_back() {
        for reason in [Reason::Nack, Reason::Unroutable, Reason::TooLarge, Reason::Invalid] {
            assert_eq!(reason_of(reason_str(reason)), Some(reason));
        }
        assert_eq!(reason_of("other"), None);
    }

    #[test]
    fn what_a_broker_says_can_be_stored() {
        assert_eq!(storable("NO_ROUTE"), "NO_ROUTE");
        assert_eq!(storable("a\0b\u{1b}[2J\u{9b}"), "a\u{fffd}b\u{fffd}[2J\u{fffd}");
        let long = "ä".repeat(DETAIL_MAX + 1);
        assert_eq!(storable(&long).chars().count(), DETAIL_MAX);
        assert_eq!(storable(&long[..DETAIL_MAX]).len(), DETAIL_MAX);
    }

    #[test]
    fn hashes_above_the_signed_range_have_a_column() {
        assert_eq!((key_column(u64::MAX), key_column(1 << 63)), (-1, i64::MIN));
    }
}
