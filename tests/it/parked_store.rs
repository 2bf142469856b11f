//! The keeper's transactions on events that are set aside: what they leave behind when all goes well, when the same is said
//! twice, and when they are cut off in the middle.

use std::time::Duration;

use statecast::contract::{Act, Aside, Became, Commit, FromKeeper, HeadState, Reason, SetAside, ToKeeper};
use statecast::gate::LEASE;
use statecast::postgres::connect as open;
use statecast::store::cursor::CursorError;
use statecast::store::keeper::KeeperError;
use statecast::store::lease;
use statecast::store::parked::people::{Request, Selector, ask};
use statecast::store::parked::write::WriteError;

use tokio_postgres::error::SqlState;

use crate::keeping::{Keeping, PIPELINE, again, change, parked, queued, refusal, waiting};
use crate::pg::config;

const NACK: Reason = Reason::Nack;

/// Waits until the keeper's backend waits for a lock.
async fn wait_for_lock_wait(keeping: &Keeping) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {} AND wait_event_type = 'Lock'",
        keeping.pid()
    );
    let waits = async {
        while keeping.number(&sql).await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waits).await.expect("the keeper does not wait");
}

#[tokio::test]
async fn a_row_goes_its_way_and_the_books_follow() {
    let mut keeping = Keeping::new().await;
    let (a, b, c) = (keeping.publish("a").await, keeping.publish("a").await, keeping.publish("b").await);
    // Set aside, not passed: nothing of it is in the cursor's numbers yet.
    let set_aside = vec![waiting(a, 7, NACK), queued(b, 7)];
    let commit = Commit { set_aside, unpassed: true, ..keeping.stay().await };
    assert_eq!(keeping.commit(commit).await.passed, Vec::<i64>::new());
    assert_eq!(keeping.rows().await, [format!("{a} waiting"), format!("{b} queued")]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((0, 0, 0), vec![]));
    // Passed.
    let commit = keeping.pass_all().await;
    assert_eq!(keeping.commit(commit).await.passed, [a, b]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((1, 2, 0), vec![]));
    // What is final and passed goes at once.
    let at = keeping.pass_all().await;
    let commit = Commit { changes: vec![change(a, Became::Confirmed)], ..at.clone() };
    assert_eq!(keeping.commit(commit).await.passed, Vec::<i64>::new());
    assert_eq!(keeping.rows().await, [format!("{b} queued passed")]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((2, 1, 0), vec![]));
    let commit = Commit { id: keeping.id(), changes: vec![change(b, Became::Discarded)], ..at.clone() };
    keeping.commit(commit).await;
    assert_eq!(keeping.rows().await, Vec::<String>::new());
    assert_eq!((keeping.books().await, keeping.wrong().await), ((2, 0, 1), vec![]));
    // The short way, with nothing about parked rows, keeps the other numbers.
    let d = keeping.publish("d").await;
    let plain = Commit { unpassed: false, ..keeping.pass_all().await };
    keeping.commit(plain).await;
    assert_eq!((keeping.books().await, keeping.wrong().await), ((3, 0, 1), vec![]));
    assert!(a < b && b < c && c < d);
    keeping.restart().await;
    assert_eq!(keeping.claim.passed, 4);
}

