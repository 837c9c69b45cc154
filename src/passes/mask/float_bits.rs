//! The bits of a float in 16 or 32 bits: its magnitude, its sign, its place in a file.

use std::fmt::Debug;

/// The bits of an element of 2 or 4 bytes, little-endian.
pub(super) trait Word: Copy + Ord + Debug + Default + Send + Sync + 'static {
    const SIZE: usize;

    /// Returns the lower bits of `bits`.
    fn truncate(bits: u32) -> Self;

    /// Returns the bits with the sign cleared.
    fn magnitude(self) -> Self;

    /// Adds one if `more`.
    fn plus(self, more: bool) -> Self;

    /// Returns the bits as a number.
    fn count(self) -> u64;

    /// Returns the element in the first bytes.
    fn read(bytes: &[u8]) -> Self;

    /// Replaces the element in the first bytes.
    fn write(self, bytes: &mut [u8]);
}

macro_rules! word {
    ($word:ident) => {
        impl Word for $word {
            const SIZE: usize = size_of::<$word>();

            fn truncate(bits: u32) -> Self {
                bits as $word
            }

            fn magnitude(self) -> Self {
                self & ($word::MAX >> 1)
            }

            fn plus(self, more: bool) -> Self {
                self.wrapping_add(more.into())
            }

            fn count(self) -> u64 {
                self.into()
            }

            fn read(bytes: &[u8]) -> Self {
                bytes.first_chunk().map_or(0, |bytes| $word::from_le_bytes(*bytes))
            }

            fn write(self, bytes: &mut [u8]) {
                if let Some(bytes) = bytes.first_chunk_mut() {
                    *bytes = self.to_le_bytes();
                }
            }
        }
    };
}

word!(u16);
word!(u32);
