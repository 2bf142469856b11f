//! A stream that runs: the source's end of it. Dropped, it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::ended::Ended;
use super::slot::Created;
use super::stream::{Ends, Gate, Progress, Reading};
use crate::contract::{Input, Lsn};

/// For the task to end once it was told to; then it is aborted.
const JOIN_LIMIT: Duration = Duration::from_secs(2);

/// What a stream is made of.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    /// Rises by one with each stream of a session.
    pub(super) number: u64,
    /// What to stream.
    pub(super) publication: &'a str,
    /// Bytes of a batch.
    pub(super) batch_bytes_max: usize,
    /// To the relay.
    pub(super) input: Sender<Input>,
    /// From the relay.
    pub(super) settled: watch::Receiver<Lsn>,
    /// For snapshots.
    pub(super) client: Arc<Client>,
    /// There are synchronous standbys.
    pub(super) standbys: watch::Receiver<bool>,
}

/// See the module head.
#[derive(Debug)]
pub(super) struct Running {
    task: AbortOnDropHandle<Ended>,
    gate: watch::Sender<Gate>,
    progress: watch::Receiver<Progress>,
    ask: Arc<Notify>,
    stop: CancellationToken,
    over: CancellationToken,
    slot: String,
}

impl Running {
    /// Starts to stream what the slot holds. Nothing is handed over before `gate` opens.
    pub(super) fn start(created: Created, gate: Gate, parts: Parts<'_>) -> Running {
        let Created { client: replication, holder } = created;
        let (gate, gate_rx) = watch::channel(gate);
        let (progress_tx, progress) = watch::channel(Progress::default());
        let (ask, stop, over) = (Arc::new(Notify::new()), CancellationToken::new(), CancellationToken::new());
        let ends = Ends {
            input: parts.input,
            gate: gate_rx,
            progress: progress_tx,
            settled: parts.settled,
            standbys: parts.standbys,
            ask: Arc::clone(&ask),
            stop: stop.clone(),
        };
        let (slot, publication) = (holder.slot.clone(), parts.publication.to_owned());
        let (client, number, bytes) = (parts.client, parts.number, parts.batch_bytes_max);
        let ending = over.clone().drop_guard();
        let task = tokio::spawn(async move {
            let _ending = ending;
            match replication.start_replication(&slot, PgLsn::from(0), &publication).await {
                Ok(stream) => Reading::new(stream, ends, client, number, bytes).run().await,
                Err(error) => error.into(),
            }
        });
        let task = AbortOnDropHandle::new(task);
        Running { task, gate, progress, ask, stop, over, slot: holder.slot }
    }

    /// Its slot.
    pub(super) fn slot(&self) -> &str {
        &self.slot
    }

    /// Cancelled when the stream has ended by itself.
    pub(super) fn over(&self) -> &CancellationToken {
        &self.over
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// To wait for it.
    pub(super) fn watch(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Asks the server how far it is.
    pub(super) fn ask(&self) {
        self.ask.notify_one();
    }

    /// Changes what may be handed over.
    pub(super) fn set_gate(&self, gate: Gate) {
        self.gate.send_replace(gate);
    }

    /// Ends it, and returns why it had ended before, if it had. From then on it hands nothing over.
    pub(super) async fn stop(mut self) -> Option<Ended> {
        self.stop.cancel();
        match timeout(JOIN_LIMIT, &mut self.task).await {
            Ok(Ok(Ended::Stopped)) => None,
            Ok(Ok(ended)) => Some(ended),
            Ok(Err(error)) => Some(Ended::Panicked(error.to_string())),
            Err(_) => {
                self.task.abort();
                let _ = self.task.await;
                None
            }
        }
    }
}
