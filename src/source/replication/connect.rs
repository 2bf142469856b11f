//! From configuration to a socket: hosts in order, TCP settings and TLS as for SQL, and the hash of the server's
//! certificate for channel binding (RFC 5929, `tls-server-end-point`).

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256, Sha384, Sha512};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::config::{ChannelBinding, Host, LoadBalanceHosts, SslNegotiation};
use x509_cert::der::Decode;
use x509_cert::der::oid::db::rfc5912;

use super::authentication::{self, Login, Session};
use super::error::ReplicationError;
use super::wire::{Socket, Wire};
use super::{STARTUP_MAX_BYTES, WAL_SENDER_TIMEOUT};
use crate::postgres::{CONNECT_TIMEOUT, Settings, server_keepalives};
use crate::tls;

/// One entry of the list of hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// For the certificate and for messages.
    name: Option<String>,
    place: Place,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Name(String),
    Address(IpAddr),
    Socket(PathBuf),
}

impl Target {
    fn at(&self) -> String {
        match (&self.name, &self.place) {
            (Some(name), _) | (None, Place::Name(name)) => format!("{name}:{}", self.port),
            (None, Place::Address(address)) => format!("{address}:{}", self.port),
            (None, Place::Socket(path)) => format!("{}:{}", path.display(), self.port),
        }
    }
}

/// The hosts in the order in which they are tried.
pub(super) fn targets(config: &tokio_postgres::Config) -> Result<Vec<Target>, ReplicationError> {
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let count = hosts.len().max(addresses.len());
    if count == 0 {
        return Err(ReplicationError::Hosts("names no host"));
    }
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        return Err(ReplicationError::Hosts("host and hostaddr differ in number"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(ReplicationError::Hosts("hosts and ports differ in number"));
    }
    let mut targets = Vec::with_capacity(count);
    for i in 0..count {
        let port = ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let name = match hosts.get(i) {
            Some(Host::Tcp(name)) => Some(name.clone()),
            _ => None,
        };
        let place = match (addresses.get(i), hosts.get(i)) {
            (Some(address), _) => Place::Address(*address),
            (None, Some(Host::Tcp(name))) => Place::Name(name.clone()),
            (None, Some(Host::Unix(path))) => Place::Socket(path.clone()),
            (None, None) => continue,
        };
        targets.push(Target { name, place, port });
    }
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        fastrand::shuffle(&mut targets);
    }
    Ok(targets)
}

