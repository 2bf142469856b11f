//! Makes faults happen, and undoes those that last.

use std::time::Duration;

use lapin::options::QueueDeleteOptions;
use lapin::types::FieldTable;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_postgres::Client;

use super::arena::{Arena, LARGE_BYTES, Place};
use super::operator::Operator;
use super::relays::Relays;
use super::round::full;
use super::schedule::{Edit, Fault, LOAD_MS, Net, Side, Step, Who};
use crate::load;
use crate::pg_proxy::{Failure, Rule};
use crate::proxy::{Mode, Proxy};
use crate::servers::{Topology, connect};

/// For one fault, or its end.
const ACTION_LIMIT: Duration = Duration::from_secs(120);
/// For the application to write.
const WRITE_LIMIT: Duration = Duration::from_secs(5);
/// Bytes a second that pass where the network is slow.
const SLOW: u32 = 100_000;
/// The sandbox's own limits.
const WELL_MEMORY: &str = "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1073741824}).";
const WELL_DISK: &str = "rabbit_disk_monitor:set_disk_free_limit(50000000).";
const LOW_MEMORY: &str = "vm_memory_monitor:set_vm_memory_high_watermark({absolute, 1000000}).";
const LOW_DISK: &str = "rabbit_disk_monitor:set_disk_free_limit(1000000000000000).";

/// How a fault that lasts is undone.
enum Undo {
    /// If it is still the same process.
    Resume {
        number: usize,
        process: u32,
    },
    Network {
        number: usize,
        side: Side,
        cut: bool,
    },
    Alarm {
        disk: bool,
    },
    DeleteQueue(Topology),
    Bind(&'static [&'static str]),
    Mend(Edit),
    /// The lock ends with its connection.
    Unlock(Client),
}

/// See the module head.
pub struct Driver<'a> {
    arena: &'a mut Arena,
    place: &'a Place,
    relays: &'a mut Relays,
    operator: &'a mut Operator,
    undo: Vec<(Instant, Undo)>,
    complaints: Vec<String>,
}

