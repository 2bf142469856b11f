//! Servers, pipelines and the load that is written to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use statecast::sandbox::{Postgres, PostgresOptions, Rabbitmq, RabbitmqOptions};
use tokio::sync::Barrier;
use tokio_postgres::Client;

use crate::process::{Invocation, Relay};
use crate::prometheus::Prometheus;
use crate::servers::{Topology, connect};

/// For whatever must happen; the longest is an event that waits for more than a minute.
pub const LIMIT: Duration = Duration::from_secs(100);
/// For the alert that nobody leads, after somebody does.
const START: Duration = Duration::from_secs(10);
/// How often an event is written.
const WRITE_INTERVAL: Duration = Duration::from_millis(50);
const KEYS: u32 = 20;

/// The servers. Nothing happens to the first PostgreSQL, which is the healthy pipeline's alone: a transaction that is open
/// anywhere in a server keeps WAL for all of its slots.
pub struct Servers {
    pub calm: Postgres,
    pub rough: Postgres,
    pub broker: Rabbitmq,
}

impl Servers {
    pub async fn start() -> Servers {
        let rough = [("max_connections", "200"), ("logical_decoding_work_mem", "64kB")];
        let settings = rough.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let (calm, rough, broker) = tokio::join!(
            Postgres::start(PostgresOptions::default()),
            Postgres::start(PostgresOptions { settings, ..Default::default() }),
            Rabbitmq::start(RabbitmqOptions::default()),
        );
        Servers { calm: calm.unwrap(), rough: rough.unwrap(), broker: broker.unwrap() }
    }
}

/// One pipeline: its database, its exchange and queue, and how to run it.
pub struct Pipeline {
    pub name: String,
    pub url: String,
    pub topology: Topology,
    pub run: Invocation,
}

impl Pipeline {
    /// With a database of its own; `binding` is the queue's.
    pub async fn new(
        name: &str,
        postgres: &Postgres,
        broker: &Rabbitmq,
        binding: &str,
        set: &[(&str, &str)],
    ) -> Pipeline {
        let url = postgres.create_database(&crate::servers::unique(name)).await.unwrap();
        let topology = Topology::new(broker.url());
        topology.declare_exchange().await;
        topology.declare_queue(binding, &[]).await;
        let run = Invocation::run(&url, &topology, name);
        let run = set.iter().fold(run, |run, (name, value)| run.with(&format!("STATECAST_{name}"), value));
        run.arguments(&["install"]).succeed().await;
        Pipeline { name: name.to_owned(), url, topology, run }
    }

    pub async fn client(&self) -> Client {
        connect(&self.url).await.unwrap()
    }

    /// Writes one event of the type `TYPE.changed`.
    pub async fn publish(&self, aggregate_type: &str, payload: &str) {
        let event_type = format!("{aggregate_type}.changed");
        let sql = "SELECT statecast.publish($1, '1', $2, $3::text::json)";
        self.client().await.execute(sql, &[&aggregate_type, &event_type, &payload]).await.unwrap();
    }

    /// Writes events of the type `order` to several entities until it is dropped.
    pub async fn load(&self) -> Load {
        let client = self.client().await;
        Load(tokio::spawn(async move {
            let sql = "SELECT statecast.publish('order', $1, 'order.changed', '{\"state\": \"paid\"}')";
            for number in 0u32.. {
                // Some faults end this connection.
                if client.execute(sql, &[&(number % KEYS).to_string()]).await.is_err() {
                    return;
                }
                tokio::time::sleep(WRITE_INTERVAL).await;
            }
        }))
    }
}

/// A task that writes; dropped, it stops.
pub struct Load(tokio::task::JoinHandle<()>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What each fault works with.
pub struct Stage {
    pub prometheus: Prometheus,
    /// Three pipelines stream before a transaction is left open: a slot is not made while one is.
    pub streaming: Barrier,
}

impl Stage {
    /// Starts a relay, and waits until Prometheus has seen it lead.
    pub async fn leading(&self, pipeline: &Pipeline) -> Relay {
        let relay = pipeline.run.start();
        let seen = self.seen(&format!("statecast_leader{{pipeline=\"{}\"}} == 1", pipeline.name)).await;
        assert!(seen, "{} does not lead: {:?}\n{}", pipeline.name, relay.get("/ready").await, relay.log());
        relay
    }

    /// Waits until a query gives anything.
    pub async fn seen(&self, query: &str) -> bool {
        self.prometheus.wait_for(query, LIMIT).await
    }

    /// Waits until a query has given something for longer than a scrape: a dashboard, which asks for each second, sees it too.
    pub async fn shown(&self, query: &str) -> bool {
        self.seen(&format!("count_over_time(({query})[10s:1s]) >= 3")).await
    }

    /// Waits until it does not fire, or the fault would prove nothing; what a start raises ends soon.
    pub async fn silent(&self, alert: &str, pipeline: &str) {
        let silent = format!("absent({})", firing(alert, pipeline));
        let ends = self.prometheus.wait_for(&silent, START).await;
        assert!(ends, "{alert} fires for {pipeline} before its fault");
    }

    /// Waits until an alert fires.
    pub async fn alarmed(&self, alert: &str, pipeline: &str, relay: &Relay) {
        let began = std::time::Instant::now();
        let fires = self.seen(&firing(alert, pipeline)).await;
        assert!(
            fires,
            "{alert} does not fire for {pipeline}: {:?}\n{}",
            relay.get("/ready").await,
            relay.log()
        );
        println!("{alert} fires for {pipeline}, {:.1} s after its fault", began.elapsed().as_secs_f64());
    }
}

fn firing(alert: &str, pipeline: &str) -> String {
    format!("ALERTS{{alertname=\"{alert}\", pipeline=\"{pipeline}\", alertstate=\"firing\"}}")
}

/// A certificate, in a file, that ends in `days`.
pub fn certificate(dir: &std::path::Path, days: i64) -> PathBuf {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(days);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cert = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    let path = dir.join(format!("{days}.pem"));
    std::fs::write(&path, cert.pem()).unwrap();
    path
}

/// Where a relay of each invocation is scraped.
pub fn targets(invocations: &[&Invocation]) -> Vec<SocketAddr> {
    invocations.iter().map(|invocation| invocation.http()).collect()
}
