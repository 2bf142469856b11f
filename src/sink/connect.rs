//! A connection to one of the configured brokers.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use lapin::tcp::{AMQPUriTcpExt, AsyncTcpStream, RustlsConnector, TLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};
use tokio::time::{Instant, timeout};

use super::attempt::Attempt;
use super::{SinkError, reply_code};
use crate::config::{Rabbitmq, TlsMode};
use crate::reached::{Answer, Reached};
use crate::tls;

/// Heartbeat in seconds: a silent peer is gone after about ten.
const HEARTBEAT_S: u16 = 4;
/// TCP, TLS and AMQP handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where there is another broker to try.
const HURRIED_TIMEOUT: Duration = Duration::from_secs(3);
/// A close is polite, not necessary: a blocked connection never answers it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Brokers of this process.
static REACHED: Reached = Reached::new();

/// One configured URL.
struct Broker {
    uri: AMQPUri,
    /// For messages, and to remember it by.
    server: String,
}

/// Tries the configured URLs: in random order, but those that failed last come last. Where none says anything, each is
/// asked once more, with more patience: they may be slow.
///
/// # Errors
/// That of the last URL tried, when none could be connected to.
pub async fn connect(config: &Rabbitmq, name: &str) -> Result<Connection, SinkError> {
    let brokers: Result<Vec<Broker>, SinkError> =
        config.urls.iter().map(|url| broker(url.expose(), config)).collect();
    let mut brokers = brokers?;
    fastrand::shuffle(&mut brokers);
    REACHED.order(&mut brokers, |broker| &broker.server);
    let alone = brokers.len() == 1;
    let mut last = SinkError::Url("rabbitmq.urls is empty: name at least one broker".into());
    let mut silent = Vec::new();
    for broker in brokers {
        let limit = if alone { CONNECT_TIMEOUT } else { HURRIED_TIMEOUT };
        match try_one(&broker, config, name, limit).await {
            Ok(connection) => return Ok(connection),
            Err((answer, error)) => {
                last = error;
                silent.extend((answer == Answer::None).then_some(broker));
            }
        }
    }
    if alone {
        return Err(last);
    }
    for broker in silent {
        match try_one(&broker, config, name, CONNECT_TIMEOUT).await {
            Ok(connection) => return Ok(connection),
            Err((_, error)) => last = error,
        }
    }
    Err(last)
}

fn broker(url: &str, config: &Rabbitmq) -> Result<Broker, SinkError> {
    let mut uri: AMQPUri = url
        .parse()
        .map_err(|_| SinkError::Url("rabbitmq.urls holds something that is not an AMQP URL".into()))?;
    match config.tls.mode {
        TlsMode::Url => {}
        TlsMode::Disable => uri.scheme = AMQPScheme::AMQP,
        TlsMode::Verify => uri.scheme = AMQPScheme::AMQPS,
    }
    uri.query.heartbeat = Some(HEARTBEAT_S);
    let server = describe(&uri);
    Ok(Broker { uri, server })
}

/// Tries one, and remembers what came of it.
async fn try_one(
    broker: &Broker,
    config: &Rabbitmq,
    name: &str,
    limit: Duration,
) -> Result<Connection, (Answer, SinkError)> {
    let begun = Instant::now();
    let opened = connect_one(broker, config, name, limit).await;
    let answer = match &opened {
        Ok(_) => Answer::Good,
        Err(_) if begun.elapsed() >= limit => Answer::None,
        Err(_) => Answer::Refused,
    };
    REACHED.note(&broker.server, answer);
    opened.map_err(|error| {
        tracing::debug!(%error, "broker not reachable");
        (answer, error)
    })
}

