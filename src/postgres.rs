//! Connections to PostgreSQL: one set of timeouts, keepalives and TLS rules for all of them.
//!
//! A connection is a client and a [`Guard`]; dropping the guard ends the connection at once, so that no session
//! outlives what it belongs to. Errors keep the server's SQLSTATE in their source chain; [`describe`] puts any error
//! on one line without secrets.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use deadpool_postgres::{Connect, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime};
use futures_util::future::{BoxFuture, join_all};
use rustls::ClientConfig;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;

use self::hosts::Failure;

use crate::config::{self, TlsMode};
use crate::tls::{self, TlsError};

mod hosts;

/// For one server to answer, from name lookup to "ready for query"; also for a pool to lend what it has.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Hosts that [`each_host`] asks.
pub const HOSTS_MAX: usize = 32;
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_RETRIES: u32 = 3;
/// Unacknowledged data older than this ends the connection: a peer that vanished is noticed.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for the server's end of a connection, as settings of its session: a backend whose client has vanished lets go
/// of its locks after these times, and not after the hours that systems wait by default.
pub(crate) fn server_keepalives() -> [(&'static str, String); 3] {
    [
        ("tcp_keepalives_idle", KEEPALIVE_IDLE.as_secs().to_string()),
        ("tcp_keepalives_interval", KEEPALIVE_INTERVAL.as_secs().to_string()),
        ("tcp_keepalives_count", KEEPALIVE_RETRIES.to_string()),
    ]
}

/// Sets them. (Not at the start of the connection: poolers refuse what they do not know there.) `tcp_user_timeout` would
/// also end a connection whose client does not read for so long, as that of a stream may do; these clients read always.
async fn set_up(client: &Client) -> Result<(), tokio_postgres::Error> {
    let mut settings = server_keepalives().map(|(name, value)| format!("SET {name} = {value}")).to_vec();
    settings.push(format!("SET tcp_user_timeout = {}", TCP_USER_TIMEOUT.as_millis()));
    client.batch_execute(&settings.join("; ")).await
}

/// Why there is no connection. Says where (never the password) and what to do; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// The URL cannot be parsed. Its text may hold a password, so it is not repeated.
    #[error("postgres.url is not a PostgreSQL URL or key=value string: correct it")]
    Url(#[source] tokio_postgres::Error),
    /// The TLS settings cannot be used.
    #[error("TLS for PostgreSQL cannot be set up (postgres.tls)")]
    Tls(#[from] TlsError),
    /// TLS is required, the server has none.
    #[error(
        "PostgreSQL at {at} does not offer TLS: enable ssl there, or set postgres.tls.mode = \"disable\""
    )]
    NotOffered {
        /// host:port.
        at: String,
        /// The client's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The server refuses plain connections.
    #[error(
        "PostgreSQL at {at} has no pg_hba.conf entry for a connection without TLS: set postgres.tls.mode = \"verify\""
    )]
    Required {
        /// host:port.
        at: String,
        /// The server's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The handshake failed: an unknown CA, another name, an expired certificate.
    #[error("no TLS with PostgreSQL at {at}: {remedy}")]
    Handshake {
        /// host:port.
        at: String,
        /// What to do.
        remedy: String,
        /// The client's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No client certificate, or one that is not this user's.
    #[error(
        "PostgreSQL at {at} asks for a client certificate of this user: set postgres.tls.cert_file and key_file"
    )]
    ClientCertificate {
        /// host:port.
        at: String,
        /// The server's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Name or password refused, or no such database.
    #[error(
        "PostgreSQL at {at} refuses this login: correct user, password or database in postgres.url (or the client certificate, if it asks for one)"
    )]
    Login {
        /// host:port.
        at: String,
        /// The server's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// A standby, or a database that is set to read-only.
    #[error("PostgreSQL at {at} takes no writes: name the primary, or all servers, in postgres.url")]
    ReadOnly {
        /// host:port.
        at: String,
        /// The client's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// Anything else: not there, starting, shutting down.
    #[error("cannot connect to PostgreSQL at {at} (does it run, and is postgres.url right?)")]
    Connect {
        /// host:port.
        at: String,
        /// The client's error.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer in time.
    #[error("no answer from PostgreSQL at {at} within {} s: check the address and the network", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// host:port.
        at: String,
    },
    /// The pool cannot be built.
    #[error("the connection pool cannot be built")]
    Pool(#[source] deadpool_postgres::BuildError),
}

impl PgError {
    /// The server's error code, if it sent one.
    pub fn code(&self) -> Option<&SqlState> {
        match self {
            PgError::NotOffered { source, .. }
            | PgError::Required { source, .. }
            | PgError::Handshake { source, .. }
            | PgError::ClientCertificate { source, .. }
            | PgError::Login { source, .. }
            | PgError::ReadOnly { source, .. }
            | PgError::Connect { source, .. } => source.code(),
            PgError::Url(_) | PgError::Tls(_) | PgError::Timeout { .. } | PgError::Pool(_) => None,
        }
    }

    /// Can only a change of our own configuration help? Everything else may heal while we wait: the server's TLS and
    /// its access rules can be changed on its side.
    pub fn is_permanent(&self) -> bool {
        matches!(self, PgError::Url(_) | PgError::Tls(_) | PgError::Pool(_))
    }
}

/// Runs a connection; dropping it ends the connection.
#[derive(Debug)]
pub struct Guard(JoinHandle<()>);

impl Guard {
    /// Waits until the connection has ended, for whatever reason. Cancel-safe.
    pub async fn closed(&mut self) {
        // An error here means that the task was aborted, which is an end as well.
        let _ = (&mut self.0).await;
    }

    /// Has the connection ended?
    pub fn is_closed(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens one connection to a server that accepts writes. Every host has a time of its own (`hosts`).
///
/// # Errors
///
/// See [`PgError`].
pub async fn connect(cfg: &config::Postgres, application_name: &str) -> Result<(Client, Guard), PgError> {
    let settings = Settings::new(cfg, application_name)?;
    hosts::connect(&settings).await.map_err(|failure| match failure {
        Failure::Said(error) => settings.explain(error),
        Failure::Silent => PgError::Timeout { at: settings.at() },
    })
}

/// Opens one connection to each host of the URL (at most [`HOSTS_MAX`]), whether it accepts writes or not. Each with its
/// address, for messages.
///
/// # Errors
///
/// The settings are unusable; see [`PgError`].
pub async fn each_host(
    cfg: &config::Postgres,
    application_name: &str,
) -> Result<Vec<(String, Result<(Client, Guard), PgError>)>, PgError> {
    let mut hosts = Settings::new(cfg, application_name)?.each();
    hosts.truncate(HOSTS_MAX);
    let connecting = hosts.iter_mut().map(async |settings| {
        settings.config.target_session_attrs(TargetSessionAttrs::Any);
        let connected = hosts::connect(settings).await.map_err(|failure| match failure {
            Failure::Said(error) => settings.explain(error),
            Failure::Silent => PgError::Timeout { at: settings.at() },
        });
        (settings.at(), connected)
    });
    Ok(join_all(connecting).await)
}

/// A pool of such connections. It opens them when they are asked for, so an unreachable server is not noticed here.
///
/// Whoever borrows a connection leaves no `SET` and no advisory lock behind: recycling does not reset them.
///
/// # Errors
///
/// The settings are unusable; see [`PgError`].
pub fn pool(cfg: &config::Postgres, application_name: &str, size: usize) -> Result<Pool, PgError> {
    let settings = Settings::new(cfg, application_name)?;
    let patience = hosts::patience(settings.count());
    let how = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    Pool::builder(Manager::from_connect(settings.config.clone(), Pooled(settings), how))
        .max_size(size)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CONNECT_TIMEOUT))
        .create_timeout(Some(patience))
        .recycle_timeout(Some(CONNECT_TIMEOUT))
        .build()
        .map_err(PgError::Pool)
}

/// Makes a pool's connections as [`connect`] does.
struct Pooled(Settings);

impl Connect for Pooled {
    fn connect(
        &self,
        _: &tokio_postgres::Config,
    ) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), tokio_postgres::Error>> {
        Box::pin(async {
            match hosts::connect(&self.0).await {
                Ok((client, mut guard)) => Ok((client, tokio::spawn(async move { guard.closed().await }))),
                Err(Failure::Said(error)) => Err(error),
                // The client has no error that says so. The pool has: at the end of its `create_timeout`.
                Err(Failure::Silent) => std::future::pending().await,
            }
        })
    }
}

/// What every connection is made of; replication makes its own from the same.
pub(crate) struct Settings {
    pub(crate) config: tokio_postgres::Config,
    /// `None`: plain text.
    pub(crate) tls: Option<ClientConfig>,
}

impl Settings {
    pub(crate) fn new(cfg: &config::Postgres, application_name: &str) -> Result<Settings, PgError> {
        let mut config: tokio_postgres::Config = cfg.url.expose().parse().map_err(PgError::Url)?;
        config
            .application_name(application_name)
            .connect_timeout(CONNECT_TIMEOUT)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_RETRIES)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .target_session_attrs(TargetSessionAttrs::ReadWrite);
        let wants_tls = match cfg.tls.mode {
            TlsMode::Disable => false,
            TlsMode::Verify => true,
            TlsMode::Url => config.get_ssl_mode() == SslMode::Require,
        };
        // Never "prefer": it would fall back to plain text without a word.
        config.ssl_mode(if wants_tls { SslMode::Require } else { SslMode::Disable });
        let tls = if wants_tls { Some(tls::client_config(&cfg.tls)?) } else { None };
        Ok(Settings { config, tls })
    }

    /// The same for each host of the URL alone.
    pub(crate) fn each(&self) -> Vec<Settings> {
        let one = |config| Settings { config, tls: self.tls.clone() };
        hosts::entries(&self.config).into_iter().map(one).collect()
    }

    /// Entries in the list of hosts.
    fn count(&self) -> usize {
        self.config.get_hosts().len().max(self.config.get_hostaddrs().len())
    }

    /// Where it connects to, for messages: all hosts with their ports.
    fn at(&self) -> String {
        let ports = self.config.get_ports();
        let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
        let mut hosts: Vec<String> = Vec::new();
        for (i, host) in self.config.get_hosts().iter().enumerate() {
            hosts.push(match host {
                Host::Tcp(name) => format!("{name}:{}", port(i)),
                Host::Unix(path) => format!("{}:{}", path.display(), port(i)),
            });
        }
        if hosts.is_empty() {
            let addrs = self.config.get_hostaddrs().iter().enumerate();
            hosts.extend(addrs.map(|(i, addr)| format!("{addr}:{}", port(i))));
        }
        if hosts.is_empty() { "(no host in postgres.url)".to_owned() } else { hosts.join(",") }
    }

    fn explain(&self, source: tokio_postgres::Error) -> PgError {
        let at = self.at();
        if let Some(db) = source.as_db_error() {
            let code = db.code();
            let refused = *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION;
            // The sentence ends so in the server's source for a plain connection without a matching entry.
            if refused && self.tls.is_none() && db.message().contains("no encryption") {
                return PgError::Required { at, source };
            }
            // Both sentences of the server that ask for one: none was given, or its name is another user's.
            if refused && db.message().contains("certificate") {
                return PgError::ClientCertificate { at, source };
            }
            let login = [
                &SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                &SqlState::INVALID_PASSWORD,
                &SqlState::INVALID_CATALOG_NAME,
            ];
            if login.contains(&code) {
                return PgError::Login { at, source };
            }
            return PgError::Connect { at, source };
        }
        let text = chain(&source);
        if text.contains(hosts::READ_ONLY) {
            return PgError::ReadOnly { at, source };
        }
        if self.tls.is_some() {
            // tokio-postgres has no kinds to match on, only this text.
            if text.contains("server does not support TLS") {
                return PgError::NotOffered { at, source };
            }
            // With TLS 1.3 the server judges our certificate after the handshake is done for us.
            if let Some(remedy) = tls::remedy(&source, "postgres.tls") {
                return PgError::Handshake { at, remedy, source };
            }
        }
        PgError::Connect { at, source }
    }
}

