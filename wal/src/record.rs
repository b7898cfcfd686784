//! One record: a key, its version and expiry, and a value, with checksums of its own.
//!
//! All integers are little-endian. Records start at multiples of 8 bytes within a frame.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | header CRC | CRC-32 of the record's place and of bytes 4 to the end of the header |
//! | 4 | 1 | kind | 1 put, 2 tombstone, 3 touch, 4 clear |
//! | 5 | 1 | flags | 0; others are refused |
//! | 6 | 1 | namespace | 0 plain; others belong to later uses |
//! | 7 | 1 | reserved | 0 |
//! | 8 | 20 | key | key id (SHA-1 of the user key) |
//! | 28 | 2 | user key length | bytes |
//! | 30 | 2 | reserved | 0 |
//! | 32 | 16 | version | opaque, ordered bytewise |
//! | 48 | 8 | expiry | milliseconds since 1970, 0 = never |
//! | 56 | 8 | first LSN | where the record was first logged; copies keep it |
//! | 64 | 4 | value length | bytes |
//! | 68 | 4 | value CRC | CRC-32 of the value up to 8 KiB; above, 0 |
//! | 72 | n | user key | |
//! | 72 + n | 4 m | chunk CRCs | above 8 KiB only: CRC-32 of each 8 KiB chunk of the value |
//! | | | value | then zeros up to a multiple of 8 |
//!
//! The header is everything before the value. Value CRCs are not seeded: they stay true when a
//! value moves to another segment or another node. Touch records carry a [`TouchBody`] as value;
//! clear records forget every key of the namespace whose version is not above theirs.

use crate::checksum::{self, Place};
use crate::disk::IoBuffer;
use crate::lsn::Lsn;

/// Bytes of the header before the user key.
pub const RECORD_HEADER_LEN: usize = 72;
/// Longest user key in bytes.
pub const USER_KEY_LEN_MAX: usize = 65_535;
/// Longest value in bytes that the format admits here.
pub const VALUE_LEN_MAX: usize = 32 << 20;
/// Values above this are checksummed in chunks of this size: CRC-32 keeps Hamming distance 4 up to
/// about 11 KiB.
pub const VALUE_CHUNK_LEN: usize = 8 << 10;
/// Records start at multiples of this many bytes.
pub const RECORD_ALIGNMENT: usize = 8;

/// A key id: 160 bits, ordered as Kademlia orders them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 20]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A version: opaque to the log and the store, ordered bytewise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u8; 16]);

/// A kind of key, kept apart from the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(pub u8);

impl Namespace {
    /// Keys of the Redis door.
    pub const PLAIN: Self = Self(0);
}

/// What a record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The key has this value.
    Put,
    /// The key is deleted.
    Tombstone,
    /// The key's value, elsewhere in the log, has a new expiry and version.
    Touch,
    /// Every key of the namespace up to this version is deleted.
    Clear,
}

impl RecordKind {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Put => 1,
            Self::Tombstone => 2,
            Self::Touch => 3,
            Self::Clear => 4,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Put),
            2 => Some(Self::Tombstone),
            3 => Some(Self::Touch),
            4 => Some(Self::Clear),
            _ => None,
        }
    }
}

/// A record to be written.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// What it says.
    pub kind: RecordKind,
    /// Which kind of key.
    pub namespace: Namespace,
    /// The key id.
    pub key: Key,
    /// The user key, at most [`USER_KEY_LEN_MAX`] bytes.
    pub user_key: &'a [u8],
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// The value, at most [`VALUE_LEN_MAX`] bytes.
    pub value: &'a [u8],
}

