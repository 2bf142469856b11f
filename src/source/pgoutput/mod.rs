//! Decoder of PostgreSQL's `pgoutput` plug-in, protocol version 1.
//!
//! ```text
//! XLogData ──message──▶ Relation ──relation──▶ Relations
//!                       Insert   ──outbox────▶ Event
//! ```
//!
//! Total: every input is a message or a [`DecodeError`] that names the message, the byte and what was expected there.
//! Nothing is copied before an [`Event`](crate::event::Event) is built, lengths are checked before anything is
//! allocated, and bytes that are left over are an error, so no message is read as another one.
//!
//! What the connection must set, or values are refused: `DateStyle = ISO`, `client_encoding = UTF8` and
//! `TimeZone = UTC` (in a zone west of it PostgreSQL prints the first hours of the year 1 as `BC`); of the plug-in
//! `proto_version '1'` without `binary` and `streaming`.
//!
//! Rules: PostgreSQL documentation, "Logical Replication Message Formats".

pub mod message;
pub mod outbox;
mod reader;
pub mod relation;
#[cfg(test)]
mod tests;
pub mod time;

pub use message::{Message, OldTuple, Tuple, Value, decode};
pub use outbox::{EventError, event};
pub use reader::{DecodeError, Found};
pub use relation::{Relation, RelationError, Relations};
pub use time::PgTime;
