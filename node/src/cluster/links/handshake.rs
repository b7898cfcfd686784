//! [`Handshake`]: how the two ends of a link find out who they are, and prove that they know the
//! cluster's secret.
//!
//! ```text
//! initiator                                                    responder
//!     │ ── HELLO ────────────────────────────────────────────────> │ checks
//!  checks <──────────────────────────────────────────────── HELLO ─│ up, without a secret
//!     │                                                            │
//!     │ ── AUTH: code("initiator", both hellos) ─────────────────> │ checks
//!  checks <──────────────────── AUTH: code("responder", the same) ─│ up
//! ```
//!
//! Both hellos have a nonce, both ids and addresses are in them, and the role is in the code: a
//! proof is good for one link, one pair of nodes and one direction. The initiator proves first, so
//! that a stranger gets no code to guess the secret from.

use bytes::Bytes;

use crate::cluster::message::PROTOCOL_VERSION;
use crate::cluster::message::control::{ControlFrame, Hello, NONCE_LEN, PROOF_LEN, Refusal};
use crate::cluster::secret::MacKey;

const LABEL: &[u8] = b"kadring link 1";

/// Which end of a link this node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It has connected.
    Initiator,
    /// It was connected to.
    Responder,
}

impl Role {
    fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Responder,
            Self::Responder => Self::Initiator,
        }
    }
}

/// Why a handshake has ended without a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandshakeError {
    /// We refuse the other side.
    Refused(Refusal),
    /// It speaks that version of the protocol.
    OtherVersion(u32),
    /// It refuses us, and speaks that version.
    RefusedBy(Refusal, u32),
    /// It does not keep to the order of frames.
    Order,
}

#[derive(Debug)]
enum State {
    Hello,
    Proof(Hello),
}

/// A handshake under way.
#[derive(Debug)]
pub(super) struct Handshake {
    role: Role,
    own: Hello,
    state: State,
}

impl Handshake {
    /// Begins, and says what is to be sent.
    pub(super) fn new(role: Role, own: Hello) -> (Self, Option<ControlFrame>) {
        let first = (role == Role::Initiator).then(|| ControlFrame::Hello(own.clone()));
        (Self { role, own, state: State::Hello }, first)
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// What tells this link from others of the same initiator.
    pub(super) fn initiator_nonce(&self, peer: &Hello) -> [u8; NONCE_LEN] {
        match self.role {
            Role::Initiator => self.own.nonce,
            Role::Responder => peer.nonce,
        }
    }

    /// Takes a frame. Returns what is to be sent, and the other side once it is known.
    pub(super) fn handle_frame(
        &mut self,
        frame: ControlFrame,
        key: Option<&MacKey>,
    ) -> Result<(Option<ControlFrame>, Option<Hello>), HandshakeError> {
        match (&self.state, frame) {
            (_, ControlFrame::Refused { refusal, version }) => {
                Err(HandshakeError::RefusedBy(refusal, version))
            }
            (State::Hello, ControlFrame::OtherHello { version }) => {
                Err(HandshakeError::OtherVersion(version))
            }
            (State::Hello, ControlFrame::Hello(peer)) => self.handle_hello(peer, key),
            (State::Proof(peer), ControlFrame::Auth { proof }) => {
                let key = key.ok_or(HandshakeError::Order)?;
                self.check_proof(peer, &proof, key)?;
                let is_last = self.role == Role::Initiator;
                let answer = (!is_last).then(|| self.prove(peer, key));
                Ok((answer, Some(peer.clone())))
            }
            _ => Err(HandshakeError::Order),
        }
    }

    fn handle_hello(
        &mut self,
        peer: Hello,
        key: Option<&MacKey>,
    ) -> Result<(Option<ControlFrame>, Option<Hello>), HandshakeError> {
        peer.check(&self.own).map_err(HandshakeError::Refused)?;
        let answer = match (self.role, key) {
            (Role::Responder, _) => Some(ControlFrame::Hello(self.own.clone())),
            (Role::Initiator, Some(key)) => Some(self.prove(&peer, key)),
            (Role::Initiator, None) => None,
        };
        if key.is_none() {
            return Ok((answer, Some(peer)));
        }
        self.state = State::Proof(peer);
        Ok((answer, None))
    }

    fn prove(&self, peer: &Hello, key: &MacKey) -> ControlFrame {
        let bodies = self.bodies(peer);
        ControlFrame::Auth { proof: key.code(&parts(self.role, &bodies)) }
    }

    fn check_proof(
        &self,
        peer: &Hello,
        proof: &[u8; PROOF_LEN],
        key: &MacKey,
    ) -> Result<(), HandshakeError> {
        let bodies = self.bodies(peer);
        if key.is_code(&parts(self.role.other(), &bodies), proof) {
            Ok(())
        } else {
            Err(HandshakeError::Refused(Refusal::Proof))
        }
    }

    /// Both hellos, the initiator's first. Each tells its own length.
    fn bodies(&self, peer: &Hello) -> [Vec<u8>; 2] {
        match self.role {
            Role::Initiator => [self.own.body(), peer.body()],
            Role::Responder => [peer.body(), self.own.body()],
        }
    }
}

fn parts(prover: Role, bodies: &[Vec<u8>; 2]) -> [&[u8]; 4] {
    let role: &[u8] = match prover {
        Role::Initiator => b"initiator",
        Role::Responder => b"responder",
    };
    let [initiator, responder] = bodies;
    [LABEL, role, initiator, responder]
}

/// The frame that tells the other side why it is refused.
pub(super) fn refused(refusal: Refusal) -> Vec<Bytes> {
    ControlFrame::Refused { refusal, version: PROTOCOL_VERSION }.encode()
}

/// Where nonces come from: a keyed hash of how many there were.
#[derive(Debug)]
pub(super) struct Nonces {
    key: MacKey,
    count: u64,
}

impl Nonces {
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { key: MacKey::new(seed), count: 0 }
    }

