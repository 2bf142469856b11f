//! An inserted row of `statecast.outbox` as the [`Event`] that the page reader would read.

use bytes::Bytes;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::message::{ColumnMessage, Tuple, Value};
use super::relation::{Relation, RelationError};
use super::time::parse_us;
use crate::event::{Event, Text};

/// Schema of the outbox.
pub const SCHEMA: &str = "statecast";
/// Name of the outbox.
pub const TABLE: &str = "outbox";
/// Of a value that is refused, an error shows this many bytes at most.
const SHOWN_BYTES_MAX: usize = 64;

/// Where a column of the outbox is in its tuples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    name: &'static str,
    at: usize,
}

/// Where the columns are that an event is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Positions {
    xid: Position,
    seq: Position,
    event_id: Position,
    aggregate_type: Position,
    aggregate_id: Position,
    event_type: Position,
    schema_version: Position,
    entity_version: Position,
    payload: Position,
    headers: Position,
    correlation_id: Position,
    causation_id: Position,
    traceparent: Position,
    tracestate: Position,
    recorded_at: Position,
}

/// A row of the outbox is not an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// Another relation's row.
    #[error("{schema}.{name} is not the outbox")]
    NotOutbox {
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
    },
    /// The row has not as many values as the relation has columns.
    #[error("a row of statecast.outbox with {values} values for {columns} columns")]
    Width {
        /// Of the row.
        values: usize,
        /// Of the relation.
        columns: usize,
    },
    /// A value that an update did not touch, in an insert.
    #[error("a row of statecast.outbox was sent without its {column}")]
    Unchanged {
        /// Which column.
        column: String,
    },
    /// A value in binary form, which was not asked for.
    #[error("statecast.outbox.{column} came in binary form")]
    Binary {
        /// Which column.
        column: &'static str,
    },
    /// NULL where there is always a value.
    #[error("statecast.outbox.{column} is NULL")]
    Null {
        /// Which column.
        column: &'static str,
    },
    /// A value that its type never prints.
    #[error("statecast.outbox.{column} is {found:?}: {reason}")]
    Invalid {
        /// Which column.
        column: &'static str,
        /// Its beginning.
        found: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A text in another encoding: `client_encoding` must be UTF8.
    #[error("statecast.outbox.{column} is not UTF-8 (client_encoding must be UTF8)")]
    NotUtf8 {
        /// Which column.
        column: &'static str,
    },
}

/// What a column was installed as.
struct Kind {
    name: &'static str,
    accepts: &'static [Type],
}

const XID8: Kind = Kind { name: "xid8", accepts: &[Type::XID8] };
const BIGINT: Kind = Kind { name: "bigint", accepts: &[Type::INT8] };
const UUID: Kind = Kind { name: "uuid", accepts: &[Type::UUID] };
const JSON: Kind = Kind { name: "json", accepts: &[Type::JSON] };
const TIMESTAMPTZ: Kind = Kind { name: "timestamptz", accepts: &[Type::TIMESTAMPTZ] };
/// As polling: any type that is a string on the wire.
const TEXT: Kind = Kind { name: "text", accepts: &[Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME] };

/// Looks columns up by name and notes what it did not find.
struct Lookup<'a> {
    columns: &'a [ColumnMessage<'a>],
    missing: Vec<&'static str>,
    wrong: Option<RelationError>,
}

impl Lookup<'_> {
    fn find(&mut self, name: &'static str, kind: &Kind) -> Position {
        let Some((at, column)) = self.columns.iter().enumerate().find(|(_, column)| column.name == name)
        else {
            self.missing.push(name);
            return Position { name, at: usize::MAX };
        };
        let found = Type::from_oid(column.type_oid);
        if !found.as_ref().is_some_and(|found| kind.accepts.contains(found)) && self.wrong.is_none() {
            let oid = column.type_oid;
            let found = found.map_or_else(|| format!("with OID {oid}"), |found| found.name().to_owned());
            self.wrong = Some(RelationError::WrongType { column: name, expected: kind.name, found });
        }
        Position { name, at }
    }
}

