//! `make e2e`: a real Prometheus scrapes real relays, under load and in every fault that an alert is for.
//!
//! All tests here are ignored, so that `make test` passes over them: they take minutes, and need Debian's package
//! `prometheus`. They evaluate the rules of `helm/statecast/rules` and every query of `helm/statecast/dashboards`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "tests: a panic is a failed test; the shared modules hold more than is used here"
)]

mod faults;
#[path = "../chart/files.rs"]
mod files;
#[path = "../it/process.rs"]
mod process;
mod prometheus;
mod proof;
mod rules;
#[path = "../it/servers.rs"]
mod servers;
mod stage;
