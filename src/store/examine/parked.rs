//! Events that are set aside: those that a person has to decide on, those that are tried again, and requests of people that
//! nobody has answered.

use tokio_postgres::{Client, Error};

use super::lasting;
use crate::finding::{Code, Finding, complete, listed};

/// Codes of [`examine`].
pub const CODES: &[Code] = &[Code::EventsParked, Code::EventsWaiting, Code::RequestsUnanswered];

/// Rows that are counted, at most, of each kind.
const COUNT_MAX: i64 = 10_000;
/// A leader answers within a second or so.
const ANSWER_MS: i64 = 60_000;

/// Rows of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `nack`, `unroutable`, `too_large`, `invalid`; empty: behind others.
    pub reason: String,
    /// Rows, among the first 10,000.
    pub events: i64,
    /// Since the oldest of them came into its state, or was asked for.
    pub oldest_ms: i64,
}

/// What is set aside for one pipeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// For a person to decide.
    pub parked: Vec<Group>,
    /// Tried again, or behind what is.
    pub waiting: Vec<Group>,
    /// Asked for by a person.
    pub requests: Vec<Group>,
}

/// Each by an index, the oldest (or those of the lowest numbers) first.
const PARKED: &str = "
SELECT reason, since AS at FROM statecast.parked
 WHERE pipeline = $1 AND state = 'parked' ORDER BY since LIMIT $2";
const WAITING: &str = "
SELECT CASE WHEN state = 'waiting' THEN reason END AS reason, since AS at FROM statecast.parked
 WHERE pipeline = $1 AND state IN ('waiting', 'queued', 'retry') ORDER BY seq LIMIT $2";
const REQUESTS: &str = "
SELECT request AS reason, coalesce(requested_at, updated_at) AS at FROM statecast.parked
 WHERE pipeline = $1 AND request IS NOT NULL ORDER BY seq LIMIT $2";

/// What is set aside for `pipeline`.
///
/// # Errors
/// SQL.
pub async fn examine(client: &Client, pipeline: &str) -> Result<Vec<Finding>, Error> {
    let facts = Facts {
        parked: groups(client, PARKED, pipeline).await?,
        waiting: groups(client, WAITING, pipeline).await?,
        requests: groups(client, REQUESTS, pipeline).await?,
    };
    Ok(judge(&facts, pipeline))
}

async fn groups(client: &Client, rows: &str, pipeline: &str) -> Result<Vec<Group>, Error> {
    let statement = format!(
        "SELECT coalesce(reason, ''), count(*), (extract(epoch FROM clock_timestamp() - min(at)) * 1000)::bigint
           FROM ({rows}) AS rows GROUP BY 1 ORDER BY 2 DESC, 1"
    );
    let rows = client.query(&statement, &[&pipeline, &COUNT_MAX]).await?;
    let decode = |row: &tokio_postgres::Row| {
        Ok(Group { reason: row.try_get(0)?, events: row.try_get(1)?, oldest_ms: row.try_get(2)? })
    };
    rows.iter().map(decode).collect()
}

/// Facts to findings.
pub fn judge(facts: &Facts, pipeline: &str) -> Vec<Finding> {
    let place = format!("pipeline {pipeline}");
    let mut findings = Vec::new();
    if let Some((text, oldest_ms)) = summed(&facts.parked) {
        let text = format!("{text}, the oldest for {}", lasting(oldest_ms));
        findings.push(Finding::warning(Code::EventsParked, &place, text));
    }
    if let Some((text, oldest_ms)) = summed(&facts.waiting) {
        let text = format!("{text}, the oldest for {}", lasting(oldest_ms));
        findings.push(Finding::warning(Code::EventsWaiting, &place, text));
    }
    let late: Vec<Group> =
        facts.requests.iter().filter(|group| group.oldest_ms >= ANSWER_MS).cloned().collect();
    if let Some((text, oldest_ms)) = summed(&late) {
        let text = format!("{text}, the oldest asked for {} ago", lasting(oldest_ms));
        findings.push(Finding::warning(Code::RequestsUnanswered, &place, text));
    }
    complete(CODES, findings)
}

/// `3 events (2 unroutable, 1 too_large)` and the greatest age.
fn summed(groups: &[Group]) -> Option<(String, i64)> {
    let events: i64 = groups.iter().map(|group| group.events).sum();
    let oldest_ms = groups.iter().map(|group| group.oldest_ms).max()?;
    let kind = |group: &Group| match group.reason.as_str() {
        "" => format!("{} behind others of their key", group.events),
        reason => format!("{} {reason}", group.events),
    };
    let kinds: Vec<String> = groups.iter().map(kind).collect();
    let or_more = if events >= COUNT_MAX { " or more" } else { "" };
    let noun = if events == 1 { "event" } else { "events" };
    Some((format!("{events}{or_more} {noun} ({})", listed(&kinds, super::NAMES_MAX)), oldest_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn group(reason: &str, events: i64, oldest_ms: i64) -> Group {
        Group { reason: reason.into(), events, oldest_ms }
    }

    #[test]
    fn each_kind_is_said_with_its_reasons_and_its_age() {
        let good = judge(&Facts::default(), "p");
        assert!(good.len() == 3 && good.iter().all(|found| found.severity == Severity::Ok), "{good:?}");
        let facts = Facts {
            parked: vec![group("unroutable", 2, 5_000), group("too_large", 1, 61_000)],
            waiting: vec![group("", COUNT_MAX, 1_000)],
            requests: vec![group("retry", 1, ANSWER_MS), group("discard", 4, ANSWER_MS - 1)],
        };
        let found = judge(&facts, "p");
        assert!(found.iter().all(|found| found.severity == Severity::Warning), "{found:?}");
        let said: Vec<&str> = found.iter().map(|found| found.what.as_str()).collect();
        assert_eq!(
            said,
            [
                "3 events (2 unroutable, 1 too_large), the oldest for 1m 1s",
                "10000 or more events (10000 behind others of their key), the oldest for 1s",
                "1 event (1 retry), the oldest asked for 1m 0s ago",
            ]
        );
        let asked = Facts { requests: vec![group("retry", 1, 0)], ..Facts::default() };
        assert!(judge(&asked, "p").iter().all(|found| found.severity == Severity::Ok), "a moment ago");
    }
}
