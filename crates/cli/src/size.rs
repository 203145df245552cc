//! Sizes as typed by users: `8GiB`, `500MB`.

use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// Names of powers of 1000 and of 1024.
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not a size: expected a number with B, MB, GB, MiB or GiB, such as 8GiB, or 0");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let bytes = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, bytes)) => *bytes,
            // Zero needs no unit.
            None if unit.is_empty() && number == 0.0 => 1,
            None => return Err(wrong()),
        };
        Ok(Self((number * bytes as f64) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, bytes: Option<u64>) {
        assert_eq!(text.parse::<Size>().ok(), bytes.map(Size), "{text}");
    }

    #[test]
    fn sizes() {
        check("8GiB", Some(8 << 30));
        check("500MB", Some(500_000_000));
        check("1.5 gib", Some(3 << 29));
        check("0", Some(0));
        check("0.0KB", Some(0));
        check("12B", Some(12));
        check("2TiB", Some(2 << 40));
        for wrong in ["", "8", "8G", "GiB", "-1GiB", "1.2.3GiB", "8GiBs", "8 Gi B", "1e3MB", "NaN", "inf", "٣GiB"] {
            check(wrong, None);
        }
    }

    #[test]
    fn errors_give_an_example() {
        let error = "8G".parse::<Size>().unwrap_err();
        assert!(error.contains("`8G`") && error.contains("8GiB"), "{error}");
    }
}
