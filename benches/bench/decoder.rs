//! The decoder limit and the query limit: PostgreSQL's own programs read the same events and throw them away.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::Child;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use crate::servers::{Database, Servers, unique};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(10);
const START_LIMIT: Duration = Duration::from_secs(30);
/// What `statecast install` creates.
const PUBLICATION: &str = "statecast";

/// `pg_recvlogical` with the relay's plugin and publication, to `/dev/null`.
pub(crate) struct Decoder {
    slot: String,
    child: Child,
}

impl Decoder {
    /// Starts it at the present end; returns when it streams.
    pub(crate) async fn start(servers: &Servers, database: &Database) -> Result<Decoder> {
        let slot = unique("slot").replace('-', "_");
        let create = "SELECT pg_create_logical_replication_slot($1, 'pgoutput')";
        database.client.execute(create, &[&slot]).await.context("create a slot")?;
        let child = servers
            .program("pg_recvlogical", &database.name)?
            .args(["--slot", &slot, "--start", "-f", "/dev/null", "-n"])
            .args(["-o", "proto_version=1", "-o", &format!("publication_names={PUBLICATION}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start pg_recvlogical")?;
        let decoder = Decoder { slot, child };
        let deadline = Instant::now() + START_LIMIT;
        while decoder.sent(&database.client).await?.is_none() {
            ensure!(Instant::now() < deadline, "pg_recvlogical does not stream");
            tokio::time::sleep(LOOK).await;
        }
        Ok(decoder)
    }

    /// Waits until it has sent everything before `end`.
    pub(crate) async fn reached(&mut self, client: &Client, end: PgLsn, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let sent = self.sent(client).await?;
            if sent.is_some_and(|sent| sent >= end) {
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "pg_recvlogical ended");
            ensure!(
                Instant::now() < deadline,
                "pg_recvlogical is at {sent:?} and not at {end} after {limit:?}"
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How far the decoding process has sent.
    async fn sent(&self, client: &Client) -> Result<Option<PgLsn>> {
        let sql =
            "SELECT r.sent_lsn FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid
                   WHERE s.slot_name = $1";
        let row = client.query_opt(sql, &[&self.slot]).await?;
        Ok(row.and_then(|row| row.get(0)))
    }

    /// Ends it and drops its slot.
    pub(crate) async fn stop(mut self, client: &Client) -> Result<()> {
        self.child.kill().await?;
        let deadline = Instant::now() + START_LIMIT;
        let drop =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1";
        while let Err(error) = client.query(drop, &[&self.slot]).await {
            ensure!(Instant::now() < deadline, "a slot cannot be dropped: {error}");
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Where the write-ahead log ends now.
pub(crate) async fn end(client: &Client) -> Result<PgLsn> {
    Ok(client.query_one("SELECT pg_current_wal_insert_lsn()", &[]).await?.get(0))
}

/// `psql` copies the whole outbox to `/dev/null`; how many seconds it takes.
pub(crate) async fn copy(servers: &Servers, database: &Database) -> Result<f64> {
    let began = Instant::now();
    let status = servers
        .program("psql", &database.name)?
        .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null"])
        .args(["-c", "COPY (SELECT * FROM statecast.outbox) TO STDOUT"])
        .stdout(Stdio::null())
        .status()
        .await
        .context("run psql")?;
    ensure!(status.success(), "psql failed: {status}");
    Ok(began.elapsed().as_secs_f64())
}
