//! Wall-clock moments as the texts that the hub reads and writes.
//!
//! These texts are shown and sent, never decided upon, so this file holds two conversions and no clock. It knows
//! UTC only.

/// Milliseconds since 1970 as RFC 3339 in UTC with milliseconds: `2026-11-02T08:15:30.123Z`.
///
/// Years above 9999 are shown as the last moment of 9999, because readers of twins expect four digits.
pub fn rfc3339(unix_ms: u64) -> String {
    let unix_ms = unix_ms.min(253_402_300_799_999);
    let (days, ms_of_day) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (seconds, millis) = (ms_of_day / 1000, ms_of_day % 1000);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{millis:03}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Seconds since 1970 as an HTTP `Date` header.
pub fn http_date_text(unix_s: u64) -> String {
    let unix_s = unix_s.min(253_402_300_799);
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    // The first of January 1970 was a Thursday.
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(days % 7).unwrap_or(0)];
    let month = usize::try_from(month).ok().and_then(|month| MONTHS.get(month - 1)).unwrap_or(&"Jan");
    format!(
        "{weekday}, {day:02} {month} {year:04} {:02}:{:02}:{:02} GMT",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Milliseconds since 1970 of an RFC 3339 text in UTC, as hubs, tools and people write it: 0 to 9 digits after the second,
/// `Z`, `z`, `+00:00` or, as the hub does for "never", nothing at the end.
///
/// `None` for every other text, other zones and years before 1970 included.
pub fn from_rfc3339(text: &str) -> Option<u64> {
    let text = text.strip_suffix("+00:00").or(text.strip_suffix(['Z', 'z'])).unwrap_or(text);
    let (date, time) = text.split_once(['T', 't'])?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let number = |text: &str, digits: usize| {
        let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| text.parse::<u64>().ok()).flatten()
    };
    let mut parts = date.split('-');
    let (year, month, day) =
        (number(parts.next()?, 4)?, number(parts.next()?, 2)?, number(parts.next()?, 2)?);
    let mut clock = time.split(':');
    let (hour, minute, second) =
        (number(clock.next()?, 2)?, number(clock.next()?, 2)?, number(clock.next()?, 2)?);
    if parts.next().is_some() || clock.next().is_some() || !(1..=9).contains(&fraction.len()) {
        return None;
    }
    let millis = number(format!("{fraction:0<3}").get(..3)?, 3)?;
    number(fraction, fraction.len())?;
    let real = (1..=12).contains(&month) && (1..=31).contains(&day) && year >= 1970;
    if !real || hour > 23 || minute > 59 || second > 60 || civil(days(year, month, day)) != (year, month, day)
    {
        return None;
    }
    Some((days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1000 + millis)
}

/// Seconds since 1970 of an HTTP `Date` header in its one current form: `Mon, 02 Nov 2026 08:15:30 GMT`.
///
/// `None` for every other text; a missing hint is better than a wrong one.
pub fn http_date(text: &str) -> Option<u64> {
    let (_, rest) = text.trim().split_once(", ")?;
    let mut words = rest.split(' ');
    let day: u64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let year: u64 = words.next()?.parse().ok()?;
    let time = words.next()?;
    if words.next()? != "GMT" || words.next().is_some() || !(1970..=9999).contains(&year) {
        return None;
    }
    let month = u64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let mut parts = time.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 || parts.next().is_some() {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Year, month and day of a day number since 1970 (Howard Hinnant's days algorithm, for dates from 1970 on).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// The day number since 1970 of a date from 1970 on.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y / 400;
    let year_of_era = y % 400;
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * mp + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(ms in 0..253_402_300_800_000_u64) {
            prop_assert_eq!(from_rfc3339(&rfc3339(ms)), Some(ms));
        }

        #[test]
        fn any_text_is_a_moment_or_none(text in "\\PC{0,40}") {
            let _ = from_rfc3339(&text);
        }
    }

    #[test]
    fn moments_of_others() {
        for (text, ms) in [
            ("2026-11-02T08:15:30.1234567Z", 1_793_607_330_123),
            ("2026-11-02T08:15:30z", 1_793_607_330_000),
            ("2026-11-02T08:15:30.1+00:00", 1_793_607_330_100),
            ("2000-02-29T00:00:00", 951_782_400_000),
        ] {
            assert_eq!(from_rfc3339(text), Some(ms), "{text}");
        }
        for bad in [
            "0001-01-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-11-02",
            "2026-11-02T08:15:30+02:00",
            "2026-1-2T08:15:30Z",
            "2026-11-02T08:15:30.Z",
            "2026-11-02T08:15:30.xZ",
            "２026-11-02T08:15:30Z",
        ] {
            assert_eq!(from_rfc3339(bad), None, "{bad}");
        }
    }

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_793_607_330_123), "2026-11-02T08:15:30.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(http_date("Mon, 02 Nov 2026 08:15:30 GMT"), Some(1_793_607_330));
        assert_eq!(http_date_text(1_793_607_330), "Mon, 02 Nov 2026 08:15:30 GMT");
        for bad in [
            "",
            "yesterday",
            "Mon, 2 Foo 2026 08:15:30 GMT",
            "Mon, 02 Nov 2026 08:15 GMT",
            "Mon, 02 Nov 0 1:1:1 GMT",
        ] {
            assert_eq!(http_date(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_date_and_back(day in 0_u64..2_900_000) {
            let (y, m, d) = civil(day);
            prop_assert!((1..=12).contains(&m) && (1..=31).contains(&d));
            prop_assert_eq!(days(y, m, d), day);
            prop_assert_eq!(http_date(&http_date_text(day * 86_400 + 4321)), Some(day * 86_400 + 4321));
        }

        #[test]
        fn no_text_upsets_it(text in ".{0,40}") {
            let _ = http_date(&text);
        }
    }
}
