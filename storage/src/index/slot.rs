//! What the index knows of one record, in 13 bytes, and the bit arithmetic of its fields.
//!
//! The first 5 bytes are the first 40 bits of the key, big-endian, so that slots sort as bytes do.
//! The other 8 are a little-endian word:
//!
//! | bits | field | meaning |
//! |---|---|---|
//! | 0-35 | place | segment number (14 bits, high) and line (22 bits): record offset / 64 |
//! | 36-43 | size class | the record's length, rounded up by at most an eighth |
//! | 44-58 | expiry hint | 0 = never, else a wrapping time, rounded up |
//! | 59-60 | kind | 0 put, 1 touch, 2 tombstone; 3 is refused |
//! | 61 | damaged | recovery found the record damaged |
//! | 62 | foreign | the namespace is not the plain one |
//! | 63 | shadowed | a newer slot may be of the same key |

use wal::record::Key;

/// Bytes of an encoded slot.
pub(crate) const SLOT_LEN: usize = 13;
const PREFIX_BITS: u32 = 40;
const SEGMENT_BITS: u32 = 14;
const LINE_BITS: u32 = 22;
const CLASS_SHIFT: u32 = SEGMENT_BITS + LINE_BITS;
const EXPIRY_SHIFT: u32 = CLASS_SHIFT + 8;
const KIND_SHIFT: u32 = EXPIRY_SHIFT + 15;

/// The first 40 bits of a key, right-aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Prefix(pub(crate) u64);

impl Prefix {
    /// The greatest prefix.
    pub(crate) const MAX: Self = Self((1 << PREFIX_BITS) - 1);

    pub(crate) fn of(key: &Key) -> Self {
        let [a, b, c, d, e, ..] = key.0;
        Self(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
    }

    /// The lowest key that starts with it.
    pub(crate) fn first_key(self) -> Key {
        let mut key = [0; 20];
        key[..5].copy_from_slice(&self.0.to_be_bytes()[3..]);
        Key(key)
    }

    /// The prefix after it, if there is one.
    #[cfg(test)]
    pub(crate) fn next(self) -> Option<Self> {
        (self < Self::MAX).then(|| Self(self.0 + 1))
    }
}

/// A segment's dense number: reused, unlike its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentNumber(pub(crate) u16);

impl SegmentNumber {
    /// Segments a shard can number.
    pub(crate) const COUNT: usize = 1 << SEGMENT_BITS;
}

/// Where a record starts: at one of the 8-aligned bytes of a 64-byte line. Names one record, since
/// a record is longer than a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    /// The segment.
    pub(crate) segment: SegmentNumber,
    /// Offset in the segment / 64.
    pub(crate) line: u32,
}

impl Place {
    /// Lines a segment can have.
    pub(crate) const LINES: u32 = 1 << LINE_BITS;
}

/// A record's length, rounded up to (8 + (c & 7)) << (c >> 3) bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SizeClass(pub(crate) u8);

impl SizeClass {
    /// The smallest class that holds `len` bytes; the last one for anything longer than it.
    pub(crate) fn of(len: u64) -> Self {
        if len <= 8 {
            return Self(0);
        }
        let exponent = len.ilog2() - 3;
        // 8 to 16; 16 is 8 of the next exponent, to which the sum below carries.
        let mantissa = len.div_ceil(1 << exponent);
        Self(u8::try_from(u64::from(exponent) * 8 + mantissa - 8).unwrap_or(u8::MAX))
    }

    /// Bytes it stands for.
    pub(crate) fn bytes(self) -> u64 {
        (8 + u64::from(self.0 & 7)) << (self.0 >> 3)
    }
}

/// When a record may be worth a look because it has expired; never before it has.
///
/// 0 is never. Up to 16,383: 1 + (time in units of 8 s, modulo 16,383), for expiries less than
/// half of that ahead (18 hours). From 16,384 on: time in days, modulo 16,384. A hint is
/// compared with now modulo its range, so it needs no base. One that was due more than half a
/// range ago looks like a later one and comes round again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ExpiryHint(u16);

