//! Replication slots and walsenders: those that this pipeline should not have, and those of others that retain WAL.

use tokio_postgres::{Client, Error};

use crate::config::units::about_size;
use crate::finding::{Code, Finding, complete};
use crate::store::cursor_admin;

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::SlotLeft, Code::WalsenderLeft, Code::SlotForeign];

const GIB: u64 = 1 << 30;
/// A slot that is in use and retains more: its reader does not keep up.
const RETAINED_WARN: u64 = GIB;
/// Near to filling a disk.
const RETAINED_ERROR: u64 = 10 * GIB;

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// `logical` or `physical`.
    pub kind: String,
    /// In this database (a physical slot is in none).
    pub here: bool,
    /// In use.
    pub active: bool,
    /// Ends with its connection.
    pub temporary: bool,
    /// `reserved`, `extended`, `unreserved`, `lost`; `None`: it has not been used.
    pub wal_status: Option<String>,
    /// Bytes of WAL since its `restart_lsn`.
    pub retained: Option<u64>,
}

/// What the server says about replication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// All slots, those that retain most first.
    pub slots: Vec<Slot>,
    /// Walsenders that call themselves this pipeline's stream, in this database.
    pub walsenders: Vec<i32>,
    /// A relay leads.
    pub led: bool,
}

/// What the catalog view shows everybody. (`wal_status` is `lost` once the server has removed what a slot would need.)
const SLOTS: &str = "
SELECT slot_name::text, slot_type, coalesce(database = current_database(), false), active, temporary, wal_status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint
  FROM pg_replication_slots
 ORDER BY restart_lsn NULLS LAST
 LIMIT $1";

/// By way of `pg_stat_activity`, which tells everybody the database.
const WALSENDERS: &str = "
SELECT r.pid
  FROM pg_stat_replication r
  JOIN pg_stat_activity a ON a.pid = r.pid
 WHERE r.application_name = $1 AND a.datname = current_database()";

/// `prefix`: what the names of the pipeline's slots begin with; `stream`: its stream's `application_name`.
///
/// # Errors
/// SQL.
pub async fn examine(
    client: &Client,
    pipeline: &str,
    prefix: &str,
    stream: &str,
) -> Result<Vec<Finding>, Error> {
    let mut slots = Vec::new();
    for row in client.query(SLOTS, &[&super::ROWS_MAX]).await? {
        slots.push(Slot {
            name: row.try_get(0)?,
            kind: row.try_get(1)?,
            here: row.try_get(2)?,
            active: row.try_get(3)?,
            temporary: row.try_get(4)?,
            wal_status: row.try_get(5)?,
            retained: row.try_get::<_, Option<i64>>(6)?.map(|bytes| u64::try_from(bytes).unwrap_or(0)),
        });
    }
    let rows = client.query(WALSENDERS, &[&stream]).await?;
    let walsenders = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let led = cursor_admin::leader(client, pipeline).await?.is_some();
    Ok(judge(&Facts { slots, walsenders, led }, prefix))
}

/// Facts to findings.
pub fn judge(facts: &Facts, prefix: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for slot in &facts.slots {
        let own = is_stream(&slot.name, prefix) && slot.here;
        if own && (!slot.temporary || !slot.active) {
            findings.push(left(slot));
        } else if !(own || is_any_stream(slot)) {
            findings.push(foreign(slot));
        }
    }
    if !facts.led {
        for pid in &facts.walsenders {
            let text = "it streams, or waits to create its slot, for a relay that does not lead any more";
            findings.push(
                Finding::warning(Code::WalsenderLeft, format!("backend {pid}"), text)
                    .with_remedy(format!("the next leader ends it; or SELECT pg_terminate_backend({pid})")),
            );
        }
    }
    complete(CODES, findings)
}

/// `prefix` and the number of a process.
fn is_stream(name: &str, prefix: &str) -> bool {
    let number = name.strip_prefix(prefix).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
}

/// A stream of whatever pipeline: `statecast_<pipeline>_<number of a process>`, and temporary.
fn is_any_stream(slot: &Slot) -> bool {
    let split = slot.name.strip_prefix("statecast_").and_then(|rest| rest.rsplit_once('_'));
    slot.temporary && split.is_some_and(|(_, number)| is_stream(number, ""))
}

fn place(slot: &Slot) -> String {
    format!("{} slot {}", slot.kind, slot.name)
}

