//! Events that are set aside, as lines, as a table, and as JSON. Keys, answers of brokers and requesters' names are other
//! people's text: what could control a terminal, or pass for something else on it, is shown escaped.

use std::fmt::Write as _;
use std::io;

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};

use crate::store::parked::people::{ParkedEvent, ParkedRow};

/// An event in `parked list --json`.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    seq: i64,
    event_id: String,
    aggregate_type: &'a str,
    aggregate_id: &'a str,
    event_type: &'a str,
    state: &'a str,
    reason: Option<&'a str>,
    detail: Option<&'a str>,
    routing_key: Option<&'a str>,
    attempts: i32,
    recorded_at: &'a str,
    since: &'a str,
    parked_at: Option<&'a str>,
    /// null = deleted.
    payload_bytes: Option<i32>,
    request: Option<&'a str>,
    requested_by: Option<&'a str>,
    requested_at: Option<&'a str>,
}

impl<'a> From<&'a ParkedRow> for Line<'a> {
    fn from(row: &'a ParkedRow) -> Line<'a> {
        Line {
            seq: row.seq,
            event_id: row.event_id.to_string(),
            aggregate_type: &row.aggregate_type,
            aggregate_id: &row.aggregate_id,
            event_type: &row.event_type,
            state: &row.state,
            reason: row.reason.as_deref(),
            detail: row.detail.as_deref(),
            routing_key: row.routing_key.as_deref(),
            attempts: row.attempts,
            recorded_at: &row.recorded_at,
            since: &row.since,
            parked_at: row.parked_at.as_deref(),
            payload_bytes: row.payload_bytes,
            request: row.request.as_deref(),
            requested_by: row.requested_by.as_deref(),
            requested_at: row.requested_at.as_deref(),
        }
    }
}

/// JSON in which every character that a terminal could take for a command is escaped, not only those that must be.
pub(super) fn json(value: &impl Serialize) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Printable))?;
    bytes.push(b'\n');
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Printable;

impl Formatter for Printable {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut text = String::with_capacity(fragment.len());
        for c in fragment.chars() {
            if printable(c) {
                text.push(c);
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            }
        }
        CompactFormatter.write_string_fragment(writer, &text)
    }
}

/// Neither a control character nor one that changes how its neighbours are shown, or is not seen at all.
fn printable(c: char) -> bool {
    // The standard library knows which characters these are.
    matches!(c, '\'' | '"' | '\\') || c.escape_debug().len() == 1
}

/// Text on a terminal. Backslashes are doubled, so that what looks escaped is.
pub(super) fn shown(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        match c {
            '\'' | '"' => shown.push(c),
            _ => shown.extend(c.escape_debug()),
        }
        shown
    })
}

/// JSON on a terminal: its line breaks stay, and what is escaped is still the same JSON.
fn shown_json(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
        if c == '\n' || printable(c) {
            shown.push(c);
        } else if c == '\t' || c == '\r' {
            shown.push(' ');
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        }
        shown
    })
}

/// seq, state, reason, age, attempts, key, type, id, request, detail.
pub(super) fn line(row: &ParkedRow) -> String {
    let reason = row.reason.as_deref().unwrap_or("-");
    let key = shown(&format!("{}:{}", row.aggregate_type, row.aggregate_id));
    let mut line = format!(
        "{:>10}  {:<7}  {reason:<10}  {:>4}  {} tries  {key}  {}  {}",
        row.seq,
        row.state,
        age(row.since_s),
        row.attempts,
        shown(&row.event_type),
        row.event_id
    );
    if let Some(request) = &row.request {
        let _ = write!(line, "  [{request} asked]");
    }
    if let Some(detail) = &row.detail {
        let _ = write!(line, "  {}", shown(detail));
    }
    line
}

/// The two digits that matter.
fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ ..120 => format!("{s}s"),
        s @ ..7_200 => format!("{}m", s / 60),
        s @ ..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

/// Everything about one event, a line each; what it does not have is left out.
pub(super) fn everything(event: &ParkedEvent) -> String {
    let row = &event.row;
    let mut text = String::new();
    let mut line = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:<15} {}", shown(value));
        }
    };
    line("event id", Some(&row.event_id.to_string()));
    line("seq", Some(&row.seq.to_string()));
    line("key", Some(&format!("{}:{}", row.aggregate_type, row.aggregate_id)));
    line("event type", Some(&row.event_type));
    line("schema version", Some(&event.schema_version));
    line("entity version", event.entity_version.map(|version| version.to_string()).as_deref());
    line("recorded at", Some(&row.recorded_at));
    line("correlation id", event.correlation_id.as_deref());
    line("causation id", event.causation_id.as_deref());
    line("traceparent", event.traceparent.as_deref());
    line("tracestate", event.tracestate.as_deref());
    line("state", Some(&row.state));
    line("since", Some(&format!("{} ({})", row.since, age(row.since_s))));
    line("parked at", row.parked_at.as_deref());
    line("reason", row.reason.as_deref());
    line("detail", row.detail.as_deref());
    line("routing key", row.routing_key.as_deref());
    line("attempts", Some(&row.attempts.to_string()));
    line("before it", Some(&format!("{} of its key", event.ahead)));
    line("request", Some(&request(row)));
    line("cursor", Some(if row.passed { "has passed it" } else { "has not passed it yet" }));
    if let Some(headers) = &event.headers {
        let _ = writeln!(text, "{:<15} {}", "headers", shown_json(headers).replace('\n', " "));
    }
    let size = row.payload_bytes.map_or_else(|| "deleted".to_owned(), |bytes| format!("{bytes} B"));
    let _ = writeln!(text, "{:<15} {size}", "payload");
    if let Some(payload) = &event.payload {
        let _ = writeln!(text, "{}", shown_json(payload));
    }
    text
}

