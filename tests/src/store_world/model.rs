//! What a store may answer: every state that was ever given to each key, by record number.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use bytes::Bytes;
use storage::KeyRef;
use wal::Lsn;
use wal::record::{Key, Version};

use crate::edge_lens::edge_name;

/// Acknowledged steps are forgotten once a key has this many.
const STEPS_KEPT: usize = 16;

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Nothing.
    Absent,
    /// A value.
    Present {
        /// The value.
        value: Bytes,
        /// Its version, or the version of the newest touch.
        version: Version,
        /// Milliseconds since 1970, 0 = never.
        expiry_ms: u64,
    },
}

impl KeyState {
    /// Whether the key is seen to be gone at `now_ms`.
    #[must_use]
    pub fn is_gone(&self, now_ms: u64) -> bool {
        match self {
            Self::Absent => true,
            Self::Present { expiry_ms, .. } => *expiry_ms != 0 && *expiry_ms <= now_ms,
        }
    }

    /// What is seen of this state at `now_ms`.
    #[must_use]
    pub fn seen_at(&self, now_ms: u64) -> Self {
        if self.is_gone(now_ms) { Self::Absent } else { self.clone() }
    }

    /// A short form for messages: values by length and first bytes.
    #[must_use]
    pub fn brief(&self) -> String {
        match self {
            Self::Absent => "absent".to_owned(),
            Self::Present { value, version, expiry_ms } => {
                let version = u128::from_be_bytes(version.0);
                let head = &value[..value.len().min(8)];
                format!("{} bytes {head:02x?}, version {version}, expiry {expiry_ms}", value.len())
            }
        }
    }

    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if let Self::Present { value, version, expiry_ms } = self {
            (value, version, expiry_ms).hash(&mut hasher);
        }
        hasher.finish()
    }
}

#[derive(Clone, Debug)]
struct Step {
    lsn: Lsn,
    state: KeyState,
}

/// How the ids of the keys lie in the key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPattern {
    /// All over it.
    Spread,
    /// Half of them share their first 40 bits, in groups.
    Prefix40,
    /// Nearly all of them share their first 60 bits.
    Prefix60,
}

/// How long the user keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyLens {
    /// Some bytes.
    Usual,
    /// One is empty, some are as long as about a block.
    Edges,
}

impl KeyPattern {
    fn key(self, lens: KeyLens, index: usize) -> ModelKey {
        let number = index as u64;
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
        let mut id = [0; 20];
        id[..8].copy_from_slice(&spread);
        match self {
            Self::Spread => {}
            Self::Prefix40 if index.is_multiple_of(2) => {
                let group = (number / 24).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
                id[..5].copy_from_slice(&group[..5]);
            }
            Self::Prefix60 if !index.is_multiple_of(16) => id[..8].copy_from_slice(&[0xAB; 8]),
            Self::Prefix40 | Self::Prefix60 => {}
        }
        id[12..].copy_from_slice(&number.to_be_bytes());
        let name = format!("key {index}").into_bytes();
        let user_key = if lens == KeyLens::Edges { edge_name(index, name) } else { name };
        let hashed = self == Self::Spread && index.is_multiple_of(2);
        let id = if hashed { Key::of(&user_key) } else { Key(id) };
        ModelKey { id, user_key, hashed }
    }
}

/// A key of the model, as the store's commands take it.
#[derive(Clone, Debug)]
pub struct ModelKey {
    /// The key id.
    pub id: Key,
    /// The user key.
    pub user_key: Vec<u8>,
    /// Whether the id is the user key's hash, as a node's are.
    pub hashed: bool,
}

impl ModelKey {
    /// Lends it to a command.
    #[must_use]
    pub fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { id: self.id, user_key: &self.user_key, hashed: self.hashed }
    }
}

/// The moments that decide what has expired.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// What the store takes for now.
    pub now_ms: u64,
    /// The latest that any store took for now; what had expired by then need not come back when
    /// the clock was set back across a start.
    pub seen_max_ms: u64,
}

/// How a store ended without being closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashKind {
    /// What the operating system and the device have taken stays.
    ProcessKill,
    /// Only what is durable stays.
    PowerLoss,
}

/// What was found of a key: a state, or that it cannot be told.
pub type Found = Result<KeyState, storage::ReadError>;

