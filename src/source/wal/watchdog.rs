//! What no wait of the source may keep from being seen while there is a slot: how much WAL it retains, whether commits
//! could come to wait for us, whether the publication is still whole.
//!
//! A task of its own, because the source may wait for room at the relay for as long as the broker takes. It ends the
//! walsender, which ends the stream, and says why.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{oneshot, watch};
use tokio::time::sleep;
use tokio_postgres::{Client, Error};
use tokio_util::task::AbortOnDropHandle;

use super::ended::Ended;
use super::facts::{self, Obstacle};
use super::slot::{self, HolderCell};
use super::standby_names;
use crate::metrics::Metrics;

/// Between two looks, at most.
const INTERVAL_MAX: Duration = Duration::from_secs(1);

/// What it watches for.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) application_name: String,
    pub(super) publication: String,
    pub(super) retain_max: u64,
    pub(super) interval: Duration,
}

/// See the module head. Dropped, it watches no more.
#[derive(Debug)]
pub(super) struct Watchdog {
    _task: AbortOnDropHandle<()>,
    verdict: Option<oneshot::Receiver<Ended>>,
    standbys: watch::Receiver<bool>,
}

impl Watchdog {
    /// Watches what `holder` holds as soon as there is one.
    pub(super) fn start(
        client: Arc<Client>,
        holder: HolderCell,
        limits: Limits,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (verdict_tx, verdict) = oneshot::channel();
        // Until it was looked at: the safe assumption.
        let (standbys_tx, standbys) = watch::channel(true);
        let task = tokio::spawn(async move {
            let mut spilled_bytes = 0;
            let ended = loop {
                // What cannot be watched must not go on.
                let found = match look(&client, &holder, &limits).await {
                    Ok(found) => found,
                    Err(error) => break Ended::Sql(error),
                };
                if let Some(look) = found {
                    metrics.wal_retained_bytes.set(i64::try_from(look.retained_bytes).unwrap_or(i64::MAX));
                    metrics.wal_spill_bytes.inc_by(look.spilled_bytes.saturating_sub(spilled_bytes));
                    spilled_bytes = spilled_bytes.max(look.spilled_bytes);
                    standbys_tx.send_if_modified(|s| std::mem::replace(s, look.standbys) != look.standbys);
                    if let Some(ended) = look.ended {
                        break ended;
                    }
                }
                sleep(limits.interval.min(INTERVAL_MAX)).await;
            };
            let _ = verdict_tx.send(ended);
            // If this fails, the source finds the verdict at its next reconcile.
            if let Some(holder) = holder.get() {
                let _ = slot::end(&client, holder).await;
            }
        });
        Watchdog { _task: AbortOnDropHandle::new(task), verdict: Some(verdict), standbys }
    }

    /// Why the stream must end, if it must. Said once.
    pub(super) fn verdict(&mut self) -> Option<Ended> {
        let ended = match self.verdict.as_mut()?.try_recv() {
            Ok(ended) => ended,
            Err(TryRecvError::Empty) => return None,
            Err(TryRecvError::Closed) => Ended::Panicked("nothing watches the stream".to_owned()),
        };
        self.verdict = None;
        Some(ended)
    }

    /// Are there synchronous standbys?
    pub(super) fn standbys(&self) -> watch::Receiver<bool> {
        self.standbys.clone()
    }
}

struct Look {
    /// WAL that the slot keeps the server from removing.
    retained_bytes: u64,
    /// What decoding wrote to disk for this slot so far.
    spilled_bytes: u64,
    standbys: bool,
    ended: Option<Ended>,
}

async fn look(client: &Client, holder: &HolderCell, limits: &Limits) -> Result<Option<Look>, Error> {
    let Some(holder) = holder.get() else {
        return Ok(None);
    };
    // A slot that does not exist yet retains nothing.
    let sql = "
        SELECT coalesce(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), s.restart_lsn), 0)::bigint,
               coalesce((SELECT spill_bytes FROM pg_stat_replication_slots WHERE slot_name = $1), 0),
               current_setting('synchronous_standby_names'),
               coalesce((SELECT sync_priority FROM pg_stat_replication WHERE pid = $2), 0) > 0
          FROM (VALUES (1)) AS one
          LEFT JOIN pg_replication_slots s ON s.slot_name = $1";
    let row = client.query_one(sql, &[&holder.slot, &holder.pid]).await?;
    let bytes = |column| row.try_get::<_, i64>(column).map(|bytes| u64::try_from(bytes).unwrap_or(0));
    let (retained_bytes, spilled_bytes) = (bytes(0)?, bytes(1)?);
    let (names, chosen): (String, bool) = (row.try_get(2)?, row.try_get(3)?);
    let standbys = !names.trim().is_empty();
    let ended = if chosen || standby_names::is_candidate(&names, &limits.application_name) {
        Some(Ended::Obstacle(Obstacle::SynchronousStandby(names)))
    } else if retained_bytes > limits.retain_max {
        Some(Ended::Retaining(retained_bytes))
    } else {
        let found = facts::publication(client, &limits.publication).await?;
        found.obstacle(&limits.publication).map(Ended::Obstacle)
    };
    Ok(Some(Look { retained_bytes, spilled_bytes, standbys, ended }))
}
