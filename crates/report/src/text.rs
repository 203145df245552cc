//! Numbers as people read them.

/// `831.2 KiB`.
pub(crate) fn bytes(n: u64) -> String {
    let n = n as f64;
    let (unit, size) = match n {
        ..1024.0 => return format!("{n:.0} bytes"),
        ..1_048_576.0 => ("KiB", 1024.0),
        ..1_073_741_824.0 => ("MiB", 1_048_576.0),
        _ => ("GiB", 1_073_741_824.0),
    };
    format!("{} {unit}", short(n / size))
}

/// `21 s`, `3 min 43 s`, `2 h 5 min`.
pub(crate) fn seconds(secs: f64) -> String {
    if secs < 60.0 {
        return format!("{} s", short(secs));
    }
    let whole = secs.round() as u64;
    match whole {
        ..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

/// `3.1 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{} %", short(100.0 * share))
}

/// Three or four digits that count: `0.0451`, `4.51`, `451`.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    let digits = match size {
        0.0 => return "0".to_owned(),
        1000.0.. => 0,
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        0.1.. => 3,
        0.001.. => 4,
        _ => return format!("{value:.2e}"),
    };
    format!("{value:.digits$}")
}

/// `1 block`, `4 blocks`.
pub(crate) fn count(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// The last part of a path or of a hub id.
pub(crate) fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// A date and time in UTC, `2026-11-30 19:33 UTC`, of seconds since 1970.
pub(crate) fn date(unix: u64) -> String {
    // Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    let (days, secs) = ((unix / 86400) as i64 + 719_468, unix % 86400);
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", secs / 3600, secs % 3600 / 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([bytes(512), bytes(851_136), bytes(190_767_104)], ["512 bytes", "831 KiB", "182 MiB"]);
        assert_eq!([seconds(21.36), seconds(223.0), seconds(7500.0)], ["21.4 s", "3 min 43 s", "2 h 5 min"]);
        assert_eq!(
            [short(18.2555), short(0.0451), short(4.1e-5), short(60323.4)],
            ["18.3", "0.0451", "4.10e-5", "60323"]
        );
        assert_eq!([percent(0.3861), count(1, "epoch"), count(2, "epoch")], ["38.6 %", "1 epoch", "2 epochs"]);
    }

    #[test]
    fn dates_by_the_calendar() {
        assert_eq!(
            [date(0), date(951_782_400), date(1_796_067_222)],
            ["1970-01-01 00:00 UTC", "2000-02-29 00:00 UTC", "2026-11-30 19:33 UTC"]
        );
    }
}
