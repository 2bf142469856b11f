//! The servers of all rounds, and the ways to them.

use std::time::Duration;

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};

use super::schedule::BINDINGS;
use crate::load;
use crate::pg_proxy::PgProxy;
use crate::process::Invocation;
use crate::proxy::Proxy;
use crate::servers::{Topology, connect, unique};

/// The database that each round's is a copy of.
const TEMPLATE: &str = "chaos_template";
/// The entity of the writer with long transactions.
pub const HELD: &str = "held";

/// Of a payload that is over the relays' limit.
pub const LARGE_BYTES: usize = 80 << 10;

/// A relay's ways to the servers.
pub struct Way {
    /// Where the disk is full. On the way to `database`.
    pub space: PgProxy,
    pub database: Proxy,
    pub broker: Proxy,
}

/// See the module head.
pub struct Arena {
    pub postgres: Postgres,
    pub broker: Rabbitmq,
    /// One for each relay.
    pub ways: [Way; 2],
}

/// What a round has for itself.
pub struct Place {
    /// The database, past all proxies.
    pub url: String,
    pub database: String,
    pub topology: Topology,
    pub pipeline: String,
    /// How each relay is run.
    pub invocations: [Invocation; 2],
}

impl Arena {
    pub async fn start() -> Arena {
        let settings = [
            // For the history of an event that is wrong.
            ("track_commit_timestamp", "on"),
            // A connection that stalls before its first word keeps a server from stopping for so long.
            ("authentication_timeout", "5s"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let (postgres, broker) = tokio::join!(
            Postgres::start(PostgresOptions { settings, ..Default::default() }),
            Rabbitmq::start(RabbitmqOptions::default())
        );
        let (postgres, broker) = (postgres.unwrap(), broker.unwrap());
        let ways = [Way::new(&postgres, &broker).await, Way::new(&postgres, &broker).await];
        let url = postgres.create_database(TEMPLATE).await.unwrap();
        let topology = Topology::new(broker.url());
        let install = Invocation::run(&url, &topology, "chaos").with("STATECAST_SOURCE__MODE", "wal");
        install.arguments(&["install"]).succeed().await;
        let client = connect(&url).await.unwrap();
        load::prepare(&client).await.unwrap();
        client.execute("INSERT INTO shop_order (id) VALUES ($1)", &[&HELD]).await.unwrap();
        Arena { postgres, broker, ways }
    }

    /// A database, an exchange, a queue and a pipeline that nobody has used.
    pub async fn place(&self, park_after_s: u64) -> Place {
        let database = unique("chaos");
        let admin = connect(&self.postgres.url("postgres")).await.unwrap();
        // Whoever has just left the template may still be seen there.
        let sql = format!("CREATE DATABASE \"{database}\" TEMPLATE {TEMPLATE}");
        let mut tries = 0;
        while let Err(error) = admin.batch_execute(&sql).await {
            tries += 1;
            assert!(tries < 100, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (url, topology) = (self.postgres.url(&database), Topology::new(self.broker.url()));
        topology.declare_exchange().await;
        topology.declare_queue(BINDINGS[0], &[]).await;
        topology.bind(BINDINGS[1]).await;
        let pipeline = unique("chaos");
        let broken = std::env::var("STATECAST_CHAOS_BREAK").unwrap_or_default();
        let invocations = [0, 1].map(|number| {
            let way: &Way = &self.ways[number];
            Invocation::run(&url, &topology, &pipeline)
                .with("STATECAST_POSTGRES__URL", &way.space.url(&url))
                .with("STATECAST_RABBITMQ__URLS", &way.broker.url(&topology.url))
                .with("STATECAST_BREAK", &broken)
                .with("STATECAST_SHUTDOWN__GRACE", "3s")
                .with("STATECAST_RABBITMQ__MAX_MESSAGE_SIZE", "64KiB")
                .with("STATECAST_UNROUTABLE__PARK_AFTER", &format!("{park_after_s}s"))
                .with("STATECAST_LOG__LEVEL", "info,statecast=debug")
        });
        Place { url, database, topology, pipeline, invocations }
    }

    /// Forgets a round.
    pub async fn clear(&self, place: &Place) {
        let admin = connect(&self.postgres.url("postgres")).await.unwrap();
        admin.batch_execute(&format!("DROP DATABASE \"{}\" WITH (FORCE)", place.database)).await.unwrap();
        let (_connection, channel) = place.topology.channel().await;
        let Topology { queue, exchange, .. } = &place.topology;
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        channel.exchange_delete(exchange.as_str().into(), ExchangeDeleteOptions::default()).await.unwrap();
    }
}

impl Way {
    async fn new(postgres: &Postgres, broker: &Rabbitmq) -> Way {
        let database = Proxy::start(format!("127.0.0.1:{}", postgres.port())).await;
        let space = PgProxy::start(database.address().to_string()).await;
        let broker = Proxy::start(format!("127.0.0.1:{}", broker.port())).await;
        Way { space, database, broker }
    }
}
