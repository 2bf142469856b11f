//! `parked retry` and `parked discard`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio_postgres::Client;

use super::super::progress::Progress;
use super::super::{Context, Usage, connect};
use super::{Discard, LIMIT, Retry, Select, print};
use crate::config::Config;
use crate::contract::Act;
use crate::store::cursor_admin::leader;
use crate::store::parked::counts::open;
use crate::store::parked::people::{self, Request, Requested};
use crate::store::schema::require_schema;

/// Between two looks at what the leader has done.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Nothing moved for so long: whatever keeps the leader, waiting longer does not show it.
const STILL_MAX: Duration = Duration::from_secs(60);

/// What happens to the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Nothing is written.
    Rehearse,
    Ask,
    /// And it is waited for.
    Wait,
}

impl How {
    fn of(dry_run: bool, wait: bool) -> How {
        match (dry_run, wait) {
            (true, _) => How::Rehearse,
            (false, true) => How::Wait,
            (false, false) => How::Ask,
        }
    }
}

pub(super) async fn retry(context: &Context, args: &Retry) -> anyhow::Result<()> {
    let why = args.why.as_deref();
    run(context, &args.select, Act::Retry, why, How::of(args.dry_run, args.wait)).await
}

pub(super) async fn discard(context: &Context, args: &Discard) -> anyhow::Result<()> {
    run(context, &args.select, Act::Discard, Some(&args.why), How::of(args.dry_run, args.wait)).await
}

async fn run(
    context: &Context,
    select: &Select,
    act: Act,
    why: Option<&str>,
    how: How,
) -> anyhow::Result<()> {
    let said = select.said();
    if said.is_empty() {
        return Err(Usage(
            "say which events: --id, --key, --type, --reason, --state, --older-than, or --all".to_owned(),
        )
        .into());
    }
    let config = context.load()?;
    let (mut client, _guard) = connect(&config, "parked").await?;
    require_schema(&client).await?;
    if how == How::Rehearse {
        return rehearse(&client, &config, select, act).await;
    }
    let (selector, actor) = (select.selector(), actor());
    let request = Request { act, selector: &selector, said: &said, actor: &actor, why };
    let requested = people::ask(&mut client, &config.name, &request).await?;
    if requested.asked + requested.already == 0 {
        bail!("{}", nothing(act, &said, requested.busy));
    }
    for id in &requested.not_found {
        writeln!(io::stderr(), "statecast: nothing to {} for event {id}", verb(act))?;
    }
    writeln!(io::stdout(), "{}", outcome(act, &requested))?;
    let leader = leader(&client, &config.name).await?;
    let line = leader.map_or_else(
        || "no relay leads now: the next leader acts on it (start `statecast run`)".to_owned(),
        |leader| format!("the leader ({leader}) acts on it within a second or so"),
    );
    writeln!(io::stdout(), "{line}")?;
    match how {
        How::Wait => wait(&client, &config.name, act).await,
        How::Rehearse | How::Ask => Ok(()),
    }
}

/// Until the leader has done what was asked for, by anybody.
async fn wait(client: &Client, pipeline: &str, act: Act) -> anyhow::Result<()> {
    let total = open(client, pipeline, act).await?;
    let mut progress = Progress::new(total.try_into().unwrap_or_default());
    let (mut left, mut moved) = (total, Instant::now());
    while left > 0 {
        progress.at((total - left).try_into().unwrap_or_default(), "events done by the leader");
        if moved.elapsed() > STILL_MAX {
            drop(progress);
            let (verb, left, still) = (verb(act), events(left), STILL_MAX.as_secs());
            bail!(
                "the leader has not moved for {still} s with {left} left to {verb}: they stay asked for; \
                 see `statecast status` and `statecast parked list`"
            );
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = open(client, pipeline, act).await?;
        if now != left {
            (left, moved) = (now, Instant::now());
        }
    }
    drop(progress);
    let refused = match act {
        Act::Retry => ": what the broker refused again is in `statecast parked list`",
        Act::Discard => "",
    };
    writeln!(io::stdout(), "the leader is done{refused}")?;
    Ok(())
}

async fn rehearse(client: &Client, config: &Config, select: &Select, act: Act) -> anyhow::Result<()> {
    let (rows, matching) = people::would_ask(client, &config.name, &select.selector(), act, LIMIT).await?;
    if matching == 0 {
        bail!("{}", nothing(act, &select.said(), 0));
    }
    print(&rows, matching)?;
    writeln!(io::stdout(), "would ask to {} {}; nothing was changed", verb(act), events(matching))?;
    Ok(())
}

/// Who is at the keyboard. The database's role is not the person.
fn actor() -> String {
    let unknown = |_| "unknown".to_owned();
    format!("{}@{}", whoami::username().unwrap_or_else(unknown), whoami::hostname().unwrap_or_else(unknown))
}

fn verb(act: Act) -> &'static str {
    match act {
        Act::Retry => "retry",
        Act::Discard => "discard",
    }
}

fn events(count: i64) -> String {
    if count == 1 { "1 event".to_owned() } else { format!("{count} events") }
}

fn nothing(act: Act, said: &str, busy: i64) -> String {
    if busy > 0 {
        return format!("the leader is writing what {said} matches: say it again");
    }
    match act {
        Act::Retry => {
            format!("no event that is parked or waits matches {said} (what is queued goes when its key does)")
        }
        Act::Discard => format!("no event that is set aside matches {said}"),
    }
}

fn outcome(act: Act, requested: &Requested) -> String {
    let mut text = format!("asked to {} {}", verb(act), events(requested.asked));
    if requested.already > 0 {
        let _ = write!(text, "; {} asked for already, and not answered yet", were(requested.already));
    }
    if requested.busy > 0 {
        let _ = write!(text, "; {} being written by the leader: say it again", were(requested.busy));
    }
    text
}

fn were(count: i64) -> String {
    if count == 1 { "1 was".to_owned() } else { format!("{count} were") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_outcome_says_what_is_left() {
        let of = |asked, already, busy| {
            outcome(Act::Retry, &Requested { asked, already, busy, not_found: Vec::new() })
        };
        assert_eq!(of(1, 0, 0), "asked to retry 1 event");
        assert_eq!(of(3, 2, 0), "asked to retry 3 events; 2 were asked for already, and not answered yet");
        assert_eq!(of(3, 0, 1), "asked to retry 3 events; 1 was being written by the leader: say it again");
        assert!(nothing(Act::Retry, "--all", 0).contains("queued"), "why not everything can be retried");
        assert!(actor().contains('@'));
    }
}
