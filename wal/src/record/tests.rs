//! Tests of records.

use super::*;
use proptest::prelude::*;

const STORE: [u8; 16] = [9; 16];
/// A version of the store's own.
const OWN: Version = Version([1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9]);

fn place() -> Place {
    Place { store: STORE, segment: 2, offset: 4176 }
}

/// A put of which nothing is told that need not be.
fn plain_put<'a>(user_key: &'a [u8], value: &'a [u8]) -> Record<'a> {
    Record {
        kind: RecordKind::Put,
        namespace: Namespace::PLAIN,
        key: Key::of(user_key),
        hashed: true,
        user_key,
        version: OWN,
        expiry_ms: 0,
        value,
    }
}

/// A put with every field that there is.
fn full_put<'a>(user_key: &'a [u8], value: &'a [u8]) -> Record<'a> {
    let plain = plain_put(user_key, value);
    Record { key: Key([3; 20]), hashed: false, version: Version([1; 16]), expiry_ms: 77, ..plain }
}

fn encoded(record: &Record<'_>, first_lsn: Option<Lsn>) -> Vec<u8> {
    let mut out = IoBuffer::with_capacity(record.encoded_len_max());
    record.encode(&place(), first_lsn, &mut out);
    assert!(out.len() <= record.encoded_len_max());
    out.as_slice().to_vec()
}

fn check_round_trip(record: &Record<'_>, first_lsn: Option<Lsn>) {
    let bytes = encoded(record, first_lsn);
    let header = RecordHeader::decode(&bytes, &place()).unwrap();
    let value = header.value(&bytes).unwrap();
    assert_eq!(value, record.value);
    assert_eq!((header.kind, header.namespace), (record.kind, record.namespace));
    assert_eq!((header.key, header.user_key), (record.key, record.user_key));
    assert_eq!((header.version, header.expiry_ms), (record.version, record.expiry_ms));
    assert_eq!((header.first_lsn, header.hashed), (first_lsn, record.hashed));
    assert_eq!(header.len(), record.header_len(&STORE, first_lsn));
    assert_eq!(header.record_len(), bytes.len());
    assert!(bytes.len() >= RECORD_LEN_MIN && bytes.len().is_multiple_of(RECORD_ALIGNMENT));
    assert!(is_plausible(&bytes));
    assert_eq!(encoded(&header.record(value), header.first_lsn), bytes);
}

