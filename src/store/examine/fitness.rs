//! What `run` rests on, as the preflight asks for it; but all of it, and not the first thing that is wrong.

use tokio_postgres::{Client, Error};

use crate::finding::{Code, Finding};
use crate::postgres::describe;
use crate::store::preflight::{self, PreflightError};
use crate::store::schema::{SchemaError, SchemaVersion, require_schema};
use crate::store::{cursor_admin, preflight::system};

/// Codes of [`server`].
pub const SERVER: &[Code] = &[Code::ServerUnfit];
/// Codes of [`schema`].
pub const SCHEMA: &[Code] = &[Code::Schema];
/// Codes of [`installation`]; they need a schema.
pub const INSTALLATION: &[Code] = &[Code::Privileges, Code::SequenceAltered, Code::CursorMismatch];

/// Version, role and encoding of the server.
pub async fn server(client: &Client) -> Vec<Finding> {
    let known = |version: i32| {
        let text = format!("PostgreSQL {}, a primary", version / 10_000);
        vec![Finding::ok_with(Code::ServerUnfit, text)]
    };
    preflight::server(client).await.map_or_else(|error| vec![judged(Code::ServerUnfit, &error)], known)
}

/// The schema's version; where there is none that fits, also why.
pub async fn schema(client: &Client) -> (bool, Vec<Finding>) {
    match require_schema(client).await {
        Ok(SchemaVersion { major, minor }) => {
            (true, vec![Finding::ok_with(Code::Schema, format!("version {major}.{minor}"))])
        }
        Err(SchemaError::Sql(error)) => (false, vec![Finding::not_examined(Code::Schema, describe(&error))]),
        Err(error) => (false, vec![Finding::error(Code::Schema, "schema statecast", describe(&error))]),
    }
}

/// Rights, sequence and cursor.
pub async fn installation(client: &Client, pipeline: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = preflight::privileges(client).await {
        findings.push(judged(Code::Privileges, &error));
    }
    let last_seq = match preflight::sequence(client).await {
        Ok(last_seq) => Some(last_seq),
        Err(error) => {
            findings.push(judged(Code::SequenceAltered, &error));
            None
        }
    };
    match cursor(client, pipeline, last_seq).await {
        Ok(more) => findings.extend(more),
        Err(error) => findings.push(Finding::not_examined(Code::CursorMismatch, describe(&error))),
    }
    crate::finding::complete(INSTALLATION, findings)
}

/// A question that could not be asked is no fault that was found.
fn judged(code: Code, error: &PreflightError) -> Finding {
    match error {
        PreflightError::Sql(error) => Finding::not_examined(code, describe(error)),
        error => {
            // The messages end with the remedy.
            let text = describe(error);
            match text.rsplit_once(": ") {
                Some((what, remedy)) if code == Code::Privileges => {
                    Finding::error(code, "", what).with_remedy(remedy)
                }
                _ => Finding::error(code, "", text),
            }
        }
    }
}

/// The pipeline's position, and where it was written.
#[derive(Clone, Copy, Debug)]
struct Position {
    system_identifier: i64,
    timeline: i32,
    max_seq: i64,
}

async fn cursor(client: &Client, pipeline: &str, last_seq: Option<i64>) -> Result<Vec<Finding>, Error> {
    let Some(row) = cursor_admin::load(client, pipeline).await? else {
        let text = format!("pipeline {pipeline} has not run here yet");
        return Ok(vec![Finding::ok_with(Code::CursorMismatch, text)]);
    };
    let (system_identifier, timeline) = match system(client).await {
        Ok(found) => found,
        Err(PreflightError::Sql(error)) => return Err(error),
        Err(error) => return Ok(vec![judged(Code::CursorMismatch, &error)]),
    };
    let here = Position { system_identifier, timeline, max_seq: last_seq.unwrap_or(i64::MAX) };
    let then =
        Position { system_identifier: row.system_identifier, timeline: row.timeline, max_seq: row.max_seq };
    Ok(judge(pipeline, then, here))
}

fn judge(pipeline: &str, then: Position, here: Position) -> Vec<Finding> {
    let place = format!("cursor of pipeline {pipeline}");
    if then.system_identifier != here.system_identifier {
        let text = format!(
            "it was written on the cluster {}, and this is {}",
            then.system_identifier, here.system_identifier
        );
        return vec![Finding::error(Code::CursorMismatch, place, text)];
    }
    if then.timeline != here.timeline {
        let text = format!(
            "a standby was promoted (timeline {} → {}): the relay will move the sequence ahead",
            then.timeline, here.timeline
        );
        return vec![Finding::info(Code::CursorMismatch, place, text).with_remedy("nothing")];
    }
    if here.max_seq < then.max_seq {
        let text =
            format!("the sequence stands at {}, and {} was read from it before", here.max_seq, then.max_seq);
        let remedy = format!(
            "restored: `statecast cursor rebase`; else SELECT setval('statecast.outbox_seq_seq', {})",
            then.max_seq
        );
        return vec![Finding::error(Code::CursorMismatch, place, text).with_remedy(remedy)];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    const HERE: Position = Position { system_identifier: 7, timeline: 2, max_seq: 10 };

    fn worst(then: Position) -> Option<(Severity, String)> {
        judge("p", then, HERE).pop().map(|finding| (finding.severity, finding.remedy))
    }

    #[test]
    fn a_cursor_belongs_to_its_server() {
        assert_eq!(worst(HERE), None);
        let (severity, remedy) = worst(Position { system_identifier: 8, ..HERE }).unwrap();
        assert!(severity == Severity::Error && remedy.contains("rebase"));
        assert_eq!(worst(Position { timeline: 1, max_seq: 99, ..HERE }).unwrap().0, Severity::Info);
        let (severity, remedy) = worst(Position { max_seq: 11, ..HERE }).unwrap();
        assert!(severity == Severity::Error && remedy.ends_with("setval('statecast.outbox_seq_seq', 11)"));
    }

    #[test]
    fn the_remedy_of_a_missing_right_is_its_grant() {
        let error = PreflightError::Privilege { login: "app".into(), missing: "SELECT on x".into() };
        let finding = judged(Code::Privileges, &error);
        assert_eq!(
            (finding.what.as_str(), finding.remedy.as_str()),
            ("login app lacks SELECT on x", "GRANT statecast_relay TO app")
        );
        assert_eq!(judged(Code::ServerUnfit, &PreflightError::InRecovery).severity, Severity::Error);
    }
}
