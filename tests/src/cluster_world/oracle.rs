//! What must be so while a cluster runs, and once faults have stopped.

use std::collections::{BTreeMap, BTreeSet};

use kadring::cluster::placement::replica_set;
use kadring::kademlia::NodeId;
use wal::record::{Key, Version};

use super::world::{World, name_of};
use super::{MS, SECOND, Summary};

/// After faults have stopped everything must agree within that, ...
const CONVERGE_WITHIN: u64 = 150 * SECOND;
/// ... and that for each node: the more there are, the more ranges there are to be compared.
const CONVERGE_WITHIN_PER_NODE: u64 = SECOND;
/// Clients go on for that long after faults have stopped.
const TRAFFIC_AFTER: u64 = 20 * SECOND;
/// A command is answered within that.
const ANSWER_WITHIN: u64 = 10 * SECOND;
/// Most things that a node has under way, ever.
const UNDER_WAY_MOST: u64 = 20_000;
/// Most things that a node has under way when clients have asked for nothing for long.
const UNDER_WAY_AT_REST: usize = 64;
/// Clusters up to this size are read in whole: every key at every node.
const READ_WHOLE: usize = 16;

impl World {
    /// Runs to the end.
    pub(super) fn run(&mut self) -> Result<(), String> {
        self.begin()?;
        self.begin_traffic();
        self.run_until(self.mix.length_s * SECOND, |_| false)?;
        self.stop_faults()?;
        let from = self.now_ns;
        self.run_until(from + TRAFFIC_AFTER, |_| false)?;
        self.end_traffic();
        self.converge(from)?;
        self.use_everything()?;
        self.check_rest()?;
        let nodes = self.hosts.iter().filter_map(|host| host.core.as_ref());
        self.counted.discarded = nodes.map(|node| node.counters().copies_discarded).sum();
        Ok(())
    }

    /// From now on everything arrives, and all that are not dead are up.
    pub(super) fn stop_faults(&mut self) -> Result<(), String> {
        self.faults_over = true;
        self.network.calm();
        for at in 0..self.hosts.len() {
            if self.hosts[at].boot > 0 {
                self.start(at)?;
            }
        }
        Ok(())
    }

    /// Goes on until all agree.
    pub(super) fn converge(&mut self, from: u64) -> Result<(), String> {
        let nodes = self.hosts.len() as u64;
        let end = from + CONVERGE_WITHIN + nodes * CONVERGE_WITHIN_PER_NODE;
        self.run_until(end, |world| world.disagreement().is_none())?;
        if let Some(disagreement) = self.disagreement() {
            return Err(format!("no agreement: {disagreement}"));
        }
        self.counted.converged_ms = (self.now_ns - from) / MS;
        Ok(())
    }

    /// A copy may go only when all of the set have it, as the one who gives it up sees the set.
    pub(super) fn check_discard(
        &self,
        at: usize,
        key: &Key,
        version: Version,
    ) -> Result<(), String> {
        let Some(core) = &self.hosts[at].core else { return Ok(()) };
        let set = replica_set(key, &core.members().placed(), self.mix.replicas);
        for id in set {
            let host = self.hosts.iter().find(|host| host.id == id);
            if host.is_some_and(|host| host.store.is_damaged()) {
                continue;
            }
            let held = host.and_then(|host| host.store.version_of(key));
            if held.is_none_or(|held| held < version) {
                let own = self.hosts[at].id;
                return Err(format!("{own:?} gives {key:?} up, which {id:?} lacks"));
            }
        }
        Ok(())
    }

    /// Why the cluster is not yet as it should be.
    pub(super) fn disagreement(&self) -> Option<String> {
        let placed = match self.members() {
            Ok(placed) => placed,
            Err(error) => return Some(error),
        };
        let held: Vec<_> = self.live().map(|host| (host, host.store.versions())).collect();
        let mut newest = BTreeMap::<Key, Version>::new();
        for (key, version) in held.iter().flat_map(|(_, versions)| versions) {
            let known = newest.entry(*key).or_insert(*version);
            *known = (*known).max(*version);
        }
        for (key, newest) in newest {
            let set = replica_set(&key, &placed, self.mix.replicas);
            for (host, versions) in &held {
                let held = versions.get(&key);
                let is_in_set = set.contains(&host.id);
                // What cannot be read is not known to be lacking.
                if is_in_set && held != Some(&newest) && !host.store.is_damaged() {
                    return Some(format!("{:?} has {held:?}, not {newest:?}", host.id));
                }
                if !is_in_set && held.is_some() {
                    return Some(format!("{:?} still has {held:?}", host.id));
                }
            }
        }
        None
    }

