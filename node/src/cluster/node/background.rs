//! What a node does of itself: it fills its ranges, and compares them with other holders.

use std::collections::{BTreeMap, VecDeque};

use storage::Now;
use wal::record::Key;

use super::{
    ClusterNode, Found, Mutation, Owner, PeerMessage, Phase, PrefixSet, StoreAnswer, Ticket,
    placement, step,
};
use crate::cluster::exchange::{Exchange, Purpose};
use crate::cluster::hand_off::{Cleaning, Fill};
use crate::cluster::prefix::Prefix;
use crate::kademlia::NodeId;

/// Ranges filled at the same time.
const FILLS_MAX: usize = 4;

/// Work under way.
#[derive(Debug, Default)]
pub(super) struct Background {
    pub(super) exchanges: BTreeMap<u64, Exchange>,
    last_exchange: u64,
    fills: BTreeMap<Prefix, Fill>,
    /// Ranges to be compared with somebody.
    repairs: VecDeque<(Prefix, NodeId)>,
    pub(super) cleaning: Option<Cleaning>,
    /// Ranges outside of the node's own that are still to be looked through.
    pub(super) to_clean: VecDeque<(Prefix, Vec<NodeId>)>,
    /// Whether this pass found anything there.
    pub(super) pass_found: bool,
    pub(super) pushing: BTreeMap<Ticket, NodeId>,
    pub(super) leaving: Option<Ticket>,
    repair_at_ns: u64,
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
        let exchanges = background.exchanges.values().map(|exchange| exchange.deadline_ns);
        let cleaning = background.cleaning.iter().map(|cleaning| cleaning.deadline_ns);
        let first = background.repair_at_ns.min(background.hand_off_at_ns);
        exchanges.chain(cleaning).fold(first, u64::min)
    }

    /// Does what is due.
    pub(super) fn handle_background_time(&mut self, now: Now) {
        let at_ns = now.monotonic_ns;
        self.background.start_ns.get_or_insert(at_ns);
        let is_due = |exchange: &Exchange| exchange.deadline_ns <= at_ns;
        let late: Vec<Exchange> = self
            .background
            .exchanges
            .extract_if(.., |_, exchange| is_due(exchange))
            .map(|(_, exchange)| exchange)
            .collect();
        for mut exchange in late {
            exchange.has_failed = true;
            self.after_exchange(now, exchange);
        }
        if self.background.repair_at_ns <= at_ns {
            self.background.repair_at_ns = at_ns + self.settings.repair_every_ms * 1_000_000;
            self.repair_next(now);
        }
        if self.background.cleaning.as_ref().is_some_and(|it| it.deadline_ns <= at_ns) {
            self.background.cleaning = None;
        }
        if self.background.hand_off_at_ns <= at_ns {
            self.background.hand_off_at_ns = at_ns + self.settings.hand_off_every_ms * 1_000_000;
            self.fill_next(now);
            self.clean_next(now);
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
        self.background.repairs.clear();
        self.background.pass_found = true;
    }

    /// Whom to fill a range from: those around it, old holders among them.
    fn sources(&self, prefix: &Prefix) -> Vec<NodeId> {
        let known: Vec<NodeId> =
            self.members.known().map(|entry| entry.node).filter(|id| *id != self.own).collect();
        let mut sources = placement::around(prefix, &known, 2 * self.settings.replicas);
        sources.sort();
        sources
    }

    fn exchange(&mut self, now: Now, peer: NodeId, prefix: Prefix, purpose: Purpose) {
        self.background.last_exchange += 1;
        let id = self.background.last_exchange;
        let mut exchange = Exchange::new(id, peer, prefix, purpose, self.mutation);
        exchange.advance(&mut step(&mut self.out, &mut self.queries, &self.settings, now));
        self.background.exchanges.insert(id, exchange);
    }

    /// Compares the next range with the next of its other holders.
    fn repair_next(&mut self, now: Now) {
        let is_repair = |exchange: &Exchange| exchange.purpose == Purpose::Repair;
        if self.background.exchanges.values().any(is_repair) {
            return;
        }
        if self.background.repairs.is_empty() {
            let (placed, replicas) = (self.members.placed(), self.settings.replicas);
            let regions =
                self.mine.iter().flat_map(|prefix| placement::regions(*prefix, &placed, replicas));
            let own = self.own;
            let pairs = regions.flat_map(|(prefix, set)| {
                let others = set.into_iter().filter(move |node| *node != own);
                others.map(move |node| (prefix, node))
            });
            self.background.repairs = pairs.collect();
        }
        while let Some((prefix, peer)) = self.background.repairs.pop_front() {
            if self.members.is_up(&peer) {
                self.exchange(now, peer, prefix, Purpose::Repair);
                break;
            }
        }
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
        // A source that was lost is asked again.
        let idle: Vec<(Prefix, NodeId)> = self.idle_sources();
        for (prefix, source) in idle {
            self.exchange(now, source, prefix, Purpose::Fill(prefix));
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

    /// Sources that have answered, are not done, and are not being asked.
    fn idle_sources(&self) -> Vec<(Prefix, NodeId)> {
        let is_asked = |prefix: &Prefix, node: &NodeId| {
            let mut exchanges = self.background.exchanges.values();
            exchanges.any(|it| it.peer == *node && it.purpose == Purpose::Fill(*prefix))
        };
        let mut idle = Vec::new();
        for (prefix, fill) in &self.background.fills {
            for (node, source) in &fill.sources {
                if source.held.is_some() && !source.is_done && !is_asked(prefix, node) {
                    idle.push((*prefix, *node));
                }
            }
        }
        idle
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
        self.exchange(now, from, prefix, Purpose::Fill(prefix));
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
        let id = exchange.id;
        self.queries.0.retain(|_, (owner, _)| *owner != Owner::Exchange(id));
        let Purpose::Fill(prefix) = exchange.purpose else { return };
        let Some(fill) = self.background.fills.get_mut(&prefix) else { return };
        if exchange.has_failed {
            return;
        }
        // What it fetched may have been overtaken: only a look that finds nothing newer counts.
        if exchange.was_behind {
            self.exchange(now, exchange.peer, prefix, Purpose::Fill(prefix));
        } else if let Some(source) = fill.sources.get_mut(&exchange.peer) {
            source.is_done = true;
            self.end_fills(now);
        }
    }

    /// Takes the ranges that have become complete.
    fn end_fills(&mut self, now: Now) {
        let own = usize::from(self.members.own().phase == Phase::Full);
        let others_full = self.members.full_count() - own.min(self.members.full_count());
        let full = (others_full + own).clamp(1, self.settings.replicas);
        let waited_ns = now.monotonic_ns - self.background.start_ns.unwrap_or(now.monotonic_ns);
        let may_found = others_full > 0 || waited_ns > self.settings.found_after_ms * 1_000_000;
        let need = placement::majority(full);
        let fills = &self.background.fills;
        let complete: Vec<Prefix> = fills
            .values()
            .flat_map(|fill| fill.complete(need, may_found).into_prefixes())
            .collect();
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
