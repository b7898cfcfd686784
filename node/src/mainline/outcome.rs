//! What the replicas said to a get or a put: the client's side, without I/O.
//!
//! The lookup and the sending are others' business. Each answer is counted for itself, so that a
//! caller sees which replica stored, which refused and why, and which said nothing.

use std::net::SocketAddr;

use crate::kademlia::NodeId;

use super::item::{Item, MutableItem, Record, Signed};
use super::values::Values;

/// Replicas counted for one operation.
pub const REPLICAS_MAX: usize = 64;

/// What a replica said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicaOutcome {
    /// It has stored the item.
    Stored,
    /// It is this node itself, and has stored the item, since it knows no other one.
    Kept,
    /// It has the item, of this seq if mutable.
    Holds(Option<i64>),
    /// It does not have it, or none newer than asked for.
    Lacks,
    /// It sent something that does not belong there, or with a bad signature.
    Forged,
    /// It answered with an error.
    Refused(i64),
    /// It did not answer.
    Silent,
}

/// Collects outcomes of a put or an announce.
#[derive(Clone, Debug, Default)]
pub struct PutOutcome {
    replicas: Vec<(SocketAddr, ReplicaOutcome)>,
}

impl PutOutcome {
    /// Takes a replica's answer; each counts once.
    pub fn on_outcome(&mut self, from: SocketAddr, outcome: ReplicaOutcome) {
        note(&mut self.replicas, from, outcome);
    }

    /// Everyone's answer, in the order they came.
    #[must_use]
    pub fn replicas(&self) -> &[(SocketAddr, ReplicaOutcome)] {
        &self.replicas
    }

    /// How many have stored it, this node itself among them.
    #[must_use]
    pub fn stored(&self) -> usize {
        use ReplicaOutcome::{Kept, Stored};
        self.replicas.iter().filter(|(_, outcome)| matches!(outcome, Stored | Kept)).count()
    }

    /// The error that most of those who answered gave, if that is more than half: 301 and 302 tell
    /// that somebody else has written.
    #[must_use]
    pub fn conflict(&self) -> Option<i64> {
        let answered =
            self.replicas.iter().filter(|(_, outcome)| *outcome != ReplicaOutcome::Silent).count();
        [301, 302].into_iter().find(|code| {
            let refused = ReplicaOutcome::Refused(*code);
            self.replicas.iter().filter(|(_, outcome)| *outcome == refused).count() * 2 > answered
        })
    }
}

/// Collects outcomes of a get, and the best item.
#[derive(Clone, Debug)]
pub struct GetOutcome {
    target: NodeId,
    salt: Vec<u8>,
    replicas: Vec<(SocketAddr, ReplicaOutcome)>,
    best: Option<Vec<u8>>,
}

impl GetOutcome {
    /// Waits for an item at a target; of a mutable one the salt must be known.
    #[must_use]
    pub fn new(target: NodeId, salt: &[u8]) -> Self {
        Self { target, salt: salt.to_vec(), replicas: Vec::new(), best: None }
    }

    /// Where it is looked for.
    #[must_use]
    pub fn target(&self) -> NodeId {
        self.target
    }

    /// Takes a replica's response. Returns true if it brought a better item than all before: of
    /// mutable ones a higher seq, then the greater value.
    pub fn on_values(&mut self, from: SocketAddr, values: &Values<'_>) -> bool {
        let Some(item) = values.item(&self.target, &self.salt) else {
            let outcome =
                if values.value.is_some() { ReplicaOutcome::Forged } else { ReplicaOutcome::Lacks };
            note(&mut self.replicas, from, outcome);
            return false;
        };
        let seq = match &item {
            Item::Immutable(_) => None,
            Item::Mutable(item) if Signed::of(item).is_valid() => Some(item.seq),
            Item::Mutable(_) => {
                note(&mut self.replicas, from, ReplicaOutcome::Forged);
                return false;
            }
        };
        note(&mut self.replicas, from, ReplicaOutcome::Holds(seq));
        let is_better = match (self.best(), &item) {
            (None, _) => true,
            (Some(Item::Mutable(best)), Item::Mutable(item)) => rank(item) > rank(&best),
            _ => false,
        };
        if is_better {
            self.best = Some(Record { put_ms: 0, item }.encode());
        }
        is_better
    }

