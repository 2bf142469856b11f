//! The benchmark's own tests: `main.rs` without its `main`, since a benchmark is never run by `cargo test`.

#![allow(dead_code, reason = "the parts that measure are not tested here")]

mod composite;
mod cost;
mod decoder;
mod drain;
mod fill;
mod goals;
mod growth;
mod histogram;
mod keys;
mod latency;
mod load;
mod plan;
mod plot;
mod publisher;
mod relay;
mod report;
mod run;
mod schedule;
mod servers;
mod sheet;
mod start;
mod stats;
mod tax;
mod usage;

#[path = "tests"]
mod tests {
    mod ahead;
    mod goals;
    mod histogram;
    mod plot;
    mod report;
    mod schedule;
    mod sheet;
    mod stats;
    mod usage;
}