/// All keys and, for each, the states it was given.
#[derive(Clone, Debug)]
pub struct Model {
    keys: Vec<ModelKey>,
    histories: Vec<Vec<Step>>,
    /// Fingerprints of all states each key ever had.
    ever: Vec<BTreeSet<u64>>,
    /// Everything up to here is acknowledged: a killed process loses nothing of it.
    acknowledged_lsn: Lsn,
    /// Everything up to here must survive a power loss as well; never above the former.
    durable_lsn: Lsn,
    /// From here on nothing is forgotten: a snapshot is being taken.
    pinned: Option<Lsn>,
}

/// What each key may hold in a snapshot: the state at the cut, or one of several equally good.
#[derive(Clone, Debug)]
pub struct Cut {
    lsn: Lsn,
    allowed: Vec<Vec<KeyState>>,
}

impl Cut {
    /// Checks what a snapshot holds.
    ///
    /// # Errors
    /// Which key holds something else.
    pub fn check(&self, found: &[KeyState], moment: Moment) -> Result<(), String> {
        for (index, (found, allowed)) in found.iter().zip(&self.allowed).enumerate() {
            if !allowed.iter().any(|state| is_seen_as(state, found, moment)) {
                let allowed: Vec<_> = allowed.iter().map(KeyState::brief).collect();
                return Err(format!(
                    "key {index} holds {}, at LSN {} it was {allowed:?}",
                    found.brief(),
                    self.lsn
                ));
            }
        }
        Ok(())
    }
}

/// Whether a store may answer `found` of a key in this state.
fn is_seen_as(state: &KeyState, found: &KeyState, moment: Moment) -> bool {
    match found {
        KeyState::Absent => state.is_gone(moment.now_ms.max(moment.seen_max_ms)),
        found => !state.is_gone(moment.now_ms) && state == found,
    }
}

