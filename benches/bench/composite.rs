//! The composite limit: the bare publisher, and at the same time whatever reads the same events. Broker, database and
//! relay share the machine, so this is the most that a relay which costs nothing could reach.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio_postgres::Client;

use crate::decoder::{self, Decoder};
use crate::fill::{Arrival, Events};
use crate::publisher::{Published, Publisher, Task, Template};
use crate::servers::{Database, Place, QueueKind, Servers};

/// For the slower of the two.
const LIMIT: Duration = Duration::from_secs(300);

/// What is published, and where to.
#[derive(Clone, Copy)]
pub(crate) struct Limits<'a> {
    pub(crate) servers: &'a Servers,
    pub(crate) kind: QueueKind,
    pub(crate) template: &'a Template,
    pub(crate) count: u64,
}

impl Limits<'_> {
    fn task(&self, place: &Place) -> Task {
        Task {
            url: self.servers.rabbitmq.url(),
            exchange: place.exchange.clone(),
            count: self.count,
            rate: None,
            template: self.template.clone(),
        }
    }

    /// The publisher on its own.
    pub(crate) async fn publisher(&self) -> Result<Published> {
        let place = Place::new(self.servers, self.kind).await?;
        let published = Publisher::start(&self.task(&place)).await?.publish().await?;
        place.drop().await?;
        Ok(published)
    }

    /// Publisher and COPY; events per second until both are done.
    pub(crate) async fn with_copy(&self, database: &Database) -> Result<f64> {
        let place = Place::new(self.servers, self.kind).await?;
        let publisher = Publisher::start(&self.task(&place)).await?;
        let began = Instant::now();
        let (published, copied) = tokio::join!(publisher.publish(), decoder::copy(self.servers, database));
        let took = began.elapsed().as_secs_f64();
        published?;
        copied?;
        place.drop().await?;
        Ok(self.count as f64 / took)
    }

    /// Publisher and decoder, with events that come in as `arrival` says; events per second until all is done.
    pub(crate) async fn with_decoder(
        &self,
        database: &Database,
        events: Events,
        arrival: Arrival,
    ) -> Result<f64> {
        let place = Place::new(self.servers, self.kind).await?;
        let mut decoder = Decoder::start(self.servers, database).await?;
        let arriving = arrival.prepare(database, events).await?;
        let publisher = Publisher::start(&self.task(&place)).await?;
        let began = Instant::now();
        let decode = async {
            arriving.arrive().await?;
            let end = decoder::end(&database.client).await?;
            decoder.reached(&database.client, end, LIMIT).await
        };
        let (published, decoded) = tokio::join!(publisher.publish(), decode);
        let took = began.elapsed().as_secs_f64();
        published?;
        decoded?;
        decoder.stop(&database.client).await?;
        place.drop().await?;
        Ok(self.count as f64 / took)
    }

    /// The decoder on its own; events per second.
    pub(crate) async fn decoder(&self, database: &Database, events: Events) -> Result<f64> {
        let mut decoder = Decoder::start(self.servers, database).await?;
        let arriving = Arrival::Burst.prepare(database, events).await?;
        let began = Instant::now();
        arriving.arrive().await?;
        decoder.reached(&database.client, decoder::end(&database.client).await?, LIMIT).await?;
        let took = began.elapsed().as_secs_f64();
        decoder.stop(&database.client).await?;
        Ok(self.count as f64 / took)
    }
}

/// Writes what changed to the disk, so that no run pays for another's writes.
pub(crate) async fn settle(client: &Client) -> Result<()> {
    client.batch_execute("CHECKPOINT").await.context("checkpoint")
}
