//! A person at work on events that are set aside: `statecast parked retry` and `discard`, while everything else goes on.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;
use tokio_postgres::{Client, Error};
use uuid::Uuid;

use super::arena::Place;
use super::schedule::Act;
use crate::checker::Verdict;
use crate::process::Invocation;
use crate::servers::connect;

/// For one command.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// For all that is set aside to be settled once everything is well: a key that is refused backs off for up to a minute.
const SETTLE_LIMIT: Duration = Duration::from_secs(90);
/// Between two looks.
const POLL: Duration = Duration::from_millis(250);
/// Events that wait and are given up at a time: few, so that a round has others.
const FEW: usize = 3;
/// Rows that are not final.
const OPEN: &str = "state NOT IN ('confirmed', 'discarded')";

/// See the module head.
pub struct Operator {
    url: String,
    parked: Invocation,
    /// Events that somebody asked to discard: they may be missing, and no others.
    pub given_up: HashSet<Uuid>,
}

impl Operator {
    pub fn new(place: &Place) -> Operator {
        // Past the proxies: what happens to the relays' network does not happen to people.
        let parked = place.invocations[0].clone().with("STATECAST_POSTGRES__URL", &place.url);
        Operator { url: place.url.clone(), parked, given_up: HashSet::new() }
    }

    /// Does it, if there is something to do and the server is there.
    pub async fn act(&mut self, act: Act) {
        let Ok(client) = connect(&self.url).await else { return };
        // A server that ends meanwhile is the round's doing.
        let _ = match act {
            Act::Retry => self.retry(&client).await,
            Act::DiscardParked => self.discard(&client, "state = 'parked' AND reason = 'too_large'").await,
            Act::DiscardWaiting => self.discard(&client, "state IN ('waiting', 'queued')").await,
        };
    }

    /// Settles all that is set aside, now that everything is well; a complaint if that cannot be done.
    pub async fn settle(&mut self) -> Option<String> {
        let client = connect(&self.url).await.unwrap();
        let open = format!("SELECT state, reason, count(*) FROM statecast.parked WHERE {OPEN} GROUP BY 1, 2");
        let begun = Instant::now();
        loop {
            let rows = client.query(&open, &[]).await.unwrap();
            if rows.is_empty() {
                return None;
            }
            if begun.elapsed() > SETTLE_LIMIT {
                let left: Vec<(String, Option<String>, i64)> =
                    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
                return Some(format!("set aside after {SETTLE_LIMIT:?} in which all was well: {left:?}"));
            }
            self.discard(&client, "state = 'parked' AND reason = 'too_large'").await.unwrap();
            self.retry(&client).await.unwrap();
            tokio::time::sleep(POLL).await;
        }
    }

    /// Without what may be missing.
    pub fn excuse(&self, mut verdict: Verdict) -> Verdict {
        verdict.lost.retain(|id| !self.given_up.contains(id));
        verdict
    }

    async fn retry(&self, client: &Client) -> Result<(), Error> {
        let ids = ids(client, "state IN ('parked', 'waiting') AND reason <> 'too_large'", usize::MAX).await?;
        self.command("retry", &ids).await;
        Ok(())
    }

    async fn discard(&mut self, client: &Client, which: &str) -> Result<(), Error> {
        let ids = ids(client, which, FEW).await?;
        self.given_up.extend(&ids);
        self.command("discard", &ids).await;
        Ok(())
    }

    /// Its exit code says nothing: what was to be done may be done by now.
    async fn command(&self, verb: &str, ids: &[Uuid]) {
        if ids.is_empty() {
            return;
        }
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut arguments = vec!["parked", verb, "--why", "chaos"];
        arguments.extend(ids.iter().flat_map(|id| ["--id", id.as_str()]));
        self.parked.arguments(&arguments).output(COMMAND_LIMIT).await;
    }
}

async fn ids(client: &Client, which: &str, limit: usize) -> Result<Vec<Uuid>, Error> {
    let sql = format!(
        "SELECT event_id FROM statecast.parked WHERE {OPEN} AND {which} AND request IS NULL ORDER BY seq"
    );
    let rows = client.query(&sql, &[]).await?;
    Ok(rows.iter().take(limit).map(|row| row.get(0)).collect())
}
