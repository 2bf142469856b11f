//! The books: exact after any sequence of commits, leaders and rebases, and shown to be wrong when a row is altered by hand.
//!
//! Knobs: `STATECAST_TEST_BOOKS` (100 steps), `STATECAST_TEST_SEED`.

use std::collections::BTreeMap;
use std::sync::Arc;

use statecast::contract::{Became, Commit, Position, Reason, SetAside, WindowPosition};
use statecast::event::{Seq, Xid};
use statecast::postgres::connect as open;
use statecast::sandbox::{Postgres, PostgresOptions};
use statecast::snapshot::Snapshot;
use statecast::store::cursor_admin;
use statecast::store::parked::State;
use tokio_postgres::Client;

use crate::keeping::{Keeping, PIPELINE, again, change, parked, plain_commit, queued, refusal, waiting};
use crate::pg::config;
use crate::relay::knob;
use crate::servers::unique;

/// A committed row, as the books should see it.
#[derive(Clone, Debug)]
struct Row {
    xid: Xid,
    passed: bool,
    /// Its row in statecast.parked.
    aside: Option<State>,
}

/// A window in progress.
#[derive(Clone, Debug)]
struct Open {
    upper: Arc<Snapshot>,
    prune_seq: Seq,
    ceil: Seq,
    /// Rows that it lists.
    seqs: Vec<Seq>,
    /// How many of them lie in the settled prefix.
    settled: usize,
}

/// What a relay would know, and what the books should say.
struct Model {
    keeping: Keeping,
    rng: fastrand::Rng,
    rows: BTreeMap<Seq, Row>,
    writers: Vec<(Client, bool)>,
    position: Position,
    window: Option<Open>,
    /// Before the position, since the pipeline began.
    passed: i64,
    discarded: i64,
    tally: BTreeMap<&'static str, usize>,
}

impl Model {
    async fn new(server: &Postgres, seed: u64) -> Model {
        let keeping = Keeping::on(server.create_database(&unique("db")).await.unwrap()).await;
        let mut writers = Vec::new();
        for _ in 0..3 {
            writers.push((keeping.superuser().await, false));
        }
        let position = keeping.claim.position.clone();
        let rng = fastrand::Rng::with_seed(seed);
        let (rows, tally) = (BTreeMap::new(), BTreeMap::new());
        Model { keeping, rng, rows, writers, position, window: None, passed: 0, discarded: 0, tally }
    }

    fn count(&mut self, what: &'static str, n: usize) {
        *self.tally.entry(what).or_default() += n;
    }

    /// One of the writers begins, writes, or ends its transaction.
    async fn write(&mut self) {
        let at = self.rng.usize(..self.writers.len());
        let (rows, ends, commits) = (self.rng.usize(1..8), self.rng.bool(), self.rng.u8(..4) > 0);
        let (client, running) = &mut self.writers[at];
        if !*running {
            client.batch_execute("BEGIN").await.unwrap();
            *running = true;
        }
        for _ in 0..rows {
            client.batch_execute("SELECT statecast.publish('order', '1', 'changed', '{}')").await.unwrap();
        }
        if ends {
            *running = false;
            client.batch_execute(if commits { "COMMIT" } else { "ROLLBACK" }).await.unwrap();
            let sql = "SELECT seq, xid::text FROM statecast.outbox";
            for row in self.keeping.client.query(sql, &[]).await.unwrap() {
                let xid = row.get::<_, &str>(1).parse().unwrap();
                self.rows.entry(row.get(0)).or_insert(Row { xid, passed: false, aside: None });
            }
        }
    }

    /// Opens the next window, if none is.
    async fn open(&mut self) {
        if self.window.is_some() {
            return;
        }
        let (now, ceil) = self.keeping.now().await;
        let floor = self.keeping.number("SELECT floor_seq FROM statecast.cursor").await;
        let (p, upper) = (&self.position.snapshot, now.snapshot);
        let listed = |(seq, row): (&Seq, &Row)| {
            (*seq > floor && !p.sees(row.xid) && upper.sees(row.xid)).then_some(*seq)
        };
        let seqs = self.rows.iter().filter_map(listed).collect();
        self.window = Some(Open { upper, prune_seq: now.prune_seq, ceil, seqs, settled: 0 });
    }

