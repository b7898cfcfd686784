//! What a holder does with a record that it is to hold.
//!
//! - The higher version holds, whoever sends it, in whatever order; a tombstone is a record like
//!   any other, and stays for the grace.
//! - A version too far ahead of the clock is refused: it would hide all later writes.
//! - What has expired is a tombstone of its version.

use storage::Now;
use wal::record::Version;

use super::message::{Content, PutOutcome, Record};

/// What became of a record in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It is newer, and held.
    Newer,
    /// It was held already.
    Same,
    /// This higher version is held.
    NotNewer(Version),
    /// Another key of the same id is held.
    KeyConflict,
}

/// The wall time of a version, in ms since 1970.
#[must_use]
pub fn time_ms(version: &Version) -> u64 {
    let [a, b, c, d, e, f, ..] = version.0;
    u64::from_be_bytes([0, 0, a, b, c, d, e, f])
}

/// Whether a version is further ahead of the clock than it may be.
#[must_use]
pub fn is_too_far_ahead(version: &Version, now: Now, skew_max_ms: u64) -> bool {
    time_ms(version) > now.clock_ms.saturating_add(skew_max_ms)
}

/// Whether a tombstone of that version counts no more.
#[must_use]
pub fn is_past_grace(version: &Version, now: Now, grace_ms: u64) -> bool {
    time_ms(version).saturating_add(grace_ms) < now.clock_ms
}

/// Decides what becomes of a record where another one is stored. The store holds it, in the same
/// step, if this is [`Applied::Newer`].
#[must_use]
pub fn compare(stored: Option<&Record>, record: &Record, now_ms: u64) -> Applied {
    let Some(stored) = stored else { return Applied::Newer };
    if stored.version >= record.version {
        let is_same = stored.version == record.version;
        return if is_same { Applied::Same } else { Applied::NotNewer(stored.version) };
    }
    let is_live = !stored.header().at(now_ms).is_tombstone;
    let is_value = record.content != Content::Tombstone;
    if is_live && is_value && stored.user_key != record.user_key {
        return Applied::KeyConflict;
    }
    Applied::Newer
}

/// What a coordinator is told.
#[must_use]
pub fn outcome(applied: Applied, is_ready: bool) -> PutOutcome {
    match applied {
        Applied::Newer | Applied::Same => PutOutcome::Applied { is_ready },
        Applied::NotNewer(stored) => PutOutcome::NotNewer { stored },
        Applied::KeyConflict => PutOutcome::KeyConflict,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wal::record::{Key, Namespace};

    use super::super::store::{ModelStore, RecordStore};
    use super::*;
    use crate::cluster::clock::HybridLogicalClock;

    const NOW_MS: u64 = 1_000_000;

    fn record(time_ms: u64, value: Option<&'static str>) -> Record {
        let version = HybridLogicalClock::new(&[1; 20], Version::default()).next(time_ms);
        let value = value.map(|value| Content::Value(Bytes::from_static(value.as_bytes())));
        Record {
            namespace: Namespace::PLAIN,
            key: Key::of(b"k"),
            user_key: Bytes::from_static(b"k"),
            version,
            expiry_ms: 0,
            content: value.unwrap_or(Content::Tombstone),
        }
    }

    #[test]
    fn the_higher_version_holds_in_whatever_order_they_come() {
        let records = [record(10, Some("a")), record(20, None), record(30, Some("c"))];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut store = ModelStore::default();
            let mut highest = 0;
            for index in order {
                let applied = store.apply(records[index].clone(), NOW_MS);
                let is_newer = applied == Applied::Newer;
                assert_eq!(is_newer, index >= highest);
                highest = highest.max(index);
                let held = records[highest].version;
                assert!(is_newer || applied == Applied::NotNewer(held));
                assert_eq!(store.apply(records[highest].clone(), NOW_MS), Applied::Same);
            }
            assert_eq!(store.read(&Key::of(b"k"), NOW_MS), Some(records[2].clone()));
        }
    }

    #[test]
    fn what_has_expired_is_a_tombstone_of_its_version() {
        let mut store = ModelStore::default();
        let mut expiring = record(10, Some("a"));
        expiring.expiry_ms = NOW_MS;
        assert_eq!(store.apply(expiring.clone(), NOW_MS - 1), Applied::Newer);
        assert_eq!(store.read(&expiring.key, NOW_MS - 1), Some(expiring.clone()));
        let found = store.read(&expiring.key, NOW_MS).unwrap();
        assert_eq!((found.content, found.version), (Content::Tombstone, expiring.version));
        let late = Record { expiry_ms: NOW_MS, ..record(20, Some("b")) };
        assert_eq!(store.apply(late.clone(), NOW_MS + 1), Applied::Newer);
        let found = store.read(&late.key, 0).unwrap();
        assert_eq!((found.content, found.version), (Content::Tombstone, late.version));
    }

    #[test]
    fn another_key_of_the_same_id_is_refused_while_the_first_lives() {
        let mut store = ModelStore::default();
        store.apply(record(10, Some("a")), NOW_MS);
        let other = Record { user_key: Bytes::from_static(b"x"), ..record(20, Some("b")) };
        assert_eq!(store.apply(other.clone(), NOW_MS), Applied::KeyConflict);
        store.apply(record(15, None), NOW_MS);
        assert_eq!(store.apply(other, NOW_MS), Applied::Newer);
    }

    #[test]
    fn versions_ahead_of_the_clock_are_told_from_others() {
        let now = Now { monotonic_ns: 0, clock_ms: NOW_MS };
        let version = record(NOW_MS + 11, None).version;
        assert_eq!(time_ms(&version), NOW_MS + 11);
        assert!(is_too_far_ahead(&version, now, 10));
        assert!(!is_too_far_ahead(&version, now, 11));
        assert!(is_past_grace(&record(NOW_MS - 11, None).version, now, 10));
        assert!(!is_past_grace(&version, now, 0));
    }
}
