//! What happens in a round, drawn from its seed.

use std::fmt;

use fastrand::Rng;

use crate::load::KEYS;

/// How a relay reads.
pub const MODES: [&str; 3] = ["poll", "wal", "auto"];
/// For how long writers write, and faults begin, in ms.
pub const LOAD_MS: u64 = 4_000;
/// The first fault, at the earliest.
const FIRST_MS: u64 = 200;
/// Faults with an end last so long, at most.
const LASTS_MAX_MS: u64 = 1_500;
/// Between two faults that exclude each other.
const APART_MS: u64 = 300;
/// Longer than a lease, and than what is refused waits before it is set aside.
const LONG_MS: u64 = 6_500;
/// Of the queue: for most events, and for the rest.
pub const BINDINGS: [&str; 2] = ["order.changed", "order.renamed"];
/// How long an unroutable event is retried before it is parked: less than what is refused for long is refused, or more.
const PARK_AFTER_S: [u64; 2] = [3, 600];

/// Whom a fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Leader,
    Standby,
}

/// Whose connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Database,
    Broker,
}

/// What a network does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    Stall,
    StallUp,
    StallDown,
    DropUp,
    DropDown,
    HalfOpen,
    Slow,
}

/// What an editor of the publication does to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    Dropped,
    NothingPublished,
    OutboxRemoved,
}

/// What a person does about events that are set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// All that are parked or wait.
    Retry,
    /// Those that can never go.
    DiscardParked,
    /// A few that may be on their way at that moment.
    DiscardWaiting,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL; another process takes its place.
    Kill(Who),
    /// SIGTERM; another process takes its place, in this mode.
    Restart(Who, &'static str),
    /// SIGSTOP, and SIGCONT in the end.
    Pause(Who),
    /// Connections to the server are terminated: those of a part, of whichever relay.
    Terminate(&'static str),
    /// All connections of a relay to one side.
    Network(Who, Side, Net),
    /// The same, closed.
    Cut(Who, Side),
    /// `immediate`, or fast.
    RestartPostgres {
        immediate: bool,
    },
    /// Killed, or stopped in good order.
    RestartBroker {
        kill: bool,
    },
    /// Memory, or disk.
    Alarm {
        disk: bool,
    },
    /// A second queue takes what has this binding as well, and is full.
    FullQueue(&'static str),
    /// Bindings of the queue are taken away.
    Unbind(&'static [&'static str]),
    Edit(Edit),
    /// Somebody locks the cursor row.
    LockCursor,
    /// So many cursor writes find the disk full.
    NoSpace {
        writes: usize,
    },
    /// The application writes an event over the limit, for the entity of this number.
    TooLarge {
        key: usize,
    },
    /// A person at work.
    Operator(Act),
}

impl Fault {
    /// Does it last, and is undone?
    fn lasts(self) -> bool {
        use Fault::{Alarm, Edit, LockCursor, Network, Pause};
        let routes = self.routes();
        routes || matches!(self, Pause(_) | Network(..) | Alarm { .. } | Edit(_) | LockCursor)
    }

    /// A change of what the broker routes where: two at once would lose what is not theirs to lose.
    fn routes(self) -> bool {
        matches!(self, Fault::FullQueue(_) | Fault::Unbind(_))
    }

    pub fn restarts_broker(self) -> bool {
        matches!(self, Fault::RestartBroker { .. })
    }

    /// May leave events set aside.
    fn sets_aside(self) -> bool {
        self.routes() || matches!(self, Fault::TooLarge { .. })
    }

    fn kind(self) -> &'static str {
        match self {
            Fault::Kill(_) => "kill",
            Fault::Restart(..) => "restart",
            Fault::Pause(_) => "pause",
            Fault::Terminate(_) => "terminate",
            Fault::Network(_, Side::Database, _) => "database-network",
            Fault::Network(_, Side::Broker, _) => "broker-network",
            Fault::Cut(..) => "cut",
            Fault::RestartPostgres { .. } => "postgres",
            Fault::RestartBroker { .. } => "broker",
            Fault::Alarm { .. } => "alarm",
            Fault::FullQueue(_) => "full-queue",
            Fault::Unbind(_) => "unbind",
            Fault::Edit(_) => "edit",
            Fault::LockCursor => "lock",
            Fault::NoSpace { .. } => "no-space",
            Fault::TooLarge { .. } => "too-large",
            Fault::Operator(_) => "operator",
        }
    }
}