    /// The settled prefix grows; a window that is wholly settled becomes P.
    fn settle(&mut self) -> bool {
        let Some(window) = &mut self.window else { return false };
        window.settled += self.rng.usize(..=window.seqs.len() - window.settled).min(4);
        let closes = window.settled == window.seqs.len() && self.rng.bool();
        if let Some(window) = self.window.take_if(|_| closes) {
            self.position = Position { snapshot: window.upper, prune_seq: window.prune_seq, window: None };
        } else if let Some(window) = &self.window {
            let last = window.settled.checked_sub(1).map(|last| window.seqs[last]);
            self.position.window = last.map(|seq| WindowPosition {
                upper: window.upper.clone(),
                prune_seq: window.prune_seq,
                ceil: window.ceil,
                seq,
            });
        }
        closes
    }

    /// Rows of the window in progress that may be set aside, and any others that may not.
    fn set_aside(&mut self) -> Vec<SetAside> {
        let listed = self.window.as_ref().map(|window| window.seqs.clone()).unwrap_or_default();
        let free = |seq: &Seq| !self.rows[seq].passed;
        let mut candidates: Vec<Seq> = listed.into_iter().filter(free).collect();
        self.rng.shuffle(&mut candidates);
        candidates.truncate(self.rng.usize(..6));
        let mut all = Vec::new();
        for seq in candidates {
            let key = self.rng.u64(..3);
            let row = match self.rng.u8(..3) {
                0 => queued(seq, key),
                1 => waiting(seq, key, Reason::Nack),
                _ => parked(seq, key, Reason::TooLarge),
            };
            let state = match self.rows[&seq].aside {
                Some(state) => state,
                None => match row.state {
                    statecast::contract::Aside::Queued => State::Queued,
                    statecast::contract::Aside::Waiting(_) => State::Waiting,
                    statecast::contract::Aside::Parked(_) => State::Parked,
                },
            };
            let again = self.rows[&seq].aside.is_some();
            self.count("set aside again", usize::from(again));
            self.count("set aside", usize::from(!again));
            self.rows.get_mut(&seq).unwrap().aside = Some(state);
            all.push(row);
        }
        all
    }

    /// Changes of any rows, unknown ones among them.
    fn changes(&mut self) -> Vec<statecast::contract::Change> {
        let seqs: Vec<Seq> = self.rows.keys().copied().chain([1_000_000]).collect();
        let mut all = Vec::new();
        for _ in 0..self.rng.usize(..5) {
            let aside: Vec<Seq> = seqs.iter().copied().filter(|s| self.is_aside(*s)).collect();
            let from = if aside.is_empty() || self.rng.u8(..5) == 0 { &seqs } else { &aside };
            let seq = from[self.rng.usize(..from.len())];
            let (to, state) = match self.rng.u8(..6) {
                0 => (Became::Confirmed, Some(State::Confirmed)),
                1 => (Became::Discarded, Some(State::Discarded)),
                2 => (Became::Retry, Some(State::Retry)),
                3 => (again(Reason::Nack, "again"), Some(State::Waiting)),
                4 => (Became::Parked(refusal(Reason::Unroutable, "for long")), Some(State::Parked)),
                _ => (Became::Unchanged, None),
            };
            all.push(change(seq, to));
            if let Some(row) = self.rows.get_mut(&seq)
                && let Some(open) = row.aside.filter(|state| !state.is_final())
            {
                row.aside = Some(state.unwrap_or(open));
                let last = row.aside.filter(|state| state.is_final());
                if row.passed
                    && let Some(last) = last
                {
                    self.discarded += i64::from(last == State::Discarded);
                    row.aside = None;
                }
                self.count("final", usize::from(last.is_some()));
            }
        }
        all
    }

