//! The books, verified: every row is counted, and each number is compared with another one that does not come from it.
//!
//! ```text
//! committed           rows of the outbox + rows of dropped chunks − base      (base: settled before the pipeline began)
//!   = confirmed + parked + discarded + pending
//! passed              those of them before the position
//!   = confirmed + parked + discarded of the cursor row, whose `parked` is: rows set aside, open, and passed
//! ```
//!
//! A row is before the position if P sees its transaction, or the upper snapshot of the window in progress does and the row lies in
//! the settled prefix, or if it lies at or below `floor_seq` (after a rebase P sees nothing).

use tokio_postgres::{Error, Transaction};

use super::cursor_admin::CursorRow;
use super::status::{Status, not_passed_sql};

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is about; a short name that stays.
    pub name: &'static str,
    /// The left side, in words and numbers.
    pub left: String,
    /// The right side, in words and numbers.
    pub right: String,
    /// Left − right.
    pub difference: i64,
}

impl Check {
    fn new(name: &'static str, (left, a): (String, i64), (right, b): (String, i64)) -> Self {
        Check { name, left, right, difference: a - b }
    }

    /// There should be none of these.
    fn none(name: &'static str, what: &str, count: i64) -> Self {
        Check { name, left: format!("{count} {what}"), right: "0".to_owned(), difference: count }
    }
}

/// All comparisons, in the order in which one would look at them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The comparisons.
    pub checks: Vec<Check>,
}

impl Verification {
    /// Both sides of each are equal.
    pub fn is_exact(&self) -> bool {
        self.checks.iter().all(|check| check.difference == 0)
    }
}

/// Counts. `$1` to `$5` as in the status, `$6` pipeline.
///
/// `rows` looks at every row of the outbox once; `to_come` is what the next polls will list, found their way, by the bounds.
const COUNT: &str = concat!(
    "
WITH position AS MATERIALIZED (
    SELECT $1::text::pg_snapshot AS p, $4::text::pg_snapshot AS upper
), rows AS (
    SELECT count(*) AS total,
           count(*) FILTER (WHERE o.seq <= $3
                               OR pg_visible_in_snapshot(o.xid, (SELECT p FROM position))
                               OR (o.seq <= $5::bigint
                                   AND pg_visible_in_snapshot(o.xid, (SELECT upper FROM position)))) AS passed
      FROM statecast.outbox o
), to_come AS MATERIALIZED (
    ",
    not_passed_sql!(),
    "
), aside AS MATERIALIZED (
    SELECT p.seq, p.passed, p.state IN ('confirmed', 'discarded') AS final
      FROM statecast.parked p
     WHERE p.pipeline = $6
)
SELECT rows.total,
       rows.passed,
       (SELECT coalesce(sum(c.rows), 0)::bigint FROM statecast.chunk c),
       (SELECT count(*) FROM to_come),
       (SELECT count(*) FROM aside WHERE passed AND NOT final),
       (SELECT count(*) FROM aside WHERE passed AND final),
       (SELECT count(*) FROM aside a WHERE NOT a.passed AND NOT EXISTS (SELECT FROM to_come t WHERE t.seq = a.seq)),
       (SELECT count(*) FROM aside a WHERE a.passed AND EXISTS (SELECT FROM to_come t WHERE t.seq = a.seq))
  FROM rows"
);

/// Compares. The transaction has one snapshot, and had locked the outbox before it was taken.
///
/// # Errors
/// SQL.
pub(super) async fn verify(
    transaction: &Transaction<'_>,
    cursor: &CursorRow,
    status: &Status,
) -> Result<Verification, Error> {
    let window = cursor.window.as_ref();
    let (upper, prefix) = (window.map(|w| w.snapshot.as_str()), window.map(|w| w.seq));
    let row = transaction
        .query_one(
            COUNT,
            &[&cursor.snapshot, &cursor.prune_seq, &cursor.floor_seq, &upper, &prefix, &cursor.pipeline],
        )
        .await?;
    let get = |column: usize| row.try_get::<_, i64>(column);
    Ok(compare(
        cursor,
        status,
        &Counted {
            rows: get(0)?,
            passed: get(1)?,
            dropped: get(2)?,
            to_come: get(3)?,
            aside: get(4)?,
            left_over: get(5)?,
            unmarked: get(6)?,
            marked_early: get(7)?,
        },
    ))
}

/// What [`COUNT`] counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Rows of the outbox.
    rows: i64,
    /// Those before the position.
    passed: i64,
    /// Rows of chunks that retention has dropped.
    dropped: i64,
    /// Rows that the next polls will list.
    to_come: i64,
    /// Set aside, open and passed.
    aside: i64,
    /// Set aside, final and passed: needed no more.
    left_over: i64,
    /// Set aside and not passed, and no poll lists them any more.
    unmarked: i64,
    /// Set aside and passed, and a poll will list them.
    marked_early: i64,
}