const FINE_MS: u64 = 8_000;
const FINE_RANGE: u64 = (1 << 14) - 1;
const COARSE_MS: u64 = 86_400_000;
const COARSE_RANGE: u64 = 1 << 14;
const COARSE: u16 = 1 << 14;

impl ExpiryHint {
    /// No expiry.
    pub(crate) const NEVER: Self = Self(0);

    /// The hint for a record's expiry, 0 = never. An expiry more than 22 years ahead is hinted at
    /// as if it were that far.
    pub(crate) fn new(expiry_ms: u64, now_ms: u64) -> Self {
        if expiry_ms == 0 {
            return Self::NEVER;
        }
        let due = |unit: u64| expiry_ms.div_ceil(unit).max(now_ms / unit);
        let fine = due(FINE_MS);
        if fine - now_ms / FINE_MS < FINE_RANGE / 2 {
            return Self(1 + low_bits(fine % FINE_RANGE));
        }
        let latest = now_ms / COARSE_MS + COARSE_RANGE / 2 - 1;
        Self(COARSE | low_bits(due(COARSE_MS).min(latest) % COARSE_RANGE))
    }

    /// Whether the record has expired as far as the hint tells.
    pub(crate) fn is_due(self, now_ms: u64) -> bool {
        let elapsed = |due: u16, unit: u64, range: u64| {
            (now_ms / unit % range + range - u64::from(due)) % range
        };
        if self.0 & COARSE != 0 {
            elapsed(self.0 & !COARSE, COARSE_MS, COARSE_RANGE) < COARSE_RANGE / 2
        } else {
            self.0 != 0 && elapsed(self.0 - 1, FINE_MS, FINE_RANGE) < FINE_RANGE / 2
        }
    }
}

fn low_bits(value: u64) -> u16 {
    u16::try_from(value).expect("a remainder below 2^14 fits")
}

/// What the record says of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SlotKind {
    /// The key has this value.
    Put,
    /// The key's value elsewhere has this expiry and version.
    Touch,
    /// The key is deleted.
    Tombstone,
}

/// What the index knows of a record besides its key's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot {
    /// Where the record stands.
    pub(crate) place: Place,
    /// How long it is.
    pub(crate) size_class: SizeClass,
    /// What it says.
    pub(crate) kind: SlotKind,
    /// Whether recovery found it damaged.
    pub(crate) damaged: bool,
    /// Whether its namespace is another than the plain one.
    pub(crate) foreign: bool,
    /// Whether a newer slot may be of the same key.
    pub(crate) shadowed: bool,
    /// When to look whether it has expired.
    pub(crate) expiry: ExpiryHint,
}

impl Slot {
    /// Whether it counts as a live key.
    pub(crate) fn is_live(&self) -> bool {
        !self.shadowed && self.kind != SlotKind::Tombstone
    }

    /// The word that holds it.
    ///
    /// # Panics
    /// If the segment number or the line has too many bits.
    pub(crate) fn to_word(self) -> u64 {
        assert!(usize::from(self.place.segment.0) < SegmentNumber::COUNT, "{:?}", self.place);
        assert!(self.place.line < Place::LINES, "{:?}", self.place);
        let kind = match self.kind {
            SlotKind::Put => 0,
            SlotKind::Touch => 1,
            SlotKind::Tombstone => 2u64,
        };
        u64::from(self.place.line)
            | u64::from(self.place.segment.0) << LINE_BITS
            | u64::from(self.size_class.0) << CLASS_SHIFT
            | u64::from(self.expiry.0) << EXPIRY_SHIFT
            | kind << KIND_SHIFT
            | u64::from(self.damaged) << (KIND_SHIFT + 2)
            | u64::from(self.foreign) << (KIND_SHIFT + 3)
            | u64::from(self.shadowed) << (KIND_SHIFT + 4)
    }

