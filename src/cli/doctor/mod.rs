//! `statecast doctor`: a read-only examination of both servers. Every finding has a stable code, a severity, a place, what is
//! so, and the remedy; the codes are listed in `docs/doctor.md`.
//!
//! The servers are asked one after the other, each concern on its own: what cannot be asked reads `not examined`, with the
//! reason, and leaves the others their findings. Exit code 0: no error was found (with `--strict`: and no warning); 1: some
//! was.

mod certificates;
mod json;
mod postgres;
mod rabbitmq;
mod streaming;
mod text;

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::bail;

use super::Context;
use crate::config::units;
use crate::finding::{Code, Finding, Severity};

/// Options of `doctor`.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
    /// Exit code 1 also for warnings
    #[arg(long)]
    strict: bool,
    /// Report transactions that are open for longer
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    long_transaction: Duration,
    /// Report what holds a snapshot that is older, in transactions
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(i64).range(1..))]
    horizon_age: i64,
    /// How many of the newest events are looked at, for types without a binding and ids that clients wrote
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(i64).range(0..=1_000_000))]
    rows: i64,
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).ok_or_else(|| "takes a duration such as 90s, 5m or 2h".to_owned())
}

/// How many findings of each severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
struct Summary {
    error: usize,
    warning: usize,
    info: usize,
    not_examined: usize,
    ok: usize,
}

impl Summary {
    fn of(findings: &[Finding]) -> Summary {
        let mut summary = Summary::default();
        for finding in findings {
            *(match finding.severity {
                Severity::Error => &mut summary.error,
                Severity::Warning => &mut summary.warning,
                Severity::Info => &mut summary.info,
                Severity::NotExamined => &mut summary.not_examined,
                Severity::Ok => &mut summary.ok,
            }) += 1;
        }
        summary
    }
}

pub(super) async fn run(context: &Context, args: &Args) -> anyhow::Result<()> {
    let config = context.load()?;
    let (mut findings, types) = Box::pin(postgres::examine(&config, args)).await;
    let types = types.as_deref().map_err(String::as_str);
    findings.extend(Box::pin(rabbitmq::examine(&config, types)).await);
    findings.extend(certificates::own(&config));
    in_order(&mut findings);
    let summary = Summary::of(&findings);
    let mut out = io::stdout().lock();
    if args.json {
        json::write(&mut out, &config.name, summary, &findings)?;
    } else {
        text::write(&mut out, summary, &findings)?;
    }
    out.flush()?;
    match (summary.error, summary.warning) {
        (0, 0) => Ok(()),
        (0, warnings) if args.strict => bail!("{}", counted(warnings, "warning")),
        (0, _) => Ok(()),
        (errors, _) => bail!("{}", counted(errors, "error")),
    }
}

/// By the order of the reference: what comes first often explains the rest.
fn in_order(findings: &mut [Finding]) {
    let place = |code: Code| Code::ALL.iter().position(|known| *known == code);
    findings.sort_by_key(|finding| place(finding.code));
}

/// `1 error`, `2 errors`.
fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_counted_and_ordered() {
        let mut findings = vec![
            Finding::ok(Code::TlsOwn),
            Finding::error(Code::SlotLeft, "", ""),
            Finding::warning(Code::SlotLeft, "", ""),
            Finding::not_examined(Code::Pooler, ""),
            Finding::info(Code::Schema, "", ""),
        ];
        let expected = Summary { error: 1, warning: 1, info: 1, not_examined: 1, ok: 1 };
        assert_eq!(Summary::of(&findings), expected);
        in_order(&mut findings);
        let codes: Vec<Code> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [Code::Pooler, Code::Schema, Code::SlotLeft, Code::SlotLeft, Code::TlsOwn]);
        assert_eq!(findings[2].severity, Severity::Error, "among equals as found");
        assert_eq!((counted(1, "error"), counted(2, "error")), ("1 error".into(), "2 errors".into()));
    }
}
