//! [`Listings`]: SCAN over the whole cluster, and DBSIZE of this node.
//!
//! SCAN asks the core for pages in the order of key ids until it has looked at enough keys: of more
//! and more parts of the key space at a time, as long as there are few keys in them. Its
//! cursor is the first 8 bytes of the id to go on from, as on a single node: it means the same on
//! every node of the cluster, and after restarts.
//!
//! DBSIZE walks over the node's own copies and counts those that live.

use std::collections::BTreeMap;

use bytes::Bytes;
use storage::Now;
use wal::record::Key;

use super::OWN_TICKETS;
use super::answer::{Answer, error_of};
use crate::cluster::ClusterNode;
use crate::cluster::coordinator::{CommandId, Outcome};
use crate::cluster::prefix::Prefix;
use crate::cluster::store::{StoreAnswer, StoreRequest, Ticket};
use crate::resp::command;
use crate::resp::door::{PeerToken, SCAN_COUNT_DEFAULT, SCAN_COUNT_MAX, cursor_key, cursor_of};
use crate::resp::glob;

/// Pages that one SCAN asks for: where there are few keys, it ends with fewer than it was to look
/// at.
const PAGES_PER_SCAN_MAX: usize = 64;
/// Parts of the key space that a page asks about at the same time, once the parts before had too
/// few keys: beginning with one, twice as many each time.
const REGIONS_PER_PAGE_MAX: usize = 16;
/// Bytes of keys after which a SCAN ends, too.
const SCANNED_BYTES_MAX: usize = 1 << 20;
/// Keys that DBSIZE counts at a time.
const COUNTED_PER_PAGE_MAX: usize = 1_024;
/// Tickets of DBSIZE, apart from those of others on this side.
const COUNT_TICKETS: u64 = OWN_TICKETS | (1 << 62);

#[derive(Debug)]
struct Scanning {
    /// Where the page that was asked for begins.
    from: Key,
    count: usize,
    pattern: Option<Bytes>,
    /// TYPE leaves out whatever there is.
    hides_all: bool,
    looked: usize,
    pages: usize,
    /// Of so many parts the next page is.
    regions: usize,
    names: Vec<Bytes>,
    bytes: usize,
}

#[derive(Debug)]
struct Counting {
    token: PeerToken,
    count: i64,
}

/// Listings under way.
#[derive(Debug, Default)]
pub(super) struct Listings {
    scans: BTreeMap<CommandId, (PeerToken, Scanning)>,
    counts: BTreeMap<Ticket, Counting>,
    last_count: u64,
}

impl Scanning {
    fn new(scan: &command::Scan<'_>) -> Self {
        let count = scan.count.unwrap_or(SCAN_COUNT_DEFAULT).clamp(1, SCAN_COUNT_MAX);
        Self {
            from: cursor_key(scan.cursor),
            count: usize::try_from(count).unwrap_or(usize::MAX),
            pattern: scan.pattern.map(Bytes::copy_from_slice),
            hides_all: scan.kind.is_some_and(|kind| !kind.eq_ignore_ascii_case(b"string")),
            looked: 0,
            pages: 0,
            regions: 1,
            names: Vec::new(),
            bytes: 0,
        }
    }

    fn wanted(&self) -> usize {
        self.count.saturating_sub(self.looked).max(1)
    }

    fn matches(&self, name: &[u8]) -> bool {
        let fits = |pattern: &Bytes| glob::matches(pattern, name);
        !self.hides_all && self.pattern.as_ref().is_none_or(fits)
    }

