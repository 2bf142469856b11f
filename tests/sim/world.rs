//! What outlives a session (the outbox, the broker, the history) and what every part notes and is judged by.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use statecast::contract::{Commit, LaneBatch, Lsn, Outcome};
use statecast::event::{Message, Seq, Xid};
use statecast::metrics::Metrics;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::aside::Refusals;
use crate::holds::Holds;
use crate::outbox::Outbox;
use crate::plan::{Hopeless, PROCESSES, Plan, Refuses, SessionPlan};
use crate::table::Table;
use crate::tally::Tally;

/// The world, shared by the tasks of one thread.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<World>>);

impl Shared {
    pub(crate) fn new(world: World) -> Self {
        Shared(Arc::new(Mutex::new(world)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Something happened to an event, or to a session (seq 0).
#[derive(Clone, Debug)]
pub(crate) struct Note {
    pub(crate) at: Duration,
    pub(crate) seq: Seq,
    pub(crate) what: String,
}

/// A promise was broken.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) seq: Seq,
    pub(crate) text: String,
}

/// What is known of an event.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fate {
    /// How often a queue took it.
    pub(crate) accepted: u32,
    /// A relay was told so, of this process or an earlier one.
    pub(crate) confirmed: bool,
    /// The relay of each process has taken the confirm.
    pub(crate) known: [bool; PROCESSES],
    /// When its body came to this session's relay, see `holds`.
    pub(crate) came: usize,
    /// Handed to this session's relay.
    pub(crate) handed: bool,
    /// Listed by a page that this session's relay takes.
    pub(crate) listed: bool,
    /// Recalled by this session's relay.
    pub(crate) recalled: bool,
    /// A person gave it up, and that is written.
    pub(crate) discarded: bool,
    /// What kept it from going when it was written.
    pub(crate) hopeless: Option<Hopeless>,
    /// Asked for again, not yet served.
    pub(crate) wanted: bool,
    /// With a lane, without an outcome.
    pub(crate) at_lane: bool,
    /// The stream (of all sessions) that brought it last, and the one that left it out.
    pub(crate) brought_by: Option<usize>,
    pub(crate) left_out_by: Option<usize>,
    /// A later event of its key reached the broker before it did.
    pub(crate) overtaken: bool,
    /// Polled in this session when a stream should have brought it, as the source said with the page.
    pub(crate) late: bool,
}

/// A message between lane and broker.
pub(crate) struct OnSocket {
    pub(crate) at: Instant,
    pub(crate) message: Arc<Message>,
}

/// One lane of this session.
#[derive(Default)]
pub(crate) struct LaneState {
    pub(crate) socket: VecDeque<OnSocket>,
    /// Messages without an outcome.
    pub(crate) unresolved: usize,
}

/// The stream of a session, as the relay should see it.
#[derive(Default)]
pub(crate) struct StreamState {
    /// Its number in the session.
    pub(crate) number: u64,
    /// A page was listed with a row that it did not bring.
    pub(crate) refused: bool,
    /// Events that came first after the last listed page.
    pub(crate) since_listed: Vec<Seq>,
    /// What it brought, by the end of the transaction.
    pub(crate) brought: Vec<(Lsn, Seq)>,
    pub(crate) upto: Lsn,
    /// What the relay has told.
    pub(crate) told: Lsn,
}

/// What belongs to one session.
#[derive(Default)]
pub(crate) struct Session {
    pub(crate) lanes: Vec<LaneState>,
    pub(crate) key_lane: HashMap<u64, usize>,
    pub(crate) key_in_flight: HashMap<u8, u32>,
    pub(crate) bytes_in_flight: usize,
    /// Confirms in the order in which they went to the relay, and how many of them it has taken.
    pub(crate) confirms: Vec<Seq>,
    pub(crate) taken: usize,
    pub(crate) page_bytes_max: usize,
    pub(crate) holds: Holds,
    pub(crate) process: usize,
    pub(crate) calm: Option<Vec<Refuses>>,
    pub(crate) heals_at: Option<Instant>,
    pub(crate) attended: bool,
    pub(crate) refusals: Refusals,
    /// When the relay last said that there is an outage, and when it was last told of a confirm.
    pub(crate) outage_at: Option<Instant>,
    pub(crate) confirmed_at: Option<Instant>,
    pub(crate) stream: StreamState,
    /// Streams (of all sessions) that missed a row in this one.
    pub(crate) broken_streams: Vec<usize>,
    /// Events that should count as missed, if the relay takes them all.
    pub(crate) missed_max: u64,
    pub(crate) missed_before: u64,
    // The keeper's.
    pub(crate) writing: Option<(Xid, Commit)>,
    pub(crate) unanswered: bool,
    pub(crate) last_commit: Option<(u64, Instant)>,
    pub(crate) last_is_aside: bool,
    /// Commits in a row that came too early to be any but the last.
    pub(crate) hurried: u32,
}

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) rng: Rng,
    pub(crate) outbox: Outbox,
    pub(crate) table: Table,
    pub(crate) began: Instant,
    pub(crate) fates: Vec<Fate>,
    /// Keys that were refused once: pipelined order is lost there.
    pub(crate) refused: Vec<bool>,
    pub(crate) committed_at: Vec<(Seq, Duration)>,
    /// Writes the history. A schedule that fails is played again with it.
    pub(crate) tells: bool,
    pub(crate) notes: Vec<Note>,
    pub(crate) fault: Option<Fault>,
    /// Cancelled with the first fault.
    pub(crate) failed: CancellationToken,
    /// The server's, and the one that each process saw last.
    pub(crate) timeline: i32,
    pub(crate) timelines: [Option<i32>; PROCESSES],
    /// The broker has closed a connection over a message, and nobody knows which: the next session finds out.
    pub(crate) careful: bool,
    pub(crate) tally: Tally,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) confirmed_before: u64,
    /// Streams of all sessions.
    pub(crate) streams: usize,
    /// Events that were overtaken because a stream left them out, counted when they are published.
    pub(crate) overtaken: u64,
    pub(crate) missed_at_start: u64,
    /// Bytes of a message besides its body.
    pub(crate) overhead: usize,
    pub(crate) session: Session,
}

