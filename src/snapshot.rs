//! `pg_snapshot`: which transactions had completed when it was taken.
//!
//! Rule (PostgreSQL documentation, "Transaction ID and Snapshot Information Functions"): ids below `xmin` have
//! completed, ids at or above `xmax` have not, and those between have unless they are listed in `xip`.

use std::fmt;
use std::str::FromStr;

use crate::event::Xid;

/// A parsed `pg_snapshot`. `xip` is sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Lowest id that was still running.
    pub xmin: Xid,
    /// One past the highest id that had completed.
    pub xmax: Xid,
    /// Ids in `xmin..xmax` that were still running.
    pub xip: Vec<Xid>,
}

/// The text is not a `pg_snapshot`.
#[derive(Debug, thiserror::Error)]
#[error("not a pg_snapshot: {0:?}")]
pub struct BadSnapshot(String);

impl Snapshot {
    /// The snapshot that sees nothing: where a new pipeline starts.
    pub const NOTHING: Snapshot = Snapshot { xmin: 1, xmax: 1, xip: Vec::new() };

    /// Had `xid` completed (committed or aborted) when the snapshot was taken?
    pub fn sees(&self, xid: Xid) -> bool {
        xid < self.xmin || (xid < self.xmax && self.xip.binary_search(&xid).is_err())
    }

    /// Does this snapshot see every transaction that `other` sees?
    pub fn covers(&self, other: &Snapshot) -> bool {
        self.xmax >= other.xmax && self.xip.iter().all(|xid| !other.sees(*xid))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (i, xid) in self.xip.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{xid}")?;
        }
        Ok(())
    }
}

impl FromStr for Snapshot {
    type Err = BadSnapshot;

    fn from_str(text: &str) -> Result<Self, BadSnapshot> {
        let bad = || BadSnapshot(text.chars().take(80).collect());
        let mut parts = text.splitn(3, ':');
        let mut number = || parts.next().and_then(|p| p.parse::<Xid>().ok()).ok_or_else(bad);
        let (xmin, xmax) = (number()?, number()?);
        let list = parts.next().ok_or_else(bad)?;
        let mut xip = Vec::new();
        for id in list.split(',').filter(|id| !id.is_empty()) {
            let xid = id.parse::<Xid>().map_err(|_| bad())?;
            if xid < xmin || xid >= xmax {
                return Err(bad());
            }
            xip.push(xid);
        }
        if xmin == 0 || xmax < xmin {
            return Err(bad());
        }
        xip.sort_unstable();
        Ok(Snapshot { xmin, xmax, xip })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sees_what_had_completed() {
        let s: Snapshot = "10:15:11,13".parse().unwrap();
        let seen: Vec<Xid> = (8..18).filter(|x| s.sees(*x)).collect();
        assert_eq!(seen, [8, 9, 10, 12, 14]);
        assert!(!Snapshot::NOTHING.sees(1));
    }

    #[test]
    fn covers_what_it_sees() {
        let s = |text: &str| text.parse::<Snapshot>().unwrap();
        assert!(s("10:15:11,13").covers(&s("10:12:11")));
        assert!(!s("10:15:11,13").covers(&s("14:14:")));
        assert!(!s("10:15:").covers(&s("10:16:")));
    }

    #[test]
    fn refuses_what_is_not_a_snapshot() {
        for text in ["", "1", "1:2", "0:0:", "5:4:", "1:2:x", "1:3:7", "1:3:-1"] {
            assert!(text.parse::<Snapshot>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_survives(xmin in 1u64..1000, span in 0u64..50, mask: u64) {
            let xip = (0..span).filter(|i| mask >> i & 1 == 1).map(|i| xmin + i).collect();
            let s = Snapshot { xmin, xmax: xmin + span, xip };
            prop_assert_eq!(s.to_string().parse::<Snapshot>().unwrap(), s);
        }

        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = text.parse::<Snapshot>();
        }
    }
}
