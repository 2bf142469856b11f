//! What an examination finds: a stable code, how bad it is, where, what exactly, and the remedy.
//!
//! Who looks at a server (`store::examine`, `sink::examine`) keeps facts and judgement apart: facts are asked for, findings
//! follow from them by pure functions. [`Code`] holds the table of everything that is looked for.

mod codes;

use std::fmt;

use serde::Serialize;

pub use codes::{Code, Row, Server, reference};

/// How bad it is, from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Examined, and as it should be.
    Ok,
    /// Could not be looked at; the finding says why.
    #[serde(rename = "not examined")]
    NotExamined,
    /// Good to know.
    Info,
    /// Something is at risk, or costs more than it should.
    Warning,
    /// Events do not arrive, can be lost or overtaken, or a server is in danger.
    Error,
}

impl Severity {
    /// As it is printed, and as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::NotExamined => "not examined",
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which of the things that are looked for.
    pub code: Code,
    /// How bad.
    pub severity: Severity,
    /// On which server.
    pub server: Server,
    /// The object it is about, such as `slot "debezium"`; empty: the server as a whole.
    #[serde(rename = "where")]
    pub place: String,
    /// What is so, with the figures. For what is not examined: why.
    pub what: String,
    /// What to do; empty where nothing is to be done.
    pub remedy: String,
}

impl Finding {
    /// A finding with the table's remedy.
    pub fn new(code: Code, severity: Severity, place: impl Into<String>, what: impl Into<String>) -> Finding {
        let Row { server, remedy, .. } = code.row();
        let remedy = if severity > Severity::NotExamined { remedy } else { "" };
        Finding { code, severity, server, place: place.into(), what: what.into(), remedy: remedy.to_owned() }
    }

    /// An error.
    pub fn error(code: Code, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(code, Severity::Error, place, what)
    }

    /// A warning.
    pub fn warning(code: Code, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(code, Severity::Warning, place, what)
    }

    /// Good to know.
    pub fn info(code: Code, place: impl Into<String>, what: impl Into<String>) -> Finding {
        Finding::new(code, Severity::Info, place, what)
    }

    /// As it should be, in the table's words.
    pub fn ok(code: Code) -> Finding {
        Finding::new(code, Severity::Ok, "", code.row().good)
    }

    /// As it should be, with figures.
    pub fn ok_with(code: Code, what: impl Into<String>) -> Finding {
        Finding::new(code, Severity::Ok, "", what)
    }

    /// It could not be looked at.
    pub fn not_examined(code: Code, why: impl Into<String>) -> Finding {
        Finding::new(code, Severity::NotExamined, "", why)
    }

    /// Another remedy than the table's, such as the statement to run.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Finding {
        self.remedy = remedy.into();
        self
    }
}

/// Adds an "ok" for each of `codes` that `findings` say nothing about.
#[must_use]
pub fn complete(codes: &[Code], mut findings: Vec<Finding>) -> Vec<Finding> {
    for code in codes {
        if findings.iter().all(|finding| finding.code != *code) {
            findings.push(Finding::ok(*code));
        }
    }
    findings
}

/// None of `codes` could be looked at.
#[must_use]
pub fn unexamined(codes: &[Code], why: &str) -> Vec<Finding> {
    codes.iter().map(|code| Finding::not_examined(*code, why)).collect()
}

/// At most `limit` names on one line, and how many more there are.
#[must_use]
pub fn listed<T: fmt::Display>(items: &[T], limit: usize) -> String {
    let shown: Vec<String> = items.iter().take(limit).map(ToString::to_string).collect();
    match items.len().saturating_sub(limit) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_text_use_the_same_words() {
        for severity in
            [Severity::Ok, Severity::NotExamined, Severity::Info, Severity::Warning, Severity::Error]
        {
            let json = serde_json::to_value(severity).unwrap();
            assert_eq!(json, severity.as_str());
        }
        let finding = serde_json::to_value(Finding::warning(Code::Pooler, "here", "so")).unwrap();
        assert_eq!((&finding["code"], &finding["where"]), (&"pooler".into(), &"here".into()));
        assert_eq!(finding["server"], "PostgreSQL");
    }

    #[test]
    fn what_is_not_said_is_good() {
        let found = complete(
            &[Code::Pooler, Code::Schema],
            vec![Finding::error(Code::Schema, "", "x"), Finding::info(Code::Schema, "", "y")],
        );
        assert_eq!(found.len(), 3);
        assert_eq!((found[2].code, found[2].severity), (Code::Pooler, Severity::Ok));
        assert!(found[2].remedy.is_empty() && !found[2].what.is_empty());
    }

    #[test]
    fn long_lists_are_cut() {
        assert_eq!(listed(&["a", "b"], 2), "a, b");
        assert_eq!(listed(&["a", "b", "c"], 1), "a and 2 more");
    }
}
