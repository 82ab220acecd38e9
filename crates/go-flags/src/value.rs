//! Values as Go's `strconv.ParseBool` and `time.ParseDuration` read them.

use std::{fmt::Write as _, time::Duration};

use thiserror::Error;

/// A value that Go would not take either.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidValue {
    /// Not one of Go's words for true and false.
    #[error(
        "{0:?} is not a boolean: use 1, t, T, true, True, TRUE or 0, f, F, false, False, FALSE"
    )]
    Boolean(String),
    /// Not a duration.
    #[error("{0:?} is not a duration such as 300ms, 1.5h or 2m30s")]
    Duration(String),
    /// A duration that none of our flags has a use for.
    #[error("duration {0:?} is negative")]
    Negative(String),
    /// More than Go's `time.Duration` holds, 2^63 - 1 ns.
    #[error("duration {0:?} is longer than 292 years")]
    TooLong(String),
}

/// Parses a boolean as `strconv.ParseBool`.
///
/// # Errors
/// [`InvalidValue::Boolean`].
pub fn boolean(text: &str) -> Result<bool, InvalidValue> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(InvalidValue::Boolean(text.to_owned())),
    }
}

/// Parses a duration as `time.ParseDuration`: decimal numbers, each with a
/// unit of `ns`, `us`, `µs`, `ms`, `s`, `m` or `h`, one after the other; `0`
/// needs no unit. A fraction below a nanosecond is dropped.
///
/// # Errors
/// What Go rejects, and negative durations.
pub fn duration(text: &str) -> Result<Duration, InvalidValue> {
    let invalid = || InvalidValue::Duration(text.to_owned());
    let too_long = || InvalidValue::TooLong(text.to_owned());
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit = unit_nanoseconds(&after[..unit_end]).ok_or_else(invalid)?;
        rest = &after[unit_end..];
        if whole.len() > 19 {
            return Err(too_long());
        }
        let whole: u128 =
            if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total += whole * unit + fraction_of(fraction, unit);
    }
    let nanoseconds = i64::try_from(total).map_err(|_| too_long())?.unsigned_abs();
    if negative && nanoseconds > 0 {
        return Err(InvalidValue::Negative(text.to_owned()));
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Writes a duration so that [`duration`] reads it back, in the largest units
/// that are whole: `1h30m`, `1500ms`, `0s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let nanoseconds = duration.subsec_nanos();
    if nanoseconds != 0 {
        let total = duration.as_nanos();
        for (unit, size) in [("ms", 1_000_000), ("us", 1_000)] {
            if total.is_multiple_of(size) {
                return format!("{}{unit}", total / size);
            }
        }
        return format!("{total}ns");
    }
    let mut text = String::new();
    for (count, unit) in [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')] {
        if count != 0 {
            // A string takes everything.
            let _ = write!(text, "{count}{unit}");
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn unit_nanoseconds(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        // U+00B5 micro sign and U+03BC Greek mu, as Go.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `0.<fraction>` of a unit; what lies below a nanosecond is dropped.
fn fraction_of(fraction: &str, unit: u128) -> u128 {
    // An hour has 13 digits of nanoseconds: 20 digits of fraction decide.
    let kept = &fraction[..fraction.len().min(20)];
    let (mut value, mut scale) = (0, 1);
    for digit in kept.bytes() {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    value * unit / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn booleans() {
        for yes in ["1", "t", "T", "true", "TRUE", "True"] {
            assert_eq!(boolean(yes), Ok(true));
        }
        for no in ["0", "f", "F", "false", "FALSE", "False"] {
            assert_eq!(boolean(no), Ok(false));
        }
        for bad in ["", "yes", "tRUE", "true ", "2"] {
            assert!(boolean(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn durations() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("+0", 0),
            ("-0", 0),
            ("0s", 0),
            ("-0s", 0),
            ("5s", 5_000_000_000),
            ("+5s", 5_000_000_000),
            ("5.s", 5_000_000_000),
            (".5s", 500_000_000),
            ("1.004s", 1_004_000_000),
            ("1h30m", 5_400_000_000_000),
            ("10.5s4m", 250_500_000_000),
            ("2m3.5s", 123_500_000_000),
            ("11us", 11_000),
            ("12\u{b5}s", 12_000),
            ("12\u{3bc}s", 12_000),
            ("39h9m14.425s", 140_954_425_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000 - 1),
            ("0.100000000000000000000h", 360_000_000_000),
            ("9223372036854775807ns", i64::MAX as u64),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
        for bad in
            ["", "3", "-", "s", ".", "-.", ".s", "+.s", "1 day", "1d", "5 s", "1h 2m", "1e3s", "é"]
        {
            assert_eq!(duration(bad), Err(InvalidValue::Duration(bad.into())), "{bad:?}");
        }
        assert!(matches!(duration("-1s"), Err(InvalidValue::Negative(_))));
        for long in ["9223372036854775808ns", "99999999999999999999h", "3000000h"] {
            assert!(matches!(duration(long), Err(InvalidValue::TooLong(_))), "{long}");
        }
    }

    #[test]
    fn formatted_durations_read_back() {
        for (nanoseconds, text) in [
            (0, "0s"),
            (60_000_000_000, "1m"),
            (5_400_000_000_000, "1h30m"),
            (1_500_000_000, "1500ms"),
            (1_500, "1500ns"),
            (15_000, "15us"),
        ] {
            let value = Duration::from_nanos(nanoseconds);
            assert_eq!(format_duration(value), text);
            assert_eq!(duration(text), Ok(value));
        }
    }
}
