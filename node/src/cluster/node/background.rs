//! What a node does of itself: it fills its ranges, and compares them with other holders.

use std::collections::{BTreeMap, VecDeque};

use storage::Now;
use wal::record::Key;

use super::repair::Repair;
use super::{
    ClusterNode, Found, Mutation, Owner, PeerMessage, Phase, PrefixSet, StoreAnswer, Ticket,
    placement, step,
};
use crate::cluster::exchange::{Exchange, Purpose};
use crate::cluster::hand_off::{Cleaning, Fill, Unclean};
use crate::cluster::prefix::Prefix;
use crate::kademlia::NodeId;

/// Ranges filled at the same time.
const FILLS_MAX: usize = 4;

/// Work under way.
#[derive(Debug, Default)]
pub(super) struct Background {
    pub(super) exchanges: BTreeMap<u64, Exchange>,
    last_exchange: u64,
    /// Which exchange was the last that moved a record in its turn.
    last_moved: u64,
    fills: BTreeMap<Prefix, Fill>,
    pub(super) repair: Repair,
    pub(super) cleaning: Option<Cleaning>,
    /// What is outside of the node's own ranges and still to be looked through.
    pub(super) to_clean: VecDeque<Unclean>,
    /// Whether this pass found anything there.
    pub(super) pass_found: bool,
    pub(super) pushing: BTreeMap<Ticket, NodeId>,
    pub(super) leaving: Option<Ticket>,
    pub(super) hand_off_at_ns: u64,
    start_ns: Option<u64>,
}

/// How much a node does of itself just now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackgroundWork {
    /// Ranges that are being filled.
    pub fills: usize,
    /// Comparisons with other holders.
    pub exchanges: usize,
}

impl ClusterNode {
    /// What it does of itself just now.
    #[must_use]
    pub fn background_work(&self) -> BackgroundWork {
        let Background { fills, exchanges, .. } = &self.background;
        BackgroundWork { fills: fills.len(), exchanges: exchanges.len() }
    }

    /// When there is something to do.
    pub(super) fn background_deadline_ns(&self) -> u64 {
        let background = &self.background;
        let exchanges = background.exchanges.values().map(|it| it.wake_at_ns(&self.out.pace));
        let cleaning = background.cleaning.iter().map(|cleaning| cleaning.deadline_ns);
        let first = background.repair.wake_at_ns.min(background.hand_off_at_ns);
        exchanges.chain(cleaning).fold(first, u64::min)
    }

    /// Does what is due.
    pub(super) fn handle_background_time(&mut self, now: Now) {
        let at_ns = now.monotonic_ns;
        self.background.start_ns.get_or_insert(at_ns);
        let is_due = |exchange: &Exchange| exchange.is_late(at_ns);
        let late: Vec<Exchange> = self
            .background
            .exchanges
            .extract_if(.., |_, exchange| is_due(exchange))
            .map(|(_, exchange)| exchange)
            .collect();
        for mut exchange in late {
            (exchange.has_failed, exchange.is_unanswered) = (true, true);
            self.after_exchange(now, exchange);
        }
        self.move_records(now);
        if self.background.repair.wake_at_ns <= at_ns {
            self.repair_next(now);
        }
        if self.background.cleaning.as_ref().is_some_and(|it| it.deadline_ns <= at_ns) {
            self.background.cleaning = None;
            self.background.pass_found = true;
        }
        if self.background.hand_off_at_ns <= at_ns {
            self.background.hand_off_at_ns = at_ns + self.settings.hand_off_every_ms * 1_000_000;
            self.catch_up(now);
            self.look_when_founding(at_ns);
            self.fill_next(now);
            self.clean_next(now);
        }
    }

