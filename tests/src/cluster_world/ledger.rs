//! [`Ledger`]: what was asked and acknowledged, and which answers that allows.
//!
//! - A value that is found was written under that very version, with that very expiry, and was not
//!   over by the clock of the node that answers.
//! - Where the replica sets do not change, or only grow, a read finds at least what was
//!   acknowledged, or read, before it was asked. Nothing is found only if no value was
//!   acknowledged, or a deletion may be newer, or the value may be over by any node's clock.
//! - A write that is asked after another was acknowledged has the higher version.
//!
//! A write without acknowledgement may hold or not, for ever. Keys of which more holders were lost
//! than the promise allows are forgiven: what was acknowledged before may be gone.

use std::collections::BTreeMap;

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

    /// The value of a write begins with its number.
    pub(super) fn value(&self) -> u64 {
        self.write.unwrap_or_default()
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

#[derive(Clone, Copy, Debug)]
struct Write {
    is_value: bool,
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
        (is_value, expiry_ms): (bool, u64),
        at_ns: u64,
    ) -> Asked {
        self.last += 1;
        let write = Write { is_value, expiry_ms, at_ns, acknowledged: None };
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
                Outcome::NoReplicas | Outcome::NotReady | Outcome::Loading | Outcome::Found(None),
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
        let (value, version) = (value_of(record).ok_or("a value of nobody")?, record.version);
        let write = self.writes.get(&value).filter(|write| write.is_value);
        let write = write.ok_or_else(|| format!("value {value} was not written"))?;
        let is_other = write.acknowledged.is_some_and(|acknowledged| version > acknowledged);
        if is_other || write.expiry_ms != record.expiry_ms {
            let expiry_ms = record.expiry_ms;
            return Err(format!("{value} of {version:?}, {expiry_ms}, was written as {write:?}"));
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
        let ends = self.writes.values().filter(|write| !write.is_value || may_be_over(write));
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

/// The write that a record stands for: its value is the number, a dot, and any number of bytes.
fn value_of(record: &Record) -> Option<u64> {
    match &record.content {
        Content::Value(value) => {
            let number = value.split(|byte| *byte == b'.').next()?;
            std::str::from_utf8(number).ok()?.parse().ok()
        }
        Content::Tombstone => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wal::record::{Key as KeyId, Namespace};

    use super::*;

    fn found(value: u64, version: u8, expiry_ms: u64) -> Outcome {
        Outcome::Found(Some(Record {
            namespace: Namespace::PLAIN,
            key: KeyId([0; 20]),
            user_key: Bytes::new(),
            version: Version([version; 16]),
            expiry_ms,
            content: Content::Value(format!("{value}.xx").into()),
        }))
    }

    #[test]
    fn answers_are_judged_by_what_was_acknowledged_before_they_were_asked() {
        let mut ledger = Ledger::default();
        let moment = |now_ns| Moment { now_ns, clock_max_ms: 500, slack_ns: Some(0) };
        let written = |version| Outcome::Written { version: Version([version; 16]), copies: 2 };
        let first = ledger.begin_write(0, (true, 0), 0);
        let second = ledger.begin_write(0, (true, 900), 20);
        assert_eq!(ledger.judge(first, &written(1), moment(10)), Ok(()));
        assert!(ledger.is_bound(0) && !ledger.is_bound(1));
        let early = Asked::read(0, 5, 100);
        assert_eq!(ledger.judge(early, &Outcome::Found(None), moment(15)), Ok(()));
        let read = Asked::read(0, 30, 100);
        assert_eq!(ledger.judge(read, &found(1, 1, 0), moment(40)), Ok(()));
        assert!(ledger.judge(read, &Outcome::Found(None), moment(40)).is_err(), "lost");
        assert!(ledger.judge(read, &found(3, 1, 0), moment(40)).is_err(), "of nobody");
        assert!(ledger.judge(read, &found(1, 2, 0), moment(40)).is_err(), "another version");
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
}
