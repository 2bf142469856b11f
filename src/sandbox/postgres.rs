//! A private PostgreSQL.
//!
//! Superuser `statecast`, UTF-8 and C locale, `wal_level = logical`, on `127.0.0.1` and on a socket in its directory
//! (which the sandbox itself uses, so that password and certificate rules never stand in its way).
//! Stops: [`Postgres::stop_fast`] (SIGINT, checkpoint), [`Postgres::stop_immediate`] (SIGQUIT, like a crash of the
//! server: recovery follows), [`Postgres::kill9`] (SIGKILL for the postmaster and every backend). The data stay for
//! [`Postgres::start_again`]. [`Postgres::standby`] gives it a physical standby. See <https://www.postgresql.org/docs/current/server-shutdown.html>.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio_postgres::NoTls;

use super::process::{Account, Group, Home, POLL, find_program, free_port, io_error, tail};
use super::{SandboxError, ServerTls};

const SERVER: &str = "PostgreSQL";
pub(super) const USER: &str = "statecast";
const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a dropped server may take for an immediate stop before it is killed.
const DROP_LIMIT: Duration = Duration::from_secs(3);

/// How a private PostgreSQL is set up.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Further `postgresql.conf` settings; they win over the sandbox's own.
    pub settings: Vec<(String, String)>,
    /// Flush to the disk. Off by default: a killed process loses nothing by that, only a crashed machine does.
    pub fsync: bool,
    /// Ask for this password (SCRAM-SHA-256) instead of trusting `127.0.0.1`.
    pub password: Option<String>,
    /// Accept TLS connections only.
    pub tls: Option<ServerTls>,
}

/// A private PostgreSQL; dropped, it is stopped and its data removed.
#[derive(Debug)]
pub struct Postgres {
    pub(super) group: Option<Group>,
    pub(super) home: Home,
    pub(super) bin: PathBuf,
    pub(super) port: u16,
    pub(super) options: PostgresOptions,
}

impl Postgres {
    /// Creates and starts a server; returns when it answers.
    pub async fn start(options: PostgresOptions) -> Result<Postgres, SandboxError> {
        let bin = bin_dir()?;
        let home = Home::new(Account::unprivileged(&["postgres"])?)?;
        let mut server = Postgres { group: None, home, bin, port: free_port()?, options };
        server.init()?;
        server.start_again().await?;
        if let Some(password) = &server.options.password {
            let client = server.admin("postgres").await?;
            client
                .batch_execute(&format!("ALTER ROLE {USER} PASSWORD '{}'", password.replace('\'', "''")))
                .await?;
        }
        Ok(server)
    }

    /// URL of a database, for [`Postgres::port`] on `127.0.0.1`.
    pub fn url(&self, database: &str) -> String {
        let password =
            self.options.password.as_ref().map(|password| format!(":{password}")).unwrap_or_default();
        let tls = if self.options.tls.is_some() { "?sslmode=require" } else { "" };
        let host = if self.options.tls.is_some() { "localhost" } else { "127.0.0.1" };
        format!("postgres://{USER}{password}@{host}:{}/{database}{tls}", self.port)
    }

    /// The TCP port; it stays over restarts.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server's own directory, gone when the server is dropped.
    pub fn directory(&self) -> &Path {
        self.home.path()
    }