    /// Exchanges move what their common pace allows, one after the other.
    fn move_records(&mut self, now: Now) {
        let Background { exchanges, last_moved, .. } = &mut self.background;
        let behind = exchanges.range(*last_moved + 1..).chain(exchanges.range(..=*last_moved));
        let ids: Vec<u64> = behind.map(|(id, _)| *id).collect();
        for id in ids {
            let Some(exchange) = exchanges.get_mut(&id) else { continue };
            if exchange.may_move(now.monotonic_ns, &self.out.pace) {
                *last_moved = id;
                exchange.advance(&mut step(&mut self.out, &mut self.queries, &self.settings, now));
            }
        }
    }

    /// A newcomer looks at what it lacks at the very moment when it may found.
    fn look_when_founding(&mut self, at_ns: u64) {
        if self.members.own().phase == Phase::Joining
            && let Some(start_ns) = self.background.start_ns
            && let founds_at_ns = start_ns + self.settings.found_after_ms * 1_000_000 + 1
            && founds_at_ns > at_ns
        {
            self.background.hand_off_at_ns = self.background.hand_off_at_ns.min(founds_at_ns);
        }
    }

    /// Members have changed: what was begun for other ranges or sources is given up.
    pub(super) fn replace_background(&mut self) {
        let pending = self.pending();
        let sources: BTreeMap<Prefix, Vec<NodeId>> =
            self.background.fills.keys().map(|prefix| (*prefix, self.sources(prefix))).collect();
        self.background.fills.retain(|prefix, fill| {
            let is_same = fill.sources.keys().eq(sources[prefix].iter());
            is_same && pending.covers(prefix)
        });
        let fills = &self.background.fills;
        self.background.exchanges.retain(|_, exchange| match exchange.purpose {
            Purpose::Fill(prefix) => fills.contains_key(&prefix),
            Purpose::Repair => true,
        });
        self.background.to_clean.clear();
        self.background.repair.replace();
        self.background.pass_found = true;
    }

    /// Whom to fill a range from: those around it, old holders among them.
    fn sources(&self, prefix: &Prefix) -> Vec<NodeId> {
        let is_other = |id: &&NodeId| **id != self.own;
        let known: Vec<NodeId> = self.view.known.iter().filter(is_other).copied().collect();
        let mut sources = placement::around(prefix, &known, 2 * self.settings.replicas);
        sources.sort();
        sources
    }

    pub(super) fn exchange(&mut self, now: Now, peer: NodeId, prefix: Prefix, purpose: Purpose) {
        self.background.last_exchange += 1;
        let id = self.background.last_exchange;
        let mut exchange = Exchange::new(id, peer, prefix, purpose, self.mutation);
        exchange.advance(&mut step(&mut self.out, &mut self.queries, &self.settings, now));
        self.background.exchanges.insert(id, exchange);
    }

    fn fill_next(&mut self, now: Now) {
        let late = |fill: &Fill| fill.deadline_ns <= now.monotonic_ns;
        self.background.fills.retain(|_, fill| !late(fill));
        let fills = &self.background.fills;
        self.background.exchanges.retain(|_, exchange| match exchange.purpose {
            Purpose::Fill(prefix) => fills.contains_key(&prefix),
            Purpose::Repair => true,
        });
        self.queries.0.retain(|_, (owner, _)| match owner {
            Owner::Fill(prefix) => fills.contains_key(prefix),
            _ => true,
        });
        let pending = self.pending();
        if pending.is_empty() && self.members.own().phase == Phase::Joining {
            self.members.set_phase(Phase::Full);
        }
        if self.is_loading() {
            return;
        }
        for prefix in pending.iter().copied() {
            if self.background.fills.len() >= FILLS_MAX {
                break;
            }
            if self.background.fills.keys().any(|fill| fill.covers(&prefix) || prefix.covers(fill))
            {
                continue;
            }
            let sources = self.sources(&prefix);
            let wait_ns = 8 * self.settings.exchange_for_ms * 1_000_000;
            let fill = Fill::new(prefix, &sources, now.monotonic_ns + wait_ns);
            self.background.fills.insert(prefix, fill);
        }
        self.claim(now);
        // A source that was lost is asked again, and another one if it does not get on.
        let begun: Vec<Prefix> = self.background.fills.keys().copied().collect();
        for prefix in begun {
            self.fetch_next(now, prefix, u32::MAX);
        }
        self.end_fills(now);
    }