    /// Takes a replica's error or silence.
    pub fn on_outcome(&mut self, from: SocketAddr, outcome: ReplicaOutcome) {
        note(&mut self.replicas, from, outcome);
    }

    /// The best item so far.
    #[must_use]
    pub fn best(&self) -> Option<Item<'_>> {
        let record = self.best.as_deref().map(Record::decode)?;
        record.ok().map(|record| record.item)
    }

    /// Everyone's answer, in the order they came.
    #[must_use]
    pub fn replicas(&self) -> &[(SocketAddr, ReplicaOutcome)] {
        &self.replicas
    }

    /// How many hold the best item.
    #[must_use]
    pub fn copies(&self) -> usize {
        let seq = match self.best() {
            Some(Item::Mutable(item)) => Some(item.seq),
            Some(Item::Immutable(_)) => None,
            None => return 0,
        };
        let holds = ReplicaOutcome::Holds(seq);
        self.replicas.iter().filter(|(_, outcome)| *outcome == holds).count()
    }
}

fn rank<'a>(item: &MutableItem<'a>) -> (i64, &'a [u8]) {
    (item.seq, item.value)
}

fn note(
    replicas: &mut Vec<(SocketAddr, ReplicaOutcome)>,
    from: SocketAddr,
    outcome: ReplicaOutcome,
) {
    let is_known = replicas.iter().any(|(address, _)| *address == from);
    if !is_known && replicas.len() < REPLICAS_MAX {
        replicas.push((from, outcome));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mainline::item::{SigningKey, immutable_target, mutable_target};

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([8, 8, 8, last], 1))
    }

    #[test]
    fn best_of_several_versions_is_kept_and_forgeries_are_named() {
        let signer = SigningKey::from_seed(&[1; 32]);
        let key = signer.public();
        let target = mutable_target(&key, b"s");
        let mut outcome = GetOutcome::new(target, b"s");
        let mut answer = |last: u8, seq: i64, value: &[u8], signed: &[u8]| {
            let signature = signer.sign(b"s", seq, signed);
            let values = Values {
                key: Some(&key),
                seq: Some(seq),
                signature: Some(&signature),
                value: Some(value),
                ..Values::default()
            };
            outcome.on_values(address(last), &values)
        };
        assert!(answer(1, 5, b"1:a", b"1:a"));
        assert!(!answer(2, 4, b"1:z", b"1:z"));
        assert!(answer(3, 5, b"1:b", b"1:b"), "the greater value of one seq");
        assert!(!answer(4, 9, b"1:c", b"1:d"), "a bad signature");
        outcome.on_outcome(address(5), ReplicaOutcome::Silent);
        assert_eq!(outcome.replicas()[3].1, ReplicaOutcome::Forged);
        assert_eq!(outcome.replicas().len(), 5);
    }

    #[test]
    fn immutable_item_is_the_first_that_fits() {
        let mut outcome = GetOutcome::new(immutable_target(b"i1e"), b"");
        let with = |value| Values { value, ..Values::default() };
        assert!(!outcome.on_values(address(1), &with(Some(b"i2e"))));
        assert!(!outcome.on_values(address(2), &with(None)));
        assert!(outcome.on_values(address(3), &with(Some(b"i1e"))));
        assert!(!outcome.on_values(address(4), &with(Some(b"i1e"))));
        assert_eq!((outcome.best(), outcome.copies()), (Some(Item::Immutable(b"i1e")), 2));
        let kinds: Vec<_> = outcome.replicas().iter().map(|(_, kind)| kind.clone()).collect();
        use ReplicaOutcome::{Forged, Holds, Lacks};
        assert_eq!(kinds, [Forged, Lacks, Holds(None), Holds(None)]);
    }

    #[test]
    fn conflict_is_what_most_say() {
        let mut outcome = PutOutcome::default();
        outcome.on_outcome(address(1), ReplicaOutcome::Refused(302));
        outcome.on_outcome(address(2), ReplicaOutcome::Stored);
        outcome.on_outcome(address(3), ReplicaOutcome::Silent);
        assert_eq!((outcome.stored(), outcome.conflict()), (1, None));
        outcome.on_outcome(address(4), ReplicaOutcome::Refused(302));
        assert_eq!(outcome.conflict(), Some(302));
    }
}
