//! What `statecast top` shows of a relay's metrics, by name.

use super::buckets::Buckets;
use super::exposition::{Exposition, Sample};

/// One look at a relay's metrics. Counters count since its process started.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub(super) pipeline: String,
    pub(super) leader: bool,
    pub(super) streaming: bool,
    /// Counters.
    pub(super) read_poll: f64,
    pub(super) read_wal: f64,
    pub(super) confirmed: f64,
    pub(super) returns: f64,
    pub(super) nacks: f64,
    pub(super) missed: f64,
    pub(super) restarts: f64,
    /// What is so now.
    pub(super) pending: f64,
    pub(super) oldest_pending_s: f64,
    pub(super) parked: f64,
    pub(super) oldest_parked_s: f64,
    pub(super) paused_nack: f64,
    pub(super) paused_returned: f64,
    pub(super) window_in_use: f64,
    pub(super) blocked: bool,
    pub(super) wal_lag_s: f64,
    pub(super) wal_retained: f64,
    pub(super) chunks: f64,
    pub(super) outbox_bytes: f64,
    /// Histograms.
    pub(super) recorded_to_confirm: Buckets,
    pub(super) publish_to_confirm: Buckets,
}

impl Figures {
    /// `None` where no relay of Statecast speaks. A metric that is missing (an older relay) reads 0.
    pub(super) fn of(metrics: &Exposition) -> Option<Figures> {
        let pipeline = metrics.named("statecast_leader").next()?.label("pipeline")?.to_owned();
        let sum = |name: &str, with: Option<(&str, &str)>| -> f64 {
            let wanted =
                |sample: &&Sample| with.is_none_or(|(label, value)| sample.label(label) == Some(value));
            let samples = metrics
                .samples
                .iter()
                .filter(|sample| sample.name.strip_prefix("statecast_").is_some_and(|rest| rest == name));
            // What is no number, or infinite, says nothing that could be added up.
            samples.filter(wanted).map(|sample| sample.value).filter(|value| value.is_finite()).sum()
        };
        let one = |name: &str| sum(name, None);
        Some(Figures {
            leader: one("leader") > 0.0,
            streaming: one("wal_streaming") > 0.0,
            read_poll: sum("events_read_total", Some(("via", "poll"))),
            read_wal: sum("events_read_total", Some(("via", "wal"))),
            confirmed: one("events_confirmed_total"),
            returns: one("broker_returns_total"),
            nacks: one("broker_nacks_total"),
            missed: one("wal_missed_total"),
            restarts: sum("sessions_total", Some(("outcome", "transient"))),
            pending: one("events_pending"),
            oldest_pending_s: one("oldest_pending_age_seconds"),
            parked: one("parked_events"),
            oldest_parked_s: one("oldest_parked_age_seconds"),
            paused_nack: sum("keys_paused", Some(("reason", "nack"))),
            paused_returned: sum("keys_paused", Some(("reason", "returned"))),
            window_in_use: one("window_in_use"),
            blocked: one("broker_blocked") > 0.0,
            wal_lag_s: one("wal_lag_seconds"),
            wal_retained: one("wal_retained_bytes"),
            chunks: one("outbox_chunks"),
            outbox_bytes: one("outbox_bytes"),
            recorded_to_confirm: Buckets::of(metrics, "statecast_recorded_to_confirm_seconds_bucket"),
            publish_to_confirm: Buckets::of(metrics, "statecast_publish_confirm_seconds_bucket"),
            pipeline,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn every_figure_is_one_that_a_relay_has() {
        let metrics = Metrics::new("orders");
        metrics.leader.set(1);
        metrics.wal_streaming.set(1);
        metrics.events_read.poll.inc_by(2);
        metrics.events_read.wal.inc_by(3);
        metrics.events_confirmed.inc_by(4);
        metrics.broker_returns.inc_by(5);
        metrics.broker_nacks.inc_by(6);
        metrics.wal_missed.inc_by(7);
        metrics.sessions.transient.inc_by(8);
        metrics.sessions.stopped.inc_by(100);
        metrics.events_pending.set(9);
        metrics.oldest_pending_age_seconds.set(1.5);
        metrics.parked_events.set(10);
        metrics.oldest_parked_age_seconds.set(2.5);
        metrics.keys_paused.nack.set(11);
        metrics.keys_paused.returned.set(12);
        metrics.window_in_use.set(13);
        metrics.broker_blocked.set(1);
        metrics.wal_lag_seconds.set(3.5);
        metrics.wal_retained_bytes.set(14);
        metrics.outbox_chunks.set(15);
        metrics.outbox_bytes.set(16);
        metrics.recorded_to_confirm_seconds.observe(0.02);
        metrics.publish_confirm_seconds.observe(0.002);
        let figures = Figures::of(&Exposition::parse(metrics.encode().as_bytes())).unwrap();
        let expected = Figures {
            pipeline: "orders".to_owned(),
            leader: true,
            streaming: true,
            read_poll: 2.0,
            read_wal: 3.0,
            confirmed: 4.0,
            returns: 5.0,
            nacks: 6.0,
            missed: 7.0,
            restarts: 8.0,
            pending: 9.0,
            oldest_pending_s: 1.5,
            parked: 10.0,
            oldest_parked_s: 2.5,
            paused_nack: 11.0,
            paused_returned: 12.0,
            window_in_use: 13.0,
            blocked: true,
            wal_lag_s: 3.5,
            wal_retained: 14.0,
            chunks: 15.0,
            outbox_bytes: 16.0,
            ..figures.clone()
        };
        assert_eq!(figures, expected);
        assert_eq!(figures.recorded_to_confirm.count(), 1.0);
        assert_eq!(figures.publish_to_confirm.count(), 1.0);
    }

    #[test]
    fn others_are_not_taken_for_a_relay() {
        for text in ["", "up 1\n", "statecast_leader 1\n"] {
            assert_eq!(Figures::of(&Exposition::parse(text.as_bytes())), None, "{text}");
        }
        let text = "statecast_leader{pipeline=\"x\"} NaN\nstatecast_window_in_use{pipeline=\"x\"} +Inf\n";
        let figures = Figures::of(&Exposition::parse(text.as_bytes())).unwrap();
        assert_eq!(figures, Figures { pipeline: "x".to_owned(), ..Figures::default() });
    }
}
