//! What is examined in RabbitMQ, and in which order: each broker's connection, then AMQP, then the management API.

use lapin::Connection;
use lapin::uri::AMQPUri;

use super::certificates;
use crate::config::{Config, Rabbitmq};
use crate::finding::{Code, Finding, Server, unexamined};
use crate::postgres::describe;
use crate::sink::connect;
use crate::sink::examine::{self, Account, DATE_RESOLUTION, EventType, amqp};
use crate::sink::management::Management;
use crate::store::examine::clock::Skew;
use crate::tls::peer;

/// `types`: what the outbox has seen, or why that is not known.
pub(super) async fn examine(config: &Config, types: Result<&[EventType], &str>) -> Vec<Finding> {
    let (connection, mut findings) = brokers(&config.rabbitmq, &config.name).await;
    match connection {
        Some(connection) => {
            findings.extend(amqp::examine(&connection, &config.rabbitmq).await);
            connect::close(&connection).await;
        }
        None => findings.extend(unexamined(amqp::CODES, "no connection")),
    }
    findings.extend(over_management(config, types).await);
    if findings.iter().all(|finding| finding.code != Code::TlsRabbitmq) {
        findings.push(Finding::ok_with(Code::TlsRabbitmq, "no connection uses TLS"));
    }
    findings
}

/// Tries each of `rabbitmq.urls`; keeps the first connection.
async fn brokers(config: &Rabbitmq, pipeline: &str) -> (Option<Connection>, Vec<Finding>) {
    let (mut kept, mut failed, mut findings) = (None, Vec::new(), Vec::new());
    for url in &config.urls {
        let one = Rabbitmq { urls: vec![url.clone()], ..config.clone() };
        match Box::pin(connect::connect(&one, &format!("statecast {pipeline} doctor"))).await {
            Ok(connection) if kept.is_none() => kept = Some(connection),
            Ok(connection) => connect::close(&connection).await,
            Err(error) => failed.push(describe(&error)),
        }
        if let Ok(uri) = url.expose().parse::<AMQPUri>() {
            findings.extend(certificates::broker(config, &uri).await);
        }
    }
    findings.extend(unreachable(&failed, config.urls.len()));
    (kept, findings)
}

fn unreachable(failed: &[String], all: usize) -> Vec<Finding> {
    const CODE: Code = Code::RabbitmqUnreachable;
    if failed.is_empty() {
        let text = format!("{} can be connected to", super::counted(all, "broker"));
        return vec![Finding::ok_with(CODE, text)];
    }
    let make = if failed.len() == all { Finding::error } else { Finding::warning };
    failed.iter().map(|text| make(CODE, "", text)).collect()
}

async fn over_management(config: &Config, types: Result<&[EventType], &str>) -> Vec<Finding> {
    let all = |why: &str| {
        let codes =
            Code::ALL.iter().filter(|code| code.row().server == Server::Rabbitmq && code.row().management);
        unexamined(&codes.copied().collect::<Vec<_>>(), why)
    };
    let rabbitmq = &config.rabbitmq;
    let Some(url) = &rabbitmq.management_url else {
        return all("rabbitmq.management_url is not set");
    };
    let Some(account) = Account::of(rabbitmq) else {
        return all("rabbitmq.urls cannot be read");
    };
    let mut management = match Management::new(url, &rabbitmq.tls) {
        Ok(management) => management,
        Err(error) => return all(&describe(&error)),
    };
    let mut findings =
        Box::pin(examine::examine(&mut management, rabbitmq, &config.name, &account, types)).await;
    findings.push(match management.dated() {
        Some(dated) => {
            Skew::new(dated.local, dated.remote, dated.trip, DATE_RESOLUTION).judge(Code::ClockRabbitmq)
        }
        None => Finding::not_examined(Code::ClockRabbitmq, "no answer of the management API has a date"),
    });
    if let Some(not_after_s) = peer::not_after_s(management.certificates()) {
        let place = format!("management API at {}", management.at());
        findings.push(certificates::judge(Code::TlsRabbitmq, &place, not_after_s, certificates::now_s()));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    #[test]
    fn one_broker_of_several_is_a_warning() {
        let severities = |failed: usize, all| -> Vec<Severity> {
            let failed = vec!["why".to_owned(); failed];
            unreachable(&failed, all).iter().map(|finding| finding.severity).collect()
        };
        assert_eq!(severities(0, 2), [Severity::Ok]);
        assert_eq!(severities(1, 2), [Severity::Warning]);
        assert_eq!(severities(2, 2), [Severity::Error; 2]);
    }

    #[test]
    fn every_code_of_the_management_api_is_accounted_for() {
        let of_management = Code::ALL.iter().filter(|code| code.row().management).count();
        assert_eq!(of_management, examine::CODES.len() + 1, "and the clock");
        let of_amqp = Code::ALL.iter().filter(|code| {
            let row = code.row();
            row.server == Server::Rabbitmq && !row.management
        });
        assert_eq!(of_amqp.count(), amqp::CODES.len() + 2, "and the connection with its certificate");
    }
}