impl Record<'_> {
    /// Bytes this record takes in a frame, padding included.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        padded_len(header_len(self.user_key.len(), self.value.len()) + self.value.len())
    }

    /// Appends the record to `out`, as it stands at `place` in the log.
    ///
    /// # Panics
    /// If the user key or the value is longer than the format admits, or `out` has no room.
    pub fn encode(&self, place: &Place, first_lsn: Lsn, out: &mut IoBuffer) {
        let chunked = self.value.len() > VALUE_CHUNK_LEN;
        let fields = FixedFields {
            kind: self.kind,
            namespace: self.namespace,
            key: self.key,
            user_key_len: self.user_key.len(),
            version: self.version,
            expiry_ms: self.expiry_ms,
            first_lsn,
            value_len: self.value.len(),
            value_crc: if chunked { 0 } else { checksum::plain(self.value) },
        };
        let start = out.len();
        out.extend_from_slice(&fields.encode());
        out.extend_from_slice(self.user_key);
        if chunked {
            for chunk in self.value.chunks(VALUE_CHUNK_LEN) {
                out.extend_from_slice(&checksum::plain(chunk).to_le_bytes());
            }
        }
        finish(place, start, self.value, out);
    }

    /// Appends the header alone to `out`, as it stands at `place` in the log, for a value whose
    /// chunks have the checksums `sums`.
    ///
    /// # Panics
    /// If the value is not chunked or has another number of chunks, if it or the user key is longer
    /// than the format admits, or `out` has no room.
    pub fn encode_header(&self, place: &Place, first_lsn: Lsn, sums: &[u32], out: &mut IoBuffer) {
        let chunked = self.value.len() > VALUE_CHUNK_LEN;
        assert!(chunked && sums.len() == self.value.len().div_ceil(VALUE_CHUNK_LEN), "chunk sums");
        let fields = FixedFields {
            kind: self.kind,
            namespace: self.namespace,
            key: self.key,
            user_key_len: self.user_key.len(),
            version: self.version,
            expiry_ms: self.expiry_ms,
            first_lsn,
            value_len: self.value.len(),
            value_crc: 0,
        };
        let start = out.len();
        out.extend_from_slice(&fields.encode());
        out.extend_from_slice(self.user_key);
        sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        seal_header(place, start, out);
    }
}

/// The fields of a header that every record has, but for the header's own checksum.
struct FixedFields {
    kind: RecordKind,
    namespace: Namespace,
    key: Key,
    user_key_len: usize,
    version: Version,
    expiry_ms: u64,
    first_lsn: Lsn,
    value_len: usize,
    value_crc: u32,
}

impl FixedFields {
    fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        assert!(self.value_len <= VALUE_LEN_MAX, "a value of {} bytes", self.value_len);
        let user_key_len = u16::try_from(self.user_key_len).expect("a user key fits its length");
        let value_len = u32::try_from(self.value_len).expect("a value fits its length");
        let mut fixed = [0u8; RECORD_HEADER_LEN];
        fixed[4] = self.kind.code();
        fixed[6] = self.namespace.0;
        fixed[8..28].copy_from_slice(&self.key.0);
        fixed[28..30].copy_from_slice(&user_key_len.to_le_bytes());
        fixed[32..48].copy_from_slice(&self.version.0);
        fixed[48..56].copy_from_slice(&self.expiry_ms.to_le_bytes());
        fixed[56..64].copy_from_slice(&self.first_lsn.0.to_le_bytes());
        fixed[64..68].copy_from_slice(&value_len.to_le_bytes());
        fixed[68..72].copy_from_slice(&self.value_crc.to_le_bytes());
        fixed
    }
}

/// Seals the header that `out` holds from `start` on, then appends the value and the padding.
fn finish(place: &Place, start: usize, value: &[u8], out: &mut IoBuffer) {
    seal_header(place, start, out);
    out.extend_from_slice(value);
    let padding = padded_len(out.len() - start) - (out.len() - start);
    out.extend_from_slice(&[0; RECORD_ALIGNMENT][..padding]);
}

