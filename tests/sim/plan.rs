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
    Write { tx: usize, key: u8, route: u8, size: usize, hopeless: Option<Hopeless> },
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
    /// The broker closes the connection over it; the lane names it, and dies.
    Fatal,
}

/// What the broker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refuses {
    /// A key, with nacks.
    Key(u8),
    /// A routing key, with returns.
    Route(u8),
    /// Everything, with nacks.
    All,
}

impl Refuses {
    /// Is this one of those events?
    pub(crate) fn hits(self, key: u8, route: u8) -> bool {
        match self {
            Refuses::Key(refused) => refused == key,
            Refuses::Route(refused) => refused == route,
            Refuses::All => true,
        }
    }
}

/// The broker refuses something for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) refuses: Refuses,
    pub(crate) from_ms: u64,
    pub(crate) until_ms: u64,
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
    /// The keeper dies with its n-th write (of those that are about what is `aside`), before or after the write.
    Keeper { after: u32, aside: bool, written: bool },
    /// The keeper dies with its n-th recall.
    Recall { after: u32 },
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
    /// It is stopped when nothing is left to do.
    pub(crate) until_quiet: bool,
    /// No faults; only these are refused, and the broker may take them again before the end.
    pub(crate) calm: Option<Vec<Refuses>>,
    pub(crate) heals_ms: Option<u64>,
    /// A person looks after everything that is parked.
    pub(crate) attended: bool,
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
    pub(crate) routes: u8,
    /// How often a person asks for something, at each look of the keeper.
    pub(crate) person: f64,
    pub(crate) park_after: Duration,
    /// Rows of one key that the keeper recalls at once.
    pub(crate) recalls: usize,
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
            routes: rng.u8(1..=4),
            person: one_of(rng, &[0.0, 0.05, 0.3]),
            park_after: Duration::from_secs(one_of(rng, &[6, 20, 600])),
            recalls: one_of(rng, &[1, 2, 100]),
            outages: Vec::new(),
            sessions: Vec::new(),
            steps: Vec::new(),
        };
        // Some queues are ill for long, and the rest is well: what is set aside comes and goes.
        let ill = rng.f64() < 0.4;
        if ill {
            (plan.keys, plan.routes) = (one_of(rng, &[6, 12]), rng.u8(2..=4));
            (plan.nack, plan.returned) = (one_of(rng, &[0.0, 0.01]), one_of(rng, &[0.0, 0.01]));
            plan.slow = one_of(rng, &[0.0, 0.02, 0.1]);
        }
        plan.draw_sessions(rng, ill);
        let stormy = plan.sessions.iter().filter(|s| s.calm.is_none());
        let span = stormy.map(|s| s.stop_ms).sum::<u64>().min(60_000);
        plan.draw_outages(rng, span, ill);
        let calm = plan.sessions.iter().filter(|s| s.calm.is_some()).map(|s| s.stop_ms).sum::<u64>();
        let events = if ill { 80 } else { one_of(rng, &[3, 10, 30, 80]) };
        plan.steps = Writers::new(rng, plan.keys, plan.routes, read_ahead).run(events, span + calm);
        plan
    }

    fn draw_sessions(&mut self, rng: &mut Rng, ill: bool) {
        let lives = if ill { 10 } else { 1 };
        for _ in 0..rng.usize(1..=4) {
            let end = match rng.u8(0..10) {
                0..2 => End::Stop,
                2 => End::Abort,
                3..5 => End::Lane { lane: rng.usize(0..self.lanes), after: lives * rng.u32(1..=30) },
                5 => End::Keeper { after: lives * rng.u32(1..=6), aside: false, written: rng.bool() },
                6..8 => End::Keeper { after: rng.u32(1..=8), aside: true, written: rng.bool() },
                8 => End::Recall { after: rng.u32(1..=4) },
                _ => End::Source { after: lives * rng.u32(1..=30) },
            };
            let stops: &[u64] =
                if ill { &[15_000, 40_000] } else { &[1, 30, 300, 2_000, 2_000, 15_000, 40_000] };
            self.sessions.push(SessionPlan {
                process: if rng.f64() < 0.2 { 1 } else { 0 },
                new_process: rng.f64() < 0.2,
                promotion: rng.f64() < 0.05,
                end,
                stop_ms: one_of(rng, stops),
                grace_ms: one_of(rng, &[0, 10, 1_000, 20_000]),
                until_idle: rng.f64() < 0.1,
                until_quiet: false,
                calm: None,
                heals_ms: None,
                attended: false,
            });
        }
        // Other keys must flow while some are refused for long, and these when they no longer are.
        if rng.f64() < 0.3 {
            let keys = (0..self.keys).filter(|_| rng.f64() < 0.3).map(Refuses::Key);
            let mut refused: Vec<Refuses> = keys.collect();
            refused.extend((0..self.routes).filter(|_| rng.f64() < 0.3).map(Refuses::Route));
            self.sessions.push(SessionPlan {
                process: 0,
                new_process: rng.bool(),
                promotion: false,
                end: End::Stop,
                stop_ms: 60_000,
                grace_ms: 20_000,
                until_idle: false,
                until_quiet: false,
                calm: Some(refused),
                heals_ms: rng.bool().then_some(10_000),
                attended: false,
            });
        }
    }

    fn draw_outages(&mut self, rng: &mut Rng, span: u64, ill: bool) {
        let outages = if ill { 1..5 } else { 0..4 };
        for _ in 0..rng.usize(outages) {
            let from_ms = rng.u64(0..=span);
            let refuses = match rng.u8(0..9) {
                0..4 => Refuses::Key(rng.u8(0..self.keys)),
                4..8 => Refuses::Route(rng.u8(0..self.routes)),
                _ => Refuses::All,
            };
            let long: &[u64] = if ill { &[10_000, 20_000, 60_000] } else { &[100, 2_000, 20_000] };
            let until_ms = from_ms + one_of(rng, long);
            self.outages.push(Outage { refuses, from_ms, until_ms });
        }
    }
}

