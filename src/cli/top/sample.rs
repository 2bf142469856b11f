//! From looks at counters to rates: what each relay did between two looks, and the last minutes of all of them together.
//!
//! A counter that is lower than before belongs to a process that started again: what it shows now came since.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::buckets::Buckets;
use super::figures::Figures;

/// Latency is of this long.
pub(super) const LATENCY_SPAN: Duration = Duration::from_secs(10);
/// Deltas kept per relay, at most: ten seconds at the shortest interval.
const DELTAS_MAX: usize = 110;
/// Slots of the history.
pub(super) const SLOTS: usize = 240;

/// What a relay did between two looks.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    pub(super) from: Instant,
    pub(super) to: Instant,
    pub(super) read_poll: f64,
    pub(super) read_wal: f64,
    pub(super) confirmed: f64,
    recorded_to_confirm: Buckets,
    publish_to_confirm: Buckets,
}

impl Delta {
    fn between(from: Instant, then: &Figures, to: Instant, now: &Figures) -> Delta {
        let came = |now: f64, then: f64| if now >= then { now - then } else { now.max(0.0) };
        Delta {
            from,
            to,
            read_poll: came(now.read_poll, then.read_poll),
            read_wal: came(now.read_wal, then.read_wal),
            confirmed: came(now.confirmed, then.confirmed),
            recorded_to_confirm: now.recorded_to_confirm.since(&then.recorded_to_confirm),
            publish_to_confirm: now.publish_to_confirm.since(&then.publish_to_confirm),
        }
    }

    /// Seconds, above 0.
    fn seconds(&self) -> f64 {
        (self.to - self.from).as_secs_f64().max(1e-3)
    }
}

/// One relay's last seconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    last: Option<(Instant, Figures)>,
    deltas: VecDeque<Delta>,
}

/// Events per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rates {
    pub(super) read_poll: f64,
    pub(super) read_wal: f64,
    pub(super) confirmed: f64,
}

impl Series {
    /// One more look; what came since the one before, if there was one.
    pub(super) fn add(&mut self, at: Instant, figures: &Figures) -> Option<&Delta> {
        let last = self.last.replace((at, figures.clone()));
        let (from, then) = last.filter(|(from, _)| *from < at)?;
        self.deltas.push_back(Delta::between(from, &then, at, figures));
        while self.deltas.len() > DELTAS_MAX
            || self.deltas.front().is_some_and(|delta| at.duration_since(delta.to) > LATENCY_SPAN)
        {
            self.deltas.pop_front();
        }
        self.deltas.back()
    }

    /// Of the last interval; `None` after a single look.
    pub(super) fn rates(&self) -> Option<Rates> {
        let delta = self.deltas.back()?;
        let per_second = |count: f64| count / delta.seconds();
        Some(Rates {
            read_poll: per_second(delta.read_poll),
            read_wal: per_second(delta.read_wal),
            confirmed: per_second(delta.confirmed),
        })
    }

    /// From recording to confirm, and from publishing to confirm, in the last [`LATENCY_SPAN`].
    pub(super) fn latency(&self) -> (Buckets, Buckets) {
        self.deltas.iter().fold(Default::default(), |(recorded, publish): (Buckets, Buckets), delta| {
            (recorded.plus(&delta.recorded_to_confirm), publish.plus(&delta.publish_to_confirm))
        })
    }
}

/// Events per second in each of the last [`SLOTS`] intervals, of all relays.
#[derive(Clone, Debug)]
pub(super) struct History {
    start: Instant,
    slot: Duration,
    /// Number of the first slot kept.
    first: u64,
    confirmed: VecDeque<f64>,
}

impl History {
    /// Slots as long as the interval of the looks.
    pub(super) fn new(start: Instant, slot: Duration) -> History {
        History { start, slot: slot.max(Duration::from_millis(1)), first: 0, confirmed: VecDeque::new() }
    }

    /// How long a slot is.
    pub(super) fn slot(&self) -> Duration {
        self.slot
    }

