//! Seeded simulation of the relay's loop.
//!
//! `statecast::relay::run` as it is in production, between parts that this test scripts and in time that this test moves:
//!
//! - a source that reads like the poller (its decisions are the production ones) from an outbox with writers, open
//!   transactions and snapshots: pages, windows read ahead, late transactions, rows of any size, fetches served late;
//! - streams, between the polling of a session: rows in commit order, ahead of the pages that list them; some leave rows
//!   out, some stop within a transaction;
//! - lanes to a broker: messages arrive in order, answers come late and in any order; nacks, returns, keys and routing keys
//!   refused for long, events that can never go; connections that break before or after the broker has taken a message;
//! - a keeper with the table of what is set aside, whose write, or whose answer, is lost; a person who wants rows of it
//!   tried again or given up; and sessions that follow each other, with the ledger of the same process or with a new one.
//!
//! Each seed is one schedule. After the faults everything is drained: what cannot go is parked in the end, and nothing else
//! is. The checks stand in `checks`, and those of what is set aside in `aside`.
//!
//! `ROUNDS=100000 cargo test --test sim` looks longer; `SEED=17 cargo test --test sim` shows one schedule, and with `SEQ=5`
//! what happens to that event.

#![cfg(test)]

mod aside;
mod broker;
mod checks;
mod handed;
mod holds;
mod outbox;
mod plan;
mod session;
mod source;
mod stream;
mod table;
mod tally;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use statecast::event::assemble::Assembler;
use statecast::metrics::Metrics;
use statecast::relay::{Ended, Ledger};
use tokio::time::sleep_until;

use outbox::Row;
use plan::{PROCESSES, Plan, SessionPlan, closing, draining};
use tally::Tally;
use world::{Shared, World};

/// Seeds of one run without `ROUNDS`.
const ROUNDS: u64 = 2_000;
/// Sessions that end with a lane before everything is drained, at most: every event may be one that it dies of.
const DRAINS: usize = 100;

/// What the schedules of one thread share.
struct Tools {
    assembler: Assembler,
    metrics: Arc<Metrics>,
    overhead: usize,
}

impl Tools {
    fn new() -> Self {
        let env = [
            ("STATECAST_POSTGRES__URL", "postgres://nowhere/none"),
            ("STATECAST_RABBITMQ__URLS", "amqp://nowhere"),
            ("STATECAST_EVENT__FORMAT", "binary"),
        ];
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let assembler = Assembler::new(&statecast::config::load(None, env).unwrap());
        let sample = Row { xid: 1, key: 0, route: 0, size: 1, hopeless: None };
        let overhead = assembler.assemble(outbox::event(1, &sample)).unwrap().bytes() - 1;
        Tools { assembler, metrics: Metrics::new("sim"), overhead }
    }
}

/// Runs the sessions of a seed's schedule, then drains.
async fn schedule(world: &Shared, tools: &Tools, sessions: &[SessionPlan]) -> Option<()> {
    let mut ledgers: [Ledger; PROCESSES] = Default::default();
    for plan in sessions {
        let ended = next(world, &mut ledgers, tools, plan).await?;
        if let Some(refused) = &plan.calm {
            let refused = if plan.heals_ms.is_some() { &[] } else { refused.as_slice() };
            let mut world = world.lock();
            // A lane that dies ends it early.
            if ended == Ended::Stopped {
                world.check_flow(refused);
            }
        }
    }
    let written = world.lock().writers_done();
    sleep_until(written).await;
    let (last, attended) = {
        let mut world = world.lock();
        (world.rng.usize(0..PROCESSES), world.rng.bool())
    };
    let mut end = draining(last);
    for _ in 0..DRAINS {
        match next(world, &mut ledgers, tools, &end).await? {
            Ended::Idle => end = closing(last, attended),
            Ended::Stopped => {
                world.lock().check_end();
                return Some(());
            }
            Ended::PeerGone(_) => {}
        }
    }
    world.lock().fail(0, "no end in sight".into());
    None
}

async fn next(world: &Shared, ledgers: &mut [Ledger], tools: &Tools, plan: &SessionPlan) -> Option<Ended> {
    let ledger = &mut ledgers[plan.process];
    if plan.new_process {
        *ledger = Ledger::default();
    }
    session::run(world, ledger, &tools.assembler, plan).await
}

/// Plays a seed; a fault comes back as text.
fn play(seed: u64, tools: &Tools, tells: bool) -> Result<Tally, String> {
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let plan = Plan::draw(&mut rng);
    let settings = format!("{plan:#?}").split("steps:").next().unwrap_or_default().to_owned();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let sessions = plan.sessions.clone();
    let world =
        runtime.block_on(async { Shared::new(World::new(plan, rng, tools.metrics.clone(), tools.overhead)) });
    world.lock().tells = tells;
    let played = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(schedule(&world, tools, &sessions));
    }));
    let mut world = world.lock();
    if let Err(panic) = played {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?").to_owned();
        world.fail(0, format!("panic: {text}"));
    }
    let Some(fault) = world.fault.clone() else { return Ok(world.tally.clone()) };
    let mut text = format!("SEED={seed}: seq {}: {}\n{settings}\n", fault.seq, fault.text);
    let also = number("SEQ").map(|seq| seq as i64);
    let told = |seq: i64| seq == fault.seq || seq == 0 || Some(seq) == also;
    for note in world.notes.iter().filter(|note| told(note.seq)) {
        text.push_str(&format!("{:>10.3?} {}: {}\n", note.at, note.seq, note.what));
    }
    Err(text)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn every_schedule_keeps_the_promises() {
    if let Some(seed) = number("SEED") {
        let tally = play(seed, &Tools::new(), true).unwrap_or_else(|fault| panic!("{fault}"));
        return println!("{}", tally.lines());
    }
    let rounds = number("ROUNDS").unwrap_or(ROUNDS);
    let began = std::time::Instant::now();
    let next_seed = AtomicU64::new(0);
    let faults = Mutex::new(Vec::new());
    let tally = Mutex::new(Tally::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let tools = Tools::new();
                loop {
                    let seed = next_seed.fetch_add(1, Ordering::Relaxed);
                    if seed >= rounds {
                        return;
                    }
                    match play(seed, &tools, false) {
                        Ok(played) => tally.lock().unwrap().add(&played),
                        Err(fault) => faults.lock().unwrap().push((seed, fault)),
                    }
                }
            });
        }
    });
    let mut faults = faults.into_inner().unwrap();
    faults.sort();
    if let Some((seed, _)) = faults.first() {
        let first = play(*seed, &Tools::new(), true).err();
        let first = first.unwrap_or_else(|| "it does not fail again".into());
        let heads: Vec<&str> = faults.iter().filter_map(|(_, fault)| fault.lines().next()).take(40).collect();
        panic!("{first}\n{} of {rounds} schedules fail:\n{}", faults.len(), heads.join("\n"));
    }
    let tally = tally.into_inner().unwrap();
    println!("{rounds} schedules, {:?}\n{}", began.elapsed(), tally.lines());
    if rounds >= ROUNDS {
        assert!(tally.missing().is_empty(), "no schedule has any {:?}", tally.missing());
    }
}
