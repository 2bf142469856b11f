//! `statecast parked list|show|retry|discard`: events that the broker refused, and what to do about them.
//!
//! `retry` and `discard` only write a request: the leader acts, within a second or so if there is one. They exit with 1, and
//! change nothing, where no event matches; `list` of nothing is a success.

mod ask;
mod text;

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::bail;
use clap::ValueEnum;
use serde::Serialize;
use uuid::Uuid;

use super::{Context, connect};
use crate::config::Config;
use crate::config::units::{duration, show_duration};
use crate::store::parked::State;
use crate::store::parked::people::{self, ParkedRow, Selector};
use crate::store::schema::require_schema;

/// Events of a list where nothing else is said.
const LIMIT: i64 = 100;

/// Commands of `parked`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List events that are set aside: refused, parked, or behind such an event of their key
    List(List),
    /// Show one event with all that is known about it
    Show(Show),
    /// Ask the leader to try events again that are parked or wait
    Retry(Retry),
    /// Ask the leader to give events up: they are never published, and what is behind them goes
    Discard(Discard),
}

/// Which events: those that match everything that is said.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Select {
    /// With this event id; may be said more than once
    #[arg(long = "id", value_name = "UUID")]
    ids: Vec<Uuid>,
    /// Of this entity
    #[arg(long, value_name = "TYPE:ID", value_parser = key, conflicts_with = "aggregate_type")]
    key: Option<(String, String)>,
    /// Of entities of this kind
    #[arg(long = "type", value_name = "TYPE")]
    aggregate_type: Option<String>,
    /// Refused for this reason
    #[arg(long)]
    reason: Option<Reason>,
    /// In this state; may be said more than once
    #[arg(long = "state")]
    states: Vec<StateName>,
    /// Written longer ago than this, e.g. 90m or 7d
    #[arg(long, value_name = "DURATION", value_parser = age)]
    older_than: Option<Duration>,
    /// Every event that is set aside
    #[arg(long, conflicts_with_all = ["ids", "key", "aggregate_type", "reason", "states", "older_than"])]
    all: bool,
}

/// Why an event was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Reason {
    /// The broker has no room for it
    Nack,
    /// No queue takes it
    Unroutable,
    /// Over a size limit
    TooLarge,
    /// It cannot be encoded
    Invalid,
}

/// States of an event that is set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum StateName {
    /// Refused, and tried again
    Waiting,
    /// Refused; a person decides
    Parked,
    /// Behind another event of its key
    Queued,
    /// On its way, because a person wanted it tried again
    Retry,
}

/// Options of `list`.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    select: Select,
    /// At most so many, the oldest first
    #[arg(long, value_name = "N", default_value_t = LIMIT, value_parser = clap::value_parser!(i64).range(0..))]
    limit: i64,
    /// One JSON document instead of lines
    #[arg(long)]
    json: bool,
}

/// Options of `show`.
#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Event id
    id: Uuid,
    /// Print its payload as well
    #[arg(long)]
    payload: bool,
}

/// Options of `retry`.
#[derive(Debug, clap::Args)]
pub(super) struct Retry {
    #[command(flatten)]
    select: Select,
    /// Kept in statecast.audit
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// List what would be asked for, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the leader has done it, and show how far it is. Exit code 1 if nothing moves for a minute
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

/// Options of `discard`.
#[derive(Debug, clap::Args)]
pub(super) struct Discard {
    #[command(flatten)]
    select: Select,
    /// Kept in statecast.audit
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    why: String,
    /// List what would be given up, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the leader has done it, and show how far it is. Exit code 1 if nothing moves for a minute
    #[arg(long, conflicts_with = "dry_run")]
    wait: bool,
}

/// A type has no colon; an id may.
fn key(text: &str) -> Result<(String, String), String> {
    match text.split_once(':') {
        Some((kind, id)) if !kind.is_empty() && !id.is_empty() => Ok((kind.to_owned(), id.to_owned())),
        _ => Err("a key is an entity's type and id, e.g. order:4711".to_owned()),
    }
}

fn age(text: &str) -> Result<Duration, String> {
    duration(text).ok_or_else(|| "a duration is a whole number and a unit, e.g. 90m or 7d".to_owned())
}

impl Reason {
    fn as_str(self) -> &'static str {
        match self {
            Reason::Nack => "nack",
            Reason::Unroutable => "unroutable",
            Reason::TooLarge => "too_large",
            Reason::Invalid => "invalid",
        }
    }
}

