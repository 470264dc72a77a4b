//! Dates and spans as people read them. UTC only: devices of one site may have different zones.

/// `2026-11-02 08:15:30.123` for milliseconds since 1970.
pub(super) fn date(unix_ms: u64) -> String {
    let (seconds, ms) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{ms:03}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// `date` without milliseconds.
pub(super) fn date_seconds(unix_ms: u64) -> String {
    let mut text = date(unix_ms);
    text.truncate(text.len() - 4);
    text
}

/// Year, month and day of the day `days` after 1970-01-01 (Howard Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// `350 ms`, `12 s`, `4 min`, `3 h`, `5 d`: one number, rounded down.
pub(super) fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{}.{} s", ms / 1000, ms / 100 % 10),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} d", ms / 86_400_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        assert_eq!(date(0), "1970-01-01 00:00:00.000");
        assert_eq!(date(951_827_696_789), "2000-02-29 12:34:56.789");
        assert_eq!(date(1_793_607_330_123), "2026-11-02 08:15:30.123");
        assert_eq!(date_seconds(4_102_444_799_999), "2099-12-31 23:59:59");
        assert!(!date(u64::MAX).is_empty());
    }

    #[test]
    fn spans_are_short() {
        let all = [999, 1_250, 60_000, 240_000, 7_200_000, 432_000_000].map(span);
        assert_eq!(all, ["999 ms", "1.2 s", "60 s", "4 min", "2 h", "5 d"]);
    }
}
