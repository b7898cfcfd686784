//! [`Ledger`]: what was asked and acknowledged, and which answers that allows.
//!
//! - A value that is found was written under that very version, with that very expiry, and was not
//!   over by the clock of the node that answers.
//! - Where the replica sets do not change, or only grow, a read finds at least what was
//!   acknowledged, or read, before it was asked. Nothing is found only if no value was
//!   acknowledged, or a deletion may be newer, or the value may be over by any node's clock.
//! - A write that is asked after another was acknowledged has the higher version.
//!
//! - A walk over all keys lists none twice, where sets do not change all that must be found, and
//!   none that must not.
//!
//! A write without acknowledgement may hold or not, for ever. Keys of which more holders were lost
//! than the promise allows are forgiven: what was acknowledged before may be gone.

use std::collections::BTreeMap;

use bytes::Bytes;
use kadring::cluster::coordinator::Outcome;
use kadring::cluster::message::{Content, Record};
use wal::record::Version;

/// A command under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) key: u32,
    /// Which write, if it is one.
    write: Option<u64>,
    pub(super) at_ns: u64,
    /// By the clock of the node that was asked.
    clock_ms: u64,
}

impl Asked {
    pub(super) fn read(key: u32, at_ns: u64, clock_ms: u64) -> Self {
        Self { key, write: None, at_ns, clock_ms }
    }

    /// The value of a write.
    pub(super) fn value(&self, len: usize) -> Bytes {
        value(self.write.unwrap_or_default(), len)
    }
}

/// When an answer came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) now_ns: u64,
    /// No node's clock is further ahead.
    pub(super) clock_max_ms: u64,
    /// So long after it was acknowledged a write must be seen; nothing if views may differ.
    pub(super) slack_ns: Option<u64>,
}

/// What a write asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    /// Bytes of the value; none deletes.
    pub(super) len: Option<usize>,
    pub(super) expiry_ms: u64,
}

/// Values shorter than that do not say which write they are of.
const NAMED_LEN_MIN: usize = 8;

/// The value of a write: its number, a dot, and blanks; or, if it is short, only crosses.
fn value(write: u64, len: usize) -> Bytes {
    let mut text = if len < NAMED_LEN_MIN { Vec::new() } else { format!("{write}.").into_bytes() };
    let filler = if len < NAMED_LEN_MIN { b'x' } else { b' ' };
    assert!(text.len() <= len, "numbers of writes fit");
    text.resize(len, filler);
    text.into()
}

#[derive(Clone, Copy, Debug)]
struct Write {
    /// Bytes of the value; none deletes.
    len: Option<usize>,
    expiry_ms: u64,
    at_ns: u64,
    acknowledged: Option<Version>,
}

/// A version that must be seen from a moment on: the highest of all until then.
#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    from_ns: u64,
}

#[derive(Debug, Default)]
struct Key {
    writes: BTreeMap<u64, Write>,
    known: Vec<Known>,
    /// What was asked until then binds nobody.
    forgiven_ns: Option<u64>,
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    last: u64,
    keys: BTreeMap<u32, Key>,
}

impl Ledger {
    pub(super) fn begin_write(
        &mut self,
        key: u32,
        Draft { len, expiry_ms }: Draft,
        at_ns: u64,
    ) -> Asked {
        self.last += 1;
        let write = Write { len, expiry_ms, at_ns, acknowledged: None };
        self.keys.entry(key).or_default().writes.insert(self.last, write);
        Asked { key, write: Some(self.last), at_ns, clock_ms: 0 }
    }

    /// More holders of a key were lost than the promise allows.
    pub(super) fn forgive(&mut self, key: u32, now_ns: u64) {
        let key = self.keys.entry(key).or_default();
        key.known.clear();
        key.forgiven_ns = Some(now_ns);
    }

    /// Whether something was acknowledged or seen of the key that must still be there.
    pub(super) fn is_bound(&self, key: u32) -> bool {
        self.keys.get(&key).is_some_and(|key| !key.known.is_empty())
    }

