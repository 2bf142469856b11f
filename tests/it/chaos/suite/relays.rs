//! The two relays of a round: whoever is killed or stopped has a successor at once.

use std::os::unix::process::ExitStatusExt;

use crate::process::{Invocation, Relay};
use crate::relay::{READY_LIMIT, STOP_LIMIT};
use crate::wal_bench::STREAM_LIMIT;

use super::schedule::Who;

const SIGTERM: i32 = 15;

/// One process.
pub struct Life {
    /// Which relay's.
    pub number: usize,
    pub relay: Relay,
    pub mode: &'static str,
    pub paused: bool,
}

/// See the module head.
pub struct Relays {
    invocations: [Invocation; 2],
    /// Those that run.
    pub now: [Life; 2],
    /// Those that have ended.
    pub past: Vec<Life>,
    /// Who led when it was last known.
    leader: usize,
}

impl Relays {
    /// Starts both, the first of which leads; if it is to stream, waits until it does.
    pub async fn start(
        invocations: [Invocation; 2],
        modes: [&'static str; 2],
        streams: bool,
    ) -> Result<Relays, String> {
        let ready = async |life: Life| match life.relay.wait_ready(READY_LIMIT).await {
            Ok(()) => Ok(life),
            Err(answer) => {
                let log = life.relay.log();
                Err(format!("relay {} is not ready: {answer}\n{log}", life.number))
            }
        };
        let leader = ready(Life::start(&invocations[0], 0, modes[0])).await?;
        let standby = ready(Life::start(&invocations[1], 1, modes[1])).await?;
        if streams && !leader.relay.wait_for_metric("statecast_wal_streaming", 0.0, STREAM_LIMIT).await {
            return Err(format!("relay 0 does not stream\n{}", leader.relay.log()));
        }
        Ok(Relays { invocations, now: [leader, standby], past: Vec::new(), leader: 0 })
    }

    /// The number of a relay by its part. `holder` is what the cursor row says of the leader, if it can be read.
    pub fn find(&mut self, who: Who, holder: Option<&str>) -> usize {
        let leads = |life: &Life| holder.is_some_and(|h| h.ends_with(&format!("/{}", life.relay.id())));
        self.leader = self.now.iter().position(leads).unwrap_or(self.leader);
        if who == Who::Leader { self.leader } else { 1 - self.leader }
    }

    /// Kills a relay and starts its successor.
    pub fn kill(&mut self, number: usize) {
        let mode = self.now[number].mode;
        self.now[number].relay.kill9();
        self.succeed(number, mode);
    }

    /// Stops a relay in good order and starts its successor; what is wrong with its end.
    pub async fn restart(&mut self, number: usize, mode: &'static str) -> Option<String> {
        self.resume(number);
        let complaint = self.stop(number).await;
        self.succeed(number, mode);
        complaint
    }

    fn succeed(&mut self, number: usize, mode: &'static str) {
        let next = Life::start(&self.invocations[number], number, mode);
        self.past.push(std::mem::replace(&mut self.now[number], next));
    }

    pub fn pause(&mut self, number: usize) {
        self.now[number].relay.pause();
        self.now[number].paused = true;
    }

    pub fn resume(&mut self, number: usize) {
        if std::mem::take(&mut self.now[number].paused) {
            self.now[number].relay.resume();
        }
    }

    /// Those that have ended although nobody asked them to.
    pub fn complaints(&mut self) -> Vec<String> {
        let complaint = |life: &mut Life| {
            let ended = !life.relay.running();
            ended.then(|| format!("relay {} gave up: {}", life.number, last_line(&life.relay.log())))
        };
        self.now.iter_mut().filter_map(complaint).collect()
    }

    /// SIGTERM; what is wrong with its end.
    pub async fn stop(&mut self, number: usize) -> Option<String> {
        let relay = &mut self.now[number].relay;
        relay.sigterm();
        let status = relay.wait(STOP_LIMIT).await;
        // Asked before it could listen, it has done nothing yet.
        let unborn = status.is_some_and(|status| status.signal() == Some(SIGTERM)) && relay.log().is_empty();
        let well = unborn || status.is_some_and(|status| status.success());
        (!well).then(|| format!("relay {number} did not stop well: {status:?}; {}", last_line(&relay.log())))
    }

    /// A metric of those that run.
    pub async fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for life in &self.now {
            sum += life.relay.metric(name).await;
        }
        sum
    }

    /// All lives of the round, in no order.
    pub fn lives(&self) -> impl Iterator<Item = &Life> {
        self.past.iter().chain(&self.now)
    }

    /// How often somebody began to lead: each may repeat from the cursor.
    pub fn leaderships(&self) -> usize {
        self.lives().map(|life| life.relay.log().matches("leading").count()).sum()
    }
}

impl Life {
    fn start(invocation: &Invocation, number: usize, mode: &'static str) -> Life {
        // The port of a predecessor may linger.
        let invocation = invocation.replica().with("STATECAST_SOURCE__MODE", mode);
        Life { number, relay: invocation.start(), mode, paused: false }
    }
}

fn last_line(log: &str) -> String {
    log.trim_end().lines().last().unwrap_or("it said nothing").to_owned()
}
