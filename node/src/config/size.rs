//! Sizes in bytes as people write them: `64MiB`, `64mb`, `1048576`.
//!
//! Every unit is a power of 1,024, as in Redis, where `kb` is 1,024 too. A bare `k`, `m` or `g` is
//! refused: it means 1,000 to some tools and 1,024 to others. So are fractions and signs.

/// Unit names in lower case with the bytes they stand for, largest first.
const UNITS: [(&str, &str, u64); 4] = [
    ("TiB", "tb", 1 << 40),
    ("GiB", "gb", 1 << 30),
    ("MiB", "mb", 1 << 20),
    ("KiB", "kb", 1 << 10),
];

/// Reads a size; `None` when `text` is not one or does not fit 64 bits.
///
/// Digits, then optionally a unit in any case, with spaces allowed between: `512`, `512b`, `4KiB`,
/// `4 kb`, `64MiB`, `1gb`, `2TiB`.
pub fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits_len = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_len);
    let count: u64 = digits.parse().ok()?;
    let unit = unit.trim_start();
    if unit.is_empty() || unit.eq_ignore_ascii_case("b") {
        return Some(count);
    }
    let (_, _, scale) = UNITS.iter().find(|(long, short, _)| {
        unit.eq_ignore_ascii_case(long) || unit.eq_ignore_ascii_case(short)
    })?;
    count.checked_mul(*scale)
}

/// Writes a size with the largest unit that divides it, so that [`parse`] gives it back exactly.
pub fn format(bytes: u64) -> String {
    let unit = UNITS.iter().find(|(_, _, scale)| bytes != 0 && bytes.is_multiple_of(*scale));
    match unit {
        Some((name, _, scale)) => format!("{}{name}", bytes / scale),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::{format, parse};
    use proptest::prelude::*;

    #[test]
    fn accepted_forms_mean_what_they_say() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("512b", 512),
            ("64MiB", 64 << 20),
            ("64mb", 64 << 20),
            ("64 MB", 64 << 20),
            (" 4kib ", 4096),
            ("1gb", 1 << 30),
            ("2TiB", 2 << 40),
            ("16777215TiB", 16_777_215 << 40),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn ambiguous_and_malformed_sizes_are_refused() {
        for text in [
            "",
            " ",
            "MiB",
            "64m",
            "64k",
            "64G",
            "-1",
            "+1",
            "1.5MiB",
            "1e6",
            "64 M iB",
            "0x40",
            "64MiBs",
            "１",
            "18446744073709551616",
            "16777216TiB",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn sizes_are_written_with_the_largest_exact_unit() {
        assert_eq!(format(0), "0");
        assert_eq!(format(1023), "1023");
        assert_eq!(format(64 << 20), "64MiB");
        assert_eq!(format((1 << 30) + 1024), "1048577KiB");
    }

    proptest! {
        #[test]
        fn every_size_survives_writing_and_reading(count in any::<u64>(), shift in 0_u32..64) {
            let bytes = count >> shift << shift;
            prop_assert_eq!(parse(&format(bytes)), Some(bytes));
            prop_assert_eq!(parse(&bytes.to_string()), Some(bytes));
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
