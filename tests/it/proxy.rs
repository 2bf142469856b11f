//! A TCP proxy that fails in the ways networks fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const BUFFER_BYTES: usize = 16 * 1024;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Bytes that a slow proxy forwards at a time.
const SLOW_BYTES: usize = 1024;

/// What happens to bytes and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Forward.
    #[default]
    Pass,
    /// Forward, but an end on one side is not shown to the other.
    Linger,
    /// Read nothing: what is sent waits, in both directions, and passes later.
    Stall,
    /// The same towards the server only.
    StallUp,
    /// The same towards the client only: what it asks for is done, and it does not learn of it.
    StallDown,
    /// Forward so many bytes a second, in each direction.
    Slow(u32),
    /// Bytes towards the server vanish.
    DropUp,
    /// Bytes towards the client vanish: a commit happens, its answer is lost.
    DropDown,
    /// Bytes vanish both ways and an end on one side is not shown to the other: a half-open connection.
    HalfOpen,
}

impl Mode {
    fn stalls(self, direction: Direction) -> bool {
        match self {
            Mode::Stall => true,
            Mode::StallUp => direction == Direction::Up,
            Mode::StallDown => direction == Direction::Down,
            _ => false,
        }
    }

    fn loses(self, direction: Direction) -> bool {
        match self {
            Mode::HalfOpen => true,
            Mode::DropUp => direction == Direction::Up,
            Mode::DropDown => direction == Direction::Down,
            _ => false,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    mode: Mode,
    /// Connections accepted in an earlier generation are cut.
    generation: u64,
    refusing: bool,
}

/// What went through, or was taken in.
#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    up_bytes: AtomicU64,
}

/// A connection is open for as long as this lives.
struct Opened(Arc<Counts>);

impl Opened {
    fn new(counts: Arc<Counts>) -> Opened {
        counts.open.fetch_add(1, Ordering::Relaxed);
        Opened(counts)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A proxy on `127.0.0.1`; dropped, it cuts every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    counts: Arc<Counts>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port and forwards to `target`, e.g. `127.0.0.1:5432`.
    pub async fn start(target: impl Into<String>) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, receiver) = watch::channel(State::default());
        let counts = Arc::new(Counts::default());
        let accepting = tokio::spawn(accept(listener, target.into(), receiver, Arc::clone(&counts)));
        Proxy { address, state, counts, accepting }
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Relaxed)
    }

    /// Bytes taken from clients so far, forwarded or not. A stalled connection still takes what comes first.
    pub fn up_bytes(&self) -> u64 {
        self.counts.up_bytes.load(Ordering::Relaxed)
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

async fn accept(listener: TcpListener, target: String, state: watch::Receiver<State>, counts: Arc<Counts>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        while connections.try_join_next().is_some() {}
        let generation = state.borrow().generation;
        if !state.borrow().refusing {
            let opened = Opened::new(Arc::clone(&counts));
            connections.spawn(connection(client, target.clone(), state.clone(), generation, opened));
        }
    }
}

async fn connection(
    client: TcpStream,
    target: String,
    mut state: watch::Receiver<State>,
    generation: u64,
    opened: Opened,
) {
    let connect = tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(target));
    let Ok(Ok(server)) = connect.await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = copy(from_client, to_server, Direction::Up, state.clone(), &opened.0);
    let down = copy(from_server, to_client, Direction::Down, state.clone(), &opened.0);
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
    counts: &Counts,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(mode) = passing(&mut state, direction).await else { return };
        let room = if matches!(mode, Mode::Slow(_)) { SLOW_BYTES } else { BUFFER_BYTES };
        let count = from.read(&mut buffer[..room]).await.unwrap_or(0);
        if direction == Direction::Up {
            counts.up_bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
        // A stall may have begun while nothing came.
        let Ok(mode) = passing(&mut state, direction).await else { return };
        if count == 0 {
            // A half-open connection shows no end until it is over.
            let shows = |state: &State| !matches!(state.mode, Mode::HalfOpen | Mode::Linger);
            if state.wait_for(shows).await.is_ok() {
                let _ = to.shutdown().await;
            }
            return;
        }
        if let Mode::Slow(rate) = mode {
            let pause = Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX) / rate.max(1);
            tokio::time::sleep(pause).await;
        }
        if !mode.loses(direction) && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Waits while a direction is stalled; an error once the proxy is gone.
async fn passing(
    state: &mut watch::Receiver<State>,
    direction: Direction,
) -> Result<Mode, watch::error::RecvError> {
    state.wait_for(|state| !state.mode.stalls(direction)).await.map(|state| state.mode)
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
        for mode in [Mode::StallUp, Mode::StallDown] {
            proxy.set(mode);
            client.write_u8(5).await.unwrap();
            assert_eq!(answer(&mut client).await, None, "{mode:?}");
            proxy.set(Mode::Pass);
            assert_eq!(answer(&mut client).await, Some(5), "{mode:?}");
        }
        assert_eq!((proxy.open(), proxy.up_bytes()), (1, 4));
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
    async fn a_slow_proxy_takes_its_time() {
        let proxy = Proxy::start(echo().await.to_string()).await;
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        proxy.set(Mode::Slow(10_000));
        let (begun, mut back) = (std::time::Instant::now(), vec![0; 4_000]);
        client.write_all(&back).await.unwrap();
        client.read_exact(&mut back).await.unwrap();
        assert!(begun.elapsed() > Duration::from_millis(400), "{:?}", begun.elapsed());
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