/// A fault with its time since the writers began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub at_ms: u64,
    /// Of one that is undone.
    pub lasts_ms: u64,
    pub fault: Fault,
}

/// See the module head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    pub seed: u64,
    /// Of the two relays, at first. The first one leads.
    pub modes: [&'static str; 2],
    /// Nothing begins before the leader streams.
    pub streams: bool,
    pub writers: usize,
    pub pause_max_ms: u64,
    /// `unroutable.park_after`.
    pub park_after_s: u64,
    /// By time.
    pub steps: Vec<Step>,
}

impl Schedule {
    pub fn draw(seed: u64) -> Schedule {
        let mut rng = Rng::with_seed(seed);
        let modes = [mode(&mut rng), mode(&mut rng)];
        let (writers, pause_max_ms) = (rng.usize(2..=6), rng.u64(5..=30));
        let mut faults = Vec::new();
        // With an edited publication order is promised up to `wal_missed_total`, which a relay that ends takes with it. So
        // these rounds have no fault that ends a session.
        let edited = rng.u8(..6) == 0;
        let modes = if edited { ["wal", "wal"] } else { modes };
        let streams = edited || modes[0] != "poll" && rng.bool();
        if edited {
            for _ in 0..rng.usize(1..=2) {
                faults.push(Fault::Edit(choice(
                    &mut rng,
                    &[Edit::Dropped, Edit::NothingPublished, Edit::OutboxRemoved],
                )));
            }
            faults.extend((0..rng.usize(0..=2)).map(|_| gentle(&mut rng)));
        } else {
            faults.extend((0..rng.usize(2..=5)).map(|_| rough(&mut rng)));
            // Dear ones are rare.
            if rng.u8(..4) == 0 {
                faults.push(Fault::RestartPostgres { immediate: rng.bool() });
            }
            if rng.u8(..12) == 0 {
                faults.push(Fault::RestartBroker { kill: rng.bool() });
            }
        }
        if faults.iter().any(|fault| fault.sets_aside()) && rng.bool() {
            faults.push(operator(&mut rng));
        }
        let park_after_s = choice(&mut rng, &PARK_AFTER_S);
        let mut steps: Vec<Step> = faults.into_iter().map(|fault| step(&mut rng, fault)).collect();
        steps.sort_by_key(|step| step.at_ms);
        keep_apart(&mut steps);
        Schedule { seed, modes, streams, writers, pause_max_ms, park_after_s, steps }
    }

    /// The kinds of its faults.
    pub fn kinds(&self) -> String {
        let kinds: Vec<&str> = self.steps.iter().map(|step| step.fault.kind()).collect();
        format!("{} {}: {}", self.modes[0], self.modes[1], kinds.join(" "))
    }

    /// Somebody edits the publication.
    pub fn is_edited(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.fault, Fault::Edit(_)))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Schedule { seed, modes, streams, writers, pause_max_ms, park_after_s, steps } = self;
        let streams = if *streams { ", the first streams" } else { "" };
        writeln!(
            f,
            "schedule of seed {seed}: relays {modes:?}{streams}, {writers} writers that pause {pause_max_ms} ms, \
             unroutable events are parked after {park_after_s} s"
        )?;
        for Step { at_ms, lasts_ms, fault } in steps {
            let lasts = if fault.lasts() { format!(" for {lasts_ms} ms") } else { String::new() };
            writeln!(f, "  {at_ms:>5} ms  {fault:?}{lasts}")?;
        }
        Ok(())
    }
}

fn choice<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn mode(rng: &mut Rng) -> &'static str {
    choice(rng, &MODES)
}

fn who(rng: &mut Rng) -> Who {
    if rng.u8(..4) == 0 { Who::Standby } else { Who::Leader }
}

/// A fault that ends no session of the leader.
fn gentle(rng: &mut Rng) -> Fault {
    match rng.u8(..8) {
        0 => Fault::Terminate("stream"),
        1 => Fault::Kill(Who::Standby),
        2 => Fault::Network(Who::Leader, Side::Broker, Net::Slow),
        3 => Fault::Alarm { disk: rng.bool() },
        4 => full_queue(rng),
        5 => too_large(rng),
        6 => operator(rng),
        _ => unbind(rng),
    }
}

/// Of everything, or of some events of each key.
fn full_queue(rng: &mut Rng) -> Fault {
    Fault::FullQueue(if rng.u8(..3) == 0 { "#" } else { BINDINGS[1] })
}

