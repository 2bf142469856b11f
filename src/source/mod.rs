//! Where events come from.

pub mod poll;
pub mod replication;
