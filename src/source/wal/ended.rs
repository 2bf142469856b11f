//! Why there is no stream any more. Polling carries on in every case.

use std::time::Duration;

use super::facts::Obstacle;
use crate::config::units::about_size;
use crate::contract::Lsn;
use crate::snapshot::BadSnapshot;
use crate::source::pgoutput::{DecodeError, EventError, RelationError};
use crate::source::replication::ReplicationError;

/// Shows a WAL position as PostgreSQL does.
fn shown(lsn: Lsn) -> tokio_postgres::types::PgLsn {
    lsn.into()
}

/// What ended a stream, or the attempt to have one.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// We ended it.
    #[error("it was stopped")]
    Stopped,
    /// The server said that there is no more.
    #[error("the server ended it")]
    ByServer,
    /// The connection, or what the server says on it.
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// Bytes that are no message.
    #[error("bytes that are not pgoutput's at WAL position {}: {source}", shown(*.at))]
    Malformed {
        /// Where the data began.
        at: Lsn,
        /// Which byte.
        source: DecodeError,
    },
    /// A table that cannot be what it should be.
    #[error("WAL position {}: {source}", shown(*.at))]
    Relation {
        /// Where.
        at: Lsn,
        /// What.
        source: RelationError,
    },
    /// A row that is no event.
    #[error("WAL position {}: {source}", shown(*.at))]
    Event {
        /// Where.
        at: Lsn,
        /// Which column.
        source: EventError,
    },
    /// A change that belongs to no transaction.
    #[error("a change outside a transaction at WAL position {}", shown(*.at))]
    OutsideTransaction {
        /// Where.
        at: Lsn,
    },
    /// A snapshot could not be asked for.
    #[error("cannot ask which transactions are visible")]
    Sql(#[source] tokio_postgres::Error),
    /// What was sent is none.
    #[error(transparent)]
    Snapshot(BadSnapshot),
    /// It did not bring what is in the outbox.
    #[error(
        "it did not bring {0} events: the publication was edited; `statecast check` says what is wrong with it, `statecast install` repairs it"
    )]
    Missed(usize),
    /// It falls behind.
    #[error(
        "it lagged for more than {} s (source.wal.lag_max): a large transaction, or a decoder that is slower than the writers",
        .0.as_secs_f32()
    )]
    Lagging(Duration),
    /// It keeps too much WAL.
    #[error("its slot retained {}, more than source.wal.retain_max", about_size(*.0))]
    Retaining(u64),
    /// Creating the slot, or passing the barrier, takes too long.
    #[error(
        "{doing} took more than {} s: a write transaction has been open for so long somewhere in the cluster (see pg_stat_activity and pg_prepared_xacts)",
        .limit.as_secs()
    )]
    Waiting {
        /// What took too long.
        doing: &'static str,
        /// How long it may take.
        limit: Duration,
    },
    /// The slot is somewhere else.
    #[error(
        "the replication connection reached another server than SQL did: point postgres.url at one primary"
    )]
    OtherServer,
    /// Something is not as streaming needs it.
    #[error(transparent)]
    Obstacle(Obstacle),
    /// A fault in Statecast.
    #[error("its task failed: {0}; this is a fault in Statecast, please report it")]
    Panicked(String),
}

impl Ended {
    /// May it have left out events and brought later ones of the same key? Only an edited publication does that.
    pub(super) fn may_have_skipped(&self) -> bool {
        match self {
            Ended::Missed(_) | Ended::Relation { .. } | Ended::Obstacle(Obstacle::Publication { .. }) => true,
            // The publication was dropped: 42704.
            Ended::Replication(error) => error.code().is_some_and(|code| code.code().starts_with("42")),
            _ => false,
        }
    }
}
