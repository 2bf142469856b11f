//! `statecast cursor show|rebase|drop`.

use std::io::{self, Write as _};

use super::{Context, Usage, connect};
use crate::config::Config;
use crate::store::cursor_admin::{self, AdminError, CursorRow};
use crate::store::schema::require_schema;

/// Commands of `cursor`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the cursor row
    Show,
    /// Take the pipeline over to this server, after a restore: publishes everything again that may be unsettled
    Rebase(Confirmed),
    /// Forget the pipeline: a later run starts at the oldest event that is still there
    Drop(Confirmed),
}

/// Options of what cannot be undone.
#[derive(Debug, clap::Args)]
pub(super) struct Confirmed {
    /// Do it
    #[arg(long)]
    yes: bool,
    /// Kept in statecast.audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

pub(super) async fn run(context: &Context, command: &Command) -> anyhow::Result<()> {
    let config = context.load()?;
    match command {
        Command::Show => show(&config).await,
        Command::Rebase(confirmed) => rebase(&config, confirmed).await,
        Command::Drop(confirmed) => drop(&config, confirmed).await,
    }
}

async fn show(config: &Config) -> anyhow::Result<()> {
    let (client, _guard) = connect(config, "cursor").await?;
    let cursor = cursor_admin::load(&client, &config.name).await?;
    let cursor = cursor.ok_or_else(|| AdminError::NoCursor(config.name.clone()))?;
    io::stdout().write_all(table(&cursor).as_bytes())?;
    Ok(())
}

fn table(cursor: &CursorRow) -> String {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let window = cursor.window.as_ref();
    let rows: [(&str, String); 19] = [
        ("pipeline", cursor.pipeline.clone()),
        ("system_identifier", cursor.system_identifier.to_string()),
        ("timeline", cursor.timeline.to_string()),
        ("epoch", cursor.epoch.to_string()),
        ("holder", or_none(cursor.holder.clone())),
        ("pids", cursor.pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        ("lease", or_none(cursor.lease())),
        ("snapshot", cursor.snapshot.clone()),
        ("prune_seq", cursor.prune_seq.to_string()),
        ("floor_seq", cursor.floor_seq.to_string()),
        (
            "floor candidate",
            or_none(cursor.candidate.as_ref().map(|(xid, seq)| format!("{seq} (xid {xid})"))),
        ),
        ("max_seq", cursor.max_seq.to_string()),
        ("window", or_none(window.map(|w| format!("to {}, prune_seq {}", w.snapshot, w.prune_seq)))),
        ("window settled", or_none(window.map(|w| format!("{} of at most {}", w.seq, w.ceil)))),
        ("lanes", cursor.lanes.to_string()),
        ("base", cursor.base.to_string()),
        ("confirmed", cursor.confirmed.to_string()),
        ("parked, discarded", format!("{}, {}", cursor.parked, cursor.discarded)),
        ("updated_at", cursor.updated_at.clone()),
    ];
    rows.iter()
        .fold(String::new(), |text, (name, value)| text + format!("{name:<18} {value}").trim_end() + "\n")
}

async fn rebase(config: &Config, confirmed: &Confirmed) -> anyhow::Result<()> {
    ask(
        confirmed,
        "rebase publishes every event above floor_seq again (with the same ids, discarded ones too; what is set aside stays so) and moves the sequence ahead",
    )?;
    let (mut client, _guard) = connect(config, "cursor").await?;
    require_schema(&client).await?;
    let gap = config.source.timeline_gap;
    let done = cursor_admin::rebase(&mut client, &config.name, gap, confirmed.reason.as_deref()).await?;
    let mut out = io::stdout();
    writeln!(
        out,
        "pipeline {} goes on above seq {}: {} events to publish again, epoch {}",
        config.name, done.from_seq, done.pending, done.epoch
    )?;
    writeln!(out, "the sequence stands at {}", done.last_seq)?;
    if done.set_aside > 0 {
        writeln!(out, "{} events stay set aside: see `statecast parked list`", done.set_aside)?;
    }
    if done.moved > 0 {
        writeln!(out, "{} restored rows have a transaction id of this server now", done.moved)?;
    }
    Ok(())
}

async fn drop(config: &Config, confirmed: &Confirmed) -> anyhow::Result<()> {
    ask(
        confirmed,
        "drop forgets what was published and what is set aside; a later run publishes all that is still in the outbox again",
    )?;
    let (mut client, _guard) = connect(config, "cursor").await?;
    require_schema(&client).await?;
    let set_aside = cursor_admin::drop(&mut client, &config.name, confirmed.reason.as_deref()).await?;
    let mut out = io::stdout();
    writeln!(out, "pipeline {} has no cursor any more", config.name)?;
    if set_aside > 0 {
        writeln!(
            out,
            "{set_aside} events that were set aside are forgotten; only what is still in the outbox can go again"
        )?;
    }
    Ok(())
}

fn ask(confirmed: &Confirmed, what: &str) -> Result<(), Usage> {
    if confirmed.yes { Ok(()) } else { Err(Usage(format!("{what}: say --yes if that is meant"))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::cursor_admin::WindowRow;

    #[test]
    fn shows_every_column() {
        let mut cursor = CursorRow {
            pipeline: "orders".into(),
            system_identifier: 7,
            timeline: 1,
            epoch: 3,
            holder: None,
            pids: vec![10, 11],
            snapshot: "10:20:11".into(),
            prune_seq: 5,
            floor_seq: 4,
            candidate: Some(("19".into(), 6)),
            max_seq: 8,
            window: None,
            lanes: 1,
            base: 0,
            confirmed: 9,
            parked: 0,
            discarded: 0,
            updated_at: "2026-11-03T12:34:56.000Z".into(),
            age_ms: 1,
            lease_ms: Some(3210),
        };
        let text = table(&cursor);
        assert!(
            text.contains("holder             -\npids               10 11\nlease              for 3.2 s\n"),
            "{text}"
        );
        assert!(text.contains("floor candidate    6 (xid 19)\n") && text.contains("window             -\n"));
        cursor.window = Some(WindowRow { snapshot: "12:22:".into(), prune_seq: 6, ceil: 30, seq: 25 });
        assert!(table(&cursor).contains("window settled     25 of at most 30\n"));
    }
}
