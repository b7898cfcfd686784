//! What a store may answer: every state that was ever given to each key, by record number.

use bytes::Bytes;
use storage::KeyRef;
use wal::Lsn;
use wal::record::{Key, Version};

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
    /// What is seen of this state at `now_ms`.
    #[must_use]
    pub fn seen_at(&self, now_ms: u64) -> Self {
        match self {
            Self::Present { expiry_ms, .. } if *expiry_ms != 0 && *expiry_ms <= now_ms => {
                Self::Absent
            }
            other => other.clone(),
        }
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
}

#[derive(Clone, Debug)]
struct Step {
    lsn: Lsn,
    state: KeyState,
}

/// A key of the model, as the store's commands take it.
#[derive(Clone, Debug)]
pub struct ModelKey {
    /// The key id.
    pub id: Key,
    /// The user key.
    pub user_key: Vec<u8>,
}

impl ModelKey {
    /// Lends it to a command.
    #[must_use]
    pub fn borrowed(&self) -> KeyRef<'_> {
        KeyRef { id: self.id, user_key: &self.user_key }
    }
}

/// All keys and, for each, the states it was given since the last start.
#[derive(Clone, Debug)]
pub struct Model {
    keys: Vec<ModelKey>,
    histories: Vec<Vec<Step>>,
}

impl Model {
    /// A model of `count` keys, all absent.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let key = |index: usize| {
            let mut id = [0; 20];
            // Spread over the key space, some of them with a long common prefix.
            id[0] = u8::try_from(index / 3 * 37 % 256).expect("below 256");
            id[19] = u8::try_from(index % 256).expect("below 256");
            ModelKey { id: Key(id), user_key: format!("key {index}").into_bytes() }
        };
        let blank = vec![Step { lsn: Lsn::ZERO, state: KeyState::Absent }];
        Self { keys: (0..count).map(key).collect(), histories: vec![blank; count] }
    }

    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &[ModelKey] {
        &self.keys
    }

    /// The newest state of a key, and the record that gave it.
    #[must_use]
    pub fn newest(&self, key: usize) -> (Lsn, &KeyState) {
        let step = self.histories[key].last().expect("a history has a base");
        (step.lsn, &step.state)
    }

    /// Notes that record `lsn` gave a key this state.
    pub fn push(&mut self, key: usize, lsn: Lsn, state: KeyState) {
        self.histories[key].push(Step { lsn, state });
    }

    /// Notes that record `lsn` deleted every key.
    pub fn clear(&mut self, lsn: Lsn) {
        (0..self.keys.len()).for_each(|key| self.push(key, lsn, KeyState::Absent));
    }

    /// Takes what a recovery found as the states that are durable from now on.
    pub fn rebase(&mut self, found: &[KeyState]) {
        for (history, state) in self.histories.iter_mut().zip(found) {
            *history = vec![Step { lsn: Lsn::ZERO, state: state.clone() }];
        }
    }

    /// Checks what was recovered when everything up to `durable_lsn` had been acknowledged: each
    /// key holds its last acknowledged state, or any later one.
    ///
    /// # Errors
    /// Which key holds something else.
    pub fn check(&self, found: &[KeyState], durable_lsn: Lsn, now_ms: u64) -> Result<(), String> {
        for (index, (history, found)) in self.histories.iter().zip(found).enumerate() {
            let acknowledged = history.partition_point(|step| step.lsn <= durable_lsn);
            let allowed = &history[acknowledged.saturating_sub(1)..];
            if !allowed.iter().any(|step| step.state.seen_at(now_ms) == *found) {
                let list = |steps: &[Step]| {
                    let step =
                        |step: &Step| format!("  LSN {}: {}\n", step.lsn, step.state.brief());
                    steps.iter().map(step).collect::<String>()
                };
                return Err(format!(
                    "key {index} holds {}\nat {now_ms} with LSN {durable_lsn} acknowledged; \
                     allowed:\n{}before:\n{}",
                    found.brief(),
                    list(allowed),
                    list(&history[..acknowledged.saturating_sub(1)]),
                ));
            }
        }
        Ok(())
    }
}
