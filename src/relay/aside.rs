//! Keys that are set aside: their events wait in a table, and later ones queue behind.
//!
//! ```text
//!              refused > 5 s                  back-off over, routing key tried, retry, discard of its head
//!   live ───────────────────────▶ Waiting ──────────────────────────────▶ Draining ──▶ live: nothing is left in the table
//!     │                             │  ▲            refused                   │ │
//!     │ can never go                │  └──────────────────────────────────────┘ │ can never go
//!     └────────────▶ Parked ◀───────┴───────────────────────────────────────────┘
//!                      │      unroutable for too long
//!                      └─▶ Draining: retry, discard
//! ```
//!
//! *Waiting* is either for the key's own back-off, or for its routing key. A *draining* key recalls its events from the table
//! and publishes them one by one. Live events of a waiting or parked key go to the table as soon as a page has listed them;
//! those of a draining one stay until it is live again, so that draining comes to an end. (Where they would take the room of
//! all others they go to the table as well, and it drains for longer.) Of a key that waits there is a
//! hash, a state and a row number in memory, and never a body.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::unpassed::Unpassed;
use crate::contract::{Aside, KEYS_MAX, Reason, Refusal, Then};
use crate::event::{Message, Seq};

/// Since when, also before this session.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    at: Instant,
    before: Duration,
}

impl Since {
    /// Since `at`, and so long before.
    pub fn new(at: Instant, before: Duration) -> Self {
        Since { at, before }
    }

    /// How long it has been.
    pub fn elapsed(&self, now: Instant) -> Duration {
        now.duration_since(self.at) + self.before
    }

    /// When it will have been so long.
    pub fn reaches(&self, long: Duration) -> Instant {
        self.at + long.saturating_sub(self.before)
    }
}

/// What a key does.
#[derive(Debug)]
pub enum Standing {
    /// It was answered with a nack, and is tried again.
    BackingOff {
        /// When.
        due: Instant,
    },
    /// It waits for its routing key.
    Routed {
        /// When it has waited for too long.
        park_at: Instant,
    },
    /// A person decides.
    Parked,
    /// Its events go out.
    Draining(Box<Draining>),
}

/// How the events of a key go out.
#[derive(Debug, Default)]
pub struct Draining {
    /// Recalled, in order.
    pub events: VecDeque<Drained>,
    /// What follows them in the table; none: not known.
    pub then: Option<Then>,
    /// They are being recalled.
    pub recalling: bool,
    /// The one that is in flight.
    pub in_flight: Option<Seq>,
    /// A person wants it tried, whatever its routing key is known for.
    pub forced: bool,
    /// Stands among those to recall.
    hungry: bool,
    /// Stands in its lane's list.
    listed: bool,
}

impl Draining {
    /// Nothing is recalled yet.
    pub fn new(forced: bool) -> Self {
        Draining { forced, ..Draining::default() }
    }
}

/// A recalled event.
#[derive(Debug)]
pub struct Drained {
    /// The row.
    pub seq: Seq,
    /// Its message, or why there can be none.
    pub message: Result<Arc<Message>, Refusal>,
}

/// How the first row of a key goes to the table.
#[derive(Debug)]
pub struct First {
    /// The row.
    pub seq: Seq,
    /// As what.
    pub state: Aside,
    /// Its routing key, if it was tried.
    pub routing_key: Option<String>,
}

/// A key that is set aside.
#[derive(Debug)]
pub struct Key {
    /// What it does.
    pub standing: Standing,
    /// Its first row in the table, where that is known.
    pub head: Option<Seq>,
    /// How long that has been waiting or parked, and why; none: it is neither.
    pub since: Option<(Since, Reason)>,
    /// In a row.
    pub refusals: u32,
    /// Rows and changes of it that the keeper has yet to write.
    pub on_way: u32,
    /// How its first row goes to the table; none: it went.
    pub first: Option<Box<First>>,
    /// A row went to the table that was written before its head.
    pub behind: bool,
}

