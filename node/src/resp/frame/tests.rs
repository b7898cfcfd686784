//! Redis's own answers to malformed input, every split point, an independent decoder as oracle,
//! and the bounds on memory.

#![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "a test may panic")]

use super::*;
use proptest::prelude::*;
use redis_protocol::resp2::{decode::decode, types::OwnedFrame};

pub(super) const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

/// What a parser said, without borrows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Said {
    Command(Vec<Vec<u8>>),
    TooLarge(TooLarge),
    Error(String),
}

pub(super) fn limits() -> ParserLimits {
    ParserLimits { command_bytes_max: 32 * 1024 * 1024, ..ParserLimits::default() }
}

fn parser() -> Parser {
    let mut parser = Parser::new(limits());
    parser.set_authenticated(true);
    parser
}

/// Feeds one piece and collects what comes out of it.
pub(super) fn feed(parser: &mut Parser, piece: &[u8], said: &mut Vec<Said>) {
    let mut input = piece;
    loop {
        let next = match parser.next(&mut input) {
            Parsed::Command(arguments) => {
                assert_eq!(arguments.iter().len(), arguments.len());
                Said::Command(arguments.iter().map(<[u8]>::to_vec).collect())
            }
            Parsed::TooLarge(too_large) => Said::TooLarge(too_large),
            Parsed::Error(error) => {
                assert_eq!(input, b"", "a failed parser takes all input");
                said.push(Said::Error(String::from_utf8_lossy(&error.message()).into_owned()));
                return;
            }
            Parsed::Incomplete => {
                assert_eq!(input, b"", "an unfinished command takes all input");
                return;
            }
        };
        said.push(next);
    }
}

pub(super) fn said_in_pieces<'a>(
    parser: &mut Parser,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> Vec<Said> {
    let mut said = Vec::new();
    for piece in pieces {
        feed(parser, piece, &mut said);
        if matches!(said.last(), Some(Said::Error(_))) {
            break;
        }
    }
    said
}

pub(super) fn command(arguments: &[&[u8]]) -> Said {
    Said::Command(arguments.iter().map(|a| a.to_vec()).collect())
}

