//! Growth: drain rate and latency while something grows that should not matter.
//!
//! Within a family all cases stand side by side and are measured in turns, each round once.

use anyhow::Result;
use tokio_postgres::Client;

use crate::composite::settle;
use crate::drain::LIMIT;
use crate::fill::Events;
use crate::load::Load;
use crate::relay::Setup;
use crate::run::{Bench, say};
use crate::servers::{Database, Place, QueueKind, unique};
use crate::sheet::Section;

pub(crate) const NAME: &str = "growth";
pub(crate) const RATE: &str = "drain";
pub(crate) const LATENCY: &str = "p99 write to confirm at 1,000/s";
pub(crate) const RATE_RATIO: &str = "drain ÷ first case";
pub(crate) const LATENCY_RATIO: &str = "p99 of the first case ÷ p99";
/// Of a payload that is drained, and of one that is settled.
const BYTES: usize = 800;
const SETTLED_BYTES: usize = 100;
/// Chunks that are filled before new ones are made; at least eight empty ones are always there.
const CHUNKS_PER_STEP: u64 = 6;
const LOAD_RATE: u64 = 1_000;
/// Over the limit that the pipeline is given.
const TOO_LARGE: usize = 100_000;

/// Settled events, in words.
pub(crate) fn settled_case(count: u64) -> String {
    format!("{count} settled events")
}

/// A pipeline that has done everything there was to do.
struct Case {
    name: String,
    database: Database,
    setup: Setup,
    keys: u64,
    events: u64,
}

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    let plan = &bench.plan;
    section.note(format!(
        "Polling, {BYTES} B, quorum queue, strict, one lane; each drain has {} events (with more keys than that, one event per key); latency from {} s at {LOAD_RATE}/s.",
        plan.growth_events,
        plan.growth_latency.as_secs()
    ));
    section.note(format!(
        "The most settled events lie in {} chunks: with the empty ones ahead of the writers no more than 64 stay attached. They are of {SETTLED_BYTES} B.",
        plan.settled_chunks
    ));
    settled(bench, section).await?;
    keys(bench, section).await?;
    parked(bench, section).await?;
    open(bench, section).await
}

async fn settled(bench: &Bench, section: &mut Section) -> Result<()> {
    let plan = &bench.plan;
    let most = plan.settled.iter().copied().max().unwrap_or(0);
    let chunk_rows = (most / plan.settled_chunks.max(1)).max(1_000);
    let mut cases = Vec::new();
    for count in plan.settled.iter().copied() {
        let mut case = Case::new(bench, &settled_case(count), chunk_rows).await?;
        say!("growth: writing {count} settled events");
        case.archive(count, chunk_rows).await?;
        case.setup = case.setup.beginning_now();
        cases.push(case);
    }
    measure(bench, section, cases).await
}

async fn keys(bench: &Bench, section: &mut Section) -> Result<()> {
    let mut cases = Vec::new();
    for count in bench.plan.keys.iter().copied() {
        let mut case = Case::new(bench, &format!("{count} keys"), 0).await?;
        case.keys = count;
        case.events = case.events.max(count);
        cases.push(case);
    }
    measure(bench, section, cases).await
}

async fn parked(bench: &Bench, section: &mut Section) -> Result<()> {
    let mut cases = Vec::new();
    for count in bench.plan.parked.iter().copied() {
        let mut case = Case::new(bench, &format!("{count} parked keys"), 0).await?;
        case.setup = case.setup.with("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "64KiB");
        if count > 0 {
            let insert = format!(
                "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                 SELECT 'order', 'parked' || i, 'changed', to_json(repeat('x', {TOO_LARGE}))
                 FROM generate_series(1, {count}) AS i"
            );
            case.database.client.batch_execute(&insert).await?;
            let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
            let mut relay = case.towards(&place).ready().await?;
            let look = std::time::Duration::from_millis(50);
            relay.wait("statecast_parked_events", count as f64, look, LIMIT).await?;
            relay.stop().await?;
            place.drop().await?;
        }
        cases.push(case);
    }
    measure(bench, section, cases).await
}

/// Prepared transactions are open for the whole server, so these cases follow each other, and each round begins anew.
async fn open(bench: &Bench, section: &mut Section) -> Result<()> {
    let mut cases = Vec::new();
    for count in bench.plan.open {
        cases.push((*count, Case::new(bench, &format!("{count} open transactions"), 0).await?));
    }
    for round in 0..2 * bench.plan.growth_rounds {
        for (count, case) in &cases {
            let names = prepare(&case.database.client, *count).await?;
            let done = match round < bench.plan.growth_rounds {
                true => case.drain(bench, section).await,
                false => case.latency(bench, section).await,
            };
            for name in names {
                case.database.client.batch_execute(&format!("ROLLBACK PREPARED '{name}'")).await?;
            }
            done?;
        }
    }
    finish(bench, section, cases.into_iter().map(|(_, case)| case).collect()).await
}

async fn prepare(client: &Client, count: usize) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for number in 0..count {
        let name = unique("open");
        let write = format!("BEGIN; INSERT INTO app VALUES ({number}, 0); PREPARE TRANSACTION '{name}'");
        client.batch_execute(&write).await?;
        names.push(name);
    }
    Ok(names)
}

