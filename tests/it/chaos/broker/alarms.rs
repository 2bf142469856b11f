//! A broker that is low on memory or disk blocks whoever publishes. That is back-pressure: no reconnect, no refusal.

use super::private;

/// Raises and lifts an alarm with `rabbitmqctl`; `reason` is the broker's word for it.
async fn alarm(raise: &[&str], lift: &[&str], reason: &str) {
    let (broker, trouble) = private().await;
    for _ in 0..2 {
        broker.ctl(raise).await.unwrap();
        let body = trouble.says("blocks publishers").await;
        assert!(body.contains(reason), "{body}");
        assert_eq!(trouble.relay.metric("statecast_broker_blocked").await, 1.0);
        trouble.written(200).await;
        broker.ctl(lift).await.unwrap();
        trouble.flows(300).await;
        assert_eq!(trouble.relay.metric("statecast_broker_blocked").await, 0.0);
    }
    assert_eq!(trouble.failures().await, 0.0, "a blocked connection is a good one\n{}", trouble.relay.log());
    let verdict = trouble.end().await;
    assert_eq!(verdict.duplicates, 0, "{}", verdict.summary());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_memory_alarm_is_back_pressure() {
    let set = "set_vm_memory_high_watermark";
    alarm(&[set, "absolute", "1MB"], &[set, "absolute", "1GB"], "low on memory").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broker_disk_alarm_is_back_pressure() {
    alarm(&["set_disk_free_limit", "1000000GB"], &["set_disk_free_limit", "50MB"], "low on disk").await;
}
