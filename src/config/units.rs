//! Durations (`5ms`) and sizes (`8MiB`): a whole number and a unit, nothing that could be read in two ways. What was measured
//! is shown to people by [`about_size`] instead.

use std::time::Duration;

/// Units of time with their length in microseconds, longest first.
const TIME: [(&str, u64); 6] = [
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// Units of size with their bytes, largest first.
const SIZE: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("B", 1),
];

/// Reads `5ms`, `10s`, `10m`, `24h`, `7d`; `0` needs no unit. `None` when it is something else.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" if number == 0 => 1,
        unit => TIME.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.checked_mul(factor).map(Duration::from_micros)
}

/// Reads `8MiB`, `10GiB`, `64kB`, or plain bytes. `None` when it is something else. Case does not matter.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let factor = match unit {
        "" => 1,
        unit => SIZE.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    number.checked_mul(factor)
}

/// The shortest text that [`duration`] reads back as `value` (whole microseconds).
pub fn show_duration(value: Duration) -> String {
    let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    show(us, &TIME, "s")
}

/// The shortest text that [`size`] reads back as `bytes`: for configuration.
pub fn show_size(bytes: u64) -> String {
    show(bytes, &SIZE[..4], "B")
}

/// Rounded to a decimal, for people: `512 B`, `1.5 MiB`. It does not read back; for that there is [`show_size`].
pub fn about_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        // Beyond that it would be rounded to 1024.0.
        if value < 1023.95 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn split(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

fn show(value: u64, units: &[(&str, u64)], zero: &str) -> String {
    match units.iter().find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", value / factor),
        None => format!("{value}{zero}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in [
            ("5ms", 5),
            ("10s", 10_000),
            ("10m", 600_000),
            ("24h", 86_400_000),
            ("1d", 86_400_000),
            (" 3 s ", 3_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(duration("250us"), Some(Duration::from_micros(250)));
        for text in ["", "5", "s", "-1s", "1.5s", "5 min", "1h30m", "5M", "1e3s", "+5s", "99999999999999d"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("8MiB", 8 << 20),
            ("10GiB", 10 << 30),
            ("65536", 65_536),
            ("1 kB", 1_000),
            ("1mib", 1 << 20),
            ("2MB", 2_000_000),
            ("7B", 7),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5GiB", "8M", "8 Mio", "99999999999GiB"] {
            assert_eq!(size(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_shown_reads_back() {
        for us in [0, 1, 5_000, 100_000, 1_000_000, 90_000_000, 86_400_000_000] {
            let value = Duration::from_micros(us);
            assert_eq!(duration(&show_duration(value)), Some(value));
        }
        for bytes in [0, 1, 1000, 1024, 65_536, (8 << 20) + 1, 10 << 30] {
            assert_eq!(size(&show_size(bytes)), Some(bytes));
        }
        assert_eq!(show_duration(Duration::from_millis(5)), "5ms");
        assert_eq!(show_size(8 << 20), "8MiB");
    }

    #[test]
    fn sizes_for_people_are_rounded() {
        const GIB: u64 = 1 << 30;
        let sizes = [0, 1023, 1024, 3 << 19, (1 << 20) - 1, 5 * GIB + 7, GIB << 10, u64::MAX].map(about_size);
        let shown =
            ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "1.0 MiB", "5.0 GiB", "1.0 TiB", "16777216.0 TiB"];
        assert_eq!(sizes, shown);
    }
}