/// The record's bytes with this done to them, sealed again.
fn forged(record: &Record<'_>, change: impl FnOnce(&mut [u8])) -> Result<(), RecordError> {
    let mut bytes = encoded(record, Some(Lsn(5)));
    change(&mut bytes);
    let len = record.header_len(&STORE, Some(Lsn(5)));
    let crc = checksum::seeded(&place(), &[&bytes[4..len]]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    RecordHeader::decode(&bytes, &place()).map(|_| ())
}

#[test]
fn records_round_trip_at_the_edges() {
    for value_len in [0, 1, VALUE_CHUNK_LEN, VALUE_CHUNK_LEN + 1, 3 * VALUE_CHUNK_LEN + 7] {
        for user_key in [&[][..], &[1; USER_KEY_LEN_MAX]] {
            let value = vec![0xAB; value_len];
            check_round_trip(&plain_put(user_key, &value), None);
            check_round_trip(&full_put(user_key, &value), Some(Lsn(5)));
        }
    }
}

#[test]
fn usual_record_has_24_bytes_besides_user_key_and_value() {
    let (user_key, value) = ([7; 16], [1; 256]);
    let plain = plain_put(&user_key, &value);
    assert_eq!(plain.header_len(&STORE, None), 24 + 16);
    assert_eq!(encoded(&plain, None).len(), 24 + 16 + 256);
    let full = full_put(&user_key, &value);
    assert_eq!(full.header_len(&STORE, Some(Lsn(5))), 24 + 44 + 16);
    assert_eq!(full.encoded_len_max(), encoded(&full, Some(Lsn(5))).len());
}

#[test]
fn no_two_records_start_in_one_line() {
    let bare = Record { kind: RecordKind::Tombstone, ..plain_put(&[], &[]) };
    assert_eq!(encoded(&bare, None).len(), RECORD_LEN_MIN);
    let location = Location { segment: 1, offset: 8, header_len: 24, value_len: 0 };
    assert_eq!(location.record_len(), RECORD_LEN_MIN as u64);
    let location = Location { header_len: 70, value_len: 3, ..location };
    assert_eq!(location.record_len(), 80);
}

#[test]
fn first_lsn_is_told_of_copies_and_large_values() {
    assert_eq!(told_lsn(Lsn(7), Lsn(7), UNNUMBERED_VALUE_LEN_MAX), None);
    assert_eq!(told_lsn(Lsn(7), Lsn(7), UNNUMBERED_VALUE_LEN_MAX + 1), Some(Lsn(7)));
    assert_eq!(told_lsn(Lsn(7), Lsn(3), 0), Some(Lsn(3)));
}

#[test]
fn every_flipped_byte_is_noticed() {
    let value = [5; 2 * VALUE_CHUNK_LEN];
    for (record, first_lsn) in [
        (full_put(b"user key", &value), Some(Lsn(5))),
        (plain_put(b"user key", &value), None),
        (plain_put(b"user key", &value[..9]), None),
    ] {
        let bytes = encoded(&record, first_lsn);
        let len = record.header_len(&STORE, first_lsn) + record.value.len();
        for position in 0..len {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x10;
            let verdict = RecordHeader::decode(&damaged, &place())
                .and_then(|header| header.value(&damaged).map(<[u8]>::len));
            assert!(verdict.is_err(), "flip at {position} went unnoticed");
        }
    }
}

#[test]
fn record_of_another_place_is_refused() {
    let bytes = encoded(&plain_put(b"k", b"v"), None);
    let elsewhere = place().at(8);
    let error = RecordHeader::decode(&bytes, &elsewhere).unwrap_err();
    assert!(matches!(error, RecordError::HeaderChecksum { .. }));
    assert!(RecordHeader::decode(&[0; 4096], &place()).is_err());
    assert!(!is_plausible(&[0; 4096]) && !is_plausible(&bytes[..23]));
}

#[test]
fn what_goes_without_saying_or_means_nothing_is_refused() {
    // The optional fields of a full header stand at 24, 44, 52 and 60.
    let value = [1; 300];
    let full = full_put(b"k", &value);
    let redundant = |flag| Err(RecordError::Redundant { flag });
    assert_eq!(forged(&full, |_| ()), Ok(()));
    assert_eq!(forged(&full, |b| b[44..52].fill(9)), redundant(HAS_SECOND_HALF));
    assert_eq!(forged(&full, |b| b[52..60].fill(0)), redundant(HAS_EXPIRY));
    assert_eq!(forged(&full, |b| b[60..68].fill(0)), redundant(HAS_FIRST_LSN));
    assert_eq!(forged(&full, |b| b[60..68].fill(0xFF)), redundant(HAS_FIRST_LSN));
    let unknown = |position, found| Err(RecordError::Unknown { position, found });
    for flag in [16, 32, 64, 128] {
        assert_eq!(forged(&full, |b| b[5] |= flag), unknown(5, 15 | flag));
    }
    for kind in [0, 5, 15] {
        assert_eq!(forged(&full, |b| b[4] = kind), unknown(4, kind));
    }
    let large = [1; VALUE_CHUNK_LEN + 1];
    assert_eq!(forged(&full_put(b"k", &large), |b| b[12] = 1), unknown(12, 1));
    // A key may be told although it is the hash of the user key.
    let told = Record { hashed: false, ..plain_put(b"k", &value) };
    check_round_trip(&told, Some(Lsn(5)));
}

#[test]
fn copy_keeps_the_checksums_of_the_value_and_tells_its_first_lsn() {
    for value in [vec![5; 100], vec![6; 2 * VALUE_CHUNK_LEN + 3]] {
        for record in [plain_put(b"user key", &value), full_put(b"user key", &value)] {
            let original = encoded(&record, None);
            let header = RecordHeader::decode(&original, &place()).unwrap();
            let mut copy = IoBuffer::with_capacity(record.encoded_len_max());
            let there = Place { segment: 77, ..place().at(4096) };
            let verified = header.value(&original).unwrap();
            header.encode_copy(verified, &there, Lsn(5), &mut copy);
            let copied = RecordHeader::decode(copy.as_slice(), &there).unwrap();
            assert_eq!(copied.first_lsn, Some(Lsn(5)));
            assert_eq!((copied.key, copied.hashed), (header.key, header.hashed));
            assert_eq!(copied.version, header.version);
            assert_eq!(copied.value(copy.as_slice()).unwrap(), value);
            // A value damaged on the way keeps the checksum it had, and is found out.
            let mut damaged = value.clone();
            damaged[50] ^= 1;
            copy.set_len(0);
            header.encode_copy(&damaged, &there, Lsn(5), &mut copy);
            let copied = RecordHeader::decode(copy.as_slice(), &there).unwrap();
            assert!(copied.value(copy.as_slice()).is_err());
        }
    }
}

#[test]
fn touch_body_round_trips() {
    let base = Location { segment: 4, offset: 9, header_len: 80, value_len: 33 };
    let body = TouchBody { base, user_key_crc: 5, base_lsn: Lsn(6) };
    assert_eq!(TouchBody::decode(&body.encode()), Some(body));
    assert_eq!(TouchBody::decode(&[0; 31]), None);
}

fn any_kind() -> impl Strategy<Value = RecordKind> {
    use RecordKind::{Clear, Put, Tombstone, Touch};
    prop::sample::select(vec![Put, Tombstone, Touch, Clear])
}

proptest! {
    #[test]
    fn arbitrary_records_round_trip(
        kind in any_kind(),
        namespace in 0..16u8,
        given in any::<Option<[u8; 20]>>(),
        version in any::<[u8; 16]>(),
        own in any::<bool>(),
        expiry_ms in prop_oneof![Just(0), any::<u64>()],
        first_lsn in prop::option::of(1..=Lsn::MAX.0),
        user_key in prop::collection::vec(any::<u8>(), 0..300),
        value in prop::collection::vec(any::<u8>(), 0..20_000),
    ) {
        let mut version = Version(version);
        if own {
            version.0[8..].copy_from_slice(&own_half(&STORE));
        }
        let record = Record {
            kind,
            namespace: Namespace(namespace),
            key: given.map_or_else(|| Key::of(&user_key), Key),
            hashed: given.is_none(),
            user_key: &user_key,
            version,
            expiry_ms,
            value: &value,
        };
        check_round_trip(&record, first_lsn.map(Lsn));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = RecordHeader::decode(&bytes, &place());
        let _ = is_plausible(&bytes);
    }

    #[test]
    fn arbitrary_sealed_bytes_never_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 24..400),
        flags in 0..16u8,
        user_key_len in 0..200u8,
    ) {
        (bytes[5], bytes[6], bytes[7]) = (flags, user_key_len, 0);
        bytes[8..12].copy_from_slice(&8u32.to_le_bytes());
        let len = header_len(flags, usize::from(user_key_len), 8).min(bytes.len());
        let crc = checksum::seeded(&place(), &[&bytes[4..len]]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        if let Ok(header) = RecordHeader::decode(&bytes, &place()) {
            prop_assert_eq!(header.len(), len);
            let _ = header.value(&bytes);
        }
    }
}
