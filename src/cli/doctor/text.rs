//! The findings for people: the worst first, each with its remedy; then what was not examined, by reason; then what is well.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::{Summary, counted};
use crate::cli::plain::plain;
use crate::finding::{Finding, Severity};

pub(super) fn write(out: &mut impl Write, summary: Summary, findings: &[Finding]) -> io::Result<()> {
    for severity in [Severity::Error, Severity::Warning, Severity::Info] {
        for finding in findings.iter().filter(|finding| finding.severity == severity) {
            problem(out, finding)?;
        }
    }
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.severity == Severity::NotExamined) {
        let codes = reasons.entry(&finding.what).or_default();
        if !codes.contains(&finding.code.row().name) {
            codes.push(finding.code.row().name);
        }
    }
    for (why, codes) in reasons {
        writeln!(out, "not examined ({}): {}", plain(why), codes.join(", "))?;
    }
    for finding in findings.iter().filter(|finding| finding.severity == Severity::Ok) {
        let place =
            if finding.place.is_empty() { String::new() } else { format!(" ({})", plain(&finding.place)) };
        writeln!(out, "ok       {}{place}: {}", finding.code.row().name, plain(&finding.what))?;
    }
    let Summary { error, warning, info, not_examined, ok } = summary;
    let (errors, warnings) = (counted(error, "error"), counted(warning, "warning"));
    writeln!(out, "{errors}, {warnings}, {info} info, {not_examined} not examined, {ok} ok")
}

fn problem(out: &mut impl Write, finding: &Finding) -> io::Result<()> {
    let Finding { code, severity, server, place, what, remedy } = finding;
    let place = if place.is_empty() { String::new() } else { format!(", {}", plain(place)) };
    writeln!(out, "{severity:<8} {}  {}{place}", code.row().name, server.as_str())?;
    writeln!(out, "         {}", plain(what))?;
    if !remedy.is_empty() {
        writeln!(out, "         → {}", plain(remedy))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Code;

    #[test]
    fn the_worst_comes_first_and_reasons_are_shared() {
        let findings = [
            Finding::ok_with(Code::Schema, "version 1.2"),
            Finding::not_examined(Code::TypeUnbound, "no URL"),
            Finding::not_examined(Code::CatchAll, "no URL"),
            Finding::warning(Code::SlotForeign, "slot \x1b[31mx\u{202e}y", "is big").with_remedy("drop it"),
            Finding::error(Code::Pooler, "postgres.url", "pooled"),
        ];
        let mut out = Vec::new();
        write(&mut out, Summary::of(&findings), &findings).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "error    pooler  PostgreSQL, postgres.url",
                "         pooled",
                "         → connect to PostgreSQL itself, or to a pool with `pool_mode = session`",
                "warning  slot-foreign  PostgreSQL, slot  [31mx y",
                "         is big",
                "         → drop it",
                "not examined (no URL): type-unbound, catch-all",
                "ok       schema: version 1.2",
                "1 error, 1 warning, 0 info, 2 not examined, 1 ok",
            ]
        );
    }
}
