//! [`Ledger`]: what was asked and acknowledged, and which answers that allows.
//!
//! - A value that is found was written under that very version.
//! - Where the replica sets do not change, or only grow, a read finds at least what was
//!   acknowledged, or read,
//!   before it was asked. Nothing is found only if no value was acknowledged, or a deletion may be
//!   newer.
//! - A write that is asked after another was acknowledged has the higher version.
//!
//! A write without acknowledgement may hold or not, for ever.

use std::collections::BTreeMap;

use kadring::cluster::coordinator::Outcome;
use wal::record::Version;

use super::value_of;

/// A command under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    key: u32,
    /// Which write, if it is one.
    write: Option<u64>,
    at_ns: u64,
}

impl Asked {
    pub(super) fn read(key: u32, at_ns: u64) -> Self {
        Self { key, write: None, at_ns }
    }

    /// The value of a write: its number.
    pub(super) fn value(&self) -> u64 {
        self.write.unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug)]
struct Write {
    is_value: bool,
    at_ns: u64,
    acknowledged: Option<Version>,
}

/// A version that must be seen from a moment on.
#[derive(Clone, Copy, Debug)]
struct Known {
    version: Version,
    from_ns: u64,
}

#[derive(Debug, Default)]
struct Key {
    writes: BTreeMap<u64, Write>,
    known: Vec<Known>,
    /// Versions under which values were found.
    found: BTreeMap<u64, Version>,
}

/// All keys.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    last: u64,
    keys: BTreeMap<u32, Key>,
}

impl Ledger {
    pub(super) fn begin_write(&mut self, key: u32, is_value: bool, at_ns: u64) -> Asked {
        self.last += 1;
        let write = Write { is_value, at_ns, acknowledged: None };
        self.keys.entry(key).or_default().writes.insert(self.last, write);
        Asked { key, write: Some(self.last), at_ns }
    }

    /// Judges an answer.
    pub(super) fn judge(
        &mut self,
        asked: Asked,
        outcome: &Outcome,
        now_ns: u64,
        slack_ns: Option<u64>,
    ) -> Result<(), String> {
        let key = self.keys.entry(asked.key).or_default();
        let is_strict = slack_ns.is_some();
        let until_ns = asked.at_ns.saturating_sub(slack_ns.unwrap_or(0));
        let before = key.known.iter().filter(|known| known.from_ns < until_ns);
        let least = before.map(|known| known.version).max().unwrap_or_default();
        match (outcome, asked.write) {
            (Outcome::Written { version, .. }, Some(write)) => {
                if is_strict && *version <= least {
                    return Err(format!("{asked:?} got {version:?}, not above {least:?}"));
                }
                if let Some(write) = key.writes.get_mut(&write) {
                    write.acknowledged = Some(*version);
                }
                key.known.push(Known { version: *version, from_ns: now_ns });
            }
            (Outcome::Found(Some(record)), None) => {
                let value = value_of(record).ok_or("a value of nobody")?;
                key.check_origin(value, record.version)?;
                if is_strict {
                    if record.version < least {
                        let version = record.version;
                        return Err(format!("{asked:?} found {version:?}, not {least:?}"));
                    }
                    key.known.push(Known { version: record.version, from_ns: now_ns });
                }
            }
            (Outcome::Found(None), None) if is_strict => key.check_nothing(&asked, least)?,
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
    /// A value comes from one write, and has one version. A write without acknowledgement may have
    /// been sent under several, of which the highest is found last.
    fn check_origin(&mut self, value: u64, version: Version) -> Result<(), String> {
        let write = self.writes.get(&value).filter(|write| write.is_value);
        let write = write.ok_or_else(|| format!("value {value} was not written"))?;
        let is_other = write.acknowledged.is_some_and(|acknowledged| version > acknowledged);
        if is_other {
            return Err(format!("value {value} of {version:?} was written as {write:?}"));
        }
        self.found.insert(value, version);
        Ok(())
    }

    fn check_nothing(&self, asked: &Asked, least: Version) -> Result<(), String> {
        let deletes = self.writes.values().filter(|write| !write.is_value);
        let may_be_deleted = deletes.into_iter().any(|write| match write.acknowledged {
            Some(version) => version >= least,
            None => write.at_ns >= asked.at_ns || least != Version::default(),
        });
        if least == Version::default() || may_be_deleted {
            return Ok(());
        }
        Err(format!("{asked:?} found nothing, not {least:?}"))
    }
}
