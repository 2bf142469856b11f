//! The state as rows: a name, and text with a tone. Drawn on a terminal as they are, and printed as plain text.

use std::time::Instant;

use super::scrape::clean;
use super::state::{Database, Facts, State};
use super::text::{count, counted, interval, quantile, rate, seconds, sparkline};
use crate::config::units::about_size;
use crate::store::parked::counts::Count;

/// Columns of a row's name.
pub(super) const NAME: usize = 11;
/// Oldest pending events above this are shown as a warning, in seconds.
const OLD_S: f64 = 10.0;

/// What a piece of text means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Plain,
    /// Names, and what is less important.
    Dim,
    Strong,
    Good,
    Warning,
    Bad,
}

/// One row; an empty name continues the row above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) pieces: Vec<(Tone, String)>,
}

impl Row {
    fn new(name: &'static str) -> Row {
        Row { name, pieces: Vec::new() }
    }

    fn with(mut self, tone: Tone, text: impl Into<String>) -> Row {
        self.pieces.push((tone, text.into()));
        self
    }

    /// Without tones.
    pub(super) fn plain(&self) -> String {
        let text: String = self.pieces.iter().map(|(_, text)| text.as_str()).collect();
        format!("{:<NAME$}{text}", self.name).trim_end().to_owned()
    }
}

/// The whole, the most important first. `width`: columns for the sparkline and what is beside it.
pub(super) fn rows(state: &State, now: Instant, width: usize) -> Vec<Row> {
    let mut rows = vec![Row::new("pipeline").with(Tone::Strong, state.pipeline.clone())];
    relays(state, &mut rows);
    database(state, now, &mut rows);
    flow(state, width, &mut rows);
    aside(state, &mut rows);
    servers(state, &mut rows);
    surroundings(state, &mut rows);
    rows
}

fn relays(state: &State, rows: &mut Vec<Row>) {
    if let Some(why) = &state.no_relay {
        rows.push(Row::new("relay").with(Tone::Warning, why.clone()));
    }
    for relay in &state.relays {
        let row = Row::new("relay").with(Tone::Plain, format!("{}  ", relay.target));
        match &relay.look {
            None => rows.push(row.with(Tone::Dim, "asking")),
            Some(Err(why)) => rows.push(row.with(Tone::Bad, why.clone())),
            Some(Ok(look)) => {
                let (tone, word) =
                    if look.ready.ready { (Tone::Good, "ready") } else { (Tone::Bad, "not ready") };
                rows.push(row.with(Tone::Strong, format!("{}, ", look.ready.role)).with(tone, word));
                for reason in &look.ready.reasons {
                    let tone = if reason.severity == "warning" { Tone::Warning } else { Tone::Bad };
                    rows.push(Row::new("").with(tone, format!("{}: {}", reason.component, reason.text)));
                }
            }
        }
    }
}

fn database(state: &State, now: Instant, rows: &mut Vec<Row>) {
    let row = Row::new("database");
    match &state.database {
        Database::Asking => rows.push(row.with(Tone::Dim, "asking")),
        Database::Away(why) => rows.push(row.with(Tone::Bad, why.clone())),
        Database::Here { at, facts } => {
            let report = &facts.report;
            let age = now.saturating_duration_since(*at);
            let old =
                (age > state.interval * 3).then(|| format!("  (of {} ago)", seconds(age.as_secs_f64())));
            let old = old.unwrap_or_default();
            let row = match &report.leader {
                Some(leader) => {
                    let lease = report.lease_ms.map(|ms| format!(", lease {}", seconds(ms as f64 / 1000.0)));
                    let lease = lease.unwrap_or_default();
                    row.with(Tone::Plain, format!("leader {}, epoch {}{lease}", clean(leader), report.epoch))
                }
                None => row.with(Tone::Bad, format!("nobody leads, epoch {}", report.epoch)),
            };
            rows.push(row.with(Tone::Dim, old));
            for reason in &report.reasons {
                rows.push(Row::new("").with(Tone::Bad, clean(reason)));
            }
        }
    }
    mode(state, rows);
}

/// Of the database, which says why; else of the leader.
fn mode(state: &State, rows: &mut Vec<Row>) {
    let row = Row::new("mode");
    let word = |wal: bool| if wal { "streaming" } else { "polling" };
    if let Some(facts) = state.facts() {
        let report = &facts.report;
        let row = row.with(Tone::Strong, word(report.mode == "wal"));
        let why = format!(" ({})", clean(&report.mode_reason));
        rows.push(if report.mode_reason == "streaming" { row } else { row.with(Tone::Plain, why) });
    } else if let Some(figures) = state.leader() {
        rows.push(row.with(Tone::Strong, word(figures.streaming)));
    }
}

