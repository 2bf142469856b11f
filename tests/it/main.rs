//! The integration tests: one binary, so that its tests share one PostgreSQL and one RabbitMQ.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    unreachable_pub,
    dead_code,
    reason = "tests: a panic is a failed test; all is private to this binary; not every test uses every fault"
)]

mod bad_input;
mod cases;
mod checker;
mod chunks;
mod cli;
mod consumer;
mod culprit;
mod install;
mod interrupted;
mod load;
mod pg;
mod pgoutput;
mod plans;
mod process;
mod proxy;
mod readers;
mod refusals;
mod relay;
mod replication;
mod retention;
mod sandbox;
mod schedules;
mod schema;
mod scripted;
mod servers;
mod sink;
mod takeover;
mod tls;
mod until_idle;
