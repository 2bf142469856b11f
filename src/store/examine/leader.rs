//! Who leads, whether its lease is renewed, and who would follow it. A relay that stands by is as it should be.

use tokio_postgres::Client;

use super::lasting;
use crate::backend::Part;
use crate::finding::{Code, Finding, complete, unexamined};
use crate::postgres::describe;
use crate::store::cursor_admin::{self, CursorRow};
use crate::store::lease::{self, Holding};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::LeaderNone, Code::LeaseStale, Code::StandbyNone, Code::TakeoverRights];

/// A change of leader takes less, with any fault (`docs/high-availability.md`).
const CHANGE_MS: i64 = 60_000;

/// How the cursor row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Of the last leader.
    pub epoch: i64,
    /// The leader, by its own name.
    pub holder: Option<String>,
    /// Until the lease is over; below 0: it is. `None`: nobody has it.
    pub left_ms: Option<i64>,
    /// Nobody's lease is running.
    pub over: bool,
    /// Since the row's position was written.
    pub age_ms: i64,
    /// A new pipeline is being made.
    pub creating: bool,
}

/// Who holds the advisory lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// Backend, as the server knows it.
    pub name: String,
    /// It calls itself a keeper, or a standby that is about to be one.
    pub relay: bool,
}

/// A standby that may not end the leader's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unable {
    /// The standby's login, quoted.
    pub login: String,
    /// The leader's, quoted.
    pub leader: String,
}

/// What the server says about a pipeline's relays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// `None`: nobody.
    pub leader: Option<Leader>,
    /// `None`: the pipeline has never run here.
    pub lease: Option<Lease>,
    /// Relays that wait to lead.
    pub standbys: i64,
    /// Those that could not take over.
    pub unable: Vec<Unable>,
}

/// By their name, which the server shows everybody. A standby that has just got the lock is one no longer.
const STANDBYS: &str = "
SELECT count(*)
  FROM pg_stat_activity a
 WHERE a.datname = current_database() AND a.application_name = $1
   AND NOT EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.locktype = 'advisory' AND l.granted)";

/// As pg_terminate_backend decides, for the standbys' logins instead of ours; a role that is gone leaves backends that only
/// a superuser may end. `$2`: the leader.
const UNABLE: &str = "
SELECT DISTINCT quote_ident(me.rolname), coalesce(quote_ident(r.rolname), '?')
  FROM pg_stat_activity a
  JOIN pg_roles me ON me.oid = a.usesysid
  JOIN pg_stat_activity l ON l.pid = $2
  LEFT JOIN pg_roles r ON r.oid = l.usesysid
 WHERE a.datname = current_database() AND a.application_name = $1 AND a.pid <> l.pid
   AND NOT me.rolsuper
   AND (coalesce(r.rolsuper, true)
        OR NOT pg_has_role(me.oid, r.oid, 'USAGE') AND NOT pg_has_role(me.oid, 'pg_signal_backend', 'USAGE'))
 ORDER BY 1, 2
 LIMIT $3";

/// The relays of `pipeline`, as this database knows them.
pub async fn examine(client: &Client, pipeline: &str) -> Vec<Finding> {
    match facts(client, pipeline).await {
        Ok(facts) => judge(&facts, pipeline),
        Err(why) => unexamined(CODES, &why),
    }
}

async fn facts(client: &Client, pipeline: &str) -> Result<Facts, String> {
    let sql = |error: tokio_postgres::Error| describe(&error);
    let row = cursor_admin::load(client, pipeline).await.map_err(sql)?;
    // Never takes the lock.
    let look = lease::look(client, pipeline, false).await.map_err(|error| describe(&error))?;
    let leader = cursor_admin::leader(client, pipeline).await.map_err(sql)?;
    let standby = Part::Standby.application_name(pipeline);
    let standbys = client.query_one(STANDBYS, &[&standby]).await.and_then(|row| row.try_get(0));
    let unable = match &leader {
        Some(leader) => unable(client, &standby, leader.pid).await.map_err(sql)?,
        None => Vec::new(),
    };
    let lease = row.zip(look.row).map(|(cursor, holding)| lease_of(&cursor, &holding, look.over));
    let names = Part::OF_A_CANDIDATE.map(|part| part.application_name(pipeline));
    let leader =
        leader.map(|leader| Leader { relay: names.contains(&leader.application), name: leader.to_string() });
    Ok(Facts { leader, lease, standbys: standbys.map_err(sql)?, unable })
}

