//! A leader and its standbys, and what can happen to a leader: killed, stopped, cut off.
//!
//! Each relay says in its events who it is (`event.source`), so a delivery tells who published it. A trigger on the cursor row
//! notes who wrote it. The leader that faults are for reaches its servers through proxies; the others do not.

use std::time::{Duration, Instant};

use tokio_postgres::Client;

use crate::checker::Verdict;
use crate::consumer::{Consumer, Delivery};
use crate::process::{Invocation, Relay};
use crate::proxy::{Mode, Proxy};
use crate::relay::{ARRIVAL_LIMIT, READY_LIMIT};
use crate::servers;
use crate::wal_bench::{WalBench, wait_streaming};

/// The promises about time.
pub const KILL_LIMIT: Duration = Duration::from_secs(5);
pub const SILENCE_LIMIT: Duration = Duration::from_secs(15);

/// How events are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reads {
    Poll,
    Wal,
}

pub struct Ha {
    pub bench: WalBench,
    pub consumer: Consumer,
    pub database: Proxy,
    pub broker: Proxy,
    pub reads: Reads,
    pub sql: Client,
}

/// One write of the cursor row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    pub epoch: i64,
    pub pid: i32,
    pub position: String,
}

impl Ha {
    pub async fn start(reads: Reads) -> Ha {
        let mut bench = WalBench::start(&[]).await;
        if reads == Reads::Poll {
            bench.set("STATECAST_SOURCE__MODE", "poll");
        }
        let (database, broker) = proxies(&bench).await;
        let (consumer, sql) = (bench.consumer(), bench.client().await);
        sql.batch_execute(
            "CREATE TABLE public.cursor_write (n bigint GENERATED ALWAYS AS IDENTITY, epoch bigint, pid int, position text);
             CREATE FUNCTION public.note_cursor_write() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN
                 INSERT INTO public.cursor_write (epoch, pid, position)
                 VALUES (NEW.epoch, pg_backend_pid(), NEW.snapshot::text || ' ' || NEW.confirmed);
                 RETURN NULL;
             END $$;
             CREATE TRIGGER note AFTER UPDATE ON statecast.cursor FOR EACH ROW EXECUTE FUNCTION public.note_cursor_write()",
        )
        .await
        .unwrap();
        Ha { bench, consumer, database, broker, reads, sql }
    }

    /// One more variable for relays that start from now on.
    pub fn set(&mut self, name: &str, value: &str) {
        self.bench.set(name, value);
    }

    /// A relay that says who it is.
    pub fn named(&self, who: &str) -> Invocation {
        self.bench.invocation.replica().with("STATECAST_EVENT__SOURCE", &format!("/{who}"))
    }

    /// A relay that reaches its servers through proxies.
    pub fn behind(&self, who: &str, database: &Proxy, broker: &Proxy) -> Relay {
        let invocation = self
            .named(who)
            .with("STATECAST_POSTGRES__URL", &database.url(&self.bench.url))
            .with("STATECAST_RABBITMQ__URLS", &broker.url(&self.bench.topology.url));
        invocation.start()
    }

    /// The leader that faults are for, leading.
    pub async fn leader(&self) -> Relay {
        let relay = self.behind("leader", &self.database, &self.broker);
        self.leads(&relay, READY_LIMIT).await;
        relay
    }

    /// Waits until a relay leads (and streams).
    pub async fn leads(&self, relay: &Relay, limit: Duration) {
        assert!(
            relay.wait_for_metric("statecast_leader", 0.0, limit).await,
            "it does not lead: {:?}",
            relay.get("/ready").await
        );
        if self.reads == Reads::Wal {
            wait_streaming(relay).await;
        }
    }

    /// A standby that is ready.
    pub async fn standby(&self, who: &str) -> Relay {
        let relay = self.named(who).start();
        wait_standby(&relay, READY_LIMIT).await;
        relay
    }

    /// Cuts the leader off: nothing passes in either direction, and nobody is told.
    pub fn cut_off(&self) {
        self.database.set(Mode::HalfOpen);
        self.broker.set(Mode::HalfOpen);
    }

