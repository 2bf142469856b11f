//! The pollers: one task per relay, one for the database. Each tells what it found, or why it found nothing, and goes on.
//!
//! Updates go through one bounded channel; a poller whose update is not taken waits. All end with the returned set.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Client;

use super::scrape::{self, Target};
use super::state::{Facts, Update};
use crate::cli::{connect, status};
use crate::config::Config;
use crate::postgres::{Guard, describe};
use crate::store::parked::counts::counts;
use crate::store::schema::require_schema;

/// Updates on their way, at most.
const UPDATES: usize = 64;
/// The database rests for so many times as long as its answer took: counting a large backlog must not keep it busy.
const REST: u32 = 10;
/// For all statements of one look. Counting alone is given up by the server after a minute.
const LOOK_MAX: Duration = Duration::from_secs(90);
/// Between two tries to connect, at least.
const RECONNECT: Duration = Duration::from_secs(1);

/// Starts the pollers.
pub(super) fn start(
    config: &Arc<Config>,
    targets: &[Target],
    every: Duration,
) -> (JoinSet<()>, mpsc::Receiver<Update>) {
    let (sender, receiver) = mpsc::channel(UPDATES);
    let mut tasks = JoinSet::new();
    for (index, target) in targets.iter().cloned().enumerate() {
        tasks.spawn(relay(index, target, config.name.clone(), every, sender.clone()));
    }
    tasks.spawn(database(config.clone(), every, sender));
    (tasks, receiver)
}

async fn relay(index: usize, target: Target, pipeline: String, every: Duration, to: mpsc::Sender<Update>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = scrape::look(&target, &pipeline).await.map_err(|error| describe(&error));
        if to.send(Update::Relay { index, at: Instant::now(), look }).await.is_err() {
            return;
        }
    }
}

async fn database(config: Arc<Config>, every: Duration, to: mpsc::Sender<Update>) {
    let mut connection: Option<(Client, Guard)> = None;
    loop {
        let began = Instant::now();
        let facts = match timeout(LOOK_MAX, look(&config, &mut connection)).await {
            Ok(facts) => facts.map_err(|error| describe(error.as_ref())),
            Err(_) => Err(format!("no answer within {} s", LOOK_MAX.as_secs())),
        };
        let mut rest = every.max(began.elapsed() * REST);
        if facts.is_err() {
            // Whatever it was, a new connection has no memory of it.
            connection = None;
            rest = every.max(RECONNECT);
        }
        if to.send(Update::Database { at: Instant::now(), facts }).await.is_err() {
            return;
        }
        sleep(rest).await;
    }
}

async fn look(config: &Config, connection: &mut Option<(Client, Guard)>) -> anyhow::Result<Facts> {
    let (client, _guard) = match connection.take() {
        Some(open) => connection.insert(open),
        None => {
            let open = connect(config, "top").await?;
            require_schema(&open.0).await?;
            connection.insert(open)
        }
    };
    let (found, report) = status::look(client, config, false).await?;
    let aside = counts(client, &config.name).await?;
    Ok(Facts { report, lanes: found.cursor.map(|cursor| cursor.lanes), aside })
}
