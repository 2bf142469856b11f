use crate::histogram::Latencies;

#[test]
fn a_stall_is_seen_by_everything_that_was_due_meanwhile() {
    let mut latencies = Latencies::new().unwrap();
    // One per millisecond for a second; the first half second nothing is answered.
    for due in 0..1_000_i64 {
        let done = due.max(500) * 1_000 + 100;
        latencies.record(due * 1_000, done);
    }
    let summary = latencies.summary();
    assert_eq!(summary.count, 1_000);
    assert!((summary.max_ms - 500.1).abs() < 1.0, "{summary:?}");
    // A load that waited for its answers would have one slow answer in 501, and no p99 to speak of.
    assert!(summary.p99_ms > 450.0, "{summary:?}");
    assert!(summary.p50_ms < 2.0, "{summary:?}");
}

#[test]
fn nothing_took_less_than_no_time_or_more_than_the_longest() {
    let mut latencies = Latencies::new().unwrap();
    latencies.record(10, 5);
    latencies.record(0, i64::MAX);
    let summary = latencies.summary();
    assert!(summary.p50_ms <= 0.001);
    assert!((summary.max_ms - 600_000.0).abs() < 600.0, "{summary:?}");
    assert_eq!(latencies.count(), 2);
}

#[test]
fn an_empty_one_says_so() {
    let summary = Latencies::new().unwrap().summary();
    assert_eq!((summary.count, summary.curve.len()), (0, 0));
}
