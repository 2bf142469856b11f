//! The keeper: the only writer of Statecast's own state, on the connection that holds the leader's advisory lock.
//!
//! So a write that succeeds proves that the lock is still held. Ends when the relay drops its sender (everything it sent is
//! written then), or with the error that made a write impossible.

use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Statement};

use super::cursor::{self, CursorError};
use crate::contract::{Commit, Committed};

/// How often an idle keeper makes sure that its connection, and with it the lock, is alive.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// No answer for this long: the connection is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the keeper ended.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A cursor write failed.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// The ping failed.
    #[error("the leader's connection to PostgreSQL is gone")]
    Ping(#[source] tokio_postgres::Error),
    /// The server does not answer.
    #[error("PostgreSQL has not answered the leader for {ANSWER_TIMEOUT:?}")]
    Silent,
}

/// See the module head.
#[derive(Debug)]
pub struct Keeper {
    client: Client,
    advance: Statement,
    pipeline: String,
    epoch: i64,
}

impl Keeper {
    /// A keeper over the leader's connection.
    ///
    /// # Errors
    /// SQL.
    pub async fn new(client: Client, pipeline: &str, epoch: i64) -> Result<Self, KeeperError> {
        let advance = cursor::prepare_advance(&client, pipeline).await?;
        Ok(Keeper { client, advance, pipeline: pipeline.to_owned(), epoch })
    }

    /// Writes commits until the relay is done.
    ///
    /// # Errors
    /// A write or a ping failed; the session is over.
    pub async fn run(
        self,
        mut commits: Receiver<Commit>,
        committed: Sender<Committed>,
    ) -> Result<(), KeeperError> {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                commit = commits.recv() => {
                    let Some(commit) = commit else { return Ok(()) };
                    let write = cursor::advance(&self.client, &self.advance, &self.pipeline, self.epoch, &commit);
                    let floor_seq = timeout(ANSWER_TIMEOUT, write).await.map_err(|_| KeeperError::Silent)??;
                    if committed.send(Committed { id: commit.id, floor_seq }).await.is_err() {
                        return Ok(());
                    }
                }
                _ = ping.tick() => {
                    let answer = timeout(ANSWER_TIMEOUT, self.client.simple_query("")).await;
                    answer.map_err(|_| KeeperError::Silent)?.map_err(KeeperError::Ping)?;
                }
            }
        }
    }
}
