//! Publishing to RabbitMQ.
//!
//! `lane` owns one connection with one channel and publishes what the relay hands it; `confirm` decides what became of
//! each message; `encode` turns a message into AMQP properties and refuses what the broker would refuse; `connect`,
//! `topology` and `fence` are what a lane does before its first publish. `examine` looks at the broker for `statecast doctor`, over
//! AMQP and over the HTTP client in `management`.

mod attempt;
pub mod confirm;
pub mod connect;
pub mod encode;
pub mod examine;
pub mod fence;
pub mod lane;
pub mod management;
pub mod topology;

use std::time::Duration;

/// What can go wrong between Statecast and RabbitMQ.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// None of the URLs could be connected to.
    #[error("cannot connect to RabbitMQ at {server}: {cause}")]
    Connect {
        /// Scheme, host, port and vhost; never the password.
        server: String,
        /// What happened and what to do.
        cause: String,
        /// Credentials, vhost or TLS are wrong: reconnecting does not help until a person acts.
        refused: bool,
    },
    /// Exchange or queue is missing or different.
    #[error("{0}")]
    Topology(String),
    /// The connection or channel ended.
    #[error("RabbitMQ closed the {what}: {source}")]
    Closed {
        /// `connection` or `channel`.
        what: &'static str,
        /// lapin's error.
        source: lapin::Error,
    },
    /// The fence could not be taken in time.
    #[error(
        "another relay of this pipeline still holds {queue:?} after {waited:?}: is a second relay running with fence = true against the same broker?"
    )]
    Fence {
        /// The fence queue.
        queue: String,
        /// How long we waited.
        waited: Duration,
    },
    /// [`crate::gate`] is closed.
    #[error("the lease was not renewed in time: nothing more is handed to RabbitMQ")]
    LeaseLost,
    /// The TLS settings cannot be used.
    #[error("TLS for RabbitMQ cannot be set up (rabbitmq.tls)")]
    Tls(#[from] crate::tls::TlsError),
    /// `rabbitmq.urls` cannot be used.
    #[error("{0}")]
    Url(String),
}

impl SinkError {
    /// Did the broker close channel or connection over a message (a body over its limit, headers over a frame)? Neither
    /// answer names it.
    pub fn is_about_a_message(&self) -> bool {
        match self {
            SinkError::Closed { source, .. } => matches!(reply_code(source), Some(311 | 406 | 501)),
            _ => false,
        }
    }
}

/// The AMQP reply code of an error, if the broker gave one.
pub(crate) fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}
