//! Write tokens: proof that who writes has asked from the same address before (BEP 5, "Queries").
//!
//! A token is the keyed hash of an epoch, the asker's IP address (not its port: a NAT may change
//! it)
//! and the target. The epoch's key is derived from one secret; a token of the current or the last
//! epoch is good, so it lives 5 to 10 minutes. The secret is what survives a restart
//! ([`TokenKeys::encode`]): writes under way then go on.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions)]

use std::net::IpAddr;

use crate::kademlia::NodeId;

use super::siphash::SipKey;

/// Bytes of a token.
pub const TOKEN_LEN: usize = 8;
/// How long an epoch lasts (BEP 5: the secret changes every five minutes).
pub const EPOCH_MS: u64 = 5 * 60 * 1000;

const STATE_VERSION: u8 = 1;

/// A write token.
pub type Token = [u8; TOKEN_LEN];

/// Makes and checks write tokens.
#[derive(Clone, Debug)]
pub struct TokenKeys {
    secret: SipKey,
    epoch: u64,
    current: SipKey,
    last: SipKey,
}

impl TokenKeys {
    /// Begins with a secret that nobody else knows.
    #[must_use]
    pub fn new(secret: [u8; 16]) -> Self {
        let secret = SipKey(secret);
        Self { secret, epoch: 0, current: secret.derive(0), last: secret.derive(u64::MAX) }
    }

    /// The state to keep: 17 bytes, `version 1` and the secret.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut state = vec![STATE_VERSION];
        state.extend_from_slice(&self.secret.0);
        state
    }

    /// Goes on from a kept state; `None` if it is none.
    #[must_use]
    pub fn decode(state: &[u8]) -> Option<Self> {
        let (version, secret) = state.split_first()?;
        (*version == STATE_VERSION).then_some(())?;
        Some(Self::new(secret.try_into().ok()?))
    }

    /// The token for an address and a target.
    pub fn token(&mut self, clock_ms: u64, ip: IpAddr, target: &NodeId) -> Token {
        self.turn(clock_ms);
        make(&self.current, ip, target)
    }

    /// Tells whether the token was given to this address for this target lately.
    pub fn is_valid(&mut self, clock_ms: u64, ip: IpAddr, target: &NodeId, token: &[u8]) -> bool {
        self.turn(clock_ms);
        let Ok(token) = Token::try_from(token) else { return false };
        // Both are compared, whole, whatever the first says: time tells nothing.
        let found = u64::from_le_bytes(token);
        let matches = [&self.current, &self.last].map(|key| {
            let difference = found ^ u64::from_le_bytes(make(key, ip, target));
            std::hint::black_box(difference) == 0
        });
        matches[0] | matches[1]
    }

    fn turn(&mut self, clock_ms: u64) {
        let epoch = clock_ms.checked_div(EPOCH_MS).unwrap_or(0);
        if epoch != self.epoch {
            self.epoch = epoch;
            self.current = self.secret.derive(epoch);
            self.last = self.secret.derive(epoch.wrapping_sub(1));
        }
    }
}

fn make(key: &SipKey, ip: IpAddr, target: &NodeId) -> Token {
    let hash = match ip {
        IpAddr::V4(ip) => key.hash(&[&ip.octets(), &target.0]),
        IpAddr::V6(ip) => key.hash(&[&ip.octets(), &target.0]),
    };
    hash.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn token_is_bound_to_address_and_target() {
        let mut keys = TokenKeys::new([3; 16]);
        let (here, target) = (ip("192.0.2.1"), NodeId([1; 20]));
        let token = keys.token(1000, here, &target);
        assert!(keys.is_valid(1000, here, &target, &token));
        assert!(!keys.is_valid(1000, ip("192.0.2.2"), &target, &token));
        assert!(!keys.is_valid(1000, here, &NodeId([2; 20]), &token));
        assert!(!keys.is_valid(1000, here, &target, token.get(..7).unwrap()));
        assert!(!keys.is_valid(1000, here, &target, &[]));
        let six = ip("2001:db8::1");
        let token = keys.token(1000, six, &target);
        assert!(keys.is_valid(1000, six, &target, &token));
    }

    #[test]
    fn token_lives_until_the_end_of_the_next_epoch() {
        let (here, target) = (ip("192.0.2.1"), NodeId([1; 20]));
        let mut keys = TokenKeys::new([3; 16]);
        let token = keys.token(EPOCH_MS, here, &target);
        assert!(keys.is_valid(3 * EPOCH_MS - 1, here, &target, &token));
        assert!(!keys.is_valid(3 * EPOCH_MS, here, &target, &token));
    }

    #[test]
    fn restart_voids_no_token() {
        let (here, target) = (ip("192.0.2.1"), NodeId([1; 20]));
        let mut before = TokenKeys::new([3; 16]);
        let token = before.token(EPOCH_MS, here, &target);
        let mut after = TokenKeys::decode(&before.encode()).unwrap();
        assert!(after.is_valid(2 * EPOCH_MS, here, &target, &token));
        for bad in [&[][..], &[1], &[2; 17], &[1; 18]] {
            assert!(TokenKeys::decode(bad).is_none());
        }
    }

    #[test]
    fn secret_is_not_printed() {
        assert!(!format!("{:?}", TokenKeys::new([0xAB; 16])).contains("171"));
    }
}
