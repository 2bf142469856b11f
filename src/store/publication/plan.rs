//! What there is to do about a publication as it was found, and the SQL that does it. Pure.

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::publication::{Extra, Fault, Found};

const OPTIONS: &str = "publish = 'insert', publish_via_partition_root = true";

/// What there is to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Nothing,
    Create,
    Mend { sql: Vec<String>, wrong: Vec<String> },
    Refuse { owner: String, holds: String, wrong: String, sql: Vec<String> },
}

pub(super) fn plan(found: Option<&Found>, name: &str) -> Plan {
    let Some(found) = found else {
        return Plan::Create;
    };
    let (faults, foreign) = (found.faults(), found.foreign());
    let mut wrong: Vec<String> = faults.iter().map(Fault::to_string).collect();
    if !foreign.is_empty() {
        if faults.is_empty() {
            return Plan::Nothing;
        }
        let holds: Vec<String> = foreign.iter().map(Extra::to_string).collect();
        let (owner, holds, wrong) = (found.owner.clone(), holds.join(", "), wrong.join(", "));
        return Plan::Refuse { owner, holds, wrong, sql: beside_others(found, &faults, name) };
    }
    let more = found.extras();
    wrong.extend(more.iter().map(|extra| format!("it publishes {extra}")));
    if wrong.is_empty() {
        return Plan::Nothing;
    }
    let quoted = escape_identifier(name);
    let mut sql = Vec::new();
    if !more.is_empty() || faults.iter().any(about_options) {
        sql.push(format!("ALTER PUBLICATION {quoted} SET ({OPTIONS})"));
    }
    if !faults.iter().all(about_options) {
        // Filter and column list go as well, and so does a chunk that was listed by name.
        sql.push(format!("ALTER PUBLICATION {quoted} SET TABLE statecast.outbox"));
    }
    Plan::Mend { sql, wrong }
}

fn about_options(fault: &Fault) -> bool {
    matches!(fault, Fault::NoInserts | Fault::NotViaRoot)
}

/// What mends a publication and leaves to the others what is theirs: for people to decide, since the root option
/// concerns every partitioned table in it.
fn beside_others(found: &Found, faults: &[Fault], name: &str) -> Vec<String> {
    let quoted = escape_identifier(name);
    let mut sql = Vec::new();
    if faults.iter().any(about_options) {
        let mut operations = found.operations.clone();
        if faults.contains(&Fault::NoInserts) {
            operations.push("insert".to_owned());
        }
        let operations = operations.join(", ");
        sql.push(format!(
            "ALTER PUBLICATION {quoted} SET (publish = '{operations}', publish_via_partition_root = true)"
        ));
    }
    if faults.iter().any(|fault| matches!(fault, Fault::RowFilter | Fault::ColumnList)) {
        sql.push(format!("ALTER PUBLICATION {quoted} DROP TABLE statecast.outbox"));
    }
    if !faults.iter().all(about_options) {
        sql.push(format!("ALTER PUBLICATION {quoted} ADD TABLE statecast.outbox"));
    }
    sql
}

pub(super) fn create(name: &str) -> String {
    format!("CREATE PUBLICATION {} FOR TABLE statecast.outbox WITH ({OPTIONS})", escape_identifier(name))
}

pub(super) fn hand_over(name: &str) -> String {
    format!("ALTER PUBLICATION {} OWNER TO statecast_owner", escape_identifier(name))
}

/// The name goes by way of a setting: inside a dollar quote it could end it.
pub(super) fn create_sql(name: &str) -> String {
    format!(
        "{create};
-- It goes to the owner of the outbox where the server allows that: to a superuser, or with CREATE for that role on the
-- database. Otherwise it stays with whoever runs this, which does as well.
SELECT set_config('statecast.publication', {literal}, true);
DO $owner$
BEGIN
    EXECUTE format('ALTER PUBLICATION %I OWNER TO statecast_owner', current_setting('statecast.publication'));
EXCEPTION WHEN insufficient_privilege THEN
    NULL;
END
$owner$;
",
        create = create(name),
        literal = escape_literal(name),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right() -> Found {
        Found { operations: vec!["insert".into()], via_root: true, outbox: true, ..Found::default() }
    }

    fn mends(found: &Found) -> String {
        match plan(Some(found), "p \"q\"") {
            Plan::Mend { sql, .. } => sql.join("; "),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_right_is_not_touched() {
        assert_eq!(plan(None, "p"), Plan::Create);
        assert_eq!(plan(Some(&right()), "p"), Plan::Nothing);
        let operations = vec!["insert".into(), "update".into()];
        let shared = Found { others: vec!["public.t".into()], operations, ..right() };
        assert_eq!(plan(Some(&shared), "p"), Plan::Nothing, "somebody else may need the updates");
    }

    #[test]
    fn ours_is_mended_by_what_is_wrong() {
        let options = format!("ALTER PUBLICATION \"p \"\"q\"\"\" SET ({OPTIONS})");
        let table = "ALTER PUBLICATION \"p \"\"q\"\"\" SET TABLE statecast.outbox";
        assert_eq!(mends(&Found { via_root: false, ..right() }), options);
        assert_eq!(mends(&Found { operations: vec![], ..right() }), options);
        assert_eq!(
            mends(&Found { operations: vec!["insert".into(), "truncate".into()], ..right() }),
            options
        );
        assert_eq!(mends(&Found { outbox: false, ..right() }), table);
        assert_eq!(mends(&Found { row_filter: true, ..right() }), table);
        assert_eq!(mends(&Found { column_list: true, ..right() }), table);
        assert_eq!(mends(&Found::default()), format!("{options}; {table}"));
    }

    #[test]
    fn what_holds_other_tables_is_left_to_people() {
        let by_hand = |found: Found| match plan(Some(&found), "p") {
            Plan::Refuse { sql, .. } => sql.join("; "),
            other => panic!("{other:?}"),
        };
        let shared = Found { others: vec!["public.t".into()], ..right() };
        assert_eq!(
            by_hand(Found { outbox: false, ..shared.clone() }),
            "ALTER PUBLICATION \"p\" ADD TABLE statecast.outbox"
        );
        let filtered = by_hand(Found { row_filter: true, via_root: false, ..shared });
        assert!(filtered.contains("publish = 'insert', publish_via_partition_root = true)"), "{filtered}");
        assert!(
            filtered
                .ends_with("DROP TABLE statecast.outbox; ALTER PUBLICATION \"p\" ADD TABLE statecast.outbox")
        );
        let all = Found { all_tables: true, operations: vec!["delete".into()], ..right() };
        assert_eq!(
            by_hand(all),
            "ALTER PUBLICATION \"p\" SET (publish = 'delete, insert', publish_via_partition_root = true)"
        );
    }

    #[test]
    fn a_hostile_name_stays_a_name() {
        let sql = create_sql("a\"b'c\\d $owner$");
        assert!(sql.contains("\"a\"\"b'c\\d $owner$\""), "{sql}");
        assert!(sql.contains("E'a\"b''c\\\\d $owner$'"), "{sql}");
    }
}
