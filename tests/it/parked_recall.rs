//! Recalls: which rows come back, in which order, how far, and what they say about the rest.

use std::time::Instant;

use statecast::contract::{Became, Commit, FromKeeper, Reason, Recall, Recalled, Then, ToKeeper};
use statecast::event::Seq;
use statecast::gate::{HOLD, RENEW_INTERVAL};
use statecast::store::cursor::CursorError;
use statecast::store::parked::recall::RECALL;
use statecast::store::parked::start::{HEADS, SETTINGS, aside_state};
use tokio_postgres::SimpleQueryMessage;

use crate::keeping::{Keeping, again, change, parked, queued, waiting};
use crate::servers::connect;

const LARGE: usize = 1 << 20;

/// seqs and what follows, per key.
fn told(recalled: &Recalled) -> Vec<(u64, Vec<Seq>, Then)> {
    let seqs = |events: &[statecast::event::Event]| events.iter().map(|event| event.seq).collect();
    recalled.keys.iter().map(|key| (key.key, seqs(&key.events), key.then)).collect()
}

/// Ten events, and what is set aside of them.
async fn with(set_aside: Vec<statecast::contract::SetAside>) -> Keeping {
    let mut keeping = Keeping::new().await;
    for _ in 0..10 {
        keeping.publish("a").await;
    }
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    keeping
}

#[tokio::test]
async fn rows_come_in_order_up_to_the_first_that_is_parked() {
    let high = u64::MAX - 1;
    let mut keeping = with(vec![
        queued(9, 1),
        waiting(2, 1, Reason::Nack),
        queued(5, 1),
        waiting(3, high, Reason::Nack),
        parked(4, high, Reason::Invalid),
        queued(6, high),
        parked(7, 7, Reason::TooLarge),
        queued(8, 7),
        queued(1, 8),
    ])
    .await;
    let recalled = keeping.recall(&[high, 1, 99, 7, 8], 256, LARGE).await;
    assert_eq!(
        told(&recalled),
        [
            (high, vec![3], Then::Parked),
            (1, vec![2, 5, 9], Then::Empty),
            (99, vec![], Then::Empty),
            (7, vec![], Then::Parked),
            (8, vec![1], Then::Empty),
        ]
    );
    // What is final is passed over, what is asked for again goes with the others.
    let changes = vec![
        change(2, Became::Confirmed),
        change(3, Became::Discarded),
        change(4, Became::Retry),
        change(7, again(Reason::Nack, "no")),
    ];
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    let recalled = keeping.recall(&[1, high, 7], 256, LARGE).await;
    assert_eq!(
        told(&recalled),
        [(1, vec![5, 9], Then::Empty), (high, vec![4, 6], Then::Empty), (7, vec![7, 8], Then::Empty)]
    );
    // Another pipeline's rows are its own.
    keeping.run("UPDATE statecast.parked SET pipeline = 'other'").await;
    assert_eq!(told(&keeping.recall(&[1], 256, LARGE).await), [(1, vec![], Then::Empty)]);
}