    /// Asks sources that have not said what they hold. What was lost is asked again.
    fn claim(&mut self, now: Now) {
        let wait_ns = self.settings.exchange_for_ms * 1_000_000;
        for (prefix, fill) in &mut self.background.fills {
            for (node, source) in &mut fill.sources {
                if source.held.is_some() || source.claim_at_ns > now.monotonic_ns {
                    continue;
                }
                source.claim_at_ns = now.monotonic_ns + wait_ns;
                let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
                let claim = |request| PeerMessage::Claim { request, prefix: *prefix };
                step.query(Owner::Fill(*prefix), *node, claim);
            }
        }
    }

    /// Compares a range with the next of its sources that was not tried too often, unless it is
    /// getting on with one: several at once would all send the same records.
    fn fetch_next(&mut self, now: Now, prefix: Prefix, tries_max: u32) {
        let wait_ns = self.settings.exchange_for_ms * 1_000_000;
        let is_live = |it: &Exchange| {
            it.is_paced() || it.deadline_ns > now.monotonic_ns + wait_ns - wait_ns / 8
        };
        let exchanges = self.background.exchanges.values();
        let its: Vec<&Exchange> =
            exchanges.filter(|it| it.purpose == Purpose::Fill(prefix)).collect();
        if its.iter().any(|it| is_live(it)) {
            return;
        }
        let Some(fill) = self.background.fills.get(&prefix) else { return };
        let is_fill = |it: &&Exchange| matches!(it.purpose, Purpose::Fill(_)) && is_live(it);
        let exchanges = self.background.exchanges.values().filter(is_fill);
        let busy = |node: &NodeId| exchanges.clone().filter(|it| it.peer == *node).count();
        let next = fill.next_source(|node| its.iter().any(|it| it.peer == *node), busy);
        let Some((node, tries)) = next.filter(|(_, tries)| *tries <= tries_max) else { return };
        let fill = self.background.fills.get_mut(&prefix);
        if let Some(source) = fill.and_then(|fill| fill.sources.get_mut(&node)) {
            source.tries = tries.saturating_add(1);
        }
        self.exchange(now, node, prefix, Purpose::Fill(prefix));
    }

    /// A source says what it holds completely.
    pub(super) fn on_claimed(
        &mut self,
        now: Now,
        from: NodeId,
        prefix: Prefix,
        message: Option<PeerMessage>,
    ) {
        let fill = self.background.fills.get_mut(&prefix);
        let Some(source) = fill.and_then(|fill| fill.sources.get_mut(&from)) else { return };
        let Some(PeerMessage::Claimed { held, .. }) = message else {
            source.claim_at_ns = 0;
            return;
        };
        source.held = Some(held.into_iter().collect());
        // Of claims that were made again one answer is enough.
        self.queries.0.retain(|_, query| *query != (Owner::Fill(prefix), from));
        self.fetch_next(now, prefix, 0);
    }

    /// Takes a message for an exchange.
    pub(super) fn on_exchange_answer(&mut self, now: Now, id: u64, message: Option<PeerMessage>) {
        let Some(mut exchange) = self.background.exchanges.remove(&id) else { return };
        if let Some(PeerMessage::Got { found: Found::Record(record), .. }) = &message {
            self.counters.records_fetched += 1;
            self.counters.bytes_fetched += record.len() as u64;
        }
        let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
        exchange.on_message(message, &mut step);
        self.after_exchange(now, exchange);
    }

