//! Kubernetes quantities, compared by value and passed on as they are written.
//!
//! The crate `kube_quantity` is not used: it can't read `12E`, which the API
//! server may send, and it brings a decimal type for what one integer holds.

use std::{cmp::Ordering, fmt};

/// A quantity such as `100m` or `128Mi`. Equal when the values are equal,
/// whatever the writing: `0.1` is `100m`.
#[derive(Debug, Clone)]
pub(crate) struct Quantity {
    text: Box<str>,
    /// Value in billionths, the finest that Kubernetes keeps.
    nanos: i128,
}

impl Quantity {
    /// Reads `<sign><digits>[.<digits>]<suffix>` as `resource.ParseQuantity`
    /// of apimachinery does. `None` when it isn't one, or is beyond what an
    /// API object can mean.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let nanos = parse_nanos(text)?;
        Some(Self { text: text.into(), nanos })
    }

    /// Its value in billionths.
    pub(crate) fn nanos(&self) -> i128 {
        self.nanos
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.nanos == 0
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Digits read at most: more than any real quantity has, and few enough that
/// the largest suffix doesn't overflow.
const MAX_DIGITS: usize = 20;

fn parse_nanos(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || whole.len() + fraction.len() == 0 {
        return None;
    }
    if whole.len() + fraction.len() > MAX_DIGITS {
        return None;
    }
    let mantissa = whole
        .bytes()
        .chain(fraction.bytes())
        .fold(0i128, |value, digit| value * 10 + i128::from(digit - b'0'));
    let decimals = i32::try_from(fraction.len()).ok()?;

    let scaled = match suffix_of(suffix)? {
        Suffix::Decimal(exponent) => ten_to(mantissa, exponent + 9 - decimals)?,
        Suffix::Binary(shift) => ten_to(mantissa.checked_mul(1 << shift)?, 9 - decimals)?,
    };
    Some(if negative { -scaled } else { scaled })
}

enum Suffix {
    /// Power of ten.
    Decimal(i32),
    /// Power of two.
    Binary(u32),
}

fn suffix_of(suffix: &str) -> Option<Suffix> {
    Some(match suffix {
        "n" => Suffix::Decimal(-9),
        "u" => Suffix::Decimal(-6),
        "m" => Suffix::Decimal(-3),
        "" => Suffix::Decimal(0),
        "k" => Suffix::Decimal(3),
        "M" => Suffix::Decimal(6),
        "G" => Suffix::Decimal(9),
        "T" => Suffix::Decimal(12),
        "P" => Suffix::Decimal(15),
        "E" => Suffix::Decimal(18),
        "Ki" => Suffix::Binary(10),
        "Mi" => Suffix::Binary(20),
        "Gi" => Suffix::Binary(30),
        "Ti" => Suffix::Binary(40),
        "Pi" => Suffix::Binary(50),
        "Ei" => Suffix::Binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            // `parse` takes a sign, and refuses what is not a number.
            Suffix::Decimal(exponent.parse().ok().filter(|e| (-30..=30).contains(e))?)
        }
    })
}

/// `value * 10^exponent`, rounded away from zero like apimachinery does with
/// what is finer than a billionth.
fn ten_to(value: i128, exponent: i32) -> Option<i128> {
    let power = 10i128.checked_pow(exponent.unsigned_abs())?;
    if exponent >= 0 {
        value.checked_mul(power)
    } else {
        Some(value / power + i128::from(value % power != 0))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|| panic!("{text:?}"))
    }

    #[test]
    fn equal_by_value() {
        for (a, b) in [
            ("0.1", "100m"),
            ("1", "1000m"),
            ("1Ki", "1024"),
            ("1e3", "1k"),
            ("1E3", "1000"),
            ("12E", "12000P"),
            ("0", "0Mi"),
            ("0.5Gi", "512Mi"),
            ("1.", "1"),
            (".5", "500m"),
            ("0.1n", "1n"),
            ("+5", "5"),
            ("1e-3", "1m"),
        ] {
            assert_eq!(q(a), q(b), "{a} {b}");
        }
        assert!(q("1m") < q("2m") && q("-1") < q("0") && q("1Ki") > q("1k"));
        assert_eq!(q("0.1").to_string(), "0.1");
    }

    #[test]
    fn not_a_quantity() {
        for text in
            ["", "-", ".", "m", "1.2.3", "1 ", " 1", "1ki", "1mm", "1e", "1e99", "1i", "ä", "0x1"]
        {
            assert!(Quantity::parse(text).is_none(), "{text:?}");
        }
        assert!(Quantity::parse(&"9".repeat(21)).is_none());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn number_shaped_text_never_panics(text in "[+-]?[0-9.]{0,24}(n|u|m|k|M|G|T|P|E|Ki|Ei|e[0-9-]{0,3})?") {
            let _ = Quantity::parse(&text);
        }

        #[test]
        fn milli_and_whole_agree(value in 0u32..) {
            prop_assert_eq!(q(&format!("{value}")), q(&format!("{}m", u64::from(value) * 1000)));
            prop_assert_eq!(q(&format!("{value}Mi")), q(&format!("{}Ki", u64::from(value) * 1024)));
            let more = q(&format!("{}", u64::from(value) + 1));
            prop_assert!(q(&format!("{value}")) < more, "{}", value);
        }
    }
}
