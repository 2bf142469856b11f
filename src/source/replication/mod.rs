//! A client for PostgreSQL's streaming replication protocol, logical part.
//!
//! [`connect`] logs in, by the same settings as every SQL connection, to a server that takes writes. A [`Client`] asks
//! and creates a temporary slot; [`Client::start_replication`] turns it into a [`Stream`] of [`Frame`]s. All waits are
//! bounded: by the constants below, by a limit that is passed in, and in [`Stream::next`] by the caller, who may give up
//! waiting at any time without losing anything.
//!
//! The slot lives exactly as long as the connection, so dropping a client or stream is a complete clean-up, with one
//! exception: a server that is still waiting inside `CREATE_REPLICATION_SLOT` does not notice that its client is gone.
//! Whoever abandons that terminates [`Client::backend_pid`] over SQL.
//!
//! After any error a client or stream is of no use: drop it and connect anew.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

mod authentication;
mod connect;
mod error;
mod framing;
mod quote;
mod stream;
#[cfg(test)]
mod tests;
mod wire;

use std::time::Duration;

use postgres_protocol::message::frontend;
use tokio::time::timeout;
use tokio_postgres::types::PgLsn;

pub use error::{DbError, Position, ReplicationError};
pub use framing::Frame;
pub use stream::{Feedback, Stream};

use crate::config;
use crate::postgres::Settings;
use wire::Wire;

/// For the answer to one request. (A connection has [`crate::postgres::CONNECT_TIMEOUT`] for each address.)
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The server ends a stream that has not sent feedback for this long; it asks for it after half of that.
pub const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a streamed message, at most, unless set otherwise: the server's own limit for any allocation.
pub const MESSAGE_MAX_BYTES: usize = 1 << 30;
/// Bytes of a message before the login is complete, at most.
const STARTUP_MAX_BYTES: usize = 64 << 10;
/// Bytes of the answer to a query, at most.
const REPLY_MAX_BYTES: usize = 16 << 20;

/// Rows of text, as the simple query protocol gives them.
pub type Rows = Vec<Vec<Option<String>>>;

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// Of the cluster, as SQL shows it (`bigint`).
    pub system_identifier: i64,
    /// Which changes when a standby is promoted.
    pub timeline: i32,
    /// Where the WAL is flushed to.
    pub xlogpos: PgLsn,
    /// The database we are connected to.
    pub dbname: String,
}

/// A new temporary slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Transactions that commit after this position are streamed.
    pub consistent_point: PgLsn,
}

/// A connection that waits for commands. Dropping it ends the connection, and with it its temporary slot.
#[derive(Debug)]
pub struct Client {
    wire: Wire,
    pid: i32,
    version: u32,
    ready: bool,
    message_max: usize,
}

