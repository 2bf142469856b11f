//! Where events come from.

pub mod poll;
