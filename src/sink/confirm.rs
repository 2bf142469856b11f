//! Which message was confirmed, refused or returned. Pure.
//!
//! The broker sends `basic.return` before the ack of the same message, but lapin hands a return to whichever confirm
//! completes next. So a confirm says what happened to *its* message only after the returns of every confirm that
//! completed up to it are known, and a return is matched by its `message_id`.

use std::collections::HashMap;

use uuid::Uuid;

use crate::contract::Published;

/// A `basic.return`, whose message `id` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Return {
    /// `message_id`.
    pub id: Uuid,
    /// AMQP reply code.
    pub code: u16,
    /// AMQP reply text.
    pub text: String,
}

/// Returns whose confirm has not been decided yet. Bounded by the messages in flight.
#[derive(Debug, Default)]
pub struct Returns(HashMap<Uuid, (u16, String)>);

impl Returns {
    /// Notes a return.
    pub fn note(&mut self, returned: Return) {
        self.0.insert(returned.id, (returned.code, returned.text));
    }

    /// What became of message `id`, whose confirm says `acked`.
    pub fn decide(&mut self, id: Uuid, acked: bool) -> Published {
        match (self.0.remove(&id), acked) {
            (Some((code, text)), _) => Published::Returned { code, text },
            (None, true) => Published::Confirmed,
            (None, false) => Published::Nacked,
        }
    }

    /// Returns that no confirm has claimed.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// No return is waiting.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_return_belongs_to_the_message_it_names() {
        let (a, b, c) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
        let mut returns = Returns::default();
        returns.note(Return { id: b, code: 312, text: "NO_ROUTE".into() });
        assert_eq!(returns.decide(a, true), Published::Confirmed);
        assert_eq!(returns.decide(b, true), Published::Returned { code: 312, text: "NO_ROUTE".into() });
        assert_eq!(returns.decide(c, false), Published::Nacked);
        assert_eq!(returns.decide(b, true), Published::Confirmed, "the retry is a message of its own");
        assert!(returns.is_empty());
    }
}
