//! `statecast status`: where the pipeline stands, for people or as JSON. Asks the database only, so it works wherever the
//! relay runs, and also when none does.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::bail;
use serde::Serialize;
use tokio_postgres::Client;

use super::reading::{Reading, Wal, reading};
use super::{Context, connect};
use crate::config::Config;
use crate::config::units::about_size;
use crate::store::chunks::{ChunkState, chunk_state};
use crate::store::cursor_admin::CursorRow;
use crate::store::status::{Status, status};
use crate::store::verify::{Check, Verification};

/// Pending events and a cursor that has not been written for this long: something is stuck.
const STALLED_MS: i64 = 60_000;

/// Options of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON document instead of a table
    #[arg(long)]
    json: bool,
    /// Count every row and compare: committed = confirmed + parked + discarded + pending. Exit code 1 if the books are wrong
    #[arg(long)]
    verify: bool,
}

/// `statecast status --json`. Fields are added, never changed, within a `schema`.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) schema: u32,
    pub(super) pipeline: String,
    /// Who leads, by its own name; null = nobody.
    pub(super) leader: Option<String>,
    pub(super) epoch: i64,
    /// Until the leader's lease is over; below 0: it is. null = nobody has it.
    pub(super) lease_ms: Option<i64>,
    /// How events are read now: `wal` or `poll`.
    pub(super) mode: &'static str,
    pub(super) mode_reason: String,
    pub(super) pending: i64,
    pub(super) parked: i64,
    pub(super) confirmed: i64,
    pub(super) discarded: i64,
    pub(super) oldest_pending_ms: Option<i64>,
    pub(super) wal: Wal,
    pub(super) chunks: Chunks,
    pub(super) broker: Broker,
    pub(super) ready: bool,
    pub(super) reasons: Vec<String>,
    /// Only with `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) verify: Option<Verified>,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Verified {
    exact: bool,
    checks: Vec<CheckLine>,
}

