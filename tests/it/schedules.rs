//! Schedules that lose a row, or let one overtake, when a bound of polling is wrong: step by step, against a real
//! server, through the production poller, ledger and cursor row.
//!
//! A step waits for what it needs (a window whose snapshot covers the present), never for time. Transaction ids belong
//! to the whole cluster, so the schedules have a server of their own and take turns on it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use statecast::config::{Poll, SecretString};
use statecast::contract::{Batch, Fetch, Input, Page, Position};
use statecast::event::{Event, Seq, Xid};
use statecast::postgres::Guard;
use statecast::relay::Ledger;
use statecast::sandbox::{Postgres, PostgresOptions};
use statecast::snapshot::Snapshot;
use statecast::source::poll::page::PageError;
use statecast::source::poll::{self, Ends, Reader, Settings};
use statecast::store::cursor::{self, CursorError, Start};
use statecast::store::parked::write::Deltas;
use statecast::store::{install, preflight};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{Mutex, MutexGuard, OnceCell};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use crate::checker::{Seen, Verdict, check, read_committed};
use crate::keeping::plain_commit;
use crate::servers::{connect, unique};

const PIPELINE: &str = "schedules";
/// For one step; only a fault lasts so long.
const STEP_LIMIT: Duration = Duration::from_secs(30);
/// More than any schedule writes.
pub(crate) const LARGE: u32 = 1000;

/// The server, and the turn on it. Autovacuum would take transaction ids of its own.
pub(crate) async fn turn() -> MutexGuard<'static, Postgres> {
    static SERVER: OnceCell<Mutex<Postgres>> = OnceCell::const_new();
    let start = async || {
        let settings = vec![("autovacuum".to_owned(), "off".to_owned())];
        Mutex::new(Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap())
    };
    SERVER.get_or_init(start).await.lock().await
}

pub(crate) async fn installed(server: &Postgres) -> String {
    let url = server.create_database(&unique("db")).await.unwrap();
    let (mut client, _guard) = session(&url).await;
    install::install(&mut client, 1000).await.unwrap();
    url
}

async fn session(url: &str) -> (Client, Guard) {
    let postgres = statecast::config::Postgres {
        url: SecretString::new(url.to_owned()),
        tls: statecast::config::Tls::default(),
    };
    statecast::postgres::connect(&postgres, "schedules").await.unwrap()
}

pub(crate) async fn snapshot(client: &Client) -> Snapshot {
    let row = client.query_one("SELECT pg_current_snapshot()::text", &[]).await.unwrap();
    row.get::<_, &str>(0).parse().unwrap()
}

/// A connection that writes.
pub(crate) struct Writer(Client);

impl Writer {
    pub(crate) async fn new(url: &str) -> Writer {
        Writer(connect(url).await.unwrap())
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.0.batch_execute(sql).await.unwrap();
    }

    /// Begins a transaction that owns an id from now on, as one does that wrote elsewhere first.
    pub(crate) async fn begin(&self) -> Xid {
        self.run("BEGIN").await;
        let row = self.0.query_one("SELECT pg_current_xact_id()::text", &[]).await.unwrap();
        row.get::<_, &str>(0).parse().unwrap()
    }

    /// Writes the `n`th event of a key.
    pub(crate) async fn write(&self, key: &str, n: i64) -> Seq {
        let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                   VALUES ('order', $1, 'changed', json_build_object('n', $2::bigint)) RETURNING seq";
        self.0.query_one(sql, &[&key, &n]).await.unwrap().get(0)
    }

    pub(crate) async fn commit(&self) {
        self.run("COMMIT").await;
    }
}

/// A relay whose broker confirms at once: production source, ledger and cursor, one step at a time.
pub(crate) struct Source {
    url: String,
    batch: u32,
    keeper: Client,
    advance: Statement,
    epoch: i64,
    ledger: Ledger,
    sent: Position,
    commits: u64,
    session: Option<Running>,
    /// Read, and not yet listed by a page.
    read: VecDeque<Event>,
    /// In delivery order, over all sessions.
    pub(crate) delivered: Vec<Event>,
}

