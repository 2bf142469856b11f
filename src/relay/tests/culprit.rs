//! The whole loop over scripted peers: an event that can never go, and the end of its lane with it.

use tokio::time::timeout;

use super::*;
use crate::contract::{Aside, Committed, SetAside, Streamed};

/// What the broker says to a message.
type Answer = fn(&Message) -> Published;

const TOO_LARGE: Answer = |message| match message.seq {
    2 => Published::TooLarge { reason: "over the limit".into() },
    _ => Published::Confirmed,
};

/// Runs a relay over one lane that answers with `answer`, and dies with an event that is too large if it is so `strict`. The
/// source sends `input` and nothing more. Returns what was set aside, too.
async fn relay(
    ledger: &mut Ledger,
    settings: Settings,
    input: Vec<Input>,
    answer: Answer,
    strict: bool,
) -> (Ended, Vec<SetAside>) {
    let (input_tx, input_rx) = mpsc::channel(2);
    let (fetch, mut fetches) = mpsc::channel(1);
    let (refetched_tx, refetched) = mpsc::channel(1);
    let (lane, mut batches) = mpsc::channel::<LaneBatch>(settings.window);
    let (outcomes_tx, outcomes) = mpsc::channel(64);
    let (commits, mut commits_rx) = mpsc::channel::<ToKeeper>(2);
    let (committed_tx, committed) = mpsc::channel(4);
    let source = async move {
        let mut input = input.into_iter();
        loop {
            tokio::select! {
                permit = input_tx.reserve(), if input.len() > 0 => match permit {
                    Ok(permit) => permit.send(input.next().unwrap()),
                    Err(_) => return,
                },
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
            for message in batch {
                let result = answer(&message);
                let over = strict && matches!(result, Published::TooLarge { .. });
                let outcome = Outcome { message, result, took: Duration::ZERO };
                let _ = outcomes_tx.send(vec![outcome]).await;
                if over {
                    return;
                }
            }
        }
    };
    let keeper = async move {
        let mut set_aside = Vec::new();
        while let Some(asked) = commits_rx.recv().await {
            let ToKeeper::Commit(commit) = asked else { panic!("nothing is recalled here") };
            set_aside.extend(commit.set_aside);
            let committed = Committed { id: commit.id, floor_seq: 0, passed: Vec::new() };
            let _ = committed_tx.send(FromKeeper::Committed(committed)).await;
        }
        set_aside
    };
    let ((missing, _answers), (settled, _told)) = (mpsc::channel(1), watch::channel(0));
    let lanes = vec![lane];
    let peers =
        Peers { input: input_rx, fetch, refetched, missing, settled, lanes, outcomes, commits, committed };
    let (source, sink, keeper) = (tokio::spawn(source), tokio::spawn(sink), tokio::spawn(keeper));
    let tokens = Tokens { stop: CancellationToken::new(), abort: CancellationToken::new() };
    let assembler = assembler();
    let (metrics, health) = (Metrics::new("test"), Health::new());
    let running = run(peers, ledger, &assembler, settings, metrics, health, tokens);
    let ended = timeout(Duration::from_secs(600), running).await.expect("the relay hangs");
    [source, sink].iter().for_each(tokio::task::JoinHandle::abort);
    (ended, keeper.await.unwrap())
}

fn assert_parked(set_aside: &[SetAside], what: &str) {
    let parked = |row: &SetAside| row.seq == 2 && matches!(row.state, Aside::Parked(_));
    assert!(set_aside.first().is_some_and(parked) && set_aside.len() == 1, "{what}: {set_aside:?}");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_can_never_go_is_passed_however_large_it_is() {
    for bytes in [10, 5000] {
        let mut ledger = Ledger::default();
        let input = window(vec![event(1, "a", 10), event(2, "b", bytes), event(3, "c", 10)]);
        let (ended, set_aside) = relay(&mut ledger, settings(1000), input.into(), TOO_LARGE, false).await;
        assert_eq!(ended, Ended::Idle, "{bytes} bytes");
        assert_parked(&set_aside, &format!("{bytes} bytes"));
        assert_eq!((ledger.position().0.window, ledger.position().1), (None, 3), "{bytes} bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_lane_dies_of_is_set_aside_before_the_session_ends() {
    for bytes in [10, 5000] {
        let mut ledger = Ledger::default();
        let input = window(vec![event(1, "a", 10), event(2, "b", bytes), event(3, "c", 10)]);
        let settings = Settings { careful: 10, ..settings(1000) };
        let (ended, set_aside) = relay(&mut ledger, settings, input.into(), TOO_LARGE, true).await;
        assert_eq!(ended, Ended::PeerGone("sink"), "{bytes} bytes");
        assert_parked(&set_aside, &format!("{bytes} bytes"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_streamed_event_that_can_never_go_holds_nothing_up() {
    let mut invalid = event(2, "k", 10);
    invalid.recorded_at_us = i64::MAX;
    for hopeless in [invalid, event(2, "k", 10)] {
        let mut ledger = Ledger::default();
        let streamed = |events| Input::Streamed(Streamed { stream: 1, events, upto: 9 });
        let mut input = vec![streamed(vec![event(1, "a", 10), hopeless])];
        input.extend((3..500).map(|seq| streamed(vec![event(seq, &seq.to_string(), 10)])));
        let [_, Input::Page(page)] = window((1..500).map(|seq| event(seq, "", 10)).collect()) else { return };
        input.push(Input::Listed(page));
        let (ended, set_aside) = relay(&mut ledger, settings(1_000_000), input, TOO_LARGE, false).await;
        assert_eq!(ended, Ended::Idle);
        assert_parked(&set_aside, "streamed");
    }
}
