//! What one connection of the crash loop does, and what it has to know afterwards.
//!
//! A [`ConnectionWorkload`] owns a range of keys that no other connection touches. It draws
//! pipelines of commands from its seed, and settles each command with its reply, with an error, or
//! with silence, in the [`KeyLedger`] of every key concerned.

use std::collections::BTreeSet;

use fastrand::Rng;

use crate::ledger::{
    Author, Content, FlushOutcome, KeyLedger, KeyOperation, KeyReply, KeyState, Observation, Piece,
    SetCondition, Violation, Window,
};
use crate::resp_client::Reply;

/// Keys of one connection.
pub const KEY_COUNT: u32 = HOT_COUNT + COLD_COUNT;

/// Keys written all the time.
const HOT_COUNT: u32 = 64;

/// Keys written once and then hardly ever: what is live of old segments.
const COLD_COUNT: u32 = 12;

/// Of the hot keys, those that [`Mix::Overwriting`] overwrites.
const HOTTEST_COUNT: u32 = 12;

/// Counters that all connections share.
pub const SHARED_COUNT: usize = 3;

/// Commands in one pipeline at most.
pub const PIPELINE_MAX: usize = 32;

/// Longest value written as a matter of course.
pub const VALUE_BYTES_MAX: u32 = 1 << 20;

/// Longest value written now and then.
pub const HUGE_BYTES_MAX: u32 = 16 << 20;

/// One value in so many is a huge one.
const HUGE_ONE_IN: u32 = 10_000;

/// Longest value read while writing goes on: 32 of them fit in any socket buffer, so that a
/// pipeline sent before its replies are read cannot block both sides.
const GET_BYTES_MAX: usize = 4 * 1024;

/// Parts of a value before it is written anew instead of appended to.
const PIECES_MAX: usize = 8;

/// What a connection mostly does for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// A bit of everything.
    Even,
    /// The same few keys again and again, with values that fill segments: these die.
    Overwriting,
    /// Keys with short lives.
    Expiring,
}

/// One command with what it means for the ledger.
#[derive(Debug, Clone)]
pub struct Request {
    /// The words to send.
    pub command: Vec<Vec<u8>>,
    /// The keys it concerns.
    pub effect: Effect,
}

/// What a command does to which keys.
#[derive(Debug, Clone)]
pub enum Effect {
    /// One key of this connection.
    Key(u32, KeyOperation),
    /// MSET over several keys.
    SetMany(Vec<(u32, KeyOperation)>),
    /// DEL over several keys.
    DeleteMany(Vec<u32>),
    /// INCR of a shared counter.
    Shared(usize),
}

impl Effect {
    /// Lists key and operation for each key of this connection.
    #[must_use]
    pub fn operations(&self) -> Vec<(u32, KeyOperation)> {
        match self {
            Self::Key(key, operation) => vec![(*key, operation.clone())],
            Self::SetMany(pairs) => pairs.clone(),
            Self::DeleteMany(keys) => {
                keys.iter().map(|&key| (key, KeyOperation::DeleteAmongOthers)).collect()
            }
            Self::Shared(_) => Vec::new(),
        }
    }

    /// Tells whether the command changes anything.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Key(_, KeyOperation::Get))
    }
}

/// Returns the name of a shared counter.
#[must_use]
pub fn shared_name(counter: usize) -> Vec<u8> {
    format!("shared/{counter}").into_bytes()
}

/// Returns the name of a key: some short, some long, some not text at all.
#[must_use]
pub fn key_name(connection: u32, key: u32) -> Vec<u8> {
    let mut name = format!("c{connection:02}/{key:03}").into_bytes();
    match key % 8 {
        3 => name.extend_from_slice(b"\x00\xff\r\n$5\r\n"),
        6 => name.resize(600, b'k'),
        _ => {}
    }
    name
}

/// The keys, ledgers and random draws of one connection.
#[derive(Debug, Clone)]
pub struct ConnectionWorkload {
    connection: u32,
    rng: Rng,
    keys: Vec<KeyLedger>,
    version: u64,
    mix: Mix,
}

impl ConnectionWorkload {
    /// A connection whose keys were never written.
    #[must_use]
    pub fn new(seed: u64, connection: u32) -> Self {
        let author = |key| Author { seed, connection, key };
        Self {
            connection,
            rng: Rng::with_seed(seed ^ (u64::from(connection) + 1).wrapping_mul(0x9e37_79b9)),
            keys: (0..KEY_COUNT).map(|key| KeyLedger::new(author(key))).collect(),
            version: 0,
            mix: Mix::Even,
        }
    }

    /// Changes what is mostly done from now on.
    pub fn set_mix(&mut self, mix: Mix) {
        self.mix = mix;
    }

