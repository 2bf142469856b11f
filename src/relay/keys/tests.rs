//! Keys that wait.

use super::*;

fn drain(keys: &mut Keys, lane: usize) -> Vec<Seq> {
    let mut sent = Vec::new();
    while let Some(key) = keys.next_ready(lane) {
        sent.extend(keys.take(key));
    }
    sent
}

#[test]
fn strict_order_sends_one_event_of_a_key() {
    let mut keys = Keys::new(Ordering::Strict, 1);
    for (key, seq) in [(1, 10), (1, 11), (2, 12), (1, 13)] {
        keys.push(key, seq, false);
    }
    assert_eq!(drain(&mut keys, 0), [10, 12]);
    keys.confirmed(1, 10);
    assert_eq!(drain(&mut keys, 0), [11]);
    keys.confirmed(2, 12);
    keys.confirmed(1, 11);
    assert_eq!(drain(&mut keys, 0), [13]);
    keys.confirmed(1, 13);
    assert!(keys.keys.is_empty());
}

#[test]
fn pipelined_sends_all() {
    let mut keys = Keys::new(Ordering::Pipelined, 1);
    for seq in 1..=3 {
        keys.push(7, seq, false);
    }
    assert_eq!(drain(&mut keys, 0), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_returns_to_its_place_and_its_key_waits() {
    let mut keys = Keys::new(Ordering::Pipelined, 1);
    for seq in 1..=4 {
        keys.push(7, seq, false);
    }
    keys.push(8, 5, false);
    assert_eq!(drain(&mut keys, 0).len(), 5);
    let now = Instant::now();
    assert!(keys.refused(7, 3, PauseReason::Nack, "a", now));
    assert!(keys.refused(7, 2, PauseReason::Nack, "a", now), "an earlier one decides");
    assert!(!keys.refused(7, 4, PauseReason::Returned, "b", now), "a later one does not");
    assert_eq!((keys.backing_off(), keys.next_wake()), (1, Some(now + PAUSE_MIN)));
    keys.push(7, 6, false);
    assert!(drain(&mut keys, 0).is_empty());
    keys.wake(now + PAUSE_MIN);
    assert_eq!(drain(&mut keys, 0), [2, 3, 4, 6]);
    assert_eq!((keys.backing_off(), keys.next_wake()), (0, None));
    keys.confirmed(7, 3);
    assert_eq!(keys.refusal(7).map(|r| (r.seq, r.since)), Some((2, now)), "the refused one is not out");
    keys.confirmed(7, 2);
    assert!(keys.refusal(7).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_key_waits_for_its_routing_key_until_it_is_resumed() {
    let mut keys = Keys::new(Ordering::Strict, 1);
    [(7, 1), (8, 2)].into_iter().for_each(|(key, seq)| keys.push(key, seq, false));
    assert_eq!(drain(&mut keys, 0), [1, 2]);
    let now = Instant::now();
    keys.refused(7, 1, PauseReason::Returned, "a", now);
    keys.refused(8, 2, PauseReason::Nack, "a", now);
    keys.push(9, 3, false);
    keys.wait_for_route(9, 3, "a", now);
    keys.wake(now + PAUSE_MAX);
    assert_eq!(drain(&mut keys, 0), [2], "its own back-off was over");
    keys.refused(8, 2, PauseReason::Nack, "a", now + PAUSE_MAX);
    keys.retry();
    assert_eq!((drain(&mut keys, 0), keys.backing_off()), (vec![2], 0));
    keys.resume(9);
    assert_eq!(drain(&mut keys, 0), [3]);
    assert_eq!(keys.refusal(7).map(|r| &*r.routing_key), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_set_aside_sends_nothing() {
    let mut keys = Keys::new(Ordering::Strict, 1);
    (1..=2).for_each(|seq| keys.push(7, seq, false));
    assert_eq!(drain(&mut keys, 0), [1]);
    let now = Instant::now();
    keys.refused(7, 1, PauseReason::Nack, "a", now);
    assert_eq!(keys.set_aside(7).map(|refused| refused.seq), Some(1));
    assert_eq!((keys.with_refusal().count(), keys.backing_off()), (0, 0));
    keys.wake(now + PAUSE_MIN);
    keys.retry();
    assert!(drain(&mut keys, 0).is_empty());
    keys.remove_front(7);
    keys.remove_front(7);
    assert!(keys.keys.is_empty());
    keys.push(7, 3, true);
    assert!(drain(&mut keys, 0).is_empty());
    keys.live_again(7);
    assert_eq!(drain(&mut keys, 0), [3]);
}

#[test]
fn what_comes_late_goes_to_its_place() {
    let mut keys = Keys::new(Ordering::Strict, 1);
    for seq in [3, 6, 9, 5] {
        keys.push(7, seq, false);
    }
    assert_eq!(keys.waiting(7).collect::<Vec<_>>(), [3, 5, 6, 9]);
}

#[test]
fn back_off_is_bounded() {
    for refusals in 0..100 {
        let wait = back_off(refusals);
        assert!(wait >= PAUSE_MIN && wait <= PAUSE_MAX, "{refusals}: {wait:?}");
    }
}
