//! Arguments in memory of their own: whether they are lent or fed, whole or cut anywhere, commands
//! are the same.

#![expect(clippy::indexing_slicing, reason = "a test may panic")]

use super::tests::{PING, Said, command, commands, cuts, encode, feed, limits, said_in_pieces};
use super::*;
use proptest::prelude::*;
use redis_protocol::resp2::{decode::decode, types::OwnedFrame};

fn parser(aside_bytes_min: usize) -> Parser {
    let mut parser = Parser::new(ParserLimits { aside_bytes_min, ..limits() });
    parser.set_authenticated(true);
    parser
}

/// As [`said_in_pieces`], with a driver that receives into what is lent: where the pieces end, it
/// has nothing more for the moment.
fn said_lending<'a>(parser: &mut Parser, pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Said> {
    let mut said = Vec::new();
    for piece in pieces {
        let mut piece = piece;
        while let Some(mut room) = parser.lend() {
            assert!(room.left() > 0 && parser.lend().is_none());
            let before = parser.buffered();
            let count = room.receive(piece);
            piece = &piece[count..];
            // Nothing comes meanwhile, but something else may have the parser go on.
            feed(parser, b"", &mut said);
            assert_eq!(parser.buffered(), before);
            parser.take_back(room);
            feed(parser, b"", &mut said);
            if piece.is_empty() {
                break;
            }
        }
        feed(parser, piece, &mut said);
        if matches!(said.last(), Some(Said::Error(_))) {
            break;
        }
    }
    said
}

fn pipeline() -> (Vec<u8>, Vec<Said>) {
    let (large, larger) = (&b"ten\r\nbytes"[..], &b"$9\r\nof twenty bytes\r\n"[..]);
    let commands: [&[&[u8]]; 6] = [
        &[b"SET", b"key", large, b"EX", b"10"],
        &[b"GET", b"key"],
        &[b"MSET", b"a", larger, b"b", b"small", large, large, b"c", larger],
        &[b"a name is not put aside", b"x"],
        &[b"ECHO", larger],
        &[b"PING"],
    ];
    (commands.iter().flat_map(|one| encode(one)).collect(), commands.map(command).to_vec())
}

#[test]
fn every_cut_gives_the_same_commands() {
    let (bytes, expected) = pipeline();
    for aside_bytes_min in [1, 10, 20, usize::MAX] {
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let pieces =
                    || [&bytes[..first], &bytes[first..second], &bytes[second..]].into_iter();
                let mut lending = parser(aside_bytes_min);
                assert_eq!(said_lending(&mut lending, pieces()), expected, "{first}, {second}");
                assert_eq!(lending.buffered(), 0);
                let mut feeding = parser(aside_bytes_min);
                assert_eq!(said_in_pieces(&mut feeding, pieces()), expected, "{first}, {second}");
                assert_eq!(feeding.buffered(), 0);
            }
        }
        for piece in 1..10 {
            let said = said_lending(&mut parser(aside_bytes_min), bytes.chunks(piece));
            assert_eq!(said, expected, "in pieces of {piece}");
        }
    }
}

#[test]
fn bytes_stashed_before_behind_and_within_come_in_order() {
    let (bytes, expected) = pipeline();
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let mut parser = parser(10);
            parser.stash(&bytes[..first]);
            let mut said = said_lending(&mut parser, [&b""[..]].into_iter());
            parser.stash(&bytes[first..second]);
            parser.stash(&bytes[second..]);
            feed(&mut parser, b"", &mut said);
            assert_eq!(said, expected, "{first}, {second}");
        }
    }
}

