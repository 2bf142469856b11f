//! The relay: one loop that owns what is read, in flight and settled.
//!
//! It sees neither SQL nor AMQP, only the messages of [`crate::contract`]. It ends when it is stopped, when `until_idle` is
//! reached, or when one of its peers is gone (their own task knows why). Whatever the end, the [`Ledger`] stays right: it
//! only ever learns of events that are confirmed, or in the table of what is set aside.
//!
//! ```text
//! state      what the loop owns, and what goes to the lanes     aside    keys that are set aside
//! intake     what comes from the source                         routes   routing keys that are paused
//! outcomes   what comes from the lanes                          outage   one event, or the broker?
//! commits    what goes to the keeper, and its answers           keys     order within a key
//! leaving    how keys are set aside                             window   bodies
//! draining   how they come back                                 ledger   the cursor's position
//! requests   what people ask for                                reports  what they are told
//! ```
//!
//! Bounds: bodies by `read_ahead`, events by [`window::SLOTS_MAX`] (in an outage by [`window::OUTAGE_SLOTS_MAX`]), rows settled
//! before their page and rows set aside before the cursor by the size of a bitmap (`seqs`), keys set aside by
//! [`KEYS_MAX`](crate::contract::KEYS_MAX), messages in flight by `window` per lane, one cursor write and one recall on their
//! way, a stop by `grace`.

pub mod aside;
mod commits;
mod draining;
mod intake;
pub mod keys;
mod leaving;
pub mod ledger;
pub mod memory;
pub mod outage;
mod outcomes;
pub mod outgoing;
mod reports;
mod requests;
pub mod routes;
mod seqs;
mod state;
pub mod streamed;
pub mod unpassed;
pub mod window;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::Ordering;
use crate::contract::{
    AsideState, Batch, Fetch, FromKeeper, Input, LaneBatch, Lsn, Missing, Outcome, ToKeeper,
};
use crate::event::assemble::Assembler;
use crate::health::Health;
use crate::metrics::Metrics;

pub use ledger::Ledger;
use state::State;

/// Cursor writes are at least this far apart.
const COMMIT_INTERVAL: Duration = Duration::from_millis(50);
/// Cursor writes that only move `floor_seq` are at least this far apart.
const FLOOR_INTERVAL: Duration = Duration::from_secs(1);
/// Time for answers that are on their way when a part of the session is gone.
const SALVAGE: Duration = Duration::from_secs(1);
/// How often gauges and reasons are brought up to date.
const REPORT_INTERVAL: Duration = Duration::from_millis(500);

/// The relay's ends of its channels.
#[derive(Debug)]
pub struct Peers {
    /// From the source.
    pub input: Receiver<Input>,
    /// To the source.
    pub fetch: Sender<Fetch>,
    /// From the source: rows that were asked for again. Always taken, room or not.
    pub refetched: Receiver<Batch>,
    /// To the source: the answer to each [`Input::Listed`], which it waits for before it sends the next. Holds one.
    pub missing: Sender<Missing>,
    /// To the source: up to where everything that the current stream brought is settled. 0 until it is known, and again when
    /// the first batch of another stream arrives.
    pub settled: watch::Sender<Lsn>,
    /// To each lane; must hold a window of batches, so that the relay never waits for a lane.
    pub lanes: Vec<Sender<LaneBatch>>,
    /// From all lanes.
    pub outcomes: Receiver<Vec<Outcome>>,
    /// To the keeper; must hold a commit and a recall.
    pub commits: Sender<ToKeeper>,
    /// From the keeper.
    pub committed: Receiver<FromKeeper>,
}

/// What the relay is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bytes between source and confirm.
    pub read_ahead: usize,
    /// Messages in flight per lane.
    pub window: usize,
    /// Order within a key.
    pub ordering: Ordering,
    /// End when a window opened by this process is settled and the cursor written.
    pub until_idle: bool,
    /// Time for unconfirmed messages after a stop.
    pub grace: Duration,
    /// Silence of the broker that is worth a word.
    pub confirm_timeout: Duration,
    /// For remedies.
    pub exchange: String,
    /// The broker closed the last session over a message that it did not name: so many messages are sent one at a time
    /// per lane, until the culprit is alone.
    pub careful: usize,
    /// `floor_seq` of the cursor row.
    pub floor_seq: i64,
    /// An event that no queue takes is parked after this.
    pub park_after: Duration,
    /// What is set aside at the start.
    pub aside: AsideState,
}

/// What ends a relay from outside.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// A stop: what is in flight has the grace period.
    pub stop: CancellationToken,
    /// A part of the session is gone: save what can be saved.
    pub abort: CancellationToken,
}

/// How a session's relay ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// Stopped; everything in flight was confirmed, or the grace period is over.
    Stopped,
    /// `until_idle` was reached.
    Idle,
    /// A peer is gone; its own task says why.
    PeerGone(&'static str),
}

/// Runs a session's relay. Not cancel-safe: `tokens` end it.
pub async fn run(
    peers: Peers,
    ledger: &mut Ledger,
    assembler: &Assembler,
    settings: Settings,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    tokens: Tokens,
) -> Ended {
    let settings_grace = settings.grace;
    let mut state = State::new(peers, ledger, assembler, settings, metrics, health);
    let mut report_at = Instant::now();
    let ended = loop {
        let wake = state.next_wake();
        let commit_at = state.commit_at();
        let room = state.has_room();
        tokio::select! {
            biased;
            // 1. Outcomes free memory, keys and the prefix: before anything that adds to them.
            outcomes = state.peers.outcomes.recv() => match outcomes {
                Some(outcomes) => state.on_outcomes(outcomes),
                None => break Ended::PeerGone("sink"),
            },
            // 2. A cursor write is in the database: the next may go. What was recalled waits for nothing else.
            answer = state.peers.committed.recv() => match answer {
                Some(answer) => state.on_keeper(answer),
                None => break Ended::PeerGone("keeper"),
            },
            // 3. A stop comes before new work.
            () = tokens.stop.cancelled() => break Ended::Stopped,
            () = tokens.abort.cancelled() => break Ended::PeerGone("part"),
            // 4. Keys and routing keys whose pause is over.
            () = sleep_until(wake.unwrap_or(report_at)), if wake.is_some() => state.on_wake(),
            // 5. A cursor write is due.
            () = sleep_until(commit_at.unwrap_or(report_at)), if commit_at.is_some() => state.commit(),
            // 6. What has waited for long; gauges and reasons.
            () = sleep_until(report_at) => {
                state.sweep();
                state.report();
                report_at = Instant::now() + REPORT_INTERVAL;
            }
            // 7. Bodies that were let go come back: what waits for them may be what fills the room.
            Some(batch) = state.peers.refetched.recv() => state.on_refetched(batch),
            // 8. New work last, and only while there is room for it.
            input = state.peers.input.recv(), if room => match input {
                Some(input) => if let Err(gone) = state.on_input(input) {
                    break Ended::PeerGone(gone);
                },
                None => break Ended::PeerGone("source"),
            },
        }
        if state.is_idle() {
            break Ended::Idle;
        }
        if let Err(gone) = state.dispatch() {
            break Ended::PeerGone(gone);
        }
        if state.is_relieved() {
            break Ended::PeerGone("list of keys that are set aside");
        }
    };
    let grace =
        if matches!(ended, Ended::PeerGone(_)) { settings_grace.min(SALVAGE) } else { settings_grace };
    state.wind_down(grace).await;
    ended
}
