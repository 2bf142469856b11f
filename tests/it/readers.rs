//! Readers that people write first, under the same load and before the same checker as the relay, and *shown to fail*:
//! so the suite can see the faults that the relay must not have.
//!
//! - `id > cursor` loses what commits after a larger id was read;
//! - the xmin horizon (only transactions older than every running one, in the order of their ids) loses nothing, and
//!   lets an event overtake its key: the later writer of an entity may own the older id;
//! - a snapshot difference whose page is pruned by the highest seq *at* P loses what a running transaction at xmax owns.
//!
//! The same snapshot difference with the bound of the cursor row passes.

use std::time::Duration;

use statecast::contract::Position;
use statecast::event::Seq;
use statecast::snapshot::Snapshot;
use statecast::source::poll::page::{Request, Statements};
use statecast::store::cursor::{self, Start};
use statecast::store::parked::write::Deltas;
use statecast::store::preflight;
use std::sync::Arc;
use tokio_postgres::{Client, Statement};
use tokio_util::sync::CancellationToken;

use crate::checker::{Seen, Verdict, check, read_committed};
use crate::keeping::plain_commit;
use crate::load::{self, Load};
use crate::schedules::{Writer, installed, seen, snapshot, turn};
use crate::servers::connect;

/// Between two reads under load.
const INTERVAL: Duration = Duration::from_millis(2);
const PAGE: i64 = 1000;

/// How a reader goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    IdCursor,
    XminHorizon,
    /// The production statement, with `prune_seq` = the highest seq at P.
    PrunedByMaxSeq,
    /// The production statement as it is meant.
    SnapshotDifference,
}

/// A reader: what it has read, and where it is.
struct Reader {
    method: Method,
    client: Client,
    seen: Vec<Seen>,
    id: Seq,
    xid: String,
    statements: Statements,
    p: Snapshot,
    prune_seq: Seq,
    /// The cursor row's writer.
    keeper: Client,
    advance: Statement,
    epoch: i64,
}

impl Reader {
    async fn new(url: &str, method: Method) -> Reader {
        let client = connect(url).await.unwrap();
        let statements = Statements::prepare(&client).await.unwrap();
        let mut keeper = connect(url).await.unwrap();
        let server = preflight::preflight(&keeper, None).await.unwrap();
        let pipeline = pipeline(method);
        let claim = cursor::claim(&mut keeper, &pipeline, &server, Start::Oldest, "test", 10_000, None)
            .await
            .unwrap();
        let advance = cursor::prepare_advance(&keeper, &pipeline).await.unwrap();
        Reader {
            method,
            client,
            seen: Vec::new(),
            id: 0,
            xid: "0".to_owned(),
            statements,
            p: Snapshot::NOTHING,
            prune_seq: 0,
            keeper,
            advance,
            epoch: claim.epoch,
        }
    }

    /// Reads what there is.
    async fn read(&mut self) {
        let columns = "SELECT event_id, aggregate_type || ':' || aggregate_id, seq, (payload ->> 'n')::bigint, xid::text
                         FROM statecast.outbox o";
        match self.method {
            Method::IdCursor => {
                let sql = format!("{columns} WHERE seq > $1 ORDER BY seq");
                let rows = self.client.query(&sql, &[&self.id]).await.unwrap();
                self.take(&rows);
            }
            Method::XminHorizon => {
                // o.xid: a bare name would be the column's text.
                let sql = format!(
                    "{columns} WHERE o.xid < pg_snapshot_xmin(pg_current_snapshot())
                        AND (o.xid, seq) > ($1::text::xid8, $2) ORDER BY o.xid, seq"
                );
                let rows = self.client.query(&sql, &[&self.xid, &self.id]).await.unwrap();
                self.take(&rows);
            }
            Method::PrunedByMaxSeq | Method::SnapshotDifference => self.read_window().await,
        }
    }

    fn take(&mut self, rows: &[tokio_postgres::Row]) {
        for row in rows {
            self.seen.push(Seen {
                event_id: row.get(0),
                key: row.get(1),
                sequence: row.get(2),
                n: row.get(3),
                redelivered: false,
            });
            (self.id, self.xid) = (row.get(2), row.get(4));
        }
    }

    /// One window in pages, then a cursor write.
    async fn read_window(&mut self) {
        let mut window: Option<(Snapshot, Seq, Seq)> = None;
        let mut after_seq = 0;
        loop {
            let request = Request {
                pipeline: &pipeline(self.method),
                from: &self.p,
                window: window.as_ref().map(|(upper, ceil, _)| (upper, *ceil)),
                after_seq,
                prune_seq: self.prune_seq,
                floor_seq: 0,
                rows_max: PAGE,
                bytes_max: 1 << 20,
            };
            let page = self.statements.page(&self.client, &request).await.unwrap();
            let (_, ceil, bound) = window.get_or_insert_with(|| {
                let head = &page.head;
                let bound = match self.method {
                    Method::PrunedByMaxSeq => head.last_seq,
                    _ => head.max_seq,
                };
                (head.upper.clone(), head.last_seq, bound)
            });
            let (ceil, bound) = (*ceil, *bound);
            after_seq = page.events.last().map_or(after_seq, |event| event.seq);
            self.seen.extend(seen(&page.events));
            if !page.full {
                let (upper, _, _) = window.unwrap();
                (self.p, self.prune_seq) = (upper, bound);
                self.write_cursor(ceil).await;
                return;
            }
        }
    }

