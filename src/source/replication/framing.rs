//! Bytes to messages: pure, total. Messages are split off one buffer without copying.
//!
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>, and for what CopyData carries
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use bytes::{Buf, Bytes, BytesMut};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;

use super::error::{DbError, Position, ReplicationError};

/// Tag and length.
const HEADER_BYTES: usize = 5;
/// Room for one read, at least.
const READ_BYTES: usize = 128 << 10;
/// After a message larger than this its buffer is given up, so that one big row does not stay allocated.
const KEEP_BYTES: usize = 1 << 20;

/// What the server streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// WAL, as the output plugin wrote it.
    XLogData {
        /// Where this data starts in the WAL; invalid (0) for messages that have no place there.
        wal_start: PgLsn,
        /// The end of the WAL on the server, as far as it had been read then.
        wal_end: PgLsn,
        /// When it was sent, in microseconds since 2000-01-01 by the server's clock.
        sent_us: i64,
        /// The plugin's bytes: a part of the read buffer, which lives as long as any part of it does.
        data: Bytes,
    },
    /// Sent when there is nothing to send, and before the server gives us up.
    Keepalive {
        /// The end of the WAL on the server; everything before it has been sent.
        wal_end: PgLsn,
        /// When it was sent, in microseconds since 2000-01-01 by the server's clock.
        sent_us: i64,
        /// Answer at once, or the server ends the connection.
        reply_requested: bool,
    },
    /// The server ended the stream in an orderly way; so it does when it shuts down and everything is confirmed.
    End,
}

/// One message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) tag: u8,
    pub(super) body: Bytes,
    /// Bytes of the connection before this message.
    pub(super) offset: u64,
}

impl Message {
    pub(super) fn malformed(&self, what: impl Into<String>) -> ReplicationError {
        malformed(what, self.offset)
    }

    /// A message that does not belong here.
    pub(super) fn unexpected(&self, place: &str) -> ReplicationError {
        self.malformed(format!("unexpected message {} {place}", shown(self.tag)))
    }
}

fn malformed(what: impl Into<String>, offset: u64) -> ReplicationError {
    ReplicationError::Malformed { what: what.into(), at: Position { offset, wal: None } }
}

fn shown(tag: u8) -> String {
    if tag.is_ascii_graphic() { format!("'{}'", char::from(tag)) } else { format!("0x{tag:02x}") }
}

/// The read buffer.
#[derive(Debug)]
pub(super) struct Splitter {
    buffer: BytesMut,
    /// Bytes of the connection before `buffer`.
    offset: u64,
    /// Bytes of one message, at most.
    limit: usize,
}

impl Splitter {
    pub(super) fn new(limit: usize) -> Splitter {
        Splitter { buffer: BytesMut::new(), offset: 0, limit }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Bytes of the messages taken out so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next message, if it is there as a whole.
    pub(super) fn next(&mut self) -> Result<Option<Message>, ReplicationError> {
        let Some((tag, total)) = self.header()? else { return Ok(None) };
        if self.buffer.len() < total {
            return Ok(None);
        }
        let mut body = self.buffer.split_to(total).freeze();
        body.advance(HEADER_BYTES);
        if total > KEEP_BYTES && self.buffer.len() < READ_BYTES {
            self.buffer = BytesMut::from(&self.buffer[..]);
        }
        let offset = self.offset;
        self.offset = offset.saturating_add(total as u64);
        Ok(Some(Message { tag, body, offset }))
    }

    /// Room for the next read: for the rest of a message that has begun, if that is more than a usual read.
    pub(super) fn room(&mut self) -> Result<&mut BytesMut, ReplicationError> {
        let missing = self.header()?.map_or(0, |(_, total)| total.saturating_sub(self.buffer.len()));
        self.buffer.reserve(missing.max(READ_BYTES));
        Ok(&mut self.buffer)
    }

    /// Tag and size with the tag, within the limit.
    fn header(&self) -> Result<Option<(u8, usize)>, ReplicationError> {
        let Some(&[tag, a, b, c, d]) = self.buffer.first_chunk() else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]);
        if length < 4 {
            return Err(malformed(format!("message {} of length {length}", shown(tag)), self.offset));
        }
        let total = u64::from(length) + 1;
        match usize::try_from(total) {
            Ok(total) if total <= self.limit => Ok(Some((tag, total))),
            _ => Err(ReplicationError::TooLarge {
                bytes: total,
                limit: self.limit as u64,
                at: Position { offset: self.offset, wal: None },
            }),
        }
    }
}

