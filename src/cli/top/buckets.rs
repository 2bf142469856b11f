//! A histogram's buckets: what came between two looks, and quantiles of it.
//!
//! A quantile is interpolated inside its bucket, as Prometheus' `histogram_quantile` does: it is as exact as the buckets are
//! narrow. Above the last finite bound only that bound is known.

use super::exposition::Exposition;

/// Buckets kept, at most; a relay's histograms have 16.
const BUCKETS_MAX: usize = 64;

/// Counts up to each upper bound, the bounds ascending; cumulative, as they are exposed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Buckets(Vec<(f64, f64)>);

/// A quantile in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Quantile {
    About(f64),
    /// It lies above the last finite bound.
    Above(f64),
}

impl Buckets {
    /// The samples `name`, one per `le`.
    pub(super) fn of(metrics: &Exposition, name: &str) -> Buckets {
        let mut buckets: Vec<(f64, f64)> = metrics
            .named(name)
            .filter_map(|sample| {
                let bound = match sample.label("le")? {
                    "+Inf" => f64::INFINITY,
                    bound => bound.parse().ok()?,
                };
                (!bound.is_nan() && sample.value.is_finite()).then_some((bound, sample.value))
            })
            .take(BUCKETS_MAX)
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        buckets.dedup_by(|a, b| a.0 == b.0);
        Buckets(buckets)
    }

    /// All observations.
    pub(super) fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// What came since `earlier`. A process that started again counts from 0, so then it is all there is; likewise where the
    /// bounds have changed.
    pub(super) fn since(&self, earlier: &Buckets) -> Buckets {
        let comparable = self.0.len() == earlier.0.len()
            && self.0.iter().zip(&earlier.0).all(|(now, then)| now.0 == then.0 && now.1 >= then.1);
        if !comparable {
            return self.clone();
        }
        Buckets(self.0.iter().zip(&earlier.0).map(|(now, then)| (now.0, now.1 - then.1)).collect())
    }

    /// Both together; where the bounds differ (relays of two versions), the one that holds more.
    pub(super) fn plus(&self, other: &Buckets) -> Buckets {
        let same = self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.0 == b.0);
        match same {
            true => Buckets(self.0.iter().zip(&other.0).map(|(a, b)| (a.0, a.1 + b.1)).collect()),
            false if self.count() >= other.count() => self.clone(),
            false => other.clone(),
        }
    }

    /// The quantile `share`, 0 to 1; `None` without observations.
    pub(super) fn quantile(&self, share: f64) -> Option<Quantile> {
        let total = self.count();
        if !(total > 0.0 && (0.0..=1.0).contains(&share)) {
            return None;
        }
        let rank = share * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.0 {
            if *count >= rank && *count > below {
                if bound.is_infinite() {
                    return Some(Quantile::Above(low));
                }
                let inside = ((rank - below) / (count - below)).clamp(0.0, 1.0);
                return Some(Quantile::About(low + (bound - low) * inside));
            }
            (low, below) = (*bound, count.max(below));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn buckets(pairs: &[(&str, f64)]) -> Buckets {
        let text: String = pairs.iter().map(|(le, count)| format!("b{{le=\"{le}\"}} {count}\n")).collect();
        Buckets::of(&Exposition::parse(text.as_bytes()), "b")
    }

    #[test]
    fn quantiles_are_interpolated() {
        let b = buckets(&[("1", 50.0), ("2", 100.0), ("+Inf", 100.0)]);
        assert_eq!(b.quantile(0.5), Some(Quantile::About(1.0)));
        assert_eq!(b.quantile(0.75), Some(Quantile::About(1.5)));
        assert_eq!(b.quantile(0.25), Some(Quantile::About(0.5)));
        assert_eq!(buckets(&[("1", 0.0), ("+Inf", 0.0)]).quantile(0.5), None);
        assert_eq!(Buckets::default().quantile(0.5), None);
        let slow = buckets(&[("1", 1.0), ("60", 1.0), ("+Inf", 10.0)]);
        assert_eq!(slow.quantile(0.99), Some(Quantile::Above(60.0)));
    }

    #[test]
    fn the_order_of_the_lines_does_not_matter() {
        let b = buckets(&[("+Inf", 4.0), ("10", 4.0), ("2.5", 2.0), ("x", 1.0), ("2.5", 2.0)]);
        assert_eq!(b.0, [(2.5, 2.0), (10.0, 4.0), (f64::INFINITY, 4.0)]);
    }

    #[test]
    fn what_came_between_two_looks() {
        let then = buckets(&[("1", 5.0), ("+Inf", 10.0)]);
        let now = buckets(&[("1", 6.0), ("+Inf", 14.0)]);
        assert_eq!(now.since(&then), buckets(&[("1", 1.0), ("+Inf", 4.0)]));
        assert_eq!(then.since(&now), then, "a process that started again");
        assert_eq!(now.since(&Buckets::default()), now);
        assert_eq!(now.plus(&then), buckets(&[("1", 11.0), ("+Inf", 24.0)]));
        assert_eq!(Buckets::default().plus(&now), now);
    }

    proptest! {
        #[test]
        fn any_buckets_give_a_quantile_within_their_bounds(
            pairs in proptest::collection::vec((-10.0f64..100.0, -5.0f64..50.0), 0..10),
            share in 0.0f64..=1.0,
        ) {
            let text: String =
                pairs.iter().map(|(le, count)| format!("b{{le=\"{le}\"}} {count}\n")).collect();
            let b = Buckets::of(&Exposition::parse(text.as_bytes()), "b");
            if let Some(Quantile::About(seconds) | Quantile::Above(seconds)) = b.quantile(share) {
                prop_assert!((-10.0..=100.0).contains(&seconds));
            }
        }
    }
}