    /// A snapshot is ordered, and no command is under way.
    pub fn begin_cut(&mut self) {
        self.keys.iter_mut().for_each(KeyLedger::begin_cut);
    }

    /// The snapshot was answered, and no command is under way: returns what may be in it.
    pub fn end_cut(&mut self) -> Self {
        let keys = self.keys.iter_mut().map(KeyLedger::end_cut).collect();
        Self { keys, rng: self.rng.clone(), ..*self }
    }

    /// Returns the connection's number.
    #[must_use]
    pub fn connection(&self) -> u32 {
        self.connection
    }

    /// Returns the ledgers of all keys, by key number.
    #[must_use]
    pub fn keys(&self) -> &[KeyLedger] {
        &self.keys
    }

    /// Draws the next pipeline.
    pub fn next_pipeline(&mut self) -> Vec<Request> {
        let count = match self.rng.u32(0..10) {
            0..4 => 1,
            4..9 => self.rng.usize(1..=8),
            _ => self.rng.usize(1..=PIPELINE_MAX),
        };
        let mut unread = BTreeSet::new();
        let mut pipeline = Vec::with_capacity(count);
        for _ in 0..count {
            let request = match self.missing_cold_key() {
                Some(key) if !unread.contains(&key) => self.set_cold(key),
                _ => self.next_request(&unread),
            };
            if request.effect.is_write() {
                unread.extend(request.effect.operations().into_iter().map(|(key, _)| key));
            }
            pipeline.push(request);
        }
        pipeline
    }

    /// Draws one command; keys in `unread` are not read, as their length is not known.
    fn next_request(&mut self, unread: &BTreeSet<u32>) -> Request {
        let key = self.rng.u32(0..HOT_COUNT);
        match (self.mix, self.rng.u32(0..100)) {
            (Mix::Overwriting, 0..70) => {
                let key = self.rng.u32(0..HOTTEST_COUNT);
                return self.set(key);
            }
            (Mix::Expiring, 0..40) => return self.set(key),
            (Mix::Expiring, 40..60) => return self.expire(key),
            _ => {}
        }
        match self.rng.u32(0..100) {
            0..45 => self.set(key),
            45..53 => self.one(key, KeyOperation::Delete, &[b"DEL"], &[]),
            53..56 => self.delete_many(),
            56..64 => self.set_many(),
            64..74 if is_number(key) => self.one(key, KeyOperation::Increment, &[b"INCR"], &[]),
            64..74 => self.append(key),
            74..80 => self.expire(key),
            80..84 => self.one(key, KeyOperation::Persist, &[b"PERSIST"], &[]),
            84..88 => {
                let counter = self.rng.usize(0..SHARED_COUNT);
                let command = vec![b"INCR".to_vec(), shared_name(counter)];
                Request { command, effect: Effect::Shared(counter) }
            }
            _ if unread.contains(&key) || !self.is_short(key) => self.set(key),
            _ => self.one(key, KeyOperation::Get, &[b"GET"], &[]),
        }
    }

    fn one(&self, key: u32, operation: KeyOperation, verb: &[&[u8]], rest: &[&[u8]]) -> Request {
        let mut command: Vec<Vec<u8>> = verb.iter().map(|word| word.to_vec()).collect();
        command.push(key_name(self.connection, key));
        command.extend(rest.iter().map(|word| word.to_vec()));
        Request { command, effect: Effect::Key(key, operation) }
    }

    /// A cold key that may not be there, now and then one that is.
    fn missing_cold_key(&mut self) -> Option<u32> {
        let key = self.rng.u32(HOT_COUNT..KEY_COUNT);
        let missing = self.keys[key as usize].possible().contains(&KeyState::Absent);
        (missing || self.rng.u32(0..400) == 0).then_some(key)
    }

    fn set_cold(&mut self, key: u32) -> Request {
        let len = self.rng.u32(16 << 10..64 << 10);
        let content = Content::Pieces(vec![Piece { version: self.next_version(), len }]);
        let bytes = content.bytes(self.keys[key as usize].author());
        let operation = KeyOperation::Set { content, px: None, condition: SetCondition::Always };
        self.one(key, operation, &[b"SET"], &[&bytes])
    }

