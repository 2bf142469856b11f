//! One session: the production relay between scripted parts, started and taken down as the application does it.

use std::future::{Future, poll_fn};
use std::task::Poll;
use std::time::Duration;

use statecast::contract::{Commit, Committed, FromKeeper, Lsn, Recall, ToKeeper};
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
/// Between two looks of the keeper at what people ask for.
const ASK_INTERVAL: Duration = Duration::from_millis(700);
/// Between two looks at how a session goes.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Time for answers after an abort, as the relay has it.
const SALVAGE: Duration = Duration::from_secs(1);

/// Polls of the relay at one moment of time, at most.
const POLLS_MAX: u32 = 10_000;

/// When the keeper dies.
#[derive(Clone, Copy)]
struct Death {
    end: End,
    writes: u32,
    recalls: u32,
}

impl Death {
    /// With this write? Then before or after it.
    fn comes_with(&mut self, commit: &Commit) -> Option<bool> {
        let is_aside = !commit.set_aside.is_empty() || !commit.changes.is_empty();
        let End::Keeper { after, aside, written } = self.end else { return None };
        self.writes += u32::from(is_aside || !aside);
        (self.writes >= after && (is_aside || !aside)).then_some(written)
    }

    /// With this recall?
    fn comes_with_recall(&mut self) -> bool {
        self.recalls += 1;
        matches!(self.end, End::Recall { after } if self.recalls >= after)
    }
}

/// Writes what the relay sends, serves what is set aside, and tells what people ask for. Dies if told so.
async fn keeper(world: Shared, mut asked: Receiver<ToKeeper>, answers: Sender<FromKeeper>, end: End) {
    let mut death = Death { end, writes: 0, recalls: 0 };
    let mut look_at = Instant::now();
    loop {
        let answer = tokio::select! {
            biased;
            asked = asked.recv() => match asked {
                None => return,
                Some(ToKeeper::Commit(commit)) => write(&world, commit, &mut death).await,
                Some(ToKeeper::Recall(recall)) => serve(&world, &recall, &mut death).await,
            },
            () = sleep_until(look_at) => {
                look_at = Instant::now() + ASK_INTERVAL;
                let mut world = world.lock();
                world.person_looks();
                Some(FromKeeper::Asked(world.asked()))
            }
        };
        let Some(answer) = answer else { return };
        let says = !matches!(&answer, FromKeeper::Asked(asked) if asked.is_empty());
        if says && answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn write(world: &Shared, commit: Commit, death: &mut Death) -> Option<FromKeeper> {
    let dies = death.comes_with(&commit);
    let id = commit.id;
    let delay = world.lock().commit(commit);
    sleep(delay).await;
    if dies == Some(false) {
        world.lock().unwritten();
        return None;
    }
    let ((floor_seq, passed), delay) = {
        let mut world = world.lock();
        let max = world.plan.pace.keeper;
        (world.written(), world.delay(max))
    };
    sleep(delay).await;
    if dies == Some(true) {
        return None;
    }
    world.lock().session.unanswered = false;
    Some(FromKeeper::Committed(Committed { id, floor_seq, passed }))
}

async fn serve(world: &Shared, recall: &Recall, death: &mut Death) -> Option<FromKeeper> {
    let delay = {
        let mut world = world.lock();
        let max = world.plan.pace.keeper;
        world.delay(max)
    };
    sleep(delay).await;
    if death.comes_with_recall() {
        world.lock().tally.count("recalls without an answer", 1);
        return None;
    }
    Some(FromKeeper::Recalled(world.lock().recall(recall)))
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
            let (rows, changes) = (&commit.set_aside, &commit.changes);
            format!(
                "commit {}: {} passed, {:?}, {rows:?}, {changes:?}",
                commit.id, commit.passed, commit.position
            )
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
    let (commits, commits_rx) = mpsc::channel(2);
    let (committed_tx, committed) = mpsc::channel(4);
    parts.spawn(keeper(world.clone(), commits_rx, committed_tx, plan.end));

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
    let mut world = world.lock();
    let careful = std::mem::take(&mut world.careful);
    Settings {
        read_ahead: world.plan.read_ahead,
        window: world.plan.window,
        ordering: world.plan.ordering,
        until_idle: plan.until_idle,
        grace: Duration::from_millis(plan.grace_ms),
        confirm_timeout: Duration::from_secs(30),
        exchange: "events".into(),
        careful: if careful { world.plan.window * world.plan.lanes } else { 0 },
        floor_seq: world.outbox.cursor.floor_seq,
        park_after: world.plan.park_after,
        aside: world.aside(),
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
    ledger.begin((7, timeline), &cursor.position, cursor.passed, cursor.max_seq);
    let (over, stop, abort) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let mut parts = JoinSet::new();
    let peers = start(world, plan, &over, &mut parts);
    let tokens = Tokens { stop: stop.clone(), abort: abort.clone() };
    let grace = Duration::from_millis(plan.grace_ms);
    let stop_at = Instant::now() + Duration::from_millis(plan.stop_ms);
    let mut limit = stop_at + grace.max(SALVAGE) + Duration::from_secs(1);
    let mut told = false;
    let mut look_at = Instant::now();
    let ended = {
        let (settings, health) = (settings(world, plan), Health::new());
        let relaying = relay::run(peers, ledger, assembler, settings, metrics, health.clone(), tokens);
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
                () = sleep_until(look_at) => {
                    look_at = Instant::now() + LOOK_INTERVAL;
                    let mut world = world.lock();
                    if health.report().reasons.iter().any(|reason| reason.component == "outage") {
                        world.session.outage_at = Some(Instant::now());
                    }
                    if plan.until_quiet && world.is_quiet() {
                        stop.cancel();
                    }
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
        let (position, passed) = ledger.position();
        self.check_position(&position, passed);
        let cursor = &self.outbox.cursor;
        let behind = (&cursor.position, cursor.passed) != (&position, passed);
        match ended {
            Ended::PeerGone(part) if part.contains("bound") => self.fail(0, (*part).to_owned()),
            Ended::Stopped if in_time && self.session.taken < self.session.confirms.len() => {
                self.fail(0, "stopped in time, and confirms are not taken".into());
            }
            Ended::Stopped if in_time && self.session.lanes.iter().any(|lane| lane.unresolved > 0) => {
                self.fail(0, "stopped in time, and messages are in flight".into());
            }
            Ended::Stopped if behind && in_time => {
                self.fail(0, format!("stopped in time, and the cursor row is behind: {position:?}"));
            }
            Ended::Stopped if in_time => self.check_nothing_unwritten(),
            _ => {}
        }
    }
}
