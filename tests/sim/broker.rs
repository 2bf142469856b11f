//! The broker and the lanes to it. A lane is a socket: what arrives, arrives in order; answers come when they come.

use std::collections::BTreeMap;
use std::time::Duration;

use statecast::contract::{LaneBatch, Outcome, Published};
use statecast::event::Seq;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::{Instant, sleep_until};

use crate::plan::{Hopeless, Outage, Refuses};
use crate::world::{Shared, World};

/// Publishes until the relay is done and every answer is in, or until it dies with message number `dies_after`.
pub(crate) async fn lane(
    world: Shared,
    lane: usize,
    mut batches: Receiver<LaneBatch>,
    outcomes: Sender<Vec<Outcome>>,
    mut dies_after: Option<u32>,
) {
    let mut answers = BTreeMap::new();
    let mut number = 0u64;
    let mut open = true;
    loop {
        let arrival = world.lock().session.lanes[lane].socket.front().map(|m| m.at);
        let answer = answers.first_key_value().map(|((at, _), _): (&(Instant, u64), _)| *at);
        if !open && arrival.is_none() && answer.is_none() {
            return;
        }
        let now = Instant::now();
        tokio::select! {
            biased;
            () = sleep_until(answer.unwrap_or(now)), if answer.is_some() => {
                let Ok(permit) = outcomes.reserve().await else { return };
                let later = answers.split_off(&(Instant::now(), u64::MAX));
                let due: Vec<Outcome> = std::mem::replace(&mut answers, later).into_values().collect();
                world.lock().resolved(lane, &due);
                permit.send(due);
            }
            () = sleep_until(arrival.unwrap_or(now)), if arrival.is_some() => {
                let fatal = {
                    let mut world = world.lock();
                    dies_after = dies_after.map(|n| n.saturating_sub(1));
                    if dies_after == Some(0) {
                        world.cut(lane);
                        return;
                    }
                    let fatal = world.first_is_fatal(lane);
                    let alone = world.session.lanes[lane].unresolved == 1;
                    let (outcome, wait) = world.arrives(lane);
                    if fatal && !alone {
                        world.cut(lane);
                        world.careful = true;
                        return;
                    }
                    number += 1;
                    let at = (Instant::now() + wait, number);
                    if fatal { outcome } else { answers.extend(outcome.map(|outcome| (at, outcome))); None }
                };
                // It is clear over which message the broker has closed the connection: it was alone.
                if let Some(outcome) = fatal {
                    world.lock().resolved(lane, std::slice::from_ref(&outcome));
                    world.lock().cut(lane);
                    let _ = outcomes.send(vec![outcome]).await;
                    return;
                }
            }
            batch = batches.recv(), if open => match batch {
                Some(batch) => world.lock().sent(lane, batch),
                None => open = false,
            },
        }
    }
}

impl World {
    /// The connection breaks: some of what is on the socket still reaches the broker, its answers do not come back.
    pub(crate) fn cut(&mut self, lane: usize) {
        let arriving = self.rng.usize(0..=self.session.lanes[lane].socket.len());
        for _ in 0..arriving {
            self.arrives(lane);
        }
        let lost = self.session.lanes[lane].socket.len();
        self.tally.count("messages lost with a connection", lost);
        self.session.lanes[lane].socket.clear();
        self.note(0, || format!("lane {lane} is gone; {arriving} more arrived"));
    }

    /// Is the first message on the socket one that the broker closes the connection over?
    fn first_is_fatal(&self, lane: usize) -> bool {
        let first = self.session.lanes[lane].socket.front().and_then(|on| self.outbox.row(on.message.seq));
        first.is_some_and(|row| row.hopeless == Some(Hopeless::Fatal))
    }

    /// The first message on the socket reaches the broker. Returns its answer and how long that takes.
    fn arrives(&mut self, lane: usize) -> (Option<Outcome>, Duration) {
        let Some(on_socket) = self.session.lanes[lane].socket.pop_front() else {
            return (None, Duration::ZERO);
        };
        let message = on_socket.message;
        let (accepted, result) = self.verdict(message.seq);
        self.note(message.seq, || format!("reaches the broker: {accepted}, {result:?}"));
        if accepted {
            self.check_accepted(message.seq);
        }
        let slow = self.session.calm.is_none() && self.rng.f64() < self.plan.slow;
        let took = if slow { self.delay(10_000_000) } else { self.delay(self.plan.pace.confirm) };
        (Some(Outcome { message, result, took }), took)
    }

    /// Does a queue take it, and what is the answer?
    fn verdict(&mut self, seq: Seq) -> (bool, Published) {
        let row = self.outbox.row(seq);
        let (key, route, hopeless) = row.map_or((0, 0, None), |row| (row.key, row.route, row.hopeless));
        let now_ms = self.began.elapsed().as_millis() as u64;
        let returned = || Published::Returned { code: 312, text: "NO_ROUTE".into() };
        let answer = |refuses: &Refuses| match refuses {
            Refuses::Route(_) => returned(),
            Refuses::Key(_) | Refuses::All => Published::Nacked,
        };
        let refusal = if matches!(hopeless, Some(Hopeless::Lane | Hopeless::Fatal)) {
            Some(Published::TooLarge { reason: "too large".into() })
        } else if let Some(refused) = &self.session.calm {
            let healed = self.session.heals_at.is_some_and(|at| Instant::now() >= at);
            refused.iter().find(|refuses| !healed && refuses.hits(key, route)).map(answer)
        } else if self.rng.f64() < self.plan.nack {
            Some(Published::Nacked)
        } else if self.rng.f64() < self.plan.returned {
            Some(returned())
        } else {
            let now = |outage: &&Outage| (outage.from_ms..outage.until_ms).contains(&now_ms);
            let mut outages = self.plan.outages.iter().filter(now);
            outages.find(|outage| outage.refuses.hits(key, route)).map(|outage| answer(&outage.refuses))
        };
        let Some(refusal) = refusal else {
            return (true, Published::Confirmed);
        };
        self.refused[usize::from(key)] = true;
        self.note_refusal(key, route, &refusal);
        self.tally.count("messages refused", 1);
        // One queue of several may have taken what another refuses.
        (refusal == Published::Nacked && self.rng.f64() < 0.2, refusal)
    }
}