    fn is_aside(&self, seq: Seq) -> bool {
        self.rows.get(&seq).is_some_and(|row| row.aside.is_some())
    }

    /// Rows that the position covers now; those of them that are set aside.
    fn pass(&mut self) -> Vec<Seq> {
        let position = self.position.clone();
        let window = position.window.as_ref();
        let mut aside = Vec::new();
        for (seq, row) in self.rows.iter_mut().filter(|(_, row)| !row.passed) {
            let in_window = window.is_some_and(|w| *seq <= w.seq && w.upper.sees(row.xid));
            if !in_window && !position.snapshot.sees(row.xid) {
                continue;
            }
            row.passed = true;
            self.passed += 1;
            if let Some(state) = row.aside {
                aside.push(*seq);
                self.discarded += i64::from(state == State::Discarded);
                row.aside = Some(state).filter(|state| !state.is_final());
            }
        }
        aside
    }

    /// What the cursor row should say.
    fn books(&self) -> (i64, i64, i64) {
        let open = self.rows.values().filter(|row| row.passed && row.aside.is_some()).count() as i64;
        (self.passed - open - self.discarded, open, self.discarded)
    }

    async fn commit(&mut self) {
        // As a relay does: what is set aside now is passed by a later commit, or by this one.
        let early = if self.rng.bool() { self.set_aside() } else { Vec::new() };
        let closes = self.settle();
        let set_aside = if early.is_empty() && self.rng.bool() { self.set_aside() } else { early };
        let changes = if self.rng.bool() { self.changes() } else { Vec::new() };
        let unpassed = self.rows.values().any(|row| !row.passed && row.aside.is_some());
        let passed = self.pass();
        let max_seq = self.keeping.last_seq().await;
        let id = self.keeping.id();
        let plain = plain_commit(id, self.position.clone(), closes, max_seq, self.passed);
        let short = set_aside.is_empty() && changes.is_empty() && !unpassed;
        self.count("commits in one statement", usize::from(short));
        self.count("rows passed", passed.len());
        let commit = Commit { set_aside, changes, unpassed, ..plain };
        let described = format!("{commit:?}");
        assert_eq!(self.keeping.commit(commit).await.passed, passed, "{described}");
        assert_eq!(self.keeping.books().await, self.books(), "{described}");
    }

    /// The next leader finds what the model says, and goes on from the cursor row.
    async fn lead_again(&mut self) {
        let (confirmed, parked, discarded) = self.books();
        let claim = &self.keeping.claim;
        assert_eq!(claim.passed, confirmed + parked + discarded);
        let unpassed: Vec<Seq> =
            self.rows.iter().filter(|(_, r)| !r.passed && r.aside.is_some()).map(|(s, _)| *s).collect();
        assert_eq!(claim.aside.unpassed, unpassed);
        let open: Vec<Seq> = self.keeping.claim.aside.heads.iter().map(|head| head.seq).collect();
        assert!(
            open.iter().all(|seq| self.rows[seq].aside.is_some_and(|state| !state.is_final())),
            "{open:?}"
        );
        // The window's upper snapshot is in the row; what it lists is read again.
        self.position = claim.position.clone();
        let (p, floor) = (self.position.snapshot.clone(), claim.floor_seq);
        self.window = self.position.window.as_ref().map(|stored| {
            let listed = |(seq, row): (&Seq, &Row)| {
                let new = *seq > floor && !p.sees(row.xid) && stored.upper.sees(row.xid);
                new.then_some(*seq)
            };
            let seqs: Vec<Seq> = self.rows.iter().filter_map(listed).collect();
            let settled = seqs.partition_point(|seq| *seq <= stored.seq);
            Open {
                upper: stored.upper.clone(),
                prune_seq: stored.prune_seq,
                ceil: stored.ceil,
                seqs,
                settled,
            }
        });
    }

    async fn restart(&mut self) {
        self.count("restarts", 1);
        self.keeping.restart().await;
        self.lead_again().await;
    }

