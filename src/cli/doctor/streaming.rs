//! Could `run` stream, and is it meant to?

use tokio_postgres::{Client, Error};

use crate::config::{Config, Mode};
use crate::finding::{Code, Finding, complete};
use crate::source::wal::facts::{Facts, Obstacle, look};
use crate::source::wal::names::application_name;

/// Codes of [`examine`].
pub(super) const CODES: &[Code] = &[Code::WalLevel, Code::Streaming];

pub(super) async fn examine(client: &Client, config: &Config) -> Result<Vec<Finding>, Error> {
    let stream = application_name(&config.name);
    let facts = look(client, &config.source.wal.publication, &stream).await?;
    Ok(judge(&facts, config.source.mode, &stream))
}

/// With `auto`, polling is as good an answer as any. With `wal`, only a place that may become free heals by itself.
fn judge(facts: &Facts, mode: Mode, stream: &str) -> Vec<Finding> {
    if mode == Mode::Poll {
        let text = "not needed: source.mode = \"poll\"";
        return CODES.iter().map(|code| Finding::ok_with(*code, text)).collect();
    }
    let finding = |obstacle: &Obstacle| {
        let code = if matches!(obstacle, Obstacle::WalLevel(_)) { Code::WalLevel } else { Code::Streaming };
        let heals = matches!(obstacle, Obstacle::NoSlot(_) | Obstacle::NoSender(_));
        let make = if mode == Mode::Wal && !heals { Finding::error } else { Finding::info };
        let text = obstacle.to_string();
        // The obstacle says what to do after the colon.
        match text.split_once(": ") {
            Some((what, remedy)) => make(code, obstacle.subject(), what).with_remedy(remedy),
            None => make(code, obstacle.subject(), text.as_str()),
        }
    };
    let mut findings: Vec<Finding> = facts.obstacles(stream).iter().map(finding).collect();
    for warning in facts.warnings() {
        let (what, remedy) = warning.split_once(": ").unwrap_or((&warning, ""));
        findings.push(Finding::info(Code::Streaming, "the publication", what).with_remedy(remedy));
    }
    complete(CODES, findings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use crate::source::wal::facts::{Places, Publication};

    fn facts() -> Facts {
        Facts {
            wal_level: "logical".into(),
            role: "relay".into(),
            may_replicate: true,
            slots: Places { used: 0, max: 10 },
            senders: Places { used: 0, max: 10 },
            publication_name: "statecast".into(),
            publication: Publication::Right,
            extras: Vec::new(),
            synchronous_standby_names: String::new(),
        }
    }

    fn severities(facts: &Facts, mode: Mode) -> Vec<(Code, Severity)> {
        judge(facts, mode, "s").iter().map(|finding| (finding.code, finding.severity)).collect()
    }

    #[test]
    fn the_mode_decides_how_bad_it_is() {
        use Code::{Streaming, WalLevel};
        let replica = Facts { wal_level: "replica".into(), may_replicate: false, ..facts() };
        let full = Facts { slots: Places { used: 1, max: 1 }, ..facts() };
        assert_eq!(severities(&facts(), Mode::Wal), [(WalLevel, Severity::Ok), (Streaming, Severity::Ok)]);
        for (mode, severity) in
            [(Mode::Wal, Severity::Error), (Mode::Auto, Severity::Info), (Mode::Poll, Severity::Ok)]
        {
            assert_eq!(severities(&replica, mode), [(WalLevel, severity), (Streaming, severity)], "{mode:?}");
        }
        assert!(severities(&full, Mode::Wal).contains(&(Streaming, Severity::Info)));
        let first = judge(&replica, Mode::Wal, "s").swap_remove(0);
        assert_eq!((first.place.as_str(), first.what.as_str()), ("wal_level", "wal_level is replica"));
        assert!(first.remedy.starts_with("set wal_level = logical"), "{first:?}");
    }
}
