//! Streaming: frames in, feedback out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tokio::time::timeout;
use tokio_postgres::types::PgLsn;

use super::error::ReplicationError;
use super::framing::{self, Frame, Message};
use super::wire::Wire;

/// 2000-01-01, where the server's clock begins, after 1970-01-01.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// How far we have come. None of the three ever goes back: what a later feedback says less is raised to what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feedback {
    /// Received.
    pub written: PgLsn,
    /// Safe: the server may forget everything before it.
    pub flushed: PgLsn,
    /// Visible to others.
    pub applied: PgLsn,
}

impl Feedback {
    /// Everything before `lsn` is done with.
    pub fn all(lsn: PgLsn) -> Feedback {
        Feedback { written: lsn, flushed: lsn, applied: lsn }
    }

    fn max(self, other: Feedback) -> Feedback {
        Feedback {
            written: self.written.max(other.written),
            flushed: self.flushed.max(other.flushed),
            applied: self.applied.max(other.applied),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Streaming,
    /// The server said CopyDone and waits for ours.
    ServerDone,
    /// The server said that the command is complete.
    Complete,
    Failed,
}

/// A connection that streams. Dropping it ends the connection, and with it its temporary slot.
#[derive(Debug)]
pub struct Stream {
    wire: Wire,
    pid: i32,
    state: State,
    sent: Feedback,
    /// A reply was asked for in a feedback that is not written yet, and so must be in what takes its place.
    reply_wanted: bool,
    /// The last position that the server named.
    wal: Option<PgLsn>,
}

impl Stream {
    pub(super) fn new(wire: Wire, pid: i32) -> Stream {
        let nothing = Feedback::all(PgLsn::from(0));
        Stream { wire, pid, state: State::Streaming, sent: nothing, reply_wanted: false, wal: None }
    }

    /// The server process of this connection, as in `pg_stat_replication.pid`.
    pub fn backend_pid(&self) -> i32 {
        self.pid
    }

    /// The next frame; [`Frame::End`] again and again when the server has ended the stream. Waits without a limit, and
    /// writes what feedback is still unwritten. Cancel-safe.
    ///
    /// Does not answer keepalives: that is the caller's, who knows how far it has come.
    ///
    /// # Errors
    ///
    /// The server's (57P01 to 57P03 when it ends us), the connection's, or bytes that are not the protocol's.
    pub async fn next(&mut self) -> Result<Frame, ReplicationError> {
        match self.state {
            State::Streaming => {}
            State::ServerDone | State::Complete => return Ok(Frame::End),
            State::Failed => return Err(ReplicationError::Unusable),
        }
        let next = self.receive().await;
        next.map_err(|error| {
            self.state = State::Failed;
            at_wal(error, self.wal)
        })
    }

    async fn receive(&mut self) -> Result<Frame, ReplicationError> {
        loop {
            let message = self.wire.message().await?;
            match message.tag {
                b'd' => {
                    let frame = framing::frame(&message)?;
                    match &frame {
                        Frame::XLogData { wal_start, .. } if u64::from(*wal_start) > 0 => {
                            self.wal = Some(*wal_start);
                        }
                        Frame::Keepalive { wal_end, .. } => self.wal = Some(*wal_end),
                        Frame::XLogData { .. } | Frame::End => {}
                    }
                    return Ok(frame);
                }
                b'c' => {
                    self.state = State::ServerDone;
                    return Ok(Frame::End);
                }
                // So a server that shuts down ends a stream that is confirmed to its end.
                b'C' => {
                    self.state = State::Complete;
                    return Ok(Frame::End);
                }
                b'E' => return Err(ReplicationError::Db(Box::new(framing::db_error(&message)?))),
                b'N' | b'S' | b'A' => aside(&message)?,
                _ => return Err(message.unexpected("in a stream")),
            }
        }
    }

    /// Tells the server how far we have come; with `reply`, asks for a keepalive. Only the latest feedback that is not
    /// written yet is kept, so this needs no more memory however slow the server reads.
    ///
    /// Waits until it is written. Cancel-safe: then [`Stream::next`] writes the rest.
    ///
    /// # Errors
    ///
    /// The connection broke. What the server said last may still be there for [`Stream::next`].
    pub async fn send_status(&mut self, feedback: Feedback, reply: bool) -> Result<(), ReplicationError> {
        if self.state == State::Failed {
            return Err(ReplicationError::Unusable);
        }
        self.queue_status(feedback, reply);
        self.wire.flush().await
    }

    /// The same without waiting: [`Stream::next`] writes it.
    pub fn queue_status(&mut self, feedback: Feedback, reply: bool) {
        self.sent = self.sent.max(feedback);
        self.reply_wanted = reply || (self.reply_wanted && self.wire.has_replaceable());
        self.wire.replace(status(self.sent, self.reply_wanted));
    }

    /// Ends the stream in an orderly way: a last feedback, CopyDone, then everything the server still sends is dropped
    /// until it is ready for another command. All of it within `limit`; past that the connection is simply closed.
    ///
    /// # Errors
    ///
    /// The server's, or the connection's. In every case the connection has ended.
    pub async fn finish(mut self, feedback: Feedback, limit: Duration) -> Result<(), ReplicationError> {
        if self.state == State::Failed {
            return Err(ReplicationError::Unusable);
        }
        if self.state != State::Complete {
            self.queue_status(feedback, false);
            self.wire.settle();
            frontend::copy_done(self.wire.outbox());
            let at = self.wire.at().to_owned();
            let wal = self.wal;
            timeout(limit, self.drain())
                .await
                .map_err(|_| ReplicationError::Timeout { at, doing: "ending the stream", limit })?
                .map_err(|error| at_wal(error, wal))?;
        }
        self.wire.terminate().await;
        Ok(())
    }

    async fn drain(&mut self) -> Result<(), ReplicationError> {
        let mut complete = false;
        loop {
            let message = match self.wire.message().await {
                Ok(message) => message,
                // A server that shuts down does not become ready again.
                Err(ReplicationError::Closed { .. }) if complete => return Ok(()),
                Err(error) => return Err(error),
            };
            match message.tag {
                b'd' | b'c' => {}
                b'C' => complete = true,
                b'Z' => return Ok(()),
                b'E' => return Err(ReplicationError::Db(Box::new(framing::db_error(&message)?))),
                b'N' | b'S' | b'A' => aside(&message)?,
                _ => return Err(message.unexpected("at the end of a stream")),
            }
        }
    }
}

/// Messages that may come at any time: notices, settings that have changed, notifications.
pub(super) fn aside(message: &Message) -> Result<(), ReplicationError> {
    match message.tag {
        b'N' => {
            let notice = framing::db_error(message)?;
            tracing::debug!(severity = notice.severity, notice = %notice, "PostgreSQL, while replicating");
        }
        b'S' => {
            let (name, value) = framing::parameter(message)?;
            tracing::debug!(name, value, "PostgreSQL has changed a setting of the replication connection");
        }
        _ => {}
    }
    Ok(())
}

/// The error with the WAL position that the stream had come to.
fn at_wal(mut error: ReplicationError, wal: Option<PgLsn>) -> ReplicationError {
    if let ReplicationError::Malformed { at, .. } | ReplicationError::TooLarge { at, .. } = &mut error {
        at.wal = wal;
    }
    error
}

/// A standby status update in its CopyData message.
fn status(feedback: Feedback, reply: bool) -> BytesMut {
    const BODY_BYTES: u32 = 1 + 3 * 8 + 8 + 1;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_us = since_1970.saturating_sub(POSTGRES_EPOCH).as_micros();
    let mut bytes = BytesMut::with_capacity(64);
    bytes.put_u8(b'd');
    bytes.put_u32(4 + BODY_BYTES);
    bytes.put_u8(b'r');
    bytes.put_u64(feedback.written.into());
    bytes.put_u64(feedback.flushed.into());
    bytes.put_u64(feedback.applied.into());
    bytes.put_i64(i64::try_from(now_us).unwrap_or(i64::MAX));
    bytes.put_u8(u8::from(reply));
    bytes
}
