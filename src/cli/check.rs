//! `statecast check`: everything that `run` rests on, examined without changing anything; all findings at once.

use std::fmt::Display;
use std::io::{self, Write as _};

use anyhow::bail;
use tokio_postgres::Client;

use super::{Context, connect};
use crate::config::{Config, Declare, Mode, Rabbitmq};
use crate::postgres::describe;
use crate::sink::{self, topology};
use crate::source::replication;
use crate::source::wal::facts::{Obstacle, look, stream_state};
use crate::source::wal::names::application_name;
use crate::store::cursor;
use crate::store::preflight::{ServerFacts, own_processes, preflight};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// `run` would not do what it is told to.
    Failed,
}

/// Prints findings, one a line, and counts the failures.
struct Findings {
    out: io::Stdout,
    failures: u32,
}

impl Findings {
    fn say(&mut self, level: Level, about: &str, text: impl Display) -> io::Result<()> {
        let level = match level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Failed => {
                self.failures += 1;
                "failed"
            }
        };
        writeln!(self.out, "{level:<7} {about}: {text}")
    }
}

pub(super) async fn run(context: &Context) -> anyhow::Result<()> {
    let config = context.load()?;
    let mut findings = Findings { out: io::stdout(), failures: 0 };
    findings.say(Level::Ok, "configuration", format_args!("pipeline {}", config.name))?;
    let (level, outlook) = match connect(&config, "check").await {
        Ok((client, _guard)) => {
            database(&client, &config, &mut findings).await?;
            source(&client, &config, &mut findings).await?
        }
        Err(error) => {
            findings.say(Level::Failed, "postgres", describe(&error))?;
            (Level::Note, "not examined, for want of a connection".to_owned())
        }
    };
    rabbitmq(&config, &mut findings).await?;
    findings.say(level, "source", outlook)?;
    if findings.failures > 0 {
        bail!("{} of the checks failed", findings.failures);
    }
    Ok(())
}

async fn database(client: &Client, config: &Config, findings: &mut Findings) -> io::Result<()> {
    match examine(client, config).await {
        Ok(facts) => {
            let (version, schema) = (facts.version / 10_000, facts.schema);
            let moved = "; new timeline: the relay will move the sequence ahead";
            let moved = if facts.timeline_changed { moved } else { "" };
            let (major, minor, last) = (schema.major, schema.minor, facts.last_seq);
            let text = format!("server version {version}, schema {major}.{minor}, last seq {last}{moved}");
            findings.say(Level::Ok, "postgres", text)
        }
        Err(error) => findings.say(Level::Failed, "postgres", describe(error.as_ref())),
    }
}

async fn examine(client: &Client, config: &Config) -> anyhow::Result<ServerFacts> {
    let (other, _guard) = super::connect(config, "check").await?;
    own_processes(client, &other).await?;
    // Without a schema there is no cursor to compare with: the first look says so.
    preflight(client, None).await?;
    let last = cursor::last(client, &config.name).await?;
    Ok(preflight(client, last).await?)
}

/// What streaming rests on; how `run` would read, which comes last.
async fn source(client: &Client, config: &Config, findings: &mut Findings) -> io::Result<(Level, String)> {
    const ABOUT: &str = "streaming";
    let (mode, stream) = (config.source.mode, application_name(&config.name));
    if mode == Mode::Poll {
        return Ok(outlook(mode, &[], false));
    }
    let facts = match look(client, &config.source.wal.publication, &stream).await {
        Ok(facts) => facts,
        Err(error) => {
            findings.say(Level::Failed, ABOUT, describe(&error))?;
            return Ok((Level::Note, "not examined, for want of an answer".to_owned()));
        }
    };
    let mut obstacles = Vec::new();
    for finding in facts.findings(&stream) {
        match finding {
            Ok(text) => findings.say(Level::Ok, ABOUT, text)?,
            Err(obstacle) => {
                findings.say(severity(mode, &obstacle), ABOUT, &obstacle)?;
                obstacles.push(obstacle);
            }
        }
    }
    for warning in facts.warnings() {
        findings.say(Level::Note, ABOUT, warning)?;
    }
    let mut subjects: Vec<&str> = obstacles.iter().map(Obstacle::subject).collect();
    if obstacles.is_empty() {
        match reachable(client, config, &stream).await {
            Ok(text) => findings.say(Level::Ok, ABOUT, text)?,
            Err(error) => {
                let level = if mode == Mode::Wal { Level::Failed } else { Level::Note };
                findings.say(level, ABOUT, describe(error.as_ref()))?;
                subjects.push("the replication connection");
            }
        }
    }
    Ok(outlook(mode, &subjects, obstacles.iter().any(Obstacle::is_permanent)))
}