    /// Takes a page. Returns the cursor if the reply is complete.
    fn take(&mut self, looked: usize, names: Vec<Bytes>, next: Option<Key>) -> Option<u64> {
        self.pages += 1;
        self.looked += looked;
        self.regions = (self.regions * 2).min(REGIONS_PER_PAGE_MAX);
        // A cursor is the beginning of an id, so a reply stops where one begins.
        let rounded = next.map(|next| cursor_key(cursor_of(&next)));
        let at_cursor = rounded.is_none_or(|rounded| rounded > self.from);
        let go_on = if at_cursor { rounded } else { next };
        for name in names {
            let is_before = || go_on.is_none_or(|go_on| Key::of(&name) < go_on);
            if self.matches(&name) && (go_on == next || is_before()) {
                self.bytes += name.len();
                self.names.push(name);
            }
        }
        let Some(go_on) = go_on else { return Some(0) };
        self.from = go_on;
        let is_long = self.pages >= PAGES_PER_SCAN_MAX || self.bytes >= SCANNED_BYTES_MAX;
        let is_enough = self.looked >= self.count || is_long;
        (is_enough && at_cursor).then(|| cursor_of(&go_on))
    }
}

impl Listings {
    /// Number of listings under way.
    pub(super) fn len(&self) -> usize {
        self.scans.len() + self.counts.len()
    }

    /// Takes a SCAN on.
    pub(super) fn scan(
        &mut self,
        core: &mut ClusterNode,
        now: Now,
        token: PeerToken,
        scan: &command::Scan<'_>,
    ) {
        let scanning = Scanning::new(scan);
        let id = core.list(now, scanning.from, scanning.wanted(), scanning.regions);
        self.scans.insert(id, (token, scanning));
    }

    /// Takes what became of a command of the core. The answer to the client comes back if it is
    /// complete; the outcome, if it is nothing of a listing.
    pub(super) fn on_decided(
        &mut self,
        core: &mut ClusterNode,
        now: Now,
        command: CommandId,
        outcome: Outcome,
    ) -> Result<Option<(PeerToken, Answer)>, Outcome> {
        let Some((token, mut scanning)) = self.scans.remove(&command) else { return Err(outcome) };
        let Outcome::Listed { looked, names, next } = outcome else {
            return Ok(Some((token, Answer::Error(error_of(&outcome).to_vec()))));
        };
        if let Some(cursor) = scanning.take(looked, names, next) {
            return Ok(Some((token, Answer::Page(cursor, scanning.names))));
        }
        let id = core.list(now, scanning.from, scanning.wanted(), scanning.regions);
        self.scans.insert(id, (token, scanning));
        Ok(None)
    }

    /// Takes a DBSIZE on. Returns what the store is to be asked.
    pub(super) fn count(&mut self, token: PeerToken) -> (Ticket, StoreRequest) {
        self.count_from(Counting { token, count: 0 }, Prefix::ALL.first_key())
    }

    fn count_from(&mut self, counting: Counting, from: Key) -> (Ticket, StoreRequest) {
        let ticket = Ticket(COUNT_TICKETS + self.last_count);
        self.last_count += 1;
        self.counts.insert(ticket, counting);
        let (prefix, count) = (Prefix::ALL, COUNTED_PER_PAGE_MAX);
        (ticket, StoreRequest::Walk { prefix, from, count })
    }

    /// Takes the store's answer: what it is to be asked next, or the answer to the client. The
    /// answer comes back if it is nothing of a listing.
    pub(super) fn on_stored(
        &mut self,
        ticket: Ticket,
        answer: StoreAnswer,
    ) -> Result<Counted, StoreAnswer> {
        let Some(mut counting) = self.counts.remove(&ticket) else { return Err(answer) };
        let StoreAnswer::Walked(entries, next) = answer else {
            let text = b"IOERR the disk could not read the keys".to_vec();
            return Ok(Counted::Done(counting.token, Answer::Error(text)));
        };
        let living = entries.iter().filter(|entry| !entry.is_tombstone).count();
        counting.count += i64::try_from(living).unwrap_or(0);
        Ok(match next {
            None => Counted::Done(counting.token, Answer::Integer(counting.count)),
            Some(from) => {
                let (ticket, request) = self.count_from(counting, from);
                Counted::More(ticket, request)
            }
        })
    }
}

/// What comes after a page of DBSIZE.
#[derive(Debug)]
pub(super) enum Counted {
    More(Ticket, StoreRequest),
    Done(PeerToken, Answer),
}
