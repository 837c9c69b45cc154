//! The external data file of an output.

use rayon::prelude::*;

use super::copy::{Content, Destination, MaskedCount};
use crate::onnx::OnnxError;

/// Every tensor begins at a multiple of this: a page, as the ONNX spec recommends for mapping.
const PAGE: u64 = 4096;
/// Tensors of [`LARGE`] bytes and more begin at a multiple of this: Windows maps files at 64 KiB steps.
const WINDOWS_STEP: u64 = 65536;
const LARGE: u64 = 1 << 20;

/// How many tensors are written at once. Each holds one piece in memory, so this bounds memory too.
const WRITERS: usize = 2;

/// The place of each tensor in the data file. Gaps between tensors are holes: zeros that take no disk.
#[derive(Debug, Default)]
pub struct DataLayout {
    entries: Vec<Entry>,
    len: u64,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    len: u64,
    content: Content,
}

impl DataLayout {
    /// Adds a tensor of `len` bytes; returns the offset where it will begin.
    pub fn push(&mut self, len: u64, content: Content) -> u64 {
        let at = self.next(len);
        self.entries.push(Entry { at, len, content });
        self.len = at + len;
        at
    }

    /// Returns how long the file would be with a further tensor of `len` bytes.
    pub fn end_with(&self, len: u64) -> u64 {
        self.next(len).saturating_add(len)
    }

    fn next(&self, len: u64) -> u64 {
        self.len.next_multiple_of(if len >= LARGE { WINDOWS_STEP } else { PAGE })
    }

    /// Writes every tensor; returns how many elements of each masked one were masked.
    ///
    /// # Errors
    /// [`OnnxError`] if weights cannot be read or the file cannot be written.
    pub fn write(&self, to: Destination<'_>) -> Result<Vec<MaskedCount>, OnnxError> {
        to.file.set_len(self.len).map_err(|e| OnnxError::io("write", to.path, e))?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(WRITERS)
            .build()
            .map_err(|e| OnnxError::io("start threads to write", to.path, std::io::Error::other(e)))?;
        let counts: Vec<Option<MaskedCount>> = pool.install(|| {
            self.entries.par_iter().map(|e| e.content.write(to, e.at, e.len)).collect::<Result<_, _>>()
        })?;
        Ok(counts.into_iter().flatten().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tensors_begin_at_pages_and_large_ones_at_64_kib() {
        let mut layout = DataLayout::default();
        let empty = || Content::Bytes(bytes::Bytes::new());
        assert_eq!(layout.push(5000, empty()), 0);
        assert_eq!(layout.push(1024, empty()), 8192);
        assert_eq!(layout.push(1 << 20, empty()), 65536);
        assert_eq!(layout.len, 65536 + (1 << 20));
    }
}
