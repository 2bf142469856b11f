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
/// A server whose client has gone looks for that so often, and then ends the statement: counting a large backlog may take a
/// minute, which nobody waits for after `--once` or `q`. Where the server's system cannot, it counts on.
const NOTICE_THE_END: &str = "SET client_connection_check_interval = '1s'";
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
        // Connecting costs the server nothing that it would have to rest from.
        let connected = match connection.take() {
            Some(open) => Ok(open),
            None => {
                timeout(LOOK_MAX, open(&config)).await.unwrap_or_else(|_| Err(anyhow::Error::msg(silent())))
            }
        };
        let began = Instant::now();
        let facts = match connected {
            Ok(mut open) => match timeout(LOOK_MAX, look(&config, &mut open.0)).await {
                Ok(Ok(facts)) => {
                    connection = Some(open);
                    Ok(facts)
                }
                // Whatever it was, a new connection has no memory of it.
                Ok(Err(error)) => Err(describe(error.as_ref())),
                Err(_) => Err(silent()),
            },
            Err(error) => Err(describe(error.as_ref())),
        };
        let pause = pause(every, began.elapsed(), facts.is_ok());
        if to.send(Update::Database { at: Instant::now(), facts }).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

fn silent() -> String {
    format!("no answer within {} s", LOOK_MAX.as_secs())
}

/// Until the next look: a count that failed has cost the database as much as one that succeeded.
fn pause(every: Duration, looked: Duration, well: bool) -> Duration {
    let pause = every.max(looked * REST);
    if well { pause } else { pause.max(RECONNECT) }
}

async fn open(config: &Config) -> anyhow::Result<(Client, Guard)> {
    let (client, guard) = connect(config, "top").await?;
    require_schema(&client).await?;
    if let Err(error) = client.batch_execute(NOTICE_THE_END).await {
        tracing::debug!(error = %describe(&error), "the server does not look whether its clients are there");
    }
    Ok((client, guard))
}

async fn look(config: &Config, client: &mut Client) -> anyhow::Result<Facts> {
    let (found, report) = status::look(client, config, false).await?;
    let aside = counts(client, &config.name).await?;
    Ok(Facts { report, lanes: found.cursor.map(|cursor| cursor.lanes), aside })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_rests_also_from_what_failed() {
        let every = Duration::from_secs(1);
        for well in [true, false] {
            assert_eq!(pause(every, Duration::from_secs(60), well), Duration::from_secs(600), "{well}");
            assert_eq!(pause(every, Duration::ZERO, well), every);
        }
        assert_eq!(pause(Duration::from_millis(100), Duration::ZERO, false), RECONNECT);
    }
}
