//! The life of a temporary slot: created in the background, ended over SQL.
//!
//! The slot ends with its walsender. A walsender that streams notices that its client is gone; one that still waits
//! inside the creation, for write transactions that are open anywhere in the cluster, does not. So whoever abandons or
//! stops ends the walsender over SQL and waits until its slot is gone; a successor ends what a dead leader has left.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::ended::Ended;
use super::names;
use crate::config;
use crate::source::replication::{self, ReplicationError};

/// Creation waits for all open write transactions; so long, at most.
pub(super) const CREATE_LIMIT: Duration = Duration::from_secs(60);
/// For a walsender that was told to end.
pub(super) const GONE_LIMIT: Duration = Duration::from_secs(3);
/// Between two looks.
const GONE_INTERVAL: Duration = Duration::from_millis(10);
/// A row that cannot be published larger than this cannot be streamed either: polling deals with it.
const MESSAGE_ROOM_BYTES: u64 = 1 << 20;

/// A slot with the connection that holds it.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) client: replication::Client,
    pub(super) holder: Holder,
}

/// A walsender and the slot that is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: i32,
    pub(super) slot: String,
    pub(super) application_name: String,
}

/// Known as soon as the walsender is, before anything is asked of it.
pub(super) type HolderCell = Arc<OnceLock<Holder>>;

/// A slot that is being created; dropped, it is given up, and the walsender is still to be ended.
#[derive(Debug)]
pub(super) struct Creation {
    task: AbortOnDropHandle<Result<Created, ReplicationError>>,
    holder: HolderCell,
    began: Instant,
}

impl Creation {
    /// Connects and creates, in a task of its own.
    pub(super) fn start(postgres: config::Postgres, pipeline: &str, event_bytes_max: u64) -> Creation {
        let holder = Arc::new(OnceLock::new());
        let (known, pipeline) = (Arc::clone(&holder), pipeline.to_owned());
        let task = tokio::spawn(async move {
            let application_name = names::application_name(&pipeline);
            let mut client = replication::connect(&postgres, &application_name).await?;
            let pid = client.backend_pid();
            let slot = names::slot(&pipeline, pid);
            let holder = known.get_or_init(|| Holder { pid, slot, application_name }).clone();
            // More than the limit of the source, which ends the walsender as well.
            client.create_temporary_slot(&holder.slot, CREATE_LIMIT * 2).await?;
            let message_max = event_bytes_max.saturating_add(MESSAGE_ROOM_BYTES);
            client.set_message_max(usize::try_from(message_max).unwrap_or(usize::MAX));
            Ok(Created { client, holder })
        });
        Creation { task: AbortOnDropHandle::new(task), holder, began: Instant::now() }
    }

    /// The walsender, once there is one.
    pub(super) fn holder(&self) -> &HolderCell {
        &self.holder
    }

    /// Is it over, one way or the other?
    pub(super) fn is_finished(&self) -> bool {
        self.task.is_finished()
    }

    /// Has it taken too long?
    pub(super) fn is_overdue(&self) -> bool {
        self.began.elapsed() > CREATE_LIMIT
    }

    /// What became of it.
    pub(super) async fn finish(self) -> Result<Created, Ended> {
        match self.task.await {
            Ok(created) => Ok(created?),
            Err(error) => Err(Ended::Panicked(error.to_string())),
        }
    }
}

/// Tells a walsender to end. It is gone when [`is_gone`] says so.
///
/// # Errors
/// SQL.
pub(super) async fn end(client: &Client, holder: &Holder) -> Result<(), tokio_postgres::Error> {
    // The number of a process is given again, and may be that of somebody else's on another server.
    let sql = "
        SELECT pg_terminate_backend(pid)
          FROM pg_stat_activity
         WHERE pid = $1 AND backend_type = 'walsender' AND application_name = $2
           AND datname = current_database()";
    client.execute(sql, &[&holder.pid, &holder.application_name]).await.map(|_| ())
}

/// Is the slot on the server that `client` is connected to? While a failover is under way, or behind a proxy, it may have
/// been created on another one, whose rows are not ours.
///
/// # Errors
/// SQL.
pub(super) async fn is_here(client: &Client, holder: &Holder) -> Result<bool, tokio_postgres::Error> {
    let sql = "SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active_pid = $2)";
    client.query_one(sql, &[&holder.slot, &holder.pid]).await?.try_get(0)
}

/// Are slot and walsender gone?
///
/// # Errors
/// SQL.
pub(super) async fn is_gone(client: &Client, holder: &Holder) -> Result<bool, tokio_postgres::Error> {
    // A walsender without the slot may be about to create it.
    let sql = "
        SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)
           AND NOT EXISTS (SELECT FROM pg_stat_activity
                            WHERE pid = $2 AND backend_type = 'walsender' AND application_name = $3)";
    client.query_one(sql, &[&holder.slot, &holder.pid, &holder.application_name]).await?.try_get(0)
}

/// Ends a walsender and waits until its slot is gone; false if it is still there after [`GONE_LIMIT`].
///
/// # Errors
/// SQL.
pub(super) async fn end_and_wait(client: &Client, holder: &Holder) -> Result<bool, tokio_postgres::Error> {
    let until = Instant::now() + GONE_LIMIT;
    loop {
        end(client, holder).await?;
        if is_gone(client, holder).await? {
            return Ok(true);
        }
        if Instant::now() > until {
            return Ok(false);
        }
        sleep(GONE_INTERVAL).await;
    }
}