async fn unable(client: &Client, standby: &str, leader: i32) -> Result<Vec<Unable>, tokio_postgres::Error> {
    let rows = client.query(UNABLE, &[&standby, &leader, &super::ROWS_MAX]).await?;
    rows.iter().map(|row| Ok(Unable { login: row.try_get(0)?, leader: row.try_get(1)? })).collect()
}

fn lease_of(cursor: &CursorRow, holding: &Holding, over: bool) -> Lease {
    Lease {
        epoch: holding.epoch,
        holder: holding.holder.clone(),
        left_ms: cursor.lease_ms,
        over,
        age_ms: cursor.age_ms,
        creating: holding.creating,
    }
}

/// Facts to findings.
pub fn judge(facts: &Facts, pipeline: &str) -> Vec<Finding> {
    let place = format!("pipeline {pipeline}");
    let mut findings = match (&facts.leader, &facts.lease) {
        (Some(leader), lease) => led(leader, lease.as_ref(), facts, &place),
        (None, Some(lease)) => vec![unled(lease, facts, &place)],
        (None, None) => {
            let text = "it has not run here yet: nobody leads";
            vec![Finding::info(Code::LeaderNone, &place, text)]
        }
    };
    for Unable { login, leader } in &facts.unable {
        let text = format!(
            "a standby with login {login} may not end the connections of the leader, whose login is {leader}: it could not follow"
        );
        let remedy = format!("run all relays of a pipeline with one login, or GRANT {leader} TO {login}");
        findings.push(Finding::warning(Code::TakeoverRights, &place, text).with_remedy(remedy));
    }
    findings.push(match (facts.standbys, &facts.leader) {
        (0, Some(_)) => Finding::info(
            Code::StandbyNone,
            &place,
            "no other relay is connected: when the leader ends, events wait until one is started",
        ),
        (0, None) => Finding::ok_with(Code::StandbyNone, "nobody leads, so there is nobody to follow"),
        (n, _) => Finding::ok_with(Code::StandbyNone, format!("{} connected", counted(n))),
    });
    complete(CODES, findings)
}

/// Somebody holds the lock.
fn led(leader: &Leader, lease: Option<&Lease>, facts: &Facts, place: &str) -> Vec<Finding> {
    let Leader { name: leader, relay } = leader;
    let Some(lease) = lease else {
        return vec![Finding::ok_with(Code::LeaderNone, format!("{leader} is about to make the cursor"))];
    };
    let name = lease.holder.as_deref().unwrap_or(leader);
    let ok = Finding::ok_with(Code::LeaderNone, format!("{name} leads, epoch {}", lease.epoch));
    if lease.creating {
        let text = format!("{leader} is making the pipeline, which counts the outbox once");
        return vec![Finding::info(Code::LeaderNone, place, text).with_remedy("nothing")];
    }
    if !lease.over {
        return vec![ok];
    }
    let (text, since_ms) = match lease.left_ms {
        None => {
            // A person's command, or a standby between the lock and its first write.
            let text = format!("{leader} holds the lock of the pipeline, and nobody has its lease");
            (text, lease.age_ms)
        }
        Some(ms) if ms < 0 => {
            let since = lasting(-ms);
            (format!("{name} leads and has not renewed its lease for {since}: it is stopped or cut off"), -ms)
        }
        Some(ms) => {
            let ahead = lasting(ms);
            (format!("the lease of {name} lies {ahead} ahead: the server's clock was set back"), 0)
        }
    };
    let lasts = since_ms > CHANGE_MS;
    let (make, follows) = match (facts.standbys, lasts) {
        (0, _) => (Finding::error as fn(_, _, _) -> _, "and no standby is connected".to_owned()),
        (n, true) => (Finding::error as _, format!("and {} did not follow: see /ready there", counted(n))),
        (n, false) => (Finding::warning as _, format!("{} connected, and one follows soon", counted(n))),
    };
    let mut finding: Finding = make(Code::LeaseStale, place.to_owned(), format!("{text}; {follows}"));
    if !relay {
        let remedy = format!("{leader} is no relay: end it if it is not needed");
        finding = finding.with_remedy(remedy);
    }
    vec![ok, finding]
}

/// `1 standby`, `2 standbys`.
fn counted(standbys: i64) -> String {
    format!("{standbys} standby{}", if standbys == 1 { "" } else { "s" })
}

