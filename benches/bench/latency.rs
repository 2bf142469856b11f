//! Latency: from the moment at which a write was due to its confirm and to its consumer.

use std::time::Duration;

use anyhow::Result;

use crate::composite::settle;
use crate::drain::{BYTES, RELAY, Source, Variant};
use crate::histogram::Summary;
use crate::load::Load;
use crate::publisher::{Publisher, Task};
use crate::relay::Setup;
use crate::run::{Bench, say};
use crate::servers::{Database, Place, QueueKind};
use crate::sheet::{Curve, Section};

pub(crate) const NAME: &str = "latency";
pub(crate) const RATES: [u64; 4] = [1, 100, 1_000, 5_000];
/// Rates at which the publisher on its own is measured: those of the goals.
const PUBLISHER_RATES: [u64; 2] = [1, 1_000];
/// Before what is counted, so that everybody has connected and prepared.
const WARM_UP: Duration = Duration::from_secs(1);
/// Latency without the write itself.
pub(crate) const AFTER_COMMIT: &str = "confirm after commit";
/// Of the drain rate.
const SHARE: f64 = 0.8;

pub(crate) fn case(streams: bool, rate: &str) -> String {
    format!("{}, {rate}", if streams { "wal" } else { "poll" })
}

/// A rate in words.
pub(crate) fn per_second(rate: u64) -> String {
    format!("{rate}/s")
}

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    section.note(format!(
        "{BYTES} B, quorum queue, strict, one lane, 10,000 keys; open loop: each latency is counted from the moment at which the write was due. \
         Up to 1,000/s a transaction holds one event, above that 1,000 transactions per second share the events; fsync is on. \
         write: until the commit was acknowledged to the writer; confirm: until the relay had the broker's confirm; consumer: until a consumer had it. \
         confirm after commit: from the acknowledged commit to the confirm; an event that was confirmed before its writer knew counts as nothing.",
    ));
    publisher(bench, section).await?;
    for streams in [false, true] {
        for rate in RATES {
            let time = if rate == 1 { bench.plan.latency_slow } else { bench.plan.latency };
            offer(bench, section, streams, &per_second(rate), Load { rate, time, bytes: BYTES }).await?;
        }
        let drained = drain_rate(bench, streams).await?;
        let rate = (drained * SHARE).round() as u64;
        section.note(format!(
            "80 % of the drain rate, {}: {rate}/s of {drained:.0}/s. The writer and the consumer need a share of the machine that the drain had for itself.",
            if streams { "wal" } else { "poll" }
        ));
        let load = Load { rate, time: bench.plan.latency, bytes: BYTES };
        offer(bench, section, streams, "80 % of the drain rate", load).await?;
    }
    Ok(())
}

/// What one publish and its confirm take without a relay.
async fn publisher(bench: &Bench, section: &mut Section) -> Result<()> {
    let template = bench.template(BYTES).await?;
    for rate in PUBLISHER_RATES {
        say!("latency: bare publisher, {rate}/s");
        let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
        let time = if rate == 1 { bench.plan.latency_slow } else { bench.plan.latency };
        let task = Task {
            url: bench.servers.rabbitmq.url(),
            exchange: place.exchange.clone(),
            count: rate * time.as_secs(),
            rate: Some(rate),
            template: template.clone(),
        };
        let published = Publisher::start(&task).await?.publish().await?;
        let case = format!("bare publisher, {}", per_second(rate));
        write_down(section, &case, "confirm", &published.latencies.unwrap_or_default());
        place.drop().await?;
    }
    Ok(())
}

async fn offer(bench: &Bench, section: &mut Section, streams: bool, rate: &str, load: Load) -> Result<()> {
    let case = case(streams, rate);
    say!("latency: {case}");
    let database = Database::new(&bench.servers, 0).await?;
    let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
    let setup = Setup::between(&bench.servers, &database, &place).streaming(streams);
    settle(&database.client).await?;
    if load.rate > 1 {
        let warm = Load { time: WARM_UP, ..load };
        warm.run(&bench.servers, &database, &place, &setup).await?;
    }
    let seen = load.run(&bench.servers, &database, &place, &setup).await?;
    section.add(&case, "rate reached", "events/s", seen.rate);
    write_down(section, &case, "write", &seen.write);
    write_down(section, &case, "confirm", &seen.confirm);
    write_down(section, &case, AFTER_COMMIT, &seen.after_commit);
    write_down(section, &case, "consumer", &seen.consumer);
    place.drop().await?;
    database.drop(&bench.servers).await
}

fn write_down(section: &mut Section, case: &str, what: &str, summary: &Summary) {
    let percentiles = [
        ("p50", summary.p50_ms),
        ("p99", summary.p99_ms),
        ("p99.9", summary.p999_ms),
        ("max", summary.max_ms),
    ];
    for (name, value) in percentiles {
        section.add(&format!("{case}: {what}"), name, "ms", value);
    }
    section.add(&format!("{case}: {what}"), "samples", "", summary.count as f64);
    if what == "confirm" {
        let (plot, name) = ("write to confirm".to_owned(), case.to_owned());
        section.curves.push(Curve { plot, name, points: summary.curve.clone() });
    }
}

/// As this run has measured it, or from a short drain now.
async fn drain_rate(bench: &Bench, streams: bool) -> Result<f64> {
    let plan = &bench.plan;
    let source = if streams { Source::Wal(crate::fill::Arrival::Burst) } else { Source::Poll };
    let variant = Variant::base(source, plan.variant_events, 1);
    if let Some(figure) = bench.before.figure(crate::drain::NAME, &variant.case(), RELAY) {
        return Ok(figure.median);
    }
    say!("latency: the drain rate was not measured in this run: a short one first");
    if streams {
        return Ok(bench.relay(&variant, None).await?.rate);
    }
    let events = crate::fill::Events { count: variant.events, bytes: BYTES, keys: crate::drain::KEYS };
    let database = bench.filled(events).await?;
    let drained = bench.relay(&variant, Some(&database)).await?;
    database.drop(&bench.servers).await?;
    Ok(drained.rate)
}
