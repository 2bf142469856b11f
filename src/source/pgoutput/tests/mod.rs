//! Bytes by hand, properties over an encoder of the tests' own, and rows of the outbox.

mod encode;
mod messages;
mod outbox;
mod properties;