#[tokio::test]
async fn a_row_is_a_copy_of_the_outbox_row() {
    let mut keeping = Keeping::new().await;
    keeping
        .run(
            r#"INSERT INTO statecast.outbox (event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
                   payload, headers, correlation_id, causation_id, traceparent, tracestate)
               VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', 'order', 'ä:1', 'x.y', '2.0.0', 9, '{"b":  1.10, "a": 1e400}',
                       '{"t": "x"}', 'corr', 'cause', '00-a', 'k=v');
               INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type) VALUES ('order', '2', 'gone')"#,
        )
        .await;
    let hash = u64::MAX - 5;
    let detail = "312 NO_ROUTE\0\u{1b}[2J".to_owned() + &"x".repeat(600);
    let state = Aside::Waiting(refusal(Reason::Unroutable, &detail));
    let first = SetAside { seq: 1, key: hash, state, routing_key: Some("order.x.y".into()) };
    let set_aside = vec![first, parked(2, 8, Reason::TooLarge)];
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    let columns = "seq, xid, event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
                   payload::text, headers::text, correlation_id, causation_id, traceparent, tracestate, recorded_at";
    let same = format!(
        "SELECT count(*) FROM (SELECT {columns} FROM statecast.outbox INTERSECT SELECT {columns} FROM statecast.parked) s"
    );
    assert_eq!(keeping.number(&same).await, 2);
    let stored = "SELECT concat_ws('|', key_hash, state, reason, char_length(detail), left(detail, 17), routing_key, attempts,
                         parked_at IS NOT NULL, request, passed) FROM statecast.parked ORDER BY seq";
    assert_eq!(
        keeping.texts(stored, &[]).await,
        [
            "-6|waiting|unroutable|500|312 NO_ROUTE\u{fffd}\u{fffd}[2J|order.x.y|1|f|f",
            "8|parked|too_large|12|can never go|1|t|f"
        ]
    );
}

#[tokio::test]
async fn attempts_waits_and_requests_are_kept_as_they_should() {
    let mut keeping = Keeping::new().await;
    for _ in 0..3 {
        keeping.publish("a").await;
    }
    let set_aside = vec![waiting(1, 7, NACK), queued(2, 7), parked(3, 9, Reason::TooLarge)];
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping.run("UPDATE statecast.parked SET since = since - interval '1 h', request = 'discard'").await;
    let again = |why: &str| again(NACK, why);
    let untried = |name: &str| {
        let refusal = refusal(Reason::Unroutable, "312 NO_ROUTE");
        Became::Waiting { refusal, routing_key: name.to_owned(), tried: false }
    };
    let too_large = Became::Parked(refusal(Reason::TooLarge, "17 > 16"));
    let all = |row: &str| {
        format!(
            "SELECT concat_ws(' ', seq, state, reason, detail, attempts, since < now() - interval '1 min', request)
               FROM statecast.parked WHERE seq = {row}"
        )
    };
    // Still waiting: one attempt more, and it has waited for an hour. The request is not answered by that.
    let changes = vec![
        change(1, again("again")),
        change(2, too_large),
        change(3, Became::Retry),
        change(77, Became::Confirmed),
    ];
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    assert_eq!(keeping.texts(&all("1"), &[]).await, ["1 waiting nack again 2 t discard"]);
    // It was its turn, it was tried, and it can never go.
    assert_eq!(keeping.texts(&all("2"), &[]).await, ["2 parked too_large 17 > 16 1 f discard"]);
    // A retry does not answer the discard that was asked for meanwhile.
    assert_eq!(keeping.texts(&all("3"), &[]).await, ["3 retry too_large can never go 1 f discard"]);
    let changes = vec![
        change(1, Became::Unchanged),
        change(2, Became::Retry),
        change(2, again("tried")),
        change(3, Became::Discarded),
    ];
    keeping.run("UPDATE statecast.parked SET request = 'retry' WHERE seq = 2").await;
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    assert_eq!(keeping.texts(&all("1"), &[]).await, ["1 waiting nack again 2 t"]);
    assert_eq!(keeping.texts(&all("2"), &[]).await, ["2 waiting nack tried 2 f"]);
    assert_eq!(keeping.texts(&all("3"), &[]).await, ["3 discarded too_large can never go 1 f"]);
    // Refused with another routing key than the one that stands there, and not tried but for it.
    let routing_keys = "SELECT routing_key FROM statecast.parked WHERE seq < 3 ORDER BY seq";
    assert_eq!(keeping.texts(routing_keys, &[]).await, ["order.changed", "order.changed"]);
    let changes = vec![change(1, untried("moved")), change(2, untried("elsewhere"))];
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    assert_eq!(keeping.texts(routing_keys, &[]).await, ["moved", "elsewhere"]);
    assert_eq!(keeping.texts(&all("2"), &[]).await, ["2 waiting unroutable 312 NO_ROUTE 2 f"], "no attempt");
}