    /// Spreads what was confirmed over the slots that its time covers: looks and slots do not begin together.
    pub(super) fn add(&mut self, delta: &Delta) {
        let slot_s = self.slot.as_secs_f64();
        let at = |moment: Instant| moment.saturating_duration_since(self.start).as_secs_f64() / slot_s;
        let (from, to) = (at(delta.from), at(delta.to));
        let length = to - from;
        if length <= 0.0 {
            return;
        }
        let (begin, end) = (from as u64, to as u64);
        self.reach(end);
        for slot in begin.max(self.first)..=end {
            let covered = (to.min(slot as f64 + 1.0) - from.max(slot as f64)).max(0.0);
            let index = (slot - self.first) as usize;
            if let Some(rate) = self.confirmed.get_mut(index) {
                *rate += delta.confirmed * covered / length / slot_s;
            }
        }
    }

    /// Makes slots up to number `end`, and forgets the oldest.
    fn reach(&mut self, end: u64) {
        if end >= self.first + self.confirmed.len() as u64 + SLOTS as u64 {
            self.confirmed.clear();
            self.first = end;
        }
        while self.first + self.confirmed.len() as u64 <= end {
            self.confirmed.push_back(0.0);
        }
        while self.confirmed.len() > SLOTS {
            self.confirmed.pop_front();
            self.first += 1;
        }
    }

    /// Confirmed per second, the newest last; without the slot that is not over yet.
    pub(super) fn confirmed(&self) -> Vec<f64> {
        let whole = self.confirmed.len().saturating_sub(1);
        self.confirmed.iter().take(whole).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::exposition::Exposition;
    use super::*;

    fn figures(confirmed: f64) -> Figures {
        Figures { confirmed, read_wal: confirmed * 2.0, ..Figures::default() }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_rate_takes_two_looks() {
        let (mut series, start) = (Series::default(), Instant::now());
        assert!(series.add(start, &figures(100.0)).is_none());
        assert_eq!(series.rates(), None);
        series.add(after(start, 500), &figures(150.0));
        assert_eq!(series.rates(), Some(Rates { read_poll: 0.0, read_wal: 200.0, confirmed: 100.0 }));
    }

    #[test]
    fn a_process_that_started_again_counts_from_zero() {
        let (mut series, start) = (Series::default(), Instant::now());
        series.add(start, &figures(1e9));
        series.add(after(start, 1000), &figures(30.0));
        assert_eq!(series.rates().unwrap().confirmed, 30.0);
    }

    #[test]
    fn latency_forgets_after_its_span() {
        let looked = |count: u64| Figures {
            recorded_to_confirm: super::super::buckets::Buckets::of(
                &Exposition::parse(format!("b{{le=\"1\"}} {count}\nb{{le=\"+Inf\"}} {count}\n").as_bytes()),
                "b",
            ),
            ..Figures::default()
        };
        let (mut series, start) = (Series::default(), Instant::now());
        series.add(start, &looked(0));
        series.add(after(start, 1000), &looked(7));
        series.add(after(start, 2000), &looked(8));
        assert_eq!(series.latency().0.count(), 8.0);
        series.add(after(start, 11_500), &looked(8));
        assert_eq!(series.latency().0.count(), 1.0, "the first second is too long ago");
    }

    #[test]
    fn the_history_has_the_whole_sum_however_looks_and_slots_lie() {
        let (mut series, start) = (Series::default(), Instant::now());
        let mut history = History::new(start, Duration::from_secs(1));
        series.add(start, &figures(0.0));
        for (ms, total) in [(700, 70.0), (1600, 160.0), (3900, 390.0), (5000, 500.0)] {
            let delta = series.add(after(start, ms), &figures(total)).unwrap().clone();
            history.add(&delta);
        }
        let rates = history.confirmed();
        assert_eq!(rates.len(), 5);
        assert!(rates.iter().all(|rate| (rate - 100.0).abs() < 1e-6), "{rates:?}");
    }

    #[test]
    fn the_history_is_bounded_also_after_a_long_pause() {
        let (mut series, start) = (Series::default(), Instant::now());
        let mut history = History::new(start, Duration::from_secs(1));
        series.add(start, &figures(0.0));
        for (n, ms) in [1_000u64, 400_000, 86_400_000_000, 86_400_001_000].into_iter().enumerate() {
            let delta = series.add(after(start, ms), &figures((n + 1) as f64 * 10.0)).unwrap().clone();
            history.add(&delta);
            assert!(history.confirmed().len() <= SLOTS);
        }
        assert!(history.confirmed().last().is_some_and(|rate| *rate > 0.0));
    }
}
