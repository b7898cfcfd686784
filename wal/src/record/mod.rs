//! One record: a key, its version and expiry, and a value, with checksums of its own.
//!
//! All integers are little-endian. Records start at multiples of 8 bytes within a frame.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | header CRC | CRC-32 of the record's place and of bytes 4 to the end of the header |
//! | 4 | 1 | kind, namespace | low 4 bits: 1 put, 2 tombstone, 3 touch, 4 clear; high 4 bits: namespace |
//! | 5 | 1 | flags | which of the fields below are there; unknown ones are refused |
//! | 6 | 2 | user key length | bytes |
//! | 8 | 4 | value length | bytes |
//! | 12 | 4 | value CRC | CRC-32 of the value up to 8 KiB; above, 0 |
//! | 16 | 8 | version, first half | bytes 0 to 7 of the version, which is ordered bytewise |
//! | | 20 | key | flag 1; if not there, SHA-1 of the user key |
//! | | 8 | version, second half | flag 2; if not there, the first 8 bytes of the store's uuid |
//! | | 8 | expiry | flag 4; milliseconds since 1970; if not there, 0 = never |
//! | | 8 | first LSN | flag 8; where the record was first logged; if not there, here |
//! | | n | user key | |
//! | | 4 m | chunk CRCs | above 8 KiB only: CRC-32 of each 8 KiB chunk of the value |
//! | | | value | then zeros up to a multiple of 8, and to 64 bytes in all |
//!
//! The header is everything before the value. Value CRCs are not seeded: they stay true when a
//! value moves to another segment or another node. Touch records carry a [`TouchBody`] as value;
//! clear records forget every key of the namespace whose version is not above theirs.
//!
//! A record has one form: a second half or an expiry that goes without saying is refused. A key
//! and a first LSN may be told although they need not be: nothing but hashing or the rest of the
//! frame would show it.

use sha1::{Digest, Sha1};

use crate::checksum::{self, Place};
use crate::disk::IoBuffer;
use crate::lsn::Lsn;

/// Bytes of the fields that every header starts with.
pub const RECORD_FIXED_LEN: usize = 24;
/// Fewest bytes of a record, padding included: no two start in one stretch of as many bytes that
/// starts at a multiple of them.
pub const RECORD_LEN_MIN: usize = 64;
/// Longest user key in bytes.
pub const USER_KEY_LEN_MAX: usize = 65_535;
/// Longest header, apart from the checksums of the value's chunks.
pub const RECORD_HEADER_LEN_MAX: usize = FIELDS_ROOM + USER_KEY_LEN_MAX;
/// Longest header before the user key.
const FIELDS_ROOM: usize = RECORD_FIXED_LEN + 20 + 8 + 8 + 8;
/// Longest value in bytes that the format admits here.
pub const VALUE_LEN_MAX: usize = 32 << 20;
/// Values above this are checksummed in chunks of this size: CRC-32 keeps Hamming distance 4 up to
/// about 11 KiB.
pub const VALUE_CHUNK_LEN: usize = 8 << 10;
/// A record with a longer value tells its first LSN in any case: a touch record names the value by
/// it, and who reads a single record cannot tell its LSN otherwise.
pub const UNNUMBERED_VALUE_LEN_MAX: usize = 4 << 10;
/// Records start at multiples of this many bytes.
pub const RECORD_ALIGNMENT: usize = 8;

const HAS_KEY: u8 = 1;
const HAS_SECOND_HALF: u8 = 2;
const HAS_EXPIRY: u8 = 4;
const HAS_FIRST_LSN: u8 = 8;
const FLAGS: u8 = HAS_KEY | HAS_SECOND_HALF | HAS_EXPIRY | HAS_FIRST_LSN;

/// A key id: 160 bits, ordered as Kademlia orders them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub [u8; 20]);

impl Key {
    /// The id of a user key: its SHA-1.
    #[must_use]
    pub fn of(user_key: &[u8]) -> Self {
        Self(Sha1::digest(user_key).into())
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A version: opaque to the log and the store, ordered bytewise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub [u8; 16]);

impl Version {
    /// The first half of a version, and the second if it is not that of the store's own versions.
    fn halves(&self, store: &[u8; 16]) -> ([u8; 8], Option<[u8; 8]>) {
        let [first, second] = [0, 8].map(|at| field(&self.0, at));
        (first, (second != own_half(store)).then_some(second))
    }

