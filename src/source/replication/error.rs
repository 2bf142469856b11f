//! What can go wrong with a replication connection.

use std::fmt;
use std::io;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use crate::postgres::PgError;

/// What the server said in an `ErrorResponse` or a `NoticeResponse`.
///
/// <https://www.postgresql.org/docs/current/protocol-error-fields.html>
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DbError {
    /// `ERROR`, `FATAL`, `PANIC`, or a notice's `WARNING`, `NOTICE`, `LOG` and so on; never translated.
    pub severity: String,
    /// SQLSTATE.
    pub code: SqlState,
    /// One line.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl fmt::Display for DbError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.code.code())?;
        // The detail of a refused value shows it: that stays out of every log.
        let shows_data = ["22", "23"].iter().any(|class| self.code.code().starts_with(class));
        if let Some(detail) = self.detail.as_ref().filter(|_| !shows_data) {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DbError {}

/// Where in the bytes of a connection something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Bytes that the server sent on this connection before the message in question.
    pub offset: u64,
    /// The last WAL position that the stream had named by then.
    pub wal: Option<PgLsn>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of the connection", self.offset)?;
        match self.wal {
            Some(wal) => write!(f, ", after WAL position {wal}"),
            None => Ok(()),
        }
    }
}

/// Why a replication connection is of no use (any more). Never holds the password.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The URL or the TLS files.
    #[error(transparent)]
    Settings(#[from] PgError),
    /// The URL names no server, or hosts, addresses and ports do not match.
    #[error("postgres.url: {0}")]
    Hosts(&'static str),
    /// No socket.
    #[error("cannot connect to PostgreSQL at {at} for replication (does it run, and is postgres.url right?)")]
    Connect {
        /// host:port.
        at: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// TLS is required, the server has none.
    #[error(
        "PostgreSQL at {at} does not offer TLS: enable ssl there, or set postgres.tls.mode = \"disable\""
    )]
    NotOffered {
        /// host:port.
        at: String,
    },
    /// The handshake failed: an unknown CA, another name, an expired certificate.
    #[error("no TLS with PostgreSQL at {at}: {remedy}")]
    Handshake {
        /// host:port.
        at: String,
        /// What to do.
        remedy: String,
        /// The TLS library's error.
        #[source]
        source: io::Error,
    },
    /// A standby, or a database that is read-only.
    #[error("PostgreSQL at {at} takes no writes: name the primary in postgres.url")]
    ReadOnly {
        /// host:port.
        at: String,
    },
    /// We and the server cannot agree on a proof of identity.
    #[error("cannot log in to PostgreSQL at {at}: {reason}")]
    Authentication {
        /// host:port.
        at: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The server refused, or ended the connection.
    #[error("PostgreSQL: {0}")]
    Db(Box<DbError>),
    /// No answer in time.
    #[error("no answer from PostgreSQL at {at} within {} s while {doing}", .limit.as_secs_f32())]
    Timeout {
        /// host:port.
        at: String,
        /// What we waited for.
        doing: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The connection ended without a word.
    #[error("the replication connection to PostgreSQL at {at} was closed")]
    Closed {
        /// host:port.
        at: String,
    },
    /// The connection broke.
    #[error("the replication connection to PostgreSQL at {at} broke")]
    Broken {
        /// host:port.
        at: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Bytes that are not the protocol's.
    #[error("not the replication protocol: {what}, at {at}")]
    Malformed {
        /// What is wrong.
        what: String,
        /// Where.
        at: Position,
    },
    /// A message above the limit.
    #[error("a message of {bytes} bytes, more than the {limit} allowed, at {at}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
        /// Where.
        at: Position,
    },
    /// Text that cannot be sent.
    #[error("{what} {name:?} cannot be used: {rule}")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
        /// What it must be.
        rule: &'static str,
    },
    /// An earlier call was given up or failed midway; the connection is of no use.
    #[error("the replication connection is in the middle of an earlier request")]
    Unusable,
}

impl ReplicationError {
    /// The server's error code, if it sent one.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            ReplicationError::Db(db) => Some(&db.code),
            ReplicationError::Settings(error) => error.code(),
            _ => None,
        }
    }

    /// Can only a change of our own configuration help?
    pub fn is_permanent(&self) -> bool {
        match self {
            ReplicationError::Settings(error) => error.is_permanent(),
            ReplicationError::Hosts(_) | ReplicationError::Name { .. } => true,
            _ => false,
        }
    }
}
