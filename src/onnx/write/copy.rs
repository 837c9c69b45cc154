//! Moving bytes into output files: from other files inside the kernel, from tensors in small pieces. Weights never
//! pass through a map, so the process's memory stays small whatever the model's size.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Arc};

use bytes::Bytes;

use crate::{
    ir::{InitializerId, Masked, WeightReader, for_each_piece},
    observer::Progress,
    onnx::{DataFile, OnnxError},
};

/// About how many bytes of a tensor are in memory at once.
const PIECE: usize = 4 << 20;
/// How much one system call copies, so that a copy that should stop does so soon.
#[cfg(target_os = "linux")]
const KERNEL_PIECE: u64 = 64 << 20;

/// An output file under its temporary name, and the name it will have (for messages).
#[derive(Clone, Copy)]
pub struct Destination<'a> {
    pub file: &'a File,
    pub path: &'a Path,
    pub progress: Progress<'a>,
}

impl Destination<'_> {
    /// Writes `bytes` at `at`.
    ///
    /// # Errors
    /// [`OnnxError::Io`] if the disk is full or the system refuses otherwise; [`OnnxError::Stopped`].
    pub fn put(self, at: u64, bytes: &[u8]) -> Result<(), OnnxError> {
        self.file.write_all_at(bytes, at).map_err(|e| OnnxError::io("write", self.path, e))?;
        Ok(self.progress.advance(bytes.len() as u64)?)
    }

    /// Copies `len` bytes of `from`: shared extents where the file system can, else inside the kernel, else through
    /// a buffer.
    ///
    /// # Errors
    /// As [`Self::put`], and if `from` cannot be read.
    pub fn copy(self, from: &DataFile, from_at: u64, at: u64, len: u64) -> Result<(), OnnxError> {
        let copied = self.copy_in_kernel(from, from_at, at, len)?;
        let mut buffer = vec![0; (len - copied).min(PIECE as u64) as usize];
        let mut done = copied;
        while done < len {
            let piece = (len - done).min(PIECE as u64) as usize;
            from.read_at(from_at + done, &mut buffer[..piece])?;
            self.put(at + done, &buffer[..piece])?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Returns how many bytes the kernel copied by itself: all of them, unless the two file systems don't allow it.
    #[cfg(target_os = "linux")]
    fn copy_in_kernel(self, from: &DataFile, from_at: u64, at: u64, len: u64) -> Result<u64, OnnxError> {
        use rustix::io::Errno;
        let (mut read_at, mut write_at) = (from_at, at);
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(KERNEL_PIECE) as usize;
            let copied = rustix::fs::copy_file_range(
                from.file(),
                Some(&mut read_at),
                self.file,
                Some(&mut write_at),
                piece,
            );
            match copied {
                Ok(0) => break,
                Ok(n) => {
                    done += n as u64;
                    self.progress.advance(n as u64)?;
                }
                Err(Errno::INTR) => {}
                Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => {
                    return Err(OnnxError::io("write", self.path, e.into()));
                }
                // Reading and writing say better what is wrong, if anything is.
                Err(_) => break,
            }
        }
        Ok(done)
    }

    #[cfg(not(target_os = "linux"))]
    fn copy_in_kernel(self, _: &DataFile, _: u64, _: u64, _: u64) -> Result<u64, OnnxError> {
        Ok(0)
    }
}

/// Elements that go into an output file.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Bytes),
    /// Bytes of another file, from this offset on.
    File(Arc<DataFile>, u64),
    /// Elements that are computed as they are read.
    Computed(WeightReader),
    /// An initializer's elements, masked on the way.
    Masked(InitializerId, Masked),
}

/// How many elements of an initializer were masked.
pub type MaskedCount = (InitializerId, u64);

impl Content {
    /// Writes the `len` bytes at `at`.
    ///
    /// # Errors
    /// As [`Destination::copy`].
    pub fn write(&self, to: Destination<'_>, at: u64, len: u64) -> Result<Option<MaskedCount>, OnnxError> {
        match self {
            Self::Bytes(bytes) => to.put(at, bytes).map(|()| None),
            Self::File(file, from) => to.copy(file, *from, at, len).map(|()| None),
            Self::Computed(reader) => {
                let mut buffer = vec![0; len.min(PIECE as u64) as usize];
                for from in (0..len).step_by(PIECE) {
                    let piece = &mut buffer[..(len - from).min(PIECE as u64) as usize];
                    reader.read_at(from, piece)?;
                    to.put(at + from, piece)?;
                }
                Ok(None)
            }
            Self::Masked(id, masked) => {
                let count = for_each_piece(masked, PIECE, |piece_at, piece| to.put(at + piece_at, piece))?;
                Ok(Some((*id, count)))
            }
        }
    }
}
