//! Who holds vacuum back. Dead rows that some old snapshot might still see stay: the cursor row is written many times a
//! second, and the system catalogs change with every chunk.
//! See <https://www.postgresql.org/docs/current/routine-vacuuming.html#VACUUM-FOR-SPACE-RECOVERY>.

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding, complete};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::VacuumHorizon];

/// What holds a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// `backend`, `slot`, `catalog of slot`, `prepared`, `standby`.
    pub kind: String,
    /// Pid, slot or transaction name.
    pub name: String,
    /// `application_name` or plugin.
    pub detail: String,
    /// Transactions since.
    pub age: i64,
}

/// Backends and prepared transactions of other databases do not hold the rows of this one (since PostgreSQL 14); slots and
/// standbys do. A walsender without a slot passes its standby's feedback on as its own. A VACUUM, with its parallel workers,
/// shows a snapshot that no other vacuum waits for. A temporary slot in use is a running stream, such as our own: it ends
/// with its connection and cannot be dropped before.
const HOLDERS: &str = "
SELECT kind, name, detail, age
  FROM (SELECT CASE WHEN r.pid IS NULL THEN 'backend' ELSE 'standby' END AS kind, a.pid::text AS name,
               coalesce(a.application_name, '') AS detail, age(a.backend_xmin)::bigint AS age
          FROM pg_stat_activity a LEFT JOIN pg_stat_replication r ON r.pid = a.pid
         WHERE a.pid <> pg_backend_pid() AND a.backend_xmin IS NOT NULL
           AND (r.pid IS NOT NULL OR a.datname = current_database())
           AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid IN (a.pid, a.leader_pid))
        UNION ALL
        SELECT 'slot', slot_name::text, coalesce(plugin::text, slot_type), age(xmin)::bigint
          FROM pg_replication_slots WHERE xmin IS NOT NULL
        UNION ALL
        SELECT 'catalog of slot', slot_name::text, coalesce(plugin::text, slot_type), age(catalog_xmin)::bigint
          FROM pg_replication_slots WHERE catalog_xmin IS NOT NULL AND NOT (temporary AND active)
        UNION ALL
        SELECT 'prepared', gid, owner::text, age(transaction)::bigint
          FROM pg_prepared_xacts WHERE database = current_database()) h
 ORDER BY age DESC
 LIMIT $1";

/// Holders of a snapshot that is at least `age_max` transactions old.
///
/// # Errors
/// SQL.
pub async fn examine(client: &Client, age_max: i64) -> Result<Vec<Finding>, Error> {
    let mut holders = Vec::new();
    for row in client.query(HOLDERS, &[&super::ROWS_MAX]).await? {
        holders.push(Holder {
            kind: row.try_get(0)?,
            name: row.try_get(1)?,
            detail: row.try_get(2)?,
            age: row.try_get(3)?,
        });
    }
    Ok(judge(&holders, age_max))
}

/// Facts to findings.
pub fn judge(holders: &[Holder], age_max: i64) -> Vec<Finding> {
    let old = holders.iter().filter(|holder| holder.age >= age_max);
    complete(CODES, old.map(found).collect())
}

fn found(holder: &Holder) -> Finding {
    let Holder { kind, name, detail, age } = holder;
    let quoted = name.replace('\'', "''");
    let (place, remedy) = match kind.as_str() {
        "backend" => (
            format!("backend {name}, {detail}"),
            format!("let it end its transaction, or SELECT pg_terminate_backend({name})"),
        ),
        "standby" => (
            format!("standby {detail} (backend {name})"),
            "look for a long query on the standby; hot_standby_feedback passes its horizon on".to_owned(),
        ),
        "prepared" => (
            format!("prepared transaction '{quoted}', {detail}"),
            format!(
                "COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}', whichever its coordinator says"
            ),
        ),
        _ => (
            format!("{kind} {name} ({detail})"),
            format!("start its reader, or, if nobody needs it, SELECT pg_drop_replication_slot('{quoted}')"),
        ),
    };
    let text = format!("holds a snapshot that is {age} transactions old");
    Finding::warning(Code::VacuumHorizon, place, text).with_remedy(remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn holder(kind: &str, age: i64) -> Holder {
        Holder { kind: kind.into(), name: "9".into(), detail: "app".into(), age }
    }

    #[test]
    fn only_the_old_are_reported_each_with_its_remedy() {
        let all = [
            holder("backend", 10),
            holder("standby", 10),
            holder("prepared", 10),
            holder("slot", 10),
            holder("catalog of slot", 9),
        ];
        let found = judge(&all, 10);
        let words = [
            "pg_terminate_backend(9)",
            "hot_standby_feedback",
            "ROLLBACK PREPARED '9'",
            "drop_replication_slot",
        ];
        assert_eq!(found.len(), words.len());
        for (finding, word) in found.iter().zip(words) {
            assert!(finding.severity == Severity::Warning && finding.remedy.contains(word), "{finding:?}");
        }
        assert_eq!(judge(&all, 11)[0].severity, Severity::Ok);
    }
}
