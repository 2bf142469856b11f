//! Times: the protocol's own (microseconds since 2000), and `timestamptz` as PostgreSQL prints it with `DateStyle = ISO`.

use std::time::{SystemTime, UNIX_EPOCH};

/// 2000-01-01 UTC, in microseconds since 1970.
const EPOCH_2000_US: i64 = 946_684_800_000_000;
const SECOND_US: i64 = 1_000_000;
const DAY_S: i64 = 86_400;

/// Microseconds since 2000-01-01 UTC, as the protocol tells times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgTime(pub i64);

impl PgTime {
    /// The system clock.
    pub fn now() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        PgTime(i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX).saturating_sub(EPOCH_2000_US))
    }

    /// Microseconds since 1970-01-01 UTC; saturates.
    pub fn unix_us(self) -> i64 {
        self.0.saturating_add(EPOCH_2000_US)
    }
}

/// A text is not a `timestamptz` that an event can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimestampError {
    /// Another format, or no such day or time.
    #[error("not YYYY-MM-DD HH:MM:SS[.ffffff]±HH[:MM[:SS]] (DateStyle must be ISO)")]
    Malformed,
    /// `infinity` or `-infinity`.
    #[error("infinite")]
    Infinite,
    /// Before the year 1.
    #[error("before the year 1")]
    BeforeYearOne,
    /// Does not fit 64 bits of microseconds since 1970.
    #[error("too far in the future")]
    OutOfRange,
}

/// Microseconds since 1970-01-01 UTC of a `timestamptz` in ISO style.
///
/// Rule: PostgreSQL documentation, "Date/Time Output"; the zone is always an offset there, to the second for historic
/// local times.
///
/// # Errors
/// See [`TimestampError`].
pub fn parse_us(text: &[u8]) -> Result<i64, TimestampError> {
    if matches!(text, b"infinity" | b"-infinity") {
        return Err(TimestampError::Infinite);
    }
    let (text, before_year_one) = match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let fields = fields(text).ok_or(TimestampError::Malformed)?;
    if before_year_one {
        return Err(TimestampError::BeforeYearOne);
    }
    let seconds =
        days_since_1970(fields.year, fields.month, fields.day) * DAY_S + fields.second - fields.offset_s;
    seconds
        .checked_mul(SECOND_US)
        .and_then(|us| us.checked_add(fields.fraction_us))
        .ok_or(TimestampError::OutOfRange)
}

struct Fields {
    year: i64,
    month: i64,
    day: i64,
    /// Of the day.
    second: i64,
    fraction_us: i64,
    /// East of UTC.
    offset_s: i64,
}

fn fields(text: &[u8]) -> Option<Fields> {
    let mut scan = Scan(text);
    let year = scan.number(4, 6, i64::MAX).filter(|year| *year > 0)?;
    scan.byte(b'-')?;
    let month = scan.number(2, 2, 12).filter(|month| *month > 0)?;
    scan.byte(b'-')?;
    let day = scan.number(2, 2, days_in_month(year, month)).filter(|day| *day > 0)?;
    scan.byte(b' ')?;
    let hour = scan.number(2, 2, 23)?;
    scan.byte(b':')?;
    let minute = scan.number(2, 2, 59)?;
    scan.byte(b':')?;
    let second = scan.number(2, 2, 59)?;
    let fraction_us = if scan.byte(b'.').is_some() { scan.fraction_us()? } else { 0 };
    let sign = if scan.byte(b'-').is_some() { -1 } else { scan.byte(b'+').map(|()| 1)? };
    let mut offset_s = scan.number(2, 2, 15)? * 3600;
    if scan.byte(b':').is_some() {
        offset_s += scan.number(2, 2, 59)? * 60;
        if scan.byte(b':').is_some() {
            offset_s += scan.number(2, 2, 59)?;
        }
    }
    let second = hour * 3600 + minute * 60 + second;
    scan.0.is_empty().then_some(Fields { year, month, day, second, fraction_us, offset_s: sign * offset_s })
}

/// What is left to read.
struct Scan<'a>(&'a [u8]);

