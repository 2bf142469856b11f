//! `statecast install`.

use std::io::{self, Write as _};

use tokio_postgres::Client;

use super::{Context, connect};
use crate::config::{Config, Mode};
use crate::postgres::describe;
use crate::store::install;
use crate::store::publication::{self, Done, PublicationError, Report};

/// Where nothing is configured.
const CHUNK_ROWS: i64 = 1_000_000;
/// Where nothing is configured.
const PUBLICATION: &str = "statecast";

/// Options of `install`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print the SQL for whoever may run it, and change nothing
    #[arg(long)]
    print: bool,
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    if args.print {
        io::stdout().write_all(script(context)?.as_bytes())?;
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
    for line in publish(&mut client, &config).await? {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn script(context: &Context) -> anyhow::Result<String> {
    let (chunk_rows, name) = match context.load() {
        Ok(config) => {
            let name = (config.source.mode != Mode::Poll).then_some(config.source.wal.publication);
            (config.retention.chunk_rows, name)
        }
        // Printing needs no server, and so no configuration.
        Err(_) if context.file.is_none() => (CHUNK_ROWS, Some(PUBLICATION.to_owned())),
        Err(errors) => return Err(errors.into()),
    };
    let mut sql = install::print_sql(chunk_rows);
    sql.extend(name.map(|name| publication::print_sql(&name)));
    Ok(sql)
}

/// Creates or mends the publication, unless the pipeline never streams; what there is to say about it.
///
/// # Errors
/// There is none that fits. A login that may not create one is no error where the pipeline can poll.
pub(super) async fn publish(client: &mut Client, config: &Config) -> Result<Vec<String>, PublicationError> {
    if config.source.mode == Mode::Poll {
        return Ok(Vec::new());
    }
    let name = &config.source.wal.publication;
    match publication::ensure(client, name).await {
        Ok(report) => Ok(lines(name, &report)),
        Err(error @ PublicationError::Forbidden { .. }) if config.source.mode == Mode::Auto => {
            Ok(vec![format!("note: {}; until then `run` polls", describe(&error))])
        }
        Err(error) => Err(error),
    }
}

fn lines(name: &str, report: &Report) -> Vec<String> {
    let mut lines = vec![match &report.done {
        Done::Nothing => format!("publication {name:?} is right"),
        Done::Created => format!("created publication {name:?} for statecast.outbox"),
        Done::Mended(wrong) => format!("mended publication {name:?}: {}", wrong.join(", ")),
    }];
    if report.wal_level != "logical" {
        let found = &report.wal_level;
        lines.push(format!("note: streaming also needs wal_level = logical, which is {found} here"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_is_one_line() {
        let said = |done, wal_level: &str| lines("s", &Report { done, wal_level: wal_level.to_owned() });
        assert_eq!(said(Done::Nothing, "logical"), ["publication \"s\" is right"]);
        assert_eq!(said(Done::Created, "logical"), ["created publication \"s\" for statecast.outbox"]);
        let mended = said(Done::Mended(vec!["a".into(), "b".into()]), "replica");
        assert_eq!(mended[0], "mended publication \"s\": a, b");
        assert!(mended[1].contains("wal_level = logical, which is replica here"), "{mended:?}");
    }
}
