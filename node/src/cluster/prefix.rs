//! [`Prefix`] and [`PrefixSet`]: parts of the key space that Kademlia and digests speak of.

use std::collections::BTreeSet;

use wal::record::Key;

use crate::kademlia::node_id::ID_BITS;

/// All keys that begin with some bits; ordered by first key, the larger part first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    bits: [u8; 20],
    len: u8,
}

impl Prefix {
    /// Every key.
    pub const ALL: Self = Self { bits: [0; 20], len: 0 };

    /// The first `len` bits of a key. Nothing if there are not so many, or if further bits are set.
    #[must_use]
    pub fn new(bits: [u8; 20], len: u8) -> Option<Self> {
        let prefix = Self { bits, len };
        (u32::from(len) <= ID_BITS && prefix == Self::of(&Key(bits), len)).then_some(prefix)
    }

    /// The first `len` bits of `key`.
    ///
    /// # Panics
    /// If a key has not so many.
    #[must_use]
    pub fn of(key: &Key, len: u8) -> Self {
        assert!(u32::from(len) <= ID_BITS, "a key has {ID_BITS} bits");
        let mut bits = key.0;
        for (index, byte) in bits.iter_mut().enumerate() {
            let kept = usize::from(len).saturating_sub(index * 8).min(8);
            *byte &= if kept == 0 { 0 } else { 0xff << (8 - kept) };
        }
        Self { bits, len }
    }

    /// Number of bits.
    #[must_use]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether it is [`Prefix::ALL`].
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its least key.
    #[must_use]
    pub fn first_key(&self) -> Key {
        Key(self.bits)
    }

    /// The least key after all of its own, if there is one.
    #[must_use]
    pub fn end(&self) -> Option<Key> {
        if self.len == 0 {
            return None;
        }
        let mut bits = self.bits;
        let (mut index, step) = (usize::from(self.len - 1) / 8, 0x80 >> ((self.len - 1) % 8));
        let (sum, mut carry) = bits[index].overflowing_add(step);
        bits[index] = sum;
        while carry && index > 0 {
            index -= 1;
            (bits[index], carry) = bits[index].overflowing_add(1);
        }
        (!carry).then_some(Key(bits))
    }

    /// Whether the key is one of its.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        Self::of(key, self.len) == *self
    }

    /// Whether all keys of the other are its, too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(&other.first_key())
    }

    /// Both halves.
    ///
    /// # Panics
    /// Of a single key.
    #[must_use]
    pub fn halves(&self) -> [Self; 2] {
        assert!(u32::from(self.len) < ID_BITS, "one key has no halves");
        let mut upper = *self;
        upper.bits[usize::from(self.len) / 8] |= 0x80 >> (self.len % 8);
        upper.len += 1;
        [Self { len: self.len + 1, ..*self }, upper]
    }

    /// The 16 parts by the next four bits, or fewer near the end of a key.
    #[must_use]
    pub fn parts(&self) -> Vec<Self> {
        let mut parts = vec![*self];
        for _ in 0..4.min(ID_BITS - u32::from(self.len)) {
            parts = parts.iter().flat_map(Self::halves).collect();
        }
        parts
    }

    fn parent(&self) -> Option<Self> {
        self.len.checked_sub(1).map(|len| Self::of(&self.first_key(), len))
    }
}

/// A set of keys, as prefixes that share nothing; halves are joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet(BTreeSet<Prefix>);

