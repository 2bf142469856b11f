//! The consumer: prints what arrives and keeps the books.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueuePurgeOptions};
use lapin::types::FieldTable;
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::servers::EXCHANGE;
use super::shop::{Shop, Written};
use crate::config::Config;
use crate::sink::connect;

/// What the consumer reads of an event: the envelope and the one field of the state that it prints.
#[derive(Deserialize)]
struct Envelope {
    r#type: String,
    subject: String,
    sequence: String,
    time: String,
    entityversion: Option<String>,
    data: Order,
}

#[derive(Deserialize)]
struct Order {
    customer: String,
    total_cents: i64,
}

/// A first delivery.
#[derive(Debug)]
struct Arrival {
    key: String,
    version: i64,
    latency_ms: f64,
}

#[derive(Debug, Default)]
struct Books {
    arrivals: Vec<(Uuid, Arrival)>,
    known: HashMap<Uuid, usize>,
    repeats: usize,
}

/// A running consumer.
pub(super) struct Watch {
    books: Arc<Mutex<Books>>,
    arrived: Arc<Notify>,
    connection: lapin::Connection,
}

/// The consumer's side of the books.
#[derive(Debug)]
pub(super) struct Summary {
    pub(super) confirmed: u64,
    pub(super) received: usize,
    pub(super) repeats: usize,
    pub(super) lost: usize,
    pub(super) invented: usize,
    pub(super) out_of_order: usize,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Watch {
    pub(super) async fn start(config: &Config) -> anyhow::Result<Watch> {
        let connection = connect::connect(&config.rabbitmq, "statecast demo consumer").await?;
        let channel = connection.create_channel().await?;
        // What an earlier demo left behind on your own broker.
        channel.queue_purge(EXCHANGE.into(), QueuePurgeOptions::default()).await?;
        let mut consumer = channel
            .basic_consume(
                EXCHANGE.into(),
                "demo".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await
            .context("cannot consume the demo's queue")?;
        let books = Arc::new(Mutex::new(Books::default()));
        let arrived = Arc::new(Notify::new());
        let (shared, signal) = (books.clone(), arrived.clone());
        tokio::spawn(async move {
            while let Some(Ok(delivery)) = consumer.next().await {
                take(&shared, &delivery);
                let _ = delivery.ack(BasicAckOptions::default()).await;
                signal.notify_one();
            }
        });
        Ok(Watch { books, arrived, connection })
    }

    /// Waits until all of `committed` arrived, or until `limit`.
    pub(super) async fn wait_for(&self, committed: &HashMap<Uuid, Written>, limit: Duration) {
        let deadline = Instant::now() + limit;
        while !lock(&self.books).has_all(committed) {
            if timeout_at(deadline, self.arrived.notified()).await.is_err() {
                return;
            }
        }
    }

    pub(super) fn summary(&self, shop: &Shop, confirmed: u64) -> Summary {
        let books = lock(&self.books);
        let committed = shop.committed();
        let mut latest: HashMap<&str, i64> = HashMap::new();
        let mut out_of_order = 0;
        for (_, arrival) in &books.arrivals {
            let last = latest.entry(&arrival.key).or_default();
            out_of_order += usize::from(arrival.version <= *last);
            *last = arrival.version.max(*last);
        }
        let mut latencies: Vec<f64> = books.arrivals.iter().map(|(_, a)| a.latency_ms).collect();
        latencies.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (latencies.len() as f64 * share) as usize;
            latencies.get(index.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Summary {
            confirmed,
            received: books.arrivals.len(),
            repeats: books.repeats,
            lost: committed.keys().filter(|id| !books.known.contains_key(id)).count(),
            invented: books.known.keys().filter(|id| !committed.contains_key(id)).count(),
            out_of_order,
            p50_ms: at(0.50),
            p99_ms: at(0.99),
        }
    }

    /// Closes the consumer.
    pub(super) async fn end(self) {
        connect::close(&self.connection).await;
    }
}

impl Books {
    fn has_all(&self, committed: &HashMap<Uuid, Written>) -> bool {
        committed.keys().all(|id| self.known.contains_key(id))
    }
}

fn lock(books: &Mutex<Books>) -> std::sync::MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(books: &Mutex<Books>, delivery: &Delivery) {
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_micros() as i64);
    let id = delivery.properties.message_id().as_ref().and_then(|id| Uuid::parse_str(id.as_str()).ok());
    let Some(id) = id else { return };
    let Ok(event) = serde_json::from_slice::<Envelope>(&delivery.data) else {
        return;
    };
    let mut books = lock(books);
    if books.known.contains_key(&id) {
        books.repeats += 1;
        return;
    }
    let latency_ms = (now_us - written_at_us(&event.time).unwrap_or(now_us)).max(0) as f64 / 1000.0;
    let version = event.entityversion.as_deref().and_then(|v| v.parse().ok()).unwrap_or_default();
    println!(
        "  #{:<5} {:<14} {:<12} v{version:<3} {:>8.2} EUR  {:<8} {latency_ms:6.1} ms",
        event.sequence.trim_start_matches('0'),
        event.r#type,
        event.subject,
        event.data.total_cents as f64 / 100.0,
        event.data.customer,
    );
    let place = books.arrivals.len();
    books.known.insert(id, place);
    books.arrivals.push((id, Arrival { key: event.subject, version, latency_ms }));
}

/// Microseconds since the epoch of an event's `time`.
fn written_at_us(time: &str) -> Option<i64> {
    let written = OffsetDateTime::parse(time, &Rfc3339).ok()?;
    i64::try_from(written.unix_timestamp_nanos() / 1000).ok()
}
