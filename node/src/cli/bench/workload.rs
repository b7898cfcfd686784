//! [`Workload`]: which operations are done, on which keys, with which values.

use super::zipf::Zipf;
use std::ops::Range;
use std::sync::Arc;

/// Bytes at the front of a value that tell which key it belongs to, if it has so many.
pub(super) const STAMP_LEN: usize = 8;
/// Digits of a key's number.
const KEY_DIGITS: usize = 11;
/// A key before its number is written over the digits.
const KEY: &[u8; KEY_LEN] = b"user:00000000000";
/// Where these stand in a request: GET and SET are as long as each other.
const DIGITS_AT: usize = "*2\r\n$3\r\nGET\r\n$16\r\nuser:".len();
/// Bytes of a key.
pub const KEY_LEN: usize = 16;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads a value.
    Get,
    /// Stores a value.
    Set,
}

/// How keys are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// All alike.
    Uniform,
    /// Few of them most of the time.
    Zipf {
        /// The exponent, below 1; 0 is uniform.
        theta: f64,
    },
}

/// Whether the bytes of values read are compared with what was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Compared byte by byte.
    Values,
    /// Not looked at.
    Nothing,
}

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Share of operations that read, in percent; the others store.
    pub get_percent: u8,
    /// Bytes of a value.
    pub value_len: usize,
    /// Number of the first key: workloads beside each other have keys of their own.
    pub key_first: u64,
    /// Number of keys.
    pub key_count: u64,
    /// How they are chosen.
    pub distribution: Distribution,
    /// Whether values read are compared.
    pub verify: Verify,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) verb: Verb,
    pub(super) key: u64,
}

/// Where keys come from.
#[derive(Clone, Debug)]
enum Keys {
    Uniform(u64),
    Zipf(Arc<Zipf>),
    Each(Range<u64>),
}

/// An endless or finite row of operations, the same for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Operations {
    random: fastrand::Rng,
    get_percent: u8,
    key_first: u64,
    keys: Keys,
}

impl Operations {
    /// What the workload says, for each of `threads`.
    pub(super) fn drawn(workload: &Workload, threads: usize) -> Vec<Self> {
        let keys = match workload.distribution {
            Distribution::Uniform => Keys::Uniform(workload.key_count),
            Distribution::Zipf { theta } => {
                Keys::Zipf(Arc::new(Zipf::new(workload.key_count, theta)))
            }
        };
        let of_thread = |thread| Self {
            random: fastrand::Rng::with_seed(thread as u64 + 1),
            get_percent: workload.get_percent,
            key_first: workload.key_first,
            keys: keys.clone(),
        };
        (0..threads).map(of_thread).collect()
    }

    /// Each key once, dealt to `threads` in stretches.
    pub(super) fn each(workload: &Workload, verb: Verb, threads: usize) -> Vec<Self> {
        let stretch = workload.key_count.div_ceil(threads as u64);
        let of_thread = |thread: u64| {
            let first = (thread * stretch).min(workload.key_count);
            let keys = Keys::Each(first..workload.key_count.min(first + stretch));
            let get_percent = if verb == Verb::Get { 100 } else { 0 };
            let (random, key_first) = (fastrand::Rng::with_seed(thread), workload.key_first);
            Self { random, get_percent, key_first, keys }
        };
        (0..threads as u64).map(of_thread).collect()
    }

    pub(super) fn next(&mut self) -> Option<Operation> {
        let verb = match self.get_percent {
            0 => Verb::Set,
            100.. => Verb::Get,
            percent if self.random.u8(..100) < percent => Verb::Get,
            _ => Verb::Set,
        };
        let key = match &mut self.keys {
            Keys::Uniform(count) => self.random.u64(..*count),
            Keys::Zipf(zipf) => zipf.draw(self.random.f64()),
            Keys::Each(keys) => keys.next()?,
        };
        Some(Operation { verb, key: self.key_first + key })
    }
}

/// The bytes of requests and of values.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    get: Vec<u8>,
    set: Vec<u8>,
    /// The value behind its stamp, and the line end behind that.
    tail: Arc<[u8]>,
    stamp_len: usize,
    verify: Verify,
}

impl Requests {
    pub(super) fn new(workload: &Workload) -> Self {
        let key = String::from_utf8_lossy(KEY);
        let get = format!("*2\r\n$3\r\nGET\r\n${KEY_LEN}\r\n{key}\r\n").into_bytes();
        let len = workload.value_len;
        let set = format!("*3\r\n$3\r\nSET\r\n${KEY_LEN}\r\n{key}\r\n${len}\r\n").into_bytes();
        let stamp_len = STAMP_LEN.min(len);
        // The same in every run, and nothing that compresses.
        let mut random = fastrand::Rng::with_seed(1);
        let filler = (stamp_len..len).map(|_| random.u8(..));
        let tail = filler.chain(*b"\r\n").collect();
        Self { get, set, tail, stamp_len, verify: workload.verify }
    }

