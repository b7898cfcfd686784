//! Fuzz targets: plain functions over bytes, one for each decoder, and a seeded mutator that runs
//! them on stable. `tests/fuzz` has the same functions for cargo-fuzz.
//!
//! A target panics when its decoder does, or when what it has decoded does not survive being
//! encoded again. Valid inputs are mutated and, as often as not, sealed again with a right
//! checksum, so that what lies behind the checksums is reached too.

pub mod extents;
pub mod files;
pub mod krpc;
pub mod links;
pub mod mainline;
pub mod mutation;
pub mod targets;
#[cfg(test)]
mod tests;

use fastrand::Rng;

/// A decoder under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it decodes.
    pub name: &'static str,
    /// Feeds bytes to the decoder.
    pub run: fn(&[u8]),
    /// Makes a valid input.
    pub valid: fn(&mut Rng) -> Vec<u8>,
    /// Makes the checksums of an input right, as far as it still looks like one.
    pub seal: fn(&mut [u8]),
}

impl Target {
    /// The `index`th input of a seed: valid, mutated, or noise.
    #[must_use]
    pub fn input(&self, seed: u64, index: u64) -> Vec<u8> {
        let mut rng = Rng::with_seed(seed ^ index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        if rng.u8(..8) == 0 {
            let mut noise = vec![0; rng.usize(..600)];
            rng.fill(&mut noise);
            return noise;
        }
        let mut bytes = (self.valid)(&mut rng);
        for _ in 0..rng.u8(..4) {
            mutation::mutate(&mut bytes, &mut rng);
        }
        if rng.bool() {
            (self.seal)(&mut bytes);
        }
        bytes
    }

    /// Runs that many inputs of a seed.
    pub fn run_seeded(&self, seed: u64, count: u64) {
        for index in 0..count {
            let _running = Running { target: self.name, seed, index };
            (self.run)(&self.input(seed, index));
        }
    }
}

/// Says which input was running when something panics.
struct Running {
    target: &'static str,
    seed: u64,
    index: u64,
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { target, seed, index } = self;
            eprintln!("fuzz target {target}, seed {seed}, input {index}");
        }
    }
}