    /// The members that all agree on, and that are all there.
    fn members(&self) -> Result<Vec<NodeId>, String> {
        let mut placed: Option<Vec<NodeId>> = None;
        for host in self.live() {
            let core = host.core.as_ref().expect("the host is up");
            let own = core.members().placed();
            if placed.get_or_insert_with(|| own.clone()) != &own {
                return Err(format!("members of {:?}: {placed:?} {own:?}", host.id));
            }
            if !core.pending().is_empty() {
                return Err(format!("{:?} lacks {:?}", host.id, core.pending()));
            }
            if core.is_loading() {
                return Err(format!("{:?} knows nobody", host.id));
            }
        }
        let placed = placed.unwrap_or_default();
        let live: BTreeSet<NodeId> = self.live().map(|host| host.id).collect();
        if let Some(gone) = placed.iter().find(|id| !live.contains(id)) {
            return Err(format!("{gone:?} is still counted"));
        }
        if let Some(leaving) = self.live().find(|host| host.is_leaving) {
            return Err(format!("{:?} has not left", leaving.id));
        }
        if let Some(alone) = self.live().find(|host| !placed.contains(&host.id)) {
            return Err(format!("{:?} is not counted", alone.id));
        }
        Ok(placed)
    }

    /// The share of the keys of which all of the set have the newest copy that anybody has.
    pub(super) fn share_whole(&self) -> f64 {
        let Some(core) = self.live().find_map(|host| host.core.as_ref()) else { return 0.0 };
        let placed = core.members().placed();
        let (mut keys, mut whole) = (0_u32, 0_u32);
        for key in 0..self.mix.keys {
            let key = Key::of(&name_of(key));
            let set = replica_set(&key, &placed, self.mix.replicas);
            let held = |host: &super::host::Host| host.store.version_of(&key);
            let Some(newest) = self.live().filter_map(held).max() else { continue };
            let hosts = self.live().filter(|host| set.contains(&host.id));
            let count = hosts.filter(|host| held(host) == Some(newest)).count();
            keys += 1;
            whole += u32::from(count == set.len());
        }
        if keys == 0 { 1.0 } else { f64::from(whole) / f64::from(keys) }
    }

    /// Reads every key, writes every key, and reads all of them again, where views agree and
    /// nothing goes wrong: each of these commands is answered.
    fn use_everything(&mut self) -> Result<(), String> {
        self.mix.is_stable = true;
        self.read_everything()?;
        self.scan_everything()?;
        let before = self.counted.writes;
        for key in 0..self.mix.keys {
            let at = self.some_live();
            self.ask_write(at, key, true)?;
        }
        self.run_until(self.now_ns + ANSWER_WITHIN, |_| false)?;
        self.check_answered(self.counted.writes - before, u64::from(self.mix.keys))?;
        self.read_everything()?;
        self.scan_everything()
    }

    /// Reads every key, at every node if there are few.
    fn read_everything(&mut self) -> Result<(), String> {
        let all: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].is_up()).collect();
        let (before, mut wanted) = (self.counted.reads, 0);
        for key in 0..self.mix.keys {
            let asked = if all.len() <= READ_WHOLE {
                all.clone()
            } else {
                (0..3).map(|_| self.some_live()).collect()
            };
            wanted += asked.len() as u64;
            for at in asked {
                self.ask_read(at, key)?;
            }
        }
        self.run_until(self.now_ns + ANSWER_WITHIN, |_| false)?;
        self.check_answered(self.counted.reads - before, wanted)
    }

    /// Reads every key once; returns how many were found.
    pub(super) fn read_once(&mut self) -> Result<u64, String> {
        let before = self.values_found;
        for key in 0..self.mix.keys {
            let at = self.some_live();
            self.ask_read(at, key)?;
        }
        self.run_until(self.now_ns + ANSWER_WITHIN, |_| false)?;
        Ok(self.values_found - before)
    }

    /// The share of the keys of which a node that is up has a copy.
    pub(super) fn share_alive(&self) -> f64 {
        let lives = |key: &u32| {
            let key = Key::of(&name_of(*key));
            self.live().any(|host| host.store.version_of(&key).is_some())
        };
        let alive = (0..self.mix.keys).filter(lives).count();
        alive as f64 / f64::from(self.mix.keys)
    }

    fn some_live(&mut self) -> usize {
        let all: Vec<usize> = (0..self.hosts.len()).filter(|at| self.hosts[*at].is_up()).collect();
        all[self.rng.usize(..all.len())]
    }

    fn check_answered(&self, answered: u64, wanted: u64) -> Result<(), String> {
        if answered < wanted {
            return Err(format!("{answered} of {wanted} commands answered"));
        }
        Ok(())
    }

    /// Nothing is left under way of what clients have asked for.
    fn check_rest(&self) -> Result<(), String> {
        let Summary { under_way_most, .. } = self.counted;
        if under_way_most > UNDER_WAY_MOST {
            return Err(format!("{under_way_most} things under way at a node"));
        }
        for host in self.live() {
            let under_way = host.core.as_ref().map_or(0, |core| core.under_way());
            if under_way > UNDER_WAY_AT_REST {
                return Err(format!("{under_way} things under way at {:?} at rest", host.id));
            }
        }
        Ok(())
    }
}