/// A session in which nothing fails: it must settle everything.
pub(crate) fn draining(process: usize) -> SessionPlan {
    SessionPlan {
        process,
        new_process: false,
        promotion: false,
        end: End::Stop,
        stop_ms: 300_000,
        grace_ms: 20_000,
        until_idle: true,
        until_quiet: false,
        calm: Some(Vec::new()),
        heals_ms: None,
        attended: false,
    }
}

/// Another: it must publish all that can go.
pub(crate) fn closing(process: usize, attended: bool) -> SessionPlan {
    SessionPlan { until_idle: false, until_quiet: true, attended, ..draining(process) }
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
    routes: u8,
    /// Events of one key that have another routing key than most.
    mixed: f64,
    read_ahead: usize,
    hot: f64,
    hopeless: f64,
    open: Vec<Open>,
    next_tx: usize,
}

impl<'a> Writers<'a> {
    fn new(rng: &'a mut Rng, keys: u8, routes: u8, read_ahead: usize) -> Self {
        let hot = one_of(rng, &[0.0, 0.3, 0.8]);
        let hopeless = one_of(rng, &[0.0, 0.0, 0.0, 0.05]);
        let mixed = one_of(rng, &[0.0, 0.0, 0.2]);
        Writers { rng, keys, routes, mixed, read_ahead, hot, hopeless, open: Vec::new(), next_tx: 0 }
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
        let kinds = [Hopeless::Row, Hopeless::Lane, Hopeless::Fatal];
        let hopeless = (self.rng.f64() < self.hopeless).then(|| one_of(self.rng, &kinds));
        let mixed = self.rng.f64() < self.mixed;
        let route = if mixed { self.rng.u8(0..self.routes) } else { key % self.routes };
        Some(Step::Write { tx, key, route, size: self.size(), hopeless })
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
