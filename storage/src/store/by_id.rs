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
