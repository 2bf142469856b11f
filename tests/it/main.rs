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

mod amqp_proxy;
mod bad_input;
mod cases;
mod chaos;
mod checker;
mod chunks;
mod cli;
mod console;
mod console_store;
mod consumer;
mod culprit;
mod doctor;
mod doctor_broker;
mod doctor_management;
mod doctor_outbox;
mod doctor_postgres;
mod doctor_relays;
mod facts;
mod hosts;
mod install;
mod interrupted;
mod keeping;
mod lease;
mod load;
mod parked_books;
mod parked_cli;
mod parked_recall;
mod parked_store;
mod parking;
mod pg;
mod pg_proxy;
mod pgoutput;
mod plans;
mod process;
mod progress;
mod proxy;
mod pty;
mod publication;
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
#[cfg(feature = "otel")]
mod spans;
mod takeover;
mod takeover_bench;
mod takeover_paused;
mod takeover_standby;
mod takeover_times;
mod tls;
mod top;
mod until_idle;
mod wal_bench;
mod wal_faults;
mod wal_publication;
mod wal_same;
mod wal_shutdown;
mod wal_slots;
mod wal_standby;
mod wal_transactions;