fn compare(cursor: &CursorRow, status: &Status, counted: &Counted) -> Verification {
    let Counted { rows, dropped, .. } = *counted;
    let base = cursor.base;
    let committed = rows + dropped - base;
    let passed = counted.passed + dropped - base;
    let settled = status.confirmed + status.parked + status.discarded + status.pending;
    let booked = cursor.confirmed + cursor.parked + cursor.discarded;
    let beyond = rows - counted.passed;
    Verification {
        checks: vec![
            Check::new(
                "committed",
                (
                    format!("committed {committed} (outbox {rows} + dropped {dropped} - base {base})"),
                    committed,
                ),
                (
                    format!(
                        "confirmed {} + parked {} + discarded {} + pending {} = {settled}",
                        status.confirmed, status.parked, status.discarded, status.pending
                    ),
                    settled,
                ),
            ),
            Check::new(
                "passed",
                (
                    format!(
                        "before the position {passed} (outbox {} + dropped {dropped} - base {base})",
                        counted.passed
                    ),
                    passed,
                ),
                (
                    format!(
                        "cursor: confirmed {} + parked {} + discarded {} = {booked}",
                        cursor.confirmed, cursor.parked, cursor.discarded
                    ),
                    booked,
                ),
            ),
            Check::new(
                "set aside",
                (format!("set aside, open and passed {}", counted.aside), counted.aside),
                (format!("cursor: parked {}", cursor.parked), cursor.parked),
            ),
            Check::new(
                "to come",
                (format!("not before the position {beyond}"), beyond),
                (format!("within reach of the next polls {}", counted.to_come), counted.to_come),
            ),
            Check::none(
                "left over",
                "rows set aside are final and passed, and still there",
                counted.left_over,
            ),
            Check::none(
                "unmarked",
                "rows set aside are not marked as passed, and no poll lists them",
                counted.unmarked,
            ),
            Check::none(
                "marked early",
                "rows set aside are marked as passed, and a poll will list them",
                counted.marked_early,
            ),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursor() -> CursorRow {
        CursorRow {
            pipeline: "orders".into(),
            system_identifier: 7,
            timeline: 1,
            epoch: 3,
            holder: None,
            pids: Vec::new(),
            snapshot: "10:20:11".into(),
            prune_seq: 5,
            floor_seq: 4,
            candidate: None,
            max_seq: 8,
            window: None,
            lanes: 1,
            base: 2,
            confirmed: 10,
            parked: 3,
            discarded: 1,
            updated_at: String::new(),
            age_ms: 1,
            lease_ms: None,
        }
    }

    fn status() -> Status {
        Status {
            cursor: None,
            leader: None,
            pending: 6,
            set_aside: 2,
            oldest_pending_ms: None,
            parked: 1,
            confirmed: 10,
            discarded: 1,
            same_server: true,
            verification: None,
        }
    }

    const COUNTED: Counted = Counted {
        rows: 15,
        passed: 11,
        dropped: 5,
        to_come: 4,
        aside: 3,
        left_over: 0,
        unmarked: 0,
        marked_early: 0,
    };

    fn wrong(counted: &Counted) -> Vec<(&'static str, i64)> {
        let verification = compare(&cursor(), &status(), counted);
        let wrong = verification.checks.iter().filter(|check| check.difference != 0);
        wrong.map(|check| (check.name, check.difference)).collect()
    }

    #[test]
    fn exact_books_are_exact() {
        let verification = compare(&cursor(), &status(), &COUNTED);
        assert!(verification.is_exact(), "{verification:?}");
    }

    #[test]
    fn each_side_is_compared() {
        assert_eq!(wrong(&Counted { rows: 14, passed: 10, ..COUNTED }), [("committed", -1), ("passed", -1)]);
        assert_eq!(wrong(&Counted { passed: 12, ..COUNTED }), [("passed", 1), ("to come", -1)]);
        assert_eq!(wrong(&Counted { dropped: 6, ..COUNTED }), [("committed", 1), ("passed", 1)]);
        assert_eq!(wrong(&Counted { to_come: 3, ..COUNTED }), [("to come", 1)]);
        assert_eq!(wrong(&Counted { aside: 4, ..COUNTED }), [("set aside", 1)]);
        assert_eq!(wrong(&Counted { left_over: 1, ..COUNTED }), [("left over", 1)]);
        assert_eq!(wrong(&Counted { unmarked: 1, ..COUNTED }), [("unmarked", 1)]);
        assert_eq!(wrong(&Counted { marked_early: 1, ..COUNTED }), [("marked early", 1)]);
    }
}
