//! `make e2e`: what needs programs that `make test` does without.
//!
//! A real Prometheus scrapes real relays, under load and in every fault that an alert is for: it evaluates the rules of
//! `helm/statecast/rules` and every query of `helm/statecast/dashboards`. A real browser uses the console.
//!
//! All tests here are ignored, so that `make test` passes over them: they take minutes, and need Debian's packages
//! `prometheus`, `chromium` and `chromium-driver`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    unreachable_pub,
    missing_docs,
    dead_code,
    reason = "tests: a panic is a failed test; the shared modules hold more than is used here"
)]

mod browser;
mod collector;
mod console;
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
