//! Who writes `xid` and `seq`: roles that may, and rows of which it shows.
//!
//! Both are filled by defaults that only the transaction itself can get right. A row carries its transaction's id in `xid`;
//! the server's own mark on the row, `xmin`, is that id or, behind a savepoint, a later one.

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding, complete, listed};
use crate::postgres::describe;

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::WriterGrants, Code::RowsForged];

/// A savepoint's id is later than its transaction's; not by so many.
const SAVEPOINT_GAP_MAX: i64 = 1_000_000;

/// Somebody may write what only a default or nobody should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Role, quoted; `PUBLIC` for everybody.
    pub role: String,
    /// Table in schema `statecast`, quoted.
    pub table: String,
    /// As GRANT has it: `INSERT (seq, xid)`, `UPDATE`.
    pub privilege: String,
}

/// What the newest rows say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// Looked at.
    pub rows: i64,
    /// `xid` is not yet issued: nothing publishes them until it is.
    pub future: i64,
    /// `xid` is another transaction's: later than the one that wrote the row, or rolled back.
    pub foreign: i64,
    /// `xid` is so much earlier that no savepoint explains it.
    pub early: i64,
    /// One such row; 0 = none.
    pub example_seq: i64,
    /// The largest `seq`.
    pub last_row_seq: i64,
    /// Last number issued.
    pub last_seq: i64,
}