/// See the module head.
#[derive(Debug)]
pub struct AsideKeys {
    keys: HashMap<u64, Key>,
    /// Rows in the table that no cursor write has passed.
    pub unpassed: Unpassed,
    /// More are set aside than are known.
    overflow: bool,
    wakes: BTreeSet<(Instant, u64)>,
    parks: BTreeSet<(Instant, u64)>,
    parked: usize,
    /// Keys to recall.
    hungry: VecDeque<u64>,
    /// Keys with an event to send, per lane.
    ready: Vec<VecDeque<u64>>,
    in_flight: HashMap<Seq, u64>,
    /// Of recalled bodies.
    bytes: usize,
    /// Keys with live events for the table; and those whose first can never go.
    work: BTreeSet<u64>,
    urgent: BTreeSet<u64>,
    /// Open rows in the table that this session knows of.
    rows: i64,
}

impl AsideKeys {
    /// None yet.
    pub fn new(lanes: usize) -> Self {
        AsideKeys {
            keys: HashMap::new(),
            unpassed: Unpassed::default(),
            overflow: false,
            wakes: BTreeSet::new(),
            parks: BTreeSet::new(),
            parked: 0,
            hungry: VecDeque::new(),
            ready: vec![VecDeque::new(); lanes.max(1)],
            in_flight: HashMap::new(),
            bytes: 0,
            work: BTreeSet::new(),
            urgent: BTreeSet::new(),
            rows: 0,
        }
    }

    /// Is no key set aside? All that the path of each event asks then.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// May no other key be set aside?
    pub fn is_full(&self) -> bool {
        self.keys.len() >= KEYS_MAX
    }

    /// How many are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// There are more than were told.
    pub fn overflows(&mut self) {
        self.overflow = true;
    }

    /// May there be keys, or rows, that are set aside and not known here?
    pub fn is_partial(&self) -> bool {
        self.overflow || self.unpassed.is_partial()
    }

    /// So many are live again that the next session knows all.
    pub fn is_relieved(&self) -> bool {
        self.overflow && !self.unpassed.is_partial() && self.len() < KEYS_MAX - KEYS_MAX / 10
    }

    /// Is this key set aside?
    pub fn contains(&self, key: u64) -> bool {
        !self.keys.is_empty() && self.keys.contains_key(&key)
    }

    /// A key that is set aside.
    pub fn get(&self, key: u64) -> Option<&Key> {
        self.keys.get(&key)
    }

    /// The same, to change it. Its standing only by [`AsideKeys::stand`].
    pub fn get_mut(&mut self, key: u64) -> Option<&mut Key> {
        self.keys.get_mut(&key)
    }

    /// How a key's events go out, if they do.
    pub fn draining(&mut self, key: u64) -> Option<&mut Draining> {
        match &mut self.keys.get_mut(&key)?.standing {
            Standing::Draining(draining) => Some(draining),
            _ => None,
        }
    }

    /// A key is set aside.
    pub fn insert(&mut self, key: u64, entry: Key) {
        let parks = matches!(entry.first.as_deref(), Some(First { state: Aside::Parked(_), .. }));
        if parks {
            self.urgent.insert(key);
        }
        self.note(key, &entry.standing);
        self.keys.insert(key, entry);
    }

