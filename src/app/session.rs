//! One session: lead, look, connect, relay, and take everything down again.
//!
//! The order is lease → epoch → fence → read: nothing is read before the fence is ours, nothing is published before
//! nobody else can publish or write the cursor.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::classify::{Class, SessionError, classify};
use super::lead::{self, ANSWER_TIMEOUT, Lead, answered};
use super::{Context, upkeep};
use crate::backend::Part;
use crate::config::Mode;
use crate::contract::{FromKeeper, LaneBatch, ToKeeper};
use crate::event::assemble::Assembler;
use crate::health::Role;
use crate::postgres;
use crate::relay::{self, Ended, Ledger, Peers};
use crate::sink::SinkError;
use crate::sink::lane::Lane;
use crate::source::poll::{self, Ends, Reader};
use crate::source::wal;
use crate::store::cursor::{self, Claim};
use crate::store::keeper::Keeper;
use crate::store::lease;
use crate::store::preflight;

/// Time for the parts to end after the relay has.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// For a lane to open. More than its fence waits for a dead predecessor.
const LANE_TIMEOUT: Duration = Duration::from_secs(90);
/// Messages between source and relay: a page is two.
const INPUT_CAPACITY: usize = 2;
/// Batches of outcomes between lanes and relay.
const OUTCOMES_CAPACITY: usize = 64;
/// Questions to the keeper: a commit and a recall are on their way at most.
const COMMITS_CAPACITY: usize = 2;
/// Its answers, and what people ask for.
const COMMITTED_CAPACITY: usize = 4;
/// A page is this part of the read-ahead, so that several fit in it.
const PAGE_SHARE: u64 = 8;

/// The tasks of a session; when the set is dropped they are aborted.
type Parts = JoinSet<Result<(), SessionError>>;

/// What a session has open besides.
struct Opened {
    lanes: Vec<Lane>,
    source: (Client, postgres::Guard),
}

/// Runs one session.
///
/// # Errors
/// What ended it.
pub async fn run(
    context: &Context,
    ledger: &mut Ledger,
    careful: bool,
    stop: &CancellationToken,
) -> Result<Ended, SessionError> {
    let (lead, opened) = tokio::select! {
        begun = begin(context, ledger) => begun?,
        () = stop.cancelled() => return Ok(Ended::Stopped),
    };
    relay(context, ledger, lead, opened, careful, stop).await
}

/// Up to the first event: leads, opens the lanes, connects the source.
async fn begin(context: &Context, ledger: &mut Ledger) -> Result<(Lead, Opened), SessionError> {
    let name = &context.config.name;
    let lead = lead::lead(context).await?;
    let claim = &lead.claim;
    if claim.new_timeline {
        tracing::warn!("the server's timeline has changed; the sequence was moved ahead");
    }
    ledger.begin(lead.history, &claim.position, claim.passed, claim.max_seq);
    // The broker may take its time over a dead predecessor, and another standby must not take that for ours.
    let opened = tokio::select! {
        biased;
        opened = open(context, &lead) => opened?,
        error = lead.keep(name) => return Err(error),
    };
    Ok((lead, opened))
}

/// Clears away what a former leader has left, takes the fences and connects the source.
async fn open(context: &Context, lead: &Lead) -> Result<Opened, SessionError> {
    let config = &context.config;
    let (client, claim) = (&lead.client, &lead.claim);
    lead.clear(&config.name).await?;
    // The broker may take its time over a dead predecessor, PostgreSQL over a host that is not there: at the same time.
    let name = Part::Source.application_name(&config.name);
    let connecting = async { Ok(postgres::connect(&config.postgres, &name).await?) };
    // (Connections make large futures.)
    let (lanes, source) = tokio::try_join!(Box::pin(open_lanes(context, lead)), Box::pin(connecting))?;
    let count = config.rabbitmq.lanes as i32;
    let noting = cursor::set_lanes(client, &config.name, claim.epoch, count);
    answered("notes its lanes", ANSWER_TIMEOUT, noting).await?;
    let found =
        answered("looks at the source's server", ANSWER_TIMEOUT, preflight::system(&source.0)).await?;
    if found != lead.history {
        return Err(SessionError::TwoServers { leader: lead.history, source_server: found });
    }
    let pid = async {
        let row = source.0.query_one("SELECT pg_backend_pid()", &[]).await;
        row.and_then(|row| row.try_get::<_, i32>(0)).map_err(SessionError::Setup)
    };
    let pid = answered("looks at the source's server", ANSWER_TIMEOUT, pid).await?;
    let noting = lease::note_source(client, &config.name, claim.epoch, pid);
    answered("notes its backends", ANSWER_TIMEOUT, noting).await?;
    Ok(Opened { lanes, source })
}

