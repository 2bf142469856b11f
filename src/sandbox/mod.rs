//! Private PostgreSQL, pgbouncer and RabbitMQ processes for the demo, the tests and the benchmark (feature `sandbox`).
//!
//! Servers run from installed binaries, listen on free loopback ports and keep everything in one temporary directory.
//! Run by root they use an unprivileged account, because PostgreSQL refuses to run as root.
//!
//! Nothing outlives its owner. Dropping a server ends its processes and removes its directory. If the owning process
//! is killed, a small watcher per server notices (the pipe it reads ends) and does the same.
//! No handle depends on an async runtime: a server started in one runtime may be used and dropped in another.

pub mod cluster;
pub mod pgbouncer;
pub mod postgres;
mod process;
pub mod rabbitmq;
mod standby;

use std::path::PathBuf;
use std::time::Duration;

pub use cluster::RabbitmqCluster;
pub use pgbouncer::{Pgbouncer, PoolMode};
pub use postgres::{Postgres, PostgresOptions};
pub use process::free_port;
pub use rabbitmq::{Rabbitmq, RabbitmqOptions};

/// Why a private server could not be started or used.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A program is not installed.
    #[error("{program} was not found; install {install}")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// What brings it.
        install: &'static str,
    },
    /// A system call failed.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program ended with an error.
    #[error("{program} failed: {output}")]
    Failed {
        /// Which.
        program: String,
        /// What it said.
        output: String,
    },
    /// A server was not ready in time, or ended before it was.
    #[error("{server} was not ready after {waited:?}: {reason}\n{log}")]
    NotReady {
        /// Which.
        server: &'static str,
        /// How long was waited.
        waited: Duration,
        /// The last answer.
        reason: String,
        /// The end of its log.
        log: String,
    },
    /// A server did not stop in time.
    #[error("{server} did not stop within {waited:?}")]
    NotStopped {
        /// Which.
        server: &'static str,
        /// How long was waited.
        waited: Duration,
    },
    /// The server is not in the state that the call needs.
    #[error("{server} is {state}")]
    State {
        /// Which.
        server: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// PostgreSQL refused a statement.
    #[error("PostgreSQL refused a statement")]
    Sql(#[from] tokio_postgres::Error),
}

/// Certificates for a server's TLS side. The files are copied, so they may be anywhere and belong to anyone.
#[derive(Clone, Debug)]
pub struct ServerTls {
    /// PEM: the server's chain.
    pub cert: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    /// PEM: the CA of client certificates.
    pub ca: PathBuf,
    /// Refuse clients without a certificate of that CA (PostgreSQL: whose common name is not the user's, too).
    pub client_cert_required: bool,
}
