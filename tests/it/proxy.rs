//! A TCP proxy that fails in the ways networks fail.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const BUFFER_BYTES: usize = 16 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What happens to bytes and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Forward.
    #[default]
    Pass,
    /// Read nothing: what is sent waits, in both directions, and passes later.
    Stall,
    /// Bytes towards the server vanish.
    DropUp,
    /// Bytes towards the client vanish: a commit happens, its answer is lost.
    DropDown,
    /// Bytes vanish both ways and an end on one side is not shown to the other: a half-open connection.
    HalfOpen,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    mode: Mode,
    /// Connections accepted in an earlier generation are cut.
    generation: u64,
    refusing: bool,
}

/// A proxy on `127.0.0.1`; dropped, it cuts every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, e.g. `127.0.0.1:5432`.
    pub async fn start(target: impl Into<String>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(State::default());
        let accepting = tokio::spawn(accept(listener, target.into(), receiver));
        Proxy { address, state, accepting }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `url` with its host and port replaced by the proxy's.
    pub fn url(&self, url: &str) -> String {
        let start = url.rfind('@').map_or_else(|| url.find("://").unwrap() + 3, |at| at + 1);
        let end = url[start..].find(['/', '?']).map_or(url.len(), |length| start + length);
        format!("{}{}{}", &url[..start], self.address, &url[end..])
    }

    /// For connections open now and later, until changed.
    pub fn set(&self, mode: Mode) {
        self.state.send_modify(|state| state.mode = mode);
    }

    /// Closes every open connection, both ends. New ones are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Closes new connections at once, or no longer.
    pub fn refuse(&self, refusing: bool) {
        self.state.send_modify(|state| state.refusing = refusing);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, target: String, state: watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let generation = state.borrow().generation;
        if !state.borrow().refusing {
            connections.spawn(connection(client, target.clone(), state.clone(), generation));
        }
    }
}

async fn connection(client: TcpStream, target: String, mut state: watch::Receiver<State>, generation: u64) {
    let connect = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(target));
    let Ok(Ok(server)) = connect.await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = copy(from_client, to_server, Direction::Up, state.clone());
    let down = copy(from_server, to_client, Direction::Down, state.clone());
    let cut = state.wait_for(|state| state.generation > generation);
    tokio::select! {
        _ = async { tokio::join!(up, down) } => {}
        // A dropped proxy ends the wait with an error: cut as well.
        _ = cut => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if state.wait_for(|state| state.mode != Mode::Stall).await.is_err() {
            return;
        }
        let count = from.read(&mut buffer).await.unwrap_or(0);
        // A stall may have begun while nothing came.
        let Ok(mode) = state.wait_for(|state| state.mode != Mode::Stall).await.map(|state| state.mode) else {
            return;
        };
        let vanishes = match mode {
            Mode::Pass | Mode::Stall => false,
            Mode::DropUp => direction == Direction::Up,
            Mode::DropDown => direction == Direction::Down,
            Mode::HalfOpen => true,
        };
        if count == 0 {
            // A half-open connection shows no end until it is over.
            if state.wait_for(|state| state.mode != Mode::HalfOpen).await.is_ok() {
                let _ = to.shutdown().await;
            }
            return;
        }
        if !vanishes && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SILENCE: Duration = Duration::from_millis(200);

    /// A server that answers every byte with the same byte.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn answer(client: &mut TcpStream) -> Option<u8> {
        tokio::time::timeout(SILENCE, client.read_u8()).await.ok().and_then(Result::ok)
    }

    #[tokio::test]
    async fn stalls_drops_and_passes() {
        let proxy = Proxy::start(echo().await.to_string()).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut client).await, Some(1));
        proxy.set(Mode::Stall);
        client.write_u8(2).await.unwrap();
        assert_eq!(answer(&mut client).await, None);
        proxy.set(Mode::Pass);
        assert_eq!(answer(&mut client).await, Some(2));
        for mode in [Mode::DropUp, Mode::DropDown, Mode::HalfOpen] {
            proxy.set(mode);
            client.write_u8(3).await.unwrap();
            assert_eq!(answer(&mut client).await, None, "{mode:?}");
        }
        proxy.set(Mode::Pass);
        client.write_u8(4).await.unwrap();
        assert_eq!(answer(&mut client).await, Some(4));
    }

    #[tokio::test]
    async fn cuts_and_refuses() {
        let proxy = Proxy::start(echo().await.to_string()).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_u8(1).await.unwrap();
        assert_eq!(answer(&mut client).await, Some(1));
        proxy.cut();
        let end = tokio::time::timeout(CONNECT_LIMIT, client.read_u8()).await.unwrap();
        assert!(end.is_err());
        proxy.refuse(true);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let end = tokio::time::timeout(CONNECT_LIMIT, client.read_u8()).await.unwrap();
        assert!(end.is_err());
        proxy.refuse(false);
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_u8(2).await.unwrap();
        assert_eq!(answer(&mut client).await, Some(2));
    }

    #[tokio::test]
    async fn a_half_open_connection_shows_no_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap().to_string()).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        proxy.set(Mode::HalfOpen);
        drop(server);
        assert!(tokio::time::timeout(SILENCE, client.read_u8()).await.is_err());
        proxy.cut();
        let end = tokio::time::timeout(CONNECT_LIMIT, client.read_u8()).await.unwrap();
        assert!(end.is_err());
    }

    #[tokio::test]
    async fn urls_are_rewritten() {
        let proxy = Proxy::start("127.0.0.1:1").await;
        let address = proxy.address();
        assert_eq!(proxy.url("amqp://a:b@127.0.0.1:5/%2f"), format!("amqp://a:b@{address}/%2f"));
        assert_eq!(proxy.url("postgres://u@127.0.0.1:5/db?x=y"), format!("postgres://u@{address}/db?x=y"));
        assert_eq!(proxy.url("http://localhost:5"), format!("http://{address}"));
    }
}