    /// The network is back; connections of before are dead.
    pub fn heal(&self) {
        for proxy in [&self.database, &self.broker] {
            proxy.cut();
            proxy.set(Mode::Pass);
        }
    }

    /// Publishes an event, and waits until it has arrived: how long that took.
    pub async fn arrival(&self, n: i64) -> Duration {
        let begun = Instant::now();
        let marker = self.bench.publish("order", "marker", n).await;
        assert_eq!(self.consumer.wait_for_ids(ARRIVAL_LIMIT, [marker]).await, 0, "nobody publishes");
        begun.elapsed()
    }

    /// All deliveries, each with its publisher.
    pub fn published(&self) -> Vec<(String, Delivery)> {
        self.consumer.deliveries().into_iter().map(|delivery| (who(&delivery), delivery)).collect()
    }

    /// Who has published, in turn.
    pub fn turns(&self) -> Vec<String> {
        let mut turns: Vec<String> = self.published().into_iter().map(|(who, _)| who).collect();
        turns.dedup();
        turns
    }

    /// Deliveries of `of` that arrived behind the first of somebody else.
    pub fn stragglers(&self, of: &str) -> usize {
        let published = self.published();
        let other = published.iter().position(|(who, _)| who != of);
        other.map_or(0, |first| published[first..].iter().filter(|(who, _)| who == of).count())
    }

    /// Every write of the cursor row, in order.
    pub async fn writes(&self) -> Vec<Write> {
        let rows =
            self.sql.query("SELECT epoch, pid, position FROM public.cursor_write ORDER BY n", &[]).await;
        let write =
            |row: &tokio_postgres::Row| Write { epoch: row.get(0), pid: row.get(1), position: row.get(2) };
        rows.unwrap().iter().map(write).collect()
    }

    /// The backend that has written each epoch, in order. Panics if two did, or if an older one was written again.
    pub async fn writers(&self) -> Vec<(i64, i32)> {
        let mut writers: Vec<(i64, i32)> = Vec::new();
        for Write { epoch, pid, .. } in self.writes().await {
            match writers.last() {
                Some(last) if *last == (epoch, pid) => {}
                Some((newest, _)) if *newest >= epoch => {
                    panic!("{pid} has written epoch {epoch} after {writers:?}")
                }
                _ => writers.push((epoch, pid)),
            }
        }
        writers
    }

    /// Everything has arrived, nothing is wrong, and every relay ends well.
    pub async fn finish(&self, relays: &mut [Relay]) -> Verdict {
        let verdict = self.bench.finish(relays, &self.consumer).await;
        verdict.assert_clean();
        self.writers().await;
        verdict
    }
}

/// One to PostgreSQL, one to RabbitMQ.
pub async fn proxies(bench: &WalBench) -> (Proxy, Proxy) {
    let database = Proxy::start(format!("127.0.0.1:{}", bench.server.port())).await;
    (database, Proxy::start(format!("127.0.0.1:{}", servers::rabbitmq().await.port())).await)
}

/// Who has published it.
pub fn who(delivery: &Delivery) -> String {
    let body: serde_json::Value = serde_json::from_slice(&delivery.body).unwrap();
    body["source"].as_str().unwrap().trim_start_matches('/').to_owned()
}

/// Waits until a relay is a standby, and ready.
pub async fn wait_standby(relay: &Relay, limit: Duration) {
    wait_ready_body(relay, limit, 200, "role: standby").await;
}

/// Waits until `/ready` answers so; its body.
pub async fn wait_ready_body(relay: &Relay, limit: Duration, status: u16, text: &str) -> String {
    let begun = Instant::now();
    loop {
        let answer = relay.get("/ready").await;
        if let Some((found, body)) = &answer
            && *found == status
            && body.contains(text)
        {
            return body.clone();
        }
        assert!(begun.elapsed() < limit, "never {status} {text:?}: {answer:?}\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
