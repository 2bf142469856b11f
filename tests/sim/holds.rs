//! What the relay must have held, told afterwards: a body that went to a lane was in memory since it came from the source.

use statecast::event::Seq;

use crate::world::World;

/// A body comes into memory (positive) or leaves it.
struct Change {
    seq: Seq,
    bytes: isize,
    /// It went to a lane, so it had not been let go before.
    certain: bool,
}

#[derive(Default)]
pub(crate) struct Holds {
    changes: Vec<Change>,
    refetched: bool,
}

impl Holds {
    /// The source hands a body over. What it had handed over before was let go.
    pub(crate) fn comes(&mut self, seq: Seq, bytes: usize, again: bool) -> usize {
        self.refetched |= again;
        self.changes.push(Change { seq, bytes: bytes as isize, certain: false });
        self.changes.len() - 1
    }

    /// It is with a lane.
    pub(crate) fn is_sent(&mut self, came: usize) {
        self.changes[came].certain = true;
    }

    /// It was confirmed or refused.
    pub(crate) fn goes(&mut self, came: usize) {
        let Change { seq, bytes, .. } = self.changes[came];
        self.changes.push(Change { seq, bytes: -bytes, certain: true });
    }
}

impl World {
    /// Read-ahead, a page (with one event of any size), and what one fetch may add.
    pub(crate) fn bytes_max(&self) -> usize {
        let read_ahead = self.plan.read_ahead;
        let largest = self.outbox.rows.iter().map(|row| row.size + self.overhead).max().unwrap_or(0);
        // And what two recalls may, one after the other.
        let refetched = if self.session.holds.refetched { 3 * (read_ahead / 8 + largest) } else { 0 };
        read_ahead + self.session.page_bytes_max + refetched
    }

    /// At the end of a session: was there a moment with too much in memory? The channel from the source holds two inputs more.
    pub(crate) fn check_held(&mut self) {
        let (mut held, mut worst) = (0, (0, 0));
        for change in self.session.holds.changes.iter().filter(|change| change.certain) {
            held += change.bytes;
            worst = worst.max((held, change.seq));
        }
        let max = self.bytes_max() + 2 * self.session.page_bytes_max;
        if worst.0 > max as isize {
            self.fail(worst.1, format!("{} bytes held, at most {max}", worst.0));
        }
    }
}
