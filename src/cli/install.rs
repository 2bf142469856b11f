//! `statecast install`.

use std::io::{self, Write as _};

use super::{Context, connect};
use crate::store::install;

/// Where nothing is configured.
const CHUNK_ROWS: i64 = 1_000_000;

/// Options of `install`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the SQL for whoever may run it, and change nothing
    #[arg(long)]
    print: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    if args.print {
        let chunk_rows = match context.load() {
            Ok(config) => config.retention.chunk_rows,
            // Printing needs no server, and so no configuration.
            Err(_) if context.file.is_none() => CHUNK_ROWS,
            Err(errors) => return Err(errors.into()),
        };
        io::stdout().write_all(install::print_sql(chunk_rows).as_bytes())?;
        return Ok(());
    }
    let config = context.load()?;
    let (mut client, _guard) = connect(&config, "install").await?;
    let report = install::install(&mut client, config.retention.chunk_rows).await?;
    let mut out = io::stdout();
    if report.applied.is_empty() {
        writeln!(out, "the schema is up to date")?;
    }
    for migration in &report.applied {
        writeln!(out, "applied {migration}")?;
    }
    if report.chunks > 0 {
        writeln!(out, "created {} chunks of {} rows", report.chunks, config.retention.chunk_rows)?;
    }
    Ok(())
}
