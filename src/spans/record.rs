//! What the relay leaves for the exporter: of each event that is traced, what its spans will say.
//!
//! Called in the relay's loop: nothing here waits, and an event that is not traced costs one look at a pointer, or, while spans
//! are exported, one at its headers.

use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use prometheus::IntCounter;
use uuid::Uuid;

use super::context::{Context, Share};
use crate::contract::{Outcome, Published};
use crate::event::{HeaderValue, Message, Seq, Text};

/// Events that wait for the exporter, at most: a third of a second at 25,000 a second. Each holds about 300 bytes, and 1.5 kB
/// where every name in it is as long as it may be.
pub(super) const QUEUE: usize = 8_192;
/// Bytes of a `tracestate` that is passed on (W3C Trace Context, section 3.3.1.5).
const TRACESTATE_MAX: usize = 512;

/// Where the relay leaves what spans are made of.
#[derive(Debug)]
pub struct Spans {
    queue: OnceLock<(SyncSender<Record>, Share)>,
    /// Spans that no collector got.
    pub(super) dropped: IntCounter,
}

/// One answer of the broker (or of a lane) for one event that is traced.
#[derive(Debug)]
pub(super) struct Record {
    /// `None`: the event has no context, and becomes a trace of its own.
    pub(super) context: Option<Context>,
    pub(super) tracestate: Option<Text>,
    pub(super) event_id: Uuid,
    pub(super) seq: Seq,
    pub(super) routing_key: Text,
    pub(super) correlation_id: Option<String>,
    /// Of the body.
    pub(super) bytes: usize,
    /// Microseconds since 1970.
    pub(super) recorded_at_us: i64,
    /// Microseconds since 1970.
    pub(super) answered_at_us: i64,
    /// From the socket to the answer.
    pub(super) took: Duration,
    pub(super) result: Published,
}

impl Spans {
    /// Nothing is noted until an exporter reads. `dropped` counts the spans that find no room, or that no collector takes.
    pub fn new(dropped: &IntCounter) -> Spans {
        Spans { queue: OnceLock::new(), dropped: dropped.clone() }
    }

    /// Notes from now on; `None` if somebody else reads already.
    pub(super) fn enable(&self, share: Share) -> Option<Receiver<Record>> {
        let (sender, receiver) = sync_channel(QUEUE);
        self.queue.set((sender, share)).ok().map(|()| receiver)
    }

    /// A lane has answered at `now_us`, microseconds since 1970.
    pub fn note(&self, outcome: &Outcome, now_us: i64) {
        let Some((queue, share)) = self.queue.get() else { return };
        let Some(record) = Record::new(outcome, now_us, *share) else { return };
        if let Err(error) = queue.try_send(record) {
            let (std::sync::mpsc::TrySendError::Full(record)
            | std::sync::mpsc::TrySendError::Disconnected(record)) = error;
            self.dropped.inc_by(record.spans());
        }
    }
}

impl Record {
    /// What is traced: an event whose writer is, and of the others a share.
    fn new(outcome: &Outcome, answered_at_us: i64, share: Share) -> Option<Record> {
        let message = &*outcome.message;
        let context = header(message, "traceparent").and_then(|text| Context::parse(text));
        let trace_id = context.map_or(*message.event_id.as_bytes(), |context| context.trace_id);
        let sampled = context.is_some_and(|context| context.is_sampled());
        if !sampled && (!share.takes(&trace_id) || message.event_id.is_nil()) {
            return None;
        }
        let passes = |text: &&Text| {
            text.len() <= TRACESTATE_MAX && text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
        };
        Some(Record {
            context,
            tracestate: context.and_then(|_| header(message, "tracestate").filter(passes).cloned()),
            event_id: message.event_id,
            seq: message.seq,
            routing_key: message.routing_key.clone(),
            correlation_id: message.correlation_id.clone(),
            bytes: message.body.len(),
            recorded_at_us: message.recorded_at_us,
            answered_at_us,
            took: outcome.took,
            result: outcome.result.clone(),
        })
    }

