//! Whether a failed session is worth another try. Pure.

use std::time::Duration;

use crate::postgres::PgError;
use crate::sink::SinkError;
use crate::source::poll::page::PageError;
use crate::source::wal::SourceError;
use crate::source::wal::facts::Obstacle;
use crate::store::cursor::CursorError;
use crate::store::keeper::KeeperError;
use crate::store::preflight::PreflightError;
use crate::store::schema::SchemaError;

/// Why a session ended without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No connection to PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The leader's connection could not be set up.
    #[error("PostgreSQL refused the session's settings")]
    Setup(#[source] tokio_postgres::Error),
    /// The server, or what stands between, takes questions and does not answer.
    #[error("PostgreSQL has not answered for {} s while the session {doing}", .limit.as_secs())]
    Silent {
        /// What was asked for.
        doing: &'static str,
        /// How long we waited.
        limit: Duration,
    },
    /// The broker accepts the connection and does not answer.
    #[error("RabbitMQ has not answered for {} s while a lane was opened: look at its log and its nodes", .0.as_secs())]
    SilentBroker(Duration),
    /// The source's connection leads to another server than the leader's: a failover is under way, or a proxy spreads them.
    #[error(
        "two connections to postgres.url reached different servers (system identifier and timeline {leader:?} and {source_server:?}): point it at one primary"
    )]
    TwoServers {
        /// Where the cursor is.
        leader: (i64, i32),
        /// Where the rows would come from.
        source_server: (i64, i32),
    },
    /// The server is not one that Statecast can work on.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// The cursor row.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// Cursor writes.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Reading.
    #[error(transparent)]
    Page(#[from] PageError),
    /// `source.mode = "wal"`, and the server does not allow it.
    #[error("source.mode = \"wal\": {0}")]
    Wal(Obstacle),
    /// The broker.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A part ended without an error of its own.
    #[error("the session's {0} ended")]
    PeerGone(&'static str),
    /// A part panicked: a fault in Statecast.
    #[error("a task failed: {0}; this is a fault in Statecast, please report it")]
    Task(String),
}

impl From<SourceError> for SessionError {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::Page(error) => SessionError::Page(error),
            SourceError::Obstacle(obstacle) => SessionError::Wal(obstacle),
        }
    }
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Back off, start again from the cursor.
    Transient,
    /// Exit: only a person can help.
    Permanent,
}

/// The one place that decides.
///
/// Transient is what somebody else may mend while we wait: a server that is away, a password that is being rotated, an
/// exchange or a schema that is about to be created. Permanent is what would make going on wrong.
pub fn classify(error: &SessionError) -> Class {
    match error {
        // Somebody may be about to install or to grant.
        SessionError::Preflight(PreflightError::Schema(SchemaError::Newer { .. })) => Class::Permanent,
        SessionError::Preflight(PreflightError::Schema(_) | PreflightError::Privilege { .. }) => {
            Class::Transient
        }
        SessionError::Preflight(error) if error.is_permanent() => Class::Permanent,
        SessionError::Cursor(CursorError::Snapshot(_)) => Class::Permanent,
        SessionError::Page(PageError::RowsGone { .. }) => Class::Permanent,
        SessionError::Wal(_) => Class::Permanent,
        SessionError::Sink(SinkError::Tls(_) | SinkError::Url(_)) => Class::Permanent,
        SessionError::Postgres(error) if error.is_permanent() => Class::Permanent,
        _ => Class::Transient,
    }
}