struct Running {
    input: Receiver<Input>,
    // Kept open: the poller ends when they are closed.
    _fetch: Sender<Fetch>,
    _refetched: Receiver<Batch>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), PageError>>,
}

impl Source {
    /// A new pipeline with `batch` rows per page.
    pub(crate) async fn start(url: &str, batch: u32) -> Source {
        let mut keeper = connect(url).await.unwrap();
        let server = preflight::preflight(&keeper, None).await.unwrap();
        let claim =
            cursor::claim(&mut keeper, PIPELINE, &server, Start::Oldest, "test", 10_000, None).await.unwrap();
        let advance = cursor::prepare_advance(&keeper, PIPELINE).await.unwrap();
        let mut ledger = Ledger::default();
        ledger.begin((1, 1), &claim.position, claim.passed, claim.max_seq);
        let mut source = Source {
            url: url.to_owned(),
            batch,
            keeper,
            advance,
            epoch: claim.epoch,
            ledger,
            sent: claim.position.clone(),
            commits: 0,
            session: None,
            read: VecDeque::new(),
            delivered: Vec::new(),
        };
        source.open(&claim.position, claim.floor_seq).await;
        source
    }

    async fn open(&mut self, position: &Position, floor_seq: Seq) {
        let (input_tx, input) = channel(1);
        let (fetch, fetch_rx) = channel(1);
        let (refetched_tx, refetched) = channel(1);
        let stop = CancellationToken::new();
        let ends = Ends { input: input_tx, fetch: fetch_rx, refetched: refetched_tx, stop: stop.clone() };
        let short = Duration::from_millis(1);
        let poll = Poll { busy_interval: short, idle_interval: short, batch: self.batch };
        let settings = Settings { pipeline: PIPELINE.to_owned(), poll: poll.clone(), page_bytes: 1 << 20 };
        let reader =
            Reader::new(session(&self.url).await, settings, position, floor_seq, ends).await.unwrap();
        let position = position.clone();
        let task = tokio::spawn(async move { poll::run(reader, &poll, &position).await });
        self.session = Some(Running { input, _fetch: fetch, _refetched: refetched, stop, task });
    }

    /// The process ends and another takes the pipeline over: all it knows is the cursor row.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.take_over().await;
    }

    async fn stop(&mut self) {
        let session = self.session.take().unwrap();
        session.stop.cancel();
        session.task.await.unwrap().unwrap();
        self.read.clear();
    }

    async fn take_over(&mut self) {
        let server = preflight::preflight(&self.keeper, None).await.unwrap();
        let claim = cursor::claim(&mut self.keeper, PIPELINE, &server, Start::Oldest, "test", 10_000, None);
        let claim = claim.await.unwrap();
        assert_eq!(claim.epoch, self.epoch + 1);
        self.epoch = claim.epoch;
        self.ledger = Ledger::default();
        self.ledger.begin((1, 1), &claim.position, claim.passed, claim.max_seq);
        self.sent = claim.position.clone();
        self.open(&claim.position, claim.floor_seq).await;
    }

    /// Takes one page and settles its rows.
    async fn page(&mut self) -> Page {
        let input = &mut self.session.as_mut().unwrap().input;
        loop {
            let next = tokio::time::timeout(STEP_LIMIT, input.recv()).await.expect("no page");
            match next.expect("the poller ended") {
                Input::Rows(batch) => self.read.extend(batch.events),
                Input::Page(page) => {
                    self.ledger.page(&page, |_| true);
                    for seq in &page.seqs {
                        let event = self.read.pop_front().unwrap();
                        assert_eq!(event.seq, *seq, "rows and their page");
                        self.ledger.settle(Some(page.window.id), *seq);
                        self.delivered.push(event);
                    }
                    return page;
                }
                Input::Streamed(_) | Input::Listed(_) => unreachable!("a poller does not stream"),
            }
        }
    }

    /// Reads until a window that was opened now, or later, is settled. P is its upper snapshot.
    pub(crate) async fn poll(&mut self) -> Arc<Snapshot> {
        let now = snapshot(&self.keeper).await;
        loop {
            let page = self.page().await;
            if page.last && page.window.upper.covers(&now) {
                return Arc::clone(&page.window.upper);
            }
        }
    }

    /// Writes the cursor; returns the floor.
    pub(crate) async fn write_cursor(&mut self) -> Seq {
        self.try_write_cursor().await.unwrap()
    }

    pub(crate) async fn try_write_cursor(&mut self) -> Result<Seq, CursorError> {
        let (position, confirmed) = self.ledger.position();
        self.commits += 1;
        let closes = position.snapshot != self.sent.snapshot;
        let max_seq = self.ledger.max_seq();
        let commit = plain_commit(self.commits, position.clone(), closes, max_seq, confirmed);
        let none = Deltas::default();
        let floor =
            cursor::advance(&self.keeper, &self.advance, PIPELINE, self.epoch, &commit, &none).await?;
        self.sent = position;
        Ok(floor)
    }

    /// What was delivered, as `seq`s.
    fn seqs(&self) -> Vec<Seq> {
        self.delivered.iter().map(|event| event.seq).collect()
    }

    /// Compares everything with the checker. The cursor row knows it all.
    async fn finish(mut self) -> Verdict {
        self.poll().await;
        self.write_cursor().await;
        let committed = read_committed(&self.keeper).await.unwrap();
        let confirmed = self.keeper.query_one("SELECT confirmed FROM statecast.cursor", &[]).await.unwrap();
        assert_eq!(confirmed.get::<_, i64>(0), committed.len() as i64, "committed = confirmed");
        let verdict = check(&committed, &seen(&self.delivered));
        verdict.assert_clean();
        assert_eq!(verdict.duplicates, 0, "{:?}", self.seqs());
        verdict
    }
}

