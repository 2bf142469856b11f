//! What certificate a server shows, and until when it is valid.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Connection and handshake together.
const TIMEOUT: Duration = Duration::from_secs(5);
/// PostgreSQL's SSLRequest: length and code, <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

/// What is spoken before TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing.
    Nothing,
    /// PostgreSQL's request for TLS.
    Postgres,
}

/// The certificates of a connection that has been made: the server's own first.
pub fn certificates(connection: &rustls::ClientConnection) -> Vec<CertificateDer<'static>> {
    connection.peer_certificates().unwrap_or_default().iter().map(|cert| cert.clone().into_owned()).collect()
}

/// Seconds since the epoch at which the first of them ends.
pub fn not_after_s(certificates: &[CertificateDer<'_>]) -> Option<u64> {
    certificates.iter().filter_map(super::expiry_s).min()
}

/// Makes a TLS connection only to look at the certificates that the server shows, and closes it. `address`: where `host` is,
/// if that is not to be looked up.
///
/// # Errors
/// No connection, or no TLS as `config` wants it.
pub async fn look(
    config: &ClientConfig,
    host: &str,
    address: Option<IpAddr>,
    port: u16,
    before: Before,
) -> io::Result<Vec<CertificateDer<'static>>> {
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let looking = async {
        let mut stream = match address {
            Some(address) => TcpStream::connect((address, port)).await?,
            None => TcpStream::connect((host, port)).await?,
        };
        if before == Before::Postgres {
            stream.write_all(&SSL_REQUEST).await?;
            if stream.read_u8().await? != b'S' {
                return Err(io::Error::other("the server offers no TLS"));
            }
        }
        let connector = TlsConnector::from(Arc::new(config.clone()));
        let mut stream = connector.connect(name, stream).await?;
        let shown = certificates(stream.get_ref().1);
        // Polite: without it some servers log an error.
        let _ = stream.shutdown().await;
        Ok(shown)
    };
    timeout(TIMEOUT, looking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