#[tokio::test]
async fn an_event_comes_back_as_it_was_committed() {
    let mut keeping = Keeping::new().await;
    let payload = r#"{"b":  1.10, "big": 1e400,  "a": "ä\u0000"}"#;
    keeping
        .run(&format!(
            r#"INSERT INTO statecast.outbox (event_id, aggregate_type, aggregate_id, event_type, schema_version, entity_version,
                   payload, headers, correlation_id, causation_id, traceparent, tracestate, recorded_at)
               VALUES ('01890a5d-ac96-774b-bcce-b302099a8057', 'order', 'ä:1', 'x.y', '2.0.0', 9, '{payload}',
                       '{{"t":  "x"}}', 'corr', 'cause', '00-a', 'k=v', '2026-11-03T12:34:56.123789Z');
               INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type) VALUES ('order', '2', 'gone')"#
        ))
        .await;
    let commit = Commit { set_aside: vec![queued(1, 5), queued(2, 5)], ..keeping.stay().await };
    keeping.commit(commit).await;
    // Retention may have dropped the rows themselves.
    keeping.run("TRUNCATE statecast.outbox").await;
    let recalled = keeping.recall(&[5], 10, LARGE).await;
    let [event, gone] = &recalled.keys[0].events[..] else { panic!("{recalled:?}") };
    assert_eq!(event.payload.as_deref(), Some(payload.as_bytes()));
    assert_eq!(event.headers.as_deref(), Some(r#"{"t":  "x"}"#.as_bytes()));
    assert_eq!(event.event_id.to_string(), "01890a5d-ac96-774b-bcce-b302099a8057");
    let texts = [&event.aggregate_type, &event.aggregate_id, &event.event_type, &event.schema_version];
    assert_eq!(texts, ["order", "ä:1", "x.y", "2.0.0"]);
    let optional = [&event.correlation_id, &event.causation_id, &event.traceparent, &event.tracestate];
    assert_eq!(optional.map(|text| text.as_deref().unwrap()), ["corr", "cause", "00-a", "k=v"]);
    assert_eq!((event.seq, event.entity_version, event.recorded_at_us), (1, Some(9), 1_793_709_296_123_789));
    let xid = keeping.texts("SELECT xid::text FROM statecast.parked ORDER BY seq LIMIT 1", &[]).await;
    assert_eq!([event.xid.to_string()], xid[..]);
    assert_eq!((gone.seq, &gone.payload, &gone.headers, gone.entity_version), (2, &None, &None, None));
}

#[tokio::test]
async fn rows_are_limited_and_every_key_gets_its_share() {
    let mut keeping =
        with((1..=10).map(|seq| queued(seq, if seq <= 6 { 1 } else { seq as u64 })).collect()).await;
    let all: Vec<u64> = vec![1, 7, 8, 9, 10];
    assert_eq!(told(&keeping.recall(&[1], 4, LARGE).await), [(1, vec![1, 2, 3, 4], Then::More)]);
    assert_eq!(told(&keeping.recall(&[1], 6, LARGE).await), [(1, (1..=6).collect(), Then::Empty)]);
    let recalled = told(&keeping.recall(&all, 10, LARGE).await);
    assert_eq!(recalled[0], (1, vec![1, 2], Then::More));
    assert!(recalled[1..].iter().all(|(key, seqs, then)| *seqs == [*key as i64] && *then == Then::Empty));
    // Fewer rows than keys: one each all the same.
    let recalled = told(&keeping.recall(&all, 2, LARGE).await);
    assert_eq!(recalled.iter().map(|(_, seqs, _)| seqs.len()).sum::<usize>(), 5, "{recalled:?}");
    // A row that is parked right behind the limit is told as such, not as one that may go.
    keeping.run("UPDATE statecast.parked SET state = 'parked', reason = 'nack' WHERE seq = 4").await;
    assert_eq!(told(&keeping.recall(&[1], 3, LARGE).await), [(1, vec![1, 2, 3], Then::Parked)]);
    assert_eq!(told(&keeping.recall(&[1], 2, LARGE).await), [(1, vec![1, 2], Then::More)]);
    // More keys than one recall reads.
    let many: Vec<u64> = (100..170).chain([1]).collect();
    let recalled = told(&keeping.recall(&many, 256, LARGE).await);
    assert_eq!(recalled.len(), many.len());
    assert!(recalled[..64].iter().all(|(_, seqs, then)| seqs.is_empty() && *then == Then::Empty));
    assert!(recalled[64..].iter().all(|(_, seqs, then)| seqs.is_empty() && *then == Then::More));
}

#[tokio::test]
async fn a_recall_ends_before_a_row_that_a_person_has_given_up() {
    let set_aside = vec![
        waiting(1, 1, Reason::Nack),
        queued(2, 1),
        queued(3, 1),
        queued(4, 1),
        parked(5, 2, Reason::Invalid),
        queued(6, 2),
        queued(7, 3),
        parked(8, 3, Reason::TooLarge),
        queued(9, 3),
    ];
    let mut keeping = with(set_aside).await;
    keeping.run("UPDATE statecast.parked SET request = 'discard' WHERE seq IN (2, 4, 5, 7, 9)").await;
    // To be tried again is what they would be anyway.
    keeping.run("UPDATE statecast.parked SET request = 'retry' WHERE seq = 1").await;
    let recalled = keeping.recall(&[1, 2, 3], 30, LARGE).await;
    let named: Vec<&[Seq]> = recalled.keys.iter().map(|key| &key.given_up[..]).collect();
    assert_eq!(named, [&[2, 4][..], &[5], &[7, 9]]);
    assert_eq!(told(&recalled), [(1, vec![1], Then::More), (2, vec![], Then::More), (3, vec![], Then::More)]);
    // Of what is behind the limit nothing is said.
    assert_eq!(keeping.recall(&[1], 2, LARGE).await.keys[0].given_up, [2]);
    let changes = [2, 4, 5, 7, 9].map(|seq| change(seq, Became::Discarded)).to_vec();
    let commit = Commit { changes, ..keeping.stay().await };
    keeping.commit(commit).await;
    let recalled = keeping.recall(&[1, 2, 3], 30, LARGE).await;
    assert!(recalled.keys.iter().all(|key| key.given_up.is_empty()));
    assert_eq!(
        told(&recalled),
        [(1, vec![1, 3], Then::Empty), (2, vec![6], Then::Empty), (3, vec![], Then::Parked)]
    );
}

#[tokio::test]
async fn bytes_are_limited_across_the_keys() {
    let mut keeping = Keeping::new().await;
    // 3 kB each, of three keys; the second key's first is 100 kB.
    keeping
        .run(
            "INSERT INTO statecast.outbox (aggregate_type, aggregate_id, event_type, payload)
             SELECT 'order', '1', 'changed', to_json(repeat('x', CASE WHEN n = 4 THEN 100000 ELSE 3000 END))
               FROM generate_series(1, 9) n",
        )
        .await;
    let set_aside = (1..=9).map(|seq| queued(seq, (seq as u64 - 1) / 3)).collect();
    let commit = Commit { set_aside, ..keeping.stay().await };
    keeping.commit(commit).await;
    let all = [0, 1, 2];
    let everything = told(&keeping.recall(&all, 100, LARGE).await);
    assert_eq!(everything.iter().map(|(_, seqs, _)| seqs.len()).sum::<usize>(), 9);
    // First rows first; the cut is before the first row that begins beyond the limit.
    assert_eq!(
        told(&keeping.recall(&all, 100, 5_000).await),
        [(0, vec![1], Then::More), (1, vec![4], Then::More), (2, vec![], Then::More)]
    );
    assert_eq!(
        told(&keeping.recall(&all, 100, 112_000).await),
        [(0, vec![1, 2], Then::More), (1, vec![4, 5], Then::More), (2, vec![7], Then::More)]
    );
    // One always passes, however large.
    for limit in [0, 1, 3_000] {
        let recalled = told(&keeping.recall(&[1, 0], 100, limit).await);
        assert_eq!(recalled, [(1, vec![4], Then::More), (0, vec![], Then::More)], "{limit}");
    }
}

/// Buffers touched by an EXPLAIN.
async fn buffers(keeping: &Keeping, sql: &str) -> i64 {
    let messages = keeping.client.simple_query(sql).await.unwrap();
    let text = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let json: serde_json::Value = serde_json::from_str(text.unwrap()).unwrap();
    let count = |name: &str| json[0]["Plan"][name].as_i64().unwrap();
    count("Shared Hit Blocks") + count("Shared Read Blocks")
}

/// What it costs to recall, and to find the heads, does not depend on how long the queues are; with the plans that the leader
/// has, which were made when the table was empty.
#[tokio::test]
async fn recalls_and_heads_cost_the_same_with_long_queues() {
    let keeping = Keeping::new().await;
    keeping
        .run(&format!(
            "{}; PREPARE recall (text, bigint[], bigint, bigint) AS {RECALL};
             BEGIN; {SETTINGS}; PREPARE heads (text, bigint, bigint) AS {HEADS}; EXECUTE heads ('books', 1, 0); COMMIT;
             EXECUTE recall ('books', '{{1}}', 1, 1)",
            statecast::store::keeper::SETTINGS
        ))
        .await;
    let explain = "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, FORMAT JSON)";
    let recall = format!("{explain} EXECUTE recall ('books', '{{1,2,3,4}}', 8, 1000000)");
    let heads = format!("{explain} EXECUTE heads ('books', 1000, 0)");
    let mut costs = Vec::new();
    for (from, to) in [(1, 20), (21, 5_000)] {
        keeping
            .run(&format!(
                "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                        schema_version, payload, recorded_at, state, passed)
                 SELECT 'books', n * 100 + key, '3', key, gen_random_uuid(), 'order', '1', 'changed', '1.0.0', '{{}}', now(), 'queued', true
                   FROM generate_series({from}, {to}) n, generate_series(1, 20) key"
            ))
            .await;
        costs.push((buffers(&keeping, &recall).await, buffers(&keeping, &heads).await));
    }
    println!("buffers for a recall and for 20 heads: {costs:?}");
    let [few, many] = costs[..] else { unreachable!() };
    assert!(many.0 <= few.0 * 3 && many.1 <= few.1 * 3, "{costs:?}");
}

/// More than a page of keys and of rows that no write has passed; read only by who leads.
#[tokio::test]
async fn what_is_set_aside_is_read_by_pages() {
    const ROWS: i64 = 8_000;
    let keeping = Keeping::new().await;
    keeping
        .run(&format!(
            "INSERT INTO statecast.parked (pipeline, seq, xid, key_hash, event_id, aggregate_type, aggregate_id, event_type,
                    schema_version, payload, recorded_at, state, passed)
             SELECT 'books', n, '3', CASE n WHEN 1 THEN {} WHEN 2 THEN {} ELSE n END, gen_random_uuid(), 'order', '1', 'changed',
                    '1.0.0', '{{}}', now(), 'queued', false
               FROM generate_series(1, {ROWS}) n",
            i64::MIN,
            i64::MAX
        ))
        .await;
    let epoch = keeping.claim.epoch;
    let mut client = connect(&keeping.url).await.unwrap();
    let aside = aside_state(&mut client, "books", epoch).await.unwrap();
    assert_eq!(aside.unpassed, (1..=ROWS).collect::<Vec<_>>());
    let mut heads: Vec<i64> = aside.heads.iter().map(|head| head.seq).collect();
    assert!(aside.heads.is_sorted_by_key(|head| head.key.cast_signed()));
    heads.sort_unstable();
    assert_eq!(heads, aside.unpassed);
    let stranger = aside_state(&mut client, "books", epoch + 1).await;
    assert!(matches!(stranger, Err(CursorError::Superseded(_))), "{stranger:?}");
}

