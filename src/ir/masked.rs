//! Running masked tensors through their transforms, a piece at a time.

use super::Masked;
use crate::onnx::OnnxError;

const PIECE: usize = 256 << 10;

/// Returns how many elements of the tensor are masked. Reads the original elements and writes nothing.
///
/// # Errors
/// [`OnnxError::Io`] if they cannot be read.
pub fn count_masked(masked: &Masked) -> Result<u64, OnnxError> {
    for_each_piece(masked, PIECE, |_, _| Ok(()))
}

/// Gives the new elements of a tensor to `each`, in order, in pieces of about `piece_bytes` bytes (more where the
/// transform must see more at once) with the offset of each; returns how many elements are masked.
///
/// # Errors
/// [`OnnxError::Io`] if the original elements cannot be read, and whatever `each` fails with.
pub fn for_each_piece<E: From<OnnxError>>(
    masked: &Masked,
    piece_bytes: usize,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<u64, E> {
    let len = masked.original.len();
    let granularity = masked.transform.granularity().max(1);
    let piece_bytes = (piece_bytes / granularity).max(1).saturating_mul(granularity);
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX).min(piece_bytes)];
    let mut edit = masked.transform.start();
    let mut count = 0;
    for at in (0..len).step_by(piece_bytes) {
        let piece = &mut buffer[..(len - at).min(piece_bytes as u64) as usize];
        masked.original.read_at(at, piece)?;
        count += edit(piece);
        each(at, piece)?;
    }
    Ok(count)
}
