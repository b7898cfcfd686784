//! [`HotValues`]: values of keys that are read again and again, by key.
//!
//! The index, what is not acknowledged yet and the read cache together say what a key's value is;
//! here stands what they said last, until the key changes in any way. So an entry is always the
//! newest acknowledged state of its key, and an answer from it waits for nothing.

use bytes::Bytes;
use wal::record::{Key, Version};

use crate::mutation::{Mutation, is_planted};
use crate::store::Value;

/// Places at most; a key has one, by its id.
const SLOTS_MAX: usize = 65_536;
/// Bytes of the read cache's budget for each place.
const BUDGET_PER_SLOT: usize = 4 << 10;
/// The part of the read cache's budget that values here may keep in use.
const BUDGET_SHARE: usize = 8;

#[derive(Clone, Debug)]
struct HotValue {
    key: Key,
    user_key: Bytes,
    value: Bytes,
    expiry_ms: u64,
    version: Version,
    /// Bytes of memory that it keeps in use.
    footprint: usize,
}

/// Values read again and again.
#[derive(Debug)]
pub(crate) struct HotValues {
    /// A power of two, or none.
    slots: Vec<Option<HotValue>>,
    /// Some bits of the key in each place, 0 where there is none: who writes keys that nobody reads
    /// meets this small table alone.
    tags: Vec<u16>,
    bytes: usize,
    bytes_max: usize,
}

impl HotValues {
    /// Takes its share of a read cache's budget; what is left of that is [`HotValues::rest`].
    pub(crate) fn new(cache_bytes: usize) -> Self {
        let slots = (cache_bytes / BUDGET_PER_SLOT).min(SLOTS_MAX);
        let slots = if slots == 0 { 0 } else { 1 << slots.ilog2() };
        let bytes_max = if slots == 0 { 0 } else { cache_bytes / BUDGET_SHARE };
        Self { slots: vec![None; slots], tags: vec![0; slots], bytes: 0, bytes_max }
    }

    /// What it leaves of the budget.
    pub(crate) fn rest(&self, cache_bytes: usize) -> usize {
        let place_len = size_of::<Option<HotValue>>() + size_of::<u16>();
        cache_bytes - self.bytes_max - self.slots.len() * place_len
    }

    fn place_of(&self, key: &Key) -> Option<usize> {
        let bits = usize::from(u16::from_be_bytes([key.0[8], key.0[9]]));
        let mask = self.slots.len().checked_sub(1)?;
        Some(bits & mask)
    }

    /// The place of a key, if it may be there.
    fn find(&self, key: &Key) -> Option<usize> {
        self.place_of(key).filter(|place| self.tags[*place] == tag_of(key))
    }

    /// The value of this very user key, unless it has expired.
    pub(crate) fn get(&self, key: &Key, user_key: &[u8], now_ms: u64) -> Option<Value> {
        let hot = self.slots[self.find(key)?].as_ref()?;
        let is_over = hot.expiry_ms != 0 && hot.expiry_ms <= now_ms;
        (hot.key == *key && hot.user_key == user_key && !is_over).then(|| Value {
            value: hot.value.clone(),
            expiry_ms: hot.expiry_ms,
            version: hot.version,
        })
    }

    /// Keeps a value that is its key's newest one and acknowledged, if there is room.
    pub(crate) fn insert(&mut self, key: Key, user_key: &Bytes, value: &Value, footprint: usize) {
        let Some(place) = self.place_of(&key) else { return };
        // The defect shows where a value takes no more than its own bytes.
        let is_planted = is_planted(Mutation::EmptyHotValueKept);
        let footprint = if is_planted { user_key.len() + value.value.len() } else { footprint };
        let freed = self.slots[place].as_ref().map_or(0, |before| before.footprint);
        let after = self.bytes - freed + footprint;
        if after > self.bytes_max {
            return;
        }
        self.tags[place] = tag_of(&key);
        let Value { value, expiry_ms, version } = value.clone();
        self.slots[place] = Some(HotValue {
            key,
            user_key: user_key.clone(),
            value,
            expiry_ms,
            version,
            footprint,
        });
        self.bytes = after;
    }

