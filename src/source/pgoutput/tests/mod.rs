//! Bytes by hand, properties over an encoder of the tests' own, and rows of the outbox.

#![allow(clippy::indexing_slicing, reason = "tests: a panic is a failed test")]

mod encode;
mod messages;
mod outbox;
mod properties;
