//! Guarantees that a test may switch off, to show that the tests would notice (feature `breakable`, never in a release).
//!
//! `STATECAST_BREAK=fence` makes a process go without its fence, and so on: one guarantee, named by the variable, read once.
//! Without the feature [`holds`] is a constant, and nothing of this is in the program.
//!
//! | name | without it |
//! |---|---|
//! | `mandatory` | what no queue takes is confirmed, and gone |
//! | `prefix` | the cursor follows the last confirm, over events that were refused |
//! | `key_order` | events of a key do not wait for each other |
//! | `fence` | a dead predecessor's messages land among its successor's |
//! | `epoch` | a superseded leader goes on writing the cursor |
//! | `reconcile` | rows that a stream did not bring count as settled |
//! | `prune_by_max_seq` | a window's rows are looked for above the highest number at P, not above `prune_seq` |

/// What a relay guarantees, and may be made to give up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Messages are published `mandatory`.
    Mandatory,
    /// The cursor moves over the contiguous settled prefix only.
    Prefix,
    /// An event waits for the confirm of the one before it in its key.
    KeyOrder,
    /// Nothing is published before the fence is ours.
    Fence,
    /// Cursor writes are fenced by the epoch.
    Epoch,
    /// What a stream should have brought is compared with what it did.
    Reconcile,
    /// `prune_seq` is paired with P as §3 of the design says.
    Prune,
}

impl Guarantee {
    /// All of them.
    pub const ALL: [Guarantee; 7] = [
        Guarantee::Mandatory,
        Guarantee::Prefix,
        Guarantee::KeyOrder,
        Guarantee::Fence,
        Guarantee::Epoch,
        Guarantee::Reconcile,
        Guarantee::Prune,
    ];

    /// The value of the variable that switches it off.
    pub const fn name(self) -> &'static str {
        match self {
            Guarantee::Mandatory => "mandatory",
            Guarantee::Prefix => "prefix",
            Guarantee::KeyOrder => "key_order",
            Guarantee::Fence => "fence",
            Guarantee::Epoch => "epoch",
            Guarantee::Reconcile => "reconcile",
            Guarantee::Prune => "prune_by_max_seq",
        }
    }
}

#[cfg(not(feature = "breakable"))]
mod switch {
    use std::borrow::Cow;

    use super::Guarantee;

    /// Is this guarantee kept? Always.
    pub const fn holds(_: Guarantee) -> bool {
        true
    }

    /// A statement that is fenced by the epoch, as it stands.
    pub const fn fenced(sql: &str) -> Cow<'_, str> {
        Cow::Borrowed(sql)
    }

    /// Says which guarantee is switched off. None can be.
    ///
    /// # Errors
    /// None.
    pub const fn announce() -> Result<(), String> {
        Ok(())
    }
}

#[cfg(feature = "breakable")]
mod switch {
    use std::borrow::Cow;
    use std::sync::OnceLock;

    use super::Guarantee;

    const VARIABLE: &str = "STATECAST_BREAK";
    /// The fence of a statement on the cursor row.
    const FENCE: &str = "AND epoch = $2";

    /// What the variable says; an error if it names nothing.
    fn broken() -> &'static Result<Option<Guarantee>, String> {
        static READ: OnceLock<Result<Option<Guarantee>, String>> = OnceLock::new();
        READ.get_or_init(|| parse(std::env::var(VARIABLE).ok().as_deref()))
    }

    pub(super) fn parse(value: Option<&str>) -> Result<Option<Guarantee>, String> {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
        let found = Guarantee::ALL.into_iter().find(|guarantee| guarantee.name() == value);
        found.map(Some).ok_or_else(|| {
            let names = Guarantee::ALL.map(Guarantee::name).join(", ");
            format!("{VARIABLE} = {value:?} is none of {names}")
        })
    }

    /// Is this guarantee kept?
    pub fn holds(guarantee: Guarantee) -> bool {
        *broken() != Ok(Some(guarantee))
    }

    /// A statement that is fenced by the epoch; without its fence if that is switched off.
    pub fn fenced(sql: &str) -> Cow<'_, str> {
        if holds(Guarantee::Epoch) {
            return Cow::Borrowed(sql);
        }
        assert!(sql.contains(FENCE), "no fence in {sql}");
        Cow::Owned(sql.replace(FENCE, "AND $2::bigint IS NOT NULL"))
    }

    /// Says loudly which guarantee is switched off.
    ///
    /// # Errors
    /// The variable names none.
    pub fn announce() -> Result<(), String> {
        match broken() {
            Ok(None) => Ok(()),
            Ok(Some(guarantee)) => {
                let guarantee = guarantee.name();
                tracing::error!(
                    "BROKEN ON PURPOSE ({VARIABLE}={guarantee}): this relay does not keep its promises"
                );
                Ok(())
            }
            Err(text) => Err(text.clone()),
        }
    }
}

pub use switch::{announce, fenced, holds};

#[cfg(all(test, feature = "breakable"))]
mod tests {
    use super::*;

    #[test]
    fn every_guarantee_has_its_name_and_nothing_else_has() {
        for guarantee in Guarantee::ALL {
            assert_eq!(switch::parse(Some(guarantee.name())), Ok(Some(guarantee)));
        }
        assert_eq!(switch::parse(None), Ok(None));
        assert_eq!(switch::parse(Some("")), Ok(None));
        assert!(switch::parse(Some("fences")).is_err_and(|text| text.contains("prune_by_max_seq")));
    }

    #[test]
    fn in_a_process_without_the_variable_everything_holds() {
        assert!(Guarantee::ALL.into_iter().all(holds));
        assert_eq!(fenced("WHERE pipeline = $1 AND epoch = $2"), "WHERE pipeline = $1 AND epoch = $2");
    }
}