#[derive(Clone, Debug, Serialize)]
struct CheckLine {
    name: &'static str,
    left: String,
    right: String,
    difference: i64,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Chunks {
    pub(super) attached: usize,
    pub(super) empty_ahead: usize,
    pub(super) bytes: u64,
    pub(super) last_seq: i64,
    pub(super) floor_seq: Option<i64>,
    pub(super) tail_rows: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct Broker {
    pub(super) exchange: String,
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let config = context.load()?;
    let (mut client, _guard) = connect(&config, "status").await?;
    crate::store::schema::require_schema(&client).await?;
    let (found, report) = look(&mut client, &config, args.verify).await?;
    let mut out = io::stdout();
    if args.json {
        serde_json::to_writer(&mut out, &report)?;
        writeln!(out)?;
    } else {
        out.write_all(table(&report, &found).as_bytes())?;
    }
    if args.verify { judge(&found) } else { Ok(()) }
}

/// Asks the database. Counting takes about a second per million pending events.
///
/// # Errors
/// SQL.
pub(super) async fn look(
    client: &mut Client,
    config: &Config,
    verify: bool,
) -> anyhow::Result<(Status, Report)> {
    let found = status(client, &config.name, verify).await?;
    let chunks = chunk_state(client).await?;
    let reading = reading(client, config, found.leader.is_some()).await?;
    let report = report(config, &found, &chunks, reading);
    Ok((found, report))
}

/// An error unless the books were verified and are exact.
fn judge(found: &Status) -> anyhow::Result<()> {
    let Some(cursor) = &found.cursor else {
        bail!("there are no books to verify: the pipeline has never run in this database");
    };
    match &found.verification {
        Some(verification) if verification.is_exact() => Ok(()),
        Some(verification) => {
            let wrong = verification.checks.iter().filter(|check| check.difference != 0);
            let wrong: Vec<String> = wrong.map(said).collect();
            bail!("the books of pipeline {} are wrong: {}", cursor.pipeline, wrong.join("; "))
        }
        None => bail!(
            "the books cannot be verified here: the cursor belongs to another server (`statecast cursor rebase`)"
        ),
    }
}

/// Both sides, and the difference if there is one.
fn said(check: &Check) -> String {
    match check.difference {
        0 => format!("{} = {}", check.left, check.right),
        difference => format!("{}, but {}: difference {difference}", check.left, check.right),
    }
}

fn verified(verification: &Verification) -> Verified {
    let line = |check: &Check| CheckLine {
        name: check.name,
        left: check.left.clone(),
        right: check.right.clone(),
        difference: check.difference,
    };
    Verified { exact: verification.is_exact(), checks: verification.checks.iter().map(line).collect() }
}

fn report(config: &Config, found: &Status, chunks: &ChunkState, reading: Reading) -> Report {
    let cursor = found.cursor.as_ref();
    let blocking = blocking(found);
    let ready = blocking.is_empty();
    let mut reasons = blocking;
    reasons.extend(chunks.alarms.iter().map(ToString::to_string));
    Report {
        schema: 1,
        pipeline: config.name.clone(),
        leader: found.leader.as_ref().map(|leader| {
            let holder = cursor.and_then(|cursor| cursor.holder.clone());
            holder.unwrap_or_else(|| leader.to_string())
        }),
        epoch: cursor.map_or(0, |cursor| cursor.epoch),
        lease_ms: cursor.and_then(|cursor| cursor.lease_ms),
        mode: reading.mode,
        mode_reason: reading.reason,
        pending: found.pending,
        parked: found.parked,
        confirmed: found.confirmed,
        discarded: found.discarded,
        oldest_pending_ms: found.oldest_pending_ms,
        wal: reading.wal,
        chunks: Chunks {
            attached: chunks.chunks.len(),
            empty_ahead: chunks.empty_ahead,
            bytes: chunks.bytes,
            last_seq: chunks.last_seq,
            floor_seq: chunks.floor_seq,
            tail_rows: chunks.tail_rows,
        },
        broker: Broker { exchange: config.rabbitmq.exchange.clone() },
        ready,
        reasons,
        verify: found.verification.as_ref().map(verified),
    }
}

/// What keeps events from flowing, as far as the database shows it.
fn blocking(found: &Status) -> Vec<String> {
    let mut reasons = Vec::new();
    if found.leader.is_none() {
        reasons.push("no relay leads: start `statecast run`, or see /ready of those that run".to_owned());
    }
    let Some(cursor) = &found.cursor else {
        reasons.push("the pipeline has no cursor: it has never run in this database".to_owned());
        return reasons;
    };
    if !found.same_server {
        reasons.push("the cursor belongs to another server: see `statecast cursor rebase`".to_owned());
    }
    if found.leader.is_some() && cursor.lease_ms.is_some_and(|ms| ms < 0) {
        let lease = cursor.lease().unwrap_or_default();
        reasons.push(format!(
            "the leader does not renew its lease ({lease}): it is stopped or cut off; a standby takes over after 4 s"
        ));
    }
    let oldest = found.oldest_pending_ms.unwrap_or(0);
    if found.leader.is_some() && oldest > STALLED_MS && cursor.age_ms > STALLED_MS {
        let (oldest, age) = (seconds(oldest), seconds(cursor.age_ms));
        reasons.push(format!("the oldest event has waited {oldest}, the cursor has not moved for {age}"));
    }
    reasons
}

fn seconds(ms: i64) -> String {
    format!("{}.{} s", ms / 1000, ms.rem_euclid(1000) / 100)
}

fn table(report: &Report, found: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<10} {value}");
    };
    line("pipeline", format_args!("{}", report.pipeline));
    let leader = report.leader.as_deref().unwrap_or("nobody");
    let lease = found.cursor.as_ref().and_then(CursorRow::lease);
    let lease = lease.map_or_else(String::new, |lease| format!(", lease {lease}"));
    line("leader", format_args!("{leader}, epoch {}{lease}", report.epoch));
    line("mode", format_args!("{} ({})", report.mode, report.mode_reason));
    if report.wal.streaming.is_some() {
        line("stream", format_args!("{}", report.wal));
    }
    match report.oldest_pending_ms {
        Some(ms) => line("pending", format_args!("{}, the oldest for {}", report.pending, seconds(ms))),
        None => line("pending", format_args!("{}", report.pending)),
    }
    if found.set_aside > 0 {
        line("set aside", format_args!("{} of the pending: see `statecast parked list`", found.set_aside));
    }
    line("confirmed", format_args!("{}", report.confirmed));
    match report.parked {
        0 => line("parked", format_args!("0")),
        n => line("parked", format_args!("{n}, for a person to decide: see `statecast parked list`")),
    }
    line("discarded", format_args!("{}", report.discarded));
    if let Some(cursor) = &found.cursor {
        let (floor, age) = (cursor.floor_seq, seconds(cursor.age_ms));
        line("cursor", format_args!("{}, floor {floor}, written {age} ago", cursor.snapshot));
    }
    let chunks = &report.chunks;
    line(
        "outbox",
        format_args!(
            "{} chunks, {} empty ahead, {}, last seq {}",
            chunks.attached,
            chunks.empty_ahead,
            about_size(chunks.bytes),
            chunks.last_seq
        ),
    );
    line("broker", format_args!("exchange {}", report.broker.exchange));
    line("ready", format_args!("{}", if report.ready { "yes" } else { "no" }));
    for reason in &report.reasons {
        line("", format_args!("{reason}"));
    }
    for check in found.verification.iter().flat_map(|verification| &verification.checks) {
        line("verify", format_args!("{}", said(check)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::cursor_admin::Leader;

    fn polls() -> Reading {
        Reading { mode: "poll", reason: "configured".to_owned(), wal: Wal::default() }
    }

    fn found() -> Status {
        Status {
            cursor: None,
            leader: None,
            pending: 3,
            set_aside: 2,
            oldest_pending_ms: Some(1234),
            parked: 1,
            confirmed: 0,
            discarded: 0,
            same_server: true,
            verification: None,
        }
    }

    fn chunks() -> ChunkState {
        ChunkState {
            chunks: Vec::new(),
            empty_ahead: 8,
            bytes: 8192,
            last_seq: 3,
            floor_seq: None,
            tail_rows: false,
            created: 0,
            postponed: None,
            alarms: Vec::new(),
        }
    }

    fn config() -> Config {
        let environment =
            [("STATECAST_POSTGRES__URL", "postgres://u@h/d"), ("STATECAST_RABBITMQ__URLS", "amqp://h")];
        crate::config::load(None, environment.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned()))).unwrap()
    }

    #[test]
    fn json_has_the_fields_in_order() {
        let text = serde_json::to_string(&report(&config(), &found(), &chunks(), polls())).unwrap();
        let mut at = 0;
        for field in [
            "schema",
            "pipeline",
            "leader",
            "epoch",
            "lease_ms",
            "mode",
            "mode_reason",
            "pending",
            "parked",
            "confirmed",
            "discarded",
            "oldest_pending_ms",
            "wal",
            "chunks",
            "broker",
            "ready",
            "reasons",
        ] {
            let found = text[at..].find(&format!("\"{field}\":"));
            at += found.unwrap_or_else(|| panic!("{field} is missing or out of place: {text}"));
        }
        assert!(text.contains(r#""leader":null"#) && text.contains(r#""wal":{}"#), "{text}");
        assert!(text.contains(r#""ready":false"#), "{text}");
    }

    #[test]
    fn a_leader_is_named_even_before_it_has_written_the_row() {
        let leader = Some(Leader { pid: 7, application: "statecast x keeper".into() });
        let report = report(&config(), &Status { leader, ..found() }, &chunks(), polls());
        assert_eq!(report.leader.as_deref(), Some("backend 7, statecast x keeper"));
        assert_eq!(report.reasons.len(), 1, "{:?}", report.reasons);
    }

    #[test]
    fn the_table_names_what_is_wrong() {
        let found = found();
        let text = table(&report(&config(), &found, &chunks(), polls()), &found);
        assert!(text.contains("leader     nobody, epoch 0\n"), "{text}");
        assert!(text.contains("pending    3, the oldest for 1.2 s\n"), "{text}");
        assert!(text.contains("ready      no\n") && text.contains("`statecast run`"), "{text}");
        assert!(
            text.contains("set aside  2 of the pending") && text.contains("parked     1, for a person"),
            "{text}"
        );
    }

    #[test]
    fn a_stream_is_shown() {
        let found = found();
        let wal = Wal {
            streaming: Some(true),
            state: Some("catchup".to_owned()),
            lag_bytes: Some(10),
            retained_bytes: Some(2048),
            sync_priority: None,
        };
        let reading = Reading { mode: "wal", reason: "streaming".to_owned(), wal };
        let report = report(&config(), &found, &chunks(), reading);
        let text = table(&report, &found);
        assert!(text.contains("mode       wal (streaming)\n"), "{text}");
        assert!(text.contains("stream     catchup, 10 B behind, 2.0 KiB of WAL kept\n"), "{text}");
        let json = serde_json::to_string(&report).unwrap();
        let wal = r#""wal":{"streaming":true,"state":"catchup","lag_bytes":10,"retained_bytes":2048}"#;
        assert!(json.contains(wal), "{json}");
    }
}
