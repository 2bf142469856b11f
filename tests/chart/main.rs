//! The Helm chart, the rules and the dashboards, as far as they can be checked without their tools; `make chart` adds
//! those. What is written in several places (keys, metrics, alerts, the runbook) is compared here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests: a panic is a failed test")]

mod dashboards;
mod deploy;
mod files;
mod metrics;
mod rendered;
mod rules;
mod values;