#[tokio::test]
async fn what_is_said_twice_is_done_once_and_a_discard_stays() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b", "c"] {
        keeping.publish(id).await;
    }
    let set_aside = vec![waiting(1, 1, NACK), parked(2, 2, Reason::Invalid), queued(3, 3), queued(3, 3)];
    let commit = Commit { set_aside: set_aside.clone(), ..keeping.stay().await };
    keeping.commit(commit).await;
    let changes = vec![change(1, Became::Discarded), change(2, Became::Confirmed)];
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    let rows = ["1 discarded", "2 confirmed", "3 queued"];
    assert_eq!(keeping.rows().await, rows);
    // The answer was lost: the next leader finds them unpassed, and a page lists them once more.
    keeping.restart().await;
    assert_eq!(keeping.claim.aside.unpassed, [1, 2, 3]);
    let heads: Vec<_> =
        keeping.claim.aside.heads.iter().map(|head| (head.key, head.seq, head.state)).collect();
    assert_eq!(heads, [(3, 3, HeadState::Queued)]);
    let changes = vec![
        change(1, Became::Retry),
        change(1, Became::Confirmed),
        change(2, again(NACK, "no")),
        change(2, Became::Discarded),
    ];
    let commit = Commit { set_aside, changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    assert_eq!((keeping.rows().await, keeping.wrong().await), (rows.map(str::to_owned).into(), vec![]));
    // Passed, the final ones go, and each is counted as what it became.
    let commit = keeping.pass_all().await;
    assert_eq!(keeping.commit(commit).await.passed, [1, 2, 3]);
    assert_eq!(keeping.rows().await, ["3 queued passed"]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((1, 1, 1), vec![]));
}

/// The position of the commit that sets rows aside may pass them already.
#[tokio::test]
async fn rows_are_set_aside_changed_and_passed_in_one_commit() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b", "c", "d"] {
        keeping.publish(id).await;
    }
    let set_aside = vec![waiting(1, 1, NACK), waiting(2, 2, NACK), queued(3, 2)];
    let changes = vec![change(1, Became::Discarded), change(2, Became::Retry)];
    let commit = Commit { set_aside, changes, unpassed: true, ..keeping.pass_all().await };
    assert_eq!(keeping.commit(commit).await.passed, [1, 2, 3]);
    assert_eq!(keeping.rows().await, ["2 retry passed", "3 queued passed"]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((1, 2, 1), vec![]));
}

/// Only what the position covers is passed: by P, or by the settled prefix of the window in progress.
#[tokio::test]
async fn a_position_passes_what_it_covers() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b", "c"] {
        keeping.publish(id).await;
    }
    let (first, _) = keeping.now().await;
    for id in ["d", "e"] {
        keeping.publish(id).await;
    }
    let (second, max_seq) = keeping.now().await;
    let set_aside = (1..=5).map(|seq| queued(seq, 1)).collect();
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    // The window [P, first) up to its second row; P is the snapshot that sees nothing.
    let mut commit = Commit { unpassed: true, passed: 2, ..keeping.stay().await };
    commit.position.window = Some(statecast::contract::WindowPosition {
        upper: first.snapshot.clone(),
        prune_seq: 0,
        ceil: 3,
        seq: 2,
    });
    assert_eq!(keeping.commit(commit.clone()).await.passed, [1, 2]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((0, 2, 0), vec![]));
    // The prefix reaches beyond what the upper snapshot sees: those rows belong to a later window.
    commit = Commit { id: keeping.id(), passed: 3, ..commit };
    commit.position.window.as_mut().unwrap().seq = 5;
    assert_eq!(keeping.commit(commit).await.passed, [3]);
    // P alone.
    let commit =
        Commit { position: second, max_seq, closes: true, unpassed: true, passed: 5, ..keeping.stay().await };
    assert_eq!(keeping.commit(commit).await.passed, [4, 5]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((0, 5, 0), vec![]));
}