fn request(row: &ParkedRow) -> String {
    let by = row.requested_by.as_deref().zip(row.requested_at.as_deref());
    match (row.request.as_deref(), by) {
        (Some(request), Some((by, at))) => format!("{request}, asked by {by} at {at}, not answered yet"),
        (Some(request), None) => format!("{request}, not answered yet"),
        (None, Some((by, at))) => format!("none; the last, by {by} at {at}, was answered"),
        (None, None) => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn row() -> ParkedRow {
        ParkedRow {
            seq: 42,
            event_id: Uuid::from_u128(7),
            aggregate_type: "order".into(),
            aggregate_id: "4711".into(),
            event_type: "order.placed".into(),
            payload_bytes: Some(12),
            recorded_at: "2026-11-03T12:34:56.123456Z".into(),
            state: "parked".into(),
            reason: Some("unroutable".into()),
            detail: Some("312 NO_ROUTE".into()),
            routing_key: Some("order.order.placed".into()),
            attempts: 3,
            since: "2026-11-03T12:44:56.123Z".into(),
            since_s: 725,
            parked_at: Some("2026-11-03T12:44:56.123Z".into()),
            request: None,
            requested_by: None,
            requested_at: None,
            passed: true,
        }
    }

    #[test]
    fn a_line_per_event() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            line(&row()),
            format!(
                "        42  parked   unroutable   12m  3 tries  order:4711  order.placed  {id}  312 NO_ROUTE"
            )
        );
        let queued = ParkedRow {
            state: "queued".into(),
            reason: None,
            detail: None,
            request: Some("discard".into()),
            since_s: -3,
            ..row()
        };
        assert!(
            line(&queued).contains("queued   -             0s") && line(&queued).ends_with("[discard asked]")
        );
        assert_eq!([age(119), age(120), age(7_200), age(172_800)], ["119s", "2m", "2h", "2d"]);
    }

    const HOSTILE: &str = "a\u{1b}[2J\u{9b}\u{202e}\n\u{feff}\\n \"ä€\" 😀";

    #[test]
    fn nothing_hostile_reaches_the_terminal() {
        let hostile = ParkedRow {
            aggregate_id: HOSTILE.into(),
            detail: Some(HOSTILE.into()),
            requested_by: Some(HOSTILE.into()),
            requested_at: Some("t".into()),
            ..row()
        };
        let event = ParkedEvent {
            row: hostile.clone(),
            schema_version: "1.0.0".into(),
            entity_version: None,
            headers: Some(format!("{{\"a\":\"{}\"}}", "\u{9b}\u{202e}")),
            correlation_id: Some(HOSTILE.into()),
            causation_id: None,
            traceparent: None,
            tracestate: None,
            payload: Some("{\n\t\"a\": \"\u{9b}2J\u{e0001}\"}".into()),
            ahead: 0,
        };
        let rows = [Line::from(&hostile)];
        for text in [line(&hostile), everything(&event), json(&rows).unwrap()] {
            let bad: Vec<char> = text.chars().filter(|c| *c != '\n' && !printable(*c)).collect();
            assert!(bad.is_empty(), "{bad:?} in {text:?}");
            assert!(text.contains("ä€") && text.contains('😀'), "{text}");
        }
        assert_eq!(line(&hostile).lines().count(), 1);
        assert!(line(&hostile).contains(r"\u{1b}[2J\u{9b}\u{202e}\n\u{feff}\\n"), "{}", line(&hostile));
    }

    #[test]
    fn json_is_still_the_same_text() {
        let hostile = ParkedRow { aggregate_id: HOSTILE.into(), ..row() };
        let text = json(&[Line::from(&hostile)]).unwrap();
        let back: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(back[0]["aggregate_id"], HOSTILE);
        let payload = "{\n\"a\": \"\u{9b}\u{e0001}\"}";
        let shown: serde_json::Value = serde_json::from_str(&shown_json(payload)).unwrap();
        assert_eq!(shown, serde_json::from_str::<serde_json::Value>(payload).unwrap());
    }

    #[test]
    fn everything_is_shown_once() {
        let event = ParkedEvent {
            row: row(),
            schema_version: "2.0.0".into(),
            entity_version: Some(9),
            headers: None,
            correlation_id: None,
            causation_id: None,
            traceparent: None,
            tracestate: None,
            payload: None,
            ahead: 2,
        };
        let text = everything(&event);
        for part in ["order:4711", "2.0.0", "unroutable", "312 NO_ROUTE", "2 of its key", "12 B", "none"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("correlation") && !text.contains("headers"), "{text}");
    }
}
