//! The leader's housekeeping: chunks ahead of the writers, retention behind the slowest pipeline.
//!
//! It never ends a session: what goes wrong here is a warning on `/ready`, and tried again.

use std::time::Duration;

use deadpool_postgres::{Object, Pool};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::backend::Part;
use crate::postgres;
use crate::store::chunks::{self, ChunkState, Postponed};
use crate::store::retention;

/// How often chunks are looked at. Eight empty chunks of a million rows are ahead of the writers.
const INTERVAL: Duration = Duration::from_secs(5);
/// How often what could not be finished is tried again: a pending detach holds new chunks up.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Retention is looked at in every n-th round.
const RETENTION_ROUNDS: u32 = 6;

/// Starts the housekeeping of one session; `over` ends it.
pub fn spawn(context: &Context, over: CancellationToken) {
    let context = context.clone();
    tokio::spawn(async move { until(&context, &over).await });
}

/// Afterwards nothing is known: figures that stand still would be alarmed about for as long as another process leads.
async fn until(context: &Context, over: &CancellationToken) {
    tokio::select! {
        () = over.cancelled() => {}
        () = housekeeping(context) => {}
    }
    context.health.clear_reason("chunks");
    context.health.clear_reason("retention");
    context.metrics.outbox_chunks.set(0);
    context.metrics.outbox_bytes.set(0);
}

async fn housekeeping(context: &Context) {
    let config = &context.config;
    let name = Part::Upkeep.application_name(&config.name);
    let pool = loop {
        match postgres::pool(&config.postgres, &name, 1) {
            Ok(pool) => break pool,
            Err(error) => context.health.set_warning("chunks", postgres::describe(&error)),
        }
        tokio::time::sleep(INTERVAL).await;
    };
    for round in 0u32.. {
        let pause = match look_after(context, &pool, round.is_multiple_of(RETENTION_ROUNDS)).await {
            Ok(true) => INTERVAL,
            Ok(false) => RETRY_INTERVAL,
            Err(text) => {
                tracing::warn!("upkeep of the outbox failed: {text}");
                context.health.set_warning("chunks", text);
                INTERVAL
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// One round. `false`: something is half done.
async fn look_after(context: &Context, pool: &Pool, retain: bool) -> Result<bool, String> {
    let client = pool.get().await.map_err(|e| postgres::describe(&e))?;
    match round(context, &client, retain).await {
        Ok(done) => Ok(done),
        Err(text) => {
            // A connection with a role or a lock that was not given back must not be used again.
            drop(Object::take(client));
            Err(text)
        }
    }
}

async fn round(context: &Context, client: &tokio_postgres::Client, retain: bool) -> Result<bool, String> {
    let state = chunks::ensure_chunks(client, context.config.retention.chunk_rows)
        .await
        .map_err(|e| postgres::describe(&e))?;
    report(context, &state);
    let mut done = state.postponed.is_none();
    if retain {
        let kept =
            retention::retain(client, &context.config.retention).await.map_err(|e| postgres::describe(&e))?;
        match &kept.overdue {
            Some(overdue) => context.health.set_warning("retention", overdue.to_string()),
            None => context.health.clear_reason("retention"),
        }
        done &= kept.postponed.is_none();
    }
    Ok(done)
}

fn report(context: &Context, state: &ChunkState) {
    context.metrics.outbox_chunks.set(state.chunks.len() as i64);
    context.metrics.outbox_bytes.set(i64::try_from(state.bytes).unwrap_or(i64::MAX));
    let mut texts: Vec<String> = state.alarms.iter().map(ToString::to_string).collect();
    if state.postponed == Some(Postponed::Detaching) {
        texts.push(format!(
            "a chunk of the outbox is half detached and waits for old transactions: see pg_stat_activity; {} empty chunks are left",
            state.empty_ahead
        ));
    }
    if texts.is_empty() {
        context.health.clear_reason("chunks");
    } else {
        context.health.set_warning("chunks", texts.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::app::Options;
    use crate::health::Health;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn a_standby_shows_no_outbox_of_its_time_as_a_leader() {
        let variables = [
            ("STATECAST_POSTGRES__URL", "postgres://relay@127.0.0.1:1/app"),
            ("STATECAST_RABBITMQ__URLS", "amqp://relay@127.0.0.1:1"),
        ];
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = Arc::new(crate::config::load(None, variables).unwrap());
        let (metrics, health) = (Metrics::new("test"), Health::new());
        let context = Context { config, options: Options::default(), metrics, health };
        context.metrics.outbox_chunks.set(3);
        context.metrics.outbox_bytes.set(7);
        let over = CancellationToken::new();
        over.cancel();
        until(&context, &over).await;
        assert_eq!((context.metrics.outbox_chunks.get(), context.metrics.outbox_bytes.get()), (0, 0));
    }
}
