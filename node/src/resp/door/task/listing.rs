//! KEYS, SCAN and RANDOMKEY: a walk over the keys of all shards in one order.
//!
//! A walk goes in rounds. Each asks every shard for some keys from one point on. The shards go
//! on at different points then; all keys before the nearest of these are known, and the next round
//! starts there.

use bytes::Bytes;
use storage::ScannedKey;
use wal::record::Key;

use super::super::reply_queue::Reply;
use crate::keyspace::Keyspace;
use crate::resp::glob;

/// Keys that a round asks for, over all shards.
const KEYS_PER_ROUND_MAX: usize = 1024;
/// Bytes of a key that a cursor holds.
const CURSOR_LEN: usize = 8;

/// What a walk over keys is for.
#[derive(Debug)]
pub(in crate::resp::door) enum Listing {
    /// KEYS.
    Keys { pattern: Bytes },
    /// SCAN.
    Scan {
        /// Where to start.
        cursor: u64,
        /// Keys to look at, about.
        count: usize,
        /// MATCH.
        pattern: Option<Bytes>,
        /// Whether TYPE leaves out whatever there is.
        hides_all: bool,
    },
    /// RANDOMKEY, from this point on.
    Random { point: Key },
}

/// A shard's part of a round.
#[derive(Debug)]
struct Page {
    keys: Vec<ScannedKey>,
    next: Option<Key>,
}

/// What comes after a round.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The reply.
    Reply,
    /// Another round, at once.
    Round,
    /// Another round, when other commands have had their turn.
    RoundLater,
}

/// A walk.
#[derive(Debug)]
pub(super) struct Walk {
    listing: Listing,
    /// Where the next round starts; `None` at the end of the key space.
    from: Option<Key>,
    /// Whether a cursor can say where that is.
    at_cursor: bool,
    /// Whether RANDOMKEY has come to the end and gone on at the beginning.
    wrapped: bool,
    pages: Vec<Page>,
    looked: usize,
    names: Vec<Bytes>,
}

impl Walk {
    pub(super) fn new(listing: Listing) -> Self {
        let from = match &listing {
            Listing::Keys { .. } => Key([0; 20]),
            Listing::Scan { cursor, .. } => cursor_key(*cursor),
            Listing::Random { point } => *point,
        };
        let (pages, names) = (Vec::new(), Vec::new());
        Self { listing, from: Some(from), at_cursor: true, wrapped: false, pages, looked: 0, names }
    }

    /// Where the next round starts, and how many keys it asks each shard for.
    pub(super) fn round(&self, keyspace: &Keyspace) -> Option<(Key, usize)> {
        let wanted = match &self.listing {
            Listing::Keys { .. } => KEYS_PER_ROUND_MAX,
            Listing::Scan { count, .. } => count.saturating_sub(self.looked),
            Listing::Random { .. } => 1,
        };
        let wanted = wanted.clamp(1, KEYS_PER_ROUND_MAX);
        Some((self.from?, wanted.div_ceil(keyspace.shards().len())))
    }

    /// Takes a shard's part of the round.
    pub(super) fn take_page(&mut self, keys: Vec<ScannedKey>, next: Option<Key>) {
        self.pages.push(Page { keys, next });
    }

    /// Ends the round: every shard's part is here.
    pub(super) fn end_round(&mut self) -> Next {
        let pages = std::mem::take(&mut self.pages);
        let from = self.from.unwrap_or(Key([0; 20]));
        let nearest = pages.iter().filter_map(|page| page.next).min();
        // A cursor is the beginning of a key, so a walk stops where one begins.
        let rounded = nearest.map(|key| cursor_key(cursor_of(&key)));
        self.at_cursor = rounded.is_none_or(|key| key > from);
        self.from = if self.at_cursor { rounded } else { nearest };
        let limit = self.from;
        let keys = pages.into_iter().flat_map(|page| page.keys);
        let known = |key: &ScannedKey| limit.is_none_or(|limit| key.key < limit);
        let mut keys: Vec<ScannedKey> = keys.filter(known).collect();
        keys.sort_unstable_by_key(|key| key.key);
        self.looked += keys.len();
        let found_any = !keys.is_empty();
        for key in keys {
            self.take_name(key.user_key);
        }
        self.next(found_any)
    }

    fn next(&mut self, found_any: bool) -> Next {
        let enough = match self.listing {
            Listing::Keys { .. } => false,
            Listing::Scan { count, .. } => self.looked >= count && self.at_cursor,
            Listing::Random { .. } => self.looked > 0,
        };
        let is_random = matches!(self.listing, Listing::Random { .. });
        if self.from.is_none() && is_random && !enough && !self.wrapped {
            (self.wrapped, self.from) = (true, Some(Key([0; 20])));
            return Next::RoundLater;
        }
        match () {
            () if enough || self.from.is_none() => Next::Reply,
            () if found_any && matches!(self.listing, Listing::Scan { .. }) => Next::Round,
            () => Next::RoundLater,
        }
    }