impl From<StateName> for State {
    fn from(name: StateName) -> State {
        match name {
            StateName::Waiting => State::Waiting,
            StateName::Parked => State::Parked,
            StateName::Queued => State::Queued,
            StateName::Retry => State::Retry,
        }
    }
}

impl Select {
    fn selector(&self) -> Selector {
        let (kind, id) = self.key.clone().unzip();
        Selector {
            event_ids: self.ids.clone(),
            aggregate_type: kind.or_else(|| self.aggregate_type.clone()),
            aggregate_id: id,
            reason: self.reason.map(Reason::as_str),
            states: self.states.iter().copied().map(State::from).collect(),
            older_than: self.older_than,
            ..Selector::default()
        }
    }

    /// What was said, in one form: empty if nothing was.
    fn said(&self) -> String {
        let mut said: Vec<String> = self.ids.iter().map(|id| format!("--id {id}")).collect();
        said.extend(self.key.iter().map(|(kind, id)| format!("--key {kind}:{id}")));
        said.extend(self.aggregate_type.iter().map(|kind| format!("--type {kind}")));
        said.extend(self.reason.iter().map(|reason| format!("--reason {}", reason.as_str())));
        said.extend(self.states.iter().map(|state| format!("--state {}", State::from(*state).as_str())));
        said.extend(self.older_than.iter().map(|age| format!("--older-than {}", show_duration(*age))));
        said.extend(self.all.then(|| "--all".to_owned()));
        said.join(" ")
    }
}

pub(super) async fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    match command {
        Command::List(args) => list(&context.load()?, args).await,
        Command::Show(args) => show(&context.load()?, args).await,
        Command::Retry(args) => ask::retry(context, args).await,
        Command::Discard(args) => ask::discard(context, args).await,
    }
}

/// `parked list --json`. Fields are added, never changed, within a `schema`.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    schema: u32,
    pipeline: &'a str,
    /// How many there are; `events` may be fewer.
    matching: i64,
    events: Vec<text::Line<'a>>,
}

async fn list(config: &Config, args: &List) -> anyhow::Result<()> {
    let (client, _guard) = connect(config, "parked").await?;
    require_schema(&client).await?;
    let selector = args.select.selector();
    let (rows, matching) = people::list(&client, &config.name, &selector, args.limit).await?;
    let mut out = io::stdout();
    if args.json {
        let events = rows.iter().map(text::Line::from).collect();
        let listing = Listing { schema: 1, pipeline: &config.name, matching, events };
        out.write_all(text::json(&listing)?.as_bytes())?;
        return Ok(());
    }
    print(&rows, matching)?;
    Ok(())
}

/// Lines, and how many there are besides.
fn print(rows: &[ParkedRow], matching: i64) -> io::Result<()> {
    let mut out = io::stdout();
    for row in rows {
        writeln!(out, "{}", text::line(row))?;
    }
    let more = matching - rows.len() as i64;
    if more > 0 { writeln!(out, "… and {more} more: --limit {matching} lists all") } else { Ok(()) }
}

async fn show(config: &Config, args: &Show) -> anyhow::Result<()> {
    let (client, _guard) = connect(config, "parked").await?;
    require_schema(&client).await?;
    let events = people::show(&client, &config.name, args.id, args.payload).await?;
    if events.is_empty() {
        bail!("event {} is not set aside in pipeline {}", args.id, config.name);
    }
    let texts: Vec<String> = events.iter().map(text::everything).collect();
    io::stdout().write_all(texts.join("\n").as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_split_at_its_first_colon() {
        assert_eq!(key("order:a:b").unwrap(), ("order".to_owned(), "a:b".to_owned()));
        assert!(key("order").is_err() && key(":1").is_err() && key("order:").is_err());
    }

    #[test]
    fn what_was_said_is_kept_for_the_audit() {
        let select = Select {
            key: Some(("order".into(), "1".into())),
            reason: Some(Reason::TooLarge),
            states: vec![StateName::Parked],
            older_than: Some(Duration::from_secs(90 * 60)),
            ..Select::default()
        };
        assert_eq!(select.said(), "--key order:1 --reason too_large --state parked --older-than 90m");
        let selector = select.selector();
        assert_eq!(
            (selector.aggregate_type.as_deref(), selector.aggregate_id.as_deref()),
            (Some("order"), Some("1"))
        );
        assert_eq!((selector.reason, selector.states), (Some("too_large"), vec![State::Parked]));
        assert_eq!(Select { all: true, ..Select::default() }.said(), "--all");
        assert_eq!(Select::default().said(), "");
    }
}
