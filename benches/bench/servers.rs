//! The private servers of a run, their programs and versions, and the places in them that one measurement uses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio_postgres::{Client, NoTls};

use crate::publisher::Template;
use crate::relay::Setup;

/// Other than PostgreSQL's defaults, and said in the report: no checkpoint that one run meets and another does not.
pub(crate) const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "512MB"),
    ("max_wal_size", "8GB"),
    ("checkpoint_timeout", "30min"),
    ("max_prepared_transactions", "1100"),
    ("max_connections", "200"),
];
/// Memory at which the broker would block publishers: never here.
const BROKER_MEMORY: &str = "4GiB";

/// One PostgreSQL with fsync on, one RabbitMQ.
pub(crate) struct Servers {
    pub(crate) postgres: Postgres,
    pub(crate) rabbitmq: Rabbitmq,
    /// Where `psql` and its like are.
    programs: PathBuf,
    pub(crate) versions: BTreeMap<String, String>,
}

/// What kind of queue takes the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueKind {
    Quorum,
    Classic,
    Stream,
}

impl QueueKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            QueueKind::Quorum => "quorum",
            QueueKind::Classic => "classic",
            QueueKind::Stream => "stream",
        }
    }
}

/// A name that nothing else in this run has: `[a-z0-9-]`.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Servers {
    pub(crate) async fn start() -> Result<Servers> {
        let settings = SETTINGS.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let options =
            PostgresOptions { settings: settings.into(), fsync: true, ..PostgresOptions::default() };
        let broker = RabbitmqOptions { memory_watermark: BROKER_MEMORY.to_owned(), ..Default::default() };
        let (postgres, rabbitmq) = tokio::join!(Postgres::start(options), Rabbitmq::start(broker));
        let (postgres, rabbitmq) = (postgres?, rabbitmq?);
        let client = connect(&postgres.url("postgres")).await?;
        let programs: String =
            client.query_one("SELECT setting FROM pg_config WHERE name = 'BINDIR'", &[]).await?.get(0);
        let version: String = client.query_one("SELECT current_setting('server_version')", &[]).await?.get(0);
        let versions = BTreeMap::from([
            ("PostgreSQL".to_owned(), version),
            ("RabbitMQ".to_owned(), erlang(&rabbitmq, "rabbit_misc:version().").await),
            ("Erlang/OTP".to_owned(), erlang(&rabbitmq, "erlang:system_info(otp_release).").await),
            ("Statecast".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ]);
        Ok(Servers { postgres, rabbitmq, programs: programs.into(), versions })
    }

    /// Ends what a section that was interrupted has left open: it would hold up the slots of all that follow.
    pub(crate) async fn tidy(&self) -> Result<()> {
        let admin = connect(&self.postgres.url("postgres")).await?;
        for row in admin.query("SELECT gid, database::text FROM pg_prepared_xacts", &[]).await? {
            let (name, database): (String, String) = (row.get(0), row.get(1));
            let client = connect(&self.postgres.url(&database)).await?;
            client.batch_execute(&format!("ROLLBACK PREPARED '{name}'")).await?;
        }
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        admin.batch_execute(drop).await?;
        let left =
            admin.query("SELECT datname::text FROM pg_database WHERE datname LIKE 'bench-%'", &[]).await?;
        for row in left {
            let name: String = row.get(0);
            admin.batch_execute(&format!("DROP DATABASE \"{name}\" WITH (FORCE)")).await?;
        }
        Ok(())
    }

    /// A program that came with PostgreSQL, pointed at a database; ended when its handle is dropped.
    pub(crate) fn program(&self, name: &str, database: &str) -> Result<tokio::process::Command> {
        let program = self.programs.join(name);
        anyhow::ensure!(
            program.is_file(),
            "{name} was not found; install PostgreSQL with its client programs"
        );
        let mut command = tokio::process::Command::new(program);
        command
            .args(["-h", "127.0.0.1", "-p", &self.postgres.port().to_string(), "-U", "statecast"])
            .args(if name == "pgbench" { vec![database] } else { vec!["-d", database] })
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }
}

async fn erlang(rabbitmq: &Rabbitmq, code: &str) -> String {
    let said = rabbitmq.eval(code).await.unwrap_or_else(|_| "unknown".to_owned());
    said.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

/// A client whose connection ends with it.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("connect to PostgreSQL")?;
    tokio::spawn(connection);
    Ok(client)
}

/// A database with the schema installed.
pub(crate) struct Database {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) client: Client,
}

impl Database {
    /// `chunk_rows`: of the outbox; 0 for the default.
    pub(crate) async fn new(servers: &Servers, chunk_rows: u64) -> Result<Database> {
        let name = unique("bench");
        let url = servers.postgres.create_database(&name).await?;
        let mut install = Setup::new(&url, &servers.rabbitmq.url(), "none").streaming(true);
        if chunk_rows > 0 {
            install = install.with("STATECAST_RETENTION__CHUNK_ROWS", &chunk_rows.to_string());
        }
        install.command(&["install"]).await?;
        let client = connect(&url).await?;
        client.batch_execute("CREATE TABLE app (id bigint PRIMARY KEY, v bigint NOT NULL)").await?;
        Ok(Database { name, url, client })
    }

    /// Gives its room on the disk back.
    pub(crate) async fn drop(self, servers: &Servers) -> Result<()> {
        drop(self.client);
        let admin = connect(&servers.postgres.url("postgres")).await?;
        let sql = format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name);
        admin.batch_execute(&sql).await.context("drop a database")
    }
}

/// An exchange with one durable queue that takes everything.
pub(crate) struct Place {
    pub(crate) exchange: String,
    pub(crate) queue: String,
    channel: Channel,
    _connection: Connection,
}

impl Place {
    pub(crate) async fn new(servers: &Servers, kind: QueueKind) -> Result<Place> {
        let url = servers.rabbitmq.url();
        let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let place =
            Place { exchange: unique("exchange"), queue: unique("queue"), channel, _connection: connection };
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.name().into()));
        let (exchange, queue) = (place.exchange.as_str(), place.queue.as_str());
        let (none, durable) = (FieldTable::default, true);
        let declare = ExchangeDeclareOptions { durable, ..Default::default() };
        place.channel.exchange_declare(exchange.into(), ExchangeKind::Topic, declare, none()).await?;
        let declare = QueueDeclareOptions { durable, ..Default::default() };
        place.channel.queue_declare(queue.into(), declare, arguments).await?;
        let bind = QueueBindOptions::default();
        place.channel.queue_bind(queue.into(), exchange.into(), "#".into(), bind, none()).await?;
        Ok(place)
    }

    /// What lies in the queue first, as a publisher would send it again. It stays there.
    pub(crate) async fn template(&self) -> Result<Template> {
        let got = self.channel.basic_get(self.queue.as_str().into(), BasicGetOptions::default()).await?;
        Template::of(&got.context("the queue is empty")?.delivery)
    }

    /// Deletes the queue with what is in it, and the exchange.
    pub(crate) async fn drop(self) -> Result<()> {
        self.channel.queue_delete(self.queue.as_str().into(), QueueDeleteOptions::default()).await?;
        self.channel.exchange_delete(self.exchange.as_str().into(), Default::default()).await?;
        Ok(())
    }
}
