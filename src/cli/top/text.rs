//! Numbers as people read them.

use std::time::Duration;

use super::buckets::Quantile;

/// `1,234,567`. What is no count reads `?`.
pub(super) fn count(number: f64) -> String {
    if !number.is_finite() {
        return "?".to_owned();
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number <= -0.5 { format!("-{text}") } else { text }
}

/// `1 key`, `2 keys`.
pub(super) fn counted(number: f64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1.0 { one } else { many })
}

/// Per second: a decimal below ten.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        slow if slow > 0.0 && slow < 9.95 => format!("{slow:.1}/s"),
        fast => format!("{}/s", count(fast)),
    }
}

/// `0.4 ms`, `12 ms`, `1.2 s`, `3m 20s`, `5h 10m`, `3d 4h`.
pub(super) fn seconds(seconds: f64) -> String {
    let ms = seconds * 1000.0;
    if !seconds.is_finite() {
        return "?".to_owned();
    }
    if ms < 9.95 {
        format!("{ms:.1} ms")
    } else if ms < 999.5 {
        format!("{ms:.0} ms")
    } else if seconds < 99.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = seconds as u64;
        let (minutes, hours, days) = (whole / 60, whole / 3600, whole / 86_400);
        match (days, hours) {
            (0, 0) => format!("{minutes}m {}s", whole % 60),
            (0, _) => format!("{hours}h {}m", minutes % 60),
            _ => format!("{days}d {}h", hours % 24),
        }
    }
}

/// As [`seconds`]; `-` without a value.
pub(super) fn quantile(quantile: Option<Quantile>) -> String {
    match quantile {
        Some(Quantile::About(value)) => seconds(value),
        Some(Quantile::Above(value)) => format!("over {}", seconds(value)),
        None => "-".to_owned(),
    }
}

/// One character per value, its height a share of the largest; the last `width` values.
pub(super) fn sparkline(values: &[f64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let shown = &values[values.len().saturating_sub(width)..];
    let top = shown.iter().copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let bar = |value: &f64| match value / top {
        share if share > 0.0 => BARS[((share * 8.0).ceil() as usize).clamp(1, 8) - 1],
        // Nothing, or no number at all.
        _ => ' ',
    };
    shown.iter().map(bar).collect()
}

/// `1s`, `500ms`, as it was given.
pub(super) fn interval(interval: Duration) -> String {
    crate::config::units::show_duration(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped() {
        let counts = [0.0, 999.0, 1_000.0, 1_234_567.0, -1_000.0, 0.4, f64::NAN].map(count);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567", "-1,000", "0", "?"]);
        assert_eq!(counted(1.0, "key", "keys"), "1 key");
        assert_eq!(counted(0.0, "key", "keys"), "0 keys");
        assert_eq!([0.0, 0.25, 9.9, 9.99, 1234.4].map(rate), ["0/s", "0.2/s", "9.9/s", "10/s", "1,234/s"]);
    }

    #[test]
    fn times_have_a_fitting_unit() {
        let times =
            [0.0, 0.00042, 0.0123, 0.9999, 61.04, 200.0, 18_600.0, 273_600.0, f64::INFINITY].map(seconds);
        assert_eq!(times, ["0.0 ms", "0.4 ms", "12 ms", "1.0 s", "61.0 s", "3m 20s", "5h 10m", "3d 4h", "?"]);
        assert_eq!(quantile(Some(Quantile::Above(60.0))), "over 60.0 s");
        assert_eq!(quantile(None), "-");
    }

    #[test]
    fn a_sparkline_is_as_high_as_its_largest_value() {
        assert_eq!(sparkline(&[0.0, 1.0, 4.0, 8.0], 9), " ▁▄█");
        assert_eq!(sparkline(&[9.0, 1.0, 2.0], 2), "▄█");
        assert_eq!(sparkline(&[f64::NAN, 0.0], 2), "  ");
        assert_eq!(sparkline(&[], 3), "");
    }
}