    async fn write_cursor(&self, max_seq: Seq) {
        let position =
            Position { snapshot: Arc::new(self.p.clone()), prune_seq: self.prune_seq, window: None };
        let commit = plain_commit(1, position, true, max_seq, 0);
        let pipeline = pipeline(self.method);
        let none = Deltas::default();
        cursor::advance(&self.keeper, &self.advance, &pipeline, self.epoch, &commit, &none).await.unwrap();
    }

    /// Reads until told to stop, and then what is left.
    async fn run(mut self, stop: CancellationToken) -> (Method, Vec<Seen>) {
        while !stop.is_cancelled() {
            self.read().await;
            tokio::time::sleep(INTERVAL).await;
        }
        self.read().await;
        (self.method, self.seen)
    }

    async fn verdict(mut self) -> Verdict {
        self.read().await;
        let committed = read_committed(&self.client).await.unwrap();
        check(&committed, &self.seen)
    }
}

fn pipeline(method: Method) -> String {
    format!("{method:?}").to_lowercase()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_naive_readers_fail_and_the_snapshot_difference_does_not() {
    let server = turn().await;
    let url = installed(&server).await;
    let client = connect(&url).await.unwrap();
    load::prepare(&client).await.unwrap();
    let stop = CancellationToken::new();
    let mut readers = Vec::new();
    for method in [Method::IdCursor, Method::XminHorizon, Method::PrunedByMaxSeq, Method::SnapshotDifference]
    {
        readers.push(tokio::spawn(Reader::new(&url, method).await.run(stop.clone())));
    }
    Load::default().run(&url).await;
    stop.cancel();
    let committed = read_committed(&client).await.unwrap();
    for reader in readers {
        let (method, seen) = reader.await.unwrap();
        let verdict = check(&committed, &seen);
        println!("{method:?}: {}", verdict.summary());
        match method {
            Method::IdCursor | Method::PrunedByMaxSeq => {
                assert!(!verdict.lost.is_empty(), "{method:?}: {}", verdict.summary());
            }
            Method::XminHorizon => {
                assert!(verdict.inversion_count() > 0, "{}", verdict.summary());
                assert_eq!((verdict.lost.len(), verdict.duplicates), (0, 0));
            }
            Method::SnapshotDifference => {
                verdict.assert_clean();
                assert_eq!(verdict.duplicates, 0);
            }
        }
    }
}

/// Each fault in its shortest schedule: nothing here is left to chance.
#[tokio::test]
async fn id_cursor_loses_what_commits_late() {
    for (method, lost) in [(Method::IdCursor, 1), (Method::SnapshotDifference, 0)] {
        let server = turn().await;
        let url = installed(&server).await;
        let (older, younger) = (Writer::new(&url).await, Writer::new(&url).await);
        let mut reader = Reader::new(&url, method).await;
        older.begin().await;
        older.write("a", 1).await;
        younger.write("b", 1).await;
        reader.read().await;
        older.commit().await;
        let verdict = reader.verdict().await;
        assert_eq!(verdict.lost.len(), lost, "{method:?}: {}", verdict.summary());
        assert_eq!(verdict.is_clean(), lost == 0);
    }
}

#[tokio::test]
async fn xmin_horizon_lets_an_event_overtake_its_key() {
    for (method, inversions) in [(Method::XminHorizon, 1), (Method::SnapshotDifference, 0)] {
        let server = turn().await;
        let url = installed(&server).await;
        let (early, late) = (Writer::new(&url).await, Writer::new(&url).await);
        let reader = Reader::new(&url, method).await;
        let older_id = early.begin().await;
        assert!(late.begin().await > older_id);
        late.write("k", 1).await;
        late.commit().await;
        early.write("k", 2).await;
        early.commit().await;
        let verdict = reader.verdict().await;
        assert_eq!(verdict.inversion_count(), inversions, "{method:?}: {}", verdict.summary());
        assert_eq!(verdict.is_clean(), inversions == 0);
    }
}

#[tokio::test]
async fn pruning_by_the_highest_seq_at_p_loses_a_running_transaction_at_xmax() {
    for (method, lost) in [(Method::PrunedByMaxSeq, 1), (Method::SnapshotDifference, 0)] {
        let server = turn().await;
        let url = installed(&server).await;
        let (t0, t1) = (Writer::new(&url).await, Writer::new(&url).await);
        let mut reader = Reader::new(&url, method).await;
        t0.begin().await;
        let x1 = t1.begin().await;
        t1.write("b", 1).await;
        t0.write("a", 1).await;
        t0.commit().await;
        let now = snapshot(&reader.client).await;
        assert_eq!((now.xmax, now.xip.len()), (x1, 0), "T1 is running, at xmax, and not listed");
        reader.read().await;
        assert_eq!((reader.seen.len(), reader.p.xmax), (1, x1));
        t1.commit().await;
        let verdict = reader.verdict().await;
        assert_eq!(verdict.lost.len(), lost, "{method:?}: {}", verdict.summary());
        assert_eq!(verdict.is_clean(), lost == 0);
    }
}
