//! [`Reject`]: why a query is answered with an error (BEP 5, "Errors"; BEP 44, "Errors").
//!
//! libtorrent's client counts every error against the node that sends it, as it does a timeout:
//! errors are for queries that are really wrong. The texts are ASCII (one client takes no others)
//! and follow libtorrent's where it has one.

/// Why a query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// The arguments are no dictionary, or more than that.
    #[error("invalid arguments")]
    Malformed,
    /// A key is not there.
    #[error("missing '{0}' key")]
    Missing(&'static str),
    /// A key has a value of another kind or length.
    #[error("invalid value for '{0}'")]
    Invalid(&'static str),
    /// A put is not written as bencode prescribes.
    #[error("unsorted dictionary key")]
    NotCanonical,
    /// A number below 0 where none can be.
    #[error("invalid (negative) sequence number")]
    NegativeSeq,
    /// No port to announce.
    #[error("invalid port")]
    Port,
    /// The write token was not given to this address for this target, or long ago.
    #[error("invalid token")]
    Token,
    /// Nothing that we know of, and without a target.
    #[error("unknown message")]
    UnknownMethod,
    /// The value is longer than an item may be.
    #[error("message too big")]
    ValueTooLong,
    /// The signature is not that of the key over salt, seq and value.
    #[error("invalid signature")]
    Signature,
    /// The salt is longer than a salt may be.
    #[error("salt too big")]
    SaltTooLong,
    /// The item held has another seq than the one to be replaced.
    #[error("CAS mismatch")]
    Cas,
    /// The item held is as new or newer.
    #[error("old sequence number")]
    OldSeq,
    /// The target is far from us, or we are full of nearer ones.
    #[error("not a storage node for this target")]
    NotStored,
    /// Too much is under way.
    #[error("busy")]
    Busy,
    /// The engine could not read or write.
    #[error("storage failed")]
    Storage,
}

impl Reject {
    /// The KRPC error code.
    #[must_use]
    pub fn code(&self) -> i64 {
        match self {
            Self::NotStored => 201,
            Self::Busy | Self::Storage => 202,
            Self::Malformed
            | Self::Missing(_)
            | Self::Invalid(_)
            | Self::NotCanonical
            | Self::NegativeSeq
            | Self::Port
            | Self::Token => 203,
            Self::UnknownMethod => 204,
            Self::ValueTooLong => 205,
            Self::Signature => 206,
            Self::SaltTooLong => 207,
            Self::Cas => 301,
            Self::OldSeq => 302,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_that_others_send() {
        assert_eq!(Reject::Missing("token").to_string(), "missing 'token' key");
        assert_eq!(Reject::Invalid("id").to_string(), "invalid value for 'id'");
        assert_eq!((Reject::Cas.code(), Reject::OldSeq.code()), (301, 302));
    }
}
