//! Whether a failed session is worth another try. Pure.

use std::time::Duration;

use tokio_postgres::error::SqlState;

use super::kinds::Kind;
use crate::gate::HOLD;
use crate::postgres::PgError;
use crate::sink::{SinkError, reply_code};
use crate::source::poll::page::PageError;
use crate::source::wal::SourceError;
use crate::source::wal::facts::Obstacle;
use crate::store::cursor::CursorError;
use crate::store::keeper::KeeperError;
use crate::store::parked::write::WriteError;
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
    /// The lease was not renewed in time, so that a successor may have it by now.
    #[error("the lease could not be renewed for {} s: PostgreSQL did not answer in time, or this process was stopped", HOLD.as_secs())]
    LeaseLost,
    /// A leader that does not answer could not be examined or ended.
    #[error("cannot take over from the former leader")]
    Predecessor(#[source] tokio_postgres::Error),
    /// A former leader's backend keeps the lock.
    #[error("cannot take over: {left} was told to end and is still there after {} s", .limit.as_secs())]
    StillThere {
        /// Which.
        left: String,
        /// How long we waited.
        limit: Duration,
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
    /// Another relay leads, or may by now: stand by.
    LeaseLost,
    /// Exit: only a person can help.
    Permanent,
}

/// The one place that decides.
///
/// Transient is what somebody else may mend while we wait: a server that is away, a password that is being rotated, an
/// exchange or a schema that is about to be created. Permanent is what would make going on wrong. `docs/errors.md` says it
/// of each kind.
pub fn classify(error: &SessionError) -> Class {
    kind(error).row().class
}

/// Of what kind an error is.
pub fn kind(error: &SessionError) -> Kind {
    match error {
        SessionError::Postgres(error) => connecting(error),
        SessionError::Setup(error)
        | SessionError::Preflight(
            PreflightError::Sql(error) | PreflightError::Schema(SchemaError::Sql(error)),
        )
        | SessionError::Cursor(CursorError::Sql { source: error, .. })
        | SessionError::Keeper(
            KeeperError::Cursor(CursorError::Sql { source: error, .. })
            | KeeperError::Parked(WriteError::Sql(error))
            | KeeperError::Sql { source: error, .. },
        )
        | SessionError::Page(PageError::Sql(error)) => statement(error),
        SessionError::Silent { .. }
        | SessionError::Keeper(KeeperError::Silent)
        | SessionError::Page(PageError::Closed | PageError::Silent) => Kind::PgUnreachable,
        SessionError::TwoServers { .. } => Kind::PgTwoServers,
        SessionError::Preflight(error) => fitness(error),
        SessionError::Cursor(error) | SessionError::Keeper(KeeperError::Cursor(error)) => match error {
            CursorError::Snapshot(_) => Kind::CursorBroken,
            CursorError::Superseded(_) => Kind::Superseded,
            CursorError::Sql { source, .. } => statement(source),
        },
        SessionError::Page(PageError::RowsGone { .. })
        | SessionError::Keeper(KeeperError::Parked(WriteError::NotInOutbox(_))) => Kind::RowsGone,
        SessionError::Page(PageError::StreamedRowsGone { .. }) => Kind::RowsUnseen,
        SessionError::Page(PageError::NoCursor(_)) => Kind::CursorGone,
        SessionError::Page(PageError::Snapshot(_)) => Kind::PgOther,
        SessionError::Wal(_) => Kind::WalMode,
        SessionError::LeaseLost | SessionError::Sink(SinkError::LeaseLost) => Kind::LeaseLost,
        SessionError::Predecessor(_) | SessionError::StillThere { .. } => Kind::Takeover,
        SessionError::SilentBroker(_) => Kind::MqUnreachable,
        SessionError::Sink(error) => broker(error),
        SessionError::PeerGone(_) | SessionError::Task(_) => Kind::Fault,
    }
}

fn connecting(error: &PgError) -> Kind {
    match error {
        PgError::Url(_) | PgError::Tls(_) | PgError::Pool(_) => Kind::PgSettings,
        PgError::NotOffered { .. }
        | PgError::Required { .. }
        | PgError::Handshake { .. }
        | PgError::ClientCertificate { .. } => Kind::PgTls,
        PgError::Login { .. } => Kind::PgLogin,
        PgError::ReadOnly { .. } => Kind::PgReadOnly,
        PgError::Connect { .. } | PgError::Timeout { .. } => {
            error.code().map_or(Kind::PgUnreachable, sqlstate)
        }
    }
}

fn statement(error: &tokio_postgres::Error) -> Kind {
    match error.code() {
        Some(code) => sqlstate(code),
        // Without a word of the server it is the connection, or an answer that is not what was asked for.
        None if error.is_closed() || is_io(error) => Kind::PgUnreachable,
        None => Kind::PgOther,
    }
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

/// By the server's code: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn sqlstate(code: &SqlState) -> Kind {
    let code = code.code();
    match code {
        "28000" | "28P01" | "3D000" => Kind::PgLogin,
        "57P01" | "57P02" | "57P03" | "57P05" => Kind::PgDown,
        "53300" => Kind::PgConnections,
        "53100" => Kind::PgDisk,
        "25006" => Kind::PgReadOnly,
        "42501" => Kind::PgPrivilege,
        "42P01" | "42703" | "42883" | "3F000" => Kind::PgSchema,
        "55P03" | "40001" | "40P01" | "57014" | "25P03" => Kind::PgContention,
        _ => match code.get(..2) {
            Some("08") => Kind::PgDown,
            Some("53" | "54" | "58") => Kind::PgResources,
            _ => Kind::PgOther,
        },
    }
}

fn fitness(error: &PreflightError) -> Kind {
    match error {
        PreflightError::ServerTooOld(_) | PreflightError::SqlAscii(_) => Kind::PgUnfit,
        PreflightError::InRecovery => Kind::PgReadOnly,
        PreflightError::Pooled => Kind::PgPooled,
        PreflightError::Schema(SchemaError::Newer { .. }) => Kind::PgSchemaNewer,
        // Somebody may be about to install or to grant.
        PreflightError::Schema(SchemaError::Forbidden { .. }) | PreflightError::Privilege { .. } => {
            Kind::PgPrivilege
        }
        PreflightError::Schema(
            SchemaError::Missing { .. } | SchemaError::Incomplete { .. } | SchemaError::Older { .. },
        ) => Kind::PgSchema,
        PreflightError::OtherSystem { .. } => Kind::OtherSystem,
        PreflightError::Sequence { .. } => Kind::SequenceAltered,
        PreflightError::SequenceBehind { .. } => Kind::SequenceBehind,
        PreflightError::Sql(error) | PreflightError::Schema(SchemaError::Sql(error)) => statement(error),
    }
}

fn broker(error: &SinkError) -> Kind {
    match error {
        SinkError::Connect { refused: true, .. } => Kind::MqRefused,
        SinkError::Connect { refused: false, .. } => Kind::MqUnreachable,
        SinkError::Topology(_) => Kind::MqTopology,
        SinkError::Fence { .. } => Kind::MqFence,
        SinkError::Closed { source, .. } => reply_code(source).map_or(Kind::MqUnreachable, reply),
        SinkError::LeaseLost => Kind::LeaseLost,
        SinkError::Tls(_) | SinkError::Url(_) => Kind::MqSettings,
    }
}

/// By the broker's code: <https://www.rabbitmq.com/amqp-0-9-1-reference#constants>.
fn reply(code: u16) -> Kind {
    match code {
        311 | 406 | 501 => Kind::MqMessage,
        320 => Kind::MqForced,
        403 | 530 => Kind::MqRefused,
        404 => Kind::MqTopology,
        _ => Kind::MqOther,
    }
}

#[cfg(test)]
mod tests;
