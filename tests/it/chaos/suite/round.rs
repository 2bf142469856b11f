//! One round: places, relays, writers, faults, and the judgement.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use lapin::types::AMQPValue;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::arena::{Arena, HELD, Place};
use super::faults::Driver;
use super::history::Told;
use super::operator::Operator;
use super::relays::Relays;
use super::schedule::Schedule;
use crate::checker::{Committed, Verdict, check, read_committed};
use crate::consumer::Consumer;
use crate::load::{self, Load, Written};
use crate::servers::connect;

/// For everything to arrive once all is well.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks whether something was refused.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// For the cursor to follow.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);
/// For `status --verify`.
const VERIFY_LIMIT: Duration = Duration::from_secs(60);
/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// What a round that went well came to.
pub struct Report {
    pub committed: usize,
    verdict: Verdict,
    missed: f64,
    lives: usize,
    leaderships: usize,
    given_up: usize,
}

impl Report {
    pub fn line(&self, seed: u64) -> String {
        format!(
            "seed {seed}: committed {} · duplicates {} · inversions {} · missed {} · given up {} · processes {} · sessions {}",
            self.committed,
            self.verdict.duplicates,
            self.verdict.inversion_count(),
            self.missed,
            self.given_up,
            self.lives,
            self.leaderships
        )
    }
}

/// See the module head.
pub struct Round;

impl Round {
    /// Runs a schedule; what went wrong, in full.
    pub async fn run(arena: &mut Arena, schedule: &Schedule) -> Result<Report, String> {
        let place = arena.place(schedule.park_after_s).await;
        let (began, wall) = (std::time::Instant::now(), SystemTime::now());
        let mut relays = Relays::start(place.invocations.clone(), schedule.modes, schedule.streams).await?;
        let consumer = Consumer::start(&place.topology.url, &place.topology.queue);
        let (mut complaints, mut operator) = (Vec::new(), Operator::new(&place));
        let written = {
            let load = load(schedule);
            let stop = load.stop.clone();
            let long = tokio::spawn(long_transactions(place.url.clone(), schedule.seed, stop.clone()));
            let url = place.url.clone();
            let writing = tokio::spawn(async move { load.run(&url).await });
            let driver = Driver::new(arena, &place, &mut relays, &mut operator);
            complaints.extend(driver.run(&schedule.steps).await);
            stop.cancel();
            long.await.unwrap();
            writing.await.unwrap()
        };
        let told = Told { place: &place, relays: &relays, consumer: &consumer, began, wall };
        let client = connect(&place.url).await.unwrap();
        let committed = read_committed(&client).await.unwrap();
        complaints.extend(arrive(&consumer, &committed, &mut operator).await);
        let verdict = operator.excuse(check(&committed, &consumer.seen()));
        if !verdict.lost.is_empty() {
            let mut text = judge(schedule, &verdict, 0.0, usize::MAX);
            text.extend(complaints);
            return Err(told.failure(&text, &verdict, &client).await);
        }
        complaints.extend(settle(&client).await);
        complaints.extend(relays.complaints());
        let missed = relays.metric("statecast_wal_missed_total").await;
        for number in 0..2 {
            complaints.extend(relays.stop(number).await);
        }
        let seen: HashSet<Uuid> = consumer.seen().iter().map(|seen| seen.event_id).collect();
        complaints.extend(books(&place, &client, &committed, &written, &operator, &seen).await);
        let leaderships = relays.leaderships();
        let verdict = operator.excuse(check(&committed, &consumer.seen()));
        let restarts = schedule.steps.iter().filter(|step| step.fault.restarts_broker()).count();
        complaints.extend(judge(schedule, &verdict, missed, leaderships + restarts));
        if !complaints.is_empty() {
            let told = Told { place: &place, relays: &relays, consumer: &consumer, began, wall };
            return Err(told.failure(&complaints, &verdict, &client).await);
        }
        let lives = relays.lives().count();
        drop((client, consumer));
        arena.clear(&place).await;
        let given_up = operator.given_up.len();
        Ok(Report { committed: committed.len(), verdict, missed, lives, leaderships, given_up })
    }
}

fn load(schedule: &Schedule) -> Load {
    Load {
        seed: schedule.seed,
        writers: schedule.writers,
        transactions: load::UNTIL_STOPPED,
        pause_max: Duration::from_millis(schedule.pause_max_ms),
        prepared: 10,
        stop: CancellationToken::new(),
    }
}

