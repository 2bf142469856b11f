//! Until when certificates are valid: the servers', as they show them, and those in our own files.

use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use lapin::uri::{AMQPScheme, AMQPUri};
use tokio_postgres::config::Host;

use crate::config::{Config, Rabbitmq, Tls, TlsMode};
use crate::finding::{Code, Finding};
use crate::postgres::{self, describe};
use crate::tls::{self, peer};

const DAY_S: i64 = 86_400;
const DAYS_WARN: i64 = 30;
const DAYS_ERROR: i64 = 7;

/// Judges one certificate, or the first of a chain to end.
pub(super) fn judge(code: Code, place: &str, not_after_s: u64, now_s: u64) -> Finding {
    let left_s = i64::try_from(not_after_s).unwrap_or(i64::MAX) - i64::try_from(now_s).unwrap_or(i64::MAX);
    let days = left_s.div_euclid(DAY_S);
    let text = match days {
        ..0 => format!("a certificate ended {} days ago", -days),
        days => format!("the first certificate ends in {days} days"),
    };
    if days < DAYS_ERROR {
        Finding::error(code, place, text)
    } else if days < DAYS_WARN {
        Finding::warning(code, place, text)
    } else {
        Finding { place: place.to_owned(), ..Finding::ok_with(code, text) }
    }
}

pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Those of the hosts in `postgres.url`.
pub(super) async fn postgres(config: &Config) -> Vec<Finding> {
    const CODE: Code = Code::TlsPostgres;
    let settings = match postgres::Settings::new(&config.postgres, "statecast doctor") {
        Ok(settings) => settings,
        Err(error) => return vec![Finding::not_examined(CODE, describe(&error))],
    };
    if settings.tls.is_none() {
        return vec![Finding::ok_with(CODE, "the connection does not use TLS")];
    }
    let mut hosts = settings.each();
    hosts.truncate(postgres::HOSTS_MAX);
    join_all(hosts.iter().map(one_host)).await
}

async fn one_host(settings: &postgres::Settings) -> Finding {
    const CODE: Code = Code::TlsPostgres;
    let config = &settings.config;
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let (Some(Host::Tcp(host)), Some(tls)) = (config.get_hosts().first(), &settings.tls) else {
        return Finding::not_examined(CODE, "postgres.url names no host to look at");
    };
    let address = config.get_hostaddrs().first().copied();
    let place = format!("{host}:{port}");
    shown(CODE, &place, Box::pin(peer::look(tls, host, address, port, peer::Before::Postgres)).await)
}

/// That of one broker; `None`: without TLS.
pub(super) async fn broker(config: &Rabbitmq, uri: &AMQPUri) -> Option<Finding> {
    const CODE: Code = Code::TlsRabbitmq;
    let wanted = match config.tls.mode {
        TlsMode::Disable => false,
        TlsMode::Verify => true,
        TlsMode::Url => uri.scheme == AMQPScheme::AMQPS,
    };
    if !wanted {
        return None;
    }
    let (host, port) = (&uri.authority.host, uri.authority.port);
    let tls = match tls::client_config(&config.tls) {
        Ok(tls) => tls,
        Err(error) => return Some(Finding::not_examined(CODE, describe(&error))),
    };
    let place = format!("{host}:{port}");
    Some(shown(CODE, &place, Box::pin(peer::look(&tls, host, None, port, peer::Before::Nothing)).await))
}

fn shown(
    code: Code,
    place: &str,
    answer: std::io::Result<Vec<rustls_pki_types::CertificateDer<'static>>>,
) -> Finding {
    match answer.map(|shown| peer::not_after_s(&shown)) {
        Ok(Some(not_after_s)) => judge(code, place, not_after_s, now_s()),
        Ok(None) => Finding::not_examined(code, format!("{place} shows no certificate that can be read")),
        Err(error) => Finding::not_examined(code, format!("{place}: {}", describe(&error))),
    }
}

/// Those in `ca_file` and `cert_file`.
pub(super) fn own(config: &Config) -> Vec<Finding> {
    let files = |section: &str, tls: &Tls| {
        let not_after_s = tls::not_after_s(tls)?;
        Some(judge(Code::TlsOwn, section, not_after_s, now_s()))
    };
    let found: Vec<Finding> =
        [files("postgres.tls", &config.postgres.tls), files("rabbitmq.tls", &config.rabbitmq.tls)]
            .into_iter()
            .flatten()
            .collect();
    if found.is_empty() {
        return vec![Finding::ok_with(Code::TlsOwn, "no certificate is configured")];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn days_are_counted_down() {
        let now = 1_000 * 86_400;
        let at = |days: u64| judge(Code::TlsOwn, "x", days * 86_400 + 3_600, now);
        assert_eq!(at(1_030).severity, Severity::Ok);
        assert_eq!(at(1_029).severity, Severity::Warning);
        assert_eq!(at(1_006).severity, Severity::Error);
        let ended = at(998);
        assert!(ended.severity == Severity::Error && ended.what.contains("ended 2 days ago"), "{ended:?}");
        assert_eq!(judge(Code::TlsOwn, "x", u64::MAX, 0).severity, Severity::Ok);
    }
}
