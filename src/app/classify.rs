//! Whether a failed session is worth another try. Pure.

use crate::postgres::PgError;
use crate::relay::Unpublishable;
use crate::sink::SinkError;
use crate::source::poll::page::PageError;
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
    /// The broker.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// An event that can never go.
    #[error(transparent)]
    Unpublishable(Unpublishable),
    /// A part ended without an error of its own.
    #[error("the session's {0} ended")]
    PeerGone(&'static str),
    /// A part panicked: a fault in Statecast.
    #[error("a task failed: {0}; this is a fault in Statecast, please report it")]
    Task(String),
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
        SessionError::Sink(SinkError::Tls(_) | SinkError::Url(_)) => Class::Permanent,
        SessionError::Postgres(error) if error.is_permanent() => Class::Permanent,
        SessionError::Unpublishable(_) => Class::Permanent,
        _ => Class::Transient,
    }
}
