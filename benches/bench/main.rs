//! `make bench`: what Statecast reaches, and beside it what the machine allows.
//!
//! ```text
//! main ─▶ servers (PostgreSQL with fsync, RabbitMQ: private, loopback)
//!      ─▶ drain, keys, latency, cost, tax, start, growth    one section each, in turns with its limit
//!      ─▶ report                                            benchmark.json as each ends, then benchmark.md and plots
//! ```
//!
//! `ONLY=drain,latency` picks sections, `ONLY=drain CASE="wal, burst: 800 B, quorum, strict"` cases of the drain, and
//! `QUICK=1` makes everything small. A section that fails, or takes too long, says so in the report with what it has;
//! SIGINT ends the one that runs and writes the report.

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

fn main() -> std::process::ExitCode {
    run::main()
}
