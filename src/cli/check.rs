//! `statecast check`: everything that `run` rests on, examined without changing anything; all findings at once.

use std::io::{self, Write as _};

use anyhow::bail;

use super::{Context, connect};
use crate::config::{Config, Declare, Rabbitmq};
use crate::postgres::describe;
use crate::sink::{connect as broker, topology};
use crate::store::cursor;
use crate::store::preflight::{ServerFacts, preflight};

pub(super) async fn run(context: &Context) -> anyhow::Result<()> {
    let config = context.load()?;
    let mut out = io::stdout();
    writeln!(out, "ok      configuration: pipeline {}", config.name)?;
    let mut failures = 0_u32;
    match database(&config).await {
        Ok(facts) => writeln!(
            out,
            "ok      postgres: server version {}, schema {}.{}, last seq {}{}",
            facts.version / 10_000,
            facts.schema.major,
            facts.schema.minor,
            facts.last_seq,
            if facts.timeline_changed {
                "; new timeline: the relay will move the sequence ahead"
            } else {
                ""
            },
        )?,
        Err(error) => {
            failures += 1;
            writeln!(out, "failed  postgres: {}", describe(error.as_ref()))?;
        }
    }
    match rabbitmq(&config.rabbitmq, &config.name).await {
        Ok(()) => writeln!(out, "ok      rabbitmq: exchange {}", config.rabbitmq.exchange)?,
        Err(error) if config.rabbitmq.declare == Declare::Create && error.is::<Missing>() => {
            writeln!(out, "note    rabbitmq: {error}; `run` will create it (rabbitmq.declare = \"create\")")?;
        }
        Err(error) => {
            failures += 1;
            writeln!(out, "failed  rabbitmq: {}", describe(error.as_ref()))?;
        }
    }
    if config.rabbitmq.management_url.is_none() {
        writeln!(out, "note    rabbitmq: bindings not examined (rabbitmq.management_url is not set)")?;
    }
    if failures > 0 {
        bail!("{failures} of the checks failed");
    }
    Ok(())
}

async fn database(config: &Config) -> anyhow::Result<ServerFacts> {
    let (client, _guard) = connect(config, "check").await?;
    // Without a schema there is no cursor to compare with: the first look says so.
    preflight(&client, None).await?;
    let last = cursor::last(&client, &config.name).await?;
    Ok(preflight(&client, last).await?)
}

/// The exchange or a queue is not there, or not as configured.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Missing(String);

async fn rabbitmq(config: &Rabbitmq, pipeline: &str) -> anyhow::Result<()> {
    let connection = broker::connect(config, &format!("statecast {pipeline} check")).await?;
    let looking = Rabbitmq { declare: Declare::Check, ..config.clone() };
    let result = topology::ensure(&connection, &looking).await;
    broker::close(&connection).await;
    result.map_err(|error| match error {
        crate::sink::SinkError::Topology(what) => Missing(what).into(),
        other => other.into(),
    })
}