fn flow(state: &State, width: usize, rows: &mut Vec<Row>) {
    if let Some(rates) = state.rates() {
        let number = format!("{:<10}", rate(rates.confirmed));
        let bars = sparkline(&state.history.confirmed(), width.saturating_sub(NAME + number.len() + 1));
        rows.push(Row::new("confirmed").with(Tone::Strong, number).with(Tone::Good, bars));
        let both = rates.read_wal + rates.read_poll;
        let split = format!("stream {}, poll {}", rate(rates.read_wal), rate(rates.read_poll));
        rows.push(Row::new("read").with(Tone::Plain, format!("{:<10}", rate(both))).with(Tone::Dim, split));
        let (recorded, publish) = state.latency();
        for (name, what, buckets) in
            [("latency", "recorded to confirm", recorded), ("", "published to confirm", publish)]
        {
            let [p50, p99] = [0.5, 0.99].map(|share| quantile(buckets.quantile(share)));
            rows.push(
                Row::new(name)
                    .with(Tone::Strong, format!("p50 {p50:<9} p99 {p99:<9}"))
                    .with(Tone::Dim, format!(" {what}, last 10 s")),
            );
        }
    } else if state.any_reachable() {
        rows.push(Row::new("confirmed").with(Tone::Dim, "rates from the second look on"));
    }
    pending(state, rows);
}

/// Counted by the database, or else estimated by the relay.
fn pending(state: &State, rows: &mut Vec<Row>) {
    let (number, oldest_s, estimate) = match (state.facts(), state.leader()) {
        (Some(facts), _) => {
            let oldest = facts.report.oldest_pending_ms.map(|ms| ms as f64 / 1000.0);
            (facts.report.pending as f64, oldest, "")
        }
        (None, Some(figures)) => {
            (figures.pending, Some(figures.oldest_pending_s).filter(|age| *age > 0.0), "about ")
        }
        (None, None) => return,
    };
    let mut row = Row::new("pending").with(Tone::Strong, format!("{estimate}{}", count(number)));
    if let Some(age) = oldest_s {
        let tone = if age > OLD_S { Tone::Warning } else { Tone::Plain };
        row = row.with(tone, format!(", the oldest for {}", seconds(age)));
    }
    rows.push(row);
    if let Some(figures) = state.leader() {
        let lanes = state.facts().and_then(|facts| facts.lanes).map(|lanes| f64::from(lanes.max(1)));
        let most = format!(" of {}", count(state.window * lanes.unwrap_or(1.0)));
        let lanes = lanes.map_or_else(String::new, |lanes| format!(", {}", counted(lanes, "lane", "lanes")));
        let text = format!("{}{most} unconfirmed messages in flight{lanes}", count(figures.window_in_use));
        rows.push(Row::new("window").with(Tone::Plain, text));
    }
}

/// Keys that wait, and events that were set aside.
fn aside(state: &State, rows: &mut Vec<Row>) {
    if let Some(figures) = state.leader() {
        let (nack, returned) = (figures.paused_nack, figures.paused_returned);
        let row = Row::new("paused");
        rows.push(if nack + returned > 0.0 {
            let entities = counted(nack, "entity", "entities");
            let keys = counted(returned, "routing key", "routing keys");
            row.with(Tone::Warning, format!("{entities} (nack), {keys} (returned)"))
        } else {
            row.with(Tone::Plain, "no key")
        });
    }
    let oldest_s = state.leader().map_or(0.0, |figures| figures.oldest_parked_s);
    let number = match (state.facts(), state.leader()) {
        (Some(facts), _) => {
            set_aside(facts, rows);
            facts.report.parked as f64
        }
        (None, Some(figures)) => figures.parked,
        (None, None) => return,
    };
    let row = Row::new("parked");
    if number <= 0.0 {
        rows.push(row.with(Tone::Plain, "none"));
        return;
    }
    let by = state.facts().map_or_else(String::new, |facts| by_reason(facts, "parked"));
    let by = if by.is_empty() { by } else { format!(" ({by})") };
    rows.push(old_parked(row.with(Tone::Bad, format!("{}{by}", count(number))), oldest_s));
}

