//! [`ClusterSecret`]: what all nodes of a cluster know and nobody else does.
//!
//! The bytes of the secret's file are not used as they are: HKDF (RFC 5869) with SHA-256 derives
//! from them one key for links and another for datagrams, so that nothing that is proven with one
//! can be used for the other.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The shortest secret, in bytes.
pub const SECRET_LEN_MIN: usize = 16;
/// The longest secret, in bytes.
pub const SECRET_LEN_MAX: usize = 4_096;

const SALT: &[u8] = b"kadring cluster secret";
const LINK_LABEL: &[u8] = b"link 1";
const DATAGRAM_LABEL: &[u8] = b"datagram 1";

/// Why a file holds no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// It would be guessed.
    #[error("{len} bytes, at least {SECRET_LEN_MIN} are needed")]
    TooShort {
        /// Its length without line ends.
        len: usize,
    },
    /// It is another file.
    #[error("{len} bytes, at most {SECRET_LEN_MAX} are a secret")]
    TooLong {
        /// Its length without line ends.
        len: usize,
    },
}

/// A key for HMAC-SHA-256.
#[derive(Clone, PartialEq, Eq)]
pub struct MacKey([u8; 32]);

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

impl MacKey {
    /// Takes 32 bytes for a key.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The code of the parts, one behind the other.
    #[must_use]
    pub fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.mac(parts).finalize().into_bytes().into()
    }

    /// Whether `code` begins the code of the parts. Takes the same time for all of one length.
    #[must_use]
    pub fn is_code(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.mac(parts).verify_truncated_left(code).is_ok()
    }

    fn mac(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        mac(&self.0, parts)
    }
}

/// The keys derived from a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterSecret {
    /// Proves at the start of a link that this node belongs to the cluster.
    pub link: MacKey,
    /// Seals datagrams.
    pub datagram: MacKey,
}

impl ClusterSecret {
    /// Derives the keys from the bytes of the file. Line ends at its end do not count.
    ///
    /// # Errors
    /// [`SecretError`], if they are too few or too many.
    pub fn new(file: &[u8]) -> Result<Self, SecretError> {
        let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
        let len = file.iter().rposition(|byte| !is_end(byte)).map_or(0, |last| last + 1);
        if len < SECRET_LEN_MIN {
            return Err(SecretError::TooShort { len });
        }
        if len > SECRET_LEN_MAX {
            return Err(SecretError::TooLong { len });
        }
        let secret = &file[..len];
        let key = |label| MacKey(derive(SALT, secret, label));
        Ok(Self { link: key(LINK_LABEL), datagram: key(DATAGRAM_LABEL) })
    }
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}

/// HKDF-SHA-256 with one block of output.
fn derive(salt: &[u8], secret: &[u8], label: &[u8]) -> [u8; 32] {
    let extracted = mac(salt, &[secret]).finalize().into_bytes();
    mac(&extracted, &[label, &[1]]).finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 5869, appendix A.1: the first 32 of its 42 bytes.
    #[test]
    fn keys_are_derived_as_in_rfc_5869() {
        let salt: Vec<u8> = (0x00..=0x0c).collect();
        let label: Vec<u8> = (0xf0..=0xf9).collect();
        let key = derive(&salt, &[0x0b; 22], &label);
        let expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf";
        assert_eq!(key.map(|byte| format!("{byte:02x}")).concat(), expected);
    }

    #[test]
    fn keys_differ_by_use_and_by_secret_but_not_by_line_end() {
        let secret = ClusterSecret::new(b"0123456789abcdef").unwrap();
        assert_ne!(secret.link, secret.datagram);
        assert_eq!(ClusterSecret::new(b"0123456789abcdef\r\n\n"), Ok(secret.clone()));
        assert_ne!(ClusterSecret::new(b"0123456789abcdeg"), Ok(secret));
    }

    #[test]
    fn what_is_no_secret_is_refused_by_name() {
        assert_eq!(ClusterSecret::new(b"\n\n"), Err(SecretError::TooShort { len: 0 }));
        assert_eq!(ClusterSecret::new(&[b'a'; 15]), Err(SecretError::TooShort { len: 15 }));
        assert_eq!(ClusterSecret::new(&[b'a'; 4_097]), Err(SecretError::TooLong { len: 4_097 }));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", ClusterSecret::new(b"0123456789abcdef").unwrap());
        assert_eq!(shown, "ClusterSecret { link: MacKey(..), datagram: MacKey(..) }");
    }

    #[test]
    fn a_code_is_told_from_every_other() {
        let key = MacKey::new([7; 32]);
        let code = key.code(&[b"ab", b"c"]);
        assert_eq!(code, key.code(&[b"abc"]));
        assert!(key.is_code(&[b"abc"], &code));
        assert!(key.is_code(&[b"abc"], &code[..16]));
        assert!(!key.is_code(&[b"abd"], &code));
        assert!(!MacKey::new([8; 32]).is_code(&[b"abc"], &code));
        for bit in 0..256 {
            let mut other = code;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.is_code(&[b"abc"], &other), "bit {bit}");
        }
    }
}
