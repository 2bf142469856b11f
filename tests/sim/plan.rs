//! What a seed stands for: the writers' transactions, the settings, the broker's moods, and how each session ends.

use std::time::Duration;

use fastrand::Rng;
use statecast::config::Ordering;

/// What a writing transaction does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Takes its transaction id.
    Xid { tx: usize },
    /// Writes an event; holds the key to its end.
    Write { tx: usize, key: u8, size: usize, hopeless: Option<Hopeless> },
    /// Commits or rolls back.
    End { tx: usize, commits: bool },
}

/// Why an event can never go, until a person mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hopeless {
    /// It cannot be assembled.
    Row,
    /// The lane refuses it.
    Lane,
}

/// The broker refuses a key for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) key: u8,
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
    pub(crate) returns: bool,
}

/// What ends a session, besides its stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nothing else.
    Stop,
    /// The abort token, when it is time.
    Abort,
    /// A lane dies with its n-th message; a part of what is on the socket still arrives.
    Lane { lane: usize, after: u32 },
    /// The keeper dies with its n-th write, before or after the write.
    Keeper { after: u32, written: bool },
    /// The source dies after n inputs.
    Source { after: u32 },
}

/// Processes that lead in turn.
pub(crate) const PROCESSES: usize = 2;

#[derive(Clone, Debug)]
pub(crate) struct SessionPlan {
    /// Which process leads, with the ledger of its earlier sessions.
    pub(crate) process: usize,
    /// The process begins anew, with an empty ledger.
    pub(crate) new_process: bool,
    /// A standby of the server was promoted before.
    pub(crate) promotion: bool,
    pub(crate) end: End,
    /// The stop (or abort) comes this long after the start.
    pub(crate) stop_ms: u64,
    pub(crate) grace_ms: u64,
    pub(crate) until_idle: bool,
    /// No faults; only these keys are refused, and the broker may take them again before the end.
    pub(crate) calm: Option<Vec<u8>>,
    pub(crate) heals_ms: Option<u64>,
}

/// Upper bounds of delays, microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) query: u64,
    pub(crate) fetch: u64,
    pub(crate) arrival: u64,
    pub(crate) confirm: u64,
    pub(crate) keeper: u64,
}

/// How the source streams, if it does.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streaming {
    /// Probability, after each window, that a stream is made ready, and that one which is ready begins.
    pub(crate) begins: f64,
    /// Probability, at each step, that it stops, wherever it is.
    pub(crate) stops: f64,
    /// Part of the rows that it leaves out: somebody edited the publication.
    pub(crate) drops: f64,
    /// Probability that a batch begins with rows that it has brought before.
    pub(crate) repeats: f64,
    /// Between two listings.
    pub(crate) reconcile: Duration,
    /// Upper bound of its lag, microseconds.
    pub(crate) lag: u64,
}