/// Opens a connection for logical replication to a server that accepts writes. The hosts are tried in their order; the
/// error is the last one's.
///
/// # Errors
///
/// See [`ReplicationError`]. Without the REPLICATION attribute the server says 42501.
pub async fn connect(cfg: &config::Postgres, application_name: &str) -> Result<Client, ReplicationError> {
    let settings = Settings::new(cfg, application_name)?;
    let mut last = ReplicationError::Hosts("names no host");
    for target in connect::targets(&settings.config)? {
        let opened = connect::open(&target, &settings, application_name);
        // The TLS handshake makes a large future.
        match Box::pin(async { Client::writable(opened.await?).await }).await {
            Ok(client) => return Ok(client),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Client {
    async fn writable(
        (mut wire, session): (Wire, authentication::Session),
    ) -> Result<Client, ReplicationError> {
        wire.set_limit(REPLY_MAX_BYTES);
        // "15.8 (Debian 15.8-0+deb12u1)", "18beta1": the major version is what it begins with.
        let digits = session.version.find(|c: char| !c.is_ascii_digit()).unwrap_or(session.version.len());
        let version = session.version.get(..digits).and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut client =
            Client { wire, pid: session.pid, version, ready: true, message_max: MESSAGE_MAX_BYTES };
        let rows = client.simple_query("SHOW transaction_read_only").await?;
        match column(&rows, 0) {
            Some("off") => Ok(client),
            _ => Err(ReplicationError::ReadOnly { at: client.wire.at().to_owned() }),
        }
    }

    /// The server process of this connection, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// The server's major version.
    pub fn server_version(&self) -> u32 {
        self.version
    }

    /// Bytes of one streamed message, at most ([`MESSAGE_MAX_BYTES`] unless set). A larger one ends the stream with
    /// [`ReplicationError::TooLarge`].
    pub fn set_message_max(&mut self, bytes: usize) {
        self.message_max = bytes;
    }

    /// Runs SQL or a replication command; all its rows, within [`QUERY_TIMEOUT`].
    ///
    /// # Errors
    ///
    /// The server's, or the connection's.
    pub async fn simple_query(&mut self, sql: &str) -> Result<Rows, ReplicationError> {
        self.query(sql, "waiting for the answer to a query", QUERY_TIMEOUT).await
    }

    /// Which cluster and timeline this is.
    ///
    /// # Errors
    ///
    /// The server's, or the connection's.
    pub async fn identify_system(&mut self) -> Result<System, ReplicationError> {
        let rows = self.simple_query("IDENTIFY_SYSTEM").await?;
        let system = || {
            Some(System {
                system_identifier: column(&rows, 0)?.parse::<u64>().ok()?.cast_signed(),
                timeline: column(&rows, 1)?.parse().ok()?,
                xlogpos: column(&rows, 2)?.parse().ok()?,
                dbname: column(&rows, 3)?.to_owned(),
            })
        };
        system().ok_or_else(|| self.odd_reply("IDENTIFY_SYSTEM"))
    }

    /// Creates a temporary slot for `pgoutput` that exports no snapshot.
    ///
    /// The server waits for every write transaction that is open anywhere in the cluster: hence `limit`. When it has
    /// passed, the server process still waits; see the module's head.
    ///
    /// # Errors
    ///
    /// 55000 (`wal_level`), 53400 (no slot left), 42710 (the name is taken), or the connection's; a name that is not
    /// `[a-z0-9_]{1,63}`.
    pub async fn create_temporary_slot(
        &mut self,
        name: &str,
        limit: Duration,
    ) -> Result<Slot, ReplicationError> {
        let name = quote::slot(name)?;
        // The list of options came with version 15.
        let snapshot = if self.version >= 15 { "(SNAPSHOT 'nothing')" } else { "NOEXPORT_SNAPSHOT" };
        let command = format!("CREATE_REPLICATION_SLOT {name} TEMPORARY LOGICAL pgoutput {snapshot}");
        let rows = self.query(&command, "creating a replication slot", limit).await?;
        let point = column(&rows, 1).and_then(|text| text.parse().ok());
        let consistent_point = point.ok_or_else(|| self.odd_reply("CREATE_REPLICATION_SLOT"))?;
        Ok(Slot { consistent_point })
    }

    /// Streams what `publication` publishes and commits after `start` (0: from the slot's own position): protocol 1,
    /// values as text. That the publication does not exist is noticed at the first change only, as 42704.
    ///
    /// # Errors
    ///
    /// 42704 (no such slot), 55006 (it is in use), or the connection's.
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: PgLsn,
        publication: &str,
    ) -> Result<Stream, ReplicationError> {
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names {})",
            quote::slot(slot)?,
            quote::publication_names(publication)?,
        );
        self.send(&command)?;
        let begun = async {
            loop {
                let message = self.wire.message().await?;
                match message.tag {
                    b'W' => return Ok(()),
                    b'E' => return Err(ReplicationError::Db(Box::new(framing::db_error(&message)?))),
                    b'N' | b'S' | b'A' => stream::aside(&message)?,
                    _ => return Err(message.unexpected("at the beginning of a stream")),
                }
            }
        };
        let waited = timeout(QUERY_TIMEOUT, begun).await;
        waited.map_err(|_| self.silent("starting to stream", QUERY_TIMEOUT))??;
        self.wire.set_limit(self.message_max);
        Ok(Stream::new(self.wire, self.pid))
    }

    async fn query(
        &mut self,
        sql: &str,
        doing: &'static str,
        limit: Duration,
    ) -> Result<Rows, ReplicationError> {
        self.send(sql)?;
        let answered = timeout(limit, self.answer()).await;
        answered.map_err(|_| self.silent(doing, limit))?
    }

    fn send(&mut self, sql: &str) -> Result<(), ReplicationError> {
        if !self.ready {
            return Err(ReplicationError::Unusable);
        }
        if sql.contains('\0') {
            let rule = "it holds a NUL character";
            return Err(ReplicationError::Name { what: "query", name: sql.to_owned(), rule });
        }
        self.ready = false;
        frontend::query(sql, self.wire.outbox())
            .map_err(|source| ReplicationError::Broken { at: self.wire.at().to_owned(), source })
    }

    /// Everything up to "ready for query". The first error wins, also over the end of the connection after it.
    async fn answer(&mut self) -> Result<Rows, ReplicationError> {
        let (mut rows, mut refused, mut bytes) = (Rows::new(), None, 0_usize);
        loop {
            let message = match (self.wire.message().await, refused.take()) {
                (Ok(message), earlier) => {
                    refused = earlier;
                    message
                }
                (Err(_), Some(earlier)) => return Err(earlier),
                (Err(error), None) => return Err(error),
            };
            match message.tag {
                b'Z' => {
                    self.ready = true;
                    return refused.map_or(Ok(rows), Err);
                }
                b'D' => {
                    bytes = bytes.saturating_add(message.body.len());
                    if bytes > REPLY_MAX_BYTES {
                        let at = Position { offset: message.offset, wal: None };
                        let (bytes, limit) = (bytes as u64, REPLY_MAX_BYTES as u64);
                        return Err(ReplicationError::TooLarge { bytes, limit, at });
                    }
                    rows.push(framing::row(&message)?);
                }
                b'E' => {
                    let error = ReplicationError::Db(Box::new(framing::db_error(&message)?));
                    refused.get_or_insert(error);
                }
                b'T' | b'C' | b'I' => {}
                b'N' | b'S' | b'A' => stream::aside(&message)?,
                _ => return Err(message.unexpected("in the answer to a query")),
            }
        }
    }

    fn silent(&self, doing: &'static str, limit: Duration) -> ReplicationError {
        ReplicationError::Timeout { at: self.wire.at().to_owned(), doing, limit }
    }

    fn odd_reply(&mut self, command: &str) -> ReplicationError {
        self.ready = false;
        let at = Position { offset: self.wire.received(), wal: None };
        ReplicationError::Malformed { what: format!("an answer to {command} that is not one"), at }
    }
}

/// A value of the first row.
fn column(rows: &Rows, index: usize) -> Option<&str> {
    rows.first()?.get(index)?.as_deref()
}
