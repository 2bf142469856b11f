//! The keeper: the only writer of Statecast's own state, on the connection that holds the leader's advisory lock.
//!
//! It renews the lease, and with it keeps the gate open. Ends when the relay drops its sender (everything it sent is
//! written then, and the lease is given back), or with the error that made a write impossible. Either way the gate is shut.
//!
//! A commit that says nothing about rows that are set aside is one statement. Any other is one transaction: it locks the
//! cursor row, then come the rows (`parked::write`), then the cursor row's new values. Both ends are fenced; if another relay
//! has taken over, all of it is rolled back.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::{Client, Statement};

use super::cursor::{self, CursorError};
use super::lease;
use super::parked::recall::Reading;
use super::parked::requests::Asking;
use super::parked::write::{Deltas, Statements, WriteError};
use crate::contract::{Commit, Committed, FromKeeper, ToKeeper};
use crate::gate::{Gate, Moment, RENEW_INTERVAL};

/// No answer for this long: the connection is taken for dead.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For the relay to hear what it has not asked for.
const TELL_TIMEOUT: Duration = Duration::from_millis(200);

/// Plans that do not depend on what the planner believes about a table that may have been empty a minute ago: every statement
/// here walks an index.
pub const SETTINGS: &str = "SET plan_cache_mode = force_generic_plan; SET jit = off;
     SET enable_seqscan = off; SET enable_bitmapscan = off";

/// Why the keeper ended.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// A write failed.
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
    hold: Statement,
    renew: Statement,
    write: Statements,
    recall: Reading,
    asking: Asking,
    pipeline: String,
    epoch: i64,
    gate: Arc<Gate>,
}

impl Keeper {
    /// A keeper over the leader's connection, which keeps `gate` open.
    ///
    /// # Errors
    /// SQL.
    pub async fn new(
        client: Client,
        pipeline: &str,
        epoch: i64,
        gate: Arc<Gate>,
    ) -> Result<Self, KeeperError> {
        let prepare = || during("prepare its statements");
        client.batch_execute(SETTINGS).await.map_err(prepare())?;
        let advance = cursor::prepare_advance(&client, pipeline).await?;
        let hold = cursor::prepare_hold(&client, pipeline).await?;
        let renew = lease::prepare_renew(&client, pipeline).await?;
        let write = Statements::prepare(&client).await.map_err(prepare())?;
        let recall = Reading::prepare(&client).await.map_err(prepare())?;
        let asking = Asking::prepare(&client).await.map_err(prepare())?;
        Ok(Keeper {
            client,
            advance,
            hold,
            renew,
            write,
            recall,
            asking,
            pipeline: pipeline.to_owned(),
            epoch,
            gate,
        })
    }

    /// Answers the relay, in order, until it is done.
    ///
    /// # Errors
    /// A write or a read failed; the session is over.
    pub async fn run(
        mut self,
        commits: Receiver<ToKeeper>,
        committed: Sender<FromKeeper>,
    ) -> Result<(), KeeperError> {
        let ended = self.serve(commits, committed).await;
        // Whoever leads next, nothing more of ours may go out.
        self.gate.shut();
        if ended.is_ok() && !matches!(timeout(ANSWER_TIMEOUT, self.release()).await, Ok(Ok(()))) {
            tracing::debug!("the lease was not given back: it runs out");
        }
        ended
    }

    async fn serve(
        &mut self,
        mut commits: Receiver<ToKeeper>,
        committed: Sender<FromKeeper>,
    ) -> Result<(), KeeperError> {
        let mut renewal = interval(RENEW_INTERVAL);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // 1. The lease, once a second, however much the relay asks: without it the gate shuts. Also tells what people
                // ask for, and what waits for them.
                _ = renewal.tick() => {
                    // Counted from before it was sent: the server may have begun the lease at that moment.
                    let before = Moment::now();
                    let renew = lease::renew(&self.client, Some(&self.renew), &self.pipeline, self.epoch);
                    timeout(ANSWER_TIMEOUT, renew).await.map_err(|_| KeeperError::Silent)??;
                    self.gate.renewed(before);
                    let told = timeout(ANSWER_TIMEOUT, self.asking.tell(&self.client, &self.pipeline)).await;
                    for said in told.map_err(|_| KeeperError::Silent)?.map_err(during("read requests"))? {
                        // Told again if the relay is busy: the next renewal is not kept waiting.
                        if let Ok(Err(_)) = timeout(TELL_TIMEOUT, committed.send(said)).await {
                            return Ok(());
                        }
                    }
                }
                // 2. What the relay asks.
                asked = commits.recv() => {
                    let Some(asked) = asked else { return Ok(()) };
                    let answer = timeout(ANSWER_TIMEOUT, self.answer(asked)).await;
                    let answer = answer.map_err(|_| KeeperError::Silent)??;
                    if committed.send(answer).await.is_err() {
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
        // Sent together, and the lock first.
        let held = cursor::hold(&transaction, &self.hold, pipeline, epoch);
        let (held, deltas) = join(held, self.write.write(&transaction, pipeline, commit)).await;
        held?;
        let deltas = deltas?;
        let floor_seq =
            cursor::advance(&transaction, &self.advance, pipeline, epoch, commit, &deltas).await?;
        transaction.commit().await.map_err(during("commit"))?;
        Ok(Committed { id: commit.id, floor_seq, passed: deltas.passed })
    }

    async fn release(&self) -> Result<(), CursorError> {
        lease::release(&self.client, &self.pipeline, self.epoch).await
    }
}