impl Streaming {
    fn draw(rng: &mut Rng) -> Self {
        Streaming {
            begins: one_of(rng, &[0.0, 0.2, 0.8]),
            stops: one_of(rng, &[0.0, 0.01, 0.1]),
            drops: one_of(rng, &[0.0, 0.0, 0.0, 0.05, 0.4]),
            repeats: one_of(rng, &[0.0, 0.05]),
            reconcile: Duration::from_millis(one_of(rng, &[5, 100, 1_000])),
            lag: one_of(rng, &[0, 1_000, 50_000]),
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) ordering: Ordering,
    pub(crate) lanes: usize,
    pub(crate) window: usize,
    pub(crate) read_ahead: usize,
    /// Rows per page.
    pub(crate) batch: usize,
    pub(crate) busy: Duration,
    pub(crate) idle: Duration,
    pub(crate) streaming: Streaming,
    pub(crate) pace: Pace,
    /// Probabilities per message.
    pub(crate) nack: f64,
    pub(crate) returned: f64,
    pub(crate) slow: f64,
    pub(crate) keys: u8,
    pub(crate) outages: Vec<Outage>,
    pub(crate) sessions: Vec<SessionPlan>,
    /// Writers, by milliseconds.
    pub(crate) steps: Vec<(u64, Step)>,
}

fn one_of<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Plan {
        let read_ahead = one_of(rng, &[2_000, 5_000, 12_000, 40_000, 400_000]);
        let keys = one_of(rng, &[1, 2, 3, 6, 12]);
        let busy = one_of(rng, &[1, 5, 50]);
        let mut plan = Plan {
            ordering: if rng.f64() < 0.7 { Ordering::Strict } else { Ordering::Pipelined },
            lanes: rng.usize(1..=3),
            window: one_of(rng, &[1, 2, 5, 20, 50]),
            read_ahead,
            batch: one_of(rng, &[1, 2, 5, 20, 100]),
            busy: Duration::from_millis(busy),
            idle: Duration::from_millis(busy.max(100)),
            streaming: Streaming::draw(rng),
            pace: Pace {
                query: one_of(rng, &[0, 1_000, 20_000]),
                fetch: one_of(rng, &[0, 1_000, 20_000, 900_000]),
                arrival: one_of(rng, &[0, 1_000, 10_000, 100_000]),
                confirm: one_of(rng, &[0, 1_000, 20_000, 300_000]),
                keeper: one_of(rng, &[0, 1_000, 60_000, 500_000]),
            },
            nack: one_of(rng, &[0.0, 0.0, 0.02, 0.2]),
            returned: one_of(rng, &[0.0, 0.0, 0.02, 0.2]),
            slow: one_of(rng, &[0.0, 0.0, 0.02, 0.1]),
            keys,
            outages: Vec::new(),
            sessions: Vec::new(),
            steps: Vec::new(),
        };
        plan.draw_sessions(rng);
        let span = plan.sessions.iter().map(|s| s.stop_ms).sum::<u64>().min(30_000);
        plan.draw_outages(rng, span);
        let events = one_of(rng, &[3, 10, 30, 80]);
        plan.steps = Writers::new(rng, keys, read_ahead).run(events, span);
        plan
    }

    fn draw_sessions(&mut self, rng: &mut Rng) {
        for _ in 0..rng.usize(1..=4) {
            let end = match rng.u8(0..8) {
                0 => End::Stop,
                1 => End::Abort,
                2..4 => End::Lane { lane: rng.usize(0..self.lanes), after: rng.u32(1..=30) },
                4..6 => End::Keeper { after: rng.u32(1..=6), written: rng.bool() },
                _ => End::Source { after: rng.u32(1..=30) },
            };
            self.sessions.push(SessionPlan {
                process: if rng.f64() < 0.2 { 1 } else { 0 },
                new_process: rng.f64() < 0.2,
                promotion: rng.f64() < 0.05,
                end,
                stop_ms: one_of(rng, &[1, 30, 300, 2_000, 2_000, 15_000]),
                grace_ms: one_of(rng, &[0, 10, 1_000, 20_000]),
                until_idle: rng.f64() < 0.1,
                calm: None,
                heals_ms: None,
            });
        }
        // Other keys must flow while some are refused for long, and these when they no longer are.
        if rng.f64() < 0.3 {
            let refused = (0..self.keys).filter(|_| rng.bool()).collect();
            self.sessions.push(SessionPlan {
                process: 0,
                new_process: rng.bool(),
                promotion: false,
                end: End::Stop,
                stop_ms: 60_000,
                grace_ms: 20_000,
                until_idle: false,
                calm: Some(refused),
                heals_ms: rng.bool().then_some(10_000),
            });
        }
    }

    fn draw_outages(&mut self, rng: &mut Rng, span: u64) {
        for _ in 0..rng.usize(0..3) {
            let from_ms = rng.u64(0..=span);
            self.outages.push(Outage {
                key: rng.u8(0..self.keys),
                from_ms,
                until_ms: from_ms + one_of(rng, &[100, 2_000, 20_000]),
                returns: rng.bool(),
            });
        }
    }
}

