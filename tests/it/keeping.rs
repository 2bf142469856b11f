//! A keeper over a database of its own, driven as the relay drives it, with no more rights than a relay has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use statecast::contract::{
    Act, Aside, Asked, Became, Change, Commit, Committed, FromKeeper, ParkedRows, Position, Reason, Recall,
    Recalled, Refusal, SetAside, ToKeeper,
};
use statecast::event::Seq;
use statecast::gate::Gate;
use statecast::postgres::{Guard, connect as open};
use statecast::snapshot::Snapshot;
use statecast::store::cursor::{self, Claim, Start};
use statecast::store::keeper::{Keeper, KeeperError};
use statecast::store::{install, lease, preflight};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use crate::pg::{config, login};
use crate::servers::{connect, fresh_database, unique};

pub(crate) const PIPELINE: &str = "books";
/// For one answer; only a fault lasts so long.
const LIMIT: Duration = Duration::from_secs(20);

/// A commit that says nothing about rows that are set aside.
pub(crate) fn plain_commit(id: u64, position: Position, closes: bool, max_seq: Seq, passed: i64) -> Commit {
    Commit {
        id,
        position,
        closes,
        max_seq,
        passed,
        set_aside: Vec::new(),
        changes: Vec::new(),
        unpassed: false,
    }
}

pub(crate) fn refusal(reason: Reason, detail: &str) -> Refusal {
    Refusal { reason, detail: detail.to_owned() }
}

pub(crate) fn queued(seq: Seq, key: u64) -> SetAside {
    SetAside { seq, key, state: Aside::Queued, routing_key: None }
}

pub(crate) fn waiting(seq: Seq, key: u64, reason: Reason) -> SetAside {
    let state = Aside::Waiting(refusal(reason, "refused"));
    SetAside { seq, key, state, routing_key: Some(format!("order.{key}")) }
}

pub(crate) fn parked(seq: Seq, key: u64, reason: Reason) -> SetAside {
    SetAside { seq, key, state: Aside::Parked(refusal(reason, "can never go")), routing_key: None }
}

pub(crate) fn change(seq: Seq, to: Became) -> Change {
    Change { seq, to }
}

/// Refused again, as `order.changed`.
pub(crate) fn again(reason: Reason, detail: &str) -> Became {
    let routing_key = "order.changed".to_owned();
    Became::Waiting { refusal: refusal(reason, detail), routing_key, tried: true }
}

/// A leader's session on the keeper's side.
struct Leading {
    to: Sender<ToKeeper>,
    from: Receiver<FromKeeper>,
    task: JoinHandle<Result<(), KeeperError>>,
    pid: i32,
    guard: Guard,
    gate: Arc<Gate>,
}

/// See the module head.
pub(crate) struct Keeping {
    /// As the relay's login.
    pub(crate) url: String,
    /// As a superuser.
    owner_url: String,
    /// As a superuser.
    pub(crate) client: Client,
    pub(crate) claim: Claim,
    leading: Option<Leading>,
    asked: VecDeque<Vec<Asked>>,
    parked: Option<ParkedRows>,
    next: u64,
}

impl Keeping {
    /// In a new database of the shared server.
    pub(crate) async fn new() -> Keeping {
        Keeping::on(fresh_database().await).await
    }

    /// In an empty database.
    pub(crate) async fn on(url: String) -> Keeping {
        let (mut installer, guard) = open(&config(&url), "installer").await.unwrap();
        install::install(&mut installer, 1000).await.unwrap();
        drop((installer, guard));
        let role = unique("relay").replace('-', "_");
        let relay = login(&url, &role, "", &format!("GRANT statecast_relay TO {role}")).await;
        let client = connect(&url).await.unwrap();
        let (claim, leading) = lead(&relay).await;
        let asked = VecDeque::new();
        Keeping {
            url: relay,
            owner_url: url,
            client,
            claim,
            leading: Some(leading),
            asked,
            parked: None,
            next: 1,
        }
    }

