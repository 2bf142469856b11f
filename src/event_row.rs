//! An event as SQL gives it: one decoding for the outbox and for its rows that are set aside.

use std::error::Error;

use bytes::Bytes;
use tokio_postgres::Row;
use tokio_postgres::types::{FromSql, Type};
use uuid::Uuid;

use crate::event::{Event, Text, Xid};

/// Reads the event of a row that begins with the columns seq, xid, event_id, aggregate_type, aggregate_id, event_type,
/// schema_version, entity_version, payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at.
///
/// # Errors
/// Other columns, or NULL where there is none in the outbox.
pub fn event(row: Row) -> Result<Event, tokio_postgres::Error> {
    let text = |column| row.try_get::<_, &str>(column).map(Text::from);
    let event = Event {
        seq: row.try_get(0)?,
        xid: row.try_get::<_, Xid8>(1)?.0,
        event_id: row.try_get::<_, Uuid>(2)?,
        aggregate_type: text(3)?,
        aggregate_id: text(4)?,
        event_type: text(5)?,
        schema_version: text(6)?,
        entity_version: row.try_get(7)?,
        payload: None,
        headers: row.try_get::<_, Option<JsonText<'_>>>(9)?.map(|j| j.0.to_vec()),
        correlation_id: row.try_get(10)?,
        causation_id: row.try_get(11)?,
        traceparent: row.try_get(12)?,
        tracestate: row.try_get(13)?,
        recorded_at_us: row.try_get::<_, Micros>(14)?.0,
    };
    let has_payload = row.try_get::<_, Option<JsonText<'_>>>(PAYLOAD)?.is_some();
    Ok(Event { payload: has_payload.then(|| Bytes::from_owner(Payload(row))), ..event })
}

const PAYLOAD: usize = 8;

/// A row for the sake of its payload, which stays in the buffer that it came in: all rows of a page came in the same few.
struct Payload(Row);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self.0.try_get::<_, JsonText<'_>>(PAYLOAD).map_or(&[], |json| json.0)
    }
}

type FromSqlError = Box<dyn Error + Sync + Send>;

/// `xid8`, which the client library does not map.
struct Xid8(Xid);

impl<'a> FromSql<'a> for Xid8 {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        Ok(Xid8(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::XID8
    }
}

/// `json` as the bytes that were committed: its binary form is its text.
struct JsonText<'a>(&'a [u8]);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        Ok(JsonText(raw))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::JSON
    }
}

/// `timestamptz` in microseconds since 1970; infinities saturate and are refused when the event is assembled.
struct Micros(i64);

impl<'a> FromSql<'a> for Micros {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, FromSqlError> {
        const EPOCH_2000_US: i64 = 946_684_800_000_000;
        Ok(Micros(i64::from_be_bytes(raw.try_into()?).saturating_add(EPOCH_2000_US)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}
