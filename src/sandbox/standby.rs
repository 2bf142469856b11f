//! A physical standby of a private PostgreSQL, and its promotion.
//!
//! It is a server of its own: directory, port, processes. It streams through a walsender of its primary, over the
//! primary's socket, so that password and certificate rules never stand in its way. Paused ([`Postgres::pause`]), it is
//! a standby that is connected and does not acknowledge; stopped or killed, it is away, and follows again after
//! [`Postgres::start_again`].
//! See <https://www.postgresql.org/docs/current/warm-standby.html>.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{Account, Home, POLL, free_port, io_error};
use super::{Postgres, SandboxError};

const SERVER: &str = "standby";
/// For a standby to replay its first bytes from its primary, and for a promotion.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);

impl Postgres {
    /// Copies this running server and starts the copy as its hot standby, asynchronous until
    /// `synchronous_standby_names` says otherwise; returns when it streams. `application_name` is its name there and
    /// in `pg_stat_replication`.
    ///
    /// It takes this server's options, not what `ALTER SYSTEM` changed since; nobody is *its* synchronous standby.
    ///
    /// # Errors
    /// This server does not run, `pg_basebackup` fails, or the copy does not start.
    pub async fn standby(&self, application_name: &str) -> Result<Postgres, SandboxError> {
        let home = Home::new(Account::unprivileged(&["postgres"])?)?;
        let mut options = self.options.clone();
        let source = format!(
            "host={} port={} user={} application_name={}",
            self.home.path().display(),
            self.port,
            super::postgres::USER,
            quoted(application_name)
        );
        options.settings.push(("primary_conninfo".to_owned(), source));
        // Promoted, it would wait for a standby that it does not have.
        options.settings.push(("synchronous_standby_names".to_owned(), String::new()));
        let mut standby = Postgres { group: None, home, bin: self.bin.clone(), port: free_port()?, options };
        self.copy_to(&standby).await?;
        standby.home.write("data/postgresql.auto.conf", standby.settings()?, 0o600)?;
        standby.home.write("data/standby.signal", "", 0o600)?;
        standby.start_again().await?;
        self.wait_for_walsender(application_name).await?;
        Ok(standby)
    }

    /// Makes a standby a primary, on a timeline of its own; returns when it takes writes.
    ///
    /// # Errors
    /// It is no standby, or takes too long.
    pub async fn promote(&self) -> Result<(), SandboxError> {
        let client = self.admin("postgres").await?;
        let limit_s = FOLLOW_LIMIT.as_secs();
        let row = client.query_one(&format!("SELECT pg_promote(true, {limit_s})"), &[]).await?;
        if row.try_get(0)? {
            Ok(())
        } else {
            Err(SandboxError::State { server: SERVER, state: "not promoted" })
        }
    }

    async fn copy_to(&self, standby: &Postgres) -> Result<(), SandboxError> {
        let mut command = Command::new(self.bin.join("pg_basebackup"));
        command
            .args(["--no-password", "--no-sync", "--checkpoint=fast", "--wal-method=stream"])
            .arg("--username")
            .arg(super::postgres::USER)
            .arg("--host")
            .arg(self.home.path())
            .arg("--port")
            .arg(self.port.to_string())
            .arg("--pgdata")
            .arg(standby.data())
            .current_dir(standby.home.path())
            .stdin(Stdio::null());
        Account::apply(standby.home.account(), &mut command);
        let mut command = tokio::process::Command::from(command);
        let output = command.kill_on_drop(true).output().await.map_err(io_error("run pg_basebackup"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(SandboxError::Failed { program: "pg_basebackup".to_owned(), output: said });
        }
        Ok(())
    }

    async fn wait_for_walsender(&self, application_name: &str) -> Result<(), SandboxError> {
        let client = self.admin("postgres").await?;
        let sql =
            "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming'";
        let begun = Instant::now();
        while client.query_one(sql, &[&application_name]).await?.try_get::<_, i64>(0)? == 0 {
            if begun.elapsed() > FOLLOW_LIMIT {
                return Err(SandboxError::State { server: SERVER, state: "not streaming" });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// A value in a connection string.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
