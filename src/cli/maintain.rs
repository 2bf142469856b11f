//! `statecast maintain`: upkeep once, for cron where the relay may not do it, and the way out of a tail that holds rows.

use std::io::{self, Write as _};
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

use super::progress::Progress;
use super::{Context, connect};
use crate::store::maintain::{self, Patience, Step};

/// Of upkeep that swaps the tail; else three of them do not happen.
const STEPS: u64 = 5;

/// How many steps are behind, and what comes now.
fn said(step: Step, tries: u32) -> (u64, String) {
    let again = |attempt: u32| match attempt {
        0 | 1 => String::new(),
        attempt => format!(", try {attempt} of {tries}: writers hold the lock"),
    };
    match step {
        Step::Chunks => (0, "chunks before the tail".to_owned()),
        Step::Bound(attempt) => (1, format!("bound the tail, which holds rows{}", again(attempt))),
        Step::Validate(attempt) => (2, format!("read the whole tail; inserts go on{}", again(attempt))),
        Step::Swap(attempt) => (3, format!("make the tail a chunk{}", again(attempt))),
        Step::Retention => (4, "retention".to_owned()),
    }
}

pub(super) async fn run(context: &Context) -> anyhow::Result<()> {
    let config = context.load()?;
    let (client, _guard) = connect(&config, "maintain").await?;
    let patience = Patience::default();
    let progress = Mutex::new(Progress::new(STEPS));
    let told = |step| {
        let (done, doing) = said(step, patience.tries);
        // Nothing panics while it holds the lock.
        progress.lock().unwrap_or_else(PoisonError::into_inner).at(done, &doing);
    };
    let report = maintain::maintain_told(&client, &config.retention, patience, &told).await;
    drop(progress);
    let report = report?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_said_in_turn() {
        let steps = [Step::Chunks, Step::Bound(1), Step::Validate(1), Step::Swap(3), Step::Retention];
        let said: Vec<(u64, String)> = steps.into_iter().map(|step| said(step, 60)).collect();
        assert!(said.iter().map(|(done, _)| *done).eq(0..STEPS), "{said:?}");
        assert_eq!(said[1].1, "bound the tail, which holds rows");
        assert_eq!(said[3].1, "make the tail a chunk, try 3 of 60: writers hold the lock");
    }
}
