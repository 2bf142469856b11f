//! Transactions that are open for long, and prepared ones that nobody ends: they delay streaming, retention and vacuum.

use tokio_postgres::{Client, Error};

use super::lasting;
use crate::finding::{Code, Finding, complete};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::TransactionLong, Code::TransactionPrepared];

/// An open transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Backend.
    pub pid: i32,
    /// `application_name`.
    pub application: String,
    /// Role.
    pub role: String,
    /// Database.
    pub database: String,
    /// `idle in transaction`, `active`, …
    pub state: String,
    /// Since its start.
    pub age_ms: i64,
    /// It has a transaction id.
    pub writes: bool,
}

/// A prepared transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// As `COMMIT PREPARED` takes it.
    pub gid: String,
    /// Who prepared it.
    pub owner: String,
    /// In which database it must be ended.
    pub database: String,
    /// Since it was prepared.
    pub age_ms: i64,
}

/// What is open for longer than the limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The oldest first.
    pub open: Vec<Open>,
    /// Backends in a transaction whose start this login may not see.
    pub hidden: i64,
    /// This login, quoted.
    pub login: String,
    /// The oldest first.
    pub prepared: Vec<Prepared>,
}

/// Of every database: the oldest transaction id anywhere bounds every snapshot. The query's text is not asked for: it may
/// hold data.
const OPEN: &str = "
SELECT pid, coalesce(application_name, ''), coalesce(usename::text, ''), coalesce(datname::text, ''),
       coalesce(state, ''), (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint,
       backend_xid IS NOT NULL
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'
   AND xact_start < clock_timestamp() - $1::bigint * interval '1 ms'
 ORDER BY xact_start
 LIMIT $2";

/// Without pg_read_all_stats the start of others' transactions is NULL, like their state and type; their ids are shown. The
/// server's own processes, such as autovacuum's, have no role: they are nobody's open transaction.
const HIDDEN: &str = "
SELECT count(*) FILTER (WHERE state IS NULL AND backend_type IS NULL AND usesysid IS NOT NULL
                          AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL)),
       quote_ident(current_user)
  FROM pg_stat_activity
 WHERE pid <> pg_backend_pid()";

const PREPARED: &str = "
SELECT gid, owner::text, database::text, (extract(epoch FROM clock_timestamp() - prepared) * 1000)::bigint
  FROM pg_prepared_xacts
 WHERE prepared < clock_timestamp() - $1::bigint * interval '1 ms'
 ORDER BY prepared
 LIMIT $2";

/// What has been open for longer than `limit_ms`.
///
/// # Errors
/// SQL.
pub async fn examine(client: &Client, limit_ms: i64) -> Result<Vec<Finding>, Error> {
    let mut facts = Facts::default();
    for row in client.query(OPEN, &[&limit_ms, &super::ROWS_MAX]).await? {
        facts.open.push(Open {
            pid: row.try_get(0)?,
            application: row.try_get(1)?,
            role: row.try_get(2)?,
            database: row.try_get(3)?,
            state: row.try_get(4)?,
            age_ms: row.try_get(5)?,
            writes: row.try_get(6)?,
        });
    }
    let row = client.query_one(HIDDEN, &[]).await?;
    (facts.hidden, facts.login) = (row.try_get(0)?, row.try_get(1)?);
    for row in client.query(PREPARED, &[&limit_ms, &super::ROWS_MAX]).await? {
        facts.prepared.push(Prepared {
            gid: row.try_get(0)?,
            owner: row.try_get(1)?,
            database: row.try_get(2)?,
            age_ms: row.try_get(3)?,
        });
    }
    Ok(judge(&facts))
}

/// Facts to findings.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings: Vec<Finding> = facts.open.iter().map(open).collect();
    findings.extend(facts.prepared.iter().map(prepared));
    if facts.hidden > 0 && facts.open.is_empty() {
        let login = &facts.login;
        let text = format!(
            "login {login} does not see since when {} other backends are in a transaction (GRANT pg_read_all_stats TO {login})",
            facts.hidden
        );
        findings.push(Finding::not_examined(Code::TransactionLong, text));
    }
    complete(CODES, findings)
}

fn open(open: &Open) -> Finding {
    let Open { pid, application, role, database, state, age_ms, writes } = open;
    let application = if application.is_empty() { "(no application_name)" } else { application };
    let place = format!("backend {pid}, {application}, role {role}, database {database}");
    let what = if *writes { "has written" } else { "has only read" };
    let text = format!("in a transaction for {}, {state}; it {what}", lasting(*age_ms));
    let remedy = format!(
        "let the application end it, or SELECT pg_terminate_backend({pid}); idle_in_transaction_session_timeout ends idle ones"
    );
    Finding::warning(Code::TransactionLong, place, text).with_remedy(remedy)
}

fn prepared(prepared: &Prepared) -> Finding {
    let Prepared { gid, owner, database, age_ms } = prepared;
    let quoted = gid.replace('\'', "''");
    Finding::warning(
        Code::TransactionPrepared,
        format!("transaction '{quoted}', role {owner}, database {database}"),
        format!("prepared {} ago", lasting(*age_ms)),
    )
    .with_remedy(format!(
        "whichever its coordinator says, in database {database}: COMMIT PREPARED '{quoted}' or ROLLBACK PREPARED '{quoted}'"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn pid_and_application_are_named() {
        let one = Open {
            pid: 4711,
            application: "billing".into(),
            role: "app".into(),
            database: "shop".into(),
            state: "idle in transaction".into(),
            age_ms: 400_000,
            writes: true,
        };
        let found = judge(&Facts { open: vec![one], ..Facts::default() });
        assert_eq!(found[0].severity, Severity::Warning);
        assert_eq!(found[0].place, "backend 4711, billing, role app, database shop");
        assert!(found[0].what.contains("6m 40s") && found[0].remedy.contains("pg_terminate_backend(4711)"));
        assert_eq!((found[1].code, found[1].severity), (Code::TransactionPrepared, Severity::Ok));
    }

    #[test]
    fn a_prepared_transaction_is_quoted() {
        let one = Prepared { gid: "it's".into(), owner: "o".into(), database: "d".into(), age_ms: 1 };
        let found = judge(&Facts { prepared: vec![one], ..Facts::default() });
        assert!(found[0].remedy.contains("ROLLBACK PREPARED 'it''s'"), "{:?}", found[0]);
    }

    #[test]
    fn what_may_not_be_seen_is_not_examined() {
        let found = judge(&Facts { hidden: 3, login: "relay".into(), ..Facts::default() });
        assert_eq!((found[0].code, found[0].severity), (Code::TransactionLong, Severity::NotExamined));
        assert!(found[0].what.contains("GRANT pg_read_all_stats TO relay"));
    }
}
