//! What is examined in PostgreSQL, and in which order: the connections, the server, streaming, transactions, the relays, the
//! outbox.

use tokio::time::timeout;
use tokio_postgres::Client;

use super::{Args, certificates, streaming};
use crate::cli::connect;
use crate::config::Config;
use crate::finding::{Code, Finding, Server, complete, unexamined};
use crate::postgres::{self, CONNECT_TIMEOUT, describe};
use crate::sink::examine::EventType;
use crate::source::wal::names;
use crate::store::examine::{
    self, chunks, clock, cursors, fitness, horizon, hosts, leader, parked, slots, transactions, types,
    writers,
};
use crate::store::preflight::{PreflightError, own_processes};

/// The types that the outbox has lately seen, or in a line why they are not known.
pub(super) type Types = Result<Vec<EventType>, String>;

/// Findings, and what is in the outbox.
pub(super) async fn examine(config: &Config, args: &Args) -> (Vec<Finding>, Types) {
    let mut findings = several(config).await;
    let (client, _guard) = match connect(config, "doctor").await {
        Ok(connected) => connected,
        Err(error) => {
            findings.push(Finding::error(Code::PostgresUnreachable, "", describe(&error)));
            let why = "no connection";
            findings.extend(rest(&findings, why));
            return (findings, Err(why.to_owned()));
        }
    };
    findings.extend(certificates::postgres(config).await);
    findings = complete(&[Code::PostgresUnreachable], findings);
    let pooler = pooler(&client, config).await;
    let alone = pooler.severity == crate::finding::Severity::Ok;
    findings.push(pooler);
    if !alone {
        // The settings that make this examination harmless would stay in the pool.
        let why = "no session of its own behind a pooler";
        findings.extend(rest(&findings, why));
        return (findings, Err(why.to_owned()));
    }
    if let Err(error) = examine::begin(&client).await {
        let why = describe(&error);
        findings.extend(rest(&findings, &why));
        return (findings, Err(why));
    }
    let (more, types) = server(&client, config, args).await;
    findings.extend(more);
    // A connection that fails here is closed anyway.
    let _ = examine::end(&client).await;
    (findings, types)
}

/// Each of several hosts on its own. Where there is one the main connection says all.
async fn several(config: &Config) -> Vec<Finding> {
    let asked = match postgres::Settings::new(&config.postgres, "") {
        Ok(settings) if settings.each().len() > 1 => {
            postgres::each_host(&config.postgres, &format!("statecast {} doctor", config.name)).await
        }
        Ok(_) => return hosts::judge(&[]),
        Err(error) => Err(error),
    };
    let Ok(asked) = asked else {
        // The main connection says it better.
        return unexamined(&[Code::HostsDiffer], "no connection");
    };
    let mut known = Vec::new();
    for (at, connected) in asked {
        let host = match connected {
            Ok((client, _guard)) => match timeout(CONNECT_TIMEOUT, hosts::look(&client)).await {
                Ok(looked) => looked.map_err(|error| describe(&error)),
                Err(_) => Err(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs())),
            },
            Err(error) => Err(describe(&error)),
        };
        known.push((at, host));
    }
    hosts::judge(&known)
}

/// "Not examined" for every code of this server that nothing has been said about.
fn rest(findings: &[Finding], why: &str) -> Vec<Finding> {
    let said = |code: &Code| findings.iter().any(|finding| finding.code == *code);
    let all = Code::ALL.iter().filter(|code| code.row().server == Server::Postgres && !said(code));
    unexamined(&all.copied().collect::<Vec<_>>(), why)
}

async fn pooler(client: &Client, config: &Config) -> Finding {
    let (other, _guard) = match connect(config, "doctor").await {
        Ok(connected) => connected,
        Err(error) => {
            return Finding::not_examined(
                Code::Pooler,
                format!("no second connection: {}", describe(&error)),
            );
        }
    };
    match own_processes(client, &other).await {
        Ok(()) => Finding::ok(Code::Pooler),
        Err(PreflightError::Pooled) => Finding::error(
            Code::Pooler,
            "postgres.url",
            "it leads to a connection pooler that hands a server process from client to client (pool_mode = transaction or statement)",
        ),
        Err(error) => Finding::not_examined(Code::Pooler, describe(&error)),
    }
}

/// Everything that needs a session of its own.
async fn server(client: &Client, config: &Config, args: &Args) -> (Vec<Finding>, Types) {
    let (prefix, stream) = (names::slot_prefix(&config.name), names::application_name(&config.name));
    let limit_ms = i64::try_from(args.long_transaction.as_millis()).unwrap_or(i64::MAX);
    let mut findings = fitness::server(client).await;
    findings.extend(or_why(clock::examine(client).await, clock::CODES));
    findings.extend(or_why(streaming::examine(client, config).await, streaming::CODES));
    findings.extend(or_why(slots::examine(client, &config.name, &prefix, &stream).await, slots::CODES));
    findings.extend(or_why(transactions::examine(client, limit_ms).await, transactions::CODES));
    findings.extend(or_why(horizon::examine(client, args.horizon_age).await, horizon::CODES));
    let (installed, schema) = fitness::schema(client).await;
    findings.extend(schema);
    if !installed {
        let why = "there is no schema that this program can use";
        findings.extend(rest_of_outbox(why));
        return (findings, Err(why.to_owned()));
    }
    findings.extend(fitness::installation(client, &config.name).await);
    findings.extend(leader::examine(client, &config.name).await);
    findings.extend(or_why(parked::examine(client, &config.name).await, parked::CODES));
    let (state, more) = chunks::examine(client).await;
    findings.extend(more);
    findings.extend(or_why(cursors::examine(client, state.as_ref()).await, cursors::CODES));
    findings.extend(writers::examine(client, args.rows).await);
    (findings, seen(client, args.rows).await)
}

async fn seen(client: &Client, rows: i64) -> Types {
    let seen = types::seen(client, rows).await.map_err(|error| describe(&error))?;
    let one = |seen: types::SeenType| EventType {
        aggregate_type: seen.aggregate_type,
        aggregate_id: seen.aggregate_id,
        event_type: seen.event_type,
    };
    Ok(seen.into_iter().map(one).collect())
}

fn rest_of_outbox(why: &str) -> Vec<Finding> {
    let codes =
        [fitness::INSTALLATION, leader::CODES, parked::CODES, chunks::CODES, cursors::CODES, writers::CODES];
    unexamined(&codes.concat(), why)
}

/// The findings, or for each of `codes` why there are none.
fn or_why(found: Result<Vec<Finding>, tokio_postgres::Error>, codes: &[Code]) -> Vec<Finding> {
    found.unwrap_or_else(|error| unexamined(codes, &describe(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_server_is_accounted_for() {
        let findings = [Finding::error(Code::PostgresUnreachable, "", "")];
        let rest = rest(&findings, "why");
        let all = Code::ALL.iter().filter(|code| code.row().server == Server::Postgres).count();
        assert_eq!(rest.len() + 1, all);
        assert!(rest.iter().all(|finding| finding.what == "why"));
        let examined = [
            fitness::SERVER,
            fitness::SCHEMA,
            fitness::INSTALLATION,
            clock::CODES,
            streaming::CODES,
            slots::CODES,
            transactions::CODES,
            horizon::CODES,
            chunks::CODES,
            cursors::CODES,
            writers::CODES,
            leader::CODES,
            parked::CODES,
            &[Code::PostgresUnreachable, Code::HostsDiffer, Code::Pooler, Code::TlsPostgres],
        ]
        .concat();
        assert_eq!(examined.len(), all, "a code that nobody examines");
    }
}
