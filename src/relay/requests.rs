//! What people ask for: rows to be tried again, rows to be given up.
//!
//! A request comes again each second until it is answered, so one that cannot be decided now is left alone: its row is in
//! flight, or the keeper has yet to write what was decided about it.

use tokio::time::Instant;

use super::aside::Standing;
use super::state::State;
use crate::contract::{Act, Asked, Became};
use crate::event::Seq;

impl State<'_> {
    /// People ask.
    pub(super) fn on_asked(&mut self, asked: Vec<Asked>) {
        for request in asked {
            if self.outgoing.has_room() && !self.outgoing.is_decided(request.seq) {
                self.decide(request);
            }
        }
    }

    fn decide(&mut self, Asked { seq, key, act }: Asked) {
        let Some(entry) = self.aside.get(key) else {
            return self.decide_unknown(seq, key, act);
        };
        let is_head = entry.head.is_none_or(|head| head == seq);
        match (&entry.standing, act) {
            (Standing::Draining(draining), Act::Discard) if draining.in_flight != Some(seq) => {
                self.discard(key, seq);
                self.aside.drop_recalled(key);
                self.go_on(key);
            }
            // It is in flight, or will be: whatever comes of that decides.
            (Standing::Draining(_), _) => {}
            (_, Act::Discard) => {
                self.discard(key, seq);
                if is_head {
                    self.routes.leave(key, Instant::now());
                    self.drain(key, false);
                }
            }
            (_, Act::Retry) if is_head => {
                self.change(key, seq, Became::Retry);
                if let Some(entry) = self.aside.get_mut(key) {
                    (entry.since, entry.refusals) = (None, 0);
                }
                self.routes.leave(key, Instant::now());
                self.drain(key, true);
            }
            // It waits for those before it.
            (_, Act::Retry) => self.change(key, seq, Became::Unchanged),
        }
    }

    pub(super) fn discard(&mut self, key: u64, seq: Seq) {
        self.no_longer_stuck(seq);
        if let Some(entry) = self.aside.get_mut(key)
            && entry.head == Some(seq)
        {
            (entry.head, entry.since, entry.refusals) = (None, None, 0);
        }
        self.change(key, seq, Became::Discarded);
    }

    /// A row of a key that is not set aside is final already; unless there are more such keys than are known here, of which
    /// nothing is in flight then.
    fn decide_unknown(&mut self, seq: Seq, key: u64, act: Act) {
        let to = match act {
            _ if !self.aside.is_partial() => Became::Unchanged,
            Act::Retry => Became::Retry,
            Act::Discard => Became::Discarded,
        };
        self.change(key, seq, to);
    }
}