impl World {
    pub(crate) fn new(mut plan: Plan, rng: Rng, metrics: Arc<Metrics>, overhead: usize) -> Self {
        let outbox = Outbox::new(std::mem::take(&mut plan.steps));
        World {
            refused: vec![false; usize::from(plan.keys) + 1],
            plan,
            rng,
            outbox,
            table: Table::default(),
            began: Instant::now(),
            fates: Vec::new(),
            committed_at: Vec::new(),
            tells: false,
            notes: Vec::new(),
            fault: None,
            failed: CancellationToken::new(),
            timeline: 1,
            timelines: [None; PROCESSES],
            careful: false,
            tally: Tally::default(),
            confirmed_before: metrics.events_confirmed.get(),
            streams: 0,
            overtaken: 0,
            missed_at_start: metrics.wal_missed.get(),
            metrics,
            overhead,
            session: Session::default(),
        }
    }

    /// Lets the writers act up to now.
    pub(crate) fn advance(&mut self) {
        let now_ms = self.began.elapsed().as_millis() as u64;
        for seq in self.outbox.advance(now_ms) {
            let row = self.outbox.rows[seq as usize - 1].clone();
            self.tally.count("events", 1);
            self.note(seq, || format!("commits: {row:?}"));
            self.committed_at.push((seq, self.began.elapsed()));
        }
        for seq in self.fates.len()..=self.outbox.rows.len() {
            let hopeless = seq.checked_sub(1).and_then(|index| self.outbox.rows[index].hopeless);
            self.fates.push(Fate { hopeless, ..Fate::default() });
        }
    }

    /// When the last writer is done.
    pub(crate) fn writers_done(&self) -> Instant {
        self.began + Duration::from_millis(self.outbox.last_ms())
    }

    pub(crate) fn note(&mut self, seq: Seq, what: impl FnOnce() -> String) {
        if self.tells {
            self.notes.push(Note { at: self.began.elapsed(), seq, what: what() });
        }
    }

    pub(crate) fn fail(&mut self, seq: Seq, text: String) {
        if self.fault.is_none() {
            self.note(seq, || format!("FAULT: {text}"));
            self.fault = Some(Fault { seq, text });
            self.failed.cancel();
        }
    }

    pub(crate) fn fate(&mut self, seq: Seq) -> &mut Fate {
        &mut self.fates[seq as usize]
    }

    pub(crate) fn row_bytes(&self, seq: Seq) -> usize {
        self.outbox.row(seq).map_or(0, |row| row.size + self.overhead)
    }

    pub(crate) fn delay(&mut self, max_us: u64) -> Duration {
        let max_us = if self.session.calm.is_some() { max_us.min(5_000) } else { max_us };
        Duration::from_micros(self.rng.u64(0..=max_us))
    }

    /// A session begins at the cursor row.
    pub(crate) fn begin(&mut self, plan: &SessionPlan) {
        self.advance();
        self.timeline += i32::from(plan.promotion);
        let timeline = self.timeline;
        let last = self.timelines[plan.process].replace(timeline);
        let forgets = plan.new_process || last.is_some_and(|last| last != timeline);
        for fate in &mut self.fates {
            fate.known[plan.process] &= !forgets;
            (fate.handed, fate.wanted, fate.at_lane, fate.late) = (false, false, false, false);
            (fate.listed, fate.recalled) = (false, false);
        }
        self.confirmed_before = self.metrics.events_confirmed.get();
        let heals_at = plan.heals_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let lanes = (0..self.plan.lanes).map(|_| LaneState::default()).collect();
        self.session = Session {
            lanes,
            heals_at,
            calm: plan.calm.clone(),
            attended: plan.attended,
            process: plan.process,
            missed_before: self.metrics.wal_missed.get(),
            ..Session::default()
        };
        if plan.calm.as_ref().is_some_and(|refused| !refused.is_empty()) {
            // Something is always well.
            let now_ms = self.began.elapsed().as_millis() as u64;
            let pulse = (now_ms..now_ms + plan.stop_ms).step_by(1_000);
            self.outbox.pulse(self.plan.keys, self.plan.routes, pulse);
        }
        self.tally.count("sessions", 1);
        self.note(0, || format!("session begins: {plan:?}"));
    }