pub(crate) fn seen(events: &[Event]) -> Vec<Seen> {
    let seen = events.iter().map(|event| {
        let payload: serde_json::Value = serde_json::from_slice(event.payload.as_deref().unwrap()).unwrap();
        Seen {
            event_id: event.event_id,
            key: format!("{}:{}", event.aggregate_type, event.aggregate_id),
            sequence: event.seq,
            n: payload["n"].as_i64(),
            redelivered: false,
        }
    });
    seen.collect()
}

/// The older transaction wrote first and commits last, many windows and cursor writes later.
#[tokio::test]
async fn the_older_transaction_commits_last() {
    let server = turn().await;
    for restart in [false, true] {
        let url = installed(&server).await;
        let (older, younger) = (Writer::new(&url).await, Writer::new(&url).await);
        let mut source = Source::start(&url, LARGE).await;
        let x0 = older.begin().await;
        assert_eq!(older.write("a", 1).await, 1);
        for n in 1..=4 {
            assert_eq!(younger.write("b", n).await, n + 1);
            let p = source.poll().await;
            assert!(p.xip.contains(&x0), "{p}");
            // The floor may not pass what the open transaction has written.
            assert_eq!(source.write_cursor().await, 0);
        }
        assert_eq!(source.seqs(), [2, 3, 4, 5]);
        if restart {
            source.restart().await;
        }
        older.commit().await;
        source.poll().await;
        assert_eq!(source.seqs(), [2, 3, 4, 5, 1]);
        // Nothing is open any more: the floor follows.
        for _ in 0..3 {
            source.write_cursor().await;
            source.poll().await;
        }
        assert_eq!(source.write_cursor().await, 5);
        younger.write("a", 2).await;
        source.finish().await;
    }
}

/// What happens between P and the late commit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Between {
    Nothing,
    CursorWrite,
    CursorWriteAndWindow,
    CursorWriteAndRestart,
    Restart,
}