    fn set(&mut self, key: u32) -> Request {
        let content = self.content(key);
        let bytes = content.bytes(self.keys[key as usize].author());
        let expiring = self.mix == Mix::Expiring && self.rng.bool();
        let px = match self.rng.u32(0..10) {
            _ if expiring => Some(self.lifetime_ms()),
            0 => Some(self.rng.u64(20..600)),
            1 => Some(self.rng.u64(20_000..2_000_000)),
            _ => None,
        };
        let (condition, word) = match self.rng.u32(0..10) {
            0 => (SetCondition::IfAbsent, Some(&b"NX"[..])),
            1 => (SetCondition::IfPresent, Some(&b"XX"[..])),
            _ => (SetCondition::Always, None),
        };
        let px_text = px.map(|ms| ms.to_string());
        let mut rest: Vec<&[u8]> = vec![&bytes];
        rest.extend(word);
        if let Some(text) = &px_text {
            rest.extend([&b"PX"[..], text.as_bytes()]);
        }
        self.one(key, KeyOperation::Set { content, px, condition }, &[b"SET"], &rest)
    }

    fn set_many(&mut self) -> Request {
        let mut command = vec![b"MSET".to_vec()];
        let mut pairs = Vec::new();
        for key in self.some_keys() {
            let content = self.content(key);
            command.push(key_name(self.connection, key));
            command.push(content.bytes(self.keys[key as usize].author()));
            let condition = SetCondition::Always;
            pairs.push((key, KeyOperation::Set { content, px: None, condition }));
        }
        Request { command, effect: Effect::SetMany(pairs) }
    }

    fn delete_many(&mut self) -> Request {
        let keys = self.some_keys();
        let names = keys.iter().map(|&key| key_name(self.connection, key));
        let command = std::iter::once(b"DEL".to_vec()).chain(names).collect();
        Request { command, effect: Effect::DeleteMany(keys) }
    }

    fn append(&mut self, key: u32) -> Request {
        let full = self.keys[key as usize].possible().iter().any(|state| match state {
            KeyState::Present { content: Content::Pieces(pieces), .. } => {
                pieces.len() >= PIECES_MAX
            }
            _ => false,
        });
        if full {
            return self.set(key);
        }
        let piece = Piece { version: self.next_version(), len: self.rng.u32(0..2_000) };
        let mut bytes = Vec::new();
        piece.write_to(self.keys[key as usize].author(), &mut bytes);
        self.one(key, KeyOperation::Append(piece), &[b"APPEND"], &[&bytes])
    }

    /// Over while the connection is at work, while the node is down, a few rounds later, or never
    /// in this run.
    fn lifetime_ms(&mut self) -> u64 {
        match self.rng.u32(0..4) {
            0 => self.rng.u64(20..600),
            1 => self.rng.u64(300..1_500),
            2 => self.rng.u64(1_000..10_000),
            _ => self.rng.u64(20_000..2_000_000),
        }
    }

    fn expire(&mut self, key: u32) -> Request {
        let ms = self.lifetime_ms();
        if self.rng.u32(0..4) == 0 {
            let seconds = ms.div_ceil(1_000);
            let operation = KeyOperation::ExpireIn(seconds * 1_000);
            return self.one(key, operation, &[b"EXPIRE"], &[seconds.to_string().as_bytes()]);
        }
        let text = ms.to_string();
        self.one(key, KeyOperation::ExpireIn(ms), &[b"PEXPIRE"], &[text.as_bytes()])
    }

    fn some_keys(&mut self) -> Vec<u32> {
        let count = self.rng.usize(2..=5);
        let keys: BTreeSet<u32> = (0..count).map(|_| self.rng.u32(0..KEY_COUNT)).collect();
        keys.into_iter().collect()
    }

    fn content(&mut self, key: u32) -> Content {
        if is_number(key) {
            return Content::Integer(self.rng.i64(-1_000_000..1_000_000_000));
        }
        if self.rng.u32(0..HUGE_ONE_IN) == 0 {
            let len = self.rng.u32(4 << 20..=HUGE_BYTES_MAX);
            return Content::Pieces(vec![Piece { version: self.next_version(), len }]);
        }
        let len_max = match self.rng.u32(0..200) {
            _ if self.mix == Mix::Overwriting && key < HOTTEST_COUNT => 64 * 1024,
            0..4 => 1,
            4..140 => 200,
            140..180 => 8 * 1024,
            180..196 => 64 * 1024,
            196..199 => 256 * 1024,
            _ => VALUE_BYTES_MAX,
        };
        let len = self.rng.u32(0..=len_max);
        Content::Pieces(vec![Piece { version: self.next_version(), len }])
    }

    fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn is_short(&self, key: u32) -> bool {
        self.keys[key as usize].possible().iter().all(|state| match state {
            KeyState::Absent => true,
            KeyState::Present { content, .. } => content.len() <= GET_BYTES_MAX,
        })
    }