    fn joined(first: [u8; 8], second: [u8; 8]) -> Self {
        let mut whole = [0; 16];
        whole[..8].copy_from_slice(&first);
        whole[8..].copy_from_slice(&second);
        Self(whole)
    }
}

/// The second half that the versions of a store have when it draws them itself: the first 8 bytes
/// of its uuid, with which the node's id starts, too.
#[must_use]
pub fn own_half(store: &[u8; 16]) -> [u8; 8] {
    field(store, 0)
}

/// A kind of key, kept apart from the others. Below 16.
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
    /// Whether `key` is SHA-1 of `user_key`: then it is not stored. Never true of a record without
    /// its user key.
    pub hashed: bool,
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
    /// The most bytes this record may take in a frame, padding included.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        let header = header_len(FLAGS, self.user_key.len(), self.value.len());
        padded_len(header + self.value.len())
    }

    /// Bytes before the value, in the log of this store. `first_lsn` is where the record was first
    /// logged, if the header is to tell.
    #[must_use]
    pub fn header_len(&self, store: &[u8; 16], first_lsn: Option<Lsn>) -> usize {
        let flags = self.fields(store, first_lsn, 0).flags();
        header_len(flags, self.user_key.len(), self.value.len())
    }

    /// Appends the record to `out`, as it stands at `place` in the log. `first_lsn` is where the
    /// record was first logged, if the header is to tell.
    ///
    /// # Panics
    /// If the user key or the value is longer than the format admits, or `out` has no room.
    pub fn encode(&self, place: &Place, first_lsn: Option<Lsn>, out: &mut IoBuffer) {
        let chunked = self.value.len() > VALUE_CHUNK_LEN;
        let value_crc = if chunked { 0 } else { checksum::plain(self.value) };
        let start = out.len();
        self.fields(&place.store, first_lsn, value_crc).encode(out);
        out.extend_from_slice(self.user_key);
        if chunked {
            for chunk in self.value.chunks(VALUE_CHUNK_LEN) {
                out.extend_from_slice(&checksum::plain(chunk).to_le_bytes());
            }
        }
        finish(place, start, self.value, out);
    }

    /// Appends the header alone to `out`, as it stands at `place` in the log, for a value whose
    /// chunks have the checksums `sums`. It tells no first LSN.
    ///
    /// # Panics
    /// If the value is not chunked or has another number of chunks, if it or the user key is longer
    /// than the format admits, or `out` has no room.
    pub fn encode_header(&self, place: &Place, sums: &[u32], out: &mut IoBuffer) {
        let chunked = self.value.len() > VALUE_CHUNK_LEN;
        assert!(chunked && sums.len() == self.value.len().div_ceil(VALUE_CHUNK_LEN), "chunk sums");
        let start = out.len();
        self.fields(&place.store, None, 0).encode(out);
        out.extend_from_slice(self.user_key);
        sums.iter().for_each(|sum| out.extend_from_slice(&sum.to_le_bytes()));
        seal_header(place, start, out);
    }

    fn fields(&self, store: &[u8; 16], first_lsn: Option<Lsn>, value_crc: u32) -> Fields {
        debug_assert!(
            !self.hashed || Key::of(self.user_key) == self.key,
            "not the hash of its key"
        );
        let (first_half, second_half) = self.version.halves(store);
        Fields {
            kind: self.kind,
            namespace: self.namespace,
            user_key_len: self.user_key.len(),
            value_len: self.value.len(),
            value_crc,
            first_half,
            key: (!self.hashed).then_some(self.key),
            second_half,
            expiry_ms: self.expiry_ms,
            first_lsn,
        }
    }
}

/// The fields of a header before the user key, but for the header's own checksum.
struct Fields {
    kind: RecordKind,
    namespace: Namespace,
    user_key_len: usize,
    value_len: usize,
    value_crc: u32,
    first_half: [u8; 8],
    key: Option<Key>,
    second_half: Option<[u8; 8]>,
    expiry_ms: u64,
    first_lsn: Option<Lsn>,
}

impl Fields {
    fn flags(&self) -> u8 {
        u8::from(self.key.is_some()) * HAS_KEY
            + u8::from(self.second_half.is_some()) * HAS_SECOND_HALF
            + u8::from(self.expiry_ms != 0) * HAS_EXPIRY
            + u8::from(self.first_lsn.is_some()) * HAS_FIRST_LSN
    }

    fn encode(&self, out: &mut IoBuffer) {
        assert!(self.value_len <= VALUE_LEN_MAX, "a value of {} bytes", self.value_len);
        assert!(self.namespace.0 < 16, "namespace {}", self.namespace.0);
        let user_key_len = u16::try_from(self.user_key_len).expect("a user key fits its length");
        let value_len = u32::try_from(self.value_len).expect("a value fits its length");
        let mut bytes = [0u8; FIELDS_ROOM];
        bytes[4] = self.kind.code() | self.namespace.0 << 4;
        bytes[5] = self.flags();
        bytes[6..8].copy_from_slice(&user_key_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&value_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.value_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_half);
        let mut len = RECORD_FIXED_LEN;
        let mut append = |field: &[u8]| {
            bytes[len..len + field.len()].copy_from_slice(field);
            len += field.len();
        };
        if let Some(key) = &self.key {
            append(&key.0);
        }
        if let Some(half) = &self.second_half {
            append(half);
        }
        if self.expiry_ms != 0 {
            append(&self.expiry_ms.to_le_bytes());
        }
        if let Some(lsn) = self.first_lsn {
            append(&lsn.0.to_le_bytes());
        }
        out.extend_from_slice(&bytes[..len]);
    }
}

