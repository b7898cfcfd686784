//! [`Scans`]: clients that walk over all keys, page by page, each page asked of any node.
//!
//! ```text
//! begin ─> page asked of a node ─> listed ──> next page ... ─> last page: all keys judged
//!              ^                     │ refused, or no answer in time
//!              └───── later ─────────┘
//! ```
//!
//! A page lists only keys between its beginning and the next page's, and none twice. Where replica
//! sets stay as they are all that lived throughout must be listed, and nothing that was gone
//! before; where they change this holds once all agree again.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kadring::cluster::coordinator::{CommandId, Outcome};
use wal::record::Key;

use super::world::{Event, World, name_of};
use super::{MS, SECOND, START_MS};

/// Walks of clients at a time.
const SCANS_MAX: usize = 2;
/// Most keys that a page is asked for.
const PAGE_MAX: usize = 64;
/// A page without answer is asked for again after that, and ...
const PAGE_AGAIN_AFTER: u64 = 8 * SECOND;
/// ... a refused one after at most that.
const PAGE_REFUSED_AGAIN_AFTER: u64 = 500 * MS;
/// Clusters up to this size are walked over from every node.
const WALKED_WHOLE: usize = 8;
/// All walks are over within that where nothing goes wrong, and that for each node.
const SCANS_WITHIN: u64 = 20 * SECOND;
const SCANS_WITHIN_PER_NODE: u64 = 200 * MS;

/// A walk under way.
#[derive(Debug)]
struct Walk {
    started_ns: u64,
    /// Whether sets stayed as they are.
    is_stable: bool,
    from: Key,
    found: BTreeSet<Key>,
    /// Counts what was asked and answered: what belongs to an earlier turn is stale.
    turn: u64,
}

/// Walks under way.
#[derive(Debug, Default)]
pub(super) struct Scans {
    walks: BTreeMap<u64, Walk>,
    /// Pages asked for: the walk and its turn.
    pages: BTreeMap<(usize, u32, CommandId), (u64, u64)>,
    last: u64,
}

impl Scans {
    /// Number of walks under way.
    pub(super) fn len(&self) -> usize {
        self.walks.len()
    }
}

impl World {
    /// A client walks over all keys, unless enough do.
    pub(super) fn begin_scan(&mut self) {
        if self.scans.len() < SCANS_MAX {
            self.begin_walk();
        }
    }

    fn begin_walk(&mut self) {
        self.scans.last += 1;
        let (walk, started_ns) = (self.scans.last, self.now_ns);
        let (is_stable, found) = (self.mix.is_stable, BTreeSet::new());
        let from = Key([0; 20]);
        self.scans.walks.insert(walk, Walk { started_ns, is_stable, from, found, turn: 0 });
        self.after(0, Event::Page { walk, turn: 0 });
    }

    /// Asks for the next page of a walk, unless that has gone on meanwhile.
    pub(super) fn ask_page(&mut self, walk: u64, turn: u64) -> Result<(), String> {
        let Some(asking) = self.scans.walks.get_mut(&walk).filter(|it| it.turn == turn) else {
            return Ok(());
        };
        asking.turn += 1;
        let (from, turn) = (asking.from, asking.turn);
        self.after(PAGE_AGAIN_AFTER, Event::Page { walk, turn });
        let at = self.rng.usize(..self.hosts.len());
        let (now, boot) = (self.now_of(at), self.hosts[at].boot);
        let count = self.rng.usize(1..=PAGE_MAX);
        let regions = 1 << self.rng.u32(0..=4);
        let Some(core) = &mut self.hosts[at].core else {
            self.ask_again(walk);
            return Ok(());
        };
        let command = core.list(now, from, count, regions);
        self.scans.pages.insert((at, boot, command), (walk, turn));
        self.drain(at)
    }

    fn ask_again(&mut self, walk: u64) {
        let after = self.rng.u64(MS..PAGE_REFUSED_AGAIN_AFTER);
        let Some(refused) = self.scans.walks.get_mut(&walk) else { return };
        refused.turn += 1;
        let turn = refused.turn;
        self.after(after, Event::Page { walk, turn });
    }