    /// Takes the store's answer, if it is for an exchange; else gives it back.
    pub(super) fn on_exchange_stored(
        &mut self,
        now: Now,
        ticket: Ticket,
        answer: StoreAnswer,
    ) -> Option<StoreAnswer> {
        let mut exchanges = self.background.exchanges.values();
        let Some(id) = exchanges.find(|it| it.waits_for(&ticket)).map(|it| it.id) else {
            return Some(answer);
        };
        if let Some(mut exchange) = self.background.exchanges.remove(&id) {
            let mut step = step(&mut self.out, &mut self.queries, &self.settings, now);
            exchange.on_stored(ticket, answer, &mut step);
            self.after_exchange(now, exchange);
        }
        None
    }

    fn after_exchange(&mut self, now: Now, exchange: Exchange) {
        if !exchange.is_over() {
            self.background.exchanges.insert(exchange.id, exchange);
            return;
        }
        self.counters.exchanges += 1;
        self.counters.exchanges_failed += u64::from(exchange.has_failed);
        if exchange.has_failed {
            let id = exchange.id;
            self.queries.0.retain(|_, (owner, _)| *owner != Owner::Exchange(id));
        }
        let Purpose::Fill(prefix) = exchange.purpose else {
            self.after_comparison(now, &exchange);
            return;
        };
        let Some(fill) = self.background.fills.get_mut(&prefix) else { return };
        if exchange.has_failed {
            // Those that were tried before are tried again after a pause.
            self.fetch_next(now, prefix, 0);
            return;
        }
        // What it fetched may have been overtaken: only a look that finds nothing newer counts.
        if exchange.was_behind {
            self.exchange(now, exchange.peer, prefix, Purpose::Fill(prefix));
        } else if let Some(source) = fill.sources.get_mut(&exchange.peer) {
            source.is_done = true;
            self.end_fills(now);
            self.fetch_next(now, prefix, 0);
        }
    }

    /// The ranges being filled that are complete.
    fn complete_ranges(&self, now: Now) -> Vec<Prefix> {
        let own = usize::from(self.members.own().phase == Phase::Full);
        let others_full = self.members.full_count() - own.min(self.members.full_count());
        let full = (others_full + own).clamp(1, self.settings.replicas);
        let waited_ns = now.monotonic_ns - self.background.start_ns.unwrap_or(now.monotonic_ns);
        let may_found = others_full > 0 || waited_ns > self.settings.found_after_ms * 1_000_000;
        let need = placement::majority(full);
        let fills = self.background.fills.values();
        fills.flat_map(|fill| fill.complete(need, may_found).into_prefixes()).collect()
    }

    /// Takes the ranges that have become complete.
    fn end_fills(&mut self, now: Now) {
        if self.complete_ranges(now).is_empty() {
            return;
        }
        // Whoever was heard of a moment ago may be a source that nobody has asked.
        self.catch_up(now);
        let complete = self.complete_ranges(now);
        let before = self.held.clone();
        complete.into_iter().for_each(|prefix| self.held.insert(prefix));
        if self.held == before {
            return;
        }
        self.save(now);
        self.counters.ranges_filled += 1;
        let held = &self.held;
        let ended: Vec<Fill> = self
            .background
            .fills
            .extract_if(.., |prefix, _| held.covers(prefix))
            .map(|(_, fill)| fill)
            .collect();
        for fill in ended {
            let prefix = fill.prefix;
            self.background.exchanges.retain(|_, it| it.purpose != Purpose::Fill(prefix));
            for node in fill.sources.into_keys() {
                self.out.send(node, PeerMessage::Release { prefix });
            }
        }
        if !self.pending().is_empty() {
            // There is room for the next ones.
            self.background.hand_off_at_ns = now.monotonic_ns;
        } else if self.members.own().phase == Phase::Joining {
            self.members.set_phase(Phase::Full);
        }
    }

    /// Whether it holds everything around a key.
    pub(super) fn is_ready(&self, key: &Key) -> bool {
        self.mutation == Mutation::AnswersTooEarly || self.held.contains(key)
    }

    /// What it holds completely of a prefix.
    pub(super) fn held_of(&self, prefix: Prefix) -> PrefixSet {
        self.held.intersection(&PrefixSet::from_iter([prefix]))
    }
}