    /// Another connection of a superuser.
    pub(crate) async fn superuser(&self) -> Client {
        connect(&self.owner_url).await.unwrap()
    }

    /// The session ends in good order, and the next one takes over.
    pub(crate) async fn restart(&mut self) {
        self.end().await.unwrap();
        self.take_over().await;
    }

    /// Ends the session; how its keeper ended. Nobody leads any more then.
    pub(crate) async fn end(&mut self) -> Result<(), KeeperError> {
        let leading = self.leading.take().unwrap();
        drop((leading.to, leading.from));
        let ended = tokio::time::timeout(LIMIT, leading.task).await.unwrap().unwrap();
        drop(leading.guard);
        // Its lock goes with its backend.
        let gone = async {
            let there = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {}", leading.pid);
            while self.number(&there).await > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, gone).await.unwrap();
        ended
    }

    pub(crate) async fn take_over(&mut self) {
        let (claim, leading) = lead(&self.url).await;
        self.claim = claim;
        self.leading = Some(leading);
        self.asked.clear();
        self.parked = None;
    }

    /// The backend that writes.
    pub(crate) fn pid(&self) -> i32 {
        self.leading.as_ref().unwrap().pid
    }

    /// What the lanes look at, and a second way to ask.
    pub(crate) fn gate(&self) -> (Arc<Gate>, Sender<ToKeeper>) {
        let leading = self.leading.as_ref().unwrap();
        (leading.gate.clone(), leading.to.clone())
    }

    pub(crate) async fn send(&self, to: ToKeeper) {
        self.leading.as_ref().unwrap().to.send(to).await.unwrap();
    }

    /// Its next answer; `None` when the keeper has ended.
    pub(crate) async fn receive(&mut self) -> Option<FromKeeper> {
        loop {
            let from = &mut self.leading.as_mut().unwrap().from;
            match tokio::time::timeout(LIMIT, from.recv()).await.expect("no answer")? {
                FromKeeper::Asked(asked) => self.asked.push_back(asked),
                FromKeeper::Parked(rows) => self.parked = Some(rows),
                answer => return Some(answer),
            }
        }
    }

    /// How often requests were told while something else was waited for.
    pub(crate) fn told(&self) -> usize {
        self.asked.len()
    }

    /// What people ask for, told from now on.
    pub(crate) async fn asked(&mut self) -> Vec<(Seq, Act)> {
        self.asked.clear();
        let from = &mut self.leading.as_mut().unwrap().from;
        loop {
            match tokio::time::timeout(LIMIT, from.recv()).await.expect("nothing is asked") {
                Some(FromKeeper::Asked(asked)) => {
                    return asked.iter().map(|asked| (asked.seq, asked.act)).collect();
                }
                Some(FromKeeper::Parked(rows)) => self.parked = Some(rows),
                other => panic!("{other:?}"),
            }
        }
    }

    /// What waits for people, as it was told last.
    pub(crate) fn parked(&mut self) -> Option<ParkedRows> {
        self.parked.take()
    }

    pub(crate) async fn commit(&mut self, commit: Commit) -> Committed {
        let id = commit.id;
        self.send(ToKeeper::Commit(commit)).await;
        match self.receive().await {
            Some(FromKeeper::Committed(committed)) if committed.id == id => committed,
            other => panic!("{other:?}, {:?}", self.end().await),
        }
    }

    pub(crate) async fn recall(&mut self, keys: &[u64], rows_max: usize, bytes_max: usize) -> Recalled {
        let id = self.id();
        self.send(ToKeeper::Recall(Recall { id, keys: keys.to_vec(), rows_max, bytes_max })).await;
        match self.receive().await {
            Some(FromKeeper::Recalled(recalled)) if recalled.id == id => recalled,
            other => panic!("{other:?}, {:?}", self.end().await),
        }
    }