    async fn rebase(&mut self) {
        self.count("rebases", 1);
        self.keeping.end().await.unwrap();
        let (mut client, _guard) = open(&config(&self.keeping.url), "rebase").await.unwrap();
        let rebased = cursor_admin::rebase(&mut client, PIPELINE, 10_000, None).await.unwrap();
        for (_, row) in self.rows.range_mut(rebased.from_seq + 1..) {
            row.passed = false;
            row.aside = row.aside.filter(|state| !state.is_final());
        }
        let open = self.rows.values().filter(|row| row.aside.is_some()).count() as i64;
        assert_eq!(rebased.set_aside, open);
        assert_eq!(self.keeping.wrong().await, Vec::<&str>::new(), "after the rebase to {rebased:?}");
        // What was confirmed above the floor stays counted: it is confirmed twice.
        let parked = self.rows.values().filter(|row| row.passed && row.aside.is_some()).count() as i64;
        let (confirmed, booked, discarded) = self.keeping.books().await;
        assert_eq!((booked, discarded), (parked, self.discarded));
        self.passed = confirmed + booked + discarded;
        self.keeping.take_over().await;
        self.lead_again().await;
    }

    async fn run(&mut self, steps: usize) {
        for step in 0..steps {
            match self.rng.u8(..24) {
                0..6 => self.write().await,
                6..9 => self.open().await,
                9..22 => self.commit().await,
                22 => self.restart().await,
                _ if self.rng.u8(..3) == 0 => self.rebase().await,
                _ => {}
            }
            if step % 10 == 9 {
                self.judge().await;
            }
        }
        // Everything ends, and everything is passed.
        for (client, running) in &mut self.writers {
            if std::mem::take(running) {
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
        self.judge().await;
    }

    /// The books are exact, and the status says what the model says.
    async fn judge(&self) {
        assert_eq!(self.keeping.wrong().await, Vec::<&str>::new());
        let (mut client, _guard) = open(&config(&self.keeping.url), "status").await.unwrap();
        let status = statecast::store::status::status(&mut client, PIPELINE, false).await.unwrap();
        let (confirmed, _, discarded) = self.books();
        let of = |state: State, passed: Option<bool>| {
            let is =
                |row: &&Row| row.aside == Some(state) && passed.is_none_or(|passed| row.passed == passed);
            self.rows.values().filter(is).count() as i64
        };
        let waits = of(State::Waiting, None) + of(State::Queued, None) + of(State::Retry, None);
        let unread = self.rows.values().filter(|row| !row.passed && row.aside.is_none()).count() as i64;
        assert_eq!((status.pending, status.set_aside), (unread + waits, waits));
        assert_eq!(status.parked, of(State::Parked, None));
        assert_eq!(status.confirmed, confirmed + of(State::Confirmed, Some(false)));
        assert_eq!(status.discarded, discarded + of(State::Discarded, Some(false)));
        assert_eq!(status.oldest_pending_ms.is_some(), status.pending > 0);
    }
}

#[tokio::test]
async fn the_books_are_exact_after_any_sequence() {
    let seed =
        std::env::var("STATECAST_TEST_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    let steps = knob("STATECAST_TEST_BOOKS", 100);
    // Its writers keep transactions open, which would hold up the floors of all other tests.
    let server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let mut tally: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in (0..4).map(|n| seed.wrapping_add(n)) {
        println!("STATECAST_TEST_SEED={seed}");
        let mut model = Model::new(&server, seed).await;
        model.run(steps).await;
        model.tally.iter().for_each(|(what, n)| *tally.entry(what).or_default() += n);
    }
    println!("{tally:?}");
    for what in ["commits in one statement", "set aside again", "final", "rows passed", "restarts"] {
        assert!(tally.get(what).is_some_and(|n| *n > 0), "{what}: too few steps to say anything");
    }
}

/// Each kind of damage is found, by the comparison that it belongs to.
#[tokio::test]
async fn damage_is_found() {
    let mut keeping = Keeping::new().await;
    for id in 0..10 {
        keeping.publish(&id.to_string()).await;
    }
    let set_aside =
        vec![waiting(1, 1, Reason::Nack), queued(2, 1), parked(3, 3, Reason::TooLarge), queued(4, 4)];
    let commit =
        Commit { set_aside, changes: vec![change(4, Became::Discarded)], ..keeping.pass_all().await };
    keeping.commit(commit).await;
    // Two more, one of them set aside and not passed.
    keeping.publish("late").await;
    keeping.publish("late").await;
    let plain = keeping.pass_all().await;
    let at = keeping.claim.position.clone();
    keeping.restart().await;
    let position = keeping.claim.position.clone();
    assert_ne!(position, at);
    let commit = Commit { position, passed: 10, closes: false, set_aside: vec![queued(11, 5)], ..plain };
    keeping.commit(commit).await;
    assert_eq!((keeping.books().await, keeping.wrong().await), ((6, 3, 1), vec![]));

    for (damage, found) in DAMAGE {
        let save = "CREATE TABLE public.saved AS SELECT * FROM statecast.parked;
                    CREATE TABLE public.rows AS SELECT * FROM statecast.outbox;
                    CREATE TABLE public.cursors AS SELECT * FROM statecast.cursor;";
        keeping.run(&format!("{save} {damage}")).await;
        assert_eq!(keeping.wrong().await, found, "{damage}");
        keeping
            .run(
                "DELETE FROM statecast.parked; INSERT INTO statecast.parked SELECT * FROM public.saved;
                 DELETE FROM statecast.chunk; DELETE FROM statecast.cursor;
                 INSERT INTO statecast.cursor SELECT * FROM public.cursors;
                 INSERT INTO statecast.outbox OVERRIDING SYSTEM VALUE
                 SELECT * FROM public.rows r WHERE NOT EXISTS (SELECT FROM statecast.outbox o WHERE o.seq = r.seq);
                 DROP TABLE public.saved, public.rows, public.cursors",
            )
            .await;
        assert_eq!(keeping.wrong().await, Vec::<&str>::new(), "{damage}, repaired");
    }
}

/// What is done by hand, and which comparisons then fail. A row that is not settled and vanishes leaves no trace: nothing has
/// counted it yet.
const DAMAGE: [(&str, &[&str]); 14] = [
    ("DELETE FROM statecast.outbox WHERE seq = 7", &["committed", "passed"]),
    ("DELETE FROM statecast.outbox WHERE seq = 12", &[]),
    ("UPDATE statecast.cursor SET confirmed = confirmed + 1", &["committed", "passed"]),
    (
        "UPDATE statecast.cursor SET discarded = discarded + 1, parked = parked - 1",
        &["committed", "set aside"],
    ),
    (
        "UPDATE statecast.cursor SET parked = parked + 1, confirmed = confirmed - 1",
        &["committed", "set aside"],
    ),
    ("UPDATE statecast.cursor SET base = base + 1", &["committed", "passed"]),
    ("UPDATE statecast.cursor SET prune_seq = 11", &["to come", "unmarked"]),
    ("INSERT INTO statecast.chunk (lo, hi, rows) VALUES (-10, 0, 3)", &["committed", "passed"]),
    ("DELETE FROM statecast.parked WHERE seq = 1", &["committed", "set aside"]),
    ("DELETE FROM statecast.parked WHERE seq = 3", &["committed", "set aside"]),
    ("UPDATE statecast.parked SET state = 'confirmed' WHERE seq = 1", &["set aside", "left over"]),
    ("UPDATE statecast.parked SET passed = false WHERE seq = 2", &["set aside", "unmarked"]),
    ("UPDATE statecast.parked SET passed = true WHERE seq = 11", &["committed", "set aside", "marked early"]),
    ("UPDATE statecast.parked SET seq = 77, passed = false WHERE seq = 3", &["set aside", "unmarked"]),
];
