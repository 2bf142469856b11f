//! `statecast maintain`: upkeep once, for cron where the relay may not do it, and the way out of a tail that holds rows.

use std::io::{self, Write as _};

use anyhow::bail;

use super::{Context, connect};
use crate::store::maintain;

pub(super) async fn run(context: &Context) -> anyhow::Result<()> {
    let config = context.load()?;
    let (client, _guard) = connect(&config, "maintain").await?;
    let report = maintain::maintain(&client, &config.retention).await?;
    let mut out = io::stdout();
    if let Some((lo, hi)) = report.swapped {
        writeln!(out, "the tail from {lo} is now the chunk {lo} to {hi}; the sequence goes on at {hi}")?;
    }
    let (created, ahead) = (report.chunks.created, report.chunks.empty_ahead);
    writeln!(out, "chunks: {} attached, {created} created, {ahead} empty ahead", report.chunks.chunks.len())?;
    for dropped in &report.retention.dropped {
        writeln!(out, "dropped the chunk {} to {}: {} rows", dropped.lo, dropped.hi, dropped.rows)?;
    }
    for alarm in &report.chunks.alarms {
        writeln!(out, "attention: {alarm}")?;
    }
    if let Some(overdue) = &report.retention.overdue {
        writeln!(out, "attention: {overdue}")?;
    }
    if let Some(postponed) = report.chunks.postponed.or(report.retention.postponed) {
        bail!("not everything was done ({postponed:?}): run it again");
    }
    Ok(())
}