    /// Forgets a key, which changes.
    pub(crate) fn remove(&mut self, key: &Key) {
        if self.bytes == 0 && is_planted(Mutation::EmptyHotValueKept) {
            return;
        }
        let Some(place) = self.find(key) else { return };
        if let Some(hot) = self.slots[place].take_if(|hot| hot.key == *key) {
            self.tags[place] = 0;
            self.bytes -= hot.footprint;
        }
    }

    /// Forgets all keys.
    pub(crate) fn clear(&mut self) {
        if self.bytes == 0 && is_planted(Mutation::EmptyHotValueKept) {
            return;
        }
        self.slots.fill(None);
        self.tags.fill(0);
        self.bytes = 0;
    }
}

fn tag_of(key: &Key) -> u16 {
    u16::from_be_bytes([key.0[10], key.0[11]]) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight places.
    const BUDGET: usize = 32 << 10;

    fn key(number: u8) -> Key {
        let mut key = Key([0; 20]);
        (key.0[0], key.0[9]) = (number, number);
        key
    }

    fn value(byte: u8, expiry_ms: u64) -> Value {
        Value { value: Bytes::from(vec![byte; 4]), expiry_ms, version: Version::default() }
    }

    fn user_key(number: u8) -> Bytes {
        Bytes::from(vec![b'k', number])
    }

    #[test]
    fn only_the_key_itself_is_found_and_only_until_it_changes() {
        let mut hot = HotValues::new(BUDGET);
        hot.insert(key(1), &user_key(1), &value(7, 0), 100);
        assert_eq!(hot.get(&key(1), b"k\x01", 0), Some(value(7, 0)));
        assert_eq!(hot.get(&key(1), b"k\x02", 0), None, "another user key of the id");
        // The same place, another key.
        assert_eq!(hot.get(&key(9), b"k\x09", 0), None);
        hot.remove(&key(9));
        assert_eq!(hot.get(&key(1), b"k\x01", 0), Some(value(7, 0)));
        hot.insert(key(9), &user_key(9), &value(8, 0), 100);
        assert_eq!(hot.get(&key(1), b"k\x01", 0), None);
        hot.remove(&key(9));
        assert_eq!((hot.get(&key(9), b"k\x09", 0), hot.bytes), (None, 0));
        hot.insert(key(2), &user_key(2), &value(1, 0), 100);
        hot.clear();
        assert_eq!((hot.get(&key(2), b"k\x02", 0), hot.bytes), (None, 0));
    }

    #[test]
    fn what_has_expired_is_not_found() {
        let mut hot = HotValues::new(BUDGET);
        hot.insert(key(1), &user_key(1), &value(7, 1_000), 100);
        assert_eq!(hot.get(&key(1), b"k\x01", 999), Some(value(7, 1_000)));
        assert_eq!(hot.get(&key(1), b"k\x01", 1_000), None);
    }

    #[test]
    fn bytes_kept_in_use_stay_within_the_share() {
        let mut hot = HotValues::new(BUDGET);
        let share = BUDGET / BUDGET_SHARE;
        let rest = hot.rest(BUDGET);
        assert!((BUDGET / 4 * 3..BUDGET - share).contains(&rest), "{rest} bytes for other values");
        hot.insert(key(1), &user_key(1), &value(7, 0), share);
        hot.insert(key(2), &user_key(2), &value(7, 0), 1);
        assert_eq!(hot.get(&key(2), b"k\x02", 0), None);
        hot.insert(key(1), &user_key(1), &value(8, 0), share - 1);
        hot.insert(key(2), &user_key(2), &value(7, 0), 1);
        assert!(hot.get(&key(1), b"k\x01", 0).is_some());
        assert!(hot.get(&key(2), b"k\x02", 0).is_some());
        let mut none = HotValues::new(0);
        none.insert(key(1), &user_key(1), &value(7, 0), 0);
        none.remove(&key(1));
        assert_eq!((none.get(&key(1), b"k\x01", 0), none.rest(0)), (None, 0));
    }
}
