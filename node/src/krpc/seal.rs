//! Sealed datagrams: those of a private cluster that has a secret. [`Sealer`] adds a seal,
//! [`Opener`] checks and takes it off.
//!
//! ```text
//! +------------------+----------------+---------+------------------------------------+
//! | dictionary       | sender boot id | counter | tag: HMAC-SHA-256 of all before it |
//! | (a KRPC message) | 8              | 8       | 16                                 |
//! +------------------+----------------+---------+------------------------------------+
//! ```
//!
//! Numbers are big-endian. The boot id is drawn anew by each process, the counter goes up by one
//! with each datagram, whoever it goes to. Each is taken once: of every sender the receiver knows
//! which of the last 1,024 counters it has seen. What is refused is counted and not answered.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::collections::BTreeMap;

use crate::cluster::secret::MacKey;

/// Bytes of the tag.
const TAG_LEN: usize = 16;
/// Bytes that a seal adds to a datagram.
pub const SEAL_LEN: usize = 32;
/// Counters behind the highest one that a sender may still use.
pub const WINDOW_LEN: u64 = 1_024;
/// Senders whose counters are known; of more, those heard of longest ago are forgotten.
pub const SENDERS_MAX: usize = 4_096;
const WORD_BITS: u64 = 64;
const WORDS: usize = 16;

/// Why a datagram is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is too short to have a seal.
    #[error("no seal")]
    Truncated,
    /// The tag is not that of the bytes before it under our secret.
    #[error("forged")]
    Forged,
    /// It is one of our own that came back.
    #[error("our own")]
    Reflected,
    /// It was taken already.
    #[error("replayed")]
    Replayed,
    /// It is too old to say whether it was taken already.
    #[error("too old")]
    TooOld,
}

/// Counters of an [`Opener`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SealCounters {
    /// Datagrams taken.
    pub opened: u64,
    /// Those too short for a seal.
    pub truncated: u64,
    /// Those with a wrong tag: of strangers, of another secret, for another cluster, damaged.
    pub forged: u64,
    /// Those of this node itself.
    pub reflected: u64,
    /// Those taken before.
    pub replayed: u64,
    /// Those behind the window.
    pub too_old: u64,
    /// Senders forgotten because there were too many.
    pub senders_forgotten: u64,
}

impl SealCounters {
    /// Datagrams that were not taken.
    #[must_use]
    pub fn refused(&self) -> u64 {
        let all = [self.truncated, self.forged, self.reflected, self.replayed, self.too_old];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

/// Seals the datagrams of one process.
#[derive(Debug)]
pub struct Sealer {
    key: MacKey,
    boot: u64,
    counter: u64,
}

impl Sealer {
    /// Starts with the datagram key of the cluster's secret and a boot id that no other process
    /// has: 8 bytes from the kernel's random source.
    #[must_use]
    pub fn new(key: MacKey, boot: u64) -> Self {
        Self { key, boot, counter: 0 }
    }

    /// Adds a seal to a datagram.
    pub fn seal(&mut self, datagram: &mut Vec<u8>) {
        self.counter = self.counter.saturating_add(1);
        datagram.extend_from_slice(&self.boot.to_be_bytes());
        datagram.extend_from_slice(&self.counter.to_be_bytes());
        let code = self.key.code(&[datagram]);
        datagram.extend_from_slice(code.first_chunk::<TAG_LEN>().unwrap_or(&[0; TAG_LEN]));
    }
}

/// What is known of a sender.
#[derive(Clone, Debug)]
struct Sender {
    /// The highest counter taken.
    highest: u64,
    /// Which of the window were taken: a counter's bit is that of its remainder.
    taken: [u64; WORDS],
    /// When it was heard of last, among all senders.
    turn: u64,
}

impl Sender {
    /// Takes a counter, if it was not taken before.
    fn take(&mut self, counter: u64) -> Result<(), OpenError> {
        // Counters begin with 1, so 0 is always too old.
        if counter <= self.highest.saturating_sub(WINDOW_LEN) {
            return Err(OpenError::TooOld);
        }
        if counter > self.highest {
            // The window moves on: what comes into it has not been taken.
            let first = self.highest.max(counter.saturating_sub(WINDOW_LEN));
            (first..counter).for_each(|before| self.set(before.saturating_add(1), false));
            self.highest = counter;
        }
        if self.has(counter) {
            return Err(OpenError::Replayed);
        }
        self.set(counter, true);
        Ok(())
    }

    fn has(&self, counter: u64) -> bool {
        let (word, bit) = place(counter);
        self.taken.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, counter: u64, is_taken: bool) {
        let (word, bit) = place(counter);
        if let Some(word) = self.taken.get_mut(word) {
            *word = if is_taken { *word | bit } else { *word & !bit };
        }
    }
}

/// Where a counter's bit is.
fn place(counter: u64) -> (usize, u64) {
    let index = counter % WINDOW_LEN;
    (usize::try_from(index / WORD_BITS).unwrap_or(0), 1_u64.rotate_left(rotation(index)))
}

fn rotation(index: u64) -> u32 {
    u32::try_from(index % WORD_BITS).unwrap_or(0)
}

/// Opens sealed datagrams.
#[derive(Debug)]
pub struct Opener {
    key: MacKey,
    own_boot: u64,
    senders: BTreeMap<u64, Sender>,
    /// Senders by when they were heard of last.
    turns: BTreeMap<u64, u64>,
    turn: u64,
    counters: SealCounters,
}

impl Opener {
    /// Starts with the datagram key of the cluster's secret and the boot id of the own sealer.
    #[must_use]
    pub fn new(key: MacKey, own_boot: u64) -> Self {
        Self {
            key,
            own_boot,
            senders: BTreeMap::new(),
            turns: BTreeMap::new(),
            turn: 0,
            counters: SealCounters::default(),
        }
    }

    /// Checks a datagram, and returns it without its seal.
    ///
    /// # Errors
    /// [`OpenError`]; it is counted.
    pub fn open<'a>(&mut self, datagram: &'a [u8]) -> Result<&'a [u8], OpenError> {
        let opened = self.check(datagram);
        let counter = match opened {
            Ok(_) => &mut self.counters.opened,
            Err(OpenError::Truncated) => &mut self.counters.truncated,
            Err(OpenError::Forged) => &mut self.counters.forged,
            Err(OpenError::Reflected) => &mut self.counters.reflected,
            Err(OpenError::Replayed) => &mut self.counters.replayed,
            Err(OpenError::TooOld) => &mut self.counters.too_old,
        };
        *counter = counter.saturating_add(1);
        opened
    }