    /// Takes what became of a command, if it asked for a page.
    pub(super) fn take_page(
        &mut self,
        asked: (usize, u32, CommandId),
        outcome: &Outcome,
    ) -> Result<bool, String> {
        let Some((walk, turn)) = self.scans.pages.remove(&asked) else { return Ok(false) };
        let Some(mut walking) = self.scans.walks.remove(&walk) else { return Ok(true) };
        if walking.turn != turn {
            self.scans.walks.insert(walk, walking);
            return Ok(true);
        }
        let Outcome::Listed { names, next, .. } = outcome else {
            self.counted.refused += 1;
            self.scans.walks.insert(walk, walking);
            self.ask_again(walk);
            return Ok(true);
        };
        walking.take(names, *next)?;
        if next.is_some() {
            let turn = walking.turn;
            self.scans.walks.insert(walk, walking);
            self.after(0, Event::Page { walk, turn });
        } else {
            self.end_walk(&walking)?;
        }
        Ok(true)
    }

    fn end_walk(&mut self, walk: &Walk) -> Result<(), String> {
        self.counted.scans += 1;
        let mut listed = walk.found.clone();
        let is_strict = walk.is_stable && self.mix.is_stable;
        // No clock shows less than it has run, and none is further ahead than that.
        let clock_min_ms = START_MS + walk.started_ns / MS;
        let clock_max_ms = START_MS + self.now_ns / MS + self.mix.skew_max_ms + 1;
        for key in 0..self.mix.keys {
            let is_listed = listed.remove(&Key::of(&name_of(key)));
            if is_strict {
                let clocks = (clock_min_ms, clock_max_ms);
                let judged = self.ledger.judge_listed(key, is_listed, walk.started_ns, clocks);
                judged.map_err(|error| format!("a walk since {} ns: {error}", walk.started_ns))?;
            }
        }
        listed.first().map_or(Ok(()), |key| Err(format!("a walk lists {key:?}, of nobody")))
    }

    /// Walks over all keys from several nodes, where nothing goes wrong, and ends all walks.
    pub(super) fn scan_everything(&mut self) -> Result<(), String> {
        let wanted = self.hosts.len().min(WALKED_WHOLE);
        (0..wanted).for_each(|_| self.begin_walk());
        let within = SCANS_WITHIN + self.hosts.len() as u64 * SCANS_WITHIN_PER_NODE;
        self.run_until(self.now_ns + within, |world| world.scans.len() == 0)?;
        match self.scans.walks.first_key_value() {
            None => Ok(()),
            Some((_, walk)) => Err(format!("a walk does not end: {walk:?}")),
        }
    }
}

impl Walk {
    fn take(&mut self, names: &[Bytes], next: Option<Key>) -> Result<(), String> {
        if next.is_some_and(|next| next <= self.from) {
            return Err(format!("a walk goes on from {:?} at {next:?}", self.from));
        }
        for name in names {
            let key = Key::of(name);
            if key < self.from || next.is_some_and(|next| key >= next) {
                return Err(format!("{key:?} is listed from {:?} to {next:?}", self.from));
            }
            if !self.found.insert(key) {
                return Err(format!("{key:?} is listed twice"));
            }
        }
        self.from = next.unwrap_or(self.from);
        self.turn += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(from: u8) -> Walk {
        let (is_stable, found) = (true, BTreeSet::new());
        Walk { started_ns: 0, is_stable, from: Key([from; 20]), found, turn: 0 }
    }

    #[test]
    fn a_page_lists_keys_of_its_own_range_once() {
        let name = Bytes::from_static(b"a name");
        let key = Key::of(&name);
        let (below, above) = (Key([key.0[0]; 20]), Key([key.0[0] + 1; 20]));
        assert!(below.min(key) < above, "the test's own keys");
        let once = std::slice::from_ref(&name);
        assert_eq!(walk(0).take(once, Some(above)), Ok(()));
        assert_eq!(walk(0).take(once, None), Ok(()));
        assert!(walk(0).take(once, Some(Key([1; 20]))).is_err(), "beyond its end");
        assert!(walk(0xFF).take(once, None).is_err(), "before its beginning");
        assert!(walk(0).take(&[name.clone(), name.clone()], None).is_err(), "twice");
        assert!(walk(7).take(&[], Some(Key([7; 20]))).is_err(), "it stands still");
    }
}
