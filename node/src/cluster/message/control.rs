//! [`ControlFrame`]: what the two ends of a link say to each other about the link itself.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use bytes::Bytes;

use super::codec::MessageError;
use super::fields::{FieldReader, FieldWriter};
use super::{PROTOCOL_VERSION, frame};
use crate::kademlia::NodeId;

/// Bytes of a nonce.
pub const NONCE_LEN: usize = 32;
/// Bytes of a proof.
pub const PROOF_LEN: usize = 32;

/// Bits of [`Hello::features`].
pub mod feature {
    /// The node has a secret and asks for proof of it.
    pub const SECRET: u64 = 1;
}

/// The first frame of a link, in both directions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The sender's cluster.
    pub cluster: NodeId,
    /// Itself.
    pub node: NodeId,
    /// Drawn anew by each of its processes.
    pub boot: u64,
    /// Bits of [`feature`]; others are passed over.
    pub features: u64,
    /// Drawn anew for each link.
    pub nonce: [u8; NONCE_LEN],
    /// Where it can be reached, as text.
    pub address: Bytes,
}

/// Why a link is refused, as it is told to the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// Another protocol.
    #[error("it speaks another protocol version")]
    Version,
    /// Another cluster.
    #[error("it is of another cluster")]
    Cluster,
    /// The receiver's own id.
    #[error("it has our own id")]
    Own,
    /// One side has a secret and the other has none.
    #[error("only one of us has a cluster secret")]
    Secret,
    /// The proof of the secret is wrong.
    #[error("its cluster secret is not ours")]
    Proof,
    /// Too many links, or the node is stopping.
    #[error("it takes no further links")]
    Busy,
}

/// Why a link is closed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByeReason {
    /// It is not needed: nobody uses it, or there is another one.
    Unneeded,
    /// The node stops: queries will not be answered any more.
    Stopping,
}

/// A frame about the link itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// `KADP.HELLO`.
    Hello(Hello),
    /// `KADP.HELLO` of a version of the protocol that is not ours, of which nothing else is known.
    OtherHello {
        /// Which version.
        version: u32,
    },
    /// `KADP.AUTH`: proof of the secret.
    Auth {
        /// The code over both hellos.
        proof: [u8; PROOF_LEN],
    },
    /// `KADP.REFUSED`: the last frame of a link that does not come up.
    Refused {
        /// Why.
        refusal: Refusal,
        /// The version of the protocol that the sender speaks.
        version: u32,
    },
    /// `KADP.BEAT`: answered in kind, so that both know that the link is one.
    Beat {
        /// Which.
        number: u64,
        /// Whether it answers one.
        is_answer: bool,
    },
    /// `KADP.BYE`: the sender sends nothing more, and the receiver should do the same.
    Bye {
        /// Why.
        reason: ByeReason,
    },
}

impl ControlFrame {
    /// Writes the frame.
    #[must_use]
    pub fn encode(&self) -> Vec<Bytes> {
        let body = FieldWriter::default();
        let (verb, body): (&[u8], FieldWriter) = match self {
            Self::Hello(hello) => (b"KADP.HELLO", hello.write(body)),
            Self::OtherHello { version } => (b"KADP.HELLO", body.bytes(&version.to_be_bytes())),
            Self::Auth { proof } => (b"KADP.AUTH", body.bytes(proof)),
            Self::Refused { refusal, version } => {
                let code = match refusal {
                    Refusal::Version => 0,
                    Refusal::Cluster => 1,
                    Refusal::Own => 2,
                    Refusal::Secret => 3,
                    Refusal::Proof => 4,
                    Refusal::Busy => 5,
                };
                (b"KADP.REFUSED", body.u8(code).bytes(&version.to_be_bytes()))
            }
            Self::Beat { number, is_answer } => {
                (b"KADP.BEAT", body.u64(*number).u8(u8::from(*is_answer)))
            }
            Self::Bye { reason } => {
                (b"KADP.BYE", body.u8(u8::from(*reason == ByeReason::Stopping)))
            }
        };
        frame::encode(verb, &body.0, None)
    }

    /// Reads a frame; none, if it is none about the link.
    pub(super) fn decode(verb: &[u8], body: &[u8]) -> Result<Option<Self>, MessageError> {
        let mut fields = FieldReader::new(body);
        let frame = match verb {
            b"KADP.HELLO" => {
                let version = fields.u32()?;
                if version != PROTOCOL_VERSION {
                    return Ok(Some(Self::OtherHello { version }));
                }
                Self::Hello(Hello::read(&mut fields)?)
            }
            b"KADP.AUTH" => Self::Auth { proof: fields.array()? },
            b"KADP.REFUSED" => {
                let refusal = match fields.u8()? {
                    0 => Refusal::Version,
                    1 => Refusal::Cluster,
                    2 => Refusal::Own,
                    3 => Refusal::Secret,
                    4 => Refusal::Proof,
                    5 => Refusal::Busy,
                    _ => return Err(MessageError::Body),
                };
                Self::Refused { refusal, version: fields.u32()? }
            }
            b"KADP.BEAT" => Self::Beat { number: fields.u64()?, is_answer: fields.flag()? },
            b"KADP.BYE" => Self::Bye {
                reason: if fields.flag()? { ByeReason::Stopping } else { ByeReason::Unneeded },
            },
            _ => return Ok(None),
        };
        fields.finish()?;
        Ok(Some(frame))
    }

    /// Whether it belongs to the handshake.
    #[must_use]
    pub fn is_handshake(&self) -> bool {
        !matches!(self, Self::Beat { .. } | Self::Bye { .. })
    }
}

impl Hello {
    /// The body of its frame: what is proven about it, too.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        self.write(FieldWriter::default()).0
    }

    fn write(&self, body: FieldWriter) -> FieldWriter {
        let body = body.bytes(&PROTOCOL_VERSION.to_be_bytes()).bytes(&self.cluster.0);
        let body = body.bytes(&self.node.0).u64(self.boot).u64(self.features);
        body.bytes(&self.nonce).address(&self.address)
    }

    fn read(fields: &mut FieldReader<'_>) -> Result<Self, MessageError> {
        Ok(Self {
            cluster: fields.node()?,
            node: fields.node()?,
            boot: fields.u64()?,
            features: fields.u64()?,
            nonce: fields.array()?,
            address: fields.address()?,
        })
    }

    /// Checks it against our own.
    ///
    /// # Errors
    /// What to refuse it for.
    pub fn check(&self, own: &Self) -> Result<(), Refusal> {
        if self.cluster != own.cluster {
            return Err(Refusal::Cluster);
        }
        if self.node == own.node {
            return Err(Refusal::Own);
        }
        if (self.features ^ own.features) & feature::SECRET != 0 {
            return Err(Refusal::Secret);
        }
        Ok(())
    }
}