impl PrefixSet {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self(BTreeSet::from([Prefix::ALL]))
    }

    /// The prefixes, in order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Prefix> {
        self.0.iter()
    }

    /// The prefixes themselves, in order of their keys.
    pub fn into_prefixes(self) -> impl Iterator<Item = Prefix> {
        self.0.into_iter()
    }

    /// Number of prefixes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the key is in it.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.cover_of(&Prefix::of(key, 160)).is_some()
    }

    /// Whether all keys of the prefix are in it.
    #[must_use]
    pub fn covers(&self, prefix: &Prefix) -> bool {
        self.cover_of(prefix).is_some()
    }

    /// Whether any key of the prefix is in it.
    #[must_use]
    pub fn touches(&self, prefix: &Prefix) -> bool {
        self.covers(prefix) || self.within(prefix).next().is_some()
    }

    fn cover_of(&self, prefix: &Prefix) -> Option<Prefix> {
        self.0.range(..=prefix).next_back().filter(|before| before.covers(prefix)).copied()
    }

    /// Adds all keys of a prefix.
    pub fn insert(&mut self, prefix: Prefix) {
        if self.covers(&prefix) {
            return;
        }
        let within: Vec<Prefix> = self.within(&prefix).collect();
        for part in within {
            self.0.remove(&part);
        }
        let mut whole = prefix;
        while let Some(parent) = whole.parent() {
            let [lower, upper] = parent.halves();
            let other = if lower == whole { upper } else { lower };
            if !self.0.remove(&other) {
                break;
            }
            whole = parent;
        }
        self.0.insert(whole);
    }

    /// Takes all keys of a prefix out.
    pub fn remove(&mut self, prefix: &Prefix) {
        let Some(mut cover) = self.cover_of(prefix) else {
            let within: Vec<Prefix> = self.within(prefix).collect();
            for part in within {
                self.0.remove(&part);
            }
            return;
        };
        self.0.remove(&cover);
        while cover != *prefix {
            let [lower, upper] = cover.halves();
            let (next, kept) = if lower.covers(prefix) { (lower, upper) } else { (upper, lower) };
            self.0.insert(kept);
            cover = next;
        }
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        other.iter().for_each(|prefix| rest.remove(prefix));
        rest
    }

    /// What is in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }

    /// The first prefix that begins at a key or after it.
    #[must_use]
    pub fn first_from(&self, key: &Key) -> Option<Prefix> {
        self.0.range(Prefix { bits: key.0, len: 0 }..).next().copied()
    }

    fn within(&self, prefix: &Prefix) -> impl Iterator<Item = Prefix> {
        self.0.range(prefix..).take_while(|part| prefix.covers(part)).copied()
    }
}

impl FromIterator<Prefix> for PrefixSet {
    fn from_iter<T: IntoIterator<Item = Prefix>>(prefixes: T) -> Self {
        let mut set = Self::default();
        prefixes.into_iter().for_each(|prefix| set.insert(prefix));
        set
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    #[test]
    fn sets_of_prefixes_behave_as_sets_of_keys() {
        for seed in 0..200 {
            let mut rng = Rng::with_seed(seed);
            let (mut set, mut model) = (PrefixSet::default(), [false; 256]);
            for _ in 0..40 {
                let mut key = [0; 20];
                key[0] = rng.u8(..);
                let prefix = Prefix::of(&Key(key), rng.u8(..=8));
                let is_added = rng.bool();
                if is_added {
                    set.insert(prefix)
                } else {
                    set.remove(&prefix)
                }
                for (byte, is_in) in (0..=255).zip(&mut model) {
                    let mut key = [7; 20];
                    key[0] = byte;
                    if prefix.contains(&Key(key)) {
                        *is_in = is_added;
                    }
                    assert_eq!(set.contains(&Key(key)), *is_in, "seed {seed} byte {byte}");
                }
                assert_eq!(set.minus(&set), PrefixSet::default());
                let key = Key([rng.u8(..); 20]);
                let later = set.iter().find(|prefix| prefix.first_key() >= key);
                assert_eq!(set.first_from(&key), later.copied());
                let none = PrefixSet::all().minus(&set).intersection(&set);
                assert!(none.is_empty());
            }
        }
    }

    #[test]
    fn a_prefix_ends_where_the_next_begins() {
        let parts = Prefix::ALL.parts();
        assert_eq!(parts.len(), 16);
        for pair in parts.windows(2) {
            assert_eq!(pair[0].end(), Some(pair[1].first_key()));
        }
        assert_eq!(parts[15].end(), None);
        assert_eq!(Prefix::ALL.end(), None);
        assert_eq!(Prefix::new([1; 20], 4), None);
    }
}
