//! A handshake under way, and the end of one that is given up.
//!
//! lapin's thread for a handshake waits for ever where a peer accepts and then says nothing: each try would leave a thread and a
//! socket behind. So a second handle on the socket is kept until the handshake is finished, and ends it otherwise.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct Socket {
    /// A second handle on the connection's socket.
    socket: Option<TcpStream>,
    /// Nobody waits any more.
    over: bool,
}

/// Dropped, it ends the socket of a handshake that is not finished. On a finished one it does nothing.
#[derive(Debug, Default)]
pub(super) struct Attempt(Arc<Mutex<Socket>>);

/// Where the connecting side leaves its socket.
#[derive(Debug)]
pub(super) struct Handle(Arc<Mutex<Socket>>);

impl Attempt {
    pub(super) fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.0))
    }

    pub(super) fn finished(&self) {
        lock(&self.0).socket = None;
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let mut state = lock(&self.0);
        state.over = true;
        if let Some(socket) = state.socket.take() {
            // It may be gone already, which is as good.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Handle {
    /// Watches over a socket; an error if nobody waits for it any more.
    pub(super) fn watch(&self, socket: OwnedFd) -> io::Result<()> {
        let mut state = lock(&self.0);
        if state.over {
            return Err(io::ErrorKind::TimedOut.into());
        }
        state.socket = Some(socket.into());
        Ok(())
    }
}

fn lock(state: &Mutex<Socket>) -> MutexGuard<'_, Socket> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