/// What no catalog shows: pg_hba.conf, or a proxy that does not speak the protocol. A stream that runs is proof enough, and
/// leaves no walsender for a trial where there is but one.
async fn reachable(client: &Client, config: &Config, stream: &str) -> anyhow::Result<&'static str> {
    if stream_state(client, stream).await?.is_some() {
        return Ok("this pipeline has a stream now");
    }
    let application = format!("statecast {} check", config.name);
    // The TLS handshake makes a large future.
    Box::pin(replication::connect(&config.postgres, &application)).await?;
    Ok("a replication connection can be opened")
}

/// With `auto`, polling is as good an answer as any. With `wal`, only a place that may become free heals by itself.
fn severity(mode: Mode, obstacle: &Obstacle) -> Level {
    match obstacle {
        _ if mode != Mode::Wal => Level::Note,
        Obstacle::NoSlot(_) | Obstacle::NoSender(_) => Level::Note,
        _ => Level::Failed,
    }
}

/// How `run` would read, for these obstacles.
fn outlook(mode: Mode, subjects: &[&str], permanent: bool) -> (Level, String) {
    let why = subjects.join(", ");
    match mode {
        Mode::Poll => (Level::Ok, "`run` polls (source.mode = \"poll\")".to_owned()),
        Mode::Auto if subjects.is_empty() => (Level::Ok, "`run` streams (source.mode = \"auto\")".to_owned()),
        Mode::Auto => (Level::Note, format!("`run` polls (source.mode = \"auto\"), because of {why}")),
        Mode::Wal if subjects.is_empty() => (Level::Ok, "`run` streams (source.mode = \"wal\")".to_owned()),
        Mode::Wal if permanent => {
            (Level::Note, format!("`run` ends at once (source.mode = \"wal\"), because of {why}"))
        }
        Mode::Wal => (
            Level::Note,
            format!("`run` polls until it can stream (source.mode = \"wal\"), because of {why}"),
        ),
    }
}

async fn rabbitmq(config: &Config, findings: &mut Findings) -> io::Result<()> {
    const ABOUT: &str = "rabbitmq";
    let Rabbitmq { declare, exchange, .. } = &config.rabbitmq;
    match broker(&config.rabbitmq, &config.name).await {
        Ok(()) => findings.say(Level::Ok, ABOUT, format_args!("exchange {exchange}"))?,
        Err(error) if *declare == Declare::Create && error.is::<Missing>() => {
            let text = format!("{error}; `run` will create it (rabbitmq.declare = \"create\")");
            findings.say(Level::Note, ABOUT, text)?;
        }
        Err(error) => findings.say(Level::Failed, ABOUT, describe(error.as_ref()))?,
    }
    findings.say(Level::Note, ABOUT, "bindings, queues and permissions: `statecast doctor` looks at them")
}

/// The exchange or a queue is not there, or not as configured.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Missing(String);

async fn broker(config: &Rabbitmq, pipeline: &str) -> anyhow::Result<()> {
    let connection = sink::connect::connect(config, &format!("statecast {pipeline} check")).await?;
    let looking = Rabbitmq { declare: Declare::Check, ..config.clone() };
    let result = topology::ensure(&connection, &looking).await;
    sink::connect::close(&connection).await;
    result.map_err(|error| match error {
        sink::SinkError::Topology(what) => Missing(what).into(),
        other => other.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_says_what_run_does() {
        let says = |mode, subjects: &[&str], permanent| outlook(mode, subjects, permanent).1;
        assert_eq!(says(Mode::Auto, &[], false), "`run` streams (source.mode = \"auto\")");
        assert!(says(Mode::Auto, &["wal_level", "slots"], true).ends_with("because of wal_level, slots"));
        assert!(says(Mode::Wal, &["wal_level"], true).starts_with("`run` ends at once"));
        assert!(says(Mode::Wal, &["slots"], false).starts_with("`run` polls until it can stream"));
        assert_eq!(outlook(Mode::Poll, &[], false).0, Level::Ok);
    }

    #[test]
    fn only_what_heals_by_itself_is_a_note_where_streaming_is_required() {
        let level = Obstacle::WalLevel("replica".to_owned());
        let slots = Obstacle::NoSlot(crate::source::wal::facts::Places { used: 1, max: 1 });
        let missing = Obstacle::Publication { name: "p".to_owned(), faults: Vec::new() };
        assert_eq!(severity(Mode::Wal, &level), Level::Failed);
        assert_eq!(severity(Mode::Wal, &missing), Level::Failed);
        assert_eq!(severity(Mode::Wal, &slots), Level::Note);
        assert_eq!(severity(Mode::Auto, &level), Level::Note);
    }
}