pub(super) fn encode(arguments: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments.iter().map(AsRef::as_ref) {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Expects the same, whole and cut at every point.
fn check(bytes: &[u8], expected: &[Said]) {
    for cut in 0..=bytes.len() {
        let (head, tail) = bytes.split_at(cut);
        let said = said_in_pieces(&mut parser(), [head, tail].into_iter());
        assert_eq!(said, expected, "{} cut at {cut}", bytes.escape_ascii());
    }
    let said = said_in_pieces(&mut parser(), bytes.chunks(1));
    assert_eq!(said, expected, "{} byte by byte", bytes.escape_ascii());
}

fn check_error(bytes: &[u8], text: &str) {
    check(bytes, &[Said::Error(format!("ERR Protocol error: {text}"))]);
}

fn check_silent(bytes: &[u8]) {
    check(bytes, &[]);
}

// The expectations of the next four tests are answers of redis-server 7.0.15 to the same bytes.

#[test]
fn malformed_counts_get_the_errors_of_redis() {
    let text = "invalid multibulk length";
    let counts: [&[u8]; 10] = [
        b"*abc\r\n",
        b"*\r\n",
        b"*+1\r\n",
        b"*01\r\n",
        b"* 1\r\n",
        b"*-0\r\n",
        b"*2147483648\r\n",
        b"*-9223372036854775809\r\n",
        b"*99999999999999999999999\r\n",
        b"*\xff\r\n",
    ];
    for bytes in counts {
        check_error(bytes, text);
    }
    // Redis waits for more here; one million arguments are our limit.
    check_error(b"*1048577\r\n", text);
    check_silent(b"*1048576\r\n");
    for bytes in [&b"*1\r\n$\r\n"[..], b"*1\r\n$-1\r\n", b"*1\r\n$04\r\nPING\r\n"] {
        check_error(bytes, "invalid bulk length");
    }
    let lengths: [&[u8]; 5] = [
        b"*1\r\n$4x\r\nPING\r\n",
        b"*1\r\n$1073741824\r\n",
        b"*1\r\n$536870913\r\n",
        b"*1\r\n$99999999999999999999\r\n",
        b"*1\r\n$111111111111111111111111111111\r\n",
    ];
    for bytes in lengths {
        check_error(bytes, "invalid bulk length");
    }
    check_silent(b"*1\r\n$536870912\r\n");
}

#[test]
fn anything_but_a_dollar_gets_the_error_of_redis() {
    check_error(b"*1\r\nx\r\n", "expected '$', got 'x'");
    check_error(b"*1\r\n:4\r\nPING\r\n", "expected '$', got ':'");
    check_error(b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'");
    check_error(b"*1\r\n\r\n", "expected '$', got ' '");
    check_error(b"*1\r\n\xff\r\n", "expected '$', got '\u{fffd}'");
    for digits in ["1", "10", "100", "1000"] {
        let bytes = format!("*1\r\nx{digits}\r\n{}\r\n", "v".repeat(1_000));
        let error = [Said::Error("ERR Protocol error: expected '$', got 'x'".to_owned())];
        for piece in [1, 5, usize::MAX] {
            let said = said_in_pieces(&mut parser(), bytes.as_bytes().chunks(piece));
            assert_eq!(said, error, "{digits} in pieces of {piece}");
        }
    }
    check_silent(b"*1\r\nx");
}

#[test]
fn what_redis_lets_pass_passes() {
    let ping = command(&[b"PING"]);
    for bytes in [
        &b"*-1\r\n*1\r\n$4\r\nPING\r\n"[..],
        b"*0\r\nPING\r\n",
        b"*0\r\n\r\n\nPING\r\n",
        b"PING\n",
        b"PING\r\n",
        b"  PING  \r\n",
        b"PING\r\r\n",
        b"\"PING\"\r\n",
        b"*1\rX$4\rYPING\r\n",
        b"*1\r\n$4\r\nPINGxx",
        b"*-2\r\n*1\r\n$4\r\nPING\r\n",
    ] {
        check(bytes, std::slice::from_ref(&ping));
    }
    check(b"*1\r\n$0\r\n\r\n", &[command(&[b""])]);
    check(b"*2\r\n$0\r\n\r\n$0\r\n\r\n", &[command(&[b"", b""])]);
    check(b"$4\r\nPING\r\n", &[command(&[b"$4"]), ping.clone()]);
    check(b"-1\r\n", &[command(&[b"-1"])]);
    check(b"*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n", &[ping.clone(), ping]);
    check_silent(b"*1\n$4\nPING\n");
    check_silent(b"\r\n\n\r\n*0\r\n   \r\n");
}

#[test]
fn inline_commands_are_quoted_as_in_redis() {
    let echo = |argument: &[u8]| vec![command(&[b"ECHO", argument])];
    check(b"ECHO \"a\\x41\\n\\r\\t\\b\\a\\q\\\"\" \r\n", &echo(b"aA\n\r\t\x08\x07q\""));
    check(b"ECHO 'a\\'b\\n'\r\n", &echo(b"a'b\\n"));
    check(b"ECHO \"\"\r\n", &echo(b""));
    check(b"ECHO ''\r\n", &echo(b""));
    check(b"ECHO \"\\xZZ\"\r\n", &echo(b"xZZ"));
    check(b"ECHO a\\x41\r\n", &echo(b"a\\x41"));
    check(b"ECHO a\x0bb\r\n", &echo(b"a\x0bb"));
    check(b"ECHO\ta\r\n", &echo(b"a"));
    check(b"ECHO a\"b\"\r\n", &echo(b"ab"));
    check(b"ECHO a\tb\r\n", &[command(&[b"ECHO", b"a", b"b"])]);
    check(b"\"\"\r\n", &[command(&[b""])]);
    let unbalanced: [&[u8]; 8] = [
        b"ECHO \"a\"b\r\n",
        b"ECHO 'a'b\r\n",
        b"ECHO \"a\r\n",
        b"ECHO 'a\r\n",
        b"ECHO a\"b\"c\r\n",
        b"ECHO a\"b\r\n",
        b"ECHO \"a\\\r\n",
        b"\"\n",
    ];
    for bytes in unbalanced {
        check_error(bytes, "unbalanced quotes in request");
    }
}

#[test]
fn lines_without_end_get_the_errors_of_redis() {
    let cases: [(&[u8], &str); 4] = [
        (b"x", "too big inline request"),
        (b"*", "too big mbulk count string"),
        (b"*1\r\n$", "too big bulk count string"),
        (b"*1\r\nx", "too big bulk count string"),
    ];
    for (start, text) in cases {
        let line_start = start.len() - start.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
        let mut bytes = start.to_vec();
        bytes.resize(start.len() - line_start + 65_536, b'1');
        let error = [Said::Error(format!("ERR Protocol error: {text}"))];
        for piece in [1, 1_000, 100_000] {
            let mut parser = parser();
            assert_eq!(said_in_pieces(&mut parser, bytes.chunks(piece)), []);
            assert_eq!(said_in_pieces(&mut parser, [&b"1"[..]].into_iter()), error);
        }
        // Unlike in Redis, the line end coming along does not help.
        bytes.extend_from_slice(b"1\r\n");
        assert_eq!(said_in_pieces(&mut parser(), [&bytes[..]].into_iter()), error);
    }
}

#[test]
fn limits_are_narrow_before_authentication() {
    let said = |bytes: &[u8]| {
        let mut parser = Parser::new(limits());
        said_in_pieces(&mut parser, bytes.chunks(3))
    };
    let error = |text: &str| vec![Said::Error(format!("ERR Protocol error: {text}"))];
    assert_eq!(said(b"*11\r\n"), error("unauthenticated multibulk length"));
    assert_eq!(said(b"*2\r\n$16385\r\n"), error("unauthenticated bulk length"));
    assert_eq!(said(b"*10\r\n"), []);
    assert_eq!(said(b"*2\r\n$16384\r\n"), []);
    assert_eq!(said(b"*11"), []);
    assert_eq!(said(PING), [command(&[b"PING"])]);
    let inline = [b"PING ".to_vec(), vec![b'x'; 20_000], b"\r\n".to_vec()].concat();
    assert_eq!(said(&inline).len(), 1);
}

#[test]
fn a_failed_parser_stays_failed() {
    let mut parser = parser();
    let mut said = Vec::new();
    feed(&mut parser, b"*x\r\n", &mut said);
    feed(&mut parser, PING, &mut said);
    assert_eq!(said[0], said[1]);
    assert_eq!(parser.buffered(), 0);
}

#[test]
fn every_split_gives_the_same_commands() {
    let mut bytes = encode(&[&b"SET"[..], b"key", b"a\r\nvalue", b"EX", b"10"]);
    bytes.extend_from_slice(b"*0\r\nSET 'in line' \"x\\r\\n\"\r\n\r\n");
    bytes.extend_from_slice(&encode(&[&b"GET"[..], b""]));
    let expected = [
        command(&[b"SET", b"key", b"a\r\nvalue", b"EX", b"10"]),
        command(&[b"SET", b"in line", b"x\r\n"]),
        command(&[b"GET", b""]),
    ];
    check(&bytes, &expected);
    for first in 0..bytes.len() {
        for second in first..bytes.len() {
            let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            assert_eq!(said_in_pieces(&mut parser(), pieces.into_iter()), expected);
        }
    }
}

#[test]
fn whole_commands_are_not_copied() {
    let bytes = [PING, PING].concat();
    let mut parser = parser();
    let mut input = &bytes[..];
    let Parsed::Command(arguments) = parser.next(&mut input) else { panic!("not a command") };
    assert_eq!(arguments[0].as_ptr(), bytes[8..].as_ptr());
    assert_eq!(input.len(), PING.len());
    assert_eq!(parser.buffered(), 0);
    assert_eq!(parser.buffer.capacity(), 0);
}

#[test]
fn only_the_unfinished_command_is_buffered() {
    let big = encode(&[&b"SET"[..], b"k", &vec![b'v'; 100_000]]);
    let (head, tail) = big.split_at(50_000);
    let after = [tail, &PING.repeat(10_000)].concat();
    let mut parser = parser();
    let mut input = head;
    assert!(matches!(parser.next(&mut input), Parsed::Incomplete));
    let mut input = &after[..];
    assert!(matches!(parser.next(&mut input), Parsed::Command(_)));
    assert_eq!(input.len(), PING.len() * 10_000);
    assert!(matches!(parser.next(&mut input), Parsed::Command(_)));
    assert_eq!(parser.buffered(), 0);
}

#[test]
fn stashed_bytes_come_first() {
    let bytes = [PING.repeat(3), encode(&[b"GET", b"abc"])].concat();
    for cut in 0..bytes.len() {
        let mut parser = parser();
        let (head, tail) = bytes.split_at(cut);
        let mut said = Vec::new();
        let mut input = head;
        if let Parsed::Command(_) = parser.next(&mut input) {
            said.push(command(&[b"PING"]));
        }
        parser.stash(input);
        assert!(parser.buffered() <= cut);
        feed(&mut parser, b"", &mut said);
        parser.stash(tail);
        feed(&mut parser, b"", &mut said);
        assert_eq!(said.len(), 4, "cut at {cut}");
        assert_eq!(said[3], command(&[b"GET", b"abc"]));
    }
}

#[test]
fn memory_is_given_back() {
    let big = encode(&[&b"SET"[..], b"k", &vec![b'v'; 1_000_000]]);
    let many = encode(&vec![b"x"; 5_000]);
    let line = [vec![b'x'; 10_000], b"\n".to_vec()].concat();
    let mut parser = parser();
    for bytes in [&big, &many, &line] {
        for piece in [1_000, usize::MAX] {
            said_in_pieces(&mut parser, bytes.chunks(piece.min(bytes.len())));
            assert_eq!(parser.buffered(), 0);
            assert!(parser.buffer.capacity() <= BUFFER_IDLE_BYTES_MAX);
            assert!(parser.line.capacity() <= BUFFER_IDLE_BYTES_MAX);
            assert!(parser.request.spans_capacity() <= SPANS_IDLE_MAX);
        }
    }
    assert!(size_of::<Parser>() <= 320, "{}", size_of::<Parser>());
}

#[test]
fn sixteen_mebibytes_arrive_in_pieces_and_are_not_over_allocated() {
    let value: Vec<u8> = (0..16 << 20).map(|i: u32| i.to_le_bytes()[1]).collect();
    let bytes = encode(&[&b"SET"[..], b"k", &value]);
    let mut parser = parser();
    let mut said = Vec::new();
    for piece in bytes.chunks(16 * 1024) {
        feed(&mut parser, piece, &mut said);
        assert!(parser.buffer.capacity() <= bytes.len() + 1024);
    }
    assert_eq!(said, [command(&[b"SET", b"k", &value])]);
}

#[test]
fn a_hundred_thousand_arguments_arrive_in_pieces() {
    let arguments: Vec<String> = (0..100_000).map(|i| i.to_string()).collect();
    let bytes = encode(&arguments);
    for piece in [1, 7, 16_384] {
        let said = said_in_pieces(&mut parser(), bytes.chunks(piece));
        let [Said::Command(found)] = &said[..] else { panic!("{} commands", said.len()) };
        assert!(found.iter().map(Vec::as_slice).eq(arguments.iter().map(String::as_bytes)));
    }
}

#[test]
fn a_gibibyte_is_refused_at_once() {
    check_error(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1073741824\r\n", "invalid bulk length");
}

#[test]
fn half_a_gibibyte_is_drained_without_buffering() {
    let mut parser = parser();
    let mut said = Vec::new();
    feed(&mut parser, b"*3\r\n$3\r\nSeT\r\n$1\r\nk\r\n$536870912\r\n", &mut said);
    let piece = vec![b'v'; 1 << 20];
    for _ in 0..512 {
        feed(&mut parser, &piece, &mut said);
        assert_eq!(parser.buffered(), 0);
        assert!(parser.buffer.capacity() <= BUFFER_IDLE_BYTES_MAX);
    }
    assert_eq!(said, []);
    feed(&mut parser, b"\r\n*1\r\n$4\r\nPING\r\n", &mut said);
    let too_large = TooLarge {
        kind: LimitKind::Argument,
        declared: 536_870_912,
        limit: 16 << 20,
        name: CommandName::new(b"set"),
    };
    assert_eq!(said, [Said::TooLarge(too_large), command(&[b"PING"])]);
}

#[test]
fn commands_over_a_limit_are_drained_at_every_split() {
    let small = ParserLimits { bulk_bytes_max: 8, command_bytes_max: 20, ..limits() };
    let too_large = |kind, declared, limit, name: &[u8]| {
        Said::TooLarge(TooLarge { kind, declared, limit, name: CommandName::new(name) })
    };
    let cases = [
        (vec!["Set", "k", "123456789"], too_large(LimitKind::Argument, 9, 8, b"set")),
        (vec!["Set", "123456789", "v", "EX"], too_large(LimitKind::Argument, 9, 8, b"set")),
        (vec!["123456789", "v"], too_large(LimitKind::Argument, 9, 8, b"")),
        (vec!["MSET", "12345678", "12345678", "1"], too_large(LimitKind::Command, 21, 20, b"mset")),
        (
            vec!["MSET", "12345678", "12345678", "1", "", "12"],
            too_large(LimitKind::Command, 23, 20, b"mset"),
        ),
        (vec!["MSET", "12345678", "12345678"], command(&[b"MSET", b"12345678", b"12345678"])),
    ];
    for (arguments, expected) in cases {
        let bytes = [PING, &encode(&arguments), PING].concat();
        let ping = command(&[b"PING"]);
        for cut in 0..=bytes.len() {
            for piece in [1, 5, usize::MAX] {
                let mut parser = Parser::new(small);
                let (head, tail) = bytes.split_at(cut);
                parser.stash(head);
                let pieces = [&b""[..]].into_iter().chain(tail.chunks(piece));
                let said = said_in_pieces(&mut parser, pieces);
                assert_eq!(said, [ping.clone(), expected.clone(), ping.clone()]);
                assert_eq!(parser.buffered(), 0);
            }
        }
    }
    // Errors are noticed while draining, too.
    let mut parser = Parser::new(small);
    let said = said_in_pieces(&mut parser, [&b"*2\r\n$9\r\n123456789\r\nx\r\n"[..]].into_iter());
    assert_eq!(said, [Said::Error("ERR Protocol error: expected '$', got 'x'".to_owned())]);
}

#[test]
fn small_limits_hold_for_short_lines() {
    let small = ParserLimits { arguments_max: 2, bulk_bytes_declared_max: 5, ..limits() };
    let said = |bytes: &[u8], piece| said_in_pieces(&mut Parser::new(small), bytes.chunks(piece));
    let error = |text: &str| vec![Said::Error(format!("ERR Protocol error: {text}"))];
    for piece in [1, 2, 3, 100] {
        assert_eq!(said(b"*3\r\n", piece), error("invalid multibulk length"));
        for len in [6, 10, 50, 99, 100, 999, 1_000] {
            // What follows would be a good argument if the length were passed over.
            let bytes = format!("*1\r\n${len}\r\n$1\r\nx\r\n");
            assert_eq!(said(bytes.as_bytes(), piece), error("invalid bulk length"), "{len}");
        }
        assert_eq!(said(b"*1\r\n$5\r\n12345\r\n", piece), [command(&[b"12345"])]);
    }
}

#[test]
fn lengths_of_every_number_of_digits_are_read() {
    for len in [0, 1, 9, 10, 11, 99, 100, 101, 999, 1_000, 1_001, 9_999, 10_000] {
        let value = vec![b'v'; len];
        let bytes = encode(&[&value]);
        for piece in [1, 2, 3, 4, 5, 6, 7, usize::MAX] {
            let said = said_in_pieces(&mut parser(), bytes.chunks(piece));
            assert_eq!(said, [command(&[&value])], "{len} in pieces of {piece}");
        }
    }
    for count in [1_usize, 9, 10, 11, 99, 100, 101] {
        let arguments = vec![b"a"; count];
        let said = said_in_pieces(&mut parser(), encode(&arguments).chunks(3));
        assert_eq!(said, [Said::Command(vec![b"a".to_vec(); count])]);
    }
}

#[test]
fn names_of_drained_commands_are_cut() {
    assert_eq!(CommandName::new(&[b'A'; 40]).as_bytes(), [b'a'; 32]);
    assert_eq!(format!("{:?}", CommandName::new(b"a\xff")), "\"a\\xff\"");
}

#[test]
fn integers_are_as_strict_as_in_redis() {
    for value in [0, 1, -1, 10, 999_999_999_999_999_999, i64::MAX, i64::MIN] {
        assert_eq!(integer(value.to_string().as_bytes()), Some(value));
    }
    for text in [
        "",
        "-",
        "-0",
        "+1",
        "01",
        "-01",
        " 1",
        "1 ",
        "1a",
        "9223372036854775808",
        "0x1",
        "-9223372036854775809",
        "99999999999999999999",
        "18446744073709551616",
        "/",
        ":",
    ] {
        assert_eq!(integer(text.as_bytes()), None, "{text:?}");
    }
}

pub(super) fn commands() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
    let argument = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..40),
        "[\r\n*$0-9]{0,20}".prop_map(String::into_bytes),
        Just(vec![b'v'; 3_000]),
    ];
    proptest::collection::vec(proptest::collection::vec(argument, 1..8), 1..8)
}

proptest! {
    #[test]
    fn commands_survive_any_split(commands in commands(), cuts in cuts(), stashed in 0_usize..200) {
        let bytes: Vec<u8> = commands.iter().flat_map(|c| encode(c)).collect();
        let mut parser = parser();
        let (head, mut rest) = bytes.split_at(stashed.min(bytes.len()));
        parser.stash(head);
        let mut pieces = vec![&b""[..]];
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        let expected: Vec<Said> = commands.into_iter().map(Said::Command).collect();
        prop_assert_eq!(said_in_pieces(&mut parser, pieces.into_iter()), expected);
        prop_assert_eq!(parser.buffered(), 0);
    }

    #[test]
    fn commands_are_what_the_library_decodes(commands in commands()) {
        let bytes: Vec<u8> = commands.iter().flat_map(|c| encode(c)).collect();
        let mut theirs = Vec::new();
        let mut rest = &bytes[..];
        while let Some((OwnedFrame::Array(frames), len)) = decode(rest).unwrap() {
            theirs.push(Said::Command(frames.into_iter().map(|frame| match frame {
                OwnedFrame::BulkString(value) => value,
                other => panic!("{other:?}"),
            }).collect()));
            rest = &rest[len..];
        }
        prop_assert_eq!(said_in_pieces(&mut parser(), bytes.chunks(11)), theirs);
    }

    /// Random bytes out of the protocol's alphabet, so that they get deep into the parser.
    #[test]
    fn garbage_is_bounded_and_the_same_at_any_split(
        bytes in proptest::collection::vec(proptest::sample::select(
            &b"**$$0012345-\r\r\r\n\n\n\"' \\xa\x00\xff"[..]), 0..300),
        piece in 1_usize..50,
    ) {
        let small = ParserLimits {
            arguments_max: 20, bulk_bytes_max: 9, bulk_bytes_declared_max: 40,
            command_bytes_max: 30, inline_bytes_max: 25, aside_bytes_min: 3,
        };
        let mut whole = Parser::new(small);
        let expected = said_in_pieces(&mut whole, [&bytes[..]].into_iter());
        let mut parser = Parser::new(small);
        let mut said = Vec::new();
        // Stored bytes, one header per argument, one line.
        let most = small.command_bytes_max + small.arguments_max * 8 + small.inline_bytes_max;
        for piece in bytes.chunks(piece) {
            feed(&mut parser, piece, &mut said);
            prop_assert!(parser.buffered() <= most + piece.len());
            if matches!(said.last(), Some(Said::Error(_))) {
                break;
            }
        }
        prop_assert_eq!(said, expected);
    }
}

pub(super) fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(prop_oneof![0_usize..5, 0_usize..500], 0..60)
}
