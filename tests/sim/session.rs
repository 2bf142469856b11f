//! One session: the production relay between scripted parts, started and taken down as the application does it.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use statecast::contract::{Commit, Committed, Lsn};
use statecast::event::assemble::Assembler;
use statecast::health::Health;
use statecast::relay::{self, Ended, Ledger, Peers, Settings, Tokens};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::broker;
use crate::plan::{End, SessionPlan};
use crate::source::{Ends, Poller};
use crate::world::Shared;

/// Time for the parts to end after the relay has.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for answers after an abort, as the relay has it.
const SALVAGE: Duration = Duration::from_secs(1);

/// Polls of the relay at one moment of time, at most.
const POLLS_MAX: u32 = 10_000;

/// Writes what the relay sends. Dies with a write, before or after it, if told so.
async fn keeper(
    world: Shared,
    mut commits: Receiver<Commit>,
    committed: Sender<Committed>,
    dies: Option<(u32, bool)>,
) {
    let mut number = 0;
    while let Some(commit) = commits.recv().await {
        number += 1;
        let dies = dies.filter(|(after, _)| number >= *after).map(|(_, written)| written);
        let id = commit.id;
        let delay = world.lock().commit(commit);
        sleep(delay).await;
        if dies == Some(false) {
            return world.lock().unwritten();
        }
        let (floor_seq, delay) = {
            let mut world = world.lock();
            let max = world.plan.pace.keeper;
            (world.written(), world.delay(max))
        };
        sleep(delay).await;
        if dies == Some(true) {
            return;
        }
        world.lock().session.unanswered = false;
        if committed.send(Committed { id, floor_seq }).await.is_err() {
            return;
        }
    }
}

/// What the source could tell the server.
async fn feedback(world: Shared, mut settled: watch::Receiver<Lsn>) {
    while settled.changed().await.is_ok() {
        let upto = *settled.borrow_and_update();
        world.lock().check_settled(upto);
    }
}

impl crate::world::World {
    /// A commit has reached the keeper, whose transaction takes its id here.
    fn commit(&mut self, commit: Commit) -> Duration {
        self.take_confirms();
        self.note(0, || {
            format!("commit {}: {} confirmed, {:?}", commit.id, commit.confirmed, commit.position)
        });
        self.check_commit(&commit);
        let w = self.outbox.take_xid();
        self.session.writing = Some((w, commit));
        let max = self.plan.pace.keeper;
        self.delay(max)
    }
}

/// Starts the parts; the relay's ends of their channels.
fn start(world: &Shared, plan: &SessionPlan, over: &CancellationToken, parts: &mut JoinSet<()>) -> Peers {
    let (lanes, window) = {
        let world = world.lock();
        (world.plan.lanes, world.plan.window)
    };
    let (outcomes_tx, outcomes) = mpsc::channel(64);
    let mut lane_ends = Vec::new();
    for lane in 0..lanes {
        let (tx, rx) = mpsc::channel(window);
        lane_ends.push(tx);
        let dies_after = match plan.end {
            End::Lane { lane: dying, after } if dying == lane => Some(after),
            _ => None,
        };
        parts.spawn(broker::lane(world.clone(), lane, rx, outcomes_tx.clone(), dies_after));
    }
    let (commits, commits_rx) = mpsc::channel(1);
    let (committed_tx, committed) = mpsc::channel(1);
    let dies = match plan.end {
        End::Keeper { after, written } => Some((after, written)),
        _ => None,
    };
    parts.spawn(keeper(world.clone(), commits_rx, committed_tx, dies));

    let (input_tx, input) = mpsc::channel(2);
    let (refetched_tx, refetched) = mpsc::channel(1);
    let (fetch, fetch_rx) = mpsc::channel(1);
    let (missing, missing_rx) = mpsc::channel(1);
    let (settled, settled_rx) = watch::channel(0);
    parts.spawn(feedback(world.clone(), settled_rx.clone()));
    let ends = Ends {
        input: input_tx,
        fetch: fetch_rx,
        refetched: refetched_tx,
        missing: missing_rx,
        settled: settled_rx,
        stop: over.clone(),
    };
    let dies_after = match plan.end {
        End::Source { after } => Some(after),
        _ => None,
    };
    let position = world.lock().outbox.cursor.position.clone();
    parts.spawn(Poller::new(world.clone(), ends, dies_after).run(position));
    let lanes = lane_ends;
    Peers { input, fetch, refetched, missing, settled, lanes, outcomes, commits, committed }
}