/// P's `xmax` is one past the latest *completed* id: a running transaction at or above it is not in `xip`, and may own a
/// smaller `seq` than what was delivered.
#[tokio::test]
async fn a_running_transaction_at_xmax_with_a_small_seq() {
    let server = turn().await;
    for between in [
        Between::Nothing,
        Between::CursorWrite,
        Between::CursorWriteAndWindow,
        Between::CursorWriteAndRestart,
        Between::Restart,
    ] {
        let url = installed(&server).await;
        let (t0, t1) = (Writer::new(&url).await, Writer::new(&url).await);
        let mut source = Source::start(&url, LARGE).await;
        let x0 = t0.begin().await;
        let x1 = t1.begin().await;
        assert!(x0 < x1);
        assert_eq!(t1.write("b", 1).await, 1);
        assert_eq!(t0.write("a", 1).await, 2);
        t0.commit().await;
        let p = source.poll().await;
        assert_eq!((p.xmax, p.xip.as_slice()), (x1, [].as_slice()), "T1 is running, at xmax, and not listed");
        assert_eq!(source.seqs(), [2]);
        match between {
            Between::Nothing => {}
            Between::CursorWrite => assert_eq!(source.write_cursor().await, 0),
            Between::CursorWriteAndWindow => {
                source.write_cursor().await;
                let p = source.poll().await;
                assert_eq!(p.xip, [x1], "now it is listed");
                source.write_cursor().await;
            }
            Between::CursorWriteAndRestart => {
                source.write_cursor().await;
                source.restart().await;
            }
            Between::Restart => {
                source.delivered.clear();
                source.restart().await;
            }
        }
        t1.commit().await;
        source.poll().await;
        let mut seqs = source.seqs();
        seqs.sort_unstable();
        assert_eq!(seqs, [1, 2], "{between:?}");
        source.finish().await;
    }
}

/// P itself is stored with `max_seq` 2, and the process starts again only after the late commit.
#[tokio::test]
async fn a_restart_after_the_late_commit_prunes_by_the_older_cursor_write() {
    let server = turn().await;
    let url = installed(&server).await;
    let (t0, t1) = (Writer::new(&url).await, Writer::new(&url).await);
    let mut source = Source::start(&url, LARGE).await;
    t0.begin().await;
    let x1 = t1.begin().await;
    t1.write("b", 1).await;
    t0.write("a", 1).await;
    t0.commit().await;
    assert_eq!(source.poll().await.xmax, x1);
    source.write_cursor().await;
    let row = source
        .keeper
        .query_one("SELECT max_seq, prune_seq, pg_snapshot_xmax(snapshot)::text FROM statecast.cursor", &[]);
    let row = row.await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, i64>(1)), (2, 0), "max_seq and prune_seq of the row");
    assert_eq!(row.get::<_, String>(2), x1.to_string());
    t1.commit().await;
    source.restart().await;
    source.poll().await;
    assert_eq!(source.seqs(), [2, 1]);
    source.finish().await;
}

/// The later writer of an entity owns the older id: it wrote elsewhere first. Write order is `seq`, not `xid`.
#[tokio::test]
async fn the_later_writer_owns_the_older_id() {
    let server = turn().await;
    // Both rows new to P; the later one in its list of running transactions; and that with a page for each row.
    for (listed, batch) in [(false, LARGE), (true, LARGE), (false, 1), (true, 1)] {
        let url = installed(&server).await;
        let (early, late, other) =
            (Writer::new(&url).await, Writer::new(&url).await, Writer::new(&url).await);
        other
            .run("CREATE TABLE entity (id text PRIMARY KEY, n bigint); INSERT INTO entity VALUES ('k', 0)")
            .await;
        let mut source = Source::start(&url, batch).await;
        let x_early = early.begin().await;
        if listed {
            other.write("other", 1).await;
            let p = source.poll().await;
            assert_eq!(p.xip, [x_early]);
        }
        let x_late = late.begin().await;
        assert!(x_early < x_late);
        late.run("UPDATE entity SET n = 1 WHERE id = 'k'").await;
        let first = late.write("k", 1).await;
        late.commit().await;
        early.run("UPDATE entity SET n = 2 WHERE id = 'k'").await;
        let second = early.write("k", 2).await;
        early.commit().await;
        assert!(first < second);
        source.poll().await;
        let seqs = source.seqs();
        assert_eq!(seqs[seqs.len() - 2..], [first, second], "listed {listed}, batch {batch}");
        source.finish().await;
    }
}