/// Direct grants on the outbox and its chunks, to others than the owner; table and column grants. Superusers and members of
/// the owner need none.
const GRANTS: &str = "
WITH tables AS (
    SELECT c.oid, c.relname, c.relowner, c.relacl
      FROM pg_class c
     WHERE c.oid = 'statecast.outbox'::regclass
        OR c.oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'statecast.outbox'::regclass)
), granted AS (
    SELECT t.relname, a.grantee, a.privilege_type AS privilege, NULL::name AS column
      FROM tables t, aclexplode(t.relacl) a
     WHERE a.grantee <> t.relowner AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE')
    UNION ALL
    SELECT t.relname, a.grantee, a.privilege_type, c.attname
      FROM tables t
      JOIN pg_attribute c ON c.attrelid = t.oid AND c.attacl IS NOT NULL AND NOT c.attisdropped,
           aclexplode(c.attacl) a
     WHERE a.grantee <> t.relowner
       AND (a.privilege_type = 'UPDATE'
            OR a.privilege_type = 'INSERT' AND c.attname IN ('xid', 'seq', 'recorded_at'))
)
SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, quote_ident(relname),
       privilege || coalesce(' (' || string_agg(quote_ident(\"column\"), ', ' ORDER BY \"column\") || ')', '')
  FROM granted
 GROUP BY grantee, relname, privilege, \"column\" IS NULL
 ORDER BY 2, 1, 3
 LIMIT $1";

/// `xmin` has 32 bits: the difference is taken modulo 2^32, and the upper half means "later". `pg_xact_status` fails for ids
/// of the future, and is NULL for those of long ago. Rows from before a `cursor rebase` came from another server with its ids.
/// They are left out after the limit, not before it: `recorded_at` has no index, and after a rebase the search for enough
/// newer rows would read the whole outbox.
const ROWS: &str = "
WITH newest AS (
    SELECT o.seq, o.xid, o.recorded_at, o.xmin::text::bigint AS mark
      FROM statecast.outbox o
     ORDER BY o.seq DESC
     LIMIT $1
), latest AS (
    SELECT seq, xid, (mark - (xid::text::numeric % 4294967296)::bigint + 4294967296) % 4294967296 AS gap
      FROM newest
     WHERE recorded_at > coalesce((SELECT max(a.at) FROM statecast.audit a WHERE a.act = 'cursor rebase'), '-infinity')
), judged AS (
    SELECT seq, gap, xid >= pg_snapshot_xmax(pg_current_snapshot()) AS future,
           CASE WHEN gap = 0 OR xid >= pg_snapshot_xmax(pg_current_snapshot()) THEN false
                ELSE gap >= 2147483648 OR pg_xact_status(xid) IN ('aborted', 'in progress') END AS other
      FROM latest
)
SELECT count(*), count(*) FILTER (WHERE future), count(*) FILTER (WHERE other AND NOT future),
       count(*) FILTER (WHERE gap > $2 AND NOT other AND NOT future),
       coalesce(max(seq) FILTER (WHERE future OR other OR gap > $2), 0), coalesce(max(seq), 0)
  FROM judged";

/// `rows`: how many of the newest are looked at.
pub async fn examine(client: &Client, rows: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    match grants(client).await {
        Ok(grants) => findings.extend(judge_grants(&grants)),
        Err(error) => findings.push(Finding::not_examined(Code::WriterGrants, describe(&error))),
    }
    match latest(client, rows).await {
        Ok(rows) => findings.extend(judge_rows(&rows)),
        Err(error) => findings.push(Finding::not_examined(Code::RowsForged, describe(&error))),
    }
    complete(CODES, findings)
}

async fn grants(client: &Client) -> Result<Vec<Grant>, Error> {
    let rows = client.query(GRANTS, &[&super::ROWS_MAX]).await?;
    let decode = |row: &tokio_postgres::Row| {
        Ok(Grant { role: row.try_get(0)?, table: row.try_get(1)?, privilege: row.try_get(2)? })
    };
    rows.iter().map(decode).collect()
}

async fn latest(client: &Client, rows: i64) -> Result<Rows, Error> {
    let row = client.query_one(ROWS, &[&rows, &SAVEPOINT_GAP_MAX]).await?;
    // After the rows: the sequence only goes on, so an honest row is never ahead of it.
    let last = client
        .query_one(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq",
            &[],
        )
        .await?;
    Ok(Rows {
        rows: row.try_get(0)?,
        future: row.try_get(1)?,
        foreign: row.try_get(2)?,
        early: row.try_get(3)?,
        example_seq: row.try_get(4)?,
        last_row_seq: row.try_get(5)?,
        last_seq: last.try_get(0)?,
    })
}

/// Facts to findings.
pub fn judge_grants(grants: &[Grant]) -> Vec<Finding> {
    let finding = |grant: &Grant| {
        let Grant { role, table, privilege } = grant;
        let mut remedy = format!("REVOKE {privilege} ON statecast.{table} FROM {role}");
        if privilege.starts_with("INSERT") && role != "PUBLIC" {
            remedy.push_str(&format!("; GRANT statecast_writer TO {role}"));
        }
        let text = format!("role {role} has {privilege}");
        Finding::warning(Code::WriterGrants, format!("statecast.{table}"), text).with_remedy(remedy)
    };
    grants.iter().map(finding).collect()
}

/// Facts to findings.
pub fn judge_rows(found: &Rows) -> Vec<Finding> {
    let Rows { rows, future, foreign, early, example_seq, last_row_seq, last_seq } = *found;
    const PLACE: &str = "statecast.outbox";
    let mut findings = Vec::new();
    let mut wrong = Vec::new();
    let mut count = |count: i64, what: &str| {
        if count > 0 {
            wrong.push(format!("{count} with {what}"));
        }
    };
    count(future, "an id that no transaction has yet");
    count(foreign, "the id of another transaction");
    count(early, "an id from long before");
    if !wrong.is_empty() {
        let text = format!("of the latest {rows} rows {}, such as seq {example_seq}", listed(&wrong, 3));
        let finding = if future > 0 { Finding::error } else { Finding::warning };
        findings.push(finding(Code::RowsForged, PLACE, text));
    }
    if last_row_seq > last_seq {
        let text = format!(
            "row seq {last_row_seq} lies beyond the sequence, which stands at {last_seq}: a client wrote it, and inserts will fail there"
        );
        let remedy = format!(
            "let clients write without naming seq; SELECT setval('statecast.outbox_seq_seq', {last_row_seq})"
        );
        findings.push(Finding::error(Code::RowsForged, PLACE, text).with_remedy(remedy));
    }
    if findings.is_empty() {
        let text = format!("the latest {rows} rows carry the ids of their own transactions");
        findings.push(Finding::ok_with(Code::RowsForged, text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn a_grant_is_taken_back_by_name() {
        let grant = |role: &str, privilege: &str| Grant {
            role: role.into(),
            table: "outbox".into(),
            privilege: privilege.into(),
        };
        let found = judge_grants(&[grant("app", "INSERT (seq, xid)"), grant("PUBLIC", "DELETE")]);
        assert_eq!(
            found[0].remedy,
            "REVOKE INSERT (seq, xid) ON statecast.outbox FROM app; GRANT statecast_writer TO app"
        );
        assert_eq!(found[1].remedy, "REVOKE DELETE ON statecast.outbox FROM PUBLIC");
    }

    #[test]
    fn forged_rows_are_counted_by_kind() {
        let good = Rows { rows: 10, last_row_seq: 10, last_seq: 10, ..Rows::default() };
        let severities = |rows: Rows| -> Vec<Severity> {
            judge_rows(&rows).iter().map(|finding| finding.severity).collect()
        };
        assert_eq!(severities(good), [Severity::Ok]);
        assert_eq!(severities(Rows { foreign: 1, ..good }), [Severity::Warning]);
        assert_eq!(severities(Rows { early: 1, ..good }), [Severity::Warning]);
        assert_eq!(severities(Rows { future: 1, ..good }), [Severity::Error]);
        assert_eq!(severities(Rows { future: 1, last_row_seq: 11, ..good }), [Severity::Error; 2]);
        let text = &judge_rows(&Rows { future: 1, foreign: 2, example_seq: 7, ..good })[0].what;
        assert!(
            text.contains("1 with an id that no")
                && text.contains("2 with the id of another")
                && text.contains("seq 7")
        );
    }
}