    /// Whether a datagram says that it is from a sender that has proven itself before. Anybody who
    /// has seen a datagram of that sender can say so.
    #[must_use]
    pub fn is_known(&self, datagram: &[u8]) -> bool {
        split(datagram).is_some_and(|sealed| self.senders.contains_key(&sealed.boot))
    }

    /// Counters.
    #[must_use]
    pub fn counters(&self) -> SealCounters {
        self.counters
    }

    /// Senders whose counters are known.
    #[must_use]
    pub fn senders_len(&self) -> usize {
        self.senders.len()
    }

    fn check<'a>(&mut self, datagram: &'a [u8]) -> Result<&'a [u8], OpenError> {
        let sealed = split(datagram).ok_or(OpenError::Truncated)?;
        // Nothing is learned from a datagram before its tag is right.
        if !self.key.is_code(&[sealed.covered], sealed.tag) {
            return Err(OpenError::Forged);
        }
        if sealed.boot == self.own_boot {
            return Err(OpenError::Reflected);
        }
        self.sender(sealed.boot).take(sealed.counter)?;
        Ok(sealed.dictionary)
    }

    fn sender(&mut self, boot: u64) -> &mut Sender {
        self.turn = self.turn.saturating_add(1);
        if let Some(sender) = self.senders.get(&boot) {
            self.turns.remove(&sender.turn);
        } else if self.senders.len() >= SENDERS_MAX
            && let Some((_, oldest)) = self.turns.pop_first()
        {
            self.senders.remove(&oldest);
            self.counters.senders_forgotten = self.counters.senders_forgotten.saturating_add(1);
        }
        self.turns.insert(self.turn, boot);
        let new = Sender { highest: 0, taken: [0; WORDS], turn: 0 };
        let sender = self.senders.entry(boot).or_insert(new);
        sender.turn = self.turn;
        sender
    }
}

struct Sealed<'a> {
    dictionary: &'a [u8],
    covered: &'a [u8],
    boot: u64,
    counter: u64,
    tag: &'a [u8; TAG_LEN],
}

