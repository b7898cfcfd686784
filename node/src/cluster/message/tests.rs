//! Messages: what is written is read again; nothing else does harm.

use fastrand::Rng;

use super::codec::{CHUNK_BYTES_MAX, Incoming, MessageError, MessageReader, encode};
use super::control::{ByeReason, ControlFrame, Hello, Refusal, feature};
use super::frame::FrameError;
use super::*;

const VALUE_LEN_MAX: usize = 4 * CHUNK_BYTES_MAX;

fn bytes(rng: &mut Rng, len: usize) -> Bytes {
    (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

pub(in crate::cluster) fn record(rng: &mut Rng, len: Option<usize>) -> Record {
    let user_key = rng.usize(..40);
    Record {
        namespace: Namespace(rng.u8(..3)),
        key: Key(NodeId::random(rng).0),
        user_key: bytes(rng, user_key),
        version: Version(*NodeId::random(rng).0.first_chunk().unwrap()),
        expiry_ms: rng.u64(..),
        content: len.map_or(Content::Tombstone, |len| Content::Value(bytes(rng, len))),
    }
}

/// One of each kind.
pub(in crate::cluster) fn messages(rng: &mut Rng) -> Vec<PeerMessage> {
    let request = RequestId(rng.u64(..));
    let node = NodeId::random(rng);
    let key = Key(NodeId::random(rng).0);
    let prefix = Prefix::of(&key, rng.u8(..=160));
    let version = record(rng, None).version;
    let entries = vec![Entry { namespace: Namespace(0), key, version, is_tombstone: rng.bool() }];
    let name = Name { entry: entries[0], user_key: bytes(rng, 30) };
    let member = MemberEntry {
        node,
        address: bytes(rng, 20),
        incarnation: rng.u64(..),
        phase: Phase::Leaving,
        standing: Standing::Suspected,
    };
    let put = |record| PeerMessage::Put { request, reason: PutReason::Repair, record };
    let got = |found| PeerMessage::Got { request, is_ready: true, found };
    let mut all = vec![
        PeerMessage::Members { wants_answer: true, entries: vec![member.clone(); 3] },
        PeerMessage::Ping { request, target: None, entries: vec![] },
        PeerMessage::Ping { request, target: Some(node), entries: vec![member.clone()] },
        PeerMessage::Pong { request, entries: vec![member] },
        put(record(rng, None)),
        put(record(rng, Some(0))),
        put(record(rng, Some(100))),
        put(record(rng, Some(2 * CHUNK_BYTES_MAX + 1))),
        PeerMessage::Get { request, key, wants_value: true },
        got(Found::Nothing),
        got(Found::Failed),
        got(Found::Header(record(rng, None).header())),
        got(Found::Record(record(rng, Some(CHUNK_BYTES_MAX)))),
        got(Found::Record(record(rng, Some(CHUNK_BYTES_MAX + 1)))),
        PeerMessage::Sums { request, prefix },
        PeerMessage::SumsAre { request, sums: vec![Sum { hash: 1 << 100, count: 2 }; 16] },
        PeerMessage::List { request, prefix },
        PeerMessage::Listed { request, is_whole: true, entries: entries.clone() },
        PeerMessage::Names { request, prefix, from: key, count: rng.u16(..) },
        PeerMessage::Named { request, is_ready: true, next: None, names: vec![] },
        PeerMessage::Named { request, is_ready: false, next: Some(key), names: vec![name; 2] },
        PeerMessage::Claim { request, prefix },
        PeerMessage::Claimed { request, held: vec![prefix, Prefix::ALL] },
        PeerMessage::Release { prefix },
        PeerMessage::Have { request, prefix, entries },
        PeerMessage::HaveIs { request, is_ready: false, held: vec![true, false] },
    ];
    for outcome in [
        PutOutcome::Applied { is_ready: true },
        PutOutcome::NotNewer { stored: version },
        PutOutcome::TooFarAhead,
        PutOutcome::KeyConflict,
        PutOutcome::Failed,
    ] {
        all.push(PeerMessage::PutDone { request, outcome });
    }
    all
}

fn flat(message: &PeerMessage) -> Vec<u8> {
    encode(message).into_iter().flatten().flatten().collect()
}

fn open(value_bytes_max: usize) -> MessageReader {
    let mut reader = MessageReader::new(value_bytes_max);
    reader.open();
    reader
}

fn read_all(
    reader: &mut MessageReader,
    mut input: &[u8],
) -> Result<Vec<PeerMessage>, MessageError> {
    let mut found = Vec::new();
    while let Some(incoming) = reader.read(&mut input)? {
        let Incoming::Message(message) = incoming else { panic!("{incoming:?}") };
        found.push(message);
    }
    assert!(input.is_empty(), "all is taken");
    Ok(found)
}

#[test]
fn messages_are_read_as_they_are_written_however_they_are_cut() {
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let all = messages(&mut rng);
        let stream: Vec<u8> = all.iter().flat_map(flat).collect();
        let mut reader = open(VALUE_LEN_MAX);
        let (mut found, mut rest) = (Vec::new(), &stream[..]);
        while !rest.is_empty() {
            let len = if rng.bool() { rng.usize(1..40) } else { rng.usize(1..100_000) };
            let (piece, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            found.extend(read_all(&mut reader, piece).unwrap());
        }
        assert_eq!(found, all);
        assert_eq!(reader.held_bytes(), 0);
    }
}

#[test]
fn a_large_value_lets_others_pass() {
    let mut rng = Rng::with_seed(1);
    let large = PeerMessage::Put {
        request: RequestId(1),
        reason: PutReason::Write,
        record: record(&mut rng, Some(3 * CHUNK_BYTES_MAX)),
    };
    let small = PeerMessage::Release { prefix: Prefix::ALL };
    let mut reader = open(VALUE_LEN_MAX);
    let mut found = Vec::new();
    for piece in encode(&large) {
        for bytes in piece {
            found.extend(read_all(&mut reader, &bytes).unwrap());
        }
        found.extend(read_all(&mut reader, &flat(&small)).unwrap());
    }
    // The last piece of the value comes before the last of the small ones.
    assert_eq!(found, [small.clone(), small.clone(), large, small]);
}

#[test]
fn garbage_is_refused_and_bounded() {
    let mut rng = Rng::with_seed(9);
    for _ in 0..400 {
        let all = messages(&mut rng);
        let mut stream = flat(&all[rng.usize(..all.len())]);
        stream.truncate(4096);
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(..stream.len());
            stream[at] = rng.u8(..);
        }
        let mut reader = open(100);
        let mut input = &stream[..];
        while let Ok(Some(_)) = reader.read(&mut input) {}
        assert!(reader.held_bytes() <= stream.len());
    }
}

#[track_caller]
fn check_refused(stream: &[u8], error: MessageError) {
    assert_eq!(read_all(&mut open(1000), stream), Err(error));
    // Nor does it matter how the bytes are cut.
    let mut reader = open(1000);
    let found = stream.iter().find_map(|byte| read_all(&mut reader, &[*byte]).err());
    assert_eq!(found, Some(error));
}

#[test]
fn what_exceeds_a_limit_is_refused_by_name() {
    check_refused(b"*4\r\n", FrameError::Length.into());
    check_refused(b"*0\r\n", FrameError::Length.into());
    check_refused(b"*02\r\n", FrameError::Length.into());
    check_refused(b"GET / HTTP/1.1\r\n", FrameError::Unexpected { found: b'G' }.into());
    check_refused(b"*2\r\n$600000\r\n", FrameError::Length.into());
    check_refused(b"*2\r\n$00000000000000000000", FrameError::Length.into());
    check_refused(b"*2\r\n$4\r\nPING\r\n$0\r\n\r\n", MessageError::Verb);
    check_refused(b"*2\r\n$12\r\nKADP.RELEASE\r\n$1\r\n\xff\r\n", MessageError::Body);
    let many = b"*2\r\n$12\r\nKADP.MEMBERS\r\n$3\r\n\x00\xff\xff\r\n";
    check_refused(many, MessageError::TooMany { count: 65_535 });
    let mut rng = Rng::with_seed(2);
    let put = PeerMessage::Put {
        request: RequestId(1),
        reason: PutReason::Write,
        record: record(&mut rng, Some(1001)),
    };
    check_refused(&flat(&put), MessageError::TooLarge);
    let more = b"*3\r\n$9\r\nKADP.MORE\r\n$17\r\n00000000\x00\0\0\0\0\0\0\0\0\r\n$1\r\nx\r\n";
    check_refused(more, MessageError::Piece);
}

fn hello(node: u8, cluster: u8, features: u64) -> Hello {
    Hello {
        cluster: NodeId([cluster; 20]),
        node: NodeId([node; 20]),
        boot: 7,
        features,
        nonce: [9; 32],
        address: Bytes::from_static(b"10.0.0.1:7400"),
    }
}

#[test]
fn frames_about_the_link_are_read_as_they_are_written() {
    let refused = |refusal| ControlFrame::Refused { refusal, version: PROTOCOL_VERSION };
    let handshake = [
        ControlFrame::Hello(hello(1, 2, feature::SECRET)),
        ControlFrame::OtherHello { version: 2 },
        ControlFrame::Auth { proof: [3; 32] },
        refused(Refusal::Version),
        refused(Refusal::Cluster),
        refused(Refusal::Own),
        refused(Refusal::Secret),
        refused(Refusal::Proof),
        refused(Refusal::Busy),
    ];
    let others = [
        ControlFrame::Beat { number: 5, is_answer: true },
        ControlFrame::Bye { reason: ByeReason::Stopping },
        ControlFrame::Bye { reason: ByeReason::Unneeded },
    ];
    let mut reader = MessageReader::new(100);
    for frame in handshake.iter().chain(&others) {
        if !frame.is_handshake() {
            reader.open();
        }
        let bytes: Vec<u8> = frame.encode().into_iter().flatten().collect();
        let (mut first, mut second) = bytes.split_at(bytes.len() / 2);
        assert_eq!(reader.read(&mut first), Ok(None));
        assert_eq!(reader.read(&mut second), Ok(Some(Incoming::Control(frame.clone()))));
        assert_eq!(reader.held_bytes(), 0);
    }
}

#[test]
fn before_the_handshake_is_over_there_is_nothing_else() {
    let ping = PeerMessage::Ping { request: RequestId(1), target: None, entries: vec![] };
    let mut reader = MessageReader::new(100);
    assert_eq!(read_all(&mut reader, &flat(&ping)), Err(MessageError::Verb));
    let mut reader = MessageReader::new(100);
    let long = b"*2\r\n$10\r\nKADP.HELLO\r\n$257\r\n";
    assert_eq!(read_all(&mut reader, long), Err(FrameError::Length.into()));
    // And a handshake is not repeated.
    let auth = ControlFrame::Auth { proof: [3; 32] }.encode().concat();
    assert_eq!(read_all(&mut open(100), &auth), Err(MessageError::Verb));
}

#[test]
fn a_hello_of_others_is_refused_by_name() {
    let mine = hello(1, 2, feature::SECRET);
    assert_eq!(hello(3, 2, feature::SECRET | 4).check(&mine), Ok(()));
    assert_eq!(hello(3, 3, feature::SECRET).check(&mine), Err(Refusal::Cluster));
    assert_eq!(hello(1, 2, feature::SECRET).check(&mine), Err(Refusal::Own));
    assert_eq!(hello(3, 2, 4).check(&mine), Err(Refusal::Secret));
}
