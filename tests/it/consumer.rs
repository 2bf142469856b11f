//! A consumer that writes down what it receives, in order, over restarts of the broker.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::message::Delivery as Received;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Connection, ConnectionProperties};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::checker::Seen;

/// Unacknowledged deliveries, at most.
const PREFETCH: u16 = 200;
/// Pause before another try after a lost connection.
const RECONNECT: Duration = Duration::from_millis(100);
/// How long a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// One delivery.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub received: Instant,
    pub message_id: Option<String>,
    pub routing_key: String,
    pub redelivered: bool,
    pub headers: FieldTable,
    pub content_type: Option<String>,
    pub body: Vec<u8>,
}

impl Delivery {
    fn new(received: &Received) -> Delivery {
        let properties = &received.properties;
        Delivery {
            received: Instant::now(),
            message_id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
            routing_key: received.routing_key.as_str().to_owned(),
            redelivered: received.redelivered,
            headers: properties.headers().clone().unwrap_or_default(),
            content_type: properties.content_type().as_ref().map(|kind| kind.as_str().to_owned()),
            body: received.data.clone(),
        }
    }

    /// A header that is text.
    pub fn header(&self, name: &str) -> Option<String> {
        match self.headers.inner().get(name)? {
            AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
            AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
            _ => None,
        }
    }

    /// The event's `data`: of a structured event the member, of a binary one the body.
    pub fn data(&self) -> serde_json::Value {
        let Ok(body) = serde_json::from_slice::<serde_json::Value>(&self.body) else {
            return serde_json::Value::Null;
        };
        let structured = body.get("specversion").is_some();
        if structured { body.get("data").cloned().unwrap_or_default() } else { body }
    }

    /// For the checker. Panics if the message does not say which event it is.
    pub fn seen(&self) -> Seen {
        let id = self.message_id.as_deref().and_then(|id| Uuid::parse_str(id).ok());
        Seen {
            event_id: id.unwrap_or_else(|| panic!("no event id: {self:?}")),
            key: self.header("partitionkey").unwrap_or_else(|| panic!("no partitionkey: {self:?}")),
            sequence: self.header("sequence").and_then(|text| text.parse().ok()).expect("sequence"),
            n: self.data().get("n").and_then(serde_json::Value::as_i64),
            redelivered: self.redelivered,
        }
    }
}

/// A running consumer; dropped, it stops.
#[derive(Debug)]
pub struct Consumer {
    log: Arc<Log>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Log {
    deliveries: Mutex<Vec<Delivery>>,
    grown: Notify,
}

impl Consumer {
    /// Consumes `queue` until dropped, and connects again whenever the broker goes away.
    pub fn start(url: &str, queue: &str) -> Consumer {
        Consumer::start_any(&[url.to_owned()], queue)
    }

    /// The same by any of several URLs, one after another.
    pub fn start_any(urls: &[String], queue: &str) -> Consumer {
        let log = Arc::new(Log::default());
        let task = tokio::spawn(run(urls.to_owned(), queue.to_owned(), Arc::clone(&log)));
        Consumer { log, task }
    }

    /// Everything received so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.log.deliveries.lock().unwrap().clone()
    }

    /// Everything received so far, for the checker.
    pub fn seen(&self) -> Vec<Seen> {
        self.log.deliveries.lock().unwrap().iter().map(Delivery::seen).collect()
    }

    /// Waits until `enough` holds for what was received; `false` after `limit`.
    pub async fn wait_for(&self, limit: Duration, mut enough: impl FnMut(&[Delivery]) -> bool) -> bool {
        let wait = async {
            loop {
                let mut grown = std::pin::pin!(self.log.grown.notified());
                grown.as_mut().enable();
                if enough(&self.log.deliveries.lock().unwrap()) {
                    return;
                }
                grown.await;
            }
        };
        tokio::time::timeout(limit, wait).await.is_ok()
    }

    /// Waits until every id of `ids` was received; returns how many were not.
    pub async fn wait_for_ids(&self, limit: Duration, ids: impl IntoIterator<Item = Uuid>) -> usize {
        let mut missing: std::collections::HashSet<String> =
            ids.into_iter().map(|id| id.to_string()).collect();
        let mut looked_at = 0;
        self.wait_for(limit, |deliveries| {
            for delivery in &deliveries[looked_at..] {
                missing.remove(delivery.message_id.as_deref().unwrap_or_default());
            }
            looked_at = deliveries.len();
            missing.is_empty()
        })
        .await;
        missing.len()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(urls: Vec<String>, queue: String, log: Arc<Log>) {
    for url in urls.iter().cycle() {
        // A broker that is away, or goes away, is expected here: the next session gets what was not acknowledged.
        let _ = session(url, &queue, &log).await;
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn session(url: &str, queue: &str, log: &Log) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let connect = Connection::connect(url, ConnectionProperties::default());
    let connection = tokio::time::timeout(CONNECT_LIMIT, connect).await??;
    let consume = async {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let options = BasicConsumeOptions::default();
        channel.basic_consume(queue.into(), "".into(), options, FieldTable::default()).await
    };
    let mut consumer = tokio::time::timeout(CONNECT_LIMIT, consume).await??;
    while let Some(received) = consumer.next().await {
        let received = received?;
        log.deliveries.lock().unwrap().push(Delivery::new(&received));
        log.grown.notify_waiters();
        // An answer that is written while the broker dies may never be done.
        tokio::time::timeout(CONNECT_LIMIT, received.acker.ack(BasicAckOptions::default())).await??;
    }
    Ok(())
}
