//! Tax: what an application pays for its events, in transactions per second.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use crate::composite::settle;
use crate::relay::{Relay, Setup};
use crate::run::{Bench, say};
use crate::servers::{Database, Place, QueueKind};
use crate::sheet::Section;

pub(crate) const NAME: &str = "tax";
pub(crate) const CASE: &str = "one row per transaction";
pub(crate) const PLAIN: &str = "no event, no relay";
pub(crate) const EVENT: &str = "event, no relay";
const INSERT: &str = "event by INSERT, no relay";
pub(crate) const BOTH: &str = "event, relay running";
pub(crate) const BOTH_WAL: &str = "event, relay streaming";
/// Clients of `pgbench`.
const CLIENTS: u32 = 8;
const ROWS: u32 = 100_000;

const SCRIPT_PLAIN: &str = "\\set id random(1, 100000)
BEGIN;
UPDATE app SET v = v + 1 WHERE id = :id;
END;
";

/// With an event of about 800 bytes, by the public function or by a plain INSERT.
fn script_event(event: Event) -> String {
    let payload = format!("{{\"pad\":\"{}\"}}", "0123456789abcdef".repeat(49));
    let write = match event {
        Event::Publish => format!("SELECT statecast.publish('order', (:id)::text, 'changed', '{payload}');"),
        Event::Insert => format!(
            "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload) VALUES ('order', (:id)::text, 'changed', '{payload}');"
        ),
    };
    format!(
        "\\set id random(1, 100000)
BEGIN;
UPDATE app SET v = v + 1 WHERE id = :id;
{write}
END;
"
    )
}

/// How an event is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Publish,
    Insert,
}

/// What is run, in turns.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    event: Option<Event>,
    /// Streams?
    relay: Option<bool>,
}

pub(crate) async fn run(bench: &Bench, section: &mut Section) -> Result<()> {
    section.note(format!(
        "pgbench, {CLIENTS} clients, {} s each: a transaction updates one row and, with an event, writes one of about 800 B in a statement of its own, by statecast.publish() unless said otherwise; \
         fsync and synchronous_commit are on. Everything shares the machine's cores, the relay and the broker too.",
        bench.plan.tax.as_secs()
    ));
    let database = Database::new(&bench.servers, 0).await?;
    let rows = format!("INSERT INTO app SELECT i, 0 FROM generate_series(1, {ROWS}) AS i");
    database.client.batch_execute(&rows).await?;
    database.client.batch_execute("VACUUM ANALYZE app").await?;
    let ways = [
        Way { name: PLAIN, event: None, relay: None },
        Way { name: EVENT, event: Some(Event::Publish), relay: None },
        Way { name: INSERT, event: Some(Event::Insert), relay: None },
        Way { name: BOTH, event: Some(Event::Publish), relay: Some(false) },
        Way { name: BOTH_WAL, event: Some(Event::Publish), relay: Some(true) },
        Way { name: "no event, relay running", event: None, relay: Some(false) },
    ];
    for round in 0..bench.plan.tax_rounds {
        for way in ways {
            say!("tax: {}, round {} of {}", way.name, round + 1, bench.plan.tax_rounds);
            let place = Place::new(&bench.servers, QueueKind::Quorum).await?;
            settle(&database.client).await?;
            let relay = match way.relay {
                Some(streams) => Some(relay(bench, &database, &place, streams).await?),
                None => None,
            };
            let rate = pgbench(bench, &database, way.event).await?;
            section.add(CASE, way.name, "transactions/s", rate);
            if let Some(relay) = relay {
                relay.stop().await?;
                database.client.execute("DELETE FROM statecast.cursor", &[]).await?;
            }
            place.drop().await?;
        }
        for (name, above, below) in [
            ("with event ÷ without", EVENT, PLAIN),
            ("with event by INSERT ÷ without", INSERT, PLAIN),
            ("relay running ÷ stopped", BOTH, EVENT),
            ("relay streaming ÷ stopped", BOTH_WAL, EVENT),
            ("event and relay ÷ neither", BOTH, PLAIN),
            ("event and streaming relay ÷ neither", BOTH_WAL, PLAIN),
        ] {
            section.ratio(CASE, name, above, below);
        }
    }
    database.drop(&bench.servers).await
}

async fn relay(bench: &Bench, database: &Database, place: &Place, streams: bool) -> Result<Relay> {
    Setup::between(&bench.servers, database, place).beginning_now().streaming(streams).ready().await
}

/// Transactions per second, without the time to connect.
async fn pgbench(bench: &Bench, database: &Database, event: Option<Event>) -> Result<f64> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), event.map_or_else(|| SCRIPT_PLAIN.to_owned(), script_event))?;
    let output = bench
        .servers
        .program("pgbench", &database.name)?
        .args([
            "-n",
            "-M",
            "prepared",
            "-j",
            "1",
            "--random-seed",
            &bench.seed.to_string(),
            "-c",
            &CLIENTS.to_string(),
        ])
        .args(["-T", &bench.plan.tax.as_secs().max(1).to_string(), "-f"])
        .arg(script.path())
        .stderr(Stdio::piped())
        .output()
        .await
        .context("run pgbench")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&output.stderr));
    let rate =
        said.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse::<f64>().ok());
    rate.context("pgbench did not say how many")
}
