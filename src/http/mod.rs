//! Probes and metrics over HTTP: `/live`, `/ready`, `/metrics`.
//!
//! The server has its own thread and runtime, so that it answers however busy the relay is, and its own limits, so that
//! nothing that connects to it costs much: one request per connection, a time for its head, a time for the whole
//! connection, a size of head, and a number of connections, beyond which the one that has been silent for the longest time is cut.

mod live;
mod metrics;
mod ready;
mod silent;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::http::{Request, StatusCode};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::health::Health;
use crate::metrics::Metrics;

use self::silent::{Entry, Silent};

/// What a client may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Time to send the head of a request.
    pub(crate) head: Duration,
    /// Time for a connection, from accept to the last byte.
    pub(crate) connection: Duration,
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Time for open connections after a stop.
    pub(crate) stop: Duration,
}

/// Probes have a few seconds, and send their heads at once.
const LIMITS: Limits = Limits {
    head: Duration::from_secs(1),
    connection: Duration::from_secs(15),
    connections: 128,
    stop: Duration::from_secs(1),
};

/// Bytes of a request's head, at most.
const HEAD_MAX: usize = 16 << 10;
/// Header fields, at most.
const HEADERS_MAX: usize = 64;
/// Pause after a failed accept: without file descriptors it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the handlers read.
#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens; the port is the real one also for port 0.
    pub addr: SocketAddr,
    thread: JoinHandle<()>,
}

impl Server {
    /// Waits until the server has stopped: at once after its token was cancelled, a second at most.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the HTTP server's thread panicked");
        }
    }
}

/// Listens on `addr`.
///
/// # Errors
/// As the system says: port in use, address not of this machine, no privilege.
pub fn bind(addr: SocketAddr) -> io::Result<StdListener> {
    StdListener::bind(addr)
}

/// Serves on `listener` in a thread of its own until `stop`.
///
/// # Errors
/// No thread, no runtime, or a listener that is none.
pub fn start(
    listener: StdListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> io::Result<Server> {
    start_with(LIMITS, listener, Shared { health, metrics }, stop)
}

fn start_with(
    limits: Limits,
    listener: StdListener,
    shared: Shared,
    stop: CancellationToken,
) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _guard = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let router = router(shared);
    let thread = std::thread::Builder::new()
        .name("statecast-http".into())
        .spawn(move || runtime.block_on(serve(limits, listener, move |_| router.clone(), stop)))?;
    tracing::info!(%addr, "probes and metrics: /live /ready /metrics");
    Ok(Server { addr, thread })
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/live", get(live::answer))
        .route("/ready", get(ready::answer))
        .route("/metrics", get(metrics::answer))
        .fallback(|| async { (StatusCode::NOT_FOUND, "there are /live, /ready and /metrics\n") })
        .with_state(shared)
}

/// Serves until `stop`; `router` makes what answers a connection from that address.
pub(crate) async fn serve(
    limits: Limits,
    listener: TcpListener,
    router: impl Fn(SocketAddr) -> Router,
    stop: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let silent = Silent::default();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "HTTP: a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // Clients beyond the limit wait in the system's queue, but for this one.
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = silent.room(&slots) => slot,
        };
        let (router, entry, stop) = (router(peer), silent.enter(), stop.clone());
        connections.spawn(async move {
            connection(limits, stream, router, entry, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    // What is still open then is cut by the end of the runtime.
    let _ = tokio::time::timeout(limits.stop, connections.wait()).await;
}

async fn connection(
    limits: Limits,
    stream: TcpStream,
    router: Router,
    entry: Entry,
    stop: CancellationToken,
) {
    let cut = entry.cut.clone();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: Request<Incoming>| {
        entry.heard();
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let deadline = tokio::time::sleep(limits.connection);
    let mut deadline = std::pin::pin!(deadline);
    let mut stopping = false;
    loop {
        tokio::select! {
            // How it ended is the client's matter: a cut connection or a bad request says nothing about the relay.
            _ = connection.as_mut() => return,
            () = deadline.as_mut() => return,
            () = cut.cancelled() => return,
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

#[cfg(test)]
mod tests;