fn unbind(rng: &mut Rng) -> Fault {
    Fault::Unbind(if rng.u8(..3) == 0 { &BINDINGS } else { &BINDINGS[1..] })
}

fn too_large(rng: &mut Rng) -> Fault {
    Fault::TooLarge { key: rng.usize(1..=KEYS) }
}

fn operator(rng: &mut Rng) -> Fault {
    Fault::Operator(choice(rng, &[Act::Retry, Act::DiscardParked, Act::DiscardWaiting]))
}

fn rough(rng: &mut Rng) -> Fault {
    let nets =
        [Net::Stall, Net::StallUp, Net::StallDown, Net::DropUp, Net::DropDown, Net::HalfOpen, Net::Slow];
    let side = if rng.bool() { Side::Database } else { Side::Broker };
    match rng.u8(..25) {
        0..=3 => Fault::Kill(who(rng)),
        4..=6 => Fault::Restart(who(rng), mode(rng)),
        7 | 8 => Fault::Pause(who(rng)),
        9 | 10 => Fault::Terminate(choice(rng, &["keeper", "source", "stream", "upkeep", "%"])),
        11..=13 => Fault::Network(who(rng), side, choice(rng, &nets)),
        14 => Fault::Cut(who(rng), side),
        15 => Fault::Alarm { disk: rng.bool() },
        16 | 17 => full_queue(rng),
        18 | 19 => unbind(rng),
        20 => Fault::LockCursor,
        21 | 22 => too_large(rng),
        23 => operator(rng),
        _ => Fault::NoSpace { writes: rng.usize(1..=3) },
    }
}

fn step(rng: &mut Rng, fault: Fault) -> Step {
    let at_ms = rng.u64(FIRST_MS..LOAD_MS);
    let lasts_ms = rng.u64(50..=LASTS_MAX_MS);
    // Some pauses and silences outlast a lease, and some refusals a relay's patience.
    let may = matches!(fault, Fault::Pause(_) | Fault::Network(..)) || fault.routes();
    let long = may && rng.u8(..5) == 0;
    Step { at_ms, lasts_ms: if long { LONG_MS } else { lasts_ms }, fault }
}

/// Of the faults that exclude each other the later ones go.
fn keep_apart(steps: &mut Vec<Step>) {
    let (mut routed_until_ms, mut edited_until_ms) = (0, 0);
    steps.retain(|step| {
        let until_ms = match step.fault {
            fault if fault.routes() => &mut routed_until_ms,
            Fault::Edit(_) => &mut edited_until_ms,
            _ => return true,
        };
        let free = step.at_ms > *until_ms;
        if free {
            *until_ms = step.at_ms + step.lasts_ms + APART_MS;
        }
        free
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn chaos_schedules_are_their_seeds() {
        for seed in 0..2_000 {
            let schedule = Schedule::draw(seed);
            assert_eq!(schedule, Schedule::draw(seed));
            assert!(schedule.steps.iter().all(|step| step.at_ms < LOAD_MS));
            assert!(schedule.steps.windows(2).all(|pair| pair[0].at_ms <= pair[1].at_ms));
            let routed = schedule.steps.iter().filter(|step| step.fault.routes());
            let ends = routed.clone().map(|step| step.at_ms + step.lasts_ms);
            assert!(routed.skip(1).zip(ends).all(|(next, end)| next.at_ms > end), "{schedule}");
        }
    }

    #[test]
    fn chaos_schedules_have_every_kind() {
        let drawn: BTreeSet<&str> =
            (0..500).flat_map(|seed| Schedule::draw(seed).steps).map(|step| step.fault.kind()).collect();
        assert_eq!(drawn.len(), 17, "{drawn:?}");
    }

    #[test]
    fn chaos_with_an_edited_publication_ends_no_session() {
        let edited: Vec<Schedule> = (0..500).map(Schedule::draw).filter(Schedule::is_edited).collect();
        assert!(!edited.is_empty());
        for schedule in edited {
            let gentle = |step: &Step| {
                matches!(
                    step.fault,
                    Fault::Edit(_)
                        | Fault::Terminate("stream")
                        | Fault::Kill(Who::Standby)
                        | Fault::Network(_, _, Net::Slow)
                        | Fault::Alarm { .. }
                        | Fault::FullQueue(_)
                        | Fault::Unbind(_)
                        | Fault::TooLarge { .. }
                        | Fault::Operator(_)
                )
            };
            assert!(schedule.steps.iter().all(gentle), "{schedule}");
        }
    }
}
