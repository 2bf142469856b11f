//! A set of rows by `seq`, as a sparse bitmap.
//!
//! What it is for: rows that were settled before a window listed them. A streamed transaction of two million events may be
//! settled whole before its page arrives, and every one of them counts: a listed row that the relay neither holds nor
//! finds here is published again. Neighbours share a block of 512, so such a transaction costs a few hundred kilobytes.
//! The number of blocks is bounded; nothing is ever cleared to make room, the newcomer is refused.

use std::collections::BTreeMap;

use crate::event::Seq;

/// Rows of one block.
const BLOCK_ROWS: Seq = 512;
/// Words of one block.
const WORDS: usize = (BLOCK_ROWS / 64) as usize;
/// Blocks, at most: about 6 MiB, were every one of them in use.
pub(super) const BLOCKS_MAX: usize = 65_536;

/// See the module head.
#[derive(Debug, Default)]
pub(super) struct Seqs {
    blocks: BTreeMap<Seq, [u64; WORDS]>,
    len: usize,
}

/// Block, word and bit of a row.
fn place(seq: Seq) -> (Seq, usize, u64) {
    let bit = seq.rem_euclid(BLOCK_ROWS);
    (seq.div_euclid(BLOCK_ROWS), (bit / 64) as usize, 1 << (bit % 64))
}

impl Seqs {
    /// Adds a row. False if there is no room for it; a row that is in already needs none.
    pub(super) fn insert(&mut self, seq: Seq) -> bool {
        let (block, word, bit) = place(seq);
        let full = self.blocks.len() >= BLOCKS_MAX;
        if full && !self.blocks.contains_key(&block) {
            return false;
        }
        let words = self.blocks.entry(block).or_default();
        self.len += usize::from(words[word] & bit == 0);
        words[word] |= bit;
        true
    }

    /// Is the row in?
    pub(super) fn contains(&self, seq: Seq) -> bool {
        let (block, word, bit) = place(seq);
        self.blocks.get(&block).is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes a row out. Was it in?
    pub(super) fn remove(&mut self, seq: Seq) -> bool {
        let (block, word, bit) = place(seq);
        let Some(words) = self.blocks.get_mut(&block) else { return false };
        if words[word] & bit == 0 {
            return false;
        }
        words[word] &= !bit;
        self.len -= 1;
        if words.iter().all(|word| *word == 0) {
            self.blocks.remove(&block);
        }
        true
    }

    /// Is no row in?
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many rows are in.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Forgets the blocks of which every row lies below `seq`.
    pub(super) fn forget_below(&mut self, seq: Seq) {
        let kept = self.blocks.split_off(&place(seq).0);
        let forgotten = std::mem::replace(&mut self.blocks, kept);
        let ones = |words: &[u64; WORDS]| words.iter().map(|word| word.count_ones() as usize).sum::<usize>();
        self.len -= forgotten.values().map(ones).sum::<usize>();
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Seqs::default();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn two_million_neighbours_are_few_blocks() {
        let mut seqs = Seqs::default();
        assert!((1..=2_000_000).all(|seq| seqs.insert(seq)));
        assert_eq!((seqs.len(), seqs.blocks.len()), (2_000_000, 3907));
        assert!((1..=2_000_000).all(|seq| seqs.remove(seq)));
        assert_eq!((seqs.len(), seqs.blocks.len()), (0, 0));
    }

    #[test]
    fn beyond_the_bound_a_newcomer_is_refused_and_nothing_is_forgotten() {
        let mut seqs = Seqs::default();
        let row = |block: usize| block as Seq * BLOCK_ROWS;
        assert!((0..BLOCKS_MAX).all(|block| seqs.insert(row(block))));
        assert!(!seqs.insert(row(BLOCKS_MAX)) && !seqs.contains(row(BLOCKS_MAX)));
        assert!(seqs.insert(row(7) + 1), "its block is there");
        assert!((0..BLOCKS_MAX).all(|block| seqs.contains(row(block))));
        assert!(seqs.remove(row(3)) && seqs.insert(row(BLOCKS_MAX)), "there is room again");
        seqs.forget_below(row(BLOCKS_MAX));
        assert_eq!((seqs.len(), seqs.blocks.len()), (1, 1));
    }

    #[test]
    fn a_block_is_forgotten_whole_or_not_at_all() {
        let mut seqs = Seqs::default();
        assert!([511, 512, 1023, 1024].into_iter().all(|seq| seqs.insert(seq)));
        seqs.forget_below(1023);
        assert!(!seqs.contains(511) && seqs.contains(512) && seqs.contains(1023));
        seqs.forget_below(1024);
        assert!(!seqs.contains(1023) && seqs.contains(1024));
        assert_eq!(seqs.len(), 1);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(Seq),
        Remove(Seq),
        ForgetBelow(Seq),
    }

    fn op() -> impl Strategy<Value = Op> {
        let seq = || prop_oneof![-600..3000i64, any::<i64>()];
        prop_oneof![
            4 => seq().prop_map(Op::Insert),
            2 => seq().prop_map(Op::Remove),
            1 => seq().prop_map(Op::ForgetBelow),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_set(ops in prop::collection::vec(op(), 1..200)) {
            let (mut seqs, mut model) = (Seqs::default(), BTreeSet::new());
            for op in ops {
                match op {
                    Op::Insert(seq) => {
                        prop_assert!(seqs.insert(seq));
                        model.insert(seq);
                    }
                    Op::Remove(seq) => prop_assert_eq!(seqs.remove(seq), model.remove(&seq)),
                    Op::ForgetBelow(seq) => {
                        seqs.forget_below(seq);
                        let from = seq.div_euclid(BLOCK_ROWS).saturating_mul(BLOCK_ROWS);
                        model = model.split_off(&from);
                    }
                }
                prop_assert_eq!(seqs.len(), model.len());
                prop_assert!(model.iter().all(|seq| seqs.contains(*seq)));
                prop_assert!(seqs.blocks.values().all(|words| words.iter().any(|word| *word != 0)));
            }
            for seq in -600..3000 {
                prop_assert_eq!(seqs.contains(seq), model.contains(&seq));
            }
        }
    }
}
