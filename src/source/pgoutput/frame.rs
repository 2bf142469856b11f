//! What travels inside `CopyData` while the server streams: WAL data and keepalives from it, status updates to it.
//!
//! Rule: PostgreSQL documentation, "Streaming Replication Protocol".

use tokio_postgres::types::PgLsn;

use super::message::lsn;
use super::reader::{DecodeError, Found, Reader};
use super::time::PgTime;

/// Bytes of a status update.
pub const STATUS_UPDATE_BYTES: usize = 34;

/// A payload of `CopyData` from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// One message of the plug-in.
    XLogData {
        /// Where the WAL record starts that brought the message about.
        start: PgLsn,
        /// How far the server had read (logical decoding sends the same as `start`).
        end: PgLsn,
        /// When it was sent, by the server's clock.
        sent_at: PgTime,
        /// The message.
        data: &'a [u8],
    },
    /// Nothing new, and a question whether the client is there.
    Keepalive {
        /// How far the server has read: everything before it that concerns the client was sent.
        end: PgLsn,
        /// When it was sent, by the server's clock.
        sent_at: PgTime,
        /// A status update is due at once.
        reply_requested: bool,
    },
}

impl<'a> Frame<'a> {
    /// Decodes the payload of one `CopyData`.
    ///
    /// # Errors
    /// The bytes are neither WAL data nor a keepalive.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let frame = match reader.u8("the kind of frame")? {
            b'w' => Frame::XLogData {
                start: lsn(&mut reader, "the start of the WAL data")?,
                end: lsn(&mut reader, "the end of the WAL")?,
                sent_at: PgTime(reader.i64("the time of sending")?),
                data: reader.remainder(),
            },
            b'k' => Frame::Keepalive {
                end: lsn(&mut reader, "the end of the WAL")?,
                sent_at: PgTime(reader.i64("the time of sending")?),
                // To answer once too often harms nobody.
                reply_requested: reader.u8("whether to reply (0 or 1)")? != 0,
            },
            other => return Err(reader.error(0, "WAL data ('w') or a keepalive ('k')", Found::Byte(other))),
        };
        reader.finish()?;
        Ok(frame)
    }
}

/// What the client tells the server: how far it is. The slot keeps the WAL after `flushed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Received up to here.
    pub written: PgLsn,
    /// Settled up to here.
    pub flushed: PgLsn,
    /// Applied up to here.
    pub applied: PgLsn,
    /// The client's clock.
    pub sent_at: PgTime,
    /// The server is to answer with a keepalive at once.
    pub reply_requested: bool,
}

impl StatusUpdate {
    /// The payload of one `CopyData`.
    pub fn encode(&self) -> [u8; STATUS_UPDATE_BYTES] {
        let mut bytes = [0; STATUS_UPDATE_BYTES];
        let fields = [
            u64::from(self.written).to_be_bytes(),
            u64::from(self.flushed).to_be_bytes(),
            u64::from(self.applied).to_be_bytes(),
            self.sent_at.0.to_be_bytes(),
        ];
        let payload =
            [b'r'].into_iter().chain(fields.into_iter().flatten()).chain([self.reply_requested.into()]);
        for (slot, byte) in bytes.iter_mut().zip(payload) {
            *slot = byte;
        }
        bytes
    }
}
