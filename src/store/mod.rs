//! Statecast's own state in PostgreSQL: schema, cursor, events that are set aside, chunks, retention, and the checks before a
//! session. `examine` looks at all of it, and at the server, for `statecast doctor`.

pub mod chunks;
pub mod cursor;
pub mod cursor_admin;
pub mod examine;
pub mod install;
pub mod keeper;
mod layout;
pub mod lease;
pub mod maintain;
pub mod parked;
pub mod predecessor;
pub mod preflight;
pub mod publication;
pub mod publish;
pub mod retention;
pub mod schema;
pub mod status;
pub mod story;
pub mod tail;
mod upkeep;
pub mod verify;
