//! What the changes of one commit come to, row by row. Pure.
//!
//! A commit may change a row more than once (asked for, tried, confirmed). One statement writes it once, so the changes of a
//! row are folded, in their order; what is final stays so.

use std::collections::BTreeMap;

use super::{State, reason_str, storable};
use crate::contract::{Became, Change, Refusal};
use crate::event::Seq;

/// What happens to one row.
#[derive(Debug, Default, PartialEq, Eq)]
struct Effect {
    /// `None`: its state stays.
    to: Option<State>,
    refusal: Option<Refusal>,
    /// With which it was refused; `None`: as it stands.
    routing_key: Option<String>,
    /// Attempts that were refused.
    attempts: i32,
    /// It was in another state in between, so that it has not waited in this one before.
    restarts: bool,
    answers: Option<Answers>,
}

/// Which request is answered. Another that came meanwhile stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answers {
    Retry,
    Any,
}

impl Effect {
    fn add(&mut self, became: &Became) {
        if self.to.is_some_and(State::is_final) {
            return;
        }
        match became {
            Became::Confirmed => self.go(State::Confirmed, None),
            Became::Discarded => self.go(State::Discarded, None),
            Became::Retry => {
                self.go(State::Retry, None);
                self.answers.get_or_insert(Answers::Retry);
            }
            Became::Waiting { refusal, routing_key, tried } => {
                self.attempts += i32::from(*tried);
                self.routing_key = Some(routing_key.clone());
                self.go(State::Waiting, Some(refusal));
            }
            Became::Parked(refusal) => {
                // What only waited was not tried once more. (What was tried in the table already is for the statement to see.)
                self.attempts += i32::from(self.to == Some(State::Retry));
                self.go(State::Parked, Some(refusal));
            }
            Became::Unchanged => self.answers = Some(Answers::Any),
        }
    }

    fn go(&mut self, to: State, refusal: Option<&Refusal>) {
        self.restarts |= self.to.is_some_and(|before| before != to);
        self.to = Some(to);
        if let Some(refusal) = refusal {
            self.refusal = Some(refusal.clone());
        }
    }
}

/// The parameters of the statement, one array per column. Rows ascend, so that two writers never wait for each other crosswise.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub(super) seqs: Vec<Seq>,
    pub(super) states: Vec<Option<&'static str>>,
    pub(super) reasons: Vec<Option<&'static str>>,
    pub(super) details: Vec<Option<String>>,
    pub(super) routing_keys: Vec<Option<String>>,
    pub(super) attempts: Vec<i32>,
    pub(super) restarts: Vec<bool>,
    pub(super) answers: Vec<Option<&'static str>>,
}

/// Folds `changes` into one effect per row.
pub(super) fn columns(changes: &[Change]) -> Columns {
    let mut effects: BTreeMap<Seq, Effect> = BTreeMap::new();
    for change in changes {
        effects.entry(change.seq).or_default().add(&change.to);
    }
    let mut columns = Columns::default();
    for (seq, effect) in effects {
        columns.seqs.push(seq);
        columns.states.push(effect.to.map(State::as_str));
        columns.reasons.push(effect.refusal.as_ref().map(|refusal| reason_str(refusal.reason)));
        columns.details.push(effect.refusal.map(|refusal| storable(&refusal.detail).into_owned()));
        columns.routing_keys.push(effect.routing_key.map(|name| storable(&name).into_owned()));
        columns.attempts.push(effect.attempts);
        columns.restarts.push(effect.restarts);
        columns.answers.push(effect.answers.map(|answers| match answers {
            Answers::Retry => "retry",
            Answers::Any => "any",
        }));
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Reason;

    fn refusal(detail: &str) -> Refusal {
        Refusal { reason: Reason::Nack, detail: detail.to_owned() }
    }

    fn waiting(detail: &str, tried: bool) -> Became {
        Became::Waiting { refusal: refusal(detail), routing_key: format!("to.{detail}"), tried }
    }

    /// State, attempts, restarts, answers of one row after these changes.
    fn folded(all: &[Became]) -> (Option<&'static str>, Option<String>, i32, bool, Option<&'static str>) {
        let changes: Vec<Change> = all.iter().map(|to| Change { seq: 7, to: to.clone() }).collect();
        let mut columns = columns(&changes);
        assert_eq!(columns.seqs, [7]);
        let detail = columns.details.remove(0);
        (columns.states[0], detail, columns.attempts[0], columns.restarts[0], columns.answers[0])
    }

    #[test]
    fn one_change_is_itself() {
        use Became::{Confirmed, Discarded, Parked, Retry, Unchanged};
        let why = || Some("why".to_owned());
        assert_eq!(folded(&[Confirmed]), (Some("confirmed"), None, 0, false, None));
        assert_eq!(folded(&[Discarded]), (Some("discarded"), None, 0, false, None));
        assert_eq!(folded(&[Retry]), (Some("retry"), None, 0, false, Some("retry")));
        assert_eq!(folded(&[waiting("why", true)]), (Some("waiting"), why(), 1, false, None));
        assert_eq!(folded(&[waiting("why", false)]), (Some("waiting"), why(), 0, false, None), "not tried");
        assert_eq!(folded(&[Parked(refusal("why"))]), (Some("parked"), why(), 0, false, None));
        assert_eq!(folded(&[Unchanged]), (None, None, 0, false, Some("any")));
    }

    #[test]
    fn several_changes_of_a_row_are_written_as_one() {
        use Became::{Confirmed, Discarded, Parked, Retry, Unchanged};
        let refused = |detail| waiting(detail, true);
        assert_eq!(folded(&[Retry, Confirmed]).0, Some("confirmed"));
        let (state, detail, attempts, restarts, answers) = folded(&[Retry, refused("1"), refused("2")]);
        assert_eq!((state, detail.as_deref(), attempts), (Some("waiting"), Some("2"), 2));
        assert!(restarts, "it has not waited since before the retry");
        assert_eq!(answers, Some("retry"), "what was refused again was asked for, and is answered");
        let tried = folded(&[Retry, Parked(refusal("3"))]);
        assert_eq!((tried.0, tried.2), (Some("parked"), 1));
        let unchanged = folded(&[refused("1"), Unchanged]);
        assert_eq!((unchanged.0, unchanged.2, unchanged.4), (Some("waiting"), 1, Some("any")));
        assert_eq!(
            folded(&[refused("1"), refused("2")]),
            (Some("waiting"), Some("2".into()), 2, false, None)
        );
        assert_eq!(folded(&[Discarded, Confirmed, Retry, refused("1")]).0, Some("discarded"), "final");
        assert_eq!(folded(&[Confirmed, Discarded]).0, Some("confirmed"), "final");
    }

    #[test]
    fn rows_ascend_and_keep_apart() {
        let change = |seq, to| Change { seq, to };
        let columns = columns(&[
            change(9, Became::Confirmed),
            change(3, waiting("a\0", true)),
            change(9, Became::Discarded),
            change(5, Became::Unchanged),
        ]);
        assert_eq!(columns.seqs, [3, 5, 9]);
        assert_eq!(columns.states, [Some("waiting"), None, Some("confirmed")]);
        assert_eq!(columns.details, [Some("a\u{fffd}".to_owned()), None, None]);
        assert_eq!(columns.reasons, [Some("nack"), None, None]);
        assert_eq!(columns.routing_keys, [Some("to.a\u{fffd}".to_owned()), None, None]);
    }
}
