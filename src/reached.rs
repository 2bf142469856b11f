//! Which servers have answered this process: those that have not are tried last.
//!
//! A session connects several times, and a host that drops packets costs a whole timeout each time. Orders attempts, and
//! decides nothing: a server that is alone, or whose fellows fail as well, is tried as before.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Servers that are remembered. Names may resolve to other addresses every day.
const REMEMBERED_MAX: usize = 256;

/// How the last attempt at a server ended; also the order in which servers are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// It let us in, or has not been asked yet.
    Good,
    /// It said no: at once, so that asking again costs little.
    Refused,
    /// It said nothing in time.
    None,
}

/// The servers of one kind, by what tells them apart (an address and a port, without secrets).
#[derive(Debug, Default)]
pub(crate) struct Reached(Mutex<Option<HashMap<String, Answer>>>);

impl Reached {
    /// Nothing is known.
    pub(crate) const fn new() -> Reached {
        Reached(Mutex::new(None))
    }

    /// Remembers how an attempt ended.
    pub(crate) fn note(&self, server: &str, answer: Answer) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if known.len() >= REMEMBERED_MAX {
            known.clear();
        }
        known.insert(server.to_owned(), answer);
    }

    /// How the last attempt at a server ended.
    pub(crate) fn last(&self, server: &str) -> Answer {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.as_ref().and_then(|known| known.get(server)).copied().unwrap_or(Answer::Good)
    }

    /// Puts those that failed last behind the others, whose order stays.
    pub(crate) fn order<T>(&self, servers: &mut [T], name: impl Fn(&T) -> &str) {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = |server: &T| {
            known.as_ref().and_then(|known| known.get(name(server))).copied().unwrap_or(Answer::Good)
        };
        servers.sort_by_key(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_tried_last_and_the_rest_in_its_order() {
        let reached = Reached::new();
        let ordered = || {
            let mut servers = ["a", "b", "c", "d"];
            reached.order(&mut servers, |server| server);
            servers
        };
        assert_eq!(ordered(), ["a", "b", "c", "d"]);
        reached.note("a", Answer::None);
        reached.note("b", Answer::Refused);
        reached.note("d", Answer::Good);
        assert_eq!(ordered(), ["c", "d", "b", "a"]);
        reached.note("a", Answer::Good);
        assert_eq!(ordered(), ["a", "c", "d", "b"]);
    }

    #[test]
    fn no_more_is_remembered_than_that() {
        let reached = Reached::new();
        (0..REMEMBERED_MAX * 3).for_each(|n| reached.note(&n.to_string(), Answer::None));
        assert!(reached.0.lock().unwrap().as_ref().unwrap().len() <= REMEMBERED_MAX);
    }
}