impl Model {
    /// A model of `count` keys, all absent.
    #[must_use]
    pub fn new(count: usize, pattern: KeyPattern, lens: KeyLens) -> Self {
        let blank = vec![Step { lsn: Lsn::ZERO, state: KeyState::Absent }];
        Self {
            keys: (0..count).map(|index| pattern.key(lens, index)).collect(),
            histories: vec![blank; count],
            ever: vec![BTreeSet::new(); count],
            acknowledged_lsn: Lsn::ZERO,
            durable_lsn: Lsn::ZERO,
            pinned: None,
        }
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[ModelKey] {
        &self.keys
    }

    /// Everything up to here is acknowledged.
    #[must_use]
    pub fn acknowledged_lsn(&self) -> Lsn {
        self.acknowledged_lsn
    }

    /// Everything up to here must survive the crash.
    #[must_use]
    pub fn floor(&self, crash: CrashKind) -> Lsn {
        match crash {
            CrashKind::ProcessKill => self.acknowledged_lsn,
            CrashKind::PowerLoss => self.durable_lsn,
        }
    }

    /// Notes that everything up to `lsn` is acknowledged.
    pub fn acknowledge(&mut self, lsn: Lsn) {
        self.acknowledged_lsn = lsn;
    }

    /// Notes that everything up to `lsn` survives a power loss.
    pub fn note_durable(&mut self, lsn: Lsn) {
        self.durable_lsn = self.durable_lsn.max(lsn).min(self.acknowledged_lsn);
    }

    /// Notes a power loss: what was acknowledged and not durable need not come back any more.
    pub fn lose_power(&mut self) {
        self.acknowledged_lsn = self.durable_lsn;
    }

    /// Forgets nothing from `lsn` on, until told otherwise.
    pub fn pin(&mut self, lsn: Option<Lsn>) {
        self.pinned = lsn;
    }

    /// What every key held when record `lsn` was the newest; not before the pin.
    #[must_use]
    pub fn cut(&self, lsn: Lsn) -> Cut {
        let at_cut = |index: usize| {
            let history = &self.histories[index];
            let first = self.first_allowed(index, lsn);
            let end = history.partition_point(|step| step.lsn <= lsn).max(first + 1);
            history[first..end].iter().map(|step| step.state.clone()).collect()
        };
        Cut { lsn, allowed: (0..self.keys.len()).map(at_cut).collect() }
    }

    /// The newest state of a key, and the record that gave it.
    #[must_use]
    pub fn newest(&self, key: usize) -> (Lsn, &KeyState) {
        let step = self.histories[key].last().expect("a history has a base");
        (step.lsn, &step.state)
    }

    /// Notes that record `lsn` gave a key this state.
    pub fn push(&mut self, key: usize, lsn: Lsn, state: KeyState) {
        if self.histories[key].len() >= STEPS_KEPT {
            let floor = self.pinned.map_or(self.durable_lsn, |lsn| lsn.min(self.durable_lsn));
            let first = self.first_allowed(key, floor);
            self.histories[key].drain(..first);
        }
        self.ever[key].insert(state.fingerprint());
        self.histories[key].push(Step { lsn, state });
    }

    /// Notes that record `lsn` deleted every key.
    pub fn clear(&mut self, lsn: Lsn) {
        (0..self.keys.len()).for_each(|key| self.push(key, lsn, KeyState::Absent));
    }

    /// Takes what a recovery found at `now_ms` as the states that are durable from now on.
    ///
    /// What had expired then may be back after the next start, if the operator sets the clock back.
    pub fn rebase(&mut self, found: &[KeyState], durable_lsn: Lsn, now_ms: u64) {
        for (index, found) in found.iter().enumerate() {
            let mut steps: Vec<_> = match found {
                KeyState::Absent => {
                    let gone = self
                        .allowed(index, self.acknowledged_lsn)
                        .iter()
                        .map(|step| step.state.clone());
                    gone.filter(|state| state.is_gone(now_ms)).collect()
                }
                KeyState::Present { .. } => Vec::new(),
            };
            if steps.is_empty() {
                steps.push(found.clone());
            }
            let step = |state| Step { lsn: Lsn::ZERO, state };
            self.histories[index] = steps.into_iter().map(step).collect();
        }
        (self.acknowledged_lsn, self.durable_lsn) = (durable_lsn, durable_lsn);
    }

    /// Checks what was recovered after a crash: each key holds the last state that had to survive
    /// it, or any later one.
    ///
    /// # Errors
    /// Which key holds something else.
    pub fn check(
        &self,
        found: &[KeyState],
        moment: Moment,
        crash: CrashKind,
    ) -> Result<(), String> {
        let floor = self.floor(crash);
        for (index, found) in found.iter().enumerate() {
            if !self.allows(index, found, moment, floor) {
                return Err(self.complaint(index, found, moment, floor));
            }
        }
        Ok(())
    }

    /// Checks what was recovered from a disk with damage at rest: errors are in order everywhere;
    /// an older value only if the store says that it is suspect; made-up bytes never.
    ///
    /// # Errors
    /// Which key holds something else.
    pub fn check_damaged(
        &self,
        found: &[Found],
        moment: Moment,
        suspect: bool,
    ) -> Result<(), String> {
        for (index, found) in found.iter().enumerate() {
            let Ok(found) = found else { continue };
            let is_older = suspect
                && *found != KeyState::Absent
                && self.ever[index].contains(&found.fingerprint());
            if !is_older && !self.allows(index, found, moment, self.durable_lsn) {
                return Err(format!(
                    "with damage, suspect: {suspect}: {}",
                    self.complaint(index, found, moment, self.durable_lsn)
                ));
            }
        }
        Ok(())
    }

    fn allows(&self, index: usize, found: &KeyState, moment: Moment, floor: Lsn) -> bool {
        self.allowed(index, floor).iter().any(|step| is_seen_as(&step.state, found, moment))
    }

    fn allowed(&self, index: usize, floor: Lsn) -> &[Step] {
        &self.histories[index][self.first_allowed(index, floor)..]
    }

    /// The last step up to `floor`, or the first of several that are equally good.
    fn first_allowed(&self, index: usize, floor: Lsn) -> usize {
        let history = &self.histories[index];
        let reached = history.partition_point(|step| step.lsn <= floor);
        let last = reached.saturating_sub(1);
        history.partition_point(|step| step.lsn < history[last].lsn)
    }

    fn complaint(&self, index: usize, found: &KeyState, moment: Moment, floor: Lsn) -> String {
        let list = |steps: &[Step]| {
            let step = |step: &Step| format!("  LSN {}: {}\n", step.lsn, step.state.brief());
            steps.iter().map(step).collect::<String>()
        };
        let allowed = self.allowed(index, floor);
        let before = &self.histories[index][..self.histories[index].len() - allowed.len()];
        format!(
            "key {index} holds {}\nat {} (seen {}) with LSN {} to survive; \
             allowed:\n{}before:\n{}",
            found.brief(),
            moment.now_ms,
            moment.seen_max_ms,
            floor,
            list(allowed),
            list(before),
        )
    }
}
