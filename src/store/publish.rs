//! Writing an event through the public write API, `statecast.publish`.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

/// The arguments of `statecast.publish`, by their names. `None` is the function's default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NewEvent {
    pub aggregate_type: String,
    pub aggregate_id: String,
    pub event_type: String,
    /// JSON; `None` = deleted.
    pub payload: Option<String>,
    pub schema_version: Option<String>,
    pub entity_version: Option<i64>,
    /// A flat JSON object.
    pub headers: Option<String>,
    pub correlation_id: Option<String>,
    pub causation_id: Option<String>,
    pub traceparent: Option<String>,
    pub tracestate: Option<String>,
    pub event_id: Option<Uuid>,
    /// Refuse JSON that not every reader can parse.
    pub strict: bool,
    /// Lock the key until the transaction ends.
    pub lock: bool,
}

/// The event was not written.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The login may not.
    #[error("this login may not write events: GRANT statecast_writer TO it, or use another one")]
    Privilege(#[source] Error),
    /// No schema.
    #[error("there is no function statecast.publish in this database: run `statecast install`")]
    NotInstalled(#[source] Error),
    /// Refused by the function or by a constraint of the table, whose name says why.
    #[error("the event was refused")]
    Refused(#[source] Error),
}

/// Writes one event in a transaction of its own. Returns its id.
///
/// # Errors
/// Why it was not written.
pub async fn publish(client: &Client, event: &NewEvent) -> Result<Uuid, PublishError> {
    // As text: the payload's bytes go to the server as they are.
    let row = client
        .query_one(
            "SELECT statecast.publish(
                 aggregate_type => $1::text, aggregate_id => $2::text, event_type => $3::text,
                 payload => $4::text::json, schema_version => $5::text, entity_version => $6::bigint,
                 headers => $7::text::json, correlation_id => $8::text, causation_id => $9::text,
                 traceparent => $10::text, tracestate => $11::text, event_id => $12::uuid,
                 strict => $13::boolean, lock => $14::boolean)",
            &[
                &event.aggregate_type,
                &event.aggregate_id,
                &event.event_type,
                &event.payload,
                &event.schema_version,
                &event.entity_version,
                &event.headers,
                &event.correlation_id,
                &event.causation_id,
                &event.traceparent,
                &event.tracestate,
                &event.event_id,
                &event.strict,
                &event.lock,
            ],
        )
        .await
        .map_err(explain)?;
    row.try_get(0).map_err(PublishError::Refused)
}

fn explain(error: Error) -> PublishError {
    match error.code() {
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => PublishError::Privilege(error),
        Some(&SqlState::UNDEFINED_FUNCTION | &SqlState::INVALID_SCHEMA_NAME) => {
            PublishError::NotInstalled(error)
        }
        _ => PublishError::Refused(error),
    }
}
