//! Durations as people write them: `400ms`, `2s`, `1.5s`, `10m`.
//!
//! One number and one unit. No default unit: `hold = 400` does not say what was meant.

use std::time::Duration;

const UNITS: &[(&str, u64)] = &[
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Reads a duration such as `400ms`. `None` if it is not one, or is longer than 500 years.
pub fn parse(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim_start();
    let (_, unit_ns) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.len() <= 9 => (whole, fraction),
        Some(_) => return None,
        None => (number, ""),
    };
    let mut ns = whole.parse::<u64>().ok()?.checked_mul(*unit_ns)?;
    if !fraction.is_empty() {
        let power = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(*unit_ns) / power;
        ns = ns.checked_add(u64::try_from(part).ok()?)?;
    }
    Some(Duration::from_nanos(ns))
}

/// Writes a duration the way [`parse`] reads it, in the largest unit that keeps it whole.
pub fn show(duration: Duration) -> String {
    let ns = duration.as_nanos();
    for (name, unit_ns) in UNITS.iter().rev() {
        if ns > 0 && ns.is_multiple_of(u128::from(*unit_ns)) {
            return format!("{}{name}", ns / u128::from(*unit_ns));
        }
    }
    format!("{}us", duration.as_micros())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(parse("400ms"), Some(Duration::from_millis(400)));
        assert_eq!(parse(" 2 s "), Some(Duration::from_secs(2)));
        assert_eq!(parse("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(parse("10m"), Some(Duration::from_secs(600)));
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        for wrong in
            ["", "400", "s", "4 00ms", "-1s", "1e3s", "1.s", ".5s", "2 weeks", "99999999999999d", "1.2.3s"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn shows_what_it_reads(us in 0u64..u64::MAX / 1000) {
            let d = Duration::from_micros(us);
            prop_assert_eq!(parse(&show(d)), Some(d));
        }

        #[test]
        fn never_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