    /// Judges whether a walk that began at `started_ns` and is over has listed a key, where sets
    /// do not change. All clocks were within these two then and until now.
    pub(super) fn judge_listed(
        &self,
        key: u32,
        is_listed: bool,
        started_ns: u64,
        (clock_min_ms, clock_max_ms): (u64, u64),
    ) -> Result<(), String> {
        let asked = Asked::read(key, started_ns, clock_min_ms);
        let Some(known) = self.keys.get(&key) else {
            return if is_listed { Err(format!("{asked:?} lists what is not")) } else { Ok(()) };
        };
        let least = known.least(started_ns);
        if !is_listed {
            return known.check_nothing(&asked, least, clock_max_ms);
        }
        let is_over = |write: &Write| write.expiry_ms != 0 && write.expiry_ms <= clock_min_ms;
        let may_live = |write: &Write| {
            write.len.is_some()
                && !is_over(write)
                && write.acknowledged.is_none_or(|version| version >= least)
        };
        if known.writes.values().any(may_live) {
            return Ok(());
        }
        Err(format!("{asked:?} lists what is gone since {least:?}"))
    }

    /// Judges an answer.
    pub(super) fn judge(
        &mut self,
        asked: Asked,
        outcome: &Outcome,
        moment: Moment,
    ) -> Result<(), String> {
        let key = self.keys.entry(asked.key).or_default();
        let is_strict = moment.slack_ns.is_some();
        let least = key.least(asked.at_ns.saturating_sub(moment.slack_ns.unwrap_or(0)));
        match (outcome, asked.write) {
            (Outcome::Written { version, .. }, Some(write)) => {
                if is_strict && *version <= least {
                    return Err(format!("{asked:?} got {version:?}, not above {least:?}"));
                }
                if let Some(write) = key.writes.get_mut(&write) {
                    write.acknowledged = Some(*version);
                }
                key.learn(&asked, *version, moment.now_ns);
            }
            (Outcome::Found(Some(record)), None) => {
                key.check_origin(record)?;
                if record.expiry_ms != 0 && record.expiry_ms <= asked.clock_ms {
                    return Err(format!("{asked:?} found what was over at {}", record.expiry_ms));
                }
                if is_strict {
                    if record.version < least {
                        let version = record.version;
                        return Err(format!("{asked:?} found {version:?}, not {least:?}"));
                    }
                    key.learn(&asked, record.version, moment.now_ns);
                }
            }
            (Outcome::Found(None), None) if is_strict => {
                key.check_nothing(&asked, least, moment.clock_max_ms)?;
            }
            (
                Outcome::NoReplicas
                | Outcome::ClockAhead
                | Outcome::NotReady
                | Outcome::Loading
                | Outcome::Found(None),
                _,
            ) => {}
            (outcome, _) => return Err(format!("{asked:?} answered by {outcome:?}")),
        }
        Ok(())
    }
}

impl Key {
    /// What was known before that moment.
    fn least(&self, until_ns: u64) -> Version {
        let count = self.known.partition_point(|known| known.from_ns < until_ns);
        let last = count.checked_sub(1);
        last.map(|last| self.known[last].version).unwrap_or_default()
    }

    fn learn(&mut self, asked: &Asked, version: Version, from_ns: u64) {
        let binds = self.forgiven_ns.is_none_or(|forgiven_ns| forgiven_ns < asked.at_ns);
        if binds && self.known.last().is_none_or(|known| known.version < version) {
            self.known.push(Known { version, from_ns });
        }
    }

    /// A value comes from one write, and has one version. A write without acknowledgement may have
    /// been sent under several, of which the highest is found last.
    fn check_origin(&self, record: &Record) -> Result<(), String> {
        let Content::Value(found) = &record.content else {
            return Err("a tombstone is found".to_owned());
        };
        let (version, expiry_ms) = (record.version, record.expiry_ms);
        let fits = |write: &Write| {
            let is_other = write.acknowledged.is_some_and(|acknowledged| version > acknowledged);
            write.len == Some(found.len()) && write.expiry_ms == expiry_ms && !is_other
        };
        let Some(number) = number_of(found) else {
            let is_whole = *found == value(0, found.len());
            if is_whole && self.writes.values().any(fits) {
                return Ok(());
            }
            return Err(format!("{found:?} of {version:?}, {expiry_ms}, was not written"));
        };
        let write = self.writes.get(&number).filter(|write| write.len.is_some());
        let write = write.ok_or_else(|| format!("value {number} was not written"))?;
        if !fits(write) || *found != value(number, found.len()) {
            let len = found.len();
            return Err(format!(
                "{number} of {len} bytes, {version:?}, {expiry_ms}, was written as {write:?}"
            ));
        }
        Ok(())
    }