/// A session in which nothing fails: it must reach the end of everything.
pub(crate) fn draining(process: usize) -> SessionPlan {
    SessionPlan {
        process,
        new_process: false,
        promotion: false,
        end: End::Stop,
        stop_ms: 300_000,
        grace_ms: 20_000,
        until_idle: true,
        calm: Some(Vec::new()),
        heals_ms: None,
    }
}

/// A transaction that has not ended.
struct Open {
    tx: usize,
    left: usize,
    has_xid: bool,
    /// Rarely moves, so that its small seqs come late.
    sleeper: bool,
    holds: Vec<u8>,
}

/// Interleaves transactions that lock the keys they write.
struct Writers<'a> {
    rng: &'a mut Rng,
    keys: u8,
    read_ahead: usize,
    hot: f64,
    hopeless: f64,
    open: Vec<Open>,
    next_tx: usize,
}

impl<'a> Writers<'a> {
    fn new(rng: &'a mut Rng, keys: u8, read_ahead: usize) -> Self {
        let hot = one_of(rng, &[0.0, 0.3, 0.8]);
        let hopeless = one_of(rng, &[0.0, 0.0, 0.0, 0.05]);
        Writers { rng, keys, read_ahead, hot, hopeless, open: Vec::new(), next_tx: 0 }
    }

    fn run(mut self, events: usize, span: u64) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        let mut left = events;
        let gap = (span / (2 * events as u64 + 1)).max(1);
        let mut at = 0;
        while left > 0 || !self.open.is_empty() {
            if left > 0 && (self.open.is_empty() || self.open.len() < 4 && self.rng.f64() < 0.3) {
                let writes = self.rng.usize(1..=6).min(left);
                left -= writes;
                let sleeper = self.rng.f64() < 0.25;
                let tx = self.next_tx;
                self.next_tx += 1;
                self.open.push(Open { tx, left: writes, has_xid: false, sleeper, holds: Vec::new() });
            }
            if self.rng.f64() < 0.5 {
                at += self.rng.u64(0..=2 * gap);
            }
            steps.extend(self.step().map(|step| (at, step)));
        }
        steps
    }

    fn step(&mut self) -> Option<Step> {
        let index = self.rng.usize(0..self.open.len());
        let awake = !self.open[index].sleeper || self.rng.f64() < 0.1;
        if !awake {
            return None;
        }
        let (tx, left) = (self.open[index].tx, self.open[index].left);
        if !self.open[index].has_xid {
            self.open[index].has_xid = true;
            return Some(Step::Xid { tx });
        }
        if left == 0 {
            self.open.swap_remove(index);
            return Some(Step::End { tx, commits: self.rng.f64() < 0.9 });
        }
        let key = if self.rng.f64() < self.hot { 0 } else { self.rng.u8(0..self.keys) };
        if self.open.iter().any(|other| other.tx != tx && other.holds.contains(&key)) {
            // It waits; or it gives up, so that no two wait for each other.
            if self.rng.f64() < 0.2 {
                self.open.swap_remove(index);
                return Some(Step::End { tx, commits: self.rng.bool() });
            }
            return None;
        }
        self.open[index].left -= 1;
        self.open[index].holds.push(key);
        let hopeless = (self.rng.f64() < self.hopeless)
            .then(|| if self.rng.bool() { Hopeless::Row } else { Hopeless::Lane });
        Some(Step::Write { tx, key, size: self.size(), hopeless })
    }

    fn size(&mut self) -> usize {
        let max = match self.rng.u8(0..100) {
            0..30 => 1,
            30..75 => 200,
            75..90 => self.read_ahead / 4,
            90..97 => self.read_ahead,
            _ => 2 * self.read_ahead,
        };
        self.rng.usize(1..=max)
    }
}