    /// Asks without waiting for the answer; the id of the question.
    pub(crate) async fn recall_unanswered(&mut self, keys: &[u64]) -> u64 {
        let id = self.id();
        let recall = Recall { id, keys: keys.to_vec(), rows_max: 10, bytes_max: 1 << 20 };
        self.send(ToKeeper::Recall(recall)).await;
        id
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Writes an event of a key; its seq.
    pub(crate) async fn publish(&self, id: &str) -> Seq {
        let sql = "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
                   VALUES ('order', $1, 'changed', '{\"n\":  1.10}') RETURNING seq";
        self.client.query_one(sql, &[&id]).await.unwrap().get(0)
    }

    /// The last number that was issued.
    pub(crate) async fn last_seq(&self) -> Seq {
        self.number(
            "SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM statecast.outbox_seq_seq",
        )
        .await
    }

    /// Everything that is visible now is passed: P with its bound, and the highest seq.
    pub(crate) async fn now(&self) -> (Position, Seq) {
        let max_seq = self.last_seq().await;
        let sql = "SELECT pg_current_snapshot()::text, max_seq FROM statecast.cursor";
        let row = self.client.query_one(sql, &[]).await.unwrap();
        let snapshot: Arc<Snapshot> = Arc::new(row.get::<_, &str>(0).parse().unwrap());
        (Position { snapshot, prune_seq: row.get(1), window: None }, max_seq)
    }

    /// A commit that stays where the claim was.
    pub(crate) async fn stay(&mut self) -> Commit {
        let (_, max_seq) = self.now().await;
        plain_commit(self.id(), self.claim.position.clone(), false, max_seq, self.claim.passed)
    }

    /// A commit that passes every row of the outbox.
    pub(crate) async fn pass_all(&mut self) -> Commit {
        let (position, max_seq) = self.now().await;
        let passed = self.number("SELECT count(*) FROM statecast.outbox").await;
        Commit { unpassed: true, ..plain_commit(self.id(), position, true, max_seq, passed) }
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        self.client.query_one(sql, &[]).await.unwrap().get(0)
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap();
    }

    /// seq, state, passed of every row that is set aside, as text.
    pub(crate) async fn rows(&self) -> Vec<String> {
        self.texts("SELECT concat_ws(' ', seq, state, CASE WHEN passed THEN 'passed' END) FROM statecast.parked ORDER BY seq", &[])
            .await
    }

    pub(crate) async fn texts(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Vec<String> {
        let rows = self.client.query(sql, parameters).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// confirmed, parked and discarded of the cursor row.
    pub(crate) async fn books(&self) -> (i64, i64, i64) {
        let sql = "SELECT confirmed, parked, discarded FROM statecast.cursor";
        let row = self.client.query_one(sql, &[]).await.unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    /// The names of the comparisons that do not hold.
    pub(crate) async fn wrong(&self) -> Vec<&'static str> {
        let (mut client, _guard) = open(&config(&self.url), "verify").await.unwrap();
        let status = statecast::store::status::status(&mut client, PIPELINE, true).await.unwrap();
        let checks = status.verification.unwrap().checks;
        checks.iter().filter(|check| check.difference != 0).map(|check| check.name).collect()
    }
}

async fn lead(url: &str) -> (Claim, Leading) {
    let (mut client, guard) = open(&config(url), "keeper").await.unwrap();
    let server = preflight::preflight(&client, None).await.unwrap();
    assert!(lease::look(&client, PIPELINE, true).await.unwrap().locked);
    let claim =
        cursor::claim(&mut client, PIPELINE, &server, Start::Oldest, "test", 10_000, None).await.unwrap();
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let gate = Arc::new(Gate::new());
    let keeper = Keeper::new(client, PIPELINE, claim.epoch, gate.clone()).await.unwrap();
    let (to, commits) = channel(2);
    let (committed, from) = channel(4);
    let task = tokio::spawn(keeper.run(commits, committed));
    (claim, Leading { to, from, task, pid, guard, gate })
}