    /// The postmaster's process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.group.as_ref().map(Group::id)
    }

    /// Creates an empty database and returns its URL.
    pub async fn create_database(&self, name: &str) -> Result<String, SandboxError> {
        let client = self.admin("postgres").await?;
        client.batch_execute(&format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""))).await?;
        Ok(self.url(name))
    }

    /// Kills the postmaster and every backend, as a crash of the machine would (the operating system keeps running,
    /// so that what was written is there even without `fsync`).
    pub fn kill9(&mut self) {
        if let Some(mut group) = self.group.take() {
            group.kill();
        }
    }

    /// `immediate` shutdown: backends end at once, nothing is flushed, recovery follows at the next start.
    pub async fn stop_immediate(&mut self) -> Result<(), SandboxError> {
        self.stop(Signal::QUIT).await
    }

    /// `fast` shutdown: open transactions are rolled back, a checkpoint is written, walsenders are waited for.
    pub async fn stop_fast(&mut self) -> Result<(), SandboxError> {
        self.stop(Signal::INT).await
    }

    /// Starts a stopped or killed server with its data, on its port; returns when it answers.
    pub async fn start_again(&mut self) -> Result<(), SandboxError> {
        if self.group.as_mut().is_some_and(|group| group.exited().is_none()) {
            return Err(SandboxError::State { server: SERVER, state: "already running" });
        }
        let log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log_path())
            .map_err(io_error("open PostgreSQL's log"))?;
        let errors = log.try_clone().map_err(io_error("open PostgreSQL's log"))?;
        let mut command = Command::new(self.bin.join("postgres"));
        command.arg("-D").arg(self.data()).current_dir(self.home.path()).stdout(log).stderr(errors);
        Account::apply(self.home.account(), &mut command);
        self.group = Some(Group::spawn(command, "QUIT", self.home.path())?);
        self.ready().await
    }

    /// [`Postgres::stop_fast`], then [`Postgres::start_again`].
    pub async fn restart(&mut self) -> Result<(), SandboxError> {
        self.stop_fast().await?;
        self.start_again().await
    }

    /// Freezes every process of the server (SIGSTOP): connections stay open, nothing answers.
    pub fn pause(&mut self) {
        if let Some(group) = &mut self.group {
            group.pause();
        }
    }

    /// Ends [`Postgres::pause`].
    pub fn resume(&mut self) {
        if let Some(group) = &mut self.group {
            group.resume();
        }
    }

    /// The server's log.
    pub fn log_path(&self) -> PathBuf {
        self.home.path().join("postgres.log")
    }

    /// The whole log.
    pub fn read_log(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(super) fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    fn init(&self) -> Result<(), SandboxError> {
        let mut command = Command::new(self.bin.join("initdb"));
        command
            .args([
                "--username",
                USER,
                "--auth",
                "trust",
                "--encoding",
                "UTF8",
                "--locale",
                "C",
                "--no-sync",
                "-D",
            ])
            .arg(self.data())
            .current_dir(self.home.path())
            .stdin(Stdio::null());
        Account::apply(self.home.account(), &mut command);
        let output = command.output().map_err(io_error("run initdb"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(SandboxError::Failed { program: "initdb".to_owned(), output: said });
        }
        self.home.write("data/postgresql.auto.conf", self.settings()?, 0o600)?;
        self.home.write("data/pg_hba.conf", self.access(), 0o600)?;
        Ok(())
    }

    pub(super) fn settings(&self) -> Result<String, SandboxError> {
        let socket = self.home.path().to_string_lossy().into_owned();
        let fsync = if self.options.fsync { "on" } else { "off" };
        let port = self.port.to_string();
        let mut settings: Vec<(String, String)> = [
            ("listen_addresses", "127.0.0.1"),
            ("port", &port),
            ("unix_socket_directories", &socket),
            ("wal_level", "logical"),
            ("max_wal_senders", "20"),
            ("max_replication_slots", "20"),
            ("max_prepared_transactions", "200"),
            ("max_connections", "300"),
            // Files in the data directory, so that a killed server leaves nothing in /dev/shm.
            ("dynamic_shared_memory_type", "mmap"),
            ("password_encryption", "scram-sha-256"),
            ("logging_collector", "off"),
            ("log_line_prefix", "%m [%p] %q%a "),
            ("fsync", fsync),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        if let Some(tls) = &self.options.tls {
            let files = [("ssl_cert_file", &tls.cert), ("ssl_key_file", &tls.key), ("ssl_ca_file", &tls.ca)];
            settings.push(("ssl".to_owned(), "on".to_owned()));
            for (name, from) in files {
                let path = self.home.copy(from, name)?;
                settings.push((name.to_owned(), path.to_string_lossy().into_owned()));
            }
        }
        settings.extend(self.options.settings.iter().cloned());
        // In the file a backslash escapes, other than in SQL.
        let value = |value: &str| value.replace('\\', "\\\\").replace('\'', "''");
        let line = |(name, text): &(String, String)| format!("{name} = '{}'\n", value(text));
        Ok(settings.iter().map(line).collect())
    }

    fn access(&self) -> String {
        let kind = if self.options.tls.is_some() { "hostssl" } else { "host" };
        let method = if self.options.password.is_some() { "scram-sha-256" } else { "trust" };
        let required = self.options.tls.as_ref().is_some_and(|tls| tls.client_cert_required);
        let clientcert = if required { " clientcert=verify-full" } else { "" };
        let rule = format!("127.0.0.1/32 {method}{clientcert}");
        format!(
            "local all all trust\nlocal replication all trust\n{kind} all all {rule}\n{kind} replication all {rule}\n"
        )
    }

    pub(super) async fn admin(&self, database: &str) -> Result<tokio_postgres::Client, SandboxError> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.home.path()).port(self.port).user(USER).dbname(database);
        config.connect_timeout(CONNECT_LIMIT);
        let (client, connection) = config.connect(NoTls).await?;
        // Ends when the client is dropped.
        tokio::spawn(connection);
        Ok(client)
    }

    async fn ready(&mut self) -> Result<(), SandboxError> {
        let begun = Instant::now();
        loop {
            let ended = self.group.as_mut().and_then(Group::exited);
            let reason = match (ended, self.answers().await) {
                (_, Ok(())) => return Ok(()),
                (Some(status), _) => status.to_string(),
                (None, Err(_)) if begun.elapsed() < START_LIMIT => {
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                (None, Err(reason)) => reason,
            };
            let log = tail(&self.log_path());
            return Err(SandboxError::NotReady { server: SERVER, waited: begun.elapsed(), reason, log });
        }
    }

    async fn answers(&self) -> Result<(), String> {
        let answer = async {
            let client = self.admin("postgres").await?;
            client.simple_query("SELECT 1").await.map_err(SandboxError::from)
        };
        match tokio::time::timeout(CONNECT_LIMIT, answer).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(SandboxError::Sql(error))) => Err(format!("{error:?}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    async fn stop(&mut self, signal: Signal) -> Result<(), SandboxError> {
        let Some(group) = &mut self.group else {
            return Err(SandboxError::State { server: SERVER, state: "not running" });
        };
        group.signal(signal);
        if !group.wait_async(STOP_LIMIT).await {
            return Err(SandboxError::NotStopped { server: SERVER, waited: STOP_LIMIT });
        }
        self.group = None;
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut group) = self.group.take() {
            // An immediate stop first: it also gives back the System V segment, which SIGKILL would leave.
            group.resume();
            group.signal(Signal::QUIT);
            group.wait(DROP_LIMIT);
        }
    }
}

/// The newest installed version's programs.
fn bin_dir() -> Result<PathBuf, SandboxError> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    let dirs: Vec<PathBuf> = versions.into_iter().rev().map(|(_, dir)| dir).collect();
    let initdb = find_program("initdb", &dirs);
    // A link on the PATH leads to the directory that also holds `postgres`.
    initdb
        .and_then(|file| file.canonicalize().ok())
        .and_then(|file| file.parent().map(Path::to_owned))
        .filter(|dir| dir.join("postgres").is_file())
        .ok_or(SandboxError::Missing {
            program: "PostgreSQL",
            install: "PostgreSQL 14 or newer (Debian: postgresql)",
        })
}