/// The transaction has written the rows and waits for the cursor row when its connection is killed.
#[tokio::test]
async fn a_transaction_that_is_cut_off_leaves_nothing_behind() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b", "c"] {
        keeping.publish(id).await;
    }
    let commit = Commit { set_aside: vec![waiting(1, 1, NACK)], ..keeping.stay().await };
    keeping.commit(commit).await;
    let before = (keeping.rows().await, keeping.books().await);

    let holder = keeping.superuser().await;
    holder.batch_execute("BEGIN; SELECT 1 FROM statecast.cursor FOR UPDATE").await.unwrap();
    let commit = Commit {
        set_aside: vec![queued(2, 1), parked(3, 3, Reason::Invalid)],
        changes: vec![change(1, Became::Discarded)],
        ..keeping.pass_all().await
    };
    keeping.send(ToKeeper::Commit(commit.clone())).await;
    wait_for_lock_wait(&keeping).await;
    keeping.run(&format!("SELECT pg_terminate_backend({})", keeping.pid())).await;
    assert!(keeping.receive().await.is_none());
    assert!(matches!(keeping.end().await, Err(KeeperError::Cursor(CursorError::Sql { .. }))));
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!((keeping.rows().await, keeping.books().await), before);
    assert_eq!(keeping.wrong().await, Vec::<&str>::new());

    // The next leader does the same.
    keeping.take_over().await;
    assert_eq!(keeping.claim.aside.unpassed, [1]);
    assert_eq!(keeping.commit(commit).await.passed, [1, 2, 3]);
    assert_eq!(keeping.rows().await, ["2 queued passed", "3 parked passed"]);
    assert_eq!((keeping.books().await, keeping.wrong().await), ((0, 2, 1), vec![]));
}

#[tokio::test]
async fn a_leader_that_was_superseded_changes_nothing() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b"] {
        keeping.publish(id).await;
    }
    let commit = Commit { set_aside: vec![waiting(1, 1, NACK)], ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping.run("UPDATE statecast.cursor SET epoch = epoch + 1").await;
    let commit = Commit {
        set_aside: vec![queued(2, 1)],
        changes: vec![change(1, Became::Confirmed)],
        ..keeping.pass_all().await
    };
    keeping.send(ToKeeper::Commit(commit)).await;
    assert!(keeping.receive().await.is_none());
    assert!(matches!(keeping.end().await, Err(KeeperError::Cursor(CursorError::Superseded(_)))));
    assert_eq!((keeping.rows().await, keeping.books().await), (vec!["1 waiting".to_owned()], (0, 0, 0)));
}

#[tokio::test]
async fn a_row_that_is_gone_from_the_outbox_is_named() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b"] {
        keeping.publish(id).await;
    }
    let commit = Commit { set_aside: vec![waiting(1, 1, NACK)], ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping.run("DELETE FROM statecast.outbox WHERE seq = 1").await;
    // What is set aside already is needed no more.
    let commit = Commit { set_aside: vec![waiting(1, 1, NACK)], ..keeping.stay().await };
    keeping.commit(commit).await;
    let commit = Commit { set_aside: vec![queued(2, 1), queued(99, 1)], ..keeping.stay().await };
    keeping.send(ToKeeper::Commit(commit)).await;
    assert!(keeping.receive().await.is_none());
    let error = keeping.end().await.unwrap_err();
    assert!(matches!(error, KeeperError::Parked(WriteError::NotInOutbox(99))), "{error}");
    assert!(error.to_string().contains("seq 99"), "{error}");
    assert_eq!(keeping.rows().await, ["1 waiting"], "all of it is rolled back");
}