#[test]
fn what_is_received_is_not_copied() {
    let value = vec![b'v'; 100_000];
    let bytes = [encode(&[&b"SET"[..], b"k", &value]), PING.to_vec()].concat();
    let mut parser = parser(16_385);
    let (head, tail) = bytes.split_at(1_000);
    assert!(matches!(parser.next(&mut &*head), Parsed::Incomplete));
    assert!(parser.is_within_command());
    let mut room = parser.lend().unwrap();
    let (place, before) = (room.filled().as_ptr(), room.filled().len());
    assert_eq!(room.left(), value.len() + 2 - before, "no more than its size");
    let count = room.receive(tail);
    parser.take_back(room);
    assert!(parser.lend().is_none(), "all of it is there");
    let mut input = &tail[count..];
    assert_eq!(input, PING, "the line end was received with it");
    let Parsed::Command(arguments) = parser.next(&mut input) else { panic!("not a command") };
    assert_eq!(arguments[2].as_ptr(), place);
    assert!(arguments[2] == *value, "the bytes differ");
    let [own] = arguments.own() else { panic!("{} of their own", arguments.own().len()) };
    assert_eq!((own.bytes.as_ptr(), own.bytes.len()), (place, value.len()));
    assert_eq!(own.copied, before);
    let kept = own.bytes.clone();
    let Parsed::Command(arguments) = parser.next(&mut input) else { panic!("not a command") };
    assert!(arguments.own().is_empty());
    assert!(kept == value, "it is kept when the command is forgotten");
}

#[test]
fn an_announcement_costs_next_to_nothing() {
    let mut parser = parser(16_385);
    let mut input = &b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777216\r\nx"[..];
    assert!(matches!(parser.next(&mut input), Parsed::Incomplete));
    assert!(parser.heap_bytes() < 512, "{}", parser.heap_bytes());
    let mut room = parser.lend().unwrap();
    assert_eq!((room.filled(), room.left()), (&b"x"[..], 16_777_217));
    room.receive(&[b'x'; 10_000]);
    parser.take_back(room);
    assert!(parser.heap_bytes() >= 10_001 && parser.buffered() >= 10_001);
    assert!(parser.heap_bytes() < 11_000, "{}", parser.heap_bytes());
}

#[test]
fn what_is_drained_is_not_lent() {
    let small =
        ParserLimits { bulk_bytes_max: 30, command_bytes_max: 50, aside_bytes_min: 10, ..limits() };
    let cases: [(&[&[u8]], LimitKind, u64); 2] = [
        (&[b"SET", &[b'k'; 20], &[b'v'; 31], b"EX"], LimitKind::Argument, 31),
        (&[b"SET", &[b'k'; 20], &[b'v'; 30], b"EX"], LimitKind::Command, 55),
    ];
    for (arguments, kind, declared) in cases {
        let bytes = [&encode(arguments), PING].concat();
        let limit = if kind == LimitKind::Argument { 30 } else { 50 };
        let name = CommandName::new(b"set");
        let too_large = Said::TooLarge(TooLarge { kind, declared, limit, name });
        for piece in 1..bytes.len() {
            let mut parser = Parser::new(small);
            let said = said_lending(&mut parser, bytes.chunks(piece));
            assert_eq!(said, [too_large.clone(), command(&[b"PING"])]);
            assert!(!parser.is_within_command() && parser.buffered() == 0);
        }
    }
}

proptest! {
    #[test]
    fn commands_are_what_the_library_decodes_however_they_come(
        commands in commands(), cuts in cuts(), aside_bytes_min in 1_usize..60,
    ) {
        let bytes: Vec<u8> = commands.iter().flat_map(|c| encode(c)).collect();
        let (mut theirs, mut rest) = (Vec::new(), &bytes[..]);
        while let Some((OwnedFrame::Array(frames), len)) = decode(rest).unwrap() {
            theirs.push(Said::Command(frames.into_iter().map(|frame| match frame {
                OwnedFrame::BulkString(value) => value,
                other => panic!("{other:?}"),
            }).collect()));
            rest = &rest[len..];
        }
        let (mut pieces, mut rest) = (Vec::new(), &bytes[..]);
        for cut in cuts {
            let (piece, behind) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = behind;
        }
        pieces.push(rest);
        let mut parser = parser(aside_bytes_min);
        prop_assert_eq!(said_lending(&mut parser, pieces.into_iter()), theirs);
        prop_assert_eq!(parser.buffered(), 0);
    }
}