    fn check_nothing(
        &self,
        asked: &Asked,
        least: Version,
        clock_max_ms: u64,
    ) -> Result<(), String> {
        let may_be_over = |write: &Write| write.expiry_ms != 0 && write.expiry_ms <= clock_max_ms;
        let ends = self.writes.values().filter(|write| write.len.is_none() || may_be_over(write));
        let may_be_gone = ends.into_iter().any(|write| match write.acknowledged {
            Some(version) => version >= least,
            None => write.at_ns >= asked.at_ns || least != Version::default(),
        });
        if least == Version::default() || may_be_gone {
            return Ok(());
        }
        Err(format!("{asked:?} found nothing, not {least:?}"))
    }
}

/// The write that a value names; a short one names none.
fn number_of(found: &[u8]) -> Option<u64> {
    if found.len() < NAMED_LEN_MIN {
        return None;
    }
    let number = found.split(|byte| *byte == b'.').next()?;
    // What cannot be read is of a write that never was.
    Some(std::str::from_utf8(number).ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use wal::record::{Key as KeyId, Namespace};

    use super::*;

    fn record(content: Bytes, version: u8, expiry_ms: u64) -> Outcome {
        Outcome::Found(Some(Record {
            namespace: Namespace::PLAIN,
            key: KeyId([0; 20]),
            user_key: Bytes::new(),
            version: Version([version; 16]),
            expiry_ms,
            content: Content::Value(content),
        }))
    }

    fn found(number: u64, version: u8, expiry_ms: u64) -> Outcome {
        record(value(number, 20), version, expiry_ms)
    }

    fn draft(expiry_ms: u64) -> Draft {
        Draft { len: Some(20), expiry_ms }
    }

    fn written(version: u8) -> Outcome {
        Outcome::Written { version: Version([version; 16]), copies: 2 }
    }

    fn moment(now_ns: u64) -> Moment {
        Moment { now_ns, clock_max_ms: 500, slack_ns: Some(0) }
    }

    #[test]
    fn answers_are_judged_by_what_was_acknowledged_before_they_were_asked() {
        let mut ledger = Ledger::default();
        let first = ledger.begin_write(0, draft(0), 0);
        let second = ledger.begin_write(0, draft(900), 20);
        assert_eq!(ledger.judge(first, &written(1), moment(10)), Ok(()));
        assert!(ledger.is_bound(0) && !ledger.is_bound(1));
        let early = Asked::read(0, 5, 100);
        assert_eq!(ledger.judge(early, &Outcome::Found(None), moment(15)), Ok(()));
        let read = Asked::read(0, 30, 100);
        assert_eq!(ledger.judge(read, &found(1, 1, 0), moment(40)), Ok(()));
        assert!(ledger.judge(read, &Outcome::Found(None), moment(40)).is_err(), "lost");
        assert!(ledger.judge(read, &found(3, 1, 0), moment(40)).is_err(), "of nobody");
        assert!(ledger.judge(read, &found(1, 2, 0), moment(40)).is_err(), "another version");
        let cut = record(value(1, 19), 1, 0);
        assert!(ledger.judge(read, &cut, moment(40)).is_err(), "not whole");
        assert_eq!(ledger.judge(second, &written(3), moment(50)), Ok(()));
        let read = Asked::read(0, 60, 100);
        assert!(ledger.judge(read, &found(1, 1, 0), moment(70)).is_err(), "resurrected");
        assert!(ledger.judge(read, &found(2, 3, 0), moment(70)).is_err(), "another expiry");
        assert_eq!(ledger.judge(read, &found(2, 3, 900), moment(70)), Ok(()));
        let late = Asked::read(0, 60, 900);
        assert!(ledger.judge(late, &found(2, 3, 900), moment(70)).is_err(), "over");
        assert!(ledger.judge(late, &Outcome::Found(None), moment(70)).is_err(), "not yet over");
        let over = Moment { clock_max_ms: 900, ..moment(70) };
        assert_eq!(ledger.judge(late, &Outcome::Found(None), over), Ok(()));
        ledger.forgive(0, 80);
        assert_eq!(ledger.judge(read, &found(1, 1, 0), moment(90)), Ok(()));
        assert!(!ledger.is_bound(0), "it was asked before");
        let read = Asked::read(0, 100, 100);
        assert_eq!(ledger.judge(read, &Outcome::Found(None), moment(110)), Ok(()));
    }

    #[test]
    fn short_values_are_of_any_write_of_their_length() {
        let mut ledger = Ledger::default();
        let short = |len| Draft { len: Some(len), expiry_ms: 0 };
        let empty = ledger.begin_write(0, short(0), 0);
        assert_eq!(ledger.judge(empty, &written(1), moment(10)), Ok(()));
        let read = Asked::read(0, 20, 100);
        assert_eq!(ledger.judge(read, &record(Bytes::new(), 1, 0), moment(30)), Ok(()));
        assert!(ledger.judge(read, &record(Bytes::new(), 2, 0), moment(30)).is_err());
        assert!(ledger.judge(read, &record("x".into(), 1, 0), moment(30)).is_err());
        let one = ledger.begin_write(0, short(1), 40);
        assert_eq!(ledger.judge(one, &written(2), moment(50)), Ok(()));
        let read = Asked::read(0, 60, 100);
        assert_eq!(ledger.judge(read, &record("x".into(), 2, 0), moment(70)), Ok(()));
        assert!(ledger.judge(read, &record("y".into(), 2, 0), moment(70)).is_err());
        assert!(ledger.judge(read, &record(Bytes::new(), 1, 0), moment(70)).is_err(), "older");
    }

    #[test]
    fn a_walk_lists_what_lives_throughout_and_nothing_that_is_gone() {
        let mut ledger = Ledger::default();
        let clocks = (400, 500);
        assert_eq!(ledger.judge_listed(0, false, 5, clocks), Ok(()));
        assert!(ledger.judge_listed(0, true, 5, clocks).is_err(), "nobody wrote it");
        let write = ledger.begin_write(0, draft(0), 10);
        assert_eq!(ledger.judge_listed(0, true, 5, clocks), Ok(()), "it may be there already");
        assert_eq!(ledger.judge_listed(0, false, 15, clocks), Ok(()), "and need not");
        assert_eq!(ledger.judge(write, &written(1), moment(20)), Ok(()));
        assert!(ledger.judge_listed(0, false, 30, clocks).is_err(), "missed");
        assert_eq!(ledger.judge_listed(0, false, 15, clocks), Ok(()), "it began before");
        let delete = ledger.begin_write(0, Draft { len: None, expiry_ms: 0 }, 40);
        assert_eq!(ledger.judge_listed(0, false, 30, clocks), Ok(()), "it may be gone");
        assert_eq!(ledger.judge_listed(0, true, 30, clocks), Ok(()), "and need not");
        assert_eq!(ledger.judge(delete, &written(2), moment(50)), Ok(()));
        assert!(ledger.judge_listed(0, true, 60, clocks).is_err(), "deleted");
        let brief = ledger.begin_write(0, draft(450), 70);
        assert_eq!(ledger.judge(brief, &written(3), moment(80)), Ok(()));
        for is_listed in [false, true] {
            assert_eq!(ledger.judge_listed(0, is_listed, 90, clocks), Ok(()), "by some clock");
        }
        assert!(ledger.judge_listed(0, true, 90, (450, 500)).is_err(), "over by all clocks");
        assert!(ledger.judge_listed(0, false, 90, (400, 449)).is_err(), "over by none");
    }
}