/// Fills in the checksum of the header that `out` holds from `start` on.
fn seal_header(place: &Place, start: usize, out: &mut IoBuffer) {
    let header = &mut out.as_mut_slice()[start..];
    let crc = checksum::seeded(place, &[&header[4..]]);
    header[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Rounds a record's length up to where the next one starts.
#[must_use]
pub fn padded_len(len: usize) -> usize {
    len.next_multiple_of(RECORD_ALIGNMENT)
}

/// Bytes before the value of a record with these lengths.
#[must_use]
pub fn header_len(user_key_len: usize, value_len: usize) -> usize {
    let chunks = if value_len > VALUE_CHUNK_LEN { value_len.div_ceil(VALUE_CHUNK_LEN) } else { 0 };
    RECORD_HEADER_LEN + user_key_len + 4 * chunks
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The bytes end before the header or the value does.
    #[error("record of {needed} bytes cut after {found}")]
    Truncated {
        /// Bytes the record takes by its own account.
        needed: usize,
        /// Bytes there are.
        found: usize,
    },
    /// The header's checksum does not match: damaged, or no record, or not of this place.
    #[error("record header checksum {found:08x}, expected {expected:08x}")]
    HeaderChecksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// A field has a value this version does not know.
    #[error("record field at byte {position} is {found}")]
    Unknown {
        /// Which byte.
        position: usize,
        /// Its value.
        found: u8,
    },
    /// A chunk of the value does not match its checksum.
    #[error("value checksum {found:08x}, expected {expected:08x}, in bytes from {position} on")]
    ValueChecksum {
        /// Where the chunk starts in the value.
        position: usize,
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
}

/// A decoded record header, borrowing from the bytes it was decoded from.
#[derive(Clone, Copy, Debug)]
pub struct RecordHeader<'a> {
    /// What the record says.
    pub kind: RecordKind,
    /// Which kind of key.
    pub namespace: Namespace,
    /// The key id.
    pub key: Key,
    /// The user key.
    pub user_key: &'a [u8],
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// Where the record was first logged.
    pub first_lsn: Lsn,
    /// Bytes of the value.
    pub value_len: usize,
    value_crc: u32,
    chunk_crcs: &'a [u8],
}

impl<'a> RecordHeader<'a> {
    /// Decodes and verifies the header of the record at `place`, whose bytes `bytes` starts with.
    ///
    /// # Errors
    /// All of [`RecordError`] but [`RecordError::ValueChecksum`].
    pub fn decode(bytes: &'a [u8], place: &Place) -> Result<Self, RecordError> {
        let truncated = |needed| RecordError::Truncated { needed, found: bytes.len() };
        let fixed: &[u8; RECORD_HEADER_LEN] =
            bytes.first_chunk().ok_or_else(|| truncated(RECORD_HEADER_LEN))?;
        let user_key_len = usize::from(u16::from_le_bytes(field(fixed, 28)));
        let value_len = usize::try_from(u32::from_le_bytes(field(fixed, 64)))
            .map_err(|_| truncated(usize::MAX))?;
        let len = header_len(user_key_len, value_len);
        let header = bytes.get(..len).ok_or_else(|| truncated(len))?;
        let expected = u32::from_le_bytes(field(fixed, 0));
        let found = checksum::seeded(place, &[header.get(4..).unwrap_or_default()]);
        if expected != found {
            return Err(RecordError::HeaderChecksum { expected, found });
        }
        let unknown = |position: usize| RecordError::Unknown { position, found: fixed[position] };
        let kind = RecordKind::from_code(fixed[4]).ok_or_else(|| unknown(4))?;
        if fixed[5] != 0 {
            return Err(unknown(5));
        }
        if value_len > VALUE_LEN_MAX {
            return Err(unknown(67));
        }
        let (_, rest) = header.split_at(RECORD_HEADER_LEN);
        let (user_key, chunk_crcs) = rest.split_at(user_key_len);
        Ok(Self {
            kind,
            namespace: Namespace(fixed[6]),
            key: Key(field(fixed, 8)),
            user_key,
            version: Version(field(fixed, 32)),
            expiry_ms: u64::from_le_bytes(field(fixed, 48)),
            first_lsn: Lsn(u64::from_le_bytes(field(fixed, 56))),
            value_len,
            value_crc: u32::from_le_bytes(field(fixed, 68)),
            chunk_crcs,
        })
    }

    /// Bytes before the value.
    #[must_use]
    pub fn len(&self) -> usize {
        header_len(self.user_key.len(), self.value_len)
    }

    /// Never: a header has a fixed part.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the whole record, padding included.
    #[must_use]
    pub fn record_len(&self) -> usize {
        padded_len(self.len() + self.value_len)
    }

    /// Appends a copy of the record to `out`, as it stands at `place` in the log: it keeps its
    /// first LSN, version and value checksums. The caller has verified the value: it is not
    /// summed again, so that damage in between cannot go unnoticed later.
    ///
    /// # Panics
    /// If the value does not have the length that the header says, or `out` has no room.
    pub fn encode_copy(&self, value: &[u8], place: &Place, out: &mut IoBuffer) {
        assert_eq!(value.len(), self.value_len, "a copy has the value of its original");
        let fields = FixedFields {
            kind: self.kind,
            namespace: self.namespace,
            key: self.key,
            user_key_len: self.user_key.len(),
            version: self.version,
            expiry_ms: self.expiry_ms,
            first_lsn: self.first_lsn,
            value_len: self.value_len,
            value_crc: self.value_crc,
        };
        let start = out.len();
        out.extend_from_slice(&fields.encode());
        out.extend_from_slice(self.user_key);
        out.extend_from_slice(self.chunk_crcs);
        finish(place, start, value, out);
    }

    /// Appends a copy of the header alone to `out`, as it stands at `place` in the log: as long as
    /// the original, and all it says is the same.
    ///
    /// # Panics
    /// If `out` has no room.
    pub fn encode_header_copy(&self, place: &Place, out: &mut IoBuffer) {
        let fields = FixedFields {
            kind: self.kind,
            namespace: self.namespace,
            key: self.key,
            user_key_len: self.user_key.len(),
            version: self.version,
            expiry_ms: self.expiry_ms,
            first_lsn: self.first_lsn,
            value_len: self.value_len,
            value_crc: self.value_crc,
        };
        let start = out.len();
        out.extend_from_slice(&fields.encode());
        out.extend_from_slice(self.user_key);
        out.extend_from_slice(self.chunk_crcs);
        seal_header(place, start, out);
    }

    /// Checksums of the value's chunks; none of a value that is not chunked.
    pub fn chunk_sums(&self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.chunk_crcs.as_chunks().0.iter().map(|crc| u32::from_le_bytes(*crc))
    }

    /// Takes the value out of the bytes that the header was decoded from and verifies it.
    ///
    /// # Errors
    /// [`RecordError::Truncated`] and [`RecordError::ValueChecksum`].
    pub fn value<'b>(&self, bytes: &'b [u8]) -> Result<&'b [u8], RecordError> {
        let needed = self.len() + self.value_len;
        let value = bytes
            .get(self.len()..needed)
            .ok_or(RecordError::Truncated { needed, found: bytes.len() })?;
        if self.chunk_crcs.is_empty() {
            verify_chunk(value, 0, self.value_crc)?;
        } else {
            let crcs = self.chunk_crcs.as_chunks().0.iter();
            for (index, (chunk, crc)) in value.chunks(VALUE_CHUNK_LEN).zip(crcs).enumerate() {
                verify_chunk(chunk, index * VALUE_CHUNK_LEN, u32::from_le_bytes(*crc))?;
            }
        }
        Ok(value)
    }
}