    /// Appends a request, of a SET without [`Self::tail`].
    pub(super) fn encode(&self, operation: Operation, out: &mut Vec<u8>) {
        let head = match operation.verb {
            Verb::Get => &self.get,
            Verb::Set => &self.set,
        };
        let digits = out.len() + DIGITS_AT;
        out.extend_from_slice(head);
        let mut rest = operation.key;
        for digit in out[digits..digits + KEY_DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        if operation.verb == Verb::Set {
            out.extend_from_slice(&operation.key.to_le_bytes()[..self.stamp_len]);
        }
    }

    /// What follows a SET: the rest of its value, and a line end.
    pub(super) fn tail(&self) -> &Arc<[u8]> {
        &self.tail
    }

    pub(super) fn value_len(&self) -> usize {
        self.stamp_len + self.tail.len() - 2
    }

    /// Whether `bytes` stand at `offset` of the key's value; also if nobody wants to know.
    pub(super) fn is_part(&self, key: u64, offset: usize, bytes: &[u8]) -> bool {
        if self.verify == Verify::Nothing {
            return true;
        }
        let stamp = key.to_le_bytes();
        let stamp = stamp[..self.stamp_len].get(offset..).unwrap_or_default();
        let (front, back) = bytes.split_at(bytes.len().min(stamp.len()));
        let start = offset.saturating_sub(self.stamp_len);
        let filler = &self.tail[..self.tail.len() - 2];
        stamp.starts_with(front) && filler.get(start..).is_some_and(|rest| rest.starts_with(back))
    }

    /// Whether a whole value of that length is what was stored, as far as lengths tell.
    pub(super) fn is_len(&self, len: usize) -> bool {
        self.verify == Verify::Nothing || len == self.value_len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn workload(value_len: usize, get_percent: u8) -> Workload {
        Workload {
            get_percent,
            value_len,
            key_first: 5,
            key_count: 1000,
            distribution: Distribution::Uniform,
            verify: Verify::Values,
        }
    }

    #[test]
    fn requests_are_what_a_server_understands() {
        let requests = Requests::new(&workload(10, 50));
        let mut out = Vec::new();
        requests.encode(Operation { verb: Verb::Get, key: 98_765 }, &mut out);
        assert_eq!(out, b"*2\r\n$3\r\nGET\r\n$16\r\nuser:00000098765\r\n");
        out.clear();
        requests.encode(Operation { verb: Verb::Set, key: 258 }, &mut out);
        out.extend_from_slice(requests.tail());
        let head = b"*3\r\n$3\r\nSET\r\n$16\r\nuser:00000000258\r\n$10\r\n\x02\x01\0\0\0\0\0\0";
        assert!(out.starts_with(head) && out.ends_with(b"\r\n"), "{}", out.escape_ascii());
        assert_eq!(out.len(), head.len() + 2 + 2);
    }

    #[test]
    fn values_are_checked_part_by_part() {
        for len in [1, 7, 8, 9, 40] {
            let requests = Requests::new(&workload(len, 0));
            let mut value = Vec::new();
            requests.encode(Operation { verb: Verb::Set, key: 0x0102 }, &mut value);
            value.extend_from_slice(requests.tail());
            let value = &value[value.len() - len - 2..value.len() - 2];
            assert!(requests.is_len(len) && !requests.is_len(len + 1));
            for start in 0..len {
                for end in start + 1..=len {
                    let mut part = value[start..end].to_vec();
                    assert!(requests.is_part(0x0102, start, &part), "{len}: {start}..{end}");
                    for at in 0..part.len() {
                        part[at] ^= 4;
                        assert!(!requests.is_part(0x0102, start, &part), "{len}: {start}..{end}");
                        part[at] ^= 4;
                    }
                }
            }
            assert!(!requests.is_part(0x0103, 0, value));
            assert!(!requests.is_part(0x0102, 0, &[value, b"x"].concat()));
            assert!(!requests.is_part(0x0102, len + 1, b"x"));
        }
    }

    #[test]
    fn each_key_is_dealt_to_one_thread() {
        for threads in [1, 3, 7, 2000] {
            let mut keys = BTreeSet::new();
            for mut operations in Operations::each(&workload(1, 50), Verb::Set, threads) {
                while let Some(operation) = operations.next() {
                    assert_eq!(operation.verb, Verb::Set);
                    assert!(keys.insert(operation.key), "{} comes twice", operation.key);
                }
            }
            assert!(keys.into_iter().eq(5..1005), "{threads}");
        }
    }

    #[test]
    fn a_mixed_workload_has_its_share_of_gets() {
        for percent in [0, 30, 100] {
            let mut operations = Operations::drawn(&workload(1, percent), 1).remove(0);
            let drawn = (0..10_000).filter_map(|_| operations.next());
            let gets = drawn.filter(|operation| operation.verb == Verb::Get).count();
            assert!(gets.abs_diff(usize::from(percent) * 100) < 250, "{percent}: {gets}");
        }
    }
}
