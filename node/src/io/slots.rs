//! [`Slots`]: owned values named by index and generation.
//!
//! The ring's `user_data` and connection ids are such names. A name whose value is gone never finds
//! the value that took its place, so a stale completion is detected instead of misdelivered.

/// Names a value in [`Slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SlotKey {
    index: u32,
    generation: u32,
}

impl SlotKey {
    /// The name as one number; at least 2^32, so smaller numbers are free for other uses.
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The name whose number is `bits`.
    pub(crate) fn from_bits(bits: u64) -> Self {
        let low = u32::try_from(bits & u64::from(u32::MAX)).expect("masked to 32 bits");
        let high = u32::try_from(bits >> 32).expect("shifted to 32 bits");
        Self { index: low, generation: high }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A table of values; all operations take constant time.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> SlotKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 1, value: None });
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 values are alive")
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        SlotKey { index, generation: slot.generation }
    }

    pub(crate) fn get_mut(&mut self, key: SlotKey) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation { slot.value.as_mut() } else { None }
    }

    pub(crate) fn remove(&mut self, key: SlotKey) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.checked_add(1).unwrap_or(1);
        self.free.push(key.index);
        Some(value)
    }

    /// The values, in no order that means anything.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }

    /// The name of a value that `is_it` answers for. Takes time by the number of values.
    pub(crate) fn find(&self, mut is_it: impl FnMut(&T) -> bool) -> Option<SlotKey> {
        let holds = |slot: &Slot<T>| slot.value.as_ref().is_some_and(&mut is_it);
        let index = self.slots.iter().position(holds)?;
        let generation = self.slots[index].generation;
        Some(SlotKey { index: u32::try_from(index).ok()?, generation })
    }

    /// How many values are there.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_key_does_not_find_the_successor() {
        let mut slots = Slots::new();
        let first = slots.insert('a');
        assert_eq!(slots.remove(first), Some('a'));
        let second = slots.insert('b');
        assert_eq!(second.index, first.index);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get_mut(second), Some(&mut 'b'));
        assert_eq!(slots.len(), 1);
        assert_eq!(slots.find(|value| *value == 'b'), Some(second));
        assert_eq!(slots.find(|value| *value == 'a'), None);
    }

    #[test]
    fn key_survives_its_number() {
        let key = SlotKey { index: 7, generation: u32::MAX };
        assert_eq!(SlotKey::from_bits(key.to_bits()), key);
        assert!(Slots::new().insert(()).to_bits() > u64::from(u32::MAX));
    }
}
