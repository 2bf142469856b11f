//! What tries to break the promises: one guarantee after another on purpose, and faults at random.
//!
//! - `directed`: for each guarantee a schedule that passes, and fails when the guarantee is switched off.
//! - `broker`, `database`: trouble with one of them, one kind after another.
//! - `suite`: rounds of all kinds at random.

mod broker;
mod database;
#[cfg(feature = "breakable")]
mod directed;
mod suite;
mod trouble;
