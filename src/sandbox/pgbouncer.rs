//! A private pgbouncer in front of a private PostgreSQL.
//!
//! It trusts whoever connects to its port on `127.0.0.1`, and connects to the server as the sandbox's own user.
//! See <https://www.pgbouncer.org/config.html>.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use super::postgres::USER;
use super::process::{Account, Group, Home, POLL, find_program, free_port, io_error, tail};
use super::{Postgres, SandboxError};

const SERVER: &str = "pgbouncer";
const START_LIMIT: Duration = Duration::from_secs(20);

/// When pgbouncer takes a server connection back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// When the client is gone.
    Session,
    /// After each transaction: what a session sets, locks or prepares is another one's next.
    Transaction,
}

/// A private pgbouncer; dropped, it is killed and its files removed.
#[derive(Debug)]
pub struct Pgbouncer {
    group: Group,
    home: Home,
    port: u16,
}

impl Pgbouncer {
    /// Starts it in front of `server`, for all of its databases; returns when it answers.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub async fn start(server: &Postgres, mode: PoolMode) -> Result<Pgbouncer, SandboxError> {
        let program =
            find_program("pgbouncer", &[PathBuf::from("/usr/sbin")]).ok_or(SandboxError::Missing {
                program: "pgbouncer",
                install: "pgbouncer (Debian: pgbouncer)",
            })?;
        let home = Home::new(Account::unprivileged(&["postgres"])?)?;
        let port = free_port()?;
        let mode = match mode {
            PoolMode::Session => "session",
            PoolMode::Transaction => "transaction",
        };
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={} user={USER}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = 50\nlogfile = {log}\npidfile = {pid}\n",
            server.port(),
            log = home.path().join("log").display(),
            pid = home.path().join("pid").display(),
        );
        let file = home.write("pgbouncer.ini", settings, 0o600)?;
        let mut command = Command::new(program);
        command.arg("--quiet").arg(file).env_clear().current_dir(home.path());
        let output = std::fs::File::create(home.path().join("output"));
        command.stderr(output.map_err(io_error("open pgbouncer's output"))?);
        Account::apply(home.account(), &mut command);
        let group = Group::spawn(command, "KILL", home.path())?;
        let mut bouncer = Pgbouncer { group, home, port };
        bouncer.ready().await?;
        Ok(bouncer)
    }

    /// URL of a database behind it.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    async fn ready(&mut self) -> Result<(), SandboxError> {
        let (begun, url) = (Instant::now(), self.url("postgres"));
        loop {
            let reason = match tokio_postgres::connect(&url, NoTls).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > START_LIMIT || self.group.exited().is_some() {
                let log = tail(&self.home.path().join("log")) + &tail(&self.home.path().join("output"));
                return Err(SandboxError::NotReady { server: SERVER, waited: begun.elapsed(), reason, log });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
