//! Messages: what is written is read again; nothing else does harm.

use fastrand::Rng;

use super::codec::{CHUNK_BYTES_MAX, MessageError, MessageReader, encode};
use super::frame::FrameError;
use super::*;

const VALUE_LEN_MAX: usize = 4 * CHUNK_BYTES_MAX;

fn bytes(rng: &mut Rng, len: usize) -> Bytes {
    (0..len).map(|_| rng.u8(..)).collect::<Vec<_>>().into()
}

fn record(rng: &mut Rng, len: Option<usize>) -> Record {
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
fn messages(rng: &mut Rng) -> Vec<PeerMessage> {
    let request = RequestId(rng.u64(..));
    let node = NodeId::random(rng);
    let key = Key(NodeId::random(rng).0);
    let prefix = Prefix::of(&key, rng.u8(..=160));
    let version = record(rng, None).version;
    let entries = vec![Entry { namespace: Namespace(0), key, version, is_tombstone: rng.bool() }];
    let member = MemberEntry {
        node,
        address: bytes(rng, 20),
        incarnation: rng.u64(..),
        phase: Phase::Leaving,
        standing: Standing::Suspected,
    };
    let hello = Hello { version: 1, cluster: node, node, features: 3, address: bytes(rng, 9) };
    let put = |record| PeerMessage::Put { request, reason: PutReason::Repair, record };
    let got = |found| PeerMessage::Got { request, is_ready: true, found };
    let mut all = vec![
        PeerMessage::Hello(hello),
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

fn read_all(reader: &mut MessageReader) -> Result<Vec<PeerMessage>, MessageError> {
    let mut found = Vec::new();
    while let Some(message) = reader.poll_message()? {
        found.push(message);
    }
    Ok(found)
}

#[test]
fn messages_are_read_as_they_are_written_however_they_are_cut() {
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let all = messages(&mut rng);
        let stream: Vec<u8> = all.iter().flat_map(flat).collect();
        let mut reader = MessageReader::new(VALUE_LEN_MAX);
        let (mut found, mut rest) = (Vec::new(), &stream[..]);
        while !rest.is_empty() {
            let len = if rng.bool() { rng.usize(1..40) } else { rng.usize(1..100_000) };
            let (piece, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            reader.feed(piece);
            found.extend(read_all(&mut reader).unwrap());
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
    let mut reader = MessageReader::new(VALUE_LEN_MAX);
    let mut found = Vec::new();
    for piece in encode(&large) {
        piece.iter().for_each(|bytes| reader.feed(bytes));
        reader.feed(&flat(&small));
        found.extend(read_all(&mut reader).unwrap());
    }
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
        let mut reader = MessageReader::new(100);
        reader.feed(&stream);
        let _ = read_all(&mut reader);
        assert!(reader.held_bytes() <= stream.len());
    }
}

#[track_caller]
fn check_refused(stream: &[u8], error: MessageError) {
    let mut reader = MessageReader::new(1000);
    reader.feed(stream);
    assert_eq!(read_all(&mut reader), Err(error));
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

#[test]
fn a_hello_of_others_is_refused_by_name() {
    let [own, other] = [1, 2].map(|byte| NodeId([byte; 20]));
    let hello = |node, cluster, version| Hello {
        version,
        cluster,
        node,
        features: 0,
        address: Bytes::new(),
    };
    let mine = hello(own, other, 1);
    assert_eq!(hello(other, other, 1).check(&mine), Ok(()));
    assert_eq!(hello(other, other, 2).check(&mine), Err(HelloError::Version { found: 2 }));
    assert_eq!(hello(other, own, 1).check(&mine), Err(HelloError::Cluster { found: own }));
    assert_eq!(hello(own, other, 1).check(&mine), Err(HelloError::Own));
}