/// What goes by itself when the broker takes it: tried again, or behind such an event of its key.
fn set_aside(facts: &Facts, rows: &mut Vec<Row>) {
    let sum = |state: &str| -> f64 {
        facts.aside.iter().filter(|count| count.state == state).map(|count| count.events as f64).sum()
    };
    let mut parts = Vec::new();
    let waiting = by_reason(facts, "waiting");
    if !waiting.is_empty() {
        parts.push(format!("waiting {waiting}"));
    }
    for (number, what) in [(sum("queued"), "queued"), (sum("retry"), "on their way again")] {
        if number > 0.0 {
            parts.push(format!("{} {what}", count(number)));
        }
    }
    if !parts.is_empty() {
        rows.push(Row::new("set aside").with(Tone::Warning, parts.join(", ")));
    }
}

/// `2 unroutable, 1 too_large`.
fn by_reason(facts: &Facts, state: &str) -> String {
    let counts = facts.aside.iter().filter(|count| count.state == state);
    let part = |of: &Count| {
        format!("{} {}", count(of.events as f64), clean(of.reason.as_deref().unwrap_or("no reason")))
    };
    counts.map(part).collect::<Vec<_>>().join(", ")
}

fn old_parked(row: Row, oldest_s: f64) -> Row {
    if oldest_s > 0.0 {
        row.with(Tone::Plain, format!(", the oldest for {}", seconds(oldest_s)))
    } else {
        row
    }
}

/// Stream and broker, as the leader sees them; what was counted, of all relays.
fn servers(state: &State, rows: &mut Vec<Row>) {
    let Some(figures) = state.leader() else { return };
    let row = Row::new("stream");
    let row = if figures.streaming {
        let lag = Some(figures.wal_lag_s).filter(|lag| *lag > 0.0);
        let lag = lag.map_or_else(|| "no lag".to_owned(), |lag| format!("{} behind", seconds(lag)));
        row.with(Tone::Plain, format!("{lag}, {} of WAL retained", about_size(figures.wal_retained as u64)))
    } else {
        row.with(Tone::Dim, "none now")
    };
    let missed = state.total(|figures| figures.missed);
    let tone = if missed > 0.0 { Tone::Warning } else { Tone::Plain };
    rows.push(row.with(tone, format!(", {} missed", count(missed))));
    let (tone, word) = match figures.blocked {
        true => (Tone::Bad, "has BLOCKED publishing"),
        false => (Tone::Plain, "takes messages"),
    };
    let (nacks, returns) = (state.total(|figures| figures.nacks), state.total(|figures| figures.returns));
    let refused = if nacks + returns > 0.0 { Tone::Warning } else { Tone::Plain };
    let text = format!(", {} refused (nack), {} returned", count(nacks), count(returns));
    rows.push(Row::new("broker").with(tone, word).with(refused, text));
}

/// Sessions that failed, outbox and ledger.
fn surroundings(state: &State, rows: &mut Vec<Row>) {
    let failed = state.total(|figures| figures.restarts);
    if failed > 0.0 {
        let text = format!("{} ended by a failure that may heal", counted(failed, "session", "sessions"));
        rows.push(Row::new("sessions").with(Tone::Warning, text));
    }
    match (state.facts(), state.leader()) {
        (Some(facts), _) => {
            let (report, chunks) = (&facts.report, &facts.report.chunks);
            let tail = if chunks.tail_rows { ", rows in the tail: `statecast maintain`" } else { "" };
            let text = format!(
                "{}, {} empty ahead, {}, last seq {}",
                counted(chunks.attached as f64, "chunk", "chunks"),
                chunks.empty_ahead,
                about_size(chunks.bytes),
                count(chunks.last_seq as f64),
            );
            rows.push(Row::new("outbox").with(Tone::Plain, text).with(Tone::Bad, tail));
            let [confirmed, parked, discarded, pending] =
                [report.confirmed, report.parked, report.discarded, report.pending].map(|n| count(n as f64));
            let text = format!(
                "{confirmed} confirmed + {parked} parked + {discarded} discarded + {pending} pending"
            );
            rows.push(Row::new("ledger").with(Tone::Plain, text));
        }
        (None, Some(figures)) => {
            let chunks = counted(figures.chunks, "chunk", "chunks");
            let bytes = about_size(figures.outbox_bytes as u64);
            rows.push(Row::new("outbox").with(Tone::Plain, format!("{chunks}, {bytes}")));
        }
        (None, None) => {}
    }
}

/// What the keys do, in a line.
pub(super) fn keys(state: &State, paused: bool) -> String {
    let every = if paused { "PAUSED".to_owned() } else { format!("every {}", interval(state.interval)) };
    format!(" {every}   q quit   p pause   ? help")
}
