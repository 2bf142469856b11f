//! The relay over scripted peers.

mod streaming;

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::contract::{Page, Published, Window};
use crate::event::{Event, Message, Seq};
use crate::snapshot::Snapshot;

/// What the broker says to a message.
type Answer = fn(&Message) -> Published;

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
        payload: Some(vec![b'1'; bytes]),
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
    }
}

/// Runs a relay over one lane that answers with `answer`, and a source that sends `input` and nothing more.
async fn relay(ledger: &mut Ledger, settings: Settings, input: Vec<Input>, answer: Answer) -> Ended {
    let (input_tx, input_rx) = mpsc::channel(2);
    let (fetch, mut fetches) = mpsc::channel(1);
    let (refetched_tx, refetched) = mpsc::channel(1);
    let (lane, mut batches) = mpsc::channel::<LaneBatch>(settings.window);
    let (outcomes_tx, outcomes) = mpsc::channel(64);
    let (commits, mut commits_rx) = mpsc::channel::<Commit>(1);
    let (committed_tx, committed) = mpsc::channel(1);
    let source = async move {
        let mut input = input.into_iter();
        loop {
            tokio::select! {
                permit = input_tx.reserve(), if input.len() > 0 => permit.unwrap().send(input.next().unwrap()),
                fetch = fetches.recv() => match fetch {
                    Some(Fetch { seqs }) => {
                        let events = seqs.into_iter().map(|seq| event(seq, "k", 10)).collect();
                        let _ = refetched_tx.send(Batch { events, late: None }).await;
                    }
                    None => return,
                },
            }
        }
    };
    let sink = async move {
        while let Some(batch) = batches.recv().await {
            let outcome =
                |message: Arc<Message>| Outcome { result: answer(&message), message, took: Duration::ZERO };
            let _ = outcomes_tx.send(batch.into_iter().map(outcome).collect()).await;
        }
    };
    let keeper = async move {
        while let Some(commit) = commits_rx.recv().await {
            let _ = committed_tx.send(Committed { id: commit.id, floor_seq: 0 }).await;
        }
    };
    let ((missing, _), (settled, _)) = (mpsc::channel(1), watch::channel(0));
    let lanes = vec![lane];
    let peers =
        Peers { input: input_rx, fetch, refetched, missing, settled, lanes, outcomes, commits, committed };
    let parts = [tokio::spawn(source), tokio::spawn(sink), tokio::spawn(keeper)];
    let tokens = Tokens { stop: CancellationToken::new(), abort: CancellationToken::new() };
    let assembler = assembler();
    let (metrics, health) = (Metrics::new("test"), Health::new());
    let running = run(peers, ledger, &assembler, settings, metrics, health, tokens);
    let ended = timeout(Duration::from_secs(600), running).await.expect("the relay hangs");
    parts.iter().for_each(tokio::task::JoinHandle::abort);
    ended
}

#[tokio::test(start_paused = true)]
async fn an_event_that_can_never_go_ends_the_session_however_large_it_is() {
    let too_large: Answer = |message| match message.seq {
        2 => Published::TooLarge { reason: "over the limit".into() },
        _ => Published::Confirmed,
    };
    for bytes in [10, 5000] {
        let mut ledger = Ledger::default();
        let input = window(vec![event(1, "a", 10), event(2, "b", bytes), event(3, "c", 10)]);
        let ended = relay(&mut ledger, settings(1000), input.into(), too_large).await;
        assert!(matches!(&ended, Ended::Unpublishable(u) if u.seq == 2), "{bytes} bytes: {ended:?}");
        assert_eq!(ledger.position().0.window.map(|w| w.seq), Some(1), "{bytes} bytes");
    }
}
