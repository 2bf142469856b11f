//! A connection to one of the configured brokers.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use tokio::time::timeout;

use super::{SinkError, reply_code};
use crate::config::{Rabbitmq, Tls, TlsMode};

/// Heartbeat in seconds: a silent peer is gone after about ten.
const HEARTBEAT_S: u16 = 4;
/// TCP, TLS and AMQP handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A close is polite, not necessary: a blocked connection never answers it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Tries the configured URLs in random order.
///
/// # Errors
/// That of the last URL tried, when none could be connected to.
pub async fn connect(config: &Rabbitmq, name: &str) -> Result<Connection, SinkError> {
    let tls = tls_config(&config.tls)?;
    let mut urls: Vec<&str> = config.urls.iter().map(|url| url.expose()).collect();
    fastrand::shuffle(&mut urls);
    let mut last = SinkError::Tls("rabbitmq.urls is empty".into());
    for url in urls {
        match connect_one(url, config.tls.mode, tls.clone(), name).await {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                tracing::debug!(%error, "broker not reachable");
                last = error;
            }
        }
    }
    Err(last)
}

async fn connect_one(
    url: &str,
    mode: TlsMode,
    tls: OwnedTLSConfig,
    name: &str,
) -> Result<Connection, SinkError> {
    let mut uri: AMQPUri = url
        .parse()
        .map_err(|_| SinkError::Tls("rabbitmq.urls holds something that is not an AMQP URL".into()))?;
    match mode {
        TlsMode::Url => {}
        TlsMode::Disable => uri.scheme = AMQPScheme::AMQP,
        TlsMode::Verify => uri.scheme = AMQPScheme::AMQPS,
    }
    uri.query.heartbeat = Some(HEARTBEAT_S);
    let server = describe(&uri);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime().map_err(|e| SinkError::Connect {
        server: server.clone(),
        cause: e.to_string(),
        refused: false,
    })?;
    let attempt = Attempt::default();
    let sockets = attempt.0.clone();
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri: AMQPUri, runtime| {
            let opening = uri.connect_with_config_async(tls.as_ref(), &runtime);
            let stream = timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| timed_out())??;
            let socket = match &stream {
                AsyncTcpStream::Plain(plain) => plain.get_ref().as_fd().try_clone_to_owned(),
                AsyncTcpStream::Rustls(tls) => tls.get_ref().0.get_ref().as_fd().try_clone_to_owned(),
                _ => Err(io::ErrorKind::Unsupported.into()),
            }?;
            let mut state = lock(&sockets);
            if state.over {
                return Err(timed_out().into());
            }
            state.socket = Some(socket.into());
            drop(state);
            Ok(stream)
        },
        properties,
    );
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => {
            attempt.finished();
            Ok(connection)
        }
        Ok(Err(error)) => {
            let (cause, refused) = explain(&error);
            Err(SinkError::Connect { server, cause, refused })
        }
        Err(_) => Err(SinkError::Connect {
            server,
            cause: format!(
                "no answer within {CONNECT_TIMEOUT:?}; is it a RabbitMQ listener, with TLS exactly where the URL says so (amqps://)?"
            ),
            refused: false,
        }),
    }
}

/// A handshake under way. lapin's thread for it waits for ever where a peer accepts and then says nothing; dropping this
/// ends the socket of a handshake that is not finished, and with it the thread. On a finished one it does nothing.
#[derive(Default)]
struct Attempt(Arc<Mutex<Socket>>);

#[derive(Default)]
struct Socket {
    /// A second handle on the connection's socket.
    socket: Option<TcpStream>,
    /// Nobody waits any more.
    over: bool,
}

impl Attempt {
    fn finished(&self) {
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

fn lock(state: &Mutex<Socket>) -> MutexGuard<'_, Socket> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

/// Closes a connection, within a deadline.
pub async fn close(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
}

/// What an operator should hear about a failed handshake, and whether it was a refusal.
fn explain(error: &lapin::Error) -> (String, bool) {
    match reply_code(error) {
        Some(403) => (format!("{error}: wrong user name or password"), true),
        Some(530) => (format!("{error}: this vhost does not exist or the user may not use it"), true),
        _ => {
            let text = error.to_string();
            let tls = text.contains("certificate") || text.contains("TLS") || text.contains("tls");
            let hint = if tls {
                "; look at rabbitmq.tls (ca_file, cert_file, key_file) and the name in the URL"
            } else {
                ""
            };
            (format!("{text}{hint}"), false)
        }
    }
}

fn describe(uri: &AMQPUri) -> String {
    let scheme = match uri.scheme {
        AMQPScheme::AMQP => "amqp",
        AMQPScheme::AMQPS => "amqps",
    };
    format!("{scheme}://{}:{}, vhost {:?}", uri.authority.host, uri.authority.port, uri.vhost)
}

fn tls_config(tls: &Tls) -> Result<OwnedTLSConfig, SinkError> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|e| SinkError::Tls(format!("cannot read {}: {e}", path.display())))
    };
    let cert_chain = match &tls.ca_file {
        None => None,
        Some(path) => Some(
            String::from_utf8(read(path)?)
                .map_err(|_| SinkError::Tls(format!("{} is not a PEM file", path.display())))?,
        ),
    };
    let identity = match (&tls.cert_file, &tls.key_file) {
        (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read(cert)?, key: read(key)? }),
        _ => None,
    };
    Ok(OwnedTLSConfig { identity, cert_chain })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io_threads() -> usize {
        let name = |task: &std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().filter_map(Result::ok);
        tasks.filter(|task| name(task).is_ok_and(|name| name.starts_with("lapin-io"))).count()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_peer_that_never_answers_leaves_no_thread_behind() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepting = tokio::spawn(async move {
            let mut accepted = Vec::new();
            while let Ok(connection) = listener.accept().await {
                accepted.push(connection);
            }
        });
        let env = [
            ("STATECAST_POSTGRES__URL".to_owned(), "postgres://u@h/d".to_owned()),
            ("STATECAST_RABBITMQ__URLS".to_owned(), format!("amqp://127.0.0.1:{port}")),
        ];
        let config = crate::config::load(None, env.into_iter()).unwrap();
        for _ in 0..3 {
            let attempt = timeout(Duration::from_millis(500), connect(&config.rabbitmq, "test")).await;
            assert!(attempt.is_err(), "there is nobody to answer");
        }
        let gone = timeout(Duration::from_secs(5), async {
            while io_threads() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(gone.await.is_ok(), "{} threads are left", io_threads());
        accepting.abort();
    }
}
