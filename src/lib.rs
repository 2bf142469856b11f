//! Statecast: a relay for PostgreSQL outbox tables.
//!
//! Applications write an event to `statecast.outbox` inside the transaction that changes their data. Statecast reads
//! those rows, wraps each into a CloudEvent that carries the entity's full state, and publishes it to RabbitMQ.
//!
//! ```text
//! source ──Batch──▶ assemble ──▶ route ──▶ sink
//!    ▲                                       │
//!    └──────── settled prefix ◀── outcomes ──┘
//! ```
//!
//! Imports flow one way: `cli → app → {relay, source, sink, store} → {contract, event} → config`; `app` wires the
//! parts, which do not import each other. `snapshot`, `event_row`, `publication`, `gate`, `backend`, `finding`, `reached`,
//! `health`, `metrics`, `confirmed`, `spans` and `switches` are leaves that any of them may use.

pub mod app;
pub mod backend;
pub mod cli;
pub mod config;
pub mod confirmed;
pub mod console;
pub mod contract;
pub mod event;
pub mod event_row;
pub mod finding;
pub mod gate;
pub mod health;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod postgres;
pub mod publication;
mod reached;
pub mod relay;
#[cfg(feature = "sandbox")]
pub mod sandbox;
pub mod sink;
pub mod snapshot;
pub mod source;
pub mod spans;
pub mod store;
pub mod switches;
pub mod tls;
