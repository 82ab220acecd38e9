//! Durations as Go prints them, because people and scripts read them in the
//! Events: `12.345µs`, `123.456789ms`, `1m2.003s`.

use std::{fmt, time::Duration};

/// Prints a duration like `time.Duration.String` of Go: the largest unit that
/// fits below a second, hours, minutes and seconds above, every digit and no
/// trailing zeros.
pub(crate) struct GoDuration(pub(crate) Duration);

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MICRO: u64 = 1_000;
        const MILLI: u64 = 1_000_000;
        const SECOND: u64 = 1_000_000_000;
        let nanos = u64::from(self.0.subsec_nanos());
        let seconds = self.0.as_secs();
        if seconds == 0 {
            return match nanos {
                0 => f.write_str("0s"),
                n if n < MICRO => write!(f, "{n}ns"),
                n if n < MILLI => decimal(f, n, MICRO, "µs"),
                n => decimal(f, n, MILLI, "ms"),
            };
        }
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        if hours > 0 {
            write!(f, "{hours}h")?;
        }
        if seconds >= 60 {
            write!(f, "{minutes}m")?;
        }
        decimal(f, seconds % 60 * SECOND + nanos, SECOND, "s")
    }
}

/// `value / unit` with as many decimals as it needs.
fn decimal(f: &mut fmt::Formatter<'_>, value: u64, unit: u64, name: &str) -> fmt::Result {
    write!(f, "{}", value / unit)?;
    let mut fraction = value % unit;
    if fraction > 0 {
        let mut digits = unit.ilog10() as usize;
        while fraction.is_multiple_of(10) {
            fraction /= 10;
            digits -= 1;
        }
        write!(f, ".{fraction:0digits$}")?;
    }
    f.write_str(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_go_prints_them() {
        for (nanos, text) in [
            (0, "0s"),
            (12, "12ns"),
            (999, "999ns"),
            (1_000, "1µs"),
            (12_345, "12.345µs"),
            (1_100_000, "1.1ms"),
            (123_456_789, "123.456789ms"),
            (100_000_000, "100ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (1_000_000_001, "1.000000001s"),
            (60_000_000_000, "1m0s"),
            (62_003_000_000, "1m2.003s"),
            (3_600_000_000_000, "1h0m0s"),
            (90_061_000_000_001, "25h1m1.000000001s"),
        ] {
            assert_eq!(GoDuration(Duration::from_nanos(nanos)).to_string(), text);
        }
    }

    proptest! {
        /// Read back by the units, the text means the same duration.
        #[test]
        fn no_digit_is_lost(nanos in any::<u64>()) {
            let text = GoDuration(Duration::from_nanos(nanos)).to_string();
            let mut rest = text.as_str();
            let mut sum = 0u128;
            while !rest.is_empty() {
                let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap();
                let (number, tail) = rest.split_at(end);
                let units = [("h", 3_600_000_000_000u128), ("ms", 1_000_000), ("m", 60_000_000_000),
                    ("s", 1_000_000_000), ("µs", 1_000), ("ns", 1)];
                let (name, unit) = units.into_iter().find(|(name, _)| tail.starts_with(name)).unwrap();
                let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
                sum += whole.parse::<u128>().unwrap() * unit;
                if !fraction.is_empty() {
                    prop_assert!(!fraction.ends_with('0'));
                    sum += fraction.parse::<u128>().unwrap() * unit / 10u128.pow(u32::try_from(fraction.len()).unwrap());
                }
                rest = &tail[name.len()..];
            }
            prop_assert_eq!(sum, u128::from(nanos));
        }
    }
}
