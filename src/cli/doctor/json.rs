//! The findings for machines. Fields are added, never changed, within a `schema`.

use std::io::{self, Write};

use serde::Serialize;

use super::Summary;
use crate::finding::Finding;

#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: u32,
    pipeline: &'a str,
    summary: Summary,
    /// In the order of the reference; each has `code`, `severity`, `server`, `where`, `what`, `remedy`.
    findings: &'a [Finding],
}

pub(super) fn write(
    out: &mut impl Write,
    pipeline: &str,
    summary: Summary,
    findings: &[Finding],
) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Report { schema: 1, pipeline, summary, findings })?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Code;

    #[test]
    fn one_document() {
        let findings = [Finding::error(Code::SlotLeft, "slot x", "left").with_remedy("drop")];
        let mut out = Vec::new();
        write(&mut out, "orders", Summary::of(&findings), &findings).unwrap();
        let expected = r#"{"schema":1,"pipeline":"orders","summary":{"error":1,"warning":0,"info":0,"not_examined":0,"ok":0},"findings":[{"code":"slot-left","severity":"error","server":"PostgreSQL","where":"slot x","what":"left","remedy":"drop"}]}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }
}
