//! A shop that writes orders in real transactions, some of which it rolls back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::Config;
use crate::postgres;

/// Clerks at work.
const CLERKS: u64 = 4;
/// One transaction in so many is rolled back.
const ROLLBACK_ONE_IN: u32 = 8;
/// A clerk's pause between transactions, milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 20..120;
/// Orders per clerk: few, so that each has a history.
const ORDERS: i32 = 12;

/// An order as it was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// The order's own version: rises by one with each event.
    pub(super) version: i64,
}

/// A shop that has closed.
#[derive(Debug)]
pub(super) struct Shop {
    committed: HashMap<Uuid, Written>,
    rolled_back: usize,
}

impl Shop {
    pub(super) async fn create_tables(client: &Client) -> Result<(), tokio_postgres::Error> {
        client
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS shop;
                 CREATE TABLE IF NOT EXISTS shop.orders (
                     id text PRIMARY KEY, customer text NOT NULL, status text NOT NULL,
                     total_cents bigint NOT NULL, version bigint NOT NULL);",
            )
            .await
    }

    /// Lets the clerks work for `seconds`.
    pub(super) async fn open(
        config: &Arc<Config>,
        seconds: u32,
        stop: &CancellationToken,
    ) -> anyhow::Result<Shop> {
        let until = Instant::now() + Duration::from_secs(u64::from(seconds));
        let mut clerks = JoinSet::new();
        for clerk in 0..CLERKS {
            let (config, stop) = (config.clone(), stop.clone());
            clerks.spawn(async move { work(&config, clerk, until, &stop).await });
        }
        let mut shop = Shop { committed: HashMap::new(), rolled_back: 0 };
        while let Some(clerk) = clerks.join_next().await {
            let (committed, rolled_back) = clerk??;
            shop.committed.extend(committed);
            shop.rolled_back += rolled_back;
        }
        Ok(shop)
    }

    pub(super) fn committed(&self) -> &HashMap<Uuid, Written> {
        &self.committed
    }

    pub(super) fn rolled_back(&self) -> usize {
        self.rolled_back
    }
}

type Work = (Vec<(Uuid, Written)>, usize);

async fn work(config: &Config, clerk: u64, until: Instant, stop: &CancellationToken) -> anyhow::Result<Work> {
    let (mut client, _guard) = postgres::connect(&config.postgres, "statecast demo shop").await?;
    let mut random = fastrand::Rng::with_seed(clerk + 1);
    let (mut committed, mut rolled_back) = (Vec::new(), 0);
    // Orders of this run only: with your own server an earlier demo may have left some.
    let run = Uuid::now_v7().simple().to_string();
    while Instant::now() < until && !stop.is_cancelled() {
        let order = format!("{}-{clerk}{:02}", &run[26..], random.i32(1..=ORDERS));
        let transaction = client.transaction().await?;
        // The row's lock orders the writers of one order; the event is written while it is held.
        let row = transaction
            .query_one(
                "INSERT INTO shop.orders AS o VALUES ($1, $2, 'placed', $3, 1)
                 ON CONFLICT (id) DO UPDATE
                    SET version = o.version + 1,
                        status = CASE o.status WHEN 'placed' THEN 'paid' WHEN 'paid' THEN 'shipped' ELSE 'placed' END
                 RETURNING version, status",
                &[&order, &["Ada", "Grace", "Edsger", "Barbara"][random.usize(0..4)], &random.i64(500..20_000)],
            )
            .await?;
        let (version, status): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        let id: Uuid = transaction
            .query_one(
                "SELECT statecast.publish('order', id, 'order.' || $2::text, to_json(o), entity_version => version)
                   FROM shop.orders o WHERE id = $1",
                &[&order, &status],
            )
            .await?
            .try_get(0)?;
        if random.u32(0..ROLLBACK_ONE_IN) == 0 {
            transaction.rollback().await?;
            rolled_back += 1;
        } else {
            transaction.commit().await?;
            committed.push((id, Written { version }));
        }
        sleep(Duration::from_millis(random.u64(PAUSE_MS))).await;
    }
    Ok((committed, rolled_back))
}
