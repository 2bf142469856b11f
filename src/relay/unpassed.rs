//! Rows in the table of what is set aside that no cursor write has passed.
//!
//! A page lists such a row once more, after a restart or while its answer is on its way: it must be known, or it would be
//! published past the rows of its key that wait. Where an earlier leader has left more than can be known, nothing is read at
//! all. (Only a `cursor rebase` can leave so many: it takes the cursor back to before rows that it has passed. A leader sets
//! aside no more than its successor can know.)

use super::seqs::Seqs;
use crate::contract::UNPASSED_MAX;
use crate::event::Seq;

/// See the module head.
#[derive(Debug, Default)]
pub struct Unpassed {
    seqs: Seqs,
    /// There is no room for another.
    full: bool,
    /// There are more than are known.
    partial: bool,
}

impl Unpassed {
    /// Rows that an earlier leader has left: more than [`UNPASSED_MAX`] are not all.
    pub fn find(&mut self, seqs: &[Seq]) {
        let known = seqs.iter().all(|seq| self.seqs.insert(*seq));
        self.partial = !known || seqs.len() > UNPASSED_MAX;
    }

    /// Are there more than are known?
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// A row goes to the table. False if there is no room for it.
    pub fn insert(&mut self, seq: Seq) -> bool {
        // Whoever leads next can know so many.
        let fits = self.seqs.len() < UNPASSED_MAX && self.seqs.insert(seq);
        self.full |= !fits;
        fits
    }

    /// A cursor write has passed the row.
    pub fn remove(&mut self, seq: Seq) {
        self.full &= !self.seqs.remove(seq);
    }

    /// Is there no room for another?
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.seqs.is_empty()
    }

    /// Is the row one?
    pub fn contains(&self, seq: Seq) -> bool {
        !self.seqs.is_empty() && self.seqs.contains(seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_leaves_no_more_than_its_successor_can_know() {
        let (mut unpassed, mut next) = (Unpassed::default(), 1);
        while unpassed.insert(next) {
            next += 1;
        }
        assert!(unpassed.is_full());
        let left: Vec<Seq> = (1..next).collect();
        let mut successor = Unpassed::default();
        successor.find(&left);
        assert!(!successor.is_partial() && left.len() == UNPASSED_MAX);
        unpassed.remove(1);
        assert!(!unpassed.is_full() && unpassed.insert(next));
    }
}