impl Scan<'_> {
    fn byte(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        (*first == byte).then(|| self.0 = rest)
    }

    fn digit(&mut self) -> Option<i64> {
        let (first, rest) = self.0.split_first()?;
        first.is_ascii_digit().then(|| {
            self.0 = rest;
            i64::from(first - b'0')
        })
    }

    /// A number of `digits_min` to `digits_max` (few) digits and at most `max`.
    fn number(&mut self, digits_min: usize, digits_max: usize, max: i64) -> Option<i64> {
        let (mut number, mut digits) = (0, 0);
        while digits < digits_max
            && let Some(digit) = self.digit()
        {
            number = number * 10 + digit;
            digits += 1;
        }
        (digits >= digits_min && number <= max).then_some(number)
    }

    /// One to six digits after the point.
    fn fraction_us(&mut self) -> Option<i64> {
        let mut fraction = self.digit()?;
        for _ in 1..6 {
            fraction = fraction * 10 + self.digit().unwrap_or(0);
        }
        Some(fraction)
    }
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the Gregorian calendar, for years above 0. The year is taken to begin in March, so that the
/// leap day is its last and the days before a month follow one formula.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    const DAYS_BEFORE_1970: i64 = 719_468;
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - DAYS_BEFORE_1970
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use time::{OffsetDateTime, UtcOffset};

    use super::*;

    /// As PostgreSQL prints it: trailing zeros of the fraction and of the offset are left out.
    fn print(us: i64, offset_s: i32) -> Option<String> {
        let offset = UtcOffset::from_whole_seconds(offset_s).unwrap();
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000).unwrap();
        let at = at.checked_to_offset(offset).filter(|at| at.year() > 0)?;
        let (date, (hour, minute, second)) = (at.date(), (at.hour(), at.minute(), at.second()));
        let mut text = format!("{date} {hour:02}:{minute:02}:{second:02}");
        if at.microsecond() > 0 {
            text += format!(".{:06}", at.microsecond()).trim_end_matches('0');
        }
        let (h, m, s) = (offset_s.abs() / 3600, offset_s.abs() / 60 % 60, offset_s.abs() % 60);
        text += &format!("{}{h:02}", if offset_s < 0 { '-' } else { '+' });
        if m != 0 || s != 0 {
            text += &format!(":{m:02}");
        }
        if s != 0 {
            text += &format!(":{s:02}");
        }
        Some(text)
    }

    #[test]
    fn what_postgresql_prints() {
        for (text, us) in [
            ("1970-01-01 00:00:00+00", 0),
            ("1969-12-31 23:59:59.999999+00", -1),
            ("2000-01-01 00:00:00+00", EPOCH_2000_US),
            ("2024-02-29 12:34:56.7+05:45", 1_709_189_396_700_000),
            ("2024-02-29 12:34:56.07-03:30", 1_709_222_696_070_000),
            ("1890-01-01 00:00:00+00:53:28", -2_524_524_808_000_000),
            ("0001-01-01 00:00:00+00", -62_135_596_800_000_000),
            ("9999-12-31 23:59:59.999999+00", 253_402_300_799_999_999),
            ("10000-01-01 05:59:59+06", 253_402_300_799_000_000),
        ] {
            assert_eq!(parse_us(text.as_bytes()), Ok(us), "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        use TimestampError::{BeforeYearOne, Infinite, Malformed, OutOfRange};
        for (text, error) in [
            ("infinity", Infinite),
            ("-infinity", Infinite),
            ("0001-12-31 19:00:00-05 BC", BeforeYearOne),
            ("294276-12-31 23:59:59+00", OutOfRange),
            ("", Malformed),
            ("2024-02-29 12:34:56", Malformed),
            ("2024-02-29 12:34:56Z", Malformed),
            ("2024-02-29T12:34:56+00", Malformed),
            ("2024-02-29 12:34:56.+00", Malformed),
            ("2024-02-29 12:34:56.1234567+00", Malformed),
            ("2024-02-29 12:34:56+00:", Malformed),
            ("2024-02-29 12:34:56+00 ", Malformed),
            ("2024-02-29 12:34:56+16", Malformed),
            ("2024-02-29 24:00:00+00", Malformed),
            ("2024-02-29 12:60:00+00", Malformed),
            ("2023-02-29 12:34:56+00", Malformed),
            ("1900-02-29 12:34:56+00", Malformed),
            ("2024-00-01 12:34:56+00", Malformed),
            ("2024-13-01 12:34:56+00", Malformed),
            ("2024-01-00 12:34:56+00", Malformed),
            ("0000-01-01 12:34:56+00", Malformed),
            ("24-01-01 12:34:56+00", Malformed),
            ("29.02.2024 12:34:56 UTC", Malformed),
            ("Thu 29 Feb 12:34:56 2024 UTC", Malformed),
            ("BC", Malformed),
            (" BC", Malformed),
        ] {
            assert_eq!(parse_us(text.as_bytes()), Err(error), "{text}");
        }
    }

    #[test]
    fn protocol_times() {
        assert_eq!(PgTime(0).unix_us(), EPOCH_2000_US);
        assert_eq!(PgTime(i64::MAX).unix_us(), i64::MAX);
        assert!(PgTime::now().unix_us() > EPOCH_2000_US + 20 * 365 * DAY_S * SECOND_US);
    }

    proptest! {
        #[test]
        fn any_time_in_any_zone(
            us in -62_135_596_800_000_000_i64..253_402_300_800_000_000,
            zone in prop_oneof![Just(0), -57_599..57_600_i32, (-15..16_i32).prop_map(|h| h * 3600)],
        ) {
            if let Some(text) = print(us, zone) {
                prop_assert_eq!(parse_us(text.as_bytes()), Ok(us), "{}", text);
            }
        }

        #[test]
        fn never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            near in "[0-9]{1,7}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\\.[0-9]{0,7})?[+-]?[0-9:]{0,9}( BC)?",
        ) {
            let _ = parse_us(&bytes);
            let _ = parse_us(near.as_bytes());
        }
    }
}
