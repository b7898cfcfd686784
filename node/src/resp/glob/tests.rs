//! What KEYS of redis-server 7.0.15 answers, and what it would take too long to answer.

use super::matches;

const KEYS: &[&[u8]] = &[
    b"a",
    b"b",
    b"ab",
    b"abc",
    b"hello",
    b"hallo",
    b"hxllo",
    b"heello",
    b"hllo",
    b"hbllo",
    b"*",
    b"a*c",
    b"[a]",
    b"a-c",
    b"-",
    b"]",
    b"\\",
    b"^",
    b"a\\b",
    b"?",
    b"user:1",
    b"user:12",
    b"user:1:x",
    b"A",
    b"\x00a",
    b"a\r\nb",
];

/// Pattern, and which of `KEYS` it matches.
const GOLDEN: &[(&[u8], &[usize])] = &[
    (
        b"*",
        &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25,
        ],
    ),
    (
        b"**",
        &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25,
        ],
    ),
    (b"", &[]),
    (b"?", &[0, 1, 10, 14, 15, 16, 17, 19, 23]),
    (b"??", &[2, 24]),
    (b"h?llo", &[4, 5, 6, 9]),
    (b"h*llo", &[4, 5, 6, 7, 8, 9]),
    (b"h[ae]llo", &[4, 5]),
    (b"h[^e]llo", &[5, 6, 9]),
    (b"h[a-b]llo", &[5, 9]),
    (b"h[b-a]llo", &[5, 9]),
    (b"\\*", &[10]),
    (b"a\\*c", &[11]),
    (b"\\[a\\]", &[12]),
    (b"[", &[]),
    (b"[a", &[0]),
    (b"[a-", &[0, 14]),
    (b"[a-c", &[0, 1]),
    (b"[^", &[0, 1, 10, 14, 15, 16, 17, 19, 23]),
    (b"[^a", &[1, 10, 14, 15, 16, 17, 19, 23]),
    (b"[]", &[]),
    (b"[]]", &[]),
    (b"[^]", &[0, 1, 10, 14, 15, 16, 17, 19, 23]),
    (b"[\\]]", &[15]),
    (b"[\\", &[16]),
    (b"[a\\", &[0, 16]),
    (b"[-]", &[14]),
    (b"[a-]", &[0, 15, 17]),
    (b"[--a]", &[0, 14, 15, 16, 17, 19, 23]),
    (b"[+-.]", &[14]),
    (b"\\", &[16]),
    (b"\\\\", &[16]),
    (b"a\\", &[]),
    (b"a\\\\b", &[18]),
    (b"*a*", &[0, 2, 3, 5, 11, 12, 13, 18, 24, 25]),
    (b"*b", &[1, 2, 18, 25]),
    (b"a*", &[0, 2, 3, 11, 13, 18, 25]),
    (b"user:*", &[20, 21, 22]),
    (b"user:?", &[20]),
    (b"user:[0-9]*", &[20, 21, 22]),
    (b"*:*:*", &[22]),
    (b"*a*b*c*", &[3]),
    (b"[A-Z]", &[23]),
    (b"[a-c][a-c]*", &[2, 3]),
    (b"?*?", &[2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 18, 20, 21, 22, 24, 25]),
    (
        b"*?",
        &[
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
            24, 25,
        ],
    ),
    (b"***a***", &[0, 2, 3, 5, 11, 12, 13, 18, 24, 25]),
    (b"[*]", &[10]),
    (b"[?]", &[19]),
    (b"[^^]", &[0, 1, 10, 14, 15, 16, 19, 23]),
    (b"[a^]", &[0, 17]),
    (b"*[", &[]),
    (b"*[a", &[0, 24]),
    (b"a*?", &[2, 3, 11, 13, 18, 25]),
    (b"*\x00*", &[24]),
    (b"*\n*", &[25]),
    (b"[a-c-e]", &[0, 1, 14]),
    (b"[\\a-c]", &[0, 14]),
    (b"h[a-e]*o", &[4, 5, 7, 9]),
    (b"*l*l*o", &[4, 5, 6, 7, 8, 9]),
    (b"*]", &[12, 15]),
    (b"a-c", &[13]),
    (b"[a]]", &[]),
];

#[test]
fn patterns_match_what_redis_matches() {
    for (pattern, expected) in GOLDEN {
        let found: Vec<usize> =
            (0..KEYS.len()).filter(|&index| matches(pattern, KEYS[index])).collect();
        assert_eq!(&found, expected, "{}", pattern.escape_ascii());
    }
}

#[test]
fn stars_match_the_empty_key() {
    // Redis finds the empty key by `*` but not by `**`; here every run of stars finds it.
    for (pattern, expected) in
        [("*", true), ("**", true), ("", true), ("?", false), ("[^a]", false)]
    {
        assert_eq!(matches(pattern.as_bytes(), b""), expected, "{pattern}");
    }
}

#[test]
fn many_stars_do_not_explode() {
    let text = vec![b'a'; 20_000];
    let pattern = [b"a*".repeat(1_000), b"b".to_vec()].concat();
    assert!(!matches(&pattern, &text));
    let pattern = [b"a*".repeat(1_000), b"a".to_vec()].concat();
    assert!(matches(&pattern, &text));
}

#[test]
fn high_bytes_compare_unsigned() {
    assert!(matches(b"[\x00-\xff]", b"\x80"));
    assert!(matches(b"\xfe?\xff", b"\xfe\x00\xff"));
    assert!(!matches(b"[a-\x80]", b"\xff"));
}
