//! A socket with its read and write buffers. Every wait may be given up without losing a byte in either direction: what
//! is half read stays in the one buffer, what is half written in the other.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use super::error::ReplicationError;
use super::framing::{Message, Splitter};

/// What a connection runs over.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

pub(super) struct Wire {
    socket: Box<dyn Socket>,
    inbox: Splitter,
    outbox: BytesMut,
    /// Bytes for when the outbox is empty; the latest take the place of those before them.
    replaceable: Option<BytesMut>,
    unflushed: bool,
    /// What a write failed with. The server's last words may still wait to be read.
    write_error: Option<io::Error>,
    /// host:port.
    at: String,
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the outbox: it may hold a password.
        f.debug_struct("Wire").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>, at: String, limit: usize) -> Wire {
        Wire {
            socket,
            inbox: Splitter::new(limit),
            outbox: BytesMut::new(),
            replaceable: None,
            unflushed: false,
            write_error: None,
            at,
        }
    }

    pub(super) fn at(&self) -> &str {
        &self.at
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.inbox.set_limit(limit);
    }

    /// Where the next bytes to send go.
    pub(super) fn outbox(&mut self) -> &mut BytesMut {
        &mut self.outbox
    }

    /// To be sent unless something newer takes its place first.
    pub(super) fn replace(&mut self, bytes: BytesMut) {
        self.replaceable = Some(bytes);
    }

    /// Is something replaceable still to be sent?
    pub(super) fn has_replaceable(&self) -> bool {
        self.replaceable.is_some()
    }

    /// Bytes of the messages received so far.
    pub(super) fn received(&self) -> u64 {
        self.inbox.offset()
    }

    /// Puts what would be replaced into the outbox, so that what follows comes after it.
    pub(super) fn settle(&mut self) {
        if let Some(bytes) = self.replaceable.take() {
            self.outbox.unsplit(bytes);
        }
    }

    /// The next message; sends what is to be sent meanwhile. Cancel-safe.
    pub(super) async fn message(&mut self) -> Result<Message, ReplicationError> {
        loop {
            if let Some(message) = self.inbox.next()? {
                return Ok(message);
            }
            let read = poll_fn(|cx| self.poll_both(cx)).await?;
            if read == 0 {
                return Err(match self.write_error.take() {
                    Some(source) => ReplicationError::Broken { at: self.at.clone(), source },
                    None => ReplicationError::Closed { at: self.at.clone() },
                });
            }
        }
    }

    /// Sends everything. Cancel-safe: what is left goes with the next flush or message.
    pub(super) async fn flush(&mut self) -> Result<(), ReplicationError> {
        let written = poll_fn(|cx| self.poll_outbox(cx)).await;
        written.map_err(|source| ReplicationError::Broken { at: self.at.clone(), source })
    }

    /// Says goodbye without waiting: for when the server has nothing more to say.
    pub(super) async fn terminate(&mut self) {
        frontend::terminate(&mut self.outbox);
        // Nothing depends on it: the server also notices that the socket is closed.
        let _ = tokio::time::timeout(Duration::from_millis(100), self.flush()).await;
    }

    fn poll_both(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ReplicationError>> {
        if self.write_error.is_none()
            && let Poll::Ready(Err(error)) = self.poll_outbox(cx)
        {
            self.write_error = Some(error);
        }
        let room = self.inbox.room()?;
        poll_read_buf(Pin::new(&mut self.socket), cx, room)
            .map_err(|source| ReplicationError::Broken { at: self.at.clone(), source })
    }

    fn poll_outbox(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.outbox.is_empty() {
                self.settle();
            }
            if self.outbox.is_empty() {
                break;
            }
            self.unflushed = true;
            let written =
                std::task::ready!(poll_write_buf(Pin::new(&mut self.socket), cx, &mut self.outbox))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
        }
        if self.unflushed {
            std::task::ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}