    /// How many spans it becomes.
    pub(super) fn spans(&self) -> u64 {
        match self.result {
            Published::Confirmed => 2,
            _ => 1,
        }
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a Text> {
    message.headers.iter().find_map(|(found, value)| match value {
        HeaderValue::Text(text) if found == name => Some(text),
        _ => None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;

    pub(in crate::spans) const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    pub(in crate::spans) fn message(traceparent: Option<&str>) -> Message {
        let headers = traceparent.map(|text| ("traceparent".into(), HeaderValue::Text(text.into())));
        Message {
            seq: 42,
            event_id: Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001),
            key_hash: 1,
            routing_key: "order.placed".into(),
            event_type: "placed".into(),
            content_type: "application/json",
            timestamp_s: 1_700_000_000,
            recorded_at_us: 1_700_000_000_000_000,
            correlation_id: None,
            headers: headers.into_iter().collect(),
            body: vec![b'x'; 900],
        }
    }

    pub(in crate::spans) fn outcome(message: Message, result: Published) -> Outcome {
        Outcome { message: Arc::new(message), result, took: Duration::from_millis(4) }
    }

    /// Ten milliseconds after it was written.
    pub(in crate::spans) fn record(message: Message, result: Published) -> Record {
        let now_us = message.recorded_at_us + 10_000;
        Record::new(&outcome(message, result), now_us, Share::new(1.0)).unwrap()
    }

    fn noted(traceparent: Option<&str>, share: f64) -> Option<Record> {
        Record::new(&outcome(message(traceparent), Published::Confirmed), 1, Share::new(share))
    }

    #[test]
    fn who_is_traced() {
        let unsampled = TRACEPARENT.replace("-01", "-00");
        assert!(noted(Some(TRACEPARENT), 0.0).is_some_and(|record| record.context.is_some()));
        assert!(noted(Some(&unsampled), 0.0).is_none() && noted(Some(&unsampled), 1.0).is_some());
        for none in [None, Some("00-a-b-01")] {
            assert!(noted(none, 0.0).is_none());
            assert!(noted(none, 1.0).is_some_and(|record| record.context.is_none()));
        }
        let nil = Message { event_id: Uuid::nil(), ..message(None) };
        assert!(Record::new(&outcome(nil, Published::Confirmed), 1, Share::new(1.0)).is_none());
    }

    #[test]
    fn a_tracestate_goes_with_its_context_alone() {
        let with = |traceparent, tracestate: &str| {
            let mut message = message(traceparent);
            message.headers.push(("tracestate".into(), HeaderValue::Text(tracestate.into())));
            record(message, Published::Confirmed).tracestate
        };
        assert_eq!(with(Some(TRACEPARENT), "a=1,b=2").as_deref(), Some("a=1,b=2"));
        assert_eq!(with(None, "a=1"), None);
        assert_eq!(with(Some(TRACEPARENT), "a=\u{e4}"), None);
        assert_eq!(with(Some(TRACEPARENT), &"a".repeat(513)), None);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let dropped = IntCounter::new("dropped", "x").unwrap();
        let spans = Spans::new(&dropped);
        let confirmed = outcome(message(Some(TRACEPARENT)), Published::Confirmed);
        spans.note(&confirmed, 1);
        assert_eq!(dropped.get(), 0, "nobody reads");
        let queue = spans.enable(Share::new(0.0)).unwrap();
        assert!(spans.enable(Share::new(0.0)).is_none());
        (0..QUEUE).for_each(|_| spans.note(&confirmed, 1));
        assert_eq!(dropped.get(), 0);
        spans.note(&confirmed, 1);
        spans.note(&outcome(message(Some(TRACEPARENT)), Published::Nacked), 1);
        assert_eq!(dropped.get(), 3);
        assert_eq!(queue.try_iter().count(), QUEUE);
        drop(queue);
        spans.note(&confirmed, 1);
        assert_eq!(dropped.get(), 5, "its reader is gone");
    }
}