impl<'a> Driver<'a> {
    pub fn new(
        arena: &'a mut Arena,
        place: &'a Place,
        relays: &'a mut Relays,
        operator: &'a mut Operator,
    ) -> Driver<'a> {
        Driver { arena, place, relays, operator, undo: Vec::new(), complaints: Vec::new() }
    }

    /// Takes the steps in their time, and waits for all of it to be over. What was wrong meanwhile.
    pub async fn run(mut self, steps: &[Step]) -> Vec<String> {
        let begun = Instant::now();
        for step in steps {
            let at = begun + Duration::from_millis(step.at_ms);
            self.undo_until(Some(at)).await;
            sleep_until(at).await;
            let lasts = Duration::from_millis(step.lasts_ms);
            let acting = timeout(ACTION_LIMIT, self.act(step.fault, lasts));
            assert!(acting.await.is_ok(), "{:?} takes too long", step.fault);
            self.complaints.extend(self.relays.complaints());
        }
        sleep_until(begun + Duration::from_millis(LOAD_MS)).await;
        self.undo_until(None).await;
        for way in &self.arena.ways {
            way.space.relent();
        }
        self.complaints
    }

    /// Undoes what is due until then, or all of it, each in its time.
    async fn undo_until(&mut self, until: Option<Instant>) {
        loop {
            let next = self.undo.iter().enumerate().min_by_key(|(_, (at, _))| *at);
            let Some((index, (at, _))) = next.filter(|(_, (at, _))| until.is_none_or(|until| *at <= until))
            else {
                return;
            };
            sleep_until(*at).await;
            let (_, undo) = self.undo.swap_remove(index);
            assert!(
                timeout(ACTION_LIMIT, self.undo(undo)).await.is_ok(),
                "the end of a fault takes too long"
            );
        }
    }

    async fn act(&mut self, fault: Fault, lasts: Duration) {
        let undo = match fault {
            Fault::Kill(who) => {
                let number = self.find(who).await;
                self.relays.kill(number);
                None
            }
            Fault::Restart(who, mode) => {
                let number = self.find(who).await;
                let complaint = self.relays.restart(number, mode).await;
                self.complaints.extend(complaint);
                None
            }
            Fault::Pause(who) => {
                let number = self.find(who).await;
                self.relays.pause(number);
                Some(Undo::Resume { number, process: self.relays.now[number].relay.id() })
            }
            Fault::Terminate(part) => {
                self.terminate(part).await;
                None
            }
            Fault::Network(who, side, net) => {
                let number = self.find(who).await;
                self.way(number, side).set(mode(net));
                let cut = matches!(net, Net::DropUp | Net::DropDown | Net::HalfOpen);
                Some(Undo::Network { number, side, cut })
            }
            Fault::Cut(who, side) => {
                let number = self.find(who).await;
                self.way(number, side).cut();
                None
            }
            Fault::RestartPostgres { .. } | Fault::RestartBroker { .. } => {
                self.restart(fault).await;
                None
            }
            Fault::Alarm { disk } => {
                self.arena.broker.eval(if disk { LOW_DISK } else { LOW_MEMORY }).await.unwrap();
                Some(Undo::Alarm { disk })
            }
            Fault::FullQueue(binding) => Some(self.full_queue(binding).await),
            Fault::Unbind(bindings) => {
                self.unbind(bindings).await;
                Some(Undo::Bind(bindings))
            }
            Fault::Edit(edit) => {
                self.sql(breaks(edit)).await;
                Some(Undo::Mend(edit))
            }
            Fault::LockCursor => {
                let client = connect(&self.place.url).await.unwrap();
                client.batch_execute("SET lock_timeout = '2s'").await.unwrap();
                // A relay that was paused or cut off in a transaction has it: then it is locked as it is.
                let _ = client.batch_execute("BEGIN; SELECT FROM statecast.cursor FOR UPDATE").await;
                Some(Undo::Unlock(client))
            }
            Fault::NoSpace { writes } => {
                self.no_space(writes);
                None
            }
            Fault::TooLarge { key } => {
                self.too_large(key).await;
                None
            }
            Fault::Operator(act) => {
                self.operator.act(act).await;
                None
            }
        };
        self.undo.extend(undo.map(|undo| (Instant::now() + lasts, undo)));
    }

    async fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Resume { number, process } if self.relays.now[number].relay.id() == process => {
                self.relays.resume(number);
            }
            Undo::Resume { .. } => {}
            Undo::Network { number, side, cut } => {
                let way = self.way(number, side);
                // What was lost in the midst of a message never comes: only a new connection is of use.
                if cut {
                    way.cut();
                }
                way.set(Mode::Pass);
            }
            Undo::Alarm { disk } => {
                self.arena.broker.eval(if disk { WELL_DISK } else { WELL_MEMORY }).await.unwrap();
            }
            Undo::DeleteQueue(full) => {
                let (_connection, channel) = full.channel().await;
                let options = QueueDeleteOptions::default();
                channel.queue_delete(full.queue.as_str().into(), options).await.unwrap();
            }
            Undo::Bind(bindings) => {
                for binding in bindings {
                    self.place.topology.bind(binding).await;
                }
            }
            Undo::Mend(edit) => self.sql(mends(edit)).await,
            Undo::Unlock(client) => drop(client),
        }
    }

    /// The number of the relay that leads, or that does not.
    async fn find(&mut self, who: Who) -> usize {
        let holder = async {
            let client = connect(&self.place.url).await.ok()?;
            let row = client.query_opt("SELECT holder FROM statecast.cursor", &[]).await.ok()??;
            row.try_get::<_, Option<String>>(0).ok()?
        };
        let holder = timeout(Duration::from_secs(5), holder).await.ok().flatten();
        self.relays.find(who, holder.as_deref())
    }

    fn way(&self, number: usize, side: Side) -> &Proxy {
        let way = &self.arena.ways[number];
        match side {
            Side::Database => &way.database,
            Side::Broker => &way.broker,
        }
    }

    async fn terminate(&self, part: &str) {
        let name = format!("statecast {} {part}", self.place.pipeline);
        let client = connect(&self.place.url).await.unwrap();
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE $1";
        client.query(sql, &[&name]).await.unwrap();
    }

    async fn restart(&mut self, fault: Fault) {
        let Arena { postgres, broker, .. } = &mut *self.arena;
        match fault {
            Fault::RestartPostgres { immediate } => {
                if immediate {
                    postgres.stop_immediate().await.unwrap();
                } else {
                    postgres.stop_fast().await.unwrap();
                }
                postgres.start_again().await.unwrap();
            }
            Fault::RestartBroker { kill } => {
                if kill {
                    // What was declared in the last two seconds would be gone, whatever the broker answered. That is for
                    // whoever declares: the relay does not.
                    let _ = broker.eval("mnesia:sync_log().").await;
                    broker.kill9();
                } else {
                    broker.stop().await.unwrap();
                }
                broker.start_again().await.unwrap();
            }
            _ => {}
        }
    }

    async fn full_queue(&self, binding: &str) -> Undo {
        let topology = &self.place.topology;
        let queue = Topology { queue: format!("{}-full", topology.queue), ..topology.clone() };
        queue.declare_queue(binding, &full()).await;
        Undo::DeleteQueue(queue)
    }

    async fn unbind(&self, bindings: &[&str]) {
        let Topology { queue, exchange, .. } = &self.place.topology;
        let (_connection, channel) = self.place.topology.channel().await;
        for binding in bindings {
            let (queue, exchange) = (queue.as_str().into(), exchange.as_str().into());
            channel.queue_unbind(queue, exchange, (*binding).into(), FieldTable::default()).await.unwrap();
        }
    }

    async fn sql(&self, sql: &str) {
        connect(&self.place.url).await.unwrap().batch_execute(sql).await.unwrap();
    }

    /// Committed, or not at all if the server ends meanwhile.
    async fn too_large(&self, key: usize) {
        let padding = "x".repeat(LARGE_BYTES);
        let write = async {
            let mut client = connect(&self.place.url).await.ok()?;
            let transaction = client.transaction().await.ok()?;
            load::publish_padded(&transaction, &load::key(key), &padding).await.ok()?;
            transaction.commit().await.ok()
        };
        // An entity may be locked by a transaction that is prepared for as long as its writer is without a server.
        let _ = timeout(WRITE_LIMIT, write).await;
    }

    fn no_space(&self, writes: usize) {
        for way in &self.arena.ways {
            way.space.fail(Rule {
                words: vec!["UPDATE statecast.cursor", "prune_seq = $"],
                passes: 0,
                fails: writes,
                failure: Failure::Refused,
                sqlstate: "53100",
                message: "could not extend file \"base/5/2619\": No space left on device",
            });
        }
    }
}

fn mode(net: Net) -> Mode {
    match net {
        Net::Stall => Mode::Stall,
        Net::StallUp => Mode::StallUp,
        Net::StallDown => Mode::StallDown,
        Net::DropUp => Mode::DropUp,
        Net::DropDown => Mode::DropDown,
        Net::HalfOpen => Mode::HalfOpen,
        Net::Slow => Mode::Slow(SLOW),
    }
}

fn breaks(edit: Edit) -> &'static str {
    match edit {
        Edit::Dropped => "DROP PUBLICATION statecast",
        Edit::NothingPublished => "ALTER PUBLICATION statecast SET (publish = 'update')",
        Edit::OutboxRemoved => "ALTER PUBLICATION statecast DROP TABLE statecast.outbox",
    }
}

fn mends(edit: Edit) -> &'static str {
    match edit {
        Edit::Dropped => {
            "CREATE PUBLICATION statecast FOR TABLE statecast.outbox
               WITH (publish = 'insert', publish_via_partition_root = true)"
        }
        Edit::NothingPublished => "ALTER PUBLICATION statecast SET (publish = 'insert')",
        Edit::OutboxRemoved => "ALTER PUBLICATION statecast ADD TABLE statecast.outbox",
    }
}