    /// The session's connections are gone: what was on its sockets arrives in part, a write that was under way may be done.
    pub(crate) fn end(&mut self) {
        self.take_confirms();
        self.check_held();
        self.check_missed();
        let lost = self.session.unanswered && self.session.writing.is_none();
        self.tally.count("cursor writes without an answer", usize::from(lost));
        let about = usize::from(lost && self.session.last_is_aside);
        self.tally.count("writes about what is set aside without an answer", about);
        for lane in 0..self.session.lanes.len() {
            self.cut(lane);
        }
        if self.session.writing.is_some() {
            if self.rng.bool() {
                self.written();
            } else {
                self.unwritten();
            }
        }
        self.note(0, || "session ends".to_owned());
    }

    /// Which confirms the relay has taken: they are counted as they are taken, in order.
    pub(crate) fn take_confirms(&mut self) {
        let taken = (self.metrics.events_confirmed.get() - self.confirmed_before) as usize;
        if taken > self.session.confirms.len() {
            self.fail(0, format!("{taken} confirms counted, {} given", self.session.confirms.len()));
            return;
        }
        for index in self.session.taken..taken {
            let seq = self.session.confirms[index];
            let process = self.session.process;
            self.fate(seq).known[process] = true;
        }
        self.session.taken = taken;
    }

    /// The relay's batch is with a lane.
    pub(crate) fn sent(&mut self, lane: usize, batch: LaneBatch) {
        self.take_confirms();
        for message in batch {
            self.check_sent(lane, &message);
            let seq = message.seq;
            if self.fault.is_some() {
                return;
            }
            self.note(seq, || format!("lane {lane} has it"));
            let key = self.outbox.rows[seq as usize - 1].key;
            *self.session.key_in_flight.entry(key).or_default() += 1;
            self.session.bytes_in_flight += message.bytes();
            let fate = self.fate(seq);
            fate.at_lane = true;
            let came = fate.came;
            self.session.holds.is_sent(came);
            let slow =
                if self.session.calm.is_none() && self.rng.f64() < self.plan.slow / 10.0 { 100 } else { 1 };
            let at = Instant::now() + self.delay(self.plan.pace.arrival) * slow;
            let lane = &mut self.session.lanes[lane];
            lane.unresolved += 1;
            let at = lane.socket.back().map_or(at, |last| at.max(last.at));
            lane.socket.push_back(OnSocket { at, message });
        }
    }

    /// The lane hands outcomes to the relay.
    pub(crate) fn resolved(&mut self, lane: usize, outcomes: &[Outcome]) {
        for outcome in outcomes {
            let seq = outcome.message.seq;
            self.note(seq, || format!("outcome {:?}", outcome.result));
            let key = self.outbox.rows[seq as usize - 1].key;
            self.session.key_in_flight.entry(key).and_modify(|n| *n -= 1);
            self.session.bytes_in_flight -= outcome.message.bytes();
            self.session.lanes[lane].unresolved -= 1;
            let fate = self.fate(seq);
            fate.at_lane = false;
            let came = fate.came;
            if outcome.result == statecast::contract::Published::Confirmed {
                fate.confirmed = true;
                self.session.confirms.push(seq);
                self.session.confirmed_at = Some(Instant::now());
            }
            self.session.holds.goes(came);
        }
    }

    /// The cursor write is in the database. Its floor, and what it passed of what is set aside.
    pub(crate) fn written(&mut self) -> (Seq, Vec<Seq>) {
        let Some((w, commit)) = self.session.writing.take() else { return (0, Vec::new()) };
        self.check_forward(&commit.position);
        self.tally.count("cursor writes", 1);
        self.note(0, || format!("cursor row: {} passed, {:?}", commit.passed, commit.position));
        let floor_seq = self.outbox.write_cursor(w, &commit);
        let passed = self.write_table(&commit);
        self.check_books();
        (floor_seq, passed)
    }

    /// The keeper's transaction is rolled back.
    pub(crate) fn unwritten(&mut self) {
        if let Some((w, _)) = self.session.writing.take() {
            self.note(0, || "cursor write lost".to_owned());
            self.outbox.end(w, crate::outbox::State::Aborted);
        }
    }
}