/// Seals the header that `out` holds from `start` on, then appends the value and the padding.
fn finish(place: &Place, start: usize, value: &[u8], out: &mut IoBuffer) {
    seal_header(place, start, out);
    out.extend_from_slice(value);
    let padding = padded_len(out.len() - start) - (out.len() - start);
    if padding > 0 {
        out.extend_from_slice(&[0; RECORD_LEN_MIN][..padding]);
    }
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
    len.next_multiple_of(RECORD_ALIGNMENT).max(RECORD_LEN_MIN)
}

/// The first LSN that a record's header tells: of a copy, and of a record with a large value.
#[must_use]
pub fn told_lsn(own: Lsn, first: Lsn, value_len: usize) -> Option<Lsn> {
    (own != first || value_len > UNNUMBERED_VALUE_LEN_MAX).then_some(first)
}

/// Bytes of the checksums of a value's chunks.
#[must_use]
pub fn chunk_crcs_len(value_len: usize) -> usize {
    if value_len > VALUE_CHUNK_LEN { 4 * value_len.div_ceil(VALUE_CHUNK_LEN) } else { 0 }
}

/// Bytes before the value of a record with these flags and lengths.
fn header_len(flags: u8, user_key_len: usize, value_len: usize) -> usize {
    let optional = [(HAS_KEY, 20), (HAS_SECOND_HALF, 8), (HAS_EXPIRY, 8), (HAS_FIRST_LSN, 8)];
    let there = optional.iter().filter(|(flag, _)| flags & flag != 0);
    let optional_len: usize = there.map(|(_, len)| len).sum();
    RECORD_FIXED_LEN + optional_len + user_key_len + chunk_crcs_len(value_len)
}