/// Logs in to the first address of `target` that lets us. Each address has [`CONNECT_TIMEOUT`] for everything.
pub(super) async fn open(
    target: &Target,
    settings: &Settings,
    application_name: &str,
) -> Result<(Wire, Session), ReplicationError> {
    let at = target.at();
    let failed = |source| ReplicationError::Connect { at: at.clone(), source };
    let addresses = match &target.place {
        Place::Socket(path) => {
            let begun = UnixStream::connect(path.join(format!(".s.PGSQL.{}", target.port)));
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let socket = within(deadline, &at, "connecting", begun).await?.map_err(failed)?;
            if settings.tls.is_some() {
                return Err(failed(io::Error::other("no TLS over a Unix socket: name a host")));
            }
            return login(Box::new(socket), None, &at, settings, application_name, deadline).await;
        }
        Place::Address(address) => vec![(*address, target.port).into()],
        Place::Name(name) => {
            let found = lookup_host((name.as_str(), target.port));
            let deadline = Instant::now() + CONNECT_TIMEOUT;
            let mut found: Vec<_> =
                within(deadline, &at, "looking up its name", found).await?.map_err(failed)?.collect();
            if settings.config.get_load_balance_hosts() == LoadBalanceHosts::Random {
                fastrand::shuffle(&mut found);
            }
            found
        }
    };
    let mut last = failed(io::Error::new(io::ErrorKind::InvalidInput, "the name has no address"));
    for address in addresses {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let opened = async {
            let socket = within(deadline, &at, "connecting", TcpStream::connect(address)).await?;
            let socket = socket.and_then(|socket| tune(socket, &settings.config)).map_err(failed)?;
            let Some(tls) = &settings.tls else {
                return login(Box::new(socket), None, &at, settings, application_name, deadline).await;
            };
            let negotiation = settings.config.get_ssl_negotiation();
            let begun = encrypt(socket, tls, negotiation, target.name.as_deref(), &at);
            let (socket, end_point) = within(deadline, &at, "setting up TLS", begun).await??;
            login(socket, end_point, &at, settings, application_name, deadline).await
        };
        match opened.await {
            Ok(pair) => return Ok(pair),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn within<T>(
    deadline: Instant,
    at: &str,
    doing: &'static str,
    future: impl Future<Output = T>,
) -> Result<T, ReplicationError> {
    timeout_at(deadline, future).await.map_err(|_| ReplicationError::Timeout {
        at: at.to_owned(),
        doing,
        limit: CONNECT_TIMEOUT,
    })
}

/// What tokio-postgres sets on its sockets.
fn tune(socket: TcpStream, config: &tokio_postgres::Config) -> io::Result<TcpStream> {
    socket.set_nodelay(true)?;
    let raw = SockRef::from(&socket);
    #[cfg(target_os = "linux")]
    if let Some(limit) = config.get_tcp_user_timeout() {
        raw.set_tcp_user_timeout(Some(*limit))?;
    }
    if config.get_keepalives() {
        let mut keepalive = TcpKeepalive::new().with_time(config.get_keepalives_idle());
        if let Some(interval) = config.get_keepalives_interval() {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(retries) = config.get_keepalives_retries() {
            keepalive = keepalive.with_retries(retries);
        }
        raw.set_tcp_keepalive(&keepalive)?;
    }
    Ok(socket)
}

async fn encrypt(
    mut socket: TcpStream,
    config: &ClientConfig,
    negotiation: SslNegotiation,
    name: Option<&str>,
    at: &str,
) -> Result<(Box<dyn Socket>, Option<Vec<u8>>), ReplicationError> {
    let failed = |source| ReplicationError::Connect { at: at.to_owned(), source };
    if negotiation == SslNegotiation::Postgres {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        socket.write_all(&request).await.map_err(failed)?;
        // One byte and no more: what a stranger puts behind it must not pass for a part of the encrypted stream.
        if socket.read_u8().await.map_err(failed)? != b'S' {
            return Err(ReplicationError::NotOffered { at: at.to_owned() });
        }
    }
    let name =
        name.ok_or_else(|| failed(io::Error::other("no host name for TLS: give host with hostaddr")))?;
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config.clone()));
    let socket = connector.connect(name, socket).await.map_err(|source| handshake(at, source))?;
    let certificate = socket.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let end_point = certificate.and_then(end_point_hash);
    Ok((Box::new(socket), end_point))
}

fn handshake(at: &str, source: io::Error) -> ReplicationError {
    match tls::remedy(&source, "postgres.tls") {
        Some(remedy) => ReplicationError::Handshake { at: at.to_owned(), remedy, source },
        None => ReplicationError::Connect { at: at.to_owned(), source },
    }
}

/// RFC 5929, section 4.1: the certificate, hashed as its signature is, but at least with SHA-256. Signatures without one
/// hash of their own (Ed25519, RSA-PSS) have no binding.
fn end_point_hash(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let signature = x509_cert::Certificate::from_der(certificate).ok()?.signature_algorithm.oid;
    Some(match signature {
        rfc5912::SHA_1_WITH_RSA_ENCRYPTION
        | rfc5912::SHA_256_WITH_RSA_ENCRYPTION
        | rfc5912::ECDSA_WITH_SHA_256 => Sha256::digest(certificate).to_vec(),
        rfc5912::SHA_384_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_384 => {
            Sha384::digest(certificate).to_vec()
        }
        rfc5912::SHA_512_WITH_RSA_ENCRYPTION | rfc5912::ECDSA_WITH_SHA_512 => {
            Sha512::digest(certificate).to_vec()
        }
        _ => return None,
    })
}

async fn login(
    socket: Box<dyn Socket>,
    end_point: Option<Vec<u8>>,
    at: &str,
    settings: &Settings,
    application_name: &str,
    deadline: Instant,
) -> Result<(Wire, Session), ReplicationError> {
    let config = &settings.config;
    let user = match config.get_user() {
        Some(user) => Cow::Borrowed(user),
        None => Cow::Owned(whoami::username().map_err(|error| ReplicationError::Authentication {
            at: at.to_owned(),
            reason: format!("postgres.url names no user, and this process's has no name ({error})"),
        })?),
    };
    let binding = config.get_channel_binding();
    let login = Login {
        user: &user,
        password: config.get_password(),
        end_point: end_point.filter(|_| binding != ChannelBinding::Disable),
        binding_required: binding == ChannelBinding::Require,
    };
    let wal_sender_timeout = format!("{}ms", WAL_SENDER_TIMEOUT.as_millis());
    let mut parameters = vec![
        ("user", login.user),
        ("replication", "database"),
        ("client_encoding", "UTF8"),
        // Values are sent as text: in one format, whatever role and database prefer.
        ("datestyle", "ISO"),
        ("timezone", "UTC"),
        ("intervalstyle", "postgres"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("wal_sender_timeout", &wal_sender_timeout),
        ("application_name", application_name),
    ];
    // The server's end while nothing is on its way. While something is, `wal_sender_timeout` finds a client that has
    // vanished, and leaves alone one that does not read for a while.
    let keepalives = server_keepalives();
    parameters.extend(keepalives.iter().map(|(name, value)| (*name, value.as_str())));
    parameters.extend(config.get_dbname().map(|name| ("database", name)));
    parameters.extend(config.get_options().map(|options| ("options", options)));
    let mut wire = Wire::new(socket, at.to_owned(), STARTUP_MAX_BYTES);
    let started = authentication::start(&mut wire, &login, &parameters);
    match within(deadline, at, "logging in", started).await? {
        Ok(session) => Ok((wire, session)),
        // With TLS 1.3 the server judges our certificate after the handshake is done for us.
        Err(ReplicationError::Broken { source, .. }) => Err(handshake(at, source)),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(url: &str) -> Result<Vec<String>, ReplicationError> {
        let config: tokio_postgres::Config = url.parse().unwrap();
        Ok(targets(&config)?.iter().map(Target::at).collect())
    }

    #[test]
    fn hosts_in_order_with_their_ports() {
        assert_eq!(listed("postgres://u@one:5433,two:5434/d").unwrap(), ["one:5433", "two:5434"]);
        assert_eq!(listed("host=one,two port=5440 user=u").unwrap(), ["one:5440", "two:5440"]);
        assert_eq!(listed("host=/run/pg user=u").unwrap(), ["/run/pg:5432"]);
        assert_eq!(listed("hostaddr=::1,127.0.0.1 user=u").unwrap(), ["::1:5432", "127.0.0.1:5432"]);
        assert_eq!(listed("host=a hostaddr=127.0.0.1 user=u").unwrap(), ["a:5432"]);
        assert!(matches!(listed("user=u"), Err(ReplicationError::Hosts(_))));
        assert!(matches!(listed("host=a,b hostaddr=127.0.0.1 user=u"), Err(ReplicationError::Hosts(_))));
    }

    #[test]
    fn the_end_point_is_hashed_as_it_was_signed() {
        let key = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap();
        let hash = |key: &rcgen::KeyPair| {
            let made = rcgen::CertificateParams::new(vec!["h".to_owned()]).unwrap().self_signed(key).unwrap();
            end_point_hash(made.der())
        };
        assert_eq!(hash(&key(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap().len(), 32);
        assert_eq!(hash(&key(&rcgen::PKCS_ECDSA_P384_SHA384)).unwrap().len(), 48);
        assert!(hash(&key(&rcgen::PKCS_ED25519)).is_none());
        assert!(end_point_hash(&CertificateDer::from(vec![1, 2, 3])).is_none());
    }
}
