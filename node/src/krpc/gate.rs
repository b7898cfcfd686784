//! [`Gate`]: which datagrams of a private cluster reach the node: limits for each source, and the
//! seal, if the cluster has a secret.
//!
//! With a secret, strangers are what is limited: a source that sends much without a right seal is
//! not even checked any more, unless it names a sender that is known. So a flood costs little, and
//! who forges a member's address does not shut that member out. Without a secret the limit holds
//! for everybody.

use std::net::IpAddr;

use super::seal::{OpenError, Opener, SealCounters};
use crate::io::Monotonic;
use crate::mainline::rate_limit::{RateLimit, RateLimits};

/// Why a datagram does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Its source sends too much.
    #[error("too many from its source")]
    Limited,
    /// Its seal is missing or wrong.
    #[error(transparent)]
    Seal(#[from] OpenError),
}

/// The way in for datagrams.
#[derive(Debug)]
pub struct Gate {
    rates: RateLimit,
    opener: Option<Opener>,
    limited: u64,
}

impl Gate {
    /// Starts with these limits. `seed` is secret and random.
    #[must_use]
    pub fn new(limits: RateLimits, seed: [u8; 16], opener: Option<Opener>) -> Self {
        Self { rates: RateLimit::new(limits, seed), opener, limited: 0 }
    }

    /// Checks a datagram, and returns the message in it.
    ///
    /// # Errors
    /// [`Stopped`]; it is counted, and not to be answered.
    pub fn pass<'a>(
        &mut self,
        now: Monotonic,
        from: IpAddr,
        datagram: &'a [u8],
    ) -> Result<&'a [u8], Stopped> {
        let is_known = self.opener.as_ref().is_some_and(|opener| opener.is_known(datagram));
        if !is_known && !self.rates.admit(now.0, from) {
            self.limited = self.limited.saturating_add(1);
            return Err(Stopped::Limited);
        }
        match &mut self.opener {
            Some(opener) => Ok(opener.open(datagram)?),
            None => Ok(datagram),
        }
    }

    /// Datagrams stopped because of their source.
    #[must_use]
    pub fn limited(&self) -> u64 {
        self.limited
    }

    /// Counters of seals; all zero without a secret.
    #[must_use]
    pub fn seals(&self) -> SealCounters {
        self.opener.as_ref().map(Opener::counters).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::secret::MacKey;
    use crate::krpc::seal::Sealer;
    use crate::mainline::rate_limit::Tier;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn gate(has_secret: bool) -> Gate {
        let tier = Tier { per_second: 1, burst: 10 };
        let limits = RateLimits { machine: tier, subnet: tier, rows: 4, loopback_exempt: true };
        let opener = has_secret.then(|| Opener::new(MacKey::new([1; 32]), 1));
        Gate::new(limits, [1; 16], opener)
    }

    #[test]
    fn without_a_secret_everybody_is_limited() {
        let mut gate = gate(false);
        let passed = (0..50).filter(|_| gate.pass(Monotonic(0), FROM, b"de") == Ok(b"de"));
        assert_eq!(passed.count(), 10);
        assert_eq!(gate.limited(), 40);
    }

    #[test]
    fn with_a_secret_a_flood_in_its_name_does_not_shut_a_member_out() {
        let mut gate = gate(true);
        let mut sealer = Sealer::new(MacKey::new([1; 32]), 7);
        let mut sealed = || {
            let mut datagram = b"de".to_vec();
            sealer.seal(&mut datagram);
            datagram
        };
        assert!(gate.pass(Monotonic(0), FROM, &sealed()).is_ok());
        let forged = [b'x'; 60];
        let flood: Vec<_> =
            (0..50).filter_map(|_| gate.pass(Monotonic(0), FROM, &forged).err()).collect();
        assert_eq!(flood.iter().filter(|stopped| **stopped == Stopped::Limited).count(), 41);
        assert_eq!(gate.seals().forged, 9);
        for _ in 0..50 {
            assert!(gate.pass(Monotonic(0), FROM, &sealed()).is_ok());
        }
    }
}