fn settings(world: &Shared, plan: &SessionPlan) -> Settings {
    let world = world.lock();
    Settings {
        read_ahead: world.plan.read_ahead,
        window: world.plan.window,
        ordering: world.plan.ordering,
        until_idle: plan.until_idle,
        grace: Duration::from_millis(plan.grace_ms),
        confirm_timeout: Duration::from_secs(30),
        exchange: "events".into(),
        careful: 0,
        floor_seq: world.outbox.cursor.floor_seq,
    }
}

/// Fails when the relay is busy and time stands still.
async fn moving(world: &Shared, relaying: impl Future<Output = Ended>) -> Ended {
    let mut relaying = std::pin::pin!(relaying);
    let (mut polls, mut at) = (0, Instant::now());
    poll_fn(|cx| {
        if at != Instant::now() {
            (polls, at) = (0, Instant::now());
        }
        polls += 1;
        if polls > POLLS_MAX {
            world.lock().fail(0, "the relay turns without end".into());
            return Poll::Pending;
        }
        relaying.as_mut().poll(cx)
    })
    .await
}

/// Runs a session; `None` when a promise was broken in it.
pub(crate) async fn run(
    world: &Shared,
    ledger: &mut Ledger,
    assembler: &Assembler,
    plan: &SessionPlan,
) -> Option<Ended> {
    let (cursor, timeline, metrics, failed) = {
        let mut world = world.lock();
        world.begin(plan);
        (world.outbox.cursor.clone(), world.timeline, world.metrics.clone(), world.failed.clone())
    };
    ledger.begin((7, timeline), &cursor.position, cursor.confirmed, cursor.max_seq);
    let (over, stop, abort) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut parts = JoinSet::new();
    let peers = start(world, plan, &over, &mut parts);
    let tokens = Tokens { stop: stop.clone(), abort: abort.clone() };
    let grace = Duration::from_millis(plan.grace_ms);
    let stop_at = Instant::now() + Duration::from_millis(plan.stop_ms);
    let mut limit = stop_at + grace.max(SALVAGE) + Duration::from_secs(1);
    let mut told = false;
    let ended = {
        let settings = settings(world, plan);
        let relaying = relay::run(peers, ledger, assembler, settings, metrics, Health::new(), tokens);
        let mut relaying = std::pin::pin!(moving(world, relaying));
        loop {
            tokio::select! {
                biased;
                () = failed.cancelled() => return None,
                ended = &mut relaying => break ended,
                Some(_) = parts.join_next() => {
                    abort.cancel();
                    limit = limit.min(Instant::now() + grace.max(SALVAGE) + Duration::from_secs(1));
                }
                () = sleep_until(stop_at), if !told => {
                    told = true;
                    if plan.end == End::Abort { abort.cancel() } else { stop.cancel() }
                }
                () = sleep_until(limit) => {
                    world.lock().fail(0, "the relay does not end".into());
                    return None;
                }
            }
        }
    };
    let in_time = plan.end == End::Stop && Instant::now() < stop_at + grace;
    over.cancel();
    let waiting = async { while parts.join_next().await.is_some() {} };
    if timeout(END_TIMEOUT, waiting).await.is_err() {
        parts.shutdown().await;
    }
    world.lock().judge(&ended, ledger, in_time);
    world.lock().fault.is_none().then_some(ended)
}

impl crate::world::World {
    /// After a session: what its ledger says, and what its end means.
    fn judge(&mut self, ended: &Ended, ledger: &Ledger, in_time: bool) {
        self.end();
        let broken = matches!(ended, Ended::PeerGone(_));
        self.tally.count("sessions broken off", usize::from(broken));
        self.note(0, || format!("ended: {ended:?}"));
        let (position, confirmed) = ledger.position();
        self.check_position(&position, confirmed);
        let cursor = &self.outbox.cursor;
        let behind = (&cursor.position, cursor.confirmed) != (&position, confirmed);
        match ended {
            Ended::PeerGone(part) if part.contains("bound") => self.fail(0, (*part).to_owned()),
            Ended::Unpublishable(unpublishable) => self.check_unpublishable(unpublishable),
            Ended::Stopped if in_time && self.session.taken < self.session.confirms.len() => {
                self.fail(0, "stopped in time, and confirms are not taken".into());
            }
            Ended::Stopped if in_time && self.session.lanes.iter().any(|lane| lane.unresolved > 0) => {
                self.fail(0, "stopped in time, and messages are in flight".into());
            }
            Ended::Stopped if behind && in_time => {
                self.fail(0, format!("stopped in time, and the cursor row is behind: {position:?}"));
            }
            _ => {}
        }
    }
}