impl Positions {
    /// Finds the columns by name.
    pub(super) fn resolve(columns: &[ColumnMessage<'_>]) -> Result<Self, RelationError> {
        let mut lookup = Lookup { columns, missing: Vec::new(), wrong: None };
        let positions = Positions {
            xid: lookup.find("xid", &XID8),
            seq: lookup.find("seq", &BIGINT),
            event_id: lookup.find("event_id", &UUID),
            aggregate_type: lookup.find("aggregate_type", &TEXT),
            aggregate_id: lookup.find("aggregate_id", &TEXT),
            event_type: lookup.find("event_type", &TEXT),
            schema_version: lookup.find("schema_version", &TEXT),
            entity_version: lookup.find("entity_version", &BIGINT),
            payload: lookup.find("payload", &JSON),
            headers: lookup.find("headers", &JSON),
            correlation_id: lookup.find("correlation_id", &TEXT),
            causation_id: lookup.find("causation_id", &TEXT),
            traceparent: lookup.find("traceparent", &TEXT),
            tracestate: lookup.find("tracestate", &TEXT),
            recorded_at: lookup.find("recorded_at", &TIMESTAMPTZ),
        };
        match lookup {
            Lookup { missing, .. } if !missing.is_empty() => {
                Err(RelationError::MissingColumns { columns: missing })
            }
            Lookup { wrong: Some(wrong), .. } => Err(wrong),
            _ => Ok(positions),
        }
    }
}

/// The event that an inserted row is. Its payload is copied: a slice would keep the receive buffer, of which a batch of small
/// events that come one by one would hold a thousand.
///
/// # Errors
/// The relation is not the outbox, or a value is not what its column prints.
pub fn event(relation: &Relation, tuple: &Tuple<'_>) -> Result<Event, EventError> {
    let Some(columns) = &relation.outbox else {
        return Err(EventError::NotOutbox { schema: relation.schema.clone(), name: relation.name.clone() });
    };
    if relation.columns.len() != tuple.values.len() {
        return Err(EventError::Width { values: tuple.values.len(), columns: relation.columns.len() });
    }
    let mut pairs = relation.columns.iter().zip(&tuple.values);
    if let Some((column, _)) = pairs.find(|(_, value)| **value == Value::Unchanged) {
        return Err(EventError::Unchanged { column: column.name.clone() });
    }
    let row = Row(tuple);
    Ok(Event {
        xid: row.required(columns.xid, unsigned)?,
        seq: row.required(columns.seq, signed)?,
        event_id: row.required(columns.event_id, uuid)?,
        aggregate_type: row.text(columns.aggregate_type)?,
        aggregate_id: row.text(columns.aggregate_id)?,
        event_type: row.text(columns.event_type)?,
        schema_version: row.text(columns.schema_version)?,
        entity_version: row.optional(columns.entity_version, signed)?,
        payload: row.value(columns.payload)?.map(Bytes::copy_from_slice),
        headers: row.value(columns.headers)?.map(<[u8]>::to_vec),
        correlation_id: row.optional_text(columns.correlation_id)?,
        causation_id: row.optional_text(columns.causation_id)?,
        traceparent: row.optional_text(columns.traceparent)?,
        tracestate: row.optional_text(columns.tracestate)?,
        recorded_at_us: row
            .required(columns.recorded_at, |text| parse_us(text).map_err(|error| error.to_string()))?,
    })
}

/// The values of a row by their columns' positions.
struct Row<'a>(&'a Tuple<'a>);

impl<'a> Row<'a> {
    fn value(&self, column: Position) -> Result<Option<&'a [u8]>, EventError> {
        match self.0.values.get(column.at) {
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(Value::Null) => Ok(None),
            Some(Value::Binary(_)) => Err(EventError::Binary { column: column.name }),
            Some(Value::Unchanged) | None => Err(EventError::Unchanged { column: column.name.to_owned() }),
        }
    }

    fn optional<T>(
        &self,
        column: Position,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<Option<T>, EventError> {
        let Some(text) = self.value(column)? else {
            return Ok(None);
        };
        parse(text).map(Some).map_err(|reason| {
            let shown = text.get(..SHOWN_BYTES_MAX).unwrap_or(text);
            let found = String::from_utf8_lossy(shown).into_owned();
            EventError::Invalid { column: column.name, found, reason }
        })
    }

    fn required<T>(
        &self,
        column: Position,
        parse: impl FnOnce(&[u8]) -> Result<T, String>,
    ) -> Result<T, EventError> {
        self.optional(column, parse)?.ok_or(EventError::Null { column: column.name })
    }

    fn optional_text<T: From<&'a str>>(&self, column: Position) -> Result<Option<T>, EventError> {
        let text = self.value(column)?.map(std::str::from_utf8).transpose();
        Ok(text.map_err(|_| EventError::NotUtf8 { column: column.name })?.map(T::from))
    }

    fn text(&self, column: Position) -> Result<Text, EventError> {
        self.optional_text(column)?.ok_or(EventError::Null { column: column.name })
    }
}

fn unsigned(text: &[u8]) -> Result<u64, String> {
    number(text, "not a number of 64 bits")
}

fn signed(text: &[u8]) -> Result<i64, String> {
    number(text, "not a signed number of 64 bits")
}

fn number<T: std::str::FromStr>(text: &[u8], otherwise: &str) -> Result<T, String> {
    // PostgreSQL prints no plus sign; `parse` would take one.
    let text = std::str::from_utf8(text).ok().filter(|text| !text.starts_with('+'));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| otherwise.to_owned())
}

fn uuid(text: &[u8]) -> Result<Uuid, String> {
    /// With hyphens, as PostgreSQL prints it; no other form is as long.
    const PRINTED_BYTES: usize = 36;
    let printed = Some(text).filter(|text| text.len() == PRINTED_BYTES);
    printed.and_then(|text| Uuid::try_parse_ascii(text).ok()).ok_or_else(|| "not a UUID".to_owned())
}