    /// A key does something else now. What it had recalled is dropped.
    pub fn stand(&mut self, key: u64, standing: Standing) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        let old = std::mem::replace(&mut entry.standing, Standing::Parked);
        self.forget(key, &old);
        self.note(key, &standing);
        if let Some(entry) = self.keys.get_mut(&key) {
            entry.standing = standing;
        }
    }

    /// A key is live again.
    pub fn remove(&mut self, key: u64) {
        if let Some(entry) = self.keys.remove(&key) {
            self.forget(key, &entry.standing);
            self.idle(key);
        }
    }

    fn note(&mut self, key: u64, standing: &Standing) {
        match standing {
            Standing::BackingOff { due } => drop(self.wakes.insert((*due, key))),
            Standing::Routed { park_at } => drop(self.parks.insert((*park_at, key))),
            Standing::Parked => self.parked += 1,
            Standing::Draining(_) => {}
        }
    }

    fn forget(&mut self, key: u64, standing: &Standing) {
        match standing {
            Standing::BackingOff { due } => drop(self.wakes.remove(&(*due, key))),
            Standing::Routed { park_at } => drop(self.parks.remove(&(*park_at, key))),
            Standing::Parked => self.parked -= 1,
            Standing::Draining(draining) => self.bytes -= bytes_of(&draining.events).min(self.bytes),
        }
    }

    /// Drops what a key has recalled: it is recalled once more.
    pub fn drop_recalled(&mut self, key: u64) {
        let Some(draining) = self.draining(key) else { return };
        draining.then = None;
        let in_flight = usize::from(draining.in_flight.is_some());
        let dropped = draining.events.split_off(in_flight.min(draining.events.len()));
        self.bytes -= bytes_of(&dropped).min(self.bytes);
    }

    /// Another row of a key goes to the table. What was known to follow what it has recalled is wrong then; and if the row
    /// comes before that, it is recalled once more.
    pub fn lengthens(&mut self, key: u64, seq: Seq) {
        let Some(draining) = self.draining(key) else { return };
        draining.then = None;
        if draining.events.back().is_some_and(|last| seq < last.seq) {
            self.drop_recalled(key);
        }
    }

    /// A key has recalled an event.
    pub fn recalled(&mut self, key: u64, event: Drained) {
        let bytes = event.message.as_ref().map_or(0, |message| message.bytes());
        if let Some(draining) = self.draining(key) {
            draining.events.push_back(event);
            self.bytes += bytes;
        }
    }

    /// Bytes of recalled bodies.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// A key wants to recall its events.
    pub fn hunger(&mut self, key: u64) {
        if let Some(draining) = self.draining(key)
            && !std::mem::replace(&mut draining.hungry, true)
        {
            self.hungry.push_back(key);
        }
    }

    /// Does any key?
    pub fn is_hungry(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// The next keys to recall, at most so many.
    pub fn feed(&mut self, keys_max: usize) -> Vec<u64> {
        let mut keys = Vec::new();
        while keys.len() < keys_max {
            let Some(key) = self.hungry.pop_front() else { break };
            let Some(entry) = self.keys.get_mut(&key) else { continue };
            let Standing::Draining(draining) = &mut entry.standing else { continue };
            // What is on its way to the table now must be there first; then it is hungry again.
            if std::mem::take(&mut draining.hungry) && entry.on_way == 0 {
                draining.recalling = true;
                keys.push(key);
            }
        }
        keys
    }

    /// Lists a key that has an event to send.
    pub fn list(&mut self, key: u64, lane: usize) {
        if let Some(draining) = self.draining(key)
            && !std::mem::replace(&mut draining.listed, true)
        {
            self.ready[lane].push_back(key);
        }
    }

    /// The next key of a lane with an event to send, and that event.
    pub fn next_ready(&mut self, lane: usize) -> Option<(u64, Arc<Message>)> {
        while let Some(key) = self.ready.get_mut(lane)?.pop_front() {
            let Some(draining) = self.draining(key) else { continue };
            if !std::mem::take(&mut draining.listed) || draining.in_flight.is_some() {
                continue;
            }
            if let Some(Drained { message: Ok(message), .. }) = draining.events.front() {
                return Some((key, message.clone()));
            }
        }
        None
    }

    /// The first event of a key is sent.
    pub fn sends(&mut self, key: u64, seq: Seq) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        if entry.head != Some(seq) {
            (entry.head, entry.since) = (Some(seq), None);
        }
        if let Standing::Draining(draining) = &mut entry.standing {
            draining.in_flight = Some(seq);
            self.in_flight.insert(seq, key);
        }
    }

    /// An answer is in: whose event it is, if it was recalled.
    pub fn answered(&mut self, seq: Seq) -> Option<u64> {
        let key = self.in_flight.remove(&seq)?;
        if let Some(draining) = self.draining(key) {
            draining.in_flight = None;
        }
        Some(key)
    }

    /// The first event of a key is out.
    pub fn done(&mut self, key: u64) {
        let Some(entry) = self.keys.get_mut(&key) else { return };
        (entry.head, entry.since, entry.refusals) = (None, None, 0);
        if let Standing::Draining(draining) = &mut entry.standing {
            draining.forced = false;
            let out = draining.events.pop_front();
            self.bytes -= out.map_or(0, |out| bytes_of([&out])).min(self.bytes);
        }
    }

    /// A row goes to the table. False if there is no room to know it.
    pub fn goes(&mut self, seq: Seq) -> bool {
        let fits = self.unpassed.insert(seq);
        self.rows += i64::from(fits);
        fits
    }

    /// A key has live events for the table. While it drains they stay, unless they are `too_many`.
    pub fn has_work(&mut self, key: u64, too_many: bool) {
        let draining = |entry: &Key| matches!(entry.standing, Standing::Draining(_));
        if self.keys.get(&key).is_some_and(|entry| too_many || !draining(entry)) {
            self.work.insert(key);
        }
    }

    /// A key has none, or keeps them.
    pub fn idle(&mut self, key: u64) {
        self.work.remove(&key);
        self.urgent.remove(&key);
    }

    /// The next key with events for the table; in an `outage` only if its first can never go.
    pub fn next_work(&self, outage: bool) -> Option<u64> {
        let work = || self.work.first().filter(|_| !outage);
        self.urgent.first().or_else(work).copied().filter(|_| !self.unpassed.is_full())
    }

    /// The first row of a key goes to the table.
    pub fn take_first(&mut self, key: u64) -> Option<Box<First>> {
        self.urgent.remove(&key);
        self.keys.get_mut(&key)?.first.take()
    }

    /// A key whose back-off is over.
    pub fn wake(&mut self, now: Instant) -> Option<u64> {
        self.wakes.first().filter(|(at, _)| *at <= now).map(|(_, key)| *key)
    }

    /// When the next back-off is over.
    pub fn next_wake(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Keys that have waited for their routing key for too long.
    pub fn overdue(&self, now: Instant) -> impl Iterator<Item = u64> + '_ {
        self.parks.iter().take_while(move |(at, _)| *at <= now).map(|(_, key)| *key)
    }

    /// How many wait for their own back-off.
    pub fn backing_off(&self) -> usize {
        self.wakes.len()
    }

    /// How many wait for anything but a person.
    pub fn waiting(&self) -> usize {
        self.wakes.len() + self.parks.len()
    }

    /// How many wait for a person.
    pub fn parked(&self) -> usize {
        self.parked
    }

    /// How long the oldest has waited for a person.
    pub fn oldest_parked(&self, now: Instant) -> Duration {
        let parked = self.keys.values().filter(|key| matches!(key.standing, Standing::Parked));
        let ages = parked.filter_map(|key| Some(key.since?.0.elapsed(now)));
        ages.max().unwrap_or_default()
    }

    /// So many rows are open no more; or (negative) were found open.
    pub fn closed(&mut self, rows: i64) {
        self.rows -= rows;
    }

    /// Rows in the table that wait for no person, about: of those from before this session one is known for each key.
    pub fn pending(&self) -> i64 {
        let keys = self.keys.len() as i64 - self.parked as i64;
        (self.rows - self.parked as i64).max(keys).max(0)
    }
}

fn bytes_of<'a>(events: impl IntoIterator<Item = &'a Drained>) -> usize {
    events.into_iter().map(|event| event.message.as_ref().map_or(0, |message| message.bytes())).sum()
}
