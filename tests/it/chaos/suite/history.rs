//! What is printed when a round fails: the first event that is wrong, from its commit to its deliveries, and what the relays
//! said about it.

use std::fmt::Write as _;
use std::time::{Instant, SystemTime};

use tokio_postgres::Client;
use uuid::Uuid;

use super::arena::Place;
use super::relays::Relays;
use crate::checker::Verdict;
use crate::consumer::Consumer;

/// Deliveries of the same key that are shown before and after those of the event.
const AROUND: usize = 4;
/// Lines of one relay's log, at most.
const LINES_MAX: usize = 60;
/// What a relay says at the turns of its life.
const TURNS: [&str; 8] =
    ["WARN", "ERROR", "leading", "streaming", "stopping", "waiting until", "fence taken", "lease"];

/// A round, for whoever wants to know what happened.
pub struct Told<'a> {
    pub place: &'a Place,
    pub relays: &'a Relays,
    pub consumer: &'a Consumer,
    /// When the round began, by both clocks.
    pub began: Instant,
    pub wall: SystemTime,
}

impl Told<'_> {
    /// All that is known of a failure.
    pub async fn failure(&self, complaints: &[String], verdict: &Verdict, client: &Client) -> String {
        let mut text = String::new();
        for complaint in complaints {
            let _ = writeln!(text, "WRONG: {complaint}");
        }
        let _ = writeln!(text, "{}", verdict.summary());
        let first = first_wrong(verdict);
        if let Some(id) = first {
            self.event(id, client, &mut text).await;
        }
        self.logs(first, &mut text);
        text
    }

    async fn event(&self, id: Uuid, client: &Client, text: &mut String) {
        let began_s = self.wall.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let sql = "SELECT seq, xid::text, aggregate_type || ':' || aggregate_id, payload ->> 'n',
                          extract(epoch FROM recorded_at)::float8,
                          extract(epoch FROM pg_xact_commit_timestamp(xid::xid))::float8
                     FROM statecast.outbox WHERE event_id = $1";
        let row = client.query_opt(sql, &[&id]).await.ok().flatten();
        let key: Option<String> = row.as_ref().map(|row| row.get(2));
        let _ = match &row {
            Some(row) => {
                let (seq, xid, n): (i64, String, Option<String>) = (row.get(0), row.get(1), row.get(3));
                let at = |column| {
                    let at_s = row.get::<_, Option<f64>>(column).map(|at_s| at_s - began_s);
                    at_s.map_or_else(|| "an unknown time".to_owned(), |at_s| format!("{at_s:+.3} s"))
                };
                let (key, written, committed): (String, _, _) = (row.get(2), at(4), at(5));
                writeln!(
                    text,
                    "event {id}: seq {seq}, transaction {xid}, {key} n {n:?}, written at {written}, committed at {committed}"
                )
            }
            None => writeln!(text, "event {id}: it is not in the outbox"),
        };
        let cursor = client.query_opt("SELECT cursor::text FROM statecast.cursor", &[]).await.ok().flatten();
        let _ = writeln!(text, "cursor row: {:?}", cursor.map(|row| row.get::<_, String>(0)));
        let deliveries = self.consumer.deliveries();
        let seen: Vec<_> = deliveries.iter().map(|delivery| (delivery, delivery.seen())).collect();
        let key =
            key.or_else(|| seen.iter().find(|(_, seen)| seen.event_id == id).map(|(_, s)| s.key.clone()));
        let of_key: Vec<_> = seen.iter().filter(|(_, seen)| Some(&seen.key) == key.as_ref()).collect();
        let places: Vec<usize> = (0..of_key.len()).filter(|index| of_key[*index].1.event_id == id).collect();
        let near = |index: usize| places.iter().any(|place| place.abs_diff(index) <= AROUND);
        let _ = writeln!(text, "deliveries of its key from queue {}:", self.place.topology.queue);
        for (index, (delivery, seen)) in of_key.iter().enumerate().filter(|(index, _)| near(*index)) {
            let at_s = delivery.received.saturating_duration_since(self.began).as_secs_f64();
            let mark = if seen.event_id == id { "→" } else { " " };
            let again = if seen.redelivered { ", redelivered" } else { "" };
            let (seq, n, id) = (seen.sequence, seen.n.unwrap_or(0), seen.event_id);
            let _ = writeln!(text, "{mark} {index:>5}. {at_s:+.3} s  seq {seq}  n {n}  {id}{again}");
        }
        if places.is_empty() {
            let _ = writeln!(text, "→ never delivered");
        }
    }

    fn logs(&self, event: Option<Uuid>, text: &mut String) {
        let id = event.map(|id| id.to_string());
        for life in self.relays.lives() {
            let log = life.relay.log();
            let told = |line: &&str| {
                TURNS.iter().any(|turn| line.contains(turn))
                    || id.as_ref().is_some_and(|id| line.contains(id))
            };
            let lines: Vec<&str> = log.lines().filter(told).collect();
            let _ = writeln!(text, "relay {} ({}), process {}:", life.number, life.mode, life.relay.id());
            for line in &lines[lines.len().saturating_sub(LINES_MAX)..] {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
}

/// The first event of which something is wrong.
fn first_wrong(verdict: &Verdict) -> Option<Uuid> {
    let inverted = verdict.inversions.values().flatten().map(|inversion| inversion.late);
    let renamed = verdict.renamed.iter().map(|(_, other)| *other);
    let all = [&verdict.lost, &verdict.invented, &verdict.altered].into_iter().flatten().copied();
    all.chain(renamed).chain(inverted).next()
}