fn retains(slot: &Slot) -> String {
    match slot.retained {
        Some(bytes) => format!("retains {} of WAL", about_size(bytes)),
        None => "retains no WAL".to_owned(),
    }
}

fn drop_it(slot: &Slot) -> String {
    format!("SELECT pg_drop_replication_slot('{}')", slot.name.replace('\'', "''"))
}

fn left(slot: &Slot) -> Finding {
    let kind =
        if slot.temporary { "temporary, and not in use" } else { "permanent, and Statecast makes none" };
    Finding::error(
        Code::SlotLeft,
        place(slot),
        format!("it has this pipeline's name, is {kind}, and {}", retains(slot)),
    )
    .with_remedy(drop_it(slot))
}

fn foreign(slot: &Slot) -> Finding {
    let use_ = if slot.active { "in use" } else { "not in use" };
    let status = slot.wal_status.as_deref().unwrap_or("not used yet");
    let text = format!("{use_}, {} ({status})", retains(slot));
    let bytes = slot.retained.unwrap_or(0);
    let endangered = matches!(slot.wal_status.as_deref(), Some("lost" | "unreserved"));
    let finding = if endangered || bytes >= RETAINED_ERROR {
        Finding::error(Code::SlotForeign, place(slot), text)
    } else if slot.retained.is_some() && !slot.active || bytes >= RETAINED_WARN {
        Finding::warning(Code::SlotForeign, place(slot), text)
    } else {
        return Finding::info(Code::SlotForeign, place(slot), text)
            .with_remedy("nothing while its reader keeps up");
    };
    let start = if slot.active { "see why its reader lags" } else { "start its reader" };
    finding.with_remedy(format!(
        "{start}, or, if nobody needs it, {}; bound it by max_slot_wal_keep_size",
        drop_it(slot)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn slot(name: &str) -> Slot {
        Slot {
            name: name.into(),
            kind: "logical".into(),
            here: true,
            active: true,
            temporary: false,
            wal_status: Some("reserved".into()),
            retained: Some(1 << 20),
        }
    }

    fn worst(slot: Slot) -> (Code, Severity) {
        let found = judge(&Facts { slots: vec![slot], ..Facts::default() }, "statecast_orders_");
        found.iter().max_by_key(|finding| finding.severity).map(|f| (f.code, f.severity)).unwrap()
    }

    #[test]
    fn a_stream_of_ours_is_temporary_and_in_use() {
        let own = Slot { temporary: true, ..slot("statecast_orders_4711") };
        assert_eq!(worst(own.clone()).1, Severity::Ok);
        assert_eq!(worst(Slot { active: false, ..own }), (Code::SlotLeft, Severity::Error));
        assert_eq!(worst(slot("statecast_orders_4711")), (Code::SlotLeft, Severity::Error));
        // Another pipeline's name begins like ours; and somebody else's slot.
        assert_eq!(worst(Slot { temporary: true, ..slot("statecast_orders_eu_7") }).1, Severity::Ok);
        assert_eq!(worst(slot("statecast_orders_eu_7")), (Code::SlotForeign, Severity::Info));
        assert_eq!(worst(slot("statecast_orders_")), (Code::SlotForeign, Severity::Info));
        assert_eq!(
            worst(Slot { here: false, ..slot("statecast_orders_1") }),
            (Code::SlotForeign, Severity::Info)
        );
    }

    #[test]
    fn foreign_slots_are_judged_by_what_they_retain() {
        let with = |active, retained, status: &str| {
            let wal_status = Some(status.to_owned());
            worst(Slot { active, retained, wal_status, ..slot("debezium") }).1
        };
        assert_eq!(with(true, Some(5), "reserved"), Severity::Info);
        assert_eq!(with(false, Some(5), "reserved"), Severity::Warning);
        assert_eq!(with(true, Some(2 * GIB), "extended"), Severity::Warning);
        assert_eq!(with(true, Some(11 * GIB), "extended"), Severity::Error);
        assert_eq!(with(false, None, "lost"), Severity::Error);
        assert_eq!(with(false, None, "reserved"), Severity::Info);
    }

    #[test]
    fn a_walsender_without_a_leader_is_left() {
        let facts = |led| Facts { walsenders: vec![7], led, ..Facts::default() };
        assert!(judge(&facts(true), "p_").iter().all(|finding| finding.severity == Severity::Ok));
        let found = judge(&facts(false), "p_");
        assert!(found[0].code == Code::WalsenderLeft && found[0].remedy.contains("pg_terminate_backend(7)"));
    }
}
