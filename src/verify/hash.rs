//! Hashing of messages whose parts cannot run into each other.

use sha2::{Digest, Sha256};

/// A SHA-256.
pub type Hash = [u8; 32];

/// Collects the parts of what is hashed; each is preceded by its length.
pub struct Hasher(Sha256);

impl Hasher {
    /// Begins the hash of something of this kind.
    pub fn new(kind: &str) -> Self {
        Self(Sha256::new()).bytes(kind.as_bytes())
    }

    /// Adds bytes.
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
        self
    }

    /// Adds text.
    pub fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    /// Adds a number.
    pub fn number(mut self, number: u64) -> Self {
        self.0.update(number.to_le_bytes());
        self
    }

    /// Adds dimensions.
    pub fn dims(self, dims: &[i64]) -> Self {
        dims.iter().fold(self.number(dims.len() as u64), |hasher, dim| hasher.number(*dim as u64))
    }

    /// Adds hashes whose order matters.
    pub fn list(self, hashes: &[Hash]) -> Self {
        hashes.iter().fold(self.number(hashes.len() as u64), |hasher, hash| hasher.bytes(hash))
    }

    /// Adds hashes whose order doesn't matter.
    pub fn set(self, mut hashes: Vec<Hash>) -> Self {
        hashes.sort_unstable();
        self.list(&hashes)
    }

    /// Returns the hash.
    pub fn finish(self) -> Hash {
        self.0.finalize().into()
    }
}