async fn measure(bench: &Bench, section: &mut Section, cases: Vec<Case>) -> Result<()> {
    // Each pipeline begins here: everything before is settled for it.
    for case in &cases {
        let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
        case.towards(&place).ready().await?.stop().await?;
        place.drop().await?;
    }
    for _ in 0..bench.plan.growth_rounds {
        for case in &cases {
            case.drain(bench, section).await?;
        }
    }
    for _ in 0..bench.plan.growth_rounds {
        for case in &cases {
            case.latency(bench, section).await?;
        }
    }
    finish(bench, section, cases).await
}

/// Each case beside the first, and away with the databases.
async fn finish(bench: &Bench, section: &mut Section, cases: Vec<Case>) -> Result<()> {
    let Some(first) = cases.first().map(|case| case.name.clone()) else { return Ok(()) };
    for case in cases {
        if case.name != first {
            section.ratio_of_cases(&case.name, RATE_RATIO, (&case.name, RATE), (&first, RATE));
            section.ratio_of_cases(&case.name, LATENCY_RATIO, (&first, LATENCY), (&case.name, LATENCY));
        }
        case.database.drop(&bench.servers).await?;
    }
    Ok(())
}

impl Case {
    async fn new(bench: &Bench, name: &str, chunk_rows: u64) -> Result<Case> {
        let database = Database::new(&bench.servers, chunk_rows).await?;
        let mut setup = Setup::new(&database.url, &bench.servers.rabbitmq.url(), "none")
            .with("STATECAST_RETENTION__MAX_SIZE", "100GiB");
        if chunk_rows > 0 {
            setup = setup.with("STATECAST_RETENTION__CHUNK_ROWS", &chunk_rows.to_string());
        }
        let events = bench.plan.growth_events;
        Ok(Case { name: name.to_owned(), database, setup, keys: crate::drain::KEYS, events })
    }

    fn towards(&self, place: &Place) -> Setup {
        self.setup.clone().with("STATECAST_RABBITMQ__EXCHANGE", &place.exchange)
    }

    /// Writes events that nobody will publish, by two connections, and new chunks before they are needed.
    async fn archive(&self, count: u64, chunk_rows: u64) -> Result<()> {
        let second = crate::servers::connect(&self.database.url).await?;
        let step = CHUNKS_PER_STEP * chunk_rows;
        let mut left = count;
        while left > 0 {
            let now = left.min(step);
            let half = |count| Events { count, bytes: SETTLED_BYTES, keys: crate::drain::KEYS };
            let (more, rest) = (half(now / 2), half(now - now / 2));
            let (first, second) = tokio::join!(more.write(&self.database.client), rest.write(&second));
            first?;
            second?;
            self.setup.command(&["maintain"]).await?;
            left -= now;
        }
        Ok(self.database.client.batch_execute("VACUUM (FREEZE, ANALYZE) statecast.outbox").await?)
    }

    async fn drain(&self, bench: &Bench, section: &mut Section) -> Result<()> {
        say!("growth: {}, drain", self.name);
        Events { count: self.events, bytes: BYTES, keys: self.keys }.write(&self.database.client).await?;
        settle(&self.database.client).await?;
        let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
        let mut relay = self.towards(&place).start()?;
        let drained = relay.drain(self.events, LIMIT).await?;
        relay.stop().await?;
        place.drop().await?;
        section.add(&self.name, RATE, "events/s", drained.rate);
        section.add(&self.name, "peak memory", "MB", drained.usage.peak_mb);
        Ok(())
    }

    async fn latency(&self, bench: &Bench, section: &mut Section) -> Result<()> {
        say!("growth: {}, latency", self.name);
        settle(&self.database.client).await?;
        let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
        let load = Load { rate: LOAD_RATE, time: bench.plan.growth_latency, bytes: BYTES };
        let seen = load.run(&bench.servers, &self.database, &place, &self.towards(&place)).await?;
        place.drop().await?;
        section.add(&self.name, "p50 write to confirm at 1,000/s", "ms", seen.confirm.p50_ms);
        section.add(&self.name, LATENCY, "ms", seen.confirm.p99_ms);
        Ok(())
    }
}