fn verify_chunk(chunk: &[u8], position: usize, expected: u32) -> Result<(), RecordError> {
    let found = checksum::plain(chunk);
    if found == expected {
        Ok(())
    } else {
        Err(RecordError::ValueChecksum { position, expected, found })
    }
}

/// Takes `N` bytes at a fixed offset of a fixed header.
fn field<const N: usize, const LEN: usize>(bytes: &[u8; LEN], offset: usize) -> [u8; N] {
    *bytes[offset..].first_chunk().expect("fields lie within the fixed header")
}

/// Where a record stands, and how long its parts are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The segment's id.
    pub segment: u64,
    /// The record's offset in the segment, in bytes.
    pub offset: u32,
    /// Bytes before the value.
    pub header_len: u32,
    /// Bytes of the value.
    pub value_len: u32,
}

/// The value of a touch record: which record's value it is about.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | segment id of the put |
/// | 8 | 4 | its offset in the segment |
/// | 12 | 4 | its header length |
/// | 16 | 4 | its value length |
/// | 20 | 4 | CRC-32 of its user key |
/// | 24 | 8 | its first LSN |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TouchBody {
    /// Where the put stands.
    pub base: Location,
    /// CRC-32 of the user key, so that the index knows it without reading the put.
    pub user_key_crc: u32,
    /// The put's first LSN.
    pub base_lsn: Lsn,
}

