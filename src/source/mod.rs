//! Where events come from: the outbox, polled by snapshot difference, or streamed by logical replication ahead of it.

pub mod pgoutput;
pub mod poll;
pub mod replication;
pub mod wal;
