//! The web console: what goes on, what became of an event, and what waits for a person.
//!
//! ```text
//! answer    which page, and who may            live       figures of the metrics, each second
//! auth      tokens, sessions, names            overview, story, parked, cursor    the pages
//! database  its own connections                page, html, form    what pages are made of
//! ```
//!
//! It has its own listener, thread, runtime and connections, each bounded: whatever a browser does, the relay and its probes
//! do not wait for it. It reads metrics and health of its process, and asks PostgreSQL for the rest; when that is away, a page
//! says so and the live figures go on. It changes nothing but by the requests of `statecast parked`, which the leader acts on.

mod answer;
mod assets;
mod auth;
mod cursor;
mod database;
mod form;
mod html;
mod live;
mod overview;
mod page;
mod parked;
mod refusals;
mod story;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::{Extension, Router};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::health::Health;
use crate::http::{self, Limits};
use crate::metrics::Metrics;
use crate::postgres::PgError;

use answer::Site;

/// What a browser may take. (Answers have a deadline of their own, before that of their connection.)
const LIMITS: Limits = Limits {
    head: Duration::from_secs(5),
    connection: Duration::from_secs(15),
    connections: 32,
    stop: Duration::from_secs(1),
};

/// For what still runs after the last answer.
const STOP_MAX: Duration = Duration::from_millis(100);

/// There is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The port cannot be had.
    #[error("cannot listen on {0} (console.listen)")]
    Listen(SocketAddr, #[source] io::Error),
    /// No thread or runtime.
    #[error("cannot start a thread for it")]
    Start(#[source] io::Error),
    /// The settings of PostgreSQL are unusable.
    #[error(transparent)]
    Postgres(#[from] PgError),
}

/// A running console.
#[derive(Debug)]
pub struct Console {
    /// Where it answers; the port is the real one also for port 0.
    pub addr: SocketAddr,
    thread: JoinHandle<()>,
}

impl Console {
    /// Waits until it has stopped: at once after its token was cancelled, a second at most.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the console's thread panicked");
        }
    }
}

/// Starts the console in a thread of its own until `stop`. `None`: it is off.
///
/// # Errors
/// See [`ConsoleError`]. A relay goes on without.
pub fn start(
    config: &Arc<Config>,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> Result<Option<Console>, ConsoleError> {
    let Some(listen) = config.console.listen else { return Ok(None) };
    let listener = StdListener::bind(listen).map_err(|error| ConsoleError::Listen(listen, error))?;
    let site = Arc::new(Site::new(config, health, metrics)?);
    start_with(LIMITS, listener, site, stop).map(Some).map_err(ConsoleError::Start)
}

fn start_with(
    limits: Limits,
    listener: StdListener,
    site: Arc<Site>,
    stop: CancellationToken,
) -> io::Result<Console> {
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let listener = {
        let _guard = runtime.enter();
        TcpListener::from_std(listener)?
    };
    let serving = async move {
        let router = Router::new().fallback(answer::answer).with_state(Arc::clone(&site));
        let router = move |peer: SocketAddr| router.clone().layer(Extension(peer));
        tokio::select! {
            () = http::serve(limits, listener, router, stop) => {}
            () = site.live.run() => {}
            () = site.database.tidy() => {}
        }
    };
    let thread = std::thread::Builder::new().name("statecast-console".into()).spawn(move || {
        runtime.block_on(serving);
        // A name is looked up in a thread that cannot be cut off: the end does not wait for it.
        runtime.shutdown_timeout(STOP_MAX);
    })?;
    tracing::info!(url = %format_args!("http://{addr}/"), "web console");
    Ok(Console { addr, thread })
}
