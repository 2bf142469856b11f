//! A connection to one of the configured brokers.

use std::time::Duration;

use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
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
    let connecting = Connection::connect_uri_with_config(
        uri,
        properties,
        tls,
        lapin::runtime::default_runtime().map_err(|e| SinkError::Connect {
            server: server.clone(),
            cause: e.to_string(),
            refused: false,
        })?,
    );
    match timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
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