impl TouchBody {
    /// Encoded size in bytes.
    pub const LEN: usize = 32;

    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0..8].copy_from_slice(&self.base.segment.to_le_bytes());
        out[8..12].copy_from_slice(&self.base.offset.to_le_bytes());
        out[12..16].copy_from_slice(&self.base.header_len.to_le_bytes());
        out[16..20].copy_from_slice(&self.base.value_len.to_le_bytes());
        out[20..24].copy_from_slice(&self.user_key_crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.base_lsn.0.to_le_bytes());
        out
    }

    /// Decodes it; the record's checksums have vouched for the bytes.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        Some(Self {
            base: Location {
                segment: u64::from_le_bytes(field(bytes, 0)),
                offset: u32::from_le_bytes(field(bytes, 8)),
                header_len: u32::from_le_bytes(field(bytes, 12)),
                value_len: u32::from_le_bytes(field(bytes, 16)),
            },
            user_key_crc: u32::from_le_bytes(field(bytes, 20)),
            base_lsn: Lsn(u64::from_le_bytes(field(bytes, 24))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place() -> Place {
        Place { store: [9; 16], segment: 2, offset: 4176 }
    }

    fn encoded(user_key: &[u8], value: &[u8]) -> Vec<u8> {
        let record = Record {
            kind: RecordKind::Put,
            namespace: Namespace::PLAIN,
            key: Key([3; 20]),
            user_key,
            version: Version([1; 16]),
            expiry_ms: 77,
            value,
        };
        let mut out = IoBuffer::with_capacity(record.encoded_len());
        record.encode(&place(), Lsn(5), &mut out);
        assert_eq!(out.len(), record.encoded_len());
        out.as_slice().to_vec()
    }

    fn check_round_trip(user_key: &[u8], value: &[u8]) {
        let bytes = encoded(user_key, value);
        let header = RecordHeader::decode(&bytes, &place()).unwrap();
        assert_eq!(header.user_key, user_key);
        assert_eq!(header.value(&bytes).unwrap(), value);
        assert_eq!((header.expiry_ms, header.first_lsn), (77, Lsn(5)));
        assert_eq!(header.record_len(), bytes.len());
    }

    #[test]
    fn records_round_trip_at_the_edges() {
        for value_len in [0, 1, VALUE_CHUNK_LEN, VALUE_CHUNK_LEN + 1, 3 * VALUE_CHUNK_LEN + 7] {
            check_round_trip(b"", &vec![0xAB; value_len]);
            check_round_trip(&vec![1; USER_KEY_LEN_MAX], &vec![0xAB; value_len]);
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let bytes = encoded(b"user key", &[5; 2 * VALUE_CHUNK_LEN]);
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0x10;
            let verdict = RecordHeader::decode(&damaged, &place())
                .and_then(|header| header.value(&damaged).map(<[u8]>::len));
            assert!(verdict.is_err(), "flip at {position} went unnoticed");
        }
    }

    #[test]
    fn record_of_another_place_is_refused() {
        let bytes = encoded(b"k", b"v");
        let elsewhere = place().at(8);
        let error = RecordHeader::decode(&bytes, &elsewhere).unwrap_err();
        assert!(matches!(error, RecordError::HeaderChecksum { .. }));
        assert!(RecordHeader::decode(&[0; 4096], &place()).is_err());
    }

    #[test]
    fn copy_keeps_first_lsn_and_the_checksums_of_the_value() {
        for value in [vec![5; 100], vec![6; 2 * VALUE_CHUNK_LEN + 3]] {
            let original = encoded(b"user key", &value);
            let header = RecordHeader::decode(&original, &place()).unwrap();
            let mut copy = IoBuffer::with_capacity(original.len());
            let there = Place { segment: 77, ..place().at(4096) };
            header.encode_copy(header.value(&original).unwrap(), &there, &mut copy);
            assert_eq!(copy.as_slice()[4..], original[4..], "only the place differs");
            let copied = RecordHeader::decode(copy.as_slice(), &there).unwrap();
            assert_eq!(copied.first_lsn, header.first_lsn);
            assert_eq!(copied.value(copy.as_slice()).unwrap(), value);
            // A value damaged on the way keeps the checksum it had, and is found out.
            let mut damaged = value.clone();
            damaged[50] ^= 1;
            copy.set_len(0);
            header.encode_copy(&damaged, &there, &mut copy);
            let copied = RecordHeader::decode(copy.as_slice(), &there).unwrap();
            assert!(copied.value(copy.as_slice()).is_err());
        }
    }

    #[test]
    fn touch_body_round_trips() {
        let base = Location { segment: 4, offset: 9, header_len: 80, value_len: 33 };
        let body = TouchBody { base, user_key_crc: 5, base_lsn: Lsn(6) };
        assert_eq!(TouchBody::decode(&body.encode()), Some(body));
        assert_eq!(TouchBody::decode(&[0; 31]), None);
    }

    proptest! {
        #[test]
        fn arbitrary_records_round_trip(
            key in prop::collection::vec(any::<u8>(), 0..300),
            value in prop::collection::vec(any::<u8>(), 0..20_000),
        ) {
            check_round_trip(&key, &value);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = RecordHeader::decode(&bytes, &place());
        }
    }
}
