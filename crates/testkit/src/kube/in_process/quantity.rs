//! Kubernetes quantities: exact comparison, and the one spelling that the API
//! server turns all others into.

use serde_json::Value;

use super::refusal::Refusal;

/// An amount in thousand-millionths, which is as fine as Kubernetes counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount(i128);

const ONE: i128 = 1_000_000_000;

const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
/// Powers of ten above [`Amount`]'s unit, largest first.
const DECIMAL: [(&str, u32); 10] = [
    ("E", 27),
    ("P", 24),
    ("T", 21),
    ("G", 18),
    ("M", 15),
    ("k", 12),
    ("", 9),
    ("m", 6),
    ("u", 3),
    ("n", 0),
];

impl Amount {
    pub(super) const ZERO: Self = Self(0);

    /// Reads a string or a number; none if it is no quantity.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let end =
            text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (numerator, scale) = decimal(number)?;
        let scaled = |factor: i128| {
            let product = numerator.checked_mul(factor)?;
            // Finer than the unit is rounded away from zero.
            Some(Self((product + product.signum() * (scale - 1)) / scale))
        };
        if let Some((_, bits)) = BINARY.iter().find(|(name, _)| *name == suffix) {
            return scaled(ONE << bits);
        }
        if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
            return scaled(10i128.checked_pow(*power)?);
        }
        let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
        let power = u32::try_from(exponent.checked_add(9)?).ok()?;
        scaled(10i128.checked_pow(power)?)
    }

    /// The server's spelling, in the family that `like` is written in.
    fn spelled(self, like: &str) -> String {
        if BINARY.iter().any(|(suffix, _)| like.ends_with(suffix))
            && self.0 % ONE == 0
            && self.0.abs() >= 1024 * ONE
        {
            let whole = self.0 / ONE;
            let (suffix, bits) = BINARY
                .iter()
                .rev()
                .find(|(_, bits)| whole % (1 << bits) == 0)
                .map_or(("", 0), |(s, b)| (*s, *b));
            return format!("{}{suffix}", whole >> bits);
        }
        let fits = |power: &u32| self.0 % 10i128.pow(*power) == 0;
        let (suffix, power) =
            DECIMAL.iter().find(|(_, power)| fits(power)).copied().unwrap_or(("n", 0));
        let (suffix, power) = if self.0 == 0 { ("", 9) } else { (suffix, power) };
        format!("{}{suffix}", self.0 / 10i128.pow(power))
    }
}

/// "1.25" as 125 and 100.
fn decimal(text: &str) -> Option<(i128, i128)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let scale = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some((format!("{whole}{fraction}").parse().ok()?, scale))
}

/// Spells every quantity in a map of resources as the server does.
pub(super) fn spell(resources: &mut Value) -> Result<(), Refusal> {
    for (name, value) in resources.as_object_mut().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let Some(amount) = Amount::of(value) else {
            let message = format!("unable to parse quantity's suffix: {name} is {value}");
            return Err(Refusal::bad_request(message));
        };
        *value = amount.spelled(&text).into();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spells_like_the_server() {
        let cases = [
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("0", "0"),
            ("0m", "0"),
            ("128Mi", "128Mi"),
            ("1024Ki", "1Mi"),
            ("0.5Gi", "512Mi"),
            ("1024", "1024"),
            ("1e3", "1k"),
            ("2000", "2k"),
            ("128974848", "128974848"),
        ];
        for (text, expected) in cases {
            assert_eq!(Amount::parse(text).unwrap().spelled(text), expected, "{text}");
        }
    }

    #[test]
    fn compares_by_value_and_knows_what_is_none() {
        assert_eq!(Amount::parse("1Ki"), Amount::parse("1024"));
        assert!(Amount::parse("1m") < Amount::parse("0.0011"));
        for none in ["", "1x", "m", "1.2.3", "1e"] {
            assert_eq!(Amount::parse(none), None, "{none:?}");
        }
    }
}