#[tokio::test]
async fn requests_are_told_until_they_are_answered() {
    let mut keeping = Keeping::new().await;
    for id in ["a", "b", "c"] {
        keeping.publish(id).await;
    }
    let set_aside = vec![waiting(1, 1, NACK), parked(2, u64::MAX, Reason::Invalid), queued(3, 1)];
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping
        .run(
            "UPDATE statecast.parked SET request = 'retry' WHERE seq = 1;
             UPDATE statecast.parked SET request = 'discard' WHERE seq IN (2, 3);
             UPDATE statecast.parked SET state = 'confirmed' WHERE seq = 3",
        )
        .await;
    let asked = [(1, Act::Retry), (2, Act::Discard)];
    assert_eq!(keeping.asked().await, asked, "what is final already is not asked for");
    assert_eq!(keeping.asked().await, asked, "again, while nobody answers");
    let commit = Commit { changes: vec![change(1, Became::Retry)], ..keeping.stay().await };
    keeping.commit(commit).await;
    assert_eq!(keeping.asked().await, [(2, Act::Discard)]);
    let commit = Commit { changes: vec![change(2, Became::Discarded)], ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping
        .run(&format!(
            "UPDATE statecast.parked SET request = 'discard' WHERE pipeline = '{PIPELINE}' AND seq = 1"
        ))
        .await;
    assert_eq!(keeping.asked().await, [(1, Act::Discard)]);
}

/// The keys are told by their first open row; how long it has waited is the server's to say.
#[tokio::test]
async fn a_leader_finds_the_first_open_row_of_each_key() {
    let mut keeping = Keeping::new().await;
    for _ in 0..8 {
        keeping.publish("a").await;
    }
    let high = u64::MAX - 1;
    let set_aside = vec![
        waiting(1, 5, Reason::Unroutable),
        queued(2, 5),
        waiting(3, high, NACK),
        queued(4, high),
        parked(5, 9, Reason::TooLarge),
        waiting(6, 0, NACK),
        queued(7, 3),
        queued(8, 3),
    ];
    let changes = vec![change(3, Became::Confirmed), change(6, Became::Retry), change(7, Became::Discarded)];
    let commit = Commit { set_aside, changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping.run("UPDATE statecast.parked SET since = now() - interval '90 s' WHERE seq = 1").await;
    keeping.run("UPDATE statecast.parked SET since = now() + interval '1 h' WHERE seq = 5").await;
    keeping.restart().await;
    let aside = &keeping.claim.aside;
    let mut heads: Vec<_> =
        aside.heads.iter().map(|h| (h.key, h.seq, h.state, h.reason, h.routing_key.as_deref())).collect();
    heads.sort_unstable_by_key(|head| head.1);
    assert_eq!(
        heads,
        [
            (5, 1, HeadState::Waiting, Some(Reason::Unroutable), Some("order.5")),
            (high, 4, HeadState::Queued, None, None),
            (9, 5, HeadState::Parked, Some(Reason::TooLarge), None),
            (0, 6, HeadState::Retry, Some(NACK), Some("order.0")),
            (3, 8, HeadState::Queued, None, None),
        ]
    );
    let waited = |seq| aside.heads.iter().find(|head| head.seq == seq).unwrap().waited;
    assert!((90..120).contains(&waited(1).as_secs()), "{:?}", waited(1));
    assert_eq!(waited(5), Duration::ZERO, "from a clock that was set back");
    assert_eq!(aside.unpassed, (1..=8).collect::<Vec<i64>>());
    // Another pipeline's rows are its own.
    keeping.run("UPDATE statecast.parked SET pipeline = 'other'").await;
    keeping.restart().await;
    assert_eq!((keeping.claim.aside.heads.len(), keeping.claim.aside.unpassed.len()), (0, 0));
}

/// Answers come in the order of the questions.
#[tokio::test]
async fn the_keeper_answers_in_order() {
    let mut keeping = Keeping::new().await;
    keeping.publish("a").await;
    let commit = Commit { set_aside: vec![queued(1, 4)], ..keeping.stay().await };
    keeping.send(ToKeeper::Commit(commit)).await;
    let recalled = keeping.recall_unanswered(&[4]).await;
    assert!(matches!(keeping.receive().await, Some(FromKeeper::Committed(_))));
    match keeping.receive().await {
        Some(FromKeeper::Recalled(answer)) => {
            assert_eq!(
                (answer.id, answer.keys[0].events.len()),
                (recalled, 1),
                "the row of the commit before it"
            );
        }
        other => panic!("{other:?}"),
    }
}

/// The leader must not wait for rows that a client has locked, and that hangs.
#[tokio::test]
async fn whoever_hangs_while_asking_is_thrown_out() {
    let mut keeping = Keeping::new().await;
    keeping.publish("a").await;
    let commit = Commit { set_aside: vec![parked(1, 7, Reason::Invalid)], ..keeping.stay().await };
    keeping.commit(commit).await;
    // What the server knows of the client when the rows are locked.
    keeping
        .run(
            "CREATE TABLE public.patience (idle text);
             GRANT INSERT ON public.patience TO PUBLIC;
             CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 INSERT INTO public.patience VALUES (current_setting('idle_in_transaction_session_timeout'));
                 RETURN NEW;
             END $$;
             CREATE TRIGGER note BEFORE UPDATE ON statecast.parked FOR EACH ROW EXECUTE FUNCTION public.note()",
        )
        .await;
    let (mut client, _guard) = open(&config(&keeping.url), "person").await.unwrap();
    let selector = Selector::default();
    let request = Request { act: Act::Retry, selector: &selector, said: "--all", actor: "alice", why: None };
    assert_eq!(ask(&mut client, PIPELINE, &request).await.unwrap().asked, 1);
    assert_eq!(keeping.texts("SELECT idle FROM public.patience", &[]).await, ["1s"]);
    let later = client.query_one("SHOW idle_in_transaction_session_timeout", &[]).await.unwrap();
    assert_ne!(later.get::<_, &str>(0), "1s", "for its own transactions only");
}

/// A commit may take longer than the lease lasts. A standby finds the row locked, and takes nothing over that is nearly done.
#[tokio::test]
async fn a_long_commit_is_not_taken_over() {
    let mut keeping = Keeping::new().await;
    let seq = keeping.publish("a").await;
    let commit = Commit { set_aside: vec![waiting(seq, 7, NACK)], ..keeping.stay().await };
    keeping.commit(commit).await;
    let standby = keeping.superuser().await;
    standby.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
    let mut person = keeping.superuser().await;
    let slow = person.transaction().await.unwrap();
    slow.batch_execute("SELECT FROM statecast.parked FOR UPDATE").await.unwrap();
    let commit = Commit { changes: vec![change(seq, Became::Confirmed)], ..keeping.stay().await };
    let id = commit.id;
    keeping.send(ToKeeper::Commit(commit)).await;
    wait_for_lock_wait(&keeping).await;
    let seen = lease::look(&standby, PIPELINE, false).await.unwrap().row.unwrap();
    let over = tokio::time::timeout(LEASE * 3, async {
        while !lease::look(&standby, PIPELINE, false).await.unwrap().over {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    over.await.unwrap();
    let seized = lease::seize(&standby, PIPELINE, &seen, "standby").await;
    let Err(CursorError::Sql { source, .. }) = &seized else { panic!("{seized:?}") };
    assert_eq!(source.code(), Some(&SqlState::LOCK_NOT_AVAILABLE));
    slow.rollback().await.unwrap();
    assert!(matches!(keeping.receive().await, Some(FromKeeper::Committed(done)) if done.id == id));
}
