//! Drain: how fast a backlog, or a load, gets to the broker; beside it what the machine allows at most.
//!
//! One thing is varied at a time, around 800 B, quorum queue, strict order, one lane, 10,000 keys.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::composite::{Limits, settle};
use crate::decoder;
use crate::fill::{Arrival, Events};
use crate::publisher::Template;
use crate::relay::{Drained, Setup};
use crate::run::{Bench, say};
use crate::servers::{Database, Place, QueueKind};
use crate::sheet::Section;

pub(crate) const NAME: &str = "drain";
/// Bytes of a payload, unless said otherwise.
pub(crate) const BYTES: usize = 800;
pub(crate) const KEYS: u64 = 10_000;
/// For one drain.
pub(crate) const LIMIT: Duration = Duration::from_secs(300);
/// Enough to see what a message looks like.
const SAMPLE: u64 = 2_000;

pub(crate) const RELAY: &str = "relay";
pub(crate) const COMPOSITE: &str = "composite limit";
pub(crate) const RATIO: &str = "relay ÷ composite";
pub(crate) const PEAK: &str = "peak memory";
pub(crate) const CPU: &str = "relay CPU per million";

/// How events reach the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Poll,
    Wal(Arrival),
}

/// One thing to drain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) source: Source,
    pub(crate) bytes: usize,
    pub(crate) kind: QueueKind,
    pub(crate) pipelined: bool,
    pub(crate) lanes: usize,
    pub(crate) events: u64,
    pub(crate) pairs: usize,
}

impl Variant {
    /// What the goals are about.
    pub(crate) fn base(source: Source, events: u64, pairs: usize) -> Variant {
        let kind = QueueKind::Quorum;
        Variant { source, bytes: BYTES, kind, pipelined: false, lanes: 1, events, pairs }
    }

    pub(crate) fn case(&self) -> String {
        let source = match self.source {
            Source::Poll => "poll, backlog",
            Source::Wal(Arrival::Burst) => "wal, burst",
            Source::Wal(Arrival::Load) => "wal, under load",
        };
        let order = if self.pipelined { "pipelined" } else { "strict" };
        let lanes = if self.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", self.lanes) };
        format!("{source}: {} B, {}, {order}, {lanes}", self.bytes, self.kind.name())
    }

    fn setup(&self, bench: &Bench, database: &Database, place: &Place) -> Setup {
        Setup::between(&bench.servers, database, place)
            .streaming(self.source != Source::Poll)
            .with("STATECAST_RABBITMQ__ORDERING", if self.pipelined { "pipelined" } else { "strict" })
            .with("STATECAST_RABBITMQ__LANES", &self.lanes.to_string())
    }

    fn payloads(&self) -> Events {
        Events { count: self.events, bytes: self.bytes, keys: KEYS }
    }
}

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    let plan = &bench.plan;
    section.note(format!(
        "First case of each source: {} events of {BYTES} B, pairs: {}. The others: {} events ({} of 8,000 B), pairs: {}. {KEYS} keys.",
        plan.events, plan.pairs, plan.variant_events, plan.large_events, plan.variant_pairs
    ));
    section.note(
        "Each pair is one run of the relay and one of the composite limit, in turns. poll: a committed backlog; its limit is publisher and COPY at the same time. \
         wal, burst: prepared transactions of 5,000 events are committed one after another while the relay streams; its limit is publisher and pg_recvlogical under the same burst. \
         wal, under load: the events are written meanwhile by one connection in transactions of 500; so they are beside the limit.",
    );
    section.note(
        "Rates are taken between the first and the last confirm; connecting is not part of any of them.",
    );
    for source in [Source::Poll, Source::Wal(Arrival::Burst)] {
        let base = Variant::base(source, plan.events, plan.pairs);
        bench.drain(section, &[base]).await?;
    }
    limits(bench, section).await?;
    for source in [Source::Poll, Source::Wal(Arrival::Burst)] {
        bench.drain(section, &variants(bench, source)).await?;
    }
    let load = Variant::base(Source::Wal(Arrival::Load), plan.variant_events, plan.variant_pairs);
    bench.drain(section, &[load]).await?;
    match &bench.only_case {
        Some(only) => bail!("only cases with {only:?} were asked for"),
        None => Ok(()),
    }
}

fn variants(bench: &Bench, source: Source) -> Vec<Variant> {
    let plan = &bench.plan;
    let base = Variant::base(source, plan.variant_events, plan.variant_pairs);
    let mut variants = vec![Variant { pipelined: true, ..base }, Variant { lanes: 2, ..base }];
    if plan.all_variants || source == Source::Poll {
        variants.extend([
            Variant { lanes: 4, ..base },
            Variant { kind: QueueKind::Classic, ..base },
            Variant { kind: QueueKind::Stream, ..base },
            Variant { bytes: 100, ..base },
            Variant { bytes: 8_000, events: plan.large_events, ..base },
        ]);
    }
    variants
}

