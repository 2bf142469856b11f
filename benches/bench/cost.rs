//! Cost: the relay's own processor time and memory, at work and idle.

use std::time::Instant;

use anyhow::Result;

use crate::composite::Limits;
use crate::drain::{BYTES, KEYS, Source, Variant};
use crate::fill::{Arrival, Events};
use crate::relay::Setup;
use crate::run::{Bench, say};
use crate::servers::{Database, Place, QueueKind};
use crate::sheet::Section;
use crate::usage::Usage;

pub(crate) const NAME: &str = "cost";
pub(crate) const POLL: &str = "relay, poll";
pub(crate) const WAL: &str = "relay, wal";
pub(crate) const PUBLISHER: &str = "bare publisher";
pub(crate) const CPU: &str = "CPU per million";
pub(crate) const PEAK: &str = "peak memory";
pub(crate) const IDLE: &str = "idle CPU of a core";

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    let plan = &bench.plan;
    section.note(format!(
        "{} events of {BYTES} B, quorum queue, strict, one lane; processor time of the process from its start to the last confirm, idle over {} s.",
        plan.events,
        plan.idle.as_secs()
    ));
    working(bench, section).await?;
    for streams in [false, true] {
        idle(bench, section, streams).await?;
    }
    Ok(())
}

async fn working(bench: &Bench, section: &mut Section) -> Result<()> {
    let count = bench.plan.events;
    let events = Events { count, bytes: BYTES, keys: KEYS };
    let template = bench.template(BYTES).await?;
    let database = bench.filled(events).await?;
    for run in 0..bench.plan.limit_runs {
        say!("cost: relay and bare publisher, run {}", run + 1);
        let poll = bench.relay(&Variant::base(Source::Poll, count, 1), Some(&database)).await?;
        write_down(section, POLL, &poll.usage, count);
        let limits = Limits { servers: &bench.servers, kind: QueueKind::Quorum, template: &template, count };
        write_down(section, PUBLISHER, &limits.publisher().await?.usage, count);
        let wal = bench.relay(&Variant::base(Source::Wal(Arrival::Burst), count, 1), None).await?;
        write_down(section, WAL, &wal.usage, count);
    }
    database.drop(&bench.servers).await
}

fn write_down(section: &mut Section, case: &str, usage: &Usage, events: u64) {
    let million = events as f64 / 1e6;
    section.add(case, CPU, "s", usage.cpu_s() / million);
    section.add(case, "user", "s", usage.user_s / million);
    section.add(case, "system", "s", usage.system_s / million);
    section.add(case, PEAK, "MB", usage.peak_mb);
}

async fn idle(bench: &Bench, section: &mut Section, streams: bool) -> Result<()> {
    let case = if streams { WAL } else { POLL };
    say!("cost: {case}, idle for {} s", bench.plan.idle.as_secs());
    let database = Database::new(&bench.servers, 0).await?;
    let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
    let relay = Setup::between(&bench.servers, &database, &place).streaming(streams).ready().await?;
    // What begins with a session is no part of idling.
    tokio::time::sleep(bench.plan.idle / 10).await;
    let (before, began) = (relay.usage()?, Instant::now());
    tokio::time::sleep(bench.plan.idle).await;
    let after = relay.usage()?;
    let share = (after.cpu_s() - before.cpu_s()) / began.elapsed().as_secs_f64();
    section.add(case, IDLE, "%", share * 100.0);
    section.add(case, "idle memory", "MB", after.resident_mb);
    relay.stop().await?;
    place.drop().await?;
    database.drop(&bench.servers).await
}
