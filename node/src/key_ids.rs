//! [`KeyIds`]: ids of user keys that came of late, so that they need not be hashed again.

use std::cell::RefCell;
use std::fmt;

use wal::record::Key;

/// Places; a key has one. All of them take 256 KiB.
const SLOTS: usize = 4_096;
/// The longest user key that is remembered: with its length and its id it fills a cache line.
const KEY_LEN_MAX: usize = 43;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Slot {
    /// 0 where there is none: the empty key is not remembered.
    len: u8,
    user_key: [u8; KEY_LEN_MAX],
    id: Key,
}

/// Ids by user key.
pub(crate) struct KeyIds {
    slots: RefCell<Box<[Slot]>>,
}

impl Default for KeyIds {
    fn default() -> Self {
        let slot = Slot { len: 0, user_key: [0; KEY_LEN_MAX], id: Key([0; 20]) };
        Self { slots: RefCell::new(vec![slot; SLOTS].into()) }
    }
}

impl KeyIds {
    /// The id of a user key: [`Key::of`].
    pub(crate) fn id_of(&self, user_key: &[u8]) -> Key {
        if user_key.is_empty() || user_key.len() > KEY_LEN_MAX {
            return Key::of(user_key);
        }
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[place_of(user_key)];
        if slot.user_key.get(..usize::from(slot.len)) == Some(user_key) {
            return slot.id;
        }
        slot.id = Key::of(user_key);
        slot.user_key[..user_key.len()].copy_from_slice(user_key);
        slot.len = u8::try_from(user_key.len()).expect("at most KEY_LEN_MAX");
        slot.id
    }
}

/// Who makes keys fall together makes them be hashed again, no more.
fn place_of(user_key: &[u8]) -> usize {
    let mut mixed = user_key.len() as u64;
    let (words, rest) = user_key.as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for word in words.iter().chain([&last]) {
        mixed = (mixed ^ u64::from_le_bytes(*word)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^= mixed >> 32;
    }
    usize::try_from(mixed % SLOTS as u64).expect("below SLOTS")
}

impl fmt::Debug for KeyIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyIds").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_hash_whatever_came_before() {
        let ids = KeyIds::default();
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..50_000 {
            let len = rng.usize(..KEY_LEN_MAX + 3);
            // Few letters: short keys come again, and one is the beginning of another.
            let user_key: Vec<u8> = (0..len).map(|_| rng.u8(..2)).collect();
            assert_eq!(ids.id_of(&user_key), Key::of(&user_key), "{user_key:?}");
        }
    }

    #[test]
    fn keys_that_count_up_have_places_of_their_own() {
        let places = (0..1_000).map(|number| place_of(format!("key:{number:012}").as_bytes()));
        let places: std::collections::BTreeSet<usize> = places.collect();
        assert!(places.len() > 850, "{} places", places.len());
    }
}