/// Rows of savepoints that were undone are never read; those of the same transaction's kept savepoints are.
#[tokio::test]
async fn savepoints_that_were_rolled_back() {
    let server = turn().await;
    let url = installed(&server).await;
    let (writer, other) = (Writer::new(&url).await, Writer::new(&url).await);
    let mut source = Source::start(&url, 2).await;
    let xid = writer.begin().await;
    writer.write("a", 1).await; // seq 1
    writer.run("SAVEPOINT undone").await;
    writer.write("a", 2).await; // seq 2
    writer.run("SAVEPOINT nested").await;
    writer.write("b", 1).await; // seq 3
    writer.run("RELEASE nested; ROLLBACK TO undone").await;
    // The subtransaction has ended, and with it the latest completed id moves past the transaction's own.
    let p = source.poll().await;
    assert!(p.xmax > xid && p.xip.contains(&xid), "{p}");
    source.write_cursor().await;
    writer.run("SAVEPOINT kept").await;
    writer.write("a", 2).await; // seq 4
    writer.run("RELEASE kept").await;
    other.write("c", 1).await; // seq 5
    source.poll().await;
    source.write_cursor().await;
    assert_eq!(source.seqs(), [5]);
    writer.run("SAVEPOINT undone; SAVEPOINT deep").await;
    writer.write("b", 1).await; // seq 6
    writer.run("RELEASE deep; ROLLBACK TO undone").await;
    writer.write("b", 1).await; // seq 7
    writer.commit().await;
    source.poll().await;
    assert_eq!(source.seqs(), [5, 1, 4, 7]);
    // A transaction that is rolled back as a whole leaves a gap and nothing else.
    writer.begin().await;
    writer.write("a", 3).await; // seq 8
    source.poll().await;
    source.write_cursor().await;
    writer.run("ROLLBACK").await;
    other.write("c", 2).await; // seq 9
    source.poll().await;
    assert_eq!(source.seqs(), [5, 1, 4, 7, 9]);
    source.finish().await;
}