#[tokio::test]
async fn a_keeper_that_is_always_asked_for_more_renews_its_lease_and_tells_requests() {
    let mut keeping = with(vec![parked(1, 7, Reason::Invalid)]).await;
    let (gate, to) = keeping.gate();
    let flood = tokio::spawn(async move {
        for id in 1_000.. {
            let recall = Recall { id, keys: vec![99], rows_max: 1, bytes_max: LARGE };
            if to.send(ToKeeper::Recall(recall)).await.is_err() {
                return;
            }
        }
    });
    keeping.run("UPDATE statecast.parked SET request = 'retry'").await;
    let until = Instant::now() + HOLD + RENEW_INTERVAL;
    let (mut answers, mut shut) = (0, None);
    while Instant::now() < until {
        assert!(matches!(keeping.receive().await, Some(FromKeeper::Recalled(_))));
        answers += 1;
        // It opens with the first renewal.
        shut = shut.or((answers > 100 && !gate.is_open()).then_some(answers));
    }
    assert!(answers > 100 && shut.is_none(), "{answers} answers, and it was shut after {shut:?}");
    let told = keeping.told();
    assert!((3..=6).contains(&told), "told {told} times in four seconds");
    flood.abort();
}

#[tokio::test]
async fn a_new_leader_knows_what_waits_for_people() {
    let set_aside =
        vec![waiting(1, 7, Reason::Nack), parked(2, 7, Reason::Invalid), parked(3, 8, Reason::TooLarge)];
    let mut keeping = with(set_aside).await;
    // Only a row behind another one has waited for long.
    keeping.run("UPDATE statecast.parked SET since = since - interval '1 h' WHERE seq = 2").await;
    keeping.restart().await;
    // It is told with the first renewal, at once.
    let began = Instant::now();
    let told = loop {
        keeping.recall(&[7], 1, LARGE).await;
        if let Some(told) = keeping.parked() {
            break told;
        }
        assert!(began.elapsed() < RENEW_INTERVAL, "nothing is told");
    };
    assert_eq!((told.rows, told.oldest.as_secs() / 60), (2, 60));
    keeping.run("ANALYZE statecast.parked; SET enable_seqscan = off; SET enable_bitmapscan = off").await;
    let plan =
        "EXPLAIN (COSTS OFF) SELECT since FROM statecast.parked WHERE pipeline = 'books' AND state = 'parked'
                 ORDER BY pipeline, since LIMIT 10";
    let plan = keeping.texts(plan, &[]).await.join("\n");
    assert!(plan.contains("parked_since") && !plan.contains("Sort"), "{plan}");
}