async fn open_lanes(context: &Context, lead: &Lead) -> Result<Vec<Lane>, SessionError> {
    let (config, claim) = (&context.config, &lead.claim);
    let count = config.rabbitmq.lanes;
    let mut lanes = Vec::with_capacity(count);
    for index in 0..count {
        // The first lane also takes the fences of lanes that a predecessor had and we do not.
        let more = if index == 0 { count..(claim.lanes.max(0) as usize).max(count) } else { 0..0 };
        let (gate, metrics, health) = (lead.gate.clone(), context.metrics.clone(), context.health.clone());
        let opening = Lane::open(&config.rabbitmq, &config.name, index, more, gate, metrics, health);
        let lane = timeout(LANE_TIMEOUT, opening).await;
        lanes.push(lane.map_err(|_| SessionError::SilentBroker(LANE_TIMEOUT))??);
    }
    Ok(lanes)
}

/// Starts the parts, runs the relay, and takes the parts down.
async fn relay(
    context: &Context,
    ledger: &mut Ledger,
    lead: Lead,
    opened: Opened,
    careful: bool,
    stop: &CancellationToken,
) -> Result<Ended, SessionError> {
    let (claim, gate) = (lead.claim.clone(), lead.gate.clone());
    let over = CancellationToken::new();
    let mut parts = Parts::new();
    let peers = start(context, lead, opened, &over, &mut parts).await?;
    upkeep::spawn(context, over.clone());
    context.health.clear_reason("session");
    context.health.set_role(Role::Leader);
    context.metrics.leader.set(1);

    let settings = settings(context, &claim, careful);
    let assembler = Assembler::new(&context.config);
    let (metrics, health) = (context.metrics.clone(), context.health.clone());
    let abort = CancellationToken::new();
    let tokens = relay::Tokens { stop: stop.clone(), abort: abort.clone() };
    let relaying = relay::run(peers, ledger, &assembler, settings, metrics, health, tokens);
    let mut relaying = std::pin::pin!(relaying);
    let mut failure = None;
    let ended = loop {
        tokio::select! {
            ended = &mut relaying => break ended,
            // A part that ends before the relay has failed, or found its peer gone.
            Some(part) = parts.join_next() => {
                failure = reason(failure, blame(part_error(part), gate.has_run_out()));
                stand_down(context, &abort);
            }
            // The lanes hand nothing over any more: who waits for what they hold waits in vain.
            () = gate.run_out(), if !abort.is_cancelled() => {
                failure = reason(failure, Some(SessionError::LeaseLost));
                stand_down(context, &abort);
            }
        }
    };
    over.cancel();
    if gate.has_run_out() {
        failure = masked(failure);
    }
    failure = take_down(parts, failure).await;
    match (ended, failure) {
        (Ended::PeerGone(_), Some(error)) => Err(error),
        (ended, _) => Ok(ended),
    }
}

/// This session leads no more: the relay saves what it can.
fn stand_down(context: &Context, abort: &CancellationToken) {
    context.metrics.leader.set(0);
    context.health.set_role(Role::Starting);
    context.health.set_reason("session", "the session has failed and is being taken down");
    abort.cancel();
}

fn settings(context: &Context, claim: &Claim, careful: bool) -> relay::Settings {
    let config = &context.config;
    let rabbitmq = &config.rabbitmq;
    relay::Settings {
        read_ahead: usize::try_from(config.relay.read_ahead).unwrap_or(usize::MAX),
        window: rabbitmq.window,
        ordering: rabbitmq.ordering,
        until_idle: context.options.until_idle,
        grace: config.shutdown.grace,
        confirm_timeout: rabbitmq.confirm_timeout,
        exchange: rabbitmq.exchange.clone(),
        careful: if careful { rabbitmq.window * rabbitmq.lanes } else { 0 },
        floor_seq: claim.floor_seq,
        park_after: config.unroutable.park_after,
        aside: claim.aside.clone(),
    }
}

/// Starts lanes, keeper and source; returns the relay's ends of their channels.
async fn start(
    context: &Context,
    lead: Lead,
    opened: Opened,
    over: &CancellationToken,
    parts: &mut Parts,
) -> Result<Peers, SessionError> {
    let config = &context.config;
    let Lead { client, guard, claim, gate, .. } = lead;
    let keeper = Keeper::new(client, &config.name, claim.epoch, gate);
    let keeper = answered("prepares its writes", ANSWER_TIMEOUT, keeper).await?;

    let (outcomes_tx, outcomes) = mpsc::channel(OUTCOMES_CAPACITY);
    let mut lanes = Vec::new();
    for lane in opened.lanes {
        let (tx, rx) = mpsc::channel::<LaneBatch>(config.rabbitmq.window);
        lanes.push(tx);
        let outcomes = outcomes_tx.clone();
        parts.spawn(async move { Ok(lane.run(rx, outcomes).await?) });
    }

    let (commits, commits_rx) = mpsc::channel::<ToKeeper>(COMMITS_CAPACITY);
    let (committed_tx, committed) = mpsc::channel::<FromKeeper>(COMMITTED_CAPACITY);
    parts.spawn(async move {
        let result = keeper.run(commits_rx, committed_tx).await;
        drop(guard);
        Ok(result?)
    });

    let (input_tx, input) = mpsc::channel(INPUT_CAPACITY);
    let (refetched_tx, refetched) = mpsc::channel(1);
    let (fetch, fetch_rx) = mpsc::channel(1);
    let (missing, missing_rx) = mpsc::channel(1);
    let (settled, settled_rx) = watch::channel(0);
    let ends = Ends { input: input_tx, fetch: fetch_rx, refetched: refetched_tx, stop: over.clone() };
    let stream_ends = wal::Ends { missing: missing_rx, settled: settled_rx };
    start_source(context, opened.source, &claim, ends, stream_ends, parts).await?;
    Ok(Peers { input, fetch, refetched, missing, settled, lanes, outcomes, commits, committed })
}