    /// The slot in a word; `None` for a kind that does not exist.
    pub(crate) fn from_word(word: u64) -> Option<Self> {
        let bits = |shift: u32, count: u32| word >> shift & ((1 << count) - 1);
        let kind = match bits(KIND_SHIFT, 2) {
            0 => SlotKind::Put,
            1 => SlotKind::Touch,
            2 => SlotKind::Tombstone,
            _ => return None,
        };
        let segment = SegmentNumber(low_bits(bits(LINE_BITS, SEGMENT_BITS)));
        let line = u32::try_from(bits(0, LINE_BITS)).expect("22 bits fit");
        Some(Self {
            place: Place { segment, line },
            size_class: SizeClass(u8::try_from(bits(CLASS_SHIFT, 8)).expect("8 bits fit")),
            kind,
            damaged: bits(KIND_SHIFT + 2, 1) != 0,
            foreign: bits(KIND_SHIFT + 3, 1) != 0,
            shadowed: bits(KIND_SHIFT + 4, 1) != 0,
            expiry: ExpiryHint(low_bits(bits(EXPIRY_SHIFT, 15))),
        })
    }

    /// Whether a word holds a slot.
    pub(crate) fn is_word(word: u64) -> bool {
        word >> KIND_SHIFT & 3 != 3
    }

    /// Whether the slot in a word counts as a live key.
    pub(crate) fn is_live_word(word: u64) -> bool {
        word >> (KIND_SHIFT + 1) & 1 == 0 && word >> (KIND_SHIFT + 4) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = COARSE_MS;

    #[test]
    fn size_class_is_the_smallest_that_fits() {
        for len in (0..5000).chain([1 << 20, (32 << 20) + 99_999, (15 << 31) - 1, 15 << 31]) {
            let class = SizeClass::of(len);
            assert!(class.bytes() >= len, "{len}");
            assert!(class.0 == 0 || SizeClass(class.0 - 1).bytes() < len, "{len}");
            assert!(len < 8 || class.bytes() - len <= len / 8, "{len}");
        }
        assert_eq!(SizeClass::of(u64::MAX), SizeClass(u8::MAX));
    }

    #[test]
    fn every_word_without_the_spare_kind_is_a_slot() {
        proptest!(|(word: u64)| {
            prop_assert_eq!(Slot::is_word(word), Slot::from_word(word).is_some());
            if let Some(slot) = Slot::from_word(word) {
                prop_assert_eq!(slot.to_word(), word);
                prop_assert_eq!(slot.is_live(), Slot::is_live_word(word));
            }
        });
    }

    #[test]
    fn hint_is_never_due_before_the_expiry_and_soon_after() {
        proptest!(|(now in 1u64..u64::MAX / 1000, ahead in 1u64..8000 * DAY, later in 0u64..DAY)| {
            let hint = ExpiryHint::new(now + ahead, now);
            for at in [now, now + ahead / 2, now + ahead - 1] {
                prop_assert!(!hint.is_due(at));
            }
            prop_assert!(hint.is_due(now + ahead + 2 * DAY.min(ahead).max(FINE_MS)));
            if later < 17 * 3_600_000 {
                let near = ExpiryHint::new(now + later, now);
                prop_assert!(near.is_due(now + later + FINE_MS));
            }
        });
    }

    #[test]
    fn hint_of_the_past_is_due_and_of_never_is_not() {
        let now = 1_800_000_000_000;
        assert!(ExpiryHint::new(1, now).is_due(now));
        assert!(ExpiryHint::new(now, now).is_due(now + FINE_MS));
        assert_eq!(ExpiryHint::new(0, now), ExpiryHint::NEVER);
        assert!(!ExpiryHint::NEVER.is_due(now));
        assert!(!ExpiryHint::new(u64::MAX, now).is_due(now));
    }

    #[test]
    fn prefix_is_the_first_forty_bits() {
        let mut bytes = [0xAB; 20];
        bytes[..5].copy_from_slice(&[1, 2, 3, 4, 5]);
        let prefix = Prefix::of(&Key(bytes));
        assert_eq!(prefix, Prefix(0x01_0203_0405));
        assert_eq!(Prefix::of(&prefix.first_key()), prefix);
        assert!(prefix.first_key() <= Key(bytes));
        assert_eq!(Prefix::of(&Key([255; 20])), Prefix::MAX);
        assert_eq!(Prefix::MAX.next(), None);
    }
}
