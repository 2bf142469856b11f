//! The servers that the tests share, and names that keep the tests apart.
//!
//! A test that stops or kills a server starts its own with [`Postgres::start`] or [`Rabbitmq::start`].
//! Each `#[tokio::test]` has its own runtime; the shared servers belong to none. They are statics, hence never
//! dropped: their watchers end them when this process ends.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

/// The PostgreSQL that all tests share.
pub async fn postgres() -> &'static Postgres {
    static SHARED: OnceCell<Postgres> = OnceCell::const_new();
    SHARED.get_or_init(async || Postgres::start(PostgresOptions::default()).await.unwrap()).await
}

/// The RabbitMQ that all tests share.
pub async fn rabbitmq() -> &'static Rabbitmq {
    static SHARED: OnceCell<Rabbitmq> = OnceCell::const_new();
    SHARED.get_or_init(async || Rabbitmq::start(RabbitmqOptions::default()).await.unwrap()).await
}

/// A name that no other test of this or another run uses: `[a-z0-9-]`.
pub fn unique(prefix: &str) -> String {
    static RUN: OnceLock<u32> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let run = RUN.get_or_init(|| fastrand::u32(..));
    format!("{prefix}-{run:08x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// An empty database of the shared server: its URL.
pub async fn fresh_database() -> String {
    postgres().await.create_database(&unique("db")).await.unwrap()
}

/// A client whose connection task ends with it.
pub async fn connect(url: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Exchange and queue names of one test, on one broker.
#[derive(Clone, Debug)]
pub struct Topology {
    /// The broker.
    pub url: String,
    /// A durable topic exchange.
    pub exchange: String,
    /// A durable queue.
    pub queue: String,
}

impl Topology {
    /// Fresh names; nothing is declared yet.
    pub fn new(url: impl Into<String>) -> Topology {
        Topology { url: url.into(), exchange: unique("exchange"), queue: unique("queue") }
    }

    /// A connection and a channel. The caller keeps the connection: dropping it closes it.
    pub async fn channel(&self) -> (Connection, Channel) {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        (connection, channel)
    }

    /// Declares the exchange.
    pub async fn declare_exchange(&self) {
        let (_connection, channel) = self.channel().await;
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let (exchange, kind) = (self.exchange.as_str().into(), ExchangeKind::Topic);
        channel.exchange_declare(exchange, kind, options, FieldTable::default()).await.unwrap();
    }

    /// Declares the queue with `arguments` (e.g. `x-queue-type`) and binds it with `binding`.
    pub async fn declare_queue(&self, binding: &str, arguments: &[(&str, AMQPValue)]) {
        let (_connection, channel) = self.channel().await;
        let mut table = FieldTable::default();
        for (name, value) in arguments {
            table.insert((*name).into(), value.clone());
        }
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        channel.queue_declare(self.queue.as_str().into(), options, table).await.unwrap();
        self.bind(binding).await;
    }

    /// Binds the queue with one more key.
    pub async fn bind(&self, binding: &str) {
        let (_connection, channel) = self.channel().await;
        let (queue, exchange) = (self.queue.as_str().into(), self.exchange.as_str().into());
        let (options, none) = (QueueBindOptions::default(), FieldTable::default());
        channel.queue_bind(queue, exchange, binding.into(), options, none).await.unwrap();
    }

    /// Exchange and a classic queue.
    pub async fn declare(&self) {
        self.declare_exchange().await;
        self.declare_queue("#", &[]).await;
    }
}