    /// Settles a command that was answered, except one on a shared counter.
    ///
    /// # Errors
    /// When the ledger cannot explain the reply.
    pub fn settle(
        &mut self,
        effect: &Effect,
        reply: Reply,
        window: Window,
    ) -> Result<Settled, Violation> {
        if let Reply::Error(text) = reply {
            for (key, operation) in effect.operations() {
                self.keys[key as usize].fail(&operation, window);
            }
            return Ok(Settled::Unknown(text));
        }
        let odd = |reply: &Reply| Violation {
            account: format!("{effect:?} was answered {}", reply.brief()),
        };
        match (effect, reply) {
            (Effect::Key(key, operation), reply) => {
                let reply = match (operation, reply) {
                    (_, Reply::Integer(number)) => KeyReply::Integer(number),
                    (_, Reply::Nil) => KeyReply::Nil,
                    (KeyOperation::Get, Reply::Bulk(bytes)) => KeyReply::Value(bytes),
                    (_, Reply::Simple(text)) if text == "OK" => KeyReply::Done,
                    (_, reply) => return Err(odd(&reply)),
                };
                self.keys[*key as usize].acknowledge(operation, &reply, window)?;
            }
            (Effect::SetMany(pairs), Reply::Simple(text)) if text == "OK" => {
                for (key, operation) in pairs {
                    self.keys[*key as usize].acknowledge(operation, &KeyReply::Done, window)?;
                }
            }
            (Effect::DeleteMany(keys), Reply::Integer(count)) => {
                self.settle_delete_many(keys, count, window)?;
            }
            (_, reply) => return Err(odd(&reply)),
        }
        Ok(Settled::Known)
    }

    fn settle_delete_many(
        &mut self,
        keys: &[u32],
        count: i64,
        window: Window,
    ) -> Result<(), Violation> {
        let ledgers = || keys.iter().map(|&key| &self.keys[key as usize]);
        let must = ledgers().filter(|ledger| ledger.must_exist(window)).count();
        let may = ledgers().filter(|ledger| ledger.may_exist(window)).count();
        if !usize::try_from(count).is_ok_and(|count| (must..=may).contains(&count)) {
            let account = format!(
                "connection {}: DEL {keys:?} was answered {count}, {must} to {may} exist",
                self.connection
            );
            return Err(Violation { account });
        }
        for &key in keys {
            let operation = KeyOperation::DeleteAmongOthers;
            let reply = KeyReply::Integer(count);
            self.keys[key as usize].acknowledge(&operation, &reply, window)?;
        }
        Ok(())
    }

    /// Settles commands, in the order sent, whose replies never came.
    pub fn abandon(&mut self, requests: &[Request], window: Window) {
        let operations: Vec<(u32, KeyOperation)> =
            requests.iter().flat_map(|request| request.effect.operations()).collect();
        for (key, ledger) in (0..).zip(&mut self.keys) {
            let own = operations.iter().filter(|(of, _)| *of == key);
            let own: Vec<(KeyOperation, Window)> =
                own.map(|(_, operation)| (operation.clone(), window)).collect();
            ledger.abandon(&own);
        }
    }

    /// Settles a FLUSHALL.
    pub fn flush(&mut self, outcome: FlushOutcome) {
        for ledger in &mut self.keys {
            ledger.flush(outcome);
        }
    }

    /// Compares a key with what was read of it.
    ///
    /// # Errors
    /// When the ledger cannot explain it.
    pub fn observe(
        &mut self,
        key: u32,
        seen: &Observation,
        window: Window,
    ) -> Result<(), Violation> {
        self.keys[key as usize].observe(seen, window)
    }
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// Acknowledged.
    Known,
    /// Answered with this error.
    Unknown(String),
}

/// Every fifth key holds a number, the others pieces.
fn is_number(key: u32) -> bool {
    key.is_multiple_of(5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_draws_the_same_commands() {
        let draw = |seed| {
            let mut workload = ConnectionWorkload::new(seed, 3);
            let pipelines = (0..50).flat_map(move |_| workload.next_pipeline());
            pipelines.map(|request| request.command).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn delete_count_outside_what_may_exist_is_caught() {
        let window = Window { sent: 1_000, received: 1_001 };
        let mut workload = ConnectionWorkload::new(1, 0);
        let operation = KeyOperation::Set {
            content: Content::Pieces(vec![Piece { version: 1, len: 10 }]),
            px: None,
            condition: SetCondition::Always,
        };
        let ok = || Reply::Simple("OK".into());
        workload.settle(&Effect::Key(1, operation), ok(), window).unwrap();
        let delete = Effect::DeleteMany(vec![1, 2]);
        assert!(workload.settle(&delete, Reply::Integer(2), window).is_err());
        assert!(workload.settle(&delete, Reply::Integer(0), window).is_err());
        assert!(workload.settle(&delete, Reply::Integer(1), window).is_ok());
        assert!(workload.settle(&delete, Reply::Integer(1), window).is_err());
    }
}