    pub(super) fn draw(&mut self) -> [u8; NONCE_LEN] {
        self.count += 1;
        self.key.code(&[b"nonce", &self.count.to_be_bytes()])
    }

    /// A number that has nothing to do with the nonces.
    pub(super) fn number(&self, label: &[u8]) -> u64 {
        let code = self.key.code(&[b"number", label]);
        u64::from_be_bytes(*code.first_chunk().expect("32 bytes are more than 8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::message::control::feature;
    use crate::kademlia::NodeId;

    fn hello(node: u8, nonce: u8, has_secret: bool) -> Hello {
        Hello {
            cluster: NodeId([5; 20]),
            node: NodeId([node; 20]),
            boot: u64::from(node),
            features: if has_secret { feature::SECRET } else { 0 },
            nonce: [nonce; NONCE_LEN],
            address: Bytes::from_static(b"10.0.0.1:7400"),
        }
    }

    fn key(byte: u8) -> MacKey {
        MacKey::new([byte; 32])
    }

    fn begin(key: Option<&MacKey>) -> (Handshake, Handshake, ControlFrame) {
        let (initiator, first) = Handshake::new(Role::Initiator, hello(1, 1, key.is_some()));
        let (responder, none) = Handshake::new(Role::Responder, hello(2, 2, key.is_some()));
        assert_eq!(none, None);
        (initiator, responder, first.unwrap())
    }

    #[test]
    fn without_a_secret_hellos_are_enough() {
        let (mut initiator, mut responder, first) = begin(None);
        let (answer, peer) = responder.handle_frame(first, None).unwrap();
        assert_eq!(peer, Some(hello(1, 1, false)));
        let (none, peer) = initiator.handle_frame(answer.unwrap(), None).unwrap();
        assert_eq!((none, peer), (None, Some(hello(2, 2, false))));
    }

    #[test]
    fn with_a_secret_both_prove_that_they_know_it() {
        let key = key(3);
        let (mut initiator, mut responder, first) = begin(Some(&key));
        let (answer, peer) = responder.handle_frame(first, Some(&key)).unwrap();
        assert_eq!(peer, None);
        let (proof, peer) = initiator.handle_frame(answer.unwrap(), Some(&key)).unwrap();
        assert_eq!(peer, None);
        let (answer, peer) = responder.handle_frame(proof.unwrap(), Some(&key)).unwrap();
        assert_eq!(peer, Some(hello(1, 1, true)));
        let (none, peer) = initiator.handle_frame(answer.unwrap(), Some(&key)).unwrap();
        assert_eq!((none, peer), (None, Some(hello(2, 2, true))));
    }

    /// Runs a handshake with these keys and nonces up to the initiator's proof.
    fn proof_of(key: &MacKey, nonces: [u8; 2]) -> ControlFrame {
        let (mut initiator, _) = Handshake::new(Role::Initiator, hello(1, nonces[0], true));
        let other = ControlFrame::Hello(hello(2, nonces[1], true));
        initiator.handle_frame(other, Some(key)).unwrap().0.unwrap()
    }

    #[track_caller]
    fn check_refused(proof: ControlFrame) {
        let (_, mut responder, first) = begin(Some(&key(3)));
        responder.handle_frame(first, Some(&key(3))).unwrap();
        let refused = Err(HandshakeError::Refused(Refusal::Proof));
        assert_eq!(responder.handle_frame(proof, Some(&key(3))), refused);
    }

    #[test]
    fn another_secret_is_refused() {
        check_refused(proof_of(&key(4), [1, 2]));
    }

    #[test]
    fn a_proof_of_another_link_is_refused() {
        check_refused(proof_of(&key(3), [1, 3]));
        check_refused(proof_of(&key(3), [3, 2]));
    }

    #[test]
    fn a_proof_that_is_sent_back_is_refused() {
        // The responder's own proof, had it been made to prove first.
        let (handshake, _) = Handshake::new(Role::Responder, hello(2, 2, true));
        check_refused(handshake.prove(&hello(1, 1, true), &key(3)));
    }

    #[test]
    fn a_responder_that_does_not_know_the_secret_is_refused() {
        let (mut initiator, _, _) = begin(Some(&key(3)));
        let hello = ControlFrame::Hello(hello(2, 2, true));
        let (proof, _) = initiator.handle_frame(hello, Some(&key(3))).unwrap();
        // The best that it can do is to send the initiator's proof back.
        let refused = Err(HandshakeError::Refused(Refusal::Proof));
        assert_eq!(initiator.handle_frame(proof.unwrap(), Some(&key(3))), refused);
    }

    #[test]
    fn frames_out_of_order_are_refused() {
        let (_, mut responder, _) = begin(None);
        let auth = ControlFrame::Auth { proof: [0; PROOF_LEN] };
        assert_eq!(responder.handle_frame(auth, None), Err(HandshakeError::Order));
        let (_, mut responder, first) = begin(Some(&key(3)));
        responder.handle_frame(first.clone(), Some(&key(3))).unwrap();
        assert_eq!(responder.handle_frame(first, Some(&key(3))), Err(HandshakeError::Order));
    }

    #[test]
    fn nonces_do_not_repeat() {
        let mut nonces = Nonces::new([1; 32]);
        let number = nonces.number(b"boot");
        let drawn: std::collections::BTreeSet<_> = (0..1_000).map(|_| nonces.draw()).collect();
        assert_eq!(drawn.len(), 1_000);
        assert_eq!(nonces.number(b"boot"), number);
        assert_ne!(Nonces::new([2; 32]).draw(), Nonces::new([1; 32]).draw());
    }
}