/// Whether bytes can start a record at all; spares who looks for one most checksums.
#[must_use]
pub fn is_plausible(bytes: &[u8]) -> bool {
    let Some(fixed) = bytes.first_chunk::<RECORD_FIXED_LEN>() else { return false };
    let value_len = u32::from_le_bytes(field(fixed, 8));
    RecordKind::from_code(fixed[4] & 15).is_some()
        && fixed[5] & !FLAGS == 0
        && usize::try_from(value_len).is_ok_and(|len| len <= VALUE_LEN_MAX)
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
    /// A field that need not be there, or cannot be so.
    #[error("record field of flag {flag} says nothing, or what cannot be")]
    Redundant {
        /// Which flag.
        flag: u8,
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
    /// Whether the header does not hold the key id, which is SHA-1 of the user key.
    pub hashed: bool,
    /// The user key.
    pub user_key: &'a [u8],
    /// The version.
    pub version: Version,
    /// Milliseconds since 1970, 0 = never.
    pub expiry_ms: u64,
    /// Where the record was first logged, if the header tells: else it stands there.
    pub first_lsn: Option<Lsn>,
    /// Bytes of the value.
    pub value_len: usize,
    len: usize,
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
        let fixed: &[u8; RECORD_FIXED_LEN] =
            bytes.first_chunk().ok_or_else(|| truncated(RECORD_FIXED_LEN))?;
        let (flags, user_key_len) = (fixed[5], usize::from(u16::from_le_bytes(field(fixed, 6))));
        let value_len = usize::try_from(u32::from_le_bytes(field(fixed, 8)))
            .map_err(|_| truncated(usize::MAX))?;
        let len = header_len(flags, user_key_len, value_len);
        let header = bytes.get(..len).ok_or_else(|| truncated(len))?;
        let expected = u32::from_le_bytes(field(fixed, 0));
        let found = checksum::seeded(place, &[header.get(4..).unwrap_or_default()]);
        if expected != found {
            return Err(RecordError::HeaderChecksum { expected, found });
        }
        let unknown = |position: usize| RecordError::Unknown { position, found: fixed[position] };
        let kind = RecordKind::from_code(fixed[4] & 15).ok_or_else(|| unknown(4))?;
        let value_crc = u32::from_le_bytes(field(fixed, 12));
        if flags & !FLAGS != 0 {
            return Err(unknown(5));
        }
        if value_len > VALUE_LEN_MAX {
            return Err(unknown(11));
        }
        if value_len > VALUE_CHUNK_LEN && value_crc != 0 {
            return Err(unknown(12));
        }
        let optional = OptionalFields::take(flags, &header[RECORD_FIXED_LEN..], &place.store);
        let OptionalFields { key, second_half, expiry_ms, first_lsn, rest } =
            optional.map_err(|flag| RecordError::Redundant { flag })?;
        let (user_key, chunk_crcs) =
            rest.split_at_checked(user_key_len).ok_or_else(|| truncated(len))?;
        let hashed = key.is_none();
        Ok(Self {
            kind,
            namespace: Namespace(fixed[4] >> 4),
            key: key.unwrap_or_else(|| Key::of(user_key)),
            hashed,
            user_key,
            version: Version::joined(field(fixed, 16), second_half),
            expiry_ms,
            first_lsn,
            value_len,
            len,
            value_crc,
            chunk_crcs,
        })
    }

    /// Bytes before the value.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
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

    /// The record that the header is of, with its value.
    #[must_use]
    pub fn record<'b>(&self, value: &'b [u8]) -> Record<'b>
    where
        'a: 'b,
    {
        Record {
            kind: self.kind,
            namespace: self.namespace,
            key: self.key,
            hashed: self.hashed,
            user_key: self.user_key,
            version: self.version,
            expiry_ms: self.expiry_ms,
            value,
        }
    }

    /// Appends a copy of the record to `out`, as it stands at `place` in the log of the same
    /// store: it keeps its version and value checksums, and tells that it was first logged as
    /// `first_lsn`. The caller has verified the value: it is not summed again, so that damage in
    /// between cannot go unnoticed later.
    ///
    /// # Panics
    /// If the value does not have the length that the header says, or `out` has no room.
    pub fn encode_copy(&self, value: &[u8], place: &Place, first_lsn: Lsn, out: &mut IoBuffer) {
        assert_eq!(value.len(), self.value_len, "a copy has the value of its original");
        let start = out.len();
        self.record(value).fields(&place.store, Some(first_lsn), self.value_crc).encode(out);
        out.extend_from_slice(self.user_key);
        out.extend_from_slice(self.chunk_crcs);
        finish(place, start, value, out);
    }

    /// Appends a copy of the header alone to `out`, as it stands at `place` in the log of the
    /// same store: as long as the original, and all it says is the same.
    ///
    /// # Panics
    /// If `out` has no room.
    pub fn encode_header_copy(&self, place: &Place, out: &mut IoBuffer) {
        let start = out.len();
        let mut fields = self.record(&[]).fields(&place.store, self.first_lsn, self.value_crc);
        fields.value_len = self.value_len;
        fields.encode(out);
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

/// The fields of a header that its flags tell of, and what follows them.
struct OptionalFields<'a> {
    key: Option<Key>,
    second_half: [u8; 8],
    expiry_ms: u64,
    first_lsn: Option<Lsn>,
    rest: &'a [u8],
}

impl<'a> OptionalFields<'a> {
    /// Takes the fields from the front of `rest`, which has room for them. Fails with the flag of
    /// a field that says what goes without saying, or what cannot be.
    fn take(flags: u8, rest: &'a [u8], store: &[u8; 16]) -> Result<Self, u8> {
        let mut rest = rest;
        let key = take_if(flags & HAS_KEY != 0, &mut rest).map(Key);
        let second_half = take_if(flags & HAS_SECOND_HALF != 0, &mut rest);
        let expiry_ms = take_if(flags & HAS_EXPIRY != 0, &mut rest).map(u64::from_le_bytes);
        let first_lsn = take_if(flags & HAS_FIRST_LSN != 0, &mut rest).map(u64::from_le_bytes);
        let own_half = own_half(store);
        if second_half == Some(own_half) {
            return Err(HAS_SECOND_HALF);
        }
        if expiry_ms == Some(0) {
            return Err(HAS_EXPIRY);
        }
        let first_lsn = first_lsn.map(Lsn);
        if first_lsn.is_some_and(|lsn| !(Lsn(1)..=Lsn::MAX).contains(&lsn)) {
            return Err(HAS_FIRST_LSN);
        }
        let (second_half, expiry_ms) = (second_half.unwrap_or(own_half), expiry_ms.unwrap_or(0));
        Ok(Self { key, second_half, expiry_ms, first_lsn, rest })
    }
}

fn take_if<const N: usize>(is_there: bool, rest: &mut &[u8]) -> Option<[u8; N]> {
    let (found, behind) = is_there.then(|| rest.split_first_chunk()).flatten()?;
    *rest = behind;
    Some(*found)
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

impl Location {
    /// Bytes of the whole record, padding included.
    #[must_use]
    pub fn record_len(&self) -> u64 {
        let len = u64::from(self.header_len) + u64::from(self.value_len);
        len.next_multiple_of(RECORD_ALIGNMENT as u64).max(RECORD_LEN_MIN as u64)
    }
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
mod tests;
