//! Ed25519 signatures of mutable items, alone and many at once.
//!
//! A batch costs about half as much for each signature as one alone. It fails as a whole: then
//! each is
//! checked by itself, so that whoever sends one bad signature in each batch makes us do the work
//! of a
//! batch in vain; [`verify_all`] therefore takes small batches, and gives up on batches once one
//! has failed.
//!
//! A batch accepts what each check by itself accepts. The reverse does not hold for signatures that
//! the owner of a key has twisted on purpose: whether these pass is chance. They harm nobody but
//! him.

use ed25519_dalek::{Signature, Signer, Verifier, VerifyingKey, verify_batch};

use super::{KEY_LEN, MutableItem, SIGNATURE_LEN, write_signed};

/// Signatures in one batch, at most.
pub const BATCH_MAX: usize = 64;
/// Fewer are checked one by one.
const BATCH_MIN: usize = 4;

/// A key pair that signs items.
#[derive(Debug)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// The pair that belongs to a seed, which is what key files hold.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; KEY_LEN] {
        self.0.verifying_key().to_bytes()
    }

    /// Signs a value, bencoded.
    #[must_use]
    pub fn sign(&self, salt: &[u8], seq: i64, value: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut message = Vec::with_capacity(salt.len() + value.len() + 48);
        write_signed(salt, seq, value, &mut message);
        self.0.sign(&message).to_bytes()
    }
}

/// What a signature is checked over.
#[derive(Clone, Debug)]
pub struct Signed {
    key: [u8; KEY_LEN],
    signature: [u8; SIGNATURE_LEN],
    message: Vec<u8>,
}

impl Signed {
    /// Takes what is needed of an item.
    #[must_use]
    pub fn of(item: &MutableItem<'_>) -> Self {
        let mut message = Vec::with_capacity(item.salt.len() + item.value.len() + 48);
        write_signed(item.salt, item.seq, item.value, &mut message);
        Self { key: *item.key, signature: *item.signature, message }
    }

    /// Tells whether the signature is right.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.key) else { return false };
        key.verify(&self.message, &Signature::from_bytes(&self.signature)).is_ok()
    }
}

/// Tells of each signature whether it is right.
#[must_use]
pub fn verify_all(all: &[Signed]) -> Vec<bool> {
    let mut valid = Vec::with_capacity(all.len());
    let mut chunks = all.chunks(BATCH_MAX);
    for chunk in chunks.by_ref() {
        if chunk.len() >= BATCH_MIN && is_batch_valid(chunk) {
            valid.resize(valid.len() + chunk.len(), true);
            continue;
        }
        valid.extend(chunk.iter().map(Signed::is_valid));
        break;
    }
    // One batch failed, or was the short last one: the rest goes one by one.
    valid.extend(chunks.flatten().map(Signed::is_valid));
    valid
}

fn is_batch_valid(chunk: &[Signed]) -> bool {
    let keys: Result<Vec<_>, _> =
        chunk.iter().map(|signed| VerifyingKey::from_bytes(&signed.key)).collect();
    let Ok(keys) = keys else { return false };
    let messages: Vec<&[u8]> = chunk.iter().map(|signed| &signed.message[..]).collect();
    let signatures: Vec<_> =
        chunk.iter().map(|signed| Signature::from_bytes(&signed.signature)).collect();
    verify_batch(&messages, &signatures, &keys).is_ok()
}
