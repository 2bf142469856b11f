//! What keeps a stream from running.

use crate::publication::Fault;

/// How many are in use, and how many there may be. A stream of the same pipeline that runs now is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// In use by others.
    pub used: i64,
    /// The server's setting.
    pub max: i64,
}

/// What keeps a stream from running: what is wrong, where, and what to do, on one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The WAL lacks what decoding needs.
    #[error(
        "wal_level is {0}: set wal_level = logical and restart PostgreSQL, or set source.mode = \"poll\""
    )]
    WalLevel(String),
    /// The login may not stream.
    #[error(
        "login {role} may not stream: ALTER ROLE {role} REPLICATION (it can then read the whole cluster), or set source.mode = \"poll\""
    )]
    NoReplicationRight {
        /// Quoted role name.
        role: String,
    },
    /// The publication would not bring every event.
    #[error("publication {name:?} {}", wrong(.faults))]
    Publication {
        /// `source.wal.publication`.
        name: String,
        /// What is wrong with it; empty: it does not exist.
        faults: Vec<Fault>,
    },
    /// The application's commits would wait for the stream.
    #[error(
        "synchronous_standby_names ({0:?}) makes the stream a synchronous standby, and commits would wait for it: name only real standbys there"
    )]
    SynchronousStandby(String),
    /// No slot is left.
    #[error(
        "{} of {} replication slots are in use: drop what nobody needs (pg_replication_slots), or raise max_replication_slots",
        .0.used, .0.max
    )]
    NoSlot(Places),
    /// No walsender is left.
    #[error(
        "{} of {} walsenders are in use: look at pg_stat_replication, or raise max_wal_senders",
        .0.used, .0.max
    )]
    NoSender(Places),
}

fn wrong(faults: &[Fault]) -> String {
    if faults.is_empty() {
        return "does not exist: run `statecast install`".to_owned();
    }
    let faults = faults.iter().map(Fault::to_string).collect::<Vec<_>>().join(", ");
    format!("is not fit to stream from ({faults}): `statecast install` mends it, or says why it cannot")
}

impl Obstacle {
    /// Only a person can remove it, and not while the relay runs: with `source.mode = "wal"` the process ends.
    pub fn is_permanent(&self) -> bool {
        matches!(self, Obstacle::WalLevel(_) | Obstacle::NoReplicationRight { .. })
    }

    /// In a word or two.
    pub fn subject(&self) -> &'static str {
        match self {
            Obstacle::WalLevel(_) => "wal_level",
            Obstacle::NoReplicationRight { .. } => "the REPLICATION right",
            Obstacle::Publication { .. } => "the publication",
            Obstacle::SynchronousStandby(_) => "synchronous_standby_names",
            Obstacle::NoSlot(_) => "replication slots",
            Obstacle::NoSender(_) => "walsenders",
        }
    }
}