/// A window of several pages with a late transaction's rows in their midst, cut off by a restart after each page: the
/// stored window goes on where it was, under its own snapshot, whatever has committed since.
#[tokio::test]
async fn a_window_of_small_pages_is_taken_up_in_its_middle() {
    let server = turn().await;
    for (batch, cut) in [(2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (3, 2), (1, 1), (1, 4)] {
        let url = installed(&server).await;
        let (late, other, open) = (Writer::new(&url).await, Writer::new(&url).await, Writer::new(&url).await);
        let mut source = Source::start(&url, batch).await;
        let xid = late.begin().await;
        late.write("a", 1).await; // seq 1
        other.write("b", 1).await; // seq 2
        let p = source.poll().await;
        assert_eq!(p.xip, [xid]);
        source.write_cursor().await;
        other.begin().await;
        open.begin().await;
        open.write("c", 1).await; // seq 3, after the window
        other.write("b", 2).await; // seq 4
        late.write("a", 2).await; // seq 5
        other.write("b", 3).await; // seq 6
        late.write("a", 3).await; // seq 7
        other.write("b", 4).await; // seq 8
        // Nothing is read meanwhile, so that both commits come into one window.
        let settled = source.seqs();
        source.stop().await;
        other.commit().await;
        late.commit().await;
        source.take_over().await;
        for _ in 0..cut {
            let page = source.page().await;
            assert!(!page.last && page.seqs.len() == batch as usize, "{page:?}");
        }
        source.write_cursor().await;
        let row = source.keeper.query_one("SELECT window_seq FROM statecast.cursor", &[]).await.unwrap();
        assert_eq!(row.get::<_, Option<i64>>(0), source.seqs().get(settled.len()..).unwrap().last().copied());
        // What commits meanwhile belongs to the next window, although one of its seqs lies before the settled prefix.
        open.commit().await;
        other.write("b", 5).await; // seq 9
        source.restart().await;
        source.poll().await;
        // Without progress no window was stored: it is opened again, larger.
        let rest: &[Seq] = if cut == 0 { &[1, 3, 4, 5, 6, 7, 8, 9] } else { &[1, 4, 5, 6, 7, 8, 3, 9] };
        assert_eq!(source.seqs()[settled.len()..], *rest, "pages of {batch}, cut after {cut}");
        source.finish().await;
    }
}

/// A prepared transaction is open across windows, cursor writes, restarts of the relay and of the server.
#[tokio::test]
async fn prepared_transactions_stay_open_across_windows() {
    let mut server = Postgres::start(PostgresOptions::default()).await.unwrap();
    let url = installed(&server).await;
    let mut other = Writer::new(&url).await;
    let mut source = Source::start(&url, 2).await;
    let mut prepared = Vec::new();
    for (name, key) in [("kept", "a"), ("undone", "b")] {
        let writer = Writer::new(&url).await;
        prepared.push(writer.begin().await);
        writer.write(key, 1).await; // seq 1, 2
        writer.run(&format!("PREPARE TRANSACTION '{name}'")).await;
    }
    for n in 1..=3 {
        other.write("c", n).await; // seq 3, 4, 5
        let p = source.poll().await;
        assert!(prepared.iter().all(|xid| p.xip.contains(xid)), "{p}");
        assert_eq!(source.write_cursor().await, 0);
    }
    assert_eq!(source.seqs(), [3, 4, 5]);
    source.stop().await;
    server.restart().await.unwrap();
    source.keeper = connect(&url).await.unwrap();
    source.advance = cursor::prepare_advance(&source.keeper, PIPELINE).await.unwrap();
    source.take_over().await;
    other = Writer::new(&url).await;
    source.poll().await;
    source.write_cursor().await;
    other.run("COMMIT PREPARED 'kept'").await;
    source.poll().await;
    assert_eq!(source.seqs(), [3, 4, 5, 1]);
    other.run("ROLLBACK PREPARED 'undone'").await;
    other.write("a", 2).await;
    source.finish().await;
}

/// Under `synchronous_commit = off` a row is visible before its WAL is on disk. Whatever is handed over is there after
/// a crash at that very moment, although nobody else has flushed anything: the WAL writer is stopped.
#[tokio::test]
async fn what_is_handed_over_survives_a_crash() {
    let settings = vec![("synchronous_commit".to_owned(), "off".to_owned())];
    let mut server = Postgres::start(PostgresOptions { settings, ..Default::default() }).await.unwrap();
    let url = installed(&server).await;
    let writer = Writer::new(&url).await;
    let mut source = Source::start(&url, LARGE).await;
    source.poll().await;
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";
    let pid: i32 = source.keeper.query_one(sql, &[]).await.unwrap().get(0);
    kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).unwrap();
    for n in 1..=5 {
        writer.write("a", n).await;
    }
    source.poll().await;
    assert_eq!(source.seqs(), [1, 2, 3, 4, 5]);
    server.kill9();
    source.session.take().unwrap().task.abort();
    server.start_again().await.unwrap();
    let committed = read_committed(&connect(&url).await.unwrap()).await.unwrap();
    let verdict = check(&committed, &seen(&source.delivered));
    verdict.assert_clean();
    assert_eq!(verdict.committed, 5);
}

/// Whoever has been superseded writes nothing more, not even by accident.
#[tokio::test]
async fn a_superseded_relay_cannot_write_the_cursor() {
    let server = turn().await;
    let url = installed(&server).await;
    let writer = Writer::new(&url).await;
    let mut old = Source::start(&url, LARGE).await;
    writer.write("a", 1).await;
    old.poll().await;
    old.write_cursor().await;
    let row = "SELECT cursor::text FROM statecast.cursor";
    let mut new = Source::start(&url, LARGE).await;
    let before: String = new.keeper.query_one(row, &[]).await.unwrap().get(0);
    writer.write("a", 2).await;
    old.poll().await;
    assert!(matches!(old.try_write_cursor().await, Err(CursorError::Superseded(_))));
    let lanes = cursor::set_lanes(&old.keeper, PIPELINE, old.epoch, 7).await;
    assert!(matches!(lanes, Err(CursorError::Superseded(_))));
    assert_eq!(new.keeper.query_one(row, &[]).await.unwrap().get::<_, String>(0), before);
    new.poll().await;
    assert_eq!(new.seqs(), [2]);
    new.write_cursor().await;
}