    fn take_name(&mut self, name: Bytes) {
        let matches = match &self.listing {
            Listing::Keys { pattern } => glob::matches(pattern, &name),
            Listing::Scan { hides_all: true, .. } => false,
            Listing::Scan { pattern, .. } => {
                pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, &name))
            }
            Listing::Random { .. } => self.names.is_empty(),
        };
        if matches {
            self.names.push(name);
        }
    }

    pub(super) fn write(&self, reply: &mut Reply) {
        let mut writer = reply.writer();
        match self.listing {
            Listing::Keys { .. } => writer.array_header(self.names.len()),
            Listing::Scan { .. } => {
                let cursor = self.from.map_or(0, |from| cursor_of(&from));
                writer.array_header(2);
                writer.bulk(cursor.to_string().as_bytes());
                writer.array_header(self.names.len());
            }
            Listing::Random { .. } if self.names.is_empty() => writer.null(),
            Listing::Random { .. } => {}
        }
        self.names.iter().for_each(|name| reply.writer().bulk(name));
    }
}

/// The cursor of a place in the key space.
pub(crate) fn cursor_of(key: &Key) -> u64 {
    key.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// The place in the key space that a cursor says.
pub(crate) fn cursor_key(cursor: u64) -> Key {
    let mut key = [0; 20];
    key[..CURSOR_LEN].copy_from_slice(&cursor.to_be_bytes());
    Key(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u64, last: u8) -> Key {
        let mut key = cursor_key(first);
        key.0[19] = last;
        key
    }

    fn scanned(key: Key) -> ScannedKey {
        let user_key = Bytes::from(format!("{}-{}", cursor_of(&key), key.0[19]));
        ScannedKey { key, user_key, version: wal::record::Version::default(), expiry_ms: 0 }
    }

    fn scan(cursor: u64, count: usize) -> Walk {
        Walk::new(Listing::Scan { cursor, count, pattern: None, hides_all: false })
    }

    fn names(walk: &Walk) -> Vec<&str> {
        walk.names.iter().map(|name| std::str::from_utf8(name).unwrap()).collect()
    }

    #[test]
    fn keys_behind_the_nearest_end_of_a_shard_wait_for_the_next_round() {
        let mut walk = scan(0, 2);
        walk.take_page(vec![scanned(key(1, 0)), scanned(key(9, 0))], Some(key(10, 3)));
        walk.take_page(vec![scanned(key(2, 0)), scanned(key(5, 0))], Some(key(7, 1)));
        assert_eq!(walk.end_round(), Next::Reply);
        assert_eq!(names(&walk), ["1-0", "2-0", "5-0"]);
        assert_eq!(walk.from, Some(key(7, 0)));
    }

    #[test]
    fn walk_does_not_stop_within_the_keys_of_one_cursor() {
        let mut walk = scan(7, 1);
        walk.take_page(vec![scanned(key(7, 1))], Some(key(7, 5)));
        walk.take_page(vec![scanned(key(7, 2)), scanned(key(7, 6))], None);
        assert_eq!(walk.end_round(), Next::Round);
        assert_eq!((walk.from, names(&walk)), (Some(key(7, 5)), vec!["7-1", "7-2"]));
        walk.take_page(vec![scanned(key(7, 5))], Some(key(8, 4)));
        walk.take_page(vec![scanned(key(7, 6))], None);
        assert_eq!(walk.end_round(), Next::Reply);
        assert_eq!((walk.from, names(&walk)), (Some(key(8, 0)), vec!["7-1", "7-2", "7-5", "7-6"]));
    }

    #[test]
    fn random_key_goes_round_once() {
        let mut walk = Walk::new(Listing::Random { point: key(5, 0) });
        walk.take_page(Vec::new(), None);
        assert_eq!(walk.end_round(), Next::RoundLater);
        assert_eq!(walk.from, Some(key(0, 0)));
        walk.take_page(vec![scanned(key(3, 0)), scanned(key(4, 0))], Some(key(5, 0)));
        assert_eq!((walk.end_round(), names(&walk)), (Next::Reply, vec!["3-0"]));
        let mut empty = Walk::new(Listing::Random { point: key(5, 0) });
        empty.take_page(Vec::new(), None);
        assert_eq!(empty.end_round(), Next::RoundLater);
        empty.take_page(Vec::new(), None);
        assert_eq!(empty.end_round(), Next::Reply);
    }
}