async fn run<S, T>(connection: tokio_postgres::Connection<S, T>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    // Whoever uses the client sees the end as an error of a query; this line says why it ended.
    if let Err(error) = connection.await {
        tracing::debug!(error = %describe(&error), "PostgreSQL connection ended");
    }
}

/// Any error on one line: its own text, its causes, and what a server said with SQLSTATE, detail and hint.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let (part, last) = match error.downcast_ref::<tokio_postgres::Error>() {
            Some(pg) => match pg.as_db_error() {
                Some(db) => (server_said(db), true),
                None => (pg.to_string(), false),
            },
            None => (error.to_string(), false),
        };
        // Wrappers often repeat what they wrap.
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = if last { None } else { error.source() };
    }
    text.replace(['\n', '\r'], " ")
}

fn server_said(db: &tokio_postgres::error::DbError) -> String {
    let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    if let Some(constraint) = db.constraint().filter(|name| !db.message().contains(name)) {
        let _ = write!(text, "; constraint {constraint}");
    }
    // The detail of a refused value or row shows it, and with it the payload: that stays out of every log.
    let shows_data = ["22", "23"].iter().any(|class| db.code().code().starts_with(class));
    if let Some(detail) = db.detail().filter(|_| !shows_data) {
        let _ = write!(text, "; {detail}");
    }
    if let Some(hint) = db.hint() {
        let _ = write!(text, "; hint: {hint}");
    }
    text
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SecretString, Tls};

    fn settings(url: &str, mode: TlsMode) -> Settings {
        let tls = Tls { mode, ..Tls::default() };
        let cfg = config::Postgres { url: SecretString::new(url.to_owned()), tls };
        Settings::new(&cfg, "statecast/test").unwrap()
    }

    #[test]
    fn tls_only_where_it_was_asked_for() {
        for (url, mode, wants) in [
            ("postgres://u@h/d", TlsMode::Url, SslMode::Disable),
            ("postgres://u@h/d?sslmode=prefer", TlsMode::Url, SslMode::Disable),
            ("postgres://u@h/d?sslmode=disable", TlsMode::Url, SslMode::Disable),
            ("postgres://u@h/d?sslmode=require", TlsMode::Disable, SslMode::Disable),
        ] {
            assert_eq!(settings(url, mode).config.get_ssl_mode(), wants, "{url}");
        }
    }

    #[test]
    fn messages_say_where_without_the_password() {
        let s = settings("postgres://u:hidden@one:5433,two:5434/d", TlsMode::Url);
        assert_eq!(s.at(), "one:5433,two:5434");
        assert_eq!(settings("host=/run/pg user=u password=hidden", TlsMode::Url).at(), "/run/pg:5432");
        let cfg = config::Postgres {
            url: SecretString::new("postgres://u:hidden@h:nope/d".to_owned()),
            tls: Tls::default(),
        };
        let error = Settings::new(&cfg, "x").err().unwrap();
        assert!(!describe(&error).contains("hidden"), "{}", describe(&error));
    }

    #[tokio::test]
    async fn nobody_there_is_one_line() {
        let cfg = config::Postgres {
            url: SecretString::new("postgres://u:hidden@127.0.0.1:1/d".to_owned()),
            tls: Tls::default(),
        };
        let error = connect(&cfg, "statecast/test").await.err().unwrap();
        let line = describe(&error);
        assert!(line.starts_with("cannot connect to PostgreSQL at 127.0.0.1:1 ("), "{line}");
        assert!(!line.contains("hidden") && !line.contains('\n'), "{line}");
        assert!(!error.is_permanent());
    }
}
