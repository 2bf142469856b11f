//! One function per fault. Each begins well, except where noted, and ends when its alerts have fired.

use std::time::Duration;

use lapin::types::AMQPValue;
use rustix::process::{Pid, Signal, kill_process};
use statecast::sandbox::{Rabbitmq, RabbitmqOptions};

use crate::process::Relay;
use crate::servers::{Topology, unique};
use crate::stage::{LIMIT, Pipeline, Servers, Stage};

/// Shorter than the broker's patience with a peer that says nothing (4 s between heartbeats).
const BROKER_PAUSE: Duration = Duration::from_millis(2500);

/// No standby; then it ends, and nobody is left.
pub struct Alone(pub Pipeline);

impl Alone {
    pub async fn new(servers: &Servers) -> Alone {
        Alone(Pipeline::new("alone", &servers.rough, &servers.broker, "#", &[]).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let mut relay = stage.leading(&self.0).await;
        stage.alarmed("StatecastNoStandby", "alone", &relay).await;
        stage.silent("StatecastAbsent", "alone").await;
        relay.kill9();
        stage.alarmed("StatecastAbsent", "alone", &relay).await;
    }
}

/// Two pipelines of one name, on two databases. At the broker only the fence would notice.
pub struct Twice(pub Pipeline, pub Pipeline);

impl Twice {
    pub async fn new(servers: &Servers) -> Twice {
        let set = [("RABBITMQ__FENCE", "false")];
        let one = Pipeline::new("twice", &servers.rough, &servers.broker, "#", &set).await;
        Twice(one, Pipeline::new("twice", &servers.rough, &servers.broker, "#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let _one = stage.leading(&self.0).await;
        stage.silent("StatecastManyLeaders", "twice").await;
        let other = self.1.run.start();
        stage.alarmed("StatecastManyLeaders", "twice", &other).await;
    }
}

/// A process that is killed again and again.
pub struct Restarting(pub Pipeline);

impl Restarting {
    pub async fn new(servers: &Servers) -> Restarting {
        Restarting(Pipeline::new("restarting", &servers.rough, &servers.broker, "#", &[]).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let mut relay = stage.leading(&self.0).await;
        for restarts in 1..=4 {
            stage.silent("StatecastRestarting", "restarting").await;
            relay.kill9();
            relay = self.0.run.start();
            let changes = "changes(process_start_time_seconds{pipeline=\"restarting\"}[30m])";
            assert!(stage.seen(&format!("{changes} >= {restarts}")).await, "restart {restarts} is not seen");
        }
        stage.alarmed("StatecastRestarting", "restarting", &relay).await;
    }
}

/// PostgreSQL closes every connection of the relay, and takes no new one.
pub struct CutOff(pub Pipeline);

impl CutOff {
    pub async fn new(servers: &Servers) -> CutOff {
        CutOff(Pipeline::new("cut-off", &servers.rough, &servers.broker, "#", &[]).await)
    }

    pub async fn strikes(&self, stage: &Stage, servers: &Servers) {
        let relay = stage.leading(&self.0).await;
        stage.silent("StatecastNoLeader", "cut-off").await;
        stage.silent("StatecastSessionsFail", "cut-off").await;
        let database = self.0.url.rsplit('/').next().unwrap().split('?').next().unwrap();
        let admin = crate::servers::connect(&servers.rough.url("postgres")).await.unwrap();
        let sql = format!(
            "ALTER DATABASE \"{database}\" ALLOW_CONNECTIONS false;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        );
        admin.batch_execute(&sql).await.unwrap();
        stage.alarmed("StatecastNoLeader", "cut-off", &relay).await;
        stage.alarmed("StatecastSessionsFail", "cut-off", &relay).await;
    }
}

/// A leader that is stopped, and followed, three times.
pub struct Takeovers(pub Pipeline, pub crate::process::Invocation);

impl Takeovers {
    pub async fn new(servers: &Servers) -> Takeovers {
        let one = Pipeline::new("takeovers", &servers.rough, &servers.broker, "#", &[]).await;
        let replica = one.run.replica();
        Takeovers(one, replica)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let mut leader = stage.leading(&self.0).await;
        let mut standby = self.1.start();
        standby.wait_ready(LIMIT).await.unwrap();
        for _ in 0..3 {
            stage.silent("StatecastTakeovers", "takeovers").await;
            let before = lost(&leader).await;
            leader.pause();
            assert!(standby.wait_for_metric("statecast_leader", 0.0, LIMIT).await, "{}", standby.log());
            leader.resume();
            let noticed = leader.wait_for_sample(SESSIONS, LOST, LIMIT, |count| count > before).await;
            assert!(noticed, "{}", leader.log());
            leader.wait_ready(LIMIT).await.unwrap();
            std::mem::swap(&mut leader, &mut standby);
        }
        stage.alarmed("StatecastTakeovers", "takeovers", &leader).await;
    }
}

const SESSIONS: &str = "statecast_sessions_total";
const LOST: &str = "outcome=\"lease_lost\"";

async fn lost(relay: &Relay) -> f64 {
    relay.metric_where(SESSIONS, LOST).await
}

/// A certificate that ends in three days. There is no time at which it would not fire.
pub struct Certificate(pub Pipeline, tempfile::TempDir);

impl Certificate {
    pub async fn new(servers: &Servers) -> Certificate {
        let dir = tempfile::tempdir().unwrap();
        let file = crate::stage::certificate(dir.path(), 3);
        let set = [("POSTGRES__TLS__CA_FILE", file.to_str().unwrap())];
        Certificate(Pipeline::new("certificate", &servers.rough, &servers.broker, "#", &set).await, dir)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = stage.leading(&self.0).await;
        stage.alarmed("StatecastCertificateExpires", "certificate", &relay).await;
    }
}

/// A broker that pauses for a moment; then one that blocks publishers for more than a minute.
pub struct Blocked(pub Pipeline, Rabbitmq);

impl Blocked {
    pub async fn new(servers: &Servers) -> Blocked {
        let broker = Rabbitmq::start(RabbitmqOptions::default()).await.unwrap();
        Blocked(Pipeline::new("blocked", &servers.rough, &broker, "#", &[]).await, broker)
    }

    pub async fn strikes(&mut self, stage: &Stage) {
        let Blocked(pipeline, broker) = self;
        let relay = stage.leading(pipeline).await;
        let _load = pipeline.load().await;
        assert!(
            relay.wait_for_metric("statecast_events_confirmed_total", 100.0, LIMIT).await,
            "{}",
            relay.log()
        );
        for alert in ["ConfirmsSlow", "BrokerBlocked", "Stuck", "Late", "Slow"] {
            stage.silent(&format!("Statecast{alert}"), "blocked").await;
        }
        broker.pause();
        // The fault itself lasts for a time.
        tokio::time::sleep(BROKER_PAUSE).await;
        broker.resume();
        stage.alarmed("StatecastConfirmsSlow", "blocked", &relay).await;
        let set = "set_vm_memory_high_watermark";
        broker.ctl(&[set, "absolute", "1MB"]).await.unwrap();
        stage.alarmed("StatecastBrokerBlocked", "blocked", &relay).await;
        stage.alarmed("StatecastStuck", "blocked", &relay).await;
        stage.alarmed("StatecastLate", "blocked", &relay).await;
        broker.ctl(&[set, "absolute", "1GB"]).await.unwrap();
        stage.alarmed("StatecastSlow", "blocked", &relay).await;
    }
}

/// An event over the size limit; then it is said to be two days old.
pub struct Parked(pub Pipeline);

impl Parked {
    pub async fn new(servers: &Servers) -> Parked {
        let set = [("RABBITMQ__MAX_MESSAGE_SIZE", "2KiB")];
        Parked(Pipeline::new("parked", &servers.rough, &servers.broker, "#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = stage.leading(&self.0).await;
        stage.silent("StatecastParked", "parked").await;
        self.0.publish("order", &format!("\"{}\"", "x".repeat(4096))).await;
        stage.alarmed("StatecastParked", "parked", &relay).await;
        stage.silent("StatecastParkedOld", "parked").await;
        let sql = "UPDATE statecast.parked SET since = since - interval '2 days'";
        assert_eq!(self.0.client().await.execute(sql, &[]).await.unwrap(), 1);
        stage.alarmed("StatecastParkedOld", "parked", &relay).await;
    }
}

/// A type without a binding, beside one that has one.
pub struct Returned(pub Pipeline);

impl Returned {
    pub async fn new(servers: &Servers) -> Returned {
        let set = [("UNROUTABLE__PARK_AFTER", "20s")];
        Returned(Pipeline::new("returned", &servers.rough, &servers.broker, "order.#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = stage.leading(&self.0).await;
        let _load = self.0.load().await;
        assert!(
            relay.wait_for_metric("statecast_events_confirmed_total", 100.0, LIMIT).await,
            "{}",
            relay.log()
        );
        stage.silent("StatecastReturned", "returned").await;
        self.0.publish("customer", "{}").await;
        stage.alarmed("StatecastReturned", "returned", &relay).await;
        stage.silent("StatecastParked", "returned").await;
        stage.alarmed("StatecastParked", "returned", &relay).await;
    }
}

/// A queue that is full and refuses, beside one that is not.
pub struct Nacked(pub Pipeline);

impl Nacked {
    pub async fn new(servers: &Servers) -> Nacked {
        let pipeline = Pipeline::new("nacked", &servers.rough, &servers.broker, "order.#", &[]).await;
        let full = Topology { queue: unique("full"), ..pipeline.topology.clone() };
        let refuse = AMQPValue::LongString("reject-publish".into());
        let arguments = [("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", refuse)];
        full.declare_queue("customer.#", &arguments).await;
        Nacked(pipeline)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = stage.leading(&self.0).await;
        let _load = self.0.load().await;
        self.0.publish("customer", "{}").await;
        assert!(
            relay.wait_for_metric("statecast_events_confirmed_total", 100.0, LIMIT).await,
            "{}",
            relay.log()
        );
        stage.silent("StatecastNacked", "nacked").await;
        self.0.publish("customer", "{}").await;
        stage.alarmed("StatecastNacked", "nacked", &relay).await;
        let paused = "statecast_keys_paused{pipeline=\"nacked\", reason=\"nack\"} > 0";
        assert!(stage.shown(paused).await, "{}", relay.log());
    }
}

/// The publication is dropped: no stream can be made.
pub struct NotStreaming(pub Pipeline);

impl NotStreaming {
    pub async fn new(servers: &Servers) -> NotStreaming {
        let set = [("SOURCE__MODE", "auto")];
        NotStreaming(Pipeline::new("not-streaming", &servers.rough, &servers.broker, "#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = streaming(stage, &self.0).await;
        stage.silent("StatecastNotStreaming", "not-streaming").await;
        self.0.client().await.batch_execute("DROP PUBLICATION statecast").await.unwrap();
        // The walsender looks at it when there is something to decode.
        self.0.publish("order", "{}").await;
        stage.alarmed("StatecastNotStreaming", "not-streaming", &relay).await;
    }
}

/// The publication publishes nothing for a moment, while it streams.
pub struct Missed(pub Pipeline);

impl Missed {
    pub async fn new(servers: &Servers) -> Missed {
        let set = [("SOURCE__MODE", "auto")];
        Missed(Pipeline::new("missed", &servers.rough, &servers.broker, "#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = streaming(stage, &self.0).await;
        let _load = self.0.load().await;
        assert!(
            relay.wait_for_sample("statecast_events_read_total", "via=\"wal\"", LIMIT, |n| n > 20.0).await
        );
        stage.silent("StatecastWalMissed", "missed").await;
        // Within one transaction: a relay that finds the publication changed ends the stream before it misses anything.
        let sql = "BEGIN;
                   ALTER PUBLICATION statecast SET (publish = 'update');
                   SELECT statecast.publish('order', 'missed', 'order.changed', '{}');
                   ALTER PUBLICATION statecast SET (publish = 'insert');
                   COMMIT";
        self.0.client().await.batch_execute(sql).await.unwrap();
        stage.alarmed("StatecastWalMissed", "missed", &relay).await;
    }
}

/// A large transaction, which decoding writes to disk; then one that stays open while the server writes much WAL.
pub struct Retained(pub Pipeline);

impl Retained {
    pub async fn new(servers: &Servers) -> Retained {
        let set = [("SOURCE__MODE", "auto"), ("SOURCE__WAL__RETAIN_MAX", "64MiB")];
        Retained(Pipeline::new("retained", &servers.rough, &servers.broker, "#", &set).await)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = streaming(stage, &self.0).await;
        let client = self.0.client().await;
        let large =
            "SELECT count(statecast.publish('order', n::text, 'order.changed', to_json(repeat('x', 1000))))
                     FROM generate_series(1, 2000) n";
        client.execute(large, &[]).await.unwrap();
        assert!(
            relay.wait_for_metric("statecast_events_confirmed_total", 1999.0, LIMIT).await,
            "{}",
            relay.log()
        );
        assert!(
            relay.wait_for_metric("statecast_wal_spill_bytes_total", 0.0, LIMIT).await,
            "nothing is spilled"
        );
        self.falls_behind(stage).await;
        stage.silent("StatecastWalRetained", "retained").await;
        let open = self.0.client().await;
        open.batch_execute("BEGIN; SELECT pg_current_xact_id()").await.unwrap();
        let wal = "SELECT count(pg_logical_emit_message(false, 'e2e', repeat('x', 1000000))) FROM generate_series(1, 54)";
        client.execute(wal, &[]).await.unwrap();
        stage.alarmed("StatecastWalRetained", "retained", &relay).await;
        open.batch_execute("ROLLBACK").await.unwrap();
    }

    /// For as long as it takes to be seen, and less than `source.wal.lag_max`: its walsender stands still.
    async fn falls_behind(&self, stage: &Stage) {
        let sql = "SELECT pid FROM pg_stat_replication WHERE application_name = 'statecast retained stream'";
        let pid: i32 = self.0.client().await.query_one(sql, &[]).await.unwrap().get(0);
        let walsender = Pid::from_raw(pid).unwrap();
        kill_process(walsender, Signal::STOP).unwrap();
        let shown = stage.shown("statecast_wal_lag_seconds{pipeline=\"retained\"} > 0").await;
        kill_process(walsender, Signal::CONT).unwrap();
        assert!(shown, "a stream that stands still is not behind");
    }
}

/// A relay that streams, and with it those of the other pipelines.
async fn streaming(stage: &Stage, pipeline: &Pipeline) -> Relay {
    let relay = stage.leading(pipeline).await;
    let streams =
        stage.seen(&format!("statecast_wal_streaming{{pipeline=\"{}\"}} == 1", pipeline.name)).await;
    assert!(streams, "{:?}\n{}", relay.get("/ready").await, relay.log());
    stage.streaming.wait().await;
    relay
}

/// A pipeline that somebody gave up: its cursor holds all chunks.
pub struct GivenUp(pub Pipeline);

impl GivenUp {
    pub async fn new(servers: &Servers) -> GivenUp {
        let set = [("RETENTION__CHUNK_ROWS", "1000"), ("RETENTION__MAX_SIZE", "1MiB")];
        let pipeline = Pipeline::new("outbox", &servers.rough, &servers.broker, "#", &set).await;
        pipeline.publish("order", "{}").await;
        pipeline
            .run
            .clone()
            .with("STATECAST_NAME", "given-up")
            .arguments(&["run", "--until-idle"])
            .succeed()
            .await;
        GivenUp(pipeline)
    }

    pub async fn strikes(&self, stage: &Stage) {
        let relay = stage.leading(&self.0).await;
        let client = self.0.client().await;
        stage.silent("StatecastOutboxChunks", "outbox").await;
        stage.silent("StatecastOutboxLarge", "outbox").await;
        // Numbers that were drawn and rolled back use chunks up as well, and faster: 16 of a thousand are ahead.
        let sequence = "pg_get_serial_sequence('statecast.outbox', 'seq')";
        let ahead = format!("SELECT setval({sequence}, nextval({sequence}) + 13000)");
        loop {
            let chunks = relay.metric("statecast_outbox_chunks").await;
            if chunks > 64.0 {
                break;
            }
            client.execute(&ahead, &[]).await.unwrap();
            self.0.publish("order", "{}").await;
            let grown = relay.wait_for_metric("statecast_outbox_chunks", chunks, LIMIT).await;
            assert!(grown, "{chunks} chunks\n{}", relay.log());
        }
        stage.alarmed("StatecastOutboxChunks", "outbox", &relay).await;
        stage.alarmed("StatecastOutboxLarge", "outbox", &relay).await;
    }
}