/// A writer whose transactions are open for long, with savepoints, and a few of which are rolled back.
async fn long_transactions(url: String, seed: u64, stop: CancellationToken) {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x10e6);
    while !stop.is_cancelled() {
        if let Ok(mut client) = connect(&url).await {
            while !stop.is_cancelled() && long_transaction(&mut client, &mut rng, &stop).await.is_ok() {}
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn long_transaction(
    client: &mut Client,
    rng: &mut fastrand::Rng,
    stop: &CancellationToken,
) -> Result<(), tokio_postgres::Error> {
    let mut transaction = client.transaction().await?;
    load::publish(&transaction, HELD).await?;
    if rng.bool() {
        let savepoint = transaction.savepoint("later").await?;
        load::publish(&savepoint, HELD).await?;
        if rng.bool() { savepoint.commit().await? } else { savepoint.rollback().await? }
    }
    let open = Duration::from_millis(rng.u64(50..1_500));
    let _ = tokio::time::timeout(open, stop.cancelled()).await;
    if rng.u8(..5) == 0 { transaction.rollback().await } else { transaction.commit().await }
}

/// Waits until everything has arrived, and nothing is set aside. What is not read yet may still be refused.
async fn arrive(consumer: &Consumer, committed: &[Committed], operator: &mut Operator) -> Option<String> {
    let begun = Instant::now();
    loop {
        let complaint = operator.settle().await;
        let given_up = &operator.given_up;
        let expected = committed.iter().map(|row| row.event_id).filter(|id| !given_up.contains(id));
        let missing = consumer.wait_for_ids(LOOK_INTERVAL, expected).await;
        if missing == 0 || complaint.is_some() || begun.elapsed() > ARRIVAL_LIMIT {
            return complaint;
        }
    }
}

/// Waits until the cursor has passed everything.
async fn settle(client: &Client) -> Option<String> {
    let sql = "SELECT c.window_seq IS NULL AND c.parked = 0
                      AND coalesce(bool_and(pg_visible_in_snapshot(o.xid, c.snapshot)), true)
                 FROM statecast.cursor c LEFT JOIN statecast.outbox o ON true
                GROUP BY c.pipeline, c.window_seq, c.parked";
    let begun = Instant::now();
    while !client.query_one(sql, &[]).await.unwrap().get::<_, bool>(0) {
        if begun.elapsed() > SETTLE_LIMIT {
            return Some(format!(
                "everything has arrived, and the cursor did not follow within {SETTLE_LIMIT:?}"
            ));
        }
        tokio::time::sleep(POLL).await;
    }
    None
}

/// The books, once both relays have stopped, and what they left behind.
async fn books(
    place: &Place,
    client: &Client,
    committed: &[Committed],
    written: &Written,
    operator: &Operator,
    seen: &HashSet<Uuid>,
) -> Vec<String> {
    let mut complaints = Vec::new();
    let sql = "SELECT confirmed, parked, discarded FROM statecast.cursor";
    let row = client.query_one(sql, &[]).await.unwrap();
    let [confirmed, parked, discarded]: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    if confirmed + discarded != committed.len() as i64 || parked != 0 {
        complaints.push(format!(
            "{} committed, {confirmed} confirmed, {discarded} discarded, {parked} set aside",
            committed.len()
        ));
    }
    // Of what was given up some was on its way.
    let given_up = operator.given_up.len() as i64;
    let missing = operator.given_up.difference(seen).count() as i64;
    if !(missing..=given_up).contains(&discarded) {
        complaints
            .push(format!("{discarded} discarded; {given_up} given up, {missing} of which did not arrive"));
    }
    let verify = place.invocations[0].arguments(&["status", "--verify"]);
    let (code, stdout, stderr) = verify.output(VERIFY_LIMIT).await;
    if code != Some(0) {
        complaints.push(format!("status --verify: {code:?}\n{stdout}{stderr}"));
    }
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    let slots: i64 = client.query_one(sql, &[]).await.unwrap().get(0);
    if slots > 0 {
        complaints.push(format!("{slots} replication slots are left"));
    }
    let ids: HashSet<Uuid> = committed.iter().map(|row| row.event_id).collect();
    let gone = written.acknowledged.iter().filter(|id| !ids.contains(id)).count();
    if gone > 0 {
        complaints
            .push(format!("{gone} acknowledged events are not in the outbox: the test itself is wrong"));
    }
    complaints
}

/// What is wrong with the deliveries. `repeats`: so many times somebody may have begun at the cursor.
fn judge(schedule: &Schedule, verdict: &Verdict, missed: f64, repeats: usize) -> Vec<String> {
    let mut complaints = Vec::new();
    let counts = [
        ("lost", verdict.lost.len()),
        ("invented", verdict.invented.len()),
        ("renamed", verdict.renamed.len()),
        ("altered", verdict.altered.len()),
    ];
    complaints.extend(counts.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!("{n} {what}")));
    let inversions = verdict.inversion_count();
    let excused = if schedule.is_edited() { missed as usize } else { 0 };
    if inversions > excused {
        complaints.push(format!("{inversions} inversions, {excused} excused"));
    }
    if verdict.descents_max > repeats {
        complaints.push(format!(
            "an older event followed a newer one of its key {} times, and only {repeats} times somebody began at the \
             cursor: messages of a dead relay landed among its successor's",
            verdict.descents_max
        ));
    }
    complaints
}

/// The queue that is full from the start.
pub fn full() -> [(&'static str, AMQPValue); 2] {
    [("x-max-length", AMQPValue::LongInt(1)), ("x-overflow", AMQPValue::LongString("reject-publish".into()))]
}
