//! Which keys expire when. Expiry needs no write: the record says when it ends.

use std::collections::BTreeSet;

use wal::record::Key;

/// Most keys that one step expires.
pub(crate) const EXPIRED_PER_STEP_MAX: usize = 1024;

/// Keys with an expiry, by time.
#[derive(Debug, Default)]
pub(crate) struct ExpiryQueue {
    keys: BTreeSet<(u64, Key)>,
}

impl ExpiryQueue {
    pub(crate) fn insert(&mut self, key: Key, expiry_ms: u64) {
        if expiry_ms != 0 {
            self.keys.insert((expiry_ms, key));
        }
    }

    pub(crate) fn remove(&mut self, key: Key, expiry_ms: u64) {
        if expiry_ms != 0 {
            self.keys.remove(&(expiry_ms, key));
        }
    }

    pub(crate) fn clear(&mut self) {
        self.keys.clear();
    }

    /// When the next key expires.
    pub(crate) fn next_ms(&self) -> Option<u64> {
        self.keys.first().map(|(expiry_ms, _)| *expiry_ms)
    }

    /// Takes a key that has expired by `now_ms`.
    pub(crate) fn pop_expired(&mut self, now_ms: u64) -> Option<Key> {
        let (expiry_ms, _) = *self.keys.first()?;
        (expiry_ms <= now_ms).then(|| self.keys.pop_first().map(|(_, key)| key)).flatten()
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}
