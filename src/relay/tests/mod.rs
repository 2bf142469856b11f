//! The relay over scripted peers.

mod aside;
mod bench;
mod culprit;
mod outage;
mod requests;
mod routes;
mod streaming;

use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::contract::{Page, Published, Window};
use crate::event::{Event, Message, Seq};
use crate::snapshot::Snapshot;

fn assembler() -> Assembler {
    let env = [("STATECAST_POSTGRES__URL", "postgres://u@h/d"), ("STATECAST_RABBITMQ__URLS", "amqp://h")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    Assembler::new(&crate::config::load(None, env.into_iter()).unwrap())
}

fn event(seq: Seq, key: &str, bytes: usize) -> Event {
    Event {
        seq,
        xid: 3,
        event_id: Uuid::from_u128(seq as u128),
        aggregate_type: "order".into(),
        aggregate_id: key.into(),
        event_type: "changed".into(),
        schema_version: "1.0.0".into(),
        entity_version: None,
        payload: Some(vec![b'1'; bytes].into()),
        headers: None,
        correlation_id: None,
        causation_id: None,
        traceparent: None,
        tracestate: None,
        recorded_at_us: 0,
    }
}

/// One window whose first page holds `events`.
fn window(events: Vec<Event>) -> [Input; 2] {
    let window = Arc::new(Window {
        id: 1,
        from: Arc::new(Snapshot::NOTHING),
        upper: Arc::new("9:9:".parse().unwrap()),
        prune_seq: 0,
        ceil: 100,
        after_seq: 0,
        fresh: true,
    });
    let seqs = events.iter().map(|event| event.seq).collect();
    [Input::Rows(Batch { events, late: None }), Input::Page(Page { window, seqs, last: true })]
}

fn settings(read_ahead: usize) -> Settings {
    Settings {
        read_ahead,
        window: 10,
        ordering: Ordering::Strict,
        until_idle: true,
        grace: Duration::from_secs(20),
        confirm_timeout: Duration::from_secs(30),
        exchange: "e".into(),
        careful: 0,
        floor_seq: 0,
        park_after: Duration::from_secs(600),
        aside: AsideState::default(),
    }
}