async fn connect_one(
    broker: &Broker,
    config: &Rabbitmq,
    name: &str,
    limit: Duration,
) -> Result<Connection, SinkError> {
    let Broker { uri, server } = broker;
    let (uri, server) = (uri.clone(), server.clone());
    let over_tls = uri.scheme == AMQPScheme::AMQPS;
    let failed = |error: &lapin::Error| {
        let (cause, refused) = explain(error, over_tls);
        SinkError::Connect { server: server.clone(), cause, refused }
    };
    let tls = match uri.scheme {
        AMQPScheme::AMQP => None,
        AMQPScheme::AMQPS => Some(Arc::new(tls::client_config(&config.tls)?)),
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let runtime = lapin::runtime::default_runtime().map_err(|error| failed(&error))?;
    let attempt = Attempt::default();
    let watched = attempt.handle();
    let connecting = Connection::connector(
        uri,
        runtime,
        async move |uri, runtime| {
            let opening = async {
                let host = uri.authority.host.clone();
                let plain = AMQPUri { scheme: AMQPScheme::AMQP, ..uri };
                let stream = plain.connect_with_config_async(TLSConfig::default(), &runtime).await?;
                if let AsyncTcpStream::Plain(plain) = &stream {
                    watched.watch(plain.get_ref().as_fd().try_clone_to_owned()?)?;
                }
                // lapin's own TLS would trust the platform's CAs beside ours, and fail on a platform without any.
                match &tls {
                    None => Ok(stream),
                    Some(tls) => stream.into_rustls(&RustlsConnector::from(Arc::clone(tls)), &host).await,
                }
            };
            let timed_out = || Err(io::ErrorKind::TimedOut.into());
            Ok(timeout(limit, opening).await.unwrap_or_else(|_| timed_out())?)
        },
        properties,
    );
    match timeout(limit, connecting).await {
        Ok(Ok(connection)) => {
            attempt.finished();
            Ok(connection)
        }
        Ok(Err(error)) => Err(failed(&error)),
        Err(_) => Err(SinkError::Connect {
            server,
            cause: format!(
                "no answer within {limit:?}; is it a RabbitMQ listener, with TLS exactly where the URL says so (amqps://)?"
            ),
            refused: false,
        }),
    }
}

/// Is one of the brokers there, and does it let us in?
///
/// # Errors
/// As [`connect`].
pub async fn reach(config: &Rabbitmq, name: &str) -> Result<(), SinkError> {
    let connection = connect(config, name).await?;
    close(&connection).await;
    Ok(())
}

/// Closes a connection, within a deadline.
pub async fn close(connection: &Connection) {
    let _ = timeout(CLOSE_TIMEOUT, connection.close(200, "done".into())).await;
}

/// What an operator should hear about a failed handshake, and whether it was a refusal.
fn explain(error: &lapin::Error, over_tls: bool) -> (String, bool) {
    match reply_code(error) {
        Some(403) => (format!("{error}: wrong user name or password"), true),
        Some(530) => (format!("{error}: this vhost does not exist or the user may not use it"), true),
        _ => {
            let cause = match error.kind() {
                lapin::ErrorKind::IOError(io) => {
                    let hint = || handshake_hint(io.kind(), over_tls).to_owned();
                    Some(tls::remedy(io.as_ref(), "rabbitmq.tls").unwrap_or_else(hint))
                }
                // What a TLS listener says to a plain client is no AMQP frame.
                lapin::ErrorKind::ParsingError(_) => {
                    Some("this port speaks no plain AMQP: if it is a TLS port, write amqps://".to_owned())
                }
                _ => None,
            };
            (cause.map_or_else(|| error.to_string(), |cause| format!("{cause} ({error})")), false)
        }
    }
}

/// A peer's reason is lost where its reset overtakes it: what it most likely was.
fn handshake_hint(error: io::ErrorKind, over_tls: bool) -> &'static str {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, UnexpectedEof};
    match (over_tls, error) {
        (true, error) if error != ConnectionRefused => {
            "does it run, and does it accept the client certificate in rabbitmq.tls.cert_file, or the lack of one?"
        }
        (false, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof) => {
            "the server ended the handshake: if this is a TLS port, write amqps://"
        }
        _ => "does it run, and is rabbitmq.urls right?",
    }
}

fn describe(uri: &AMQPUri) -> String {
    let scheme = match uri.scheme {
        AMQPScheme::AMQP => "amqp",
        AMQPScheme::AMQPS => "amqps",
    };
    format!("{scheme}://{}:{}, vhost {:?}", uri.authority.host, uri.authority.port, uri.vhost)
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