/// Publisher, decoder and query, each on its own.
async fn limits(bench: &Bench, section: &mut Section) -> Result<()> {
    if !bench.wants("limit on its own") {
        return Ok(());
    }
    let events = Events { count: bench.plan.events, bytes: BYTES, keys: KEYS };
    let template = bench.template(BYTES).await?;
    let database = bench.filled(events).await?;
    for run in 0..bench.plan.limit_runs {
        for kind in [QueueKind::Quorum, QueueKind::Classic, QueueKind::Stream] {
            say!("drain: publisher limit, {}, run {}", kind.name(), run + 1);
            let limits = Limits { servers: &bench.servers, kind, template: &template, count: events.count };
            let published = limits.publisher().await?;
            let (case, million) = (format!("limit on its own, {BYTES} B"), events.count as f64 / 1e6);
            let rate = events.count as f64 / published.seconds;
            section.add(&case, &format!("publisher, {}", kind.name()), "events/s", rate);
            if kind == QueueKind::Quorum {
                section.add(&case, "publisher CPU per million", "s", published.usage.cpu_s() / million);
            }
        }
        say!("drain: query and decoder limits, run {}", run + 1);
        let case = format!("limit on its own, {BYTES} B");
        let seconds = decoder::copy(&bench.servers, &database).await?;
        section.add(&case, "query (COPY)", "events/s", events.count as f64 / seconds);
        let fresh = Database::new(&bench.servers, 0).await?;
        let (kind, count) = (QueueKind::Quorum, events.count);
        let limits = Limits { servers: &bench.servers, kind, template: &template, count };
        section.add(&case, "decoder", "events/s", limits.decoder(&fresh, events).await?);
        fresh.drop(&bench.servers).await?;
    }
    database.drop(&bench.servers).await
}

impl Bench {
    fn wants(&self, case: &str) -> bool {
        self.only_case.as_ref().is_none_or(|only| case.contains(only.as_str()))
    }

    /// Runs each variant in pairs with its composite limit.
    async fn drain(&self, section: &mut Section, variants: &[Variant]) -> Result<()> {
        for variant in variants {
            let case = variant.case();
            if !self.wants(&case) {
                continue;
            }
            let template = self.template(variant.bytes).await?;
            let backlog = match variant.source {
                Source::Poll => Some(self.filled(variant.payloads()).await?),
                Source::Wal(_) => None,
            };
            for pair in 0..variant.pairs {
                say!("drain: {case}, pair {} of {}", pair + 1, variant.pairs);
                let drained = self.relay(variant, backlog.as_ref()).await?;
                let limit = self.limit(variant, &template, backlog.as_ref()).await?;
                let usage = drained.usage;
                section.add(&case, RELAY, "events/s", drained.rate);
                section.add(&case, COMPOSITE, "events/s", limit);
                section.ratio(&case, RATIO, RELAY, COMPOSITE);
                section.add(&case, CPU, "s", usage.cpu_s() / (variant.events as f64 / 1e6));
                section.add(&case, PEAK, "MB", usage.peak_mb);
            }
            if let Some(backlog) = backlog {
                backlog.drop(&self.servers).await?;
            }
        }
        Ok(())
    }

    /// One run of the relay; without a backlog, in a database of its own.
    pub(crate) async fn relay(&self, variant: &Variant, backlog: Option<&Database>) -> Result<Drained> {
        let place = Place::new(&self.servers, variant.kind).await?;
        let drained = match (backlog, variant.source) {
            (Some(database), Source::Poll) => {
                let setup = variant.setup(self, database, &place);
                let mut relay = setup.start()?;
                let drained = relay.drain(variant.events, LIMIT).await?;
                relay.stop().await?;
                // A pipeline that stands still would hold the chunks for ever.
                database.client.execute("DELETE FROM statecast.cursor", &[]).await?;
                drained
            }
            (_, source) => {
                let database = Database::new(&self.servers, 0).await?;
                let mut relay = variant.setup(self, &database, &place).ready().await?;
                let arrival = if let Source::Wal(arrival) = source { arrival } else { Arrival::Burst };
                let arriving = arrival.prepare(&database, variant.payloads()).await?;
                let drain = relay.confirmed(variant.events, LIMIT);
                let (arrived, took) = tokio::join!(arriving.arrive(), drain);
                arrived?;
                let drained = Drained { rate: variant.events as f64 / took?, usage: relay.usage()? };
                relay.stop().await?;
                database.drop(&self.servers).await?;
                drained
            }
        };
        place.drop().await?;
        Ok(drained)
    }

    async fn limit(&self, variant: &Variant, template: &Template, backlog: Option<&Database>) -> Result<f64> {
        let limits = Limits { servers: &self.servers, kind: variant.kind, template, count: variant.events };
        match (backlog, variant.source) {
            (Some(database), _) => limits.with_copy(database).await,
            (None, source) => {
                let database = Database::new(&self.servers, 0).await?;
                let arrival = if let Source::Wal(arrival) = source { arrival } else { Arrival::Burst };
                let rate = limits.with_decoder(&database, variant.payloads(), arrival).await?;
                database.drop(&self.servers).await?;
                Ok(rate)
            }
        }
    }

    /// A database with a committed backlog, vacuumed and written to the disk.
    pub(crate) async fn filled(&self, events: Events) -> Result<Database> {
        say!("writing {} events of {} B", events.count, events.bytes);
        let database = Database::new(&self.servers, 0).await?;
        events.write(&database.client).await?;
        database.client.batch_execute("VACUUM ANALYZE statecast.outbox").await?;
        settle(&database.client).await?;
        Ok(database)
    }

    /// What the relay sends for a payload of so many bytes.
    pub(crate) async fn template(&self, bytes: usize) -> Result<Template> {
        let mut templates = self.templates.lock().await;
        if let Some(template) = templates.get(&bytes) {
            return Ok(template.clone());
        }
        let database = Database::new(&self.servers, 0).await?;
        Events { count: SAMPLE, bytes, keys: KEYS }.write(&database.client).await?;
        let place = Place::new(&self.servers, QueueKind::Classic).await?;
        let mut relay = Setup::between(&self.servers, &database, &place).start()?;
        relay.confirmed(SAMPLE, LIMIT).await?;
        relay.stop().await?;
        let template = place.template().await?;
        place.drop().await?;
        database.drop(&self.servers).await?;
        templates.insert(bytes, template.clone());
        Ok(template)
    }
}
