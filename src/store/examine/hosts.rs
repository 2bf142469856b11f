//! Several hosts in `postgres.url`: each is asked on its own what it is. One primary and its standbys are as they should be.

use std::collections::BTreeMap;

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding};

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Follows a primary.
    pub standby: bool,
    /// Stays the same for the life of a cluster and its physical standbys.
    pub system_identifier: i64,
    /// When its server started: two names of one server have this in common.
    pub started: String,
}

/// Asks the server behind `client`.
///
/// # Errors
/// SQL.
pub async fn look(client: &Client) -> Result<Host, Error> {
    let row = client
        .query_one(
            "SELECT pg_is_in_recovery(), system_identifier, extract(epoch FROM pg_postmaster_start_time())::text
               FROM pg_control_system()",
            &[],
        )
        .await?;
    Ok(Host { standby: row.try_get(0)?, system_identifier: row.try_get(1)?, started: row.try_get(2)? })
}

/// Facts to findings. `hosts`: address, and what it is or why that is not known.
pub fn judge(hosts: &[(String, Result<Host, String>)]) -> Vec<Finding> {
    const CODE: Code = Code::HostsDiffer;
    let unreachable = hosts.iter().filter_map(|(at, host)| {
        let why = host.as_ref().err()?;
        let text = format!("one of several hosts in postgres.url: {why}");
        Some(Finding::warning(Code::PostgresUnreachable, at, text))
    });
    let mut findings: Vec<Finding> = unreachable.collect();
    let known: Vec<(&str, &Host)> =
        hosts.iter().filter_map(|(at, host)| Some((at.as_str(), host.as_ref().ok()?))).collect();
    let mut clusters: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    let mut primaries: BTreeMap<&str, &str> = BTreeMap::new();
    for (at, host) in &known {
        clusters.entry(host.system_identifier).or_default().push(at);
        if !host.standby {
            primaries.entry(&host.started).or_insert(at);
        }
    }
    if clusters.len() > 1 {
        let each = clusters.iter().map(|(id, at)| format!("{} is cluster {id}", at.join(", ")));
        let text = format!("they are not copies of each other: {}", each.collect::<Vec<_>>().join("; "));
        findings.push(Finding::error(CODE, "postgres.url", text));
    } else if primaries.len() > 1 {
        let at: Vec<&str> = primaries.values().copied().collect();
        let text = format!("{} accept writes, each for itself: one of them was promoted", at.join(" and "));
        let remedy =
            "stop the one that is the primary no longer, before a relay or an application writes to it";
        findings.push(Finding::error(CODE, "postgres.url", text).with_remedy(remedy));
    } else {
        let standbys = known.iter().filter(|(_, host)| host.standby).count();
        let text = match hosts.len() {
            0 | 1 => "postgres.url names one host".to_owned(),
            count => format!("{count} hosts, {standbys} of them standbys"),
        };
        findings.push(Finding::ok_with(CODE, text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity::{self, Error, Ok as Good, Warning};

    fn host(standby: bool, system_identifier: i64, started: &str) -> Result<Host, String> {
        Ok(Host { standby, system_identifier, started: started.into() })
    }

    fn severities(hosts: Vec<Result<Host, String>>) -> Vec<(Code, Severity)> {
        let named = hosts.into_iter().enumerate().map(|(i, host)| (format!("h{i}:5432"), host));
        judge(&named.collect::<Vec<_>>()).iter().map(|found| (found.code, found.severity)).collect()
    }

    #[test]
    fn one_cluster_with_one_primary() {
        assert_eq!(severities(vec![]), [(Code::HostsDiffer, Good)]);
        assert_eq!(severities(vec![host(false, 1, "a"), host(true, 1, "b")]), [(Code::HostsDiffer, Good)]);
        assert_eq!(severities(vec![host(false, 1, "a"), host(false, 1, "a")]), [(Code::HostsDiffer, Good)]);
        assert_eq!(severities(vec![host(false, 1, "a"), host(false, 1, "b")]), [(Code::HostsDiffer, Error)]);
        assert_eq!(severities(vec![host(false, 1, "a"), host(true, 2, "b")]), [(Code::HostsDiffer, Error)]);
        assert_eq!(
            severities(vec![host(false, 1, "a"), Err("no answer".into())]),
            [(Code::PostgresUnreachable, Warning), (Code::HostsDiffer, Good)]
        );
    }
}