/// Checked access to a message's body.
struct Reader<'a> {
    message: &'a Message,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(message: &'a Message) -> Reader<'a> {
        Reader { message, rest: &message.body }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], ReplicationError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(*head)
    }

    fn slice(&mut self, n: usize) -> Result<&'a [u8], ReplicationError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or_else(|| self.short())?;
        self.rest = rest;
        Ok(head)
    }

    fn text(&mut self) -> Result<String, ReplicationError> {
        let end = self.rest.iter().position(|byte| *byte == 0).ok_or_else(|| self.short())?;
        let text = self.slice(end)?;
        self.slice(1)?;
        // Before a login is complete the server speaks its own encoding.
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn short(&self) -> ReplicationError {
        self.message.malformed(format!("message {} ends too early", shown(self.message.tag)))
    }
}

/// What a CopyData message carries.
pub(super) fn frame(message: &Message) -> Result<Frame, ReplicationError> {
    let mut reader = Reader::new(message);
    let [kind] = reader.bytes()?;
    match kind {
        b'w' => {
            let wal_start = PgLsn::from(u64::from_be_bytes(reader.bytes()?));
            let wal_end = PgLsn::from(u64::from_be_bytes(reader.bytes()?));
            let sent_us = i64::from_be_bytes(reader.bytes()?);
            let data = message.body.slice_ref(reader.rest);
            Ok(Frame::XLogData { wal_start, wal_end, sent_us, data })
        }
        b'k' => {
            let wal_end = PgLsn::from(u64::from_be_bytes(reader.bytes()?));
            let sent_us = i64::from_be_bytes(reader.bytes()?);
            let [reply] = reader.bytes()?;
            if !reader.rest.is_empty() {
                return Err(message.malformed("a keepalive with bytes after its end"));
            }
            Ok(Frame::Keepalive { wal_end, sent_us, reply_requested: reply != 0 })
        }
        other => Err(message.malformed(format!("unknown stream message {}", shown(other)))),
    }
}

/// An `Authentication…` message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Authentication {
    Ok,
    Cleartext,
    Md5([u8; 4]),
    Sasl(Vec<String>),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    /// Kerberos, GSSAPI, SSPI: by number.
    Other(u32),
}

pub(super) fn authentication(message: &Message) -> Result<Authentication, ReplicationError> {
    let mut reader = Reader::new(message);
    let kind = u32::from_be_bytes(reader.bytes()?);
    let rest = message.body.slice_ref(reader.rest);
    Ok(match kind {
        0 => Authentication::Ok,
        3 => Authentication::Cleartext,
        5 => Authentication::Md5(reader.bytes()?),
        10 => {
            let mut mechanisms = Vec::new();
            while reader.rest != [0] {
                mechanisms.push(reader.text()?);
            }
            Authentication::Sasl(mechanisms)
        }
        11 => Authentication::SaslContinue(rest),
        12 => Authentication::SaslFinal(rest),
        other => Authentication::Other(other),
    })
}

/// The process id in `BackendKeyData`; the key after it has had several lengths.
pub(super) fn backend_pid(message: &Message) -> Result<i32, ReplicationError> {
    Ok(i32::from_be_bytes(Reader::new(message).bytes()?))
}

/// Name and value in `ParameterStatus`.
pub(super) fn parameter(message: &Message) -> Result<(String, String), ReplicationError> {
    let mut reader = Reader::new(message);
    Ok((reader.text()?, reader.text()?))
}

/// The values of a `DataRow`, in text.
pub(super) fn row(message: &Message) -> Result<Vec<Option<String>>, ReplicationError> {
    let mut reader = Reader::new(message);
    let columns = u16::from_be_bytes(reader.bytes()?);
    let mut values = Vec::new();
    for _ in 0..columns {
        let length = i32::from_be_bytes(reader.bytes()?);
        values.push(match usize::try_from(length) {
            Err(_) => None,
            Ok(length) => {
                let text = std::str::from_utf8(reader.slice(length)?);
                Some(text.map_err(|_| message.malformed("a value that is not UTF-8"))?.to_owned())
            }
        });
    }
    Ok(values)
}

/// An `ErrorResponse` or `NoticeResponse`.
pub(super) fn db_error(message: &Message) -> Result<DbError, ReplicationError> {
    let mut reader = Reader::new(message);
    let mut error = DbError {
        severity: String::new(),
        code: SqlState::from_code(""),
        message: String::new(),
        detail: None,
        hint: None,
    };
    loop {
        let [field] = reader.bytes()?;
        if field == 0 {
            return Ok(error);
        }
        let text = reader.text()?;
        match field {
            // `V` is never translated and comes after `S`.
            b'S' | b'V' => error.severity = text,
            b'C' => error.code = SqlState::from_code(&text),
            b'M' => error.message = text,
            b'D' => error.detail = Some(text),
            b'H' => error.hint = Some(text),
            _ => {}
        }
    }
}
