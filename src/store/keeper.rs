//! The keeper: the only writer of Statecast's own state, on the connection that holds the leader's advisory lock.
//!
//! So a write that succeeds proves that the lock is still held. Ends when the relay drops its sender (everything it sent is
//! written then), or with the error that made a write impossible.
//!
//! A commit that says nothing about rows that are set aside is one statement. Any other is one transaction: the rows first
//! (`parked::write`), then the cursor row, which is fenced; if another relay has taken over, all of it is rolled back.

use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Statement};

use super::cursor::{self, CursorError};
use super::parked::recall::Reading;
use super::parked::requests::Asking;
use super::parked::write::{Deltas, Statements, WriteError};
use crate::contract::{Commit, Committed, FromKeeper, ToKeeper};

/// How often an idle keeper makes sure that its connection, and with it the lock, is alive; and asks what people ask for.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// No answer for this long: the connection is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Plans that do not depend on what the planner believes about a table that may have been empty a minute ago: every statement
/// here walks an index.
pub const SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET jit = off;
     SET enable_seqscan = off; SET enable_bitmapscan = off";

/// Why the keeper ended.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A cursor write failed.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// Rows could not be set aside.
    #[error(transparent)]
    Parked(#[from] WriteError),
    /// Rows that are set aside, or requests, could not be read; or a transaction could not be begun or ended.
    #[error("the leader's connection to PostgreSQL cannot {doing}")]
    Sql {
        /// What was being done.
        doing: &'static str,
        /// What the server said.
        #[source]
        source: tokio_postgres::Error,
    },
    /// The ping failed.
    #[error("the leader's connection to PostgreSQL is gone")]
    Ping(#[source] tokio_postgres::Error),
    /// The server does not answer.
    #[error("PostgreSQL has not answered the leader for {ANSWER_TIMEOUT:?}")]
    Silent,
}

fn during(doing: &'static str) -> impl FnOnce(tokio_postgres::Error) -> KeeperError {
    move |source| KeeperError::Sql { doing, source }
}

/// See the module head.
#[derive(Debug)]
pub struct Keeper {
    client: Client,
    advance: Statement,
    write: Statements,
    recall: Reading,
    asking: Asking,
    pipeline: String,
    epoch: i64,
}

impl Keeper {
    /// A keeper over the leader's connection.
    ///
    /// # Errors
    /// SQL.
    pub async fn new(client: Client, pipeline: &str, epoch: i64) -> Result<Self, KeeperError> {
        let prepare = || during("prepare its statements");
        client.batch_execute(SETTINGS).await.map_err(prepare())?;
        let advance = cursor::prepare_advance(&client, pipeline).await?;
        let write = Statements::prepare(&client).await.map_err(prepare())?;
        let recall = Reading::prepare(&client).await.map_err(prepare())?;
        let asking = Asking::prepare(&client).await.map_err(prepare())?;
        Ok(Keeper { client, advance, write, recall, asking, pipeline: pipeline.to_owned(), epoch })
    }

    /// Answers the relay, in order, until it is done.
    ///
    /// # Errors
    /// A write, a read or a ping failed; the session is over.
    pub async fn run(
        mut self,
        mut commits: Receiver<ToKeeper>,
        committed: Sender<FromKeeper>,
    ) -> Result<(), KeeperError> {
        let mut ping = interval(PING_INTERVAL);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                asked = commits.recv() => {
                    let Some(asked) = asked else { return Ok(()) };
                    let answer = timeout(ANSWER_TIMEOUT, self.answer(asked)).await;
                    let answer = answer.map_err(|_| KeeperError::Silent)??;
                    if committed.send(answer).await.is_err() {
                        return Ok(());
                    }
                }
                _ = ping.tick() => {
                    let answer = timeout(ANSWER_TIMEOUT, self.client.simple_query("")).await;
                    answer.map_err(|_| KeeperError::Silent)?.map_err(KeeperError::Ping)?;
                    let asked = timeout(ANSWER_TIMEOUT, self.asking.asked(&self.client, &self.pipeline)).await;
                    let asked = asked.map_err(|_| KeeperError::Silent)?.map_err(during("read requests"))?;
                    if !asked.is_empty() && committed.send(FromKeeper::Asked(asked)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn answer(&mut self, asked: ToKeeper) -> Result<FromKeeper, KeeperError> {
        match asked {
            ToKeeper::Commit(commit) => self.commit(&commit).await.map(FromKeeper::Committed),
            ToKeeper::Recall(recall) => self
                .recall
                .recall(&self.client, &self.pipeline, &recall)
                .await
                .map(FromKeeper::Recalled)
                .map_err(during("read events that are set aside")),
        }
    }

    /// Writes a commit. What fails leaves nothing behind: a transaction that is dropped is rolled back.
    async fn commit(&mut self, commit: &Commit) -> Result<Committed, KeeperError> {
        let (pipeline, epoch) = (&self.pipeline, self.epoch);
        if commit.set_aside.is_empty() && commit.changes.is_empty() && !commit.unpassed {
            let deltas = Deltas::default();
            let floor_seq =
                cursor::advance(&self.client, &self.advance, pipeline, epoch, commit, &deltas).await?;
            return Ok(Committed { id: commit.id, floor_seq, passed: Vec::new() });
        }
        let transaction = self.client.transaction().await.map_err(during("begin a transaction"))?;
        let deltas = self.write.write(&transaction, pipeline, commit).await?;
        let floor_seq =
            cursor::advance(&transaction, &self.advance, pipeline, epoch, commit, &deltas).await?;
        transaction.commit().await.map_err(during("commit"))?;
        Ok(Committed { id: commit.id, floor_seq, passed: deltas.passed })
    }
}
