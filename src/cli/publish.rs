//! `statecast publish`: one event, in a transaction of its own. For trying things out and for scripts; applications call
//! the function `statecast.publish` in the transaction that changes their data.

use std::io::{self, Read as _, Write as _};

use anyhow::Context as _;
use uuid::Uuid;

use super::{Context, connect};
use crate::store::publish::{self, NewEvent};

/// Arguments of `publish`, named as those of the SQL function.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Kind of the entity, e.g. order
    aggregate_type: String,
    /// Its id
    aggregate_id: String,
    /// What happened, e.g. order.placed
    event_type: String,
    /// Full state of the entity as JSON; - reads it from standard input
    #[arg(required_unless_present = "delete", allow_hyphen_values = true)]
    payload: Option<String>,
    /// The entity was deleted: no payload
    #[arg(long, conflicts_with = "payload")]
    delete: bool,
    /// Semantic version of the payload's schema
    #[arg(long, value_name = "VERSION")]
    schema_version: Option<String>,
    /// The application's own version of the entity
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    entity_version: Option<i64>,
    /// Extension attributes, as a flat JSON object
    #[arg(long, value_name = "JSON")]
    headers: Option<String>,
    /// Groups the events of one request or saga
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// The event or command that led to this one
    #[arg(long, value_name = "ID")]
    causation_id: Option<String>,
    /// W3C trace context
    #[arg(long, value_name = "VALUE")]
    traceparent: Option<String>,
    /// W3C trace context
    #[arg(long, value_name = "VALUE")]
    tracestate: Option<String>,
    /// Id of the event, instead of a new one
    #[arg(long, value_name = "UUID")]
    event_id: Option<Uuid>,
    /// Accept JSON that not every reader can parse
    #[arg(long)]
    no_strict: bool,
    /// Lock the key, so that events of this entity are written one after another
    #[arg(long)]
    lock: bool,
}

pub(super) async fn run(context: &Context, args: Args) -> anyhow::Result<()> {
    let config = context.load()?;
    let payload = match args.payload {
        Some(payload) if payload == "-" => Some(from_stdin().await?),
        other => other,
    };
    let event = NewEvent {
        aggregate_type: args.aggregate_type,
        aggregate_id: args.aggregate_id,
        event_type: args.event_type,
        payload,
        schema_version: args.schema_version,
        entity_version: args.entity_version,
        headers: args.headers,
        correlation_id: args.correlation_id,
        causation_id: args.causation_id,
        traceparent: args.traceparent,
        tracestate: args.tracestate,
        event_id: args.event_id,
        strict: !args.no_strict,
        lock: args.lock,
    };
    let (client, _guard) = connect(&config, "publish").await?;
    let id = publish::publish(&client, &event).await?;
    writeln!(io::stdout(), "{id}")?;
    Ok(())
}

async fn from_stdin() -> anyhow::Result<String> {
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    });
    read.await?.context("cannot read the payload from standard input")
}