/// Nobody holds the lock, and the pipeline has run here.
fn unled(lease: &Lease, facts: &Facts, place: &str) -> Finding {
    const CODE: Code = Code::LeaderNone;
    if !lease.over {
        let text =
            "the connection of its leader has ended, and its lease has not: it ends, or another follows";
        return Finding::warning(CODE, place, text).with_remedy("nothing; look again in some seconds");
    }
    // A lease that was given back says nothing about when.
    let since_ms = lease.left_ms.map_or(lease.age_ms, |ms| -ms);
    match facts.standbys {
        0 => Finding::error(
            CODE,
            place,
            format!(
                "nobody leads it, and no relay is connected; the cursor was written {} ago",
                lasting(lease.age_ms)
            ),
        ),
        n if since_ms > CHANGE_MS => Finding::error(
            CODE,
            place,
            format!(
                "nobody has led it for {}, and {n} relays that stand by do not take over",
                lasting(since_ms)
            ),
        )
        .with_remedy("see what /ready of the standbys says"),
        n => {
            Finding::warning(CODE, place, format!("nobody leads it at this moment; {} connected", counted(n)))
                .with_remedy("nothing; look again in some seconds")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity::{Error, Info, Ok as Good, Warning};

    fn lease() -> Lease {
        Lease {
            epoch: 3,
            holder: Some("host/7".into()),
            left_ms: Some(3_500),
            over: false,
            age_ms: 400,
            creating: false,
        }
    }

    fn over(left_ms: Option<i64>, age_ms: i64) -> Lease {
        Lease { left_ms, age_ms, over: true, ..lease() }
    }

    fn leader(relay: bool) -> Option<Leader> {
        Some(Leader { name: "backend 7, x".into(), relay })
    }

    fn found(led: bool, lease: Option<Lease>, standbys: i64) -> Vec<Finding> {
        let leader = leader(true).filter(|_| led);
        judge(&Facts { leader, lease, standbys, unable: Vec::new() }, "p")
    }

    fn severity(found: &[Finding], code: Code) -> crate::finding::Severity {
        found.iter().filter(|found| found.code == code).map(|found| found.severity).max().unwrap()
    }

    #[test]
    fn a_leader_with_a_standby_is_as_it_should_be() {
        let all = found(true, Some(lease()), 1);
        assert!(all.len() == CODES.len() && all.iter().all(|found| found.severity == Good), "{all:?}");
        assert_eq!(severity(&found(true, Some(lease()), 0), Code::StandbyNone), Info);
        assert_eq!(severity(&found(true, None, 0), Code::LeaderNone), Good, "it makes the row");
        let creating = Lease { creating: true, over: true, left_ms: None, ..lease() };
        assert_eq!(severity(&found(true, Some(creating.clone()), 0), Code::LeaderNone), Info);
        assert_eq!(severity(&found(true, Some(creating), 0), Code::LeaseStale), Good);
    }

    #[test]
    fn a_lease_that_is_not_renewed() {
        let stale = |left_ms, age_ms, standbys| {
            severity(&found(true, Some(over(left_ms, age_ms)), standbys), Code::LeaseStale)
        };
        assert_eq!(stale(Some(-2_000), 0, 1), Warning, "the standby takes it soon");
        assert_eq!(stale(Some(-2_000), 0, 0), Error);
        assert_eq!(stale(Some(-CHANGE_MS - 1), 0, 1), Error);
        assert_eq!(stale(Some(9_000_000), 0, 1), Warning, "the clock was set back");
        assert_eq!(stale(None, 0, 1), Warning);
        assert_eq!(stale(None, CHANGE_MS + 1, 1), Error);
        let lease = Some(over(None, 0));
        let foreign = Facts { leader: leader(false), lease, standbys: 1, unable: Vec::new() };
        assert!(judge(&foreign, "p").iter().any(|found| found.remedy.contains("is no relay")));
    }

    #[test]
    fn nobody_leads() {
        let none = |lease, standbys| severity(&found(false, lease, standbys), Code::LeaderNone);
        assert_eq!(none(None, 0), Info, "it has never run");
        assert_eq!(none(Some(lease()), 0), Warning, "this very moment");
        assert_eq!(none(Some(over(Some(-1), 9)), 0), Error);
        assert_eq!(none(Some(over(None, 9)), 1), Warning);
        assert_eq!(none(Some(over(Some(-CHANGE_MS - 1), 9)), 1), Error);
        assert_eq!(none(Some(over(None, CHANGE_MS + 1)), 1), Error);
    }

    #[test]
    fn a_standby_needs_the_right_to_follow() {
        let unable = vec![Unable { login: "second".into(), leader: "first".into() }];
        let facts = Facts { leader: leader(true), lease: Some(lease()), standbys: 1, unable };
        let all = judge(&facts, "p");
        assert_eq!(severity(&all, Code::TakeoverRights), Warning);
        assert!(all.iter().any(|found| found.remedy.ends_with("GRANT first TO second")));
    }
}
