//! Commands for those who know a key by its id alone: other holders of its copies.
//!
//! With [`StoreLimits::expired_stay_ms`](super::StoreLimits), what has expired is found, too: its
//! expiry tells. A record that is stored with an expiry that is over already says that the key is
//! gone; it has no conflict with other user keys of the id.

use wal::record::{Key, Version};

use super::{Effect, GetRecord, Lookup, Store};
use crate::error::{ReadError, WriteError};

impl Store {
    /// As [`Store::lookup`], whatever the user key.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn lookup_id(&mut self, key: &Key) -> Result<Lookup, ReadError> {
        self.lookup_record(key, None)
    }

    /// As [`Store::get`], whatever the user key.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn get_id(&mut self, key: &Key) -> Result<GetRecord, ReadError> {
        self.get_record(key, None)
    }

    /// As [`Store::remove`], whatever the user key.
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn remove_id(&mut self, key: &Key, version: Version) -> Result<Effect, WriteError> {
        self.remove_record(key, None, version)
    }
}

#[cfg(test)]
mod tests {
    use wal::group_commit::GroupCommitLimits;

    use super::super::tests::played_within;
    use super::super::{Entry, Get, KeyRef, Put, StoreLimits};
    use super::*;

    const ID: Key = Key([7; 20]);

    fn put(store: &mut Store, user_key: &[u8], expiry_ms: u64) -> Result<(), WriteError> {
        let (key, version) = (KeyRef::given(ID, user_key), Version([1; 16]));
        store.put(&Put { key, version, expiry_ms, value: user_key }).map(drop)
    }

    /// The clock stands at 1,000 ms.
    #[test]
    fn what_is_over_makes_room_for_another_key_of_the_id_and_is_found() {
        let limits = StoreLimits { expired_stay_ms: 1_000, ..StoreLimits::default() };
        let mut played = played_within(1 << 20, GroupCommitLimits::default(), limits);
        let store = &mut played.store;
        assert_eq!(put(store, b"one", 0), Ok(()));
        assert_eq!(put(store, b"two", 0), Err(WriteError::KeyConflict));
        assert_eq!(put(store, b"", 999), Ok(()));
        let (version, expiry_ms) = (Version([1; 16]), 999);
        let over = Entry { value_len: 0, expiry_ms, version };
        assert_eq!(store.lookup_id(&ID), Ok(Lookup::Found(over)));
        assert_eq!(store.get(&KeyRef::given(ID, b"one")), Ok(Get::Missing));
        assert_eq!(put(store, b"two", 0), Ok(()));
        let Ok(GetRecord::Found(user_key, value)) = store.get_id(&ID) else {
            panic!("it is there")
        };
        assert_eq!((&user_key[..], &value.value[..]), (&b"two"[..], &b"two"[..]));
        assert!(matches!(store.remove_id(&ID, version), Ok(Effect::Done(Some(_)))));
        assert_eq!(store.lookup_id(&ID), Ok(Lookup::Missing));
    }

    #[test]
    fn what_has_expired_goes_when_it_has_stayed() {
        let limits = StoreLimits { expired_stay_ms: 1_000, ..StoreLimits::default() };
        let mut played = played_within(1 << 20, GroupCommitLimits::default(), limits);
        assert_eq!(put(&mut played.store, b"one", 1_500), Ok(()));
        for (now_ms, is_there) in [(1_499, true), (1_500, true), (2_499, true), (2_500, false)] {
            played.at_ms(now_ms);
            let found = matches!(played.store.lookup_id(&ID), Ok(Lookup::Found(_)));
            assert_eq!(found, is_there, "{now_ms}");
        }
    }
}