fn split(datagram: &[u8]) -> Option<Sealed<'_>> {
    let (covered, tag) = datagram.split_last_chunk::<TAG_LEN>()?;
    let (rest, counter) = covered.split_last_chunk::<8>()?;
    let (dictionary, boot) = rest.split_last_chunk::<8>()?;
    let [boot, counter] = [boot, counter].map(|bytes| u64::from_be_bytes(*bytes));
    Some(Sealed { dictionary, covered, boot, counter, tag })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "a test that panics has failed")]

    use fastrand::Rng;

    use super::*;

    fn key(byte: u8) -> MacKey {
        MacKey::new([byte; 32])
    }

    fn pair() -> (Sealer, Opener) {
        (Sealer::new(key(1), 7), Opener::new(key(1), 8))
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut datagram = text.to_vec();
        sealer.seal(&mut datagram);
        datagram
    }

    #[test]
    fn sealed_datagrams_are_opened_once() {
        let (mut sealer, mut opener) = pair();
        for text in [&b"d1:y1:qe"[..], b"", &[9; 1_400]] {
            let datagram = sealed(&mut sealer, text);
            assert_eq!(datagram.len(), text.len() + SEAL_LEN);
            assert!(opener.open(&datagram) == Ok(text));
            assert_eq!(opener.open(&datagram), Err(OpenError::Replayed));
        }
        let counters = opener.counters();
        assert_eq!((counters.opened, counters.replayed), (3, 3));
    }

    /// docs/WIRE.md has the same bytes.
    #[test]
    fn seals_are_laid_out_as_documented() {
        let mut sealer = Sealer::new(key(1), 0x0102_0304_0506_0708);
        let datagram = sealed(&mut sealer, b"de");
        assert_eq!(&datagram[..10], b"de\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(&datagram[10..18], &1_u64.to_be_bytes());
        assert_eq!(datagram[18..], key(1).code(&[&datagram[..18]])[..TAG_LEN]);
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_seen() {
        let (mut sealer, mut opener) = pair();
        let datagram = sealed(&mut sealer, b"d1:y1:qe");
        for bit in 0..datagram.len() * 8 {
            let mut changed = datagram.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(opener.open(&changed), Err(OpenError::Forged), "bit {bit}");
        }
        for len in 0..datagram.len() {
            let expected = if len < SEAL_LEN { OpenError::Truncated } else { OpenError::Forged };
            assert_eq!(opener.open(&datagram[..len]), Err(expected), "{len} bytes");
        }
        assert_eq!(opener.senders_len(), 0, "nothing is learned from them");
        assert!(opener.open(&datagram).is_ok());
    }

    #[test]
    fn another_secret_and_the_own_datagrams_are_refused() {
        let (mut sealer, _) = pair();
        let datagram = sealed(&mut sealer, b"de");
        assert_eq!(Opener::new(key(2), 8).open(&datagram), Err(OpenError::Forged));
        assert_eq!(Opener::new(key(1), 7).open(&datagram), Err(OpenError::Reflected));
    }

    /// Datagrams in any order, lost, doubled: against a model that remembers all of them.
    #[test]
    fn window_takes_what_is_new_and_not_too_old() {
        for seed in 0..30 {
            let mut rng = Rng::with_seed(seed);
            let mut sender = Sender { highest: 0, taken: [0; WORDS], turn: 0 };
            let (mut taken, mut highest) = (std::collections::BTreeSet::new(), 0_u64);
            for _ in 0..4_000 {
                let jump = [2, 5, 300, 1_500][rng.usize(..4)];
                let counter = (highest + rng.u64(..jump)).saturating_sub(rng.u64(..jump));
                let expected = if counter == 0 || counter + WINDOW_LEN <= highest {
                    Err(OpenError::TooOld)
                } else if taken.insert(counter) {
                    Ok(())
                } else {
                    Err(OpenError::Replayed)
                };
                assert_eq!(sender.take(counter), expected, "seed {seed}, counter {counter}");
                highest = highest.max(counter);
            }
        }
        let mut sender = Sender { highest: 0, taken: [0; WORDS], turn: 0 };
        assert_eq!(sender.take(u64::MAX), Ok(()));
        assert_eq!(sender.take(u64::MAX), Err(OpenError::Replayed));
        assert_eq!(sender.take(u64::MAX - WINDOW_LEN + 1), Ok(()));
        assert_eq!(sender.take(u64::MAX - WINDOW_LEN), Err(OpenError::TooOld));
    }

    #[test]
    fn senders_are_bounded_and_the_silent_ones_go_first() {
        let mut opener = Opener::new(key(1), 0);
        let mut loud = Sealer::new(key(1), 1);
        let first = sealed(&mut loud, b"de");
        assert!(opener.open(&first).is_ok());
        let max = u64::try_from(SENDERS_MAX).unwrap();
        for boot in 0..2 * max {
            assert!(opener.open(&sealed(&mut Sealer::new(key(1), boot + 2), b"de")).is_ok());
            if boot % 1_000 == 0 {
                assert!(opener.open(&sealed(&mut loud, b"de")).is_ok());
            }
        }
        assert_eq!(opener.senders_len(), SENDERS_MAX);
        assert_eq!(opener.turns.len(), SENDERS_MAX);
        assert_eq!(opener.counters().senders_forgotten, max + 1);
        assert_eq!(opener.open(&first), Err(OpenError::Replayed));
        assert!(opener.is_known(&first));
    }
}