/// Starts to read: by polling alone, or with a stream that runs ahead.
async fn start_source(
    context: &Context,
    connection: (Client, postgres::Guard),
    claim: &Claim,
    ends: Ends,
    stream_ends: wal::Ends,
    parts: &mut Parts,
) -> Result<(), SessionError> {
    let config = &context.config;
    let page_bytes = config.relay.read_ahead / PAGE_SHARE;
    let settings = poll::Settings {
        pipeline: config.name.clone(),
        poll: config.source.poll.clone(),
        page_bytes: i64::try_from(page_bytes).unwrap_or(i64::MAX),
    };
    let reader = Reader::new(connection, settings, &claim.position, claim.floor_seq, ends);
    let reader = answered("prepares its reads", ANSWER_TIMEOUT, reader).await?;
    let position = claim.position.clone();
    // What ends when nothing is left to do is over before a slot would be there.
    if config.source.mode == Mode::Poll || context.options.until_idle {
        let poll = config.source.poll.clone();
        parts.spawn(async move { Ok(poll::run(reader, &poll, &position).await?) });
        return Ok(());
    }
    let settings = wal::Settings {
        pipeline: config.name.clone(),
        postgres: config.postgres.clone(),
        source: config.source.clone(),
        batch_bytes_max: usize::try_from(page_bytes).unwrap_or(usize::MAX),
        event_bytes_max: config.rabbitmq.max_message_size,
    };
    let (metrics, health) = (context.metrics.clone(), context.health.clone());
    let source = wal::Source::new(reader, settings, stream_ends, metrics, health);
    parts.spawn(async move { Ok(source.run(&position).await?) });
    Ok(())
}

fn part_error(part: Result<Result<(), SessionError>, JoinError>) -> Option<SessionError> {
    match part {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(error) if error.is_cancelled() => None,
        Err(error) => Some(SessionError::Task(error.to_string())),
    }
}

/// What is to blame for the end of a part. Much fails at once when a process wakes up after a long stop, and what a former
/// leader finds wrong may be its successor's work: that the lease is lost is why.
fn blame(error: Option<SessionError>, lost: bool) -> Option<SessionError> {
    if lost { error.map(|_| SessionError::LeaseLost) } else { error }
}

/// The failure of a session whose lease ran out before its end. What was found while it was good, and only a person can
/// mend, stays: taking the session down may take longer than the lease lasts.
fn masked(failure: Option<SessionError>) -> Option<SessionError> {
    failure.filter(|error| classify(error) == Class::Permanent).or(Some(SessionError::LeaseLost))
}

/// The first failure; but that the lanes stopped says less than why.
fn reason(first: Option<SessionError>, next: Option<SessionError>) -> Option<SessionError> {
    match first {
        Some(SessionError::Sink(SinkError::LeaseLost)) if next.is_some() => next,
        first => first.or(next),
    }
}

/// Waits for the parts, within a deadline; returns the first failure.
async fn take_down(mut parts: Parts, mut failure: Option<SessionError>) -> Option<SessionError> {
    let waiting = async {
        while let Some(part) = parts.join_next().await {
            failure = reason(failure.take(), part_error(part));
        }
    };
    if timeout(END_TIMEOUT, waiting).await.is_err() {
        parts.shutdown().await;
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::poll::page::PageError;

    #[test]
    fn a_lost_lease_hides_nothing_that_was_found_before() {
        let gone = || Some(SessionError::Page(PageError::RowsGone { missing: 1, first: 7 }));
        let lost = |failure: &Option<SessionError>| matches!(failure, Some(SessionError::LeaseLost));
        // Found while the lease was good; it ran out while the session was taken down.
        let found = reason(None, blame(gone(), false));
        assert!(matches!(masked(found), Some(SessionError::Page(PageError::RowsGone { .. }))));
        // Found after a long stop: a successor may have dropped those rows.
        assert!(lost(&masked(reason(None, blame(gone(), true)))));
        // What heals by itself says less than why.
        assert!(lost(&masked(Some(SessionError::PeerGone("source")))) && lost(&masked(None)));
        assert!(blame(None, true).is_none());
    }
}
