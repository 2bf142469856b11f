//! Where events come from.

pub mod pgoutput;
pub mod poll;
pub mod replication;
